"""The weight of meaning in hybrid search that serves a dataset best, and what it is worth. Knows no terminal.

The gain is cross-validated: each fifth of the questions is measured with the weight that is best on the other four, so
that the figure is not that of a weight on the very questions that chose it.
"""

from dataclasses import dataclass

import numpy as np

from rag.evaluate.dataset import Dataset
from rag.evaluate.measures import measure
from rag.evaluate.statistics import Difference, compare
from rag.index.generations import live_generation
from rag.progress import Progress
from rag.search.fusion import fuse
from rag.search.retrieve import Candidates, Retriever

METRIC, K = "nDCG@10", 10
WEIGHTS = tuple(round(i / 20, 2) for i in range(21))
FOLDS = 5


@dataclass(frozen=True)
class Tuned:
    """`best` is the weight to keep; equal to `before` where no other is better on questions it has not seen."""

    before: float
    best: float
    means: dict[float, float]  # weight -> mean nDCG@10 over all questions
    gain: Difference  # cross-validated, against `before`


def tune(retriever: Retriever, dataset: Dataset, collection: str) -> Tuned:
    """Searches every question once and fuses it with every weight. Raises what a search raises."""
    before = retriever.weight(live_generation(retriever.store, collection))
    weights = sorted({*WEIGHTS, before})
    rankings: dict[float, dict[str, dict[str, float]]] = {weight: {} for weight in weights}
    with Progress("tune", len(dataset.queries), "queries") as progress:
        for query_id, query in dataset.queries.items():
            found = retriever.candidates(query, collection)
            for weight in weights:
                rankings[weight][query_id] = _ranking(retriever, dataset, found, weight)
            progress.update(1)
    table = np.array([measure(rankings[weight], dataset.qrels, K)[METRIC] for weight in weights])
    return choose(weights, table, before)


def choose(weights: list[float], table: np.ndarray, before: float) -> Tuned:
    """The best of `weights`, given what each question got with each: (weights, questions)."""
    at = weights.index(before)
    fold = np.arange(table.shape[1]) % FOLDS
    unseen = np.empty(table.shape[1])
    for one in range(FOLDS):
        others = table[:, fold != one]
        chosen = int(others.mean(axis=1).argmax()) if others.size else at
        unseen[fold == one] = table[chosen, fold == one]
    gain = compare(unseen, table[at])
    means = table.mean(axis=1)
    best = weights[int(means.argmax())] if gain.difference > 0 else before
    return Tuned(before, best, dict(zip(weights, means.tolist(), strict=True)), gain)


def _ranking(retriever: Retriever, dataset: Dataset, found: Candidates, weight: float) -> dict[str, float]:
    """The K best sections, each with the score of its best chunk."""
    fused = fuse(retriever.config.fusion, found.cosines, found.bm25, weight)
    ranking: dict[str, float] = {}
    for i in sorted(range(len(fused)), key=lambda i: (-fused[i], found.rows[i].chunk_id)):
        ranking.setdefault(dataset.section_id(found.rows[i].source), float(fused[i]))
    return dict(list(ranking.items())[:K])
