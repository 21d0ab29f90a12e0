"""Filtered vector search: recall@10 and time by selectivity, beside the unfiltered query and the exact scan.

    python benchmarks/filtered.py --chunks 100000 --queries 100

Made of clustered random vectors of 384 dimensions, five to a document, written straight into the tables of an embedded
server of its own. Three kinds of restriction: metadata independent of the vectors, 20 equal tenants, and metadata that
goes with the clusters, asked from another cluster: the case in which a graph leads nowhere.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bulk import Made, copy_documents

from rag.config import IndexConfig
from rag.index.database import migrate
from rag.index.filters import Filter
from rag.index.generations import activate, ensure_generation, live_generation
from rag.index.hnsw import update_hnsw
from rag.index.server import EmbeddedServer
from rag.index.store import Generation, Store
from rag.index.vectors import nearest
from rag.records import Access

DIM, PER_DOCUMENT, CLUSTERS, TENANTS = 384, 5, 200, 20
NOISE = 0.7  # beside a centre of norm 1: clusters lie well apart, which is hard for a graph
SHARES = (0.5, 0.1, 0.05, 0.02, 0.01, 0.001)
TEXT = "Penguins live in the Antarctic, in large and noisy colonies. " * 10


def make_vectors(centres: np.ndarray, of: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rows = centres[of] + rng.normal(scale=NOISE / np.sqrt(DIM), size=(len(of), DIM))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def fill(store: Store, num_chunks: int, rng: np.random.Generator) -> tuple[Generation, np.ndarray]:
    """A live generation with its index, and the centres of its clusters. A document lies in one cluster."""
    centres = rng.normal(size=(CLUSTERS, DIM))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    g = ensure_generation(store, "filtered", {"made": True}, {"model": "made"}, DIM)
    num_documents = num_chunks // PER_DOCUMENT
    clusters = rng.integers(CLUSTERS, size=num_documents)
    draws = rng.random(num_documents)

    def made() -> Iterator[Made]:
        for i in rng.permutation(num_documents):  # neighbours on disk are not neighbours in space
            meta = {f"share{s}": "yes" for s in SHARES if draws[i] < s}
            meta |= {f"cluster{s}": "yes" for s in SHARES if clusters[i] < s * CLUSTERS}
            vectors = make_vectors(centres, np.full(PER_DOCUMENT, clusters[i]), rng)
            yield Made(f"file:///made/{i}.md", [TEXT] * PER_DOCUMENT, vectors, meta, _tenant(i))

    copy_documents(store, g, made())
    activate(store, g, update_hnsw(store, g, IndexConfig(), 100))
    return live_generation(store, "filtered"), centres


def _tenant(number: int) -> str:
    return f"tenant{number % TENANTS}"


def measure(store: Store, g: Generation, queries: np.ndarray, **restriction: Any) -> dict[str, Any]:
    """Recall@10 against the exact scan of the same chunks, and milliseconds."""
    found = wanted = 0
    times: dict[bool, list[float]] = {True: [], False: []}
    nearest(store, g, queries[0], 10, **restriction)  # the count is remembered from here on
    for query in queries:
        hits = {}
        for exact in (True, False):
            started = time.perf_counter()
            hits[exact] = nearest(store, g, query, 10, exact=exact, **restriction)
            times[exact].append(1000 * (time.perf_counter() - started))
        worst = hits[True][-1][0] - 1e-6
        found += sum(score >= worst for score, _ in hits[False])
        wanted += len(hits[True])
    return {
        "recall@10": round(found / wanted, 4),
        "p50_ms": round(float(np.median(times[False])), 2),
        "p95_ms": round(float(np.quantile(times[False], 0.95)), 2),
        "exact_p50_ms": round(float(np.median(times[True])), 2),
    }


def restrictions() -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {"none": {}}
    made |= {f"metadata {100 * s:g} %": {"filter": Filter(((f"share{s}", ("yes",)),))} for s in SHARES}
    made |= {f"other clusters {100 * s:g} %": {"filter": Filter(((f"cluster{s}", ("yes",)),))} for s in SHARES[:5]}
    made["tenant 5 %"] = {"access": Access("tenant3")}
    made["tenant 5 %, metadata 50 %"] = {"access": Access("tenant3"), "filter": Filter((("share0.5", ("yes",)),))}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=100)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as home:
        server = EmbeddedServer(Path(home))
        migrate(url := server.start())
        store = Store(url)
        try:
            g, centres = fill(store, args.chunks, rng)
            queries = make_vectors(centres, rng.integers(CLUSTERS // 2, CLUSTERS, size=args.queries), rng)
            for name, restriction in restrictions().items():
                print(json.dumps({"restriction": name} | measure(store, g, queries, **restriction)), flush=True)
        finally:
            store.close()
            server.stop()


if __name__ == "__main__":
    main()
