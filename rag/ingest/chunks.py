"""A section in, its chunks out: windows whose spans are exact, cut by one of five methods.

Knows no model: what a method needs of one (tokens, embeddings) is handed in. Whatever the method, a chunk is at most
`config.size` long, all the text of the section is in some chunk, and the chunks stand in order.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from rag.config import ChunkConfig
from rag.errors import ConfigError
from rag.ingest.blocks import code_windows, markdown_windows
from rag.ingest.semantic import semantic_windows
from rag.ingest.windows import Span, TokenSpans, char_windows, token_windows, trim_span
from rag.records import Chunk, Section


@dataclass(frozen=True)
class ChunkTools:
    """What methods need beyond the text; None where the chosen one needs nothing."""

    token_spans: TokenSpans | None = None  # character span of each token, special ones left out
    max_tokens: int | None = None  # tokens of a chunk's context, title and text, that the model reads
    embed: Callable[[list[str]], np.ndarray] | None = None  # (n, dim) float32, rows of norm 1


NO_TOOLS = ChunkTools()


def chunk_section(section: Section, config: ChunkConfig, tools: ChunkTools = NO_TOOLS) -> list[Chunk]:
    """The section's chunks, in order of their starts, none inside another.

    Raises ConfigError where the method needs a tool that is not there.
    """
    chunks: list[Chunk] = []
    for window_start, window_end in _windows(section, config, tools):
        start, end = trim_span(section.text, window_start, window_end)
        if start < end and (not chunks or end > chunks[-1].end_char):
            if chunks and start == chunks[-1].start_char:  # but for blanks, the one before lies inside this one
                chunks.pop()
            text = section.text[start:end]
            chunks.append(Chunk(section.section_id, section.source, section.title, text, start, end))
    return chunks


def _windows(section: Section, config: ChunkConfig, tools: ChunkTools) -> Iterable[Span]:
    text, size, overlap = section.text, config.size, config.overlap
    if config.method == "tokens":
        if tools.token_spans is None:
            raise ConfigError("chunk.method tokens: expected ChunkTools with token_spans, found none")
        size = _text_tokens(section.title, size, tools.token_spans, tools.max_tokens)
        return token_windows(text, size, min(overlap, size // 2), tools.token_spans)
    if config.method == "semantic":
        if tools.embed is None:
            raise ConfigError("chunk.method semantic: expected ChunkTools with embed, found none")
        return semantic_windows(text, size, tools.embed)
    by_method = {"recursive": char_windows, "markdown": markdown_windows, "code": code_windows}
    return by_method[config.method](text, size, overlap)


def _text_tokens(title: str, size: int, token_spans: TokenSpans, max_tokens: int | None) -> int:
    """What of the size is left to the text where title and text together must be read by the model.

    Half of what the model reads is the text's in any case: of an endless heading path no chunk would be left.
    """
    if max_tokens is None or not title:
        return size
    left = max_tokens - len(token_spans(f"{title}\n\n"))
    return min(size, max(left, max_tokens // 2))
