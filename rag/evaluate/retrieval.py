"""A retriever and a dataset in, measures with intervals for each mode out. Knows no terminal and no ingestion.

Judgements are on sections and a search finds chunks: a section ranks where its best chunk ranks. A mode is one of
`Retriever.search`, with `+NAME` behind it where a reranker orders its hits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import Any, get_args

import numpy as np

from rag.config import Mode
from rag.errors import ConfigError
from rag.evaluate.dataset import Dataset
from rag.evaluate.measures import RETRIEVAL_SCORE, PerQuery, measure, retrieval_score
from rag.evaluate.statistics import Difference, Interval, compare_columns, mean_intervals, percentile
from rag.index.generations import live_generation
from rag.progress import Progress
from rag.search.rerank import Reranker
from rag.search.retrieve import Retriever, SearchResult

TOTAL = "search"  # the whole of a search, in SearchResult.timings_ms
MARGIN = 1.5  # chunks asked for a section wanted, beyond the collection's mean; too few are asked for again


def _none_but_none(name: str) -> None:
    if name != "none":
        raise ConfigError(f"expected no reranker, since none can be made here; found {name!r}")


@dataclass(frozen=True)
class Plan:
    """How each mode is searched, and how much of what it finds is looked at."""

    k: int = 100  # sections that are ranked
    prompt_k: int = 4  # hits that the prompt would be offered: `llm.k`
    rerank: str | None = None  # orders the hits of each mode that names none itself
    make_reranker: Callable[[str], Reranker | None] = _none_but_none  # by name


@dataclass(frozen=True)
class Retrieved:
    """What one query found."""

    ranking: dict[str, float]  # section id -> score of its best chunk, best first
    prompted: tuple[str, ...]  # sections of the first `prompt_k` hits
    timings_ms: dict[str, float]


@dataclass(frozen=True)
class RunReport:
    """One mode: its means, what each query got, and how long the searches took."""

    means: dict[str, Interval]
    per_query: PerQuery
    ms: dict[str, tuple[float | None, float | None]]  # stage -> p50, p95; TOTAL is the whole search
    rankings: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Comparison:
    """Mode a against mode b on the same queries; the difference is a minus b."""

    a: str
    b: str
    metric: str
    result: Difference


@dataclass(frozen=True)
class Report:
    dataset: str
    split: str
    queries: int
    runs: dict[str, RunReport]
    comparisons: tuple[Comparison, ...]  # of each pair of modes, by each metric


def evaluate(
    retriever: Retriever, dataset: Dataset, collection: str, modes: Sequence[str], plan: Plan | None = None
) -> Report:
    """Searches every query in every mode, and compares the modes with each other. Raises what a search raises."""
    plan = plan or Plan()
    runs = {mode: _report(retrieve(retriever, dataset, collection, mode, plan), dataset, plan) for mode in modes}
    return Report(dataset.name, dataset.split, len(dataset.queries), runs, compare_runs(runs))


def run(
    retriever: Retriever, dataset: Dataset, collection: str, mode: str, k: int = 100
) -> dict[str, dict[str, float]]:
    """query id -> its k best sections with their scores, best first."""
    return rankings_of(retrieve(retriever, dataset, collection, mode, Plan(k)))


def rankings_of(retrieved: Mapping[str, Retrieved]) -> dict[str, dict[str, float]]:
    return {query_id: found.ranking for query_id, found in retrieved.items()}


def retrieve(retriever: Retriever, dataset: Dataset, collection: str, mode: str, plan: Plan) -> dict[str, Retrieved]:
    """The same with what the prompt would be offered, and the times. One search before them warms the caches."""
    per_section = _chunks_per_section(retriever, collection)
    num_chunks = max(plan.prompt_k, int(plan.k * per_section * MARGIN))
    name, wanted = parse_mode(mode, plan.rerank)
    reranker = plan.make_reranker(wanted)
    found: dict[str, Retrieved] = {}
    with Progress(f"search {mode}", len(dataset.queries), "queries") as progress:
        for query_id, query in dataset.queries.items():
            find = partial(retriever.search, query, collection, mode=name, reranker=reranker)
            if not found:
                find(k=num_chunks)
            found[query_id] = _retrieve(find, dataset, plan, num_chunks)
            progress.update(1)
    return found


def parse_mode(mode: str, rerank: str | None = None) -> tuple[str, str]:
    """(mode of the retriever, name of its reranker or none). Raises ConfigError for one that it does not have."""
    name, _, reranker = mode.partition("+")
    if name not in get_args(Mode):
        raise ConfigError(f"--mode: expected {', '.join(get_args(Mode))}, perhaps with +RERANKER; found {mode!r}")
    return name, reranker or rerank or "none"


def fold(result: SearchResult, dataset: Dataset, k: int) -> dict[str, float]:
    """The k best sections of the hits, each with the score of its best chunk."""
    ranking: dict[str, float] = {}
    for hit in result.hits:
        ranking.setdefault(dataset.section_id(hit.source), hit.score)
    return dict(list(ranking.items())[:k])


def compare_runs(runs: Mapping[str, RunReport]) -> tuple[Comparison, ...]:
    """Each pair of modes by each metric. The p values are not corrected for how many there are."""
    return tuple(
        Comparison(a, b, metric, result)
        for a, b in combinations(runs, 2)
        for metric, result in zip(
            runs[a].per_query, compare_columns(_table(runs[a].per_query), _table(runs[b].per_query)), strict=True
        )
    )


def report_json(report: Report) -> dict[str, Any]:
    """The shape of `rag evaluate retrieval --json`."""
    return {
        "dataset": report.dataset,
        "split": report.split,
        "queries": report.queries,
        "runs": {mode: _run_json(run) for mode, run in report.runs.items()},
        "comparisons": [{"a": c.a, "b": c.b, "metric": c.metric} | asdict(c.result) for c in report.comparisons],
    }


def _retrieve(find: Callable[..., SearchResult], dataset: Dataset, plan: Plan, num_chunks: int) -> Retrieved:
    """Asks for twice the chunks until there are enough sections, or no more chunks."""
    while True:
        result = find(k=num_chunks)
        ranking = fold(result, dataset, plan.k)
        if len(ranking) >= plan.k or len(result.hits) < num_chunks:
            break
        num_chunks *= 2
    prompted = tuple(dataset.section_id(hit.source) for hit in result.hits[: plan.prompt_k])
    return Retrieved(ranking, prompted, dict(result.timings_ms))


def _chunks_per_section(retriever: Retriever, collection: str) -> float:
    """At least 1. The mean over documents, which is above it: a document has one section or more."""
    counts = retriever.store.counts(live_generation(retriever.store, collection))
    return max(1.0, counts["chunks"] / max(1, counts["documents"]))


def _report(retrieved: Mapping[str, Retrieved], dataset: Dataset, plan: Plan) -> RunReport:
    rankings = rankings_of(retrieved)
    per_query = measure(rankings, dataset.qrels, plan.k)
    prompted = {query_id: found.prompted for query_id, found in retrieved.items()}
    per_query[RETRIEVAL_SCORE] = retrieval_score(prompted, dataset.qrels)
    means = dict(zip(per_query, mean_intervals(_table(per_query)), strict=True))
    return RunReport(means, per_query, _stages([found.timings_ms for found in retrieved.values()]), rankings)


def _table(per_query: PerQuery) -> np.ndarray:
    """(num_queries, num_metrics)"""
    return np.array(list(per_query.values())).T


def _stages(timings: Sequence[Mapping[str, float]]) -> dict[str, tuple[float | None, float | None]]:
    stages = dict.fromkeys(name for times in timings for name in times)
    values = {name: [times[name] for times in timings if name in times] for name in [*stages, TOTAL]}
    return {name: (_rounded(percentile(found, 50)), _rounded(percentile(found, 95))) for name, found in values.items()}


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 2)


def _run_json(run: RunReport) -> dict[str, Any]:
    p50, p95 = run.ms[TOTAL]
    stages = {name: {"p50": low, "p95": high} for name, (low, high) in run.ms.items() if name != TOTAL}
    means = {metric: asdict(interval) for metric, interval in run.means.items()}
    return means | {"ms_p50": p50, "ms_p95": p95, "stages": stages}
