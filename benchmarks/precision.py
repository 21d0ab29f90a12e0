"""What each precision gains in speed and loses in quality, on a labelled collection in BEIR layout.

    python benchmarks/precision.py path/to/scifact --split train

For fp32 and every other precision this machine has: texts/s on the same 512 documents, in turns, and nDCG@10 of exact
search with its vectors, with a paired bootstrap interval of the difference to fp32. A precision that loses more than
0.5 % is not fit for use.
"""

import argparse
import csv
import json
import sys
import time
from pathlib import Path

import numpy as np

from rag.config import EmbedConfig
from rag.index.embed import Embedder, load_embedder
from rag.index.precision import has_openvino

NUM_TIMED = 512
ROUNDS = 3
ALLOWED_LOSS = 0.005


def read_beir(folder: Path, split: str) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]:
    """(corpus, queries, qrels) by id; queries are those with judgements."""
    corpus = {
        row["_id"]: f"{row['title']}\n\n{row['text']}".strip()
        for row in map(json.loads, (folder / "corpus.jsonl").open())
    }
    qrels: dict[str, dict[str, int]] = {}
    with (folder / "qrels" / f"{split}.tsv").open() as stream:
        for row in csv.DictReader(stream, delimiter="\t"):
            if int(row["score"]) > 0:
                qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    queries = {row["_id"]: row["text"] for row in map(json.loads, (folder / "queries.jsonl").open())}
    return corpus, {query_id: queries[query_id] for query_id in qrels}, qrels


def ndcg_at_10(ranked: list[str], judged: dict[str, int]) -> float:
    """Järvelin and Kekäläinen's, with linear gains."""
    discounts = 1 / np.log2(np.arange(2, 12))
    gains = np.array([judged.get(doc_id, 0) for doc_id in ranked[:10]], float)
    ideal = np.array(sorted(judged.values(), reverse=True)[:10], float)
    return float((gains * discounts[: len(gains)]).sum() / (ideal * discounts[: len(ideal)]).sum())


def quality(
    embedder: Embedder, corpus: dict[str, str], queries: dict[str, str], qrels: dict[str, dict[str, int]]
) -> np.ndarray:
    """nDCG@10 of each query."""
    ids = list(corpus)
    documents = embedder.embed(list(corpus.values()), "passage")
    scores = embedder.embed(list(queries.values()), "query") @ documents.T
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    rows = zip(queries, ranked, strict=True)
    return np.array([ndcg_at_10([ids[i] for i in row], qrels[query_id]) for query_id, row in rows])


def interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % of the means of 10,000 samples with replacement."""
    draw = np.random.default_rng(0)
    means = [differences[draw.integers(0, len(differences), len(differences))].mean() for _ in range(10_000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    args = parser.parse_args()
    corpus, queries, qrels = read_beir(args.folder, args.split)
    names = ["fp32", "bf16", *(["openvino"] if has_openvino() else [])]
    embedders = {name: load_embedder(EmbedConfig(model=args.model, precision=name)) for name in names}
    texts = list(corpus.values())[:NUM_TIMED]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name, embedder in embedders.items():
            started = time.perf_counter()
            embedder.embed(texts, "passage")
            seconds[name].append(time.perf_counter() - started)
    print(f"{args.folder.name}: {len(corpus)} documents, {len(queries)} queries")
    exact = quality(embedders["fp32"], corpus, queries, qrels)
    unfit = []
    for name, embedder in embedders.items():
        found = exact if name == "fp32" else quality(embedder, corpus, queries, qrels)
        low, high = interval(found - exact)
        rates = sorted(len(texts) / s for s in seconds[name])
        print(
            f"{name:9} {rates[1]:6.1f} texts/s ({rates[0]:.1f} to {rates[-1]:.1f})"
            f"   nDCG@10 {found.mean():.4f}   to fp32 {found.mean() - exact.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
        )
        if exact.mean() - found.mean() > ALLOWED_LOSS * exact.mean():
            unfit.append(name)
    if unfit:
        sys.exit(f"error: {', '.join(unfit)} lost more than {ALLOWED_LOSS:.1%} of nDCG@10; do not use it")


if __name__ == "__main__":
    main()
