"""What each chunk method makes of the same text: how many chunks, how large, and what it cuts in two.

    python benchmarks/chunkers.py                   # this project's documentation and the source code of rag/ingest
    python benchmarks/chunkers.py ~/notes mypackage/

Markdown files are cut into sections first, Python files are one section each. A sentence or block counts as cut where
it would fit into a chunk and no chunk holds all of it; blocks are code fences, tables and list items of Markdown,
functions and methods of Python. Prints a Markdown table. Needs no database and no Ray.
"""

import argparse
import ast
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from markdown_it import MarkdownIt

from rag.config import ChunkConfig, EmbedConfig
from rag.index.embed import Embedder, context_tokens, load_embedder
from rag.ingest.chunks import ChunkTools, chunk_section
from rag.ingest.markdown import split_markdown
from rag.ingest.semantic import sentence_spans
from rag.ingest.windows import trim_span
from rag.records import Section

ROOT = Path(__file__).parents[1]
CONFIGS = [
    ChunkConfig(),
    ChunkConfig(method="tokens", size=200, overlap=15),
    ChunkConfig(method="markdown"),
    ChunkConfig(method="semantic"),
    ChunkConfig(method="code"),
]
LINE_BLOCKS = {"fence", "table_open", "list_item_open"}
Span = tuple[int, int]


def read_sections(paths: list[Path], suffix: str) -> list[Section]:
    files = sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob(f"*{suffix}")))
    texts = [(str(file), file.read_text()) for file in files if file.suffix == suffix]
    if suffix == ".py":
        return [Section(name, Path(name).name, text) for name, text in texts]
    return [section for name, text in texts for section in split_markdown(text, name)]


def markdown_blocks(text: str) -> Iterator[Span]:
    starts = _line_starts(text)
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type in LINE_BLOCKS and token.map:
            yield trim_span(text, starts[token.map[0]], starts[token.map[1]])


def functions(text: str) -> Iterator[Span]:
    starts = _line_starts(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield trim_span(text, starts[first - 1], starts[node.end_lineno])


def _line_starts(text: str) -> list[int]:
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return [*starts, len(text)]


def measure(
    sections: list[Section],
    config: ChunkConfig,
    blocks: Callable[[str], Iterator[Span]],
    embedder: Embedder,
    tools: ChunkTools,
) -> str:
    """A row of the table."""
    started = time.perf_counter()
    cut = [chunk_section(section, config, tools) for section in sections]
    seconds = time.perf_counter() - started
    chunks = [chunk for found in cut for chunk in found]
    num_cut = {"sentences": [0, 0], "blocks": [0, 0]}
    for section, found in zip(sections, cut, strict=True):
        for kind, spans in (("sentences", sentence_spans(section.text)), ("blocks", blocks(section.text))):
            for start, end in spans:
                if end - start <= 700:
                    whole = any(chunk.start_char <= start and end <= chunk.end_char for chunk in found)
                    num_cut[kind][0] += not whole
                    num_cut[kind][1] += 1
    lengths = [len(chunk.text) for chunk in chunks]
    tokens = embedder.count_tokens([chunk.context for chunk in chunks])
    unit = "tokens" if config.method == "tokens" else "characters"
    cells = [
        f"`{config.method}`",
        f"{config.size} {unit}",
        str(len(chunks)),
        f"{sum(lengths) / len(chunks):.0f}",
        str(max(lengths)),
        *(f"{cut} of {total}" for cut, total in num_cut.values()),
        str(sum(count > embedder.fingerprint.max_tokens for count in tokens)),
        f"{seconds:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "paths", nargs="*", type=Path, default=[ROOT / "README.md", ROOT / "docs", ROOT / "rag" / "ingest"]
    )
    paths = parser.parse_args().paths
    config = EmbedConfig(precision="fp32")
    embedder = load_embedder(config)
    tools = ChunkTools(
        token_spans=embedder.token_spans,
        max_tokens=context_tokens(config, embedder.fingerprint),
        embed=lambda texts: embedder.embed(texts, "passage"),
    )
    for suffix, blocks in ((".md", markdown_blocks), (".py", functions)):
        sections = read_sections(paths, suffix)
        if not sections:
            continue
        num_chars = sum(len(section.text) for section in sections)
        print(f"\n{suffix} files: {len(sections)} sections, {num_chars:,} characters\n")
        print("| method | size | chunks | mean chars | longest | cut sentences | cut blocks | over 256 tokens | s |")
        print("|---|---|---|---|---|---|---|---|---|")
        for chunk in CONFIGS:
            print(measure(sections, chunk, blocks, embedder, tools), flush=True)


if __name__ == "__main__":
    main()
