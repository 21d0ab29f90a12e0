"""Hybrid search at a given size: its times beside those of its parts, and of the main reference's search.

    python benchmarks/search.py --chunks 100000
    python benchmarks/search.py --chunks 1000000 --real 10000 --no-reference

The text is that of Python's HTML documentation (apt-get install python3-doc), cut as `rag ingest` cuts it; `--real`
chunks are embedded by the default model, then all come again until there are `--chunks`, each with a tenth of its
words left out and `--noise` added to its vector of norm 1 (0.2 turns it by 11 degrees). The fewer are real, the more
copies lie in a bundle, which a graph can hardly tell apart from a distance: recall falls. Questions are titles of its
sections, in turn.

`parts` are the three that no hybrid search can do without, one after the other: the query's embedding, the HNSW query,
the BM25 query. `hybrid` and they are measured in turns, one client. `open loop` is hybrid search by questions that
arrive at random, at half the rate one client gets, whether or not the last was answered; times are counted from their
arrival. The reference's search opens a connection, scans the table, asks rank-bm25 and sorts in Python
(ray-project/llm-applications, rag/search.py).
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg
import torch
from bulk import Made, copy_documents
from lexical import SOURCE, texts_and_titles
from pgvector.psycopg import register_vector
from rank_bm25 import BM25Okapi
from sentence_transformers import SentenceTransformer

from rag.config import EmbedConfig, IndexConfig, SearchConfig
from rag.index.database import migrate
from rag.index.embed import Embedder, load_embedder
from rag.index.generations import activate, ensure_generation, live_generation
from rag.index.hnsw import update_hnsw
from rag.index.lexical import LexicalIndex, update_lexical
from rag.index.model_files import find_folder
from rag.index.server import EmbeddedServer
from rag.index.store import Generation, Store
from rag.index.vectors import measure_recall, nearest
from rag.search.retrieve import Retriever

NAME, PER_DOCUMENT = "speed", 5
ROUNDS, NUM_CLIENTS, REFERENCE_QUERIES, RECALL_QUERIES = 400, 16, 8, 50


def fill(store: Store, texts: Sequence[str], embedder: Embedder, num_real: int, noise: float) -> Generation:
    """A live generation of `texts`, five to a document."""
    real = embedder.embed(texts[:num_real], "passage")
    rng = np.random.default_rng(0)
    generation = ensure_generation(store, NAME, {"made": len(texts)}, asdict(embedder.fingerprint), embedder.dim)

    def made() -> Iterator[Made]:
        for start in range(0, len(texts), PER_DOCUMENT):
            vectors = real[np.arange(start, min(start + PER_DOCUMENT, len(texts))) % num_real]
            if start >= num_real:
                vectors = vectors + rng.normal(scale=noise / vectors.shape[1] ** 0.5, size=vectors.shape)
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            yield Made(f"file:///made/{start}.md", texts[start : start + PER_DOCUMENT], vectors.astype(np.float32))

    copy_documents(store, generation, made())
    return generation


def in_turns(stages: dict[str, Callable[[str], object]], questions: Sequence[str]) -> dict[str, np.ndarray]:
    """Milliseconds of each stage for each of ROUNDS questions."""
    times: dict[str, list[float]] = {name: [] for name in stages}
    for i in range(-20, ROUNDS):  # the first ones warm up
        for name, stage in stages.items():
            started = time.perf_counter()
            stage(questions[i % len(questions)])
            if i >= 0:
                times[name].append((time.perf_counter() - started) * 1000)
    return {name: np.array(values) for name, values in times.items()}


def open_loop(search: Callable[[str], object], questions: Sequence[str], per_s: float) -> np.ndarray:
    """Milliseconds from each question's arrival to its answer."""
    draw, arrives, waiting = random.Random(0), time.perf_counter() + 0.1, []

    def answer(question: str, arrived: float) -> float:
        search(question)
        return (time.perf_counter() - arrived) * 1000

    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        for i in range(ROUNDS):
            arrives += draw.expovariate(per_s)
            time.sleep(max(0.0, arrives - time.perf_counter()))
            waiting.append(clients.submit(answer, questions[i % len(questions)], arrives))
    return np.array([one.result() for one in waiting])


def reference_search(url: str, table: str, texts: Sequence[str], k: int = 10) -> Callable[[str], list[Any]]:
    """What the reference does for a question, on a table like its own that holds what `table` does."""
    model = SentenceTransformer(str(find_folder(EmbedConfig().model)), device="cpu")
    index = BM25Okapi([text.lower().split() for text in texts])
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            "create table document (id bigserial primary key, text text not null, source text not null,"
            " embedding vector)"
        )
        conn.execute(f"insert into document (text, source, embedding) select text, source, embedding from {table}")
        conn.execute("vacuum analyze document")
    scan = "select id, text, embedding <=> %s as distance from document order by distance limit %s"

    def search(question: str) -> list[Any]:
        vector = model.encode(question)
        with psycopg.connect(url) as conn:
            register_vector(conn)
            conn.execute("set enable_indexscan = off")
            found = conn.execute(scan, [vector, k]).fetchall()
        scores = index.get_scores(question.lower().split())
        by_words = sorted(range(len(scores)), key=lambda i: scores[i], reverse=True)[:k]
        return [*found, *by_words]

    return search


