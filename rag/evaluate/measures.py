"""Rankings and judgements in, one value for each query out. Knows no retriever.

The measures are those of trec_eval, by ir-measures; grades are gains of nDCG as they are (no powers of two), and
whatever is above 0 is relevant. `retrieval_score` is ours, after the reference's.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from rag.evaluate.dataset import Qrels

Ranking: TypeAlias = Mapping[str, float]  # section id -> score, best first
Run: TypeAlias = Mapping[str, Ranking]  # by query id

CUTOFFS = {"nDCG@10": 10, "R@1": 1, "R@4": 4, "R@10": 10, "R@100": 100, "RR@10": 10, "AP": 0}
RETRIEVAL_SCORE = "retrieval_score"

PerQuery: TypeAlias = dict[str, list[float]]  # metric -> a value for each query of the qrels, in their order


def measure(run: Run, qrels: Qrels, k: int) -> PerQuery:
    """The measures that `k` retrieved sections allow; a judged query that the run lacks, or has empty, counts 0.

    AP is over the k sections.
    """
    import ir_measures

    names = {ir_measures.parse_measure(name): name for name, cutoff in CUTOFFS.items() if cutoff <= k}
    found: dict[str, dict[str, float]] = {name: {} for name in names.values()}
    scored = {query_id: ordered_scores(ranking) for query_id, ranking in run.items()}
    for value in ir_measures.iter_calc(list(names), qrels, scored):
        found[names[value.measure]][value.query_id] = float(value.value)
    return {name: [values.get(query_id, 0.0) for query_id in qrels] for name, values in found.items()}


def retrieval_score(prompted: Mapping[str, Sequence[str]], qrels: Qrels) -> list[float]:
    """1 for a query with a relevant page among those in its prompt, else 0; the mean is the share of queries.

        page(s)   s without `#anchor`
        score(q)  1 if { page(s) : s relevant to q } and { page(h) : h in prompted[q] } have one in common, else 0

    `prompted` holds the sections of the first k hits by query, k = `llm.k`: chunks, so a section can be there twice.
    """
    return [
        float(not _pages(prompted.get(query_id, ())).isdisjoint(_pages(s for s, grade in grades.items() if grade > 0)))
        for query_id, grades in qrels.items()
    ]


def ordered_scores(ranking: Ranking) -> dict[str, float]:
    """The same scores, lowered where they must be so that each is below the one before, as float32.

    trec_eval reads scores into float32, sorts by them and not by rank, and puts ties in the order of ids.
    """
    ordered: dict[str, float] = {}
    limit = np.float32(np.inf)
    for section_id, score in ranking.items():
        limit = min(np.float32(score), np.nextafter(limit, np.float32(-np.inf)))
        ordered[section_id] = float(limit)
    return ordered


def _pages(sections: Iterable[str]) -> set[str]:
    return {section.partition("#")[0] for section in sections}
