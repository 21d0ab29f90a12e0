"""Generations of random unit vectors, and readers that check each result; run as a program, it is such a reader.

Every text of generation n begins with `g<n> `, so a result tells which generations it came from.
"""

import json
import random
import sys
import tempfile
import threading
import time
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rag.config import SearchConfig
from rag.index.fingerprint import Fingerprint
from rag.index.generations import ensure_generation
from rag.index.store import Generation, IndexedDocument, Store
from rag.records import Chunk, Section
from rag.search.retrieve import Retriever

DIM = 16
FINGERPRINT = Fingerprint("toy", "0", "mean", True, "", "", DIM, 256)


class ToyEmbedder:
    """A text's direction is random, and always the same. It takes as long as a model under load."""

    fingerprint = FINGERPRINT
    dim = DIM

    def embed(self, texts: list[str], kind: str) -> np.ndarray:
        time.sleep(random.uniform(0, 0.05))
        return np.concatenate([unit_vectors(1, zlib.crc32(text.encode())) for text in texts])


def unit_vectors(num: int, seed: int, dim: int = DIM) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def document(name: str, texts: list[str], content_hash: str = "h1", dim: int = DIM) -> IndexedDocument:
    source = f"file:///{name}"
    section = Section(f"{source}#s", "Title", "\n".join(texts))
    chunks = tuple(Chunk(section.section_id, section.source, "Title", t, i, i + len(t)) for i, t in enumerate(texts))
    vectors = unit_vectors(len(texts), zlib.crc32(f"{name} {texts[0]}".encode()), dim)
    return IndexedDocument(source, "text/plain", content_hash, "{}", (section,), chunks, vectors)


def new_generation(store: Store, collection: str, n: int, dim: int = DIM) -> Generation:
    """Empty, and like no other: n is in its config."""
    fingerprint = asdict(FINGERPRINT) | {"dim": dim}
    return ensure_generation(store, collection, {"chunk": {"size": 100 + n, "overlap": 0}}, fingerprint, dim)


def fill(store: Store, generation: Generation, n: int, num_documents: int = 20, num_chunks: int = 10) -> None:
    store.write_documents(
        generation,
        [
            document(f"{d}", [f"g{n} document {d} chunk {c}" for c in range(num_chunks)], f"h{n}")
            for d in range(num_documents)
        ],
    )


@dataclass
class Report:
    """What a reader saw."""

    num_reads: int = 0
    seen: list[str] = field(default_factory=list)  # generations, in order of appearance
    errors: list[str] = field(default_factory=list)
    num_short: int = 0  # results with fewer than k hits
    mixed: list[list[str]] = field(default_factory=list)


def read_until(stop: threading.Event, retriever: Retriever, collection: str, report: Report, k: int = 10) -> None:
    """Searches again and again, as any user of `rag.search` does."""
    while not stop.is_set():
        report.num_reads += 1
        try:
            hits = retriever.search(f"query {report.num_reads}", collection, k=k, exact=report.num_reads % 3 == 0).hits
        except Exception as error:
            report.errors.append(repr(error))
            continue
        report.num_short += len(hits) != k
        tags = sorted({hit.text.split()[0] for hit in hits})
        if len(tags) > 1:
            report.mixed.append(tags)
        if tags and report.seen[-1:] != tags[:1]:
            report.seen.append(tags[0])


def toy_retriever(store: Store) -> Retriever:
    embedder: Any = ToyEmbedder()
    return Retriever(store, SearchConfig(), embedder, Path(tempfile.mkdtemp()))


def main() -> None:
    """Reads until its standard input is closed; prints the report as JSON."""
    url, collection = sys.argv[1:]
    stop, report, store = threading.Event(), Report(), Store(url)
    thread = threading.Thread(target=read_until, args=(stop, toy_retriever(store), collection, report))
    thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    stop.set()
    thread.join()
    store.close()
    print(json.dumps(vars(report)))


if __name__ == "__main__":
    main()