def ids(rows: Sequence[tuple[float, Any]]) -> list[str]:
    return [row.chunk_id for _, row in rows]


def summary(times: np.ndarray) -> dict[str, float]:
    return {name: round(float(np.percentile(times, q)), 2) for name, q in (("p50", 50), ("p95", 95), ("p99", 99))}


def measure(store: Store, home: Path, args: argparse.Namespace) -> dict[str, Any]:
    embedder = load_embedder(EmbedConfig(), home)
    threads = torch.get_num_threads()
    texts, questions = texts_and_titles(args.source, args.chunks)
    num_real = min(args.real, len(texts))
    report: dict[str, Any] = {"chunks": len(texts), "embedded": num_real, "precision": embedder.precision}
    started = time.perf_counter()
    generation = fill(store, texts, embedder, num_real, args.noise)
    report["fill_s"] = round(time.perf_counter() - started)
    activate(store, generation, update_hnsw(store, generation, IndexConfig(), SearchConfig().ef_search))
    started = time.perf_counter()
    update_lexical(store, NAME, home)
    report["bm25_build_s"] = round(time.perf_counter() - started, 1)
    report["bm25_mb"] = round(sum(p.stat().st_size for p in (home / "lexical").rglob("*.npy")) / 1e6)
    generation = live_generation(store, NAME)
    report["hnsw"] = generation.stats
    started = time.perf_counter()
    index = LexicalIndex(store, generation, home)
    index.view()
    report["bm25_open_s"] = round(time.perf_counter() - started, 2)

    torch.set_num_threads(1)  # as Ray does for a replica with one CPU; two spin while the database wants theirs
    config = SearchConfig()
    retriever = Retriever(store, config, embedder, home)
    vectors = {question: embedder.embed([question], "query")[0] for question in questions}
    stages: dict[str, Callable[[str], object]] = {
        "embedding": lambda q: embedder.embed([q], "query"),
        "HNSW": lambda q: nearest(store, generation, vectors[q], config.candidates, config.ef_search),
        "BM25": lambda q: index.view().search(index.analyzer.query_terms(q), config.candidates),
        "hybrid": lambda q: retriever.search(q, NAME),
        "semantic": lambda q: retriever.search(q, NAME, mode="semantic"),
        "lexical": lambda q: retriever.search(q, NAME, mode="lexical"),
    }
    times = in_turns(stages, questions)
    report["one client, ms"] = {name: summary(values) for name, values in times.items()}
    parts = sum(float(np.median(times[name])) for name in ("embedding", "HNSW", "BM25"))
    hybrid = float(np.median(times["hybrid"]))
    waited = open_loop(stages["hybrid"], questions, 500 / hybrid)
    report["open loop, ms"] = summary(waited) | {"per_s": round(500 / hybrid, 1)}
    report["p50 / sum of parts"] = round(hybrid / parts, 2)
    report["open loop p99 / p50"] = round(float(np.percentile(waited, 99) / np.median(waited)), 2)
    exact = [ids(nearest(store, generation, vectors[q], 10, exact=True)) for q in questions[:RECALL_QUERIES]]
    for k in (10, config.candidates):  # what semantic search asks HNSW for, and hybrid search
        found = [ids(nearest(store, generation, vectors[q], k, config.ef_search)) for q in questions[:RECALL_QUERIES]]
        share = np.mean([len(set(a) & set(b[:10])) / len(a) for a, b in zip(exact, found, strict=True)])
        report[f"recall@10 of {k} asked for, questions"] = round(float(share), 4)
    with store.pool.connection() as conn:
        report["recall@10, chunks"] = round(measure_recall(conn, generation, 10, 100, config.ef_search), 4)
    report["process_mb"] = round(psutil.Process().memory_info().rss / 1e6)
    if not args.no_reference:
        torch.set_num_threads(threads)
        search = reference_search(store.url, f"chunks_{generation.generation_id}", texts)
        started = time.perf_counter()
        for question in questions[:REFERENCE_QUERIES]:
            search(question)
        seconds = (time.perf_counter() - started) / REFERENCE_QUERIES
        report["reference, ms"] = round(seconds * 1000, 1)
        report["reference / hybrid p50"] = round(seconds * 1000 / hybrid, 1)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--real", type=int, default=20_000, help="chunks that are embedded, at most")
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--source", type=Path, default=SOURCE)
    parser.add_argument("--no-reference", action="store_true", help="whose index takes a minute for 100,000 chunks")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as work:
        server = EmbeddedServer(Path(work) / "pg")
        url = server.start()
        migrate(url)
        store = Store(url)
        try:
            print(json.dumps(measure(store, Path(work), args), indent=1))
        finally:
            store.close()
            server.stop()


if __name__ == "__main__":
    main()
