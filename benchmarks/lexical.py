"""BM25 by ours, bm25s, tantivy and rank-bm25: the same chunks, the same terms, the same questions, one thread.

    pip install tantivy
    python benchmarks/lexical.py --chunks 100000

The text is that of Python's HTML documentation (apt-get install python3-doc), cut as `rag ingest` cuts it; where there
is too little, chunks come again with a tenth of their words left out. Questions are titles of its sections, in turn.
rank-bm25 answers some of them only; all others answer all, in rounds by turns. tantivy analyses with its own rules for
words (it takes ours joined by blanks) and rounds the lengths of texts, so its scores are its own; `same` is the share
of questions whose best ten have the scores of rank-bm25's.
"""

import argparse
import importlib.util
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rank_bm25 import BM25Plus

from rag.config import ChunkConfig, Settings
from rag.index.bm25 import BM25, K1, B, Postings, build_postings, top
from rag.index.tokens import Analyzer
from rag.ingest.chunks import chunk_section
from rag.ingest.extract import extract
from rag.ingest.sources import list_documents, read_document

SOURCE = Path("/usr/share/doc/python3/html")
K, ROUNDS, RANK_BM25_QUERIES = 10, 3, 12

Search = Callable[[list[str]], np.ndarray]  # terms -> the scores of the K best, highest first


def texts_and_titles(source: Path, num_chunks: int) -> tuple[list[str], list[str]]:
    """Chunks of real text, `num_chunks` of them, and titles to ask for."""
    texts, titles = [], []
    for ref in list_documents(str(source), Settings()):
        for section in extract(read_document(ref)):
            titles.append(section.title.rpartition(" > ")[2])
            texts += [chunk.context for chunk in chunk_section(section, ChunkConfig())]
    draw = random.Random(0)
    num_real = len(texts)
    while len(texts) < num_chunks:
        words = texts[len(texts) % num_real].split()
        texts.append(" ".join(word for word in words if draw.random() > 0.1))
    questions = sorted({title for title in titles if 2 <= len(title.split()) <= 8})
    return texts[:num_chunks], draw.sample(questions, min(300, len(questions)))


def ours(chunks: Sequence[list[str]], folder: Path) -> Search:
    build_postings(chunks).save(folder)
    index = BM25([Postings.load(folder)], [None])

    def search(terms: list[str]) -> np.ndarray:
        scores = index.scores(terms)
        found = scores[scores > 0]
        return found[top(found, K)]

    return search


def by_bm25s(chunks: Sequence[list[str]], folder: Path) -> Search:
    import bm25s

    index = bm25s.BM25(method="bm25+", delta=0.0, k1=K1, b=B)
    index.index([list(chunk) for chunk in chunks], show_progress=False)
    index.save(folder)
    index = bm25s.BM25.load(folder, mmap=True)

    def search(terms: list[str]) -> np.ndarray:
        known = [term for term in terms if term in index.vocab_dict]
        if not known:
            return np.zeros(0)
        _, scores = index.retrieve([known], k=K, show_progress=False, n_threads=0)
        return np.asarray(scores[0])

    return search


def by_tantivy(chunks: Sequence[list[str]], folder: Path) -> Search:
    import tantivy

    schema = tantivy.SchemaBuilder().add_text_field("body", stored=False, tokenizer_name="whitespace").build()
    index = tantivy.Index(schema, path=str(folder))
    writer = index.writer(heap_size=256_000_000, num_threads=1)
    for chunk in chunks:
        writer.add_document(tantivy.Document(body=" ".join(chunk)))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    searcher = index.searcher()

    def search(terms: list[str]) -> np.ndarray:
        any_of = [
            (tantivy.Occur.Should, tantivy.Query.term_query(schema, "body", term, index_option="freq"))
            for term in terms
        ]
        found = searcher.search(tantivy.Query.boolean_query(any_of), limit=K, count=False)
        return np.array([score for score, _ in found.hits])

    return search


def rate(search: Search, queries: Sequence[list[str]]) -> float:
    """Queries a second."""
    started = time.perf_counter()
    for terms in queries:
        search(terms)
    return len(queries) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--source", type=Path, default=SOURCE)
    args = parser.parse_args()
    texts, questions = texts_and_titles(args.source, args.chunks)
    analyzer = Analyzer("english")
    started = time.perf_counter()
    chunks = [analyzer.terms(text) for text in texts]
    analysis_s = time.perf_counter() - started
    queries = [analyzer.query_terms(question) for question in questions]
    makers = {"ours": ours, "bm25s": by_bm25s}
    if importlib.util.find_spec("tantivy"):
        makers["tantivy"] = by_tantivy
    report: dict[str, Any] = {"chunks": len(chunks), "queries": len(queries), "terms_s": round(analysis_s, 2)}
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as home:
        searches, rates = {}, {name: list[float]() for name in makers}
        for name, make in makers.items():
            folder = Path(home) / name
            folder.mkdir()
            started = time.perf_counter()
            searches[name] = make(chunks, folder)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            report[name] = {"build_s": round(time.perf_counter() - started, 2), "mb": round(size / 1e6, 1)}
        reference = BM25Plus(chunks, k1=K1, b=B, delta=0)
        exact = [np.sort(reference.get_scores(terms))[::-1][:K] for terms in queries[:RANK_BM25_QUERIES]]
        slow = rate(lambda terms: reference.get_top_n(terms, range(len(chunks)), K), queries[:RANK_BM25_QUERIES])
        for _ in range(ROUNDS):
            for name, search in searches.items():
                rates[name].append(rate(search, queries))
    report["rank-bm25"] = {"queries_per_s": round(slow, 2)}
    for name, search in searches.items():
        found = [search(terms) for terms in queries[:RANK_BM25_QUERIES]]
        same = [len(a) <= len(b) and np.allclose(a, b[: len(a)], rtol=1e-3) for a, b in zip(found, exact, strict=True)]
        median = statistics.median(rates[name])
        report[name] |= {
            "queries_per_s": round(median, 1),
            "spread": [round(min(rates[name]), 1), round(max(rates[name]), 1)],
            "times_rank_bm25": round(median / slow, 1),
            "same": round(float(np.mean(same)), 2),
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
