"""`rag evaluate …`: how good retrieval is on labelled questions. Parse, call one function, print."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rag.errors import ConfigError
from rag.terminal import AsJson, out, print_json, settings_for

if TYPE_CHECKING:
    from rag.config import Settings
    from rag.evaluate.corpus import Corpus
    from rag.evaluate.dataset import Dataset
    from rag.evaluate.retrieval import Comparison, Report, RunReport
    from rag.evaluate.statistics import Interval
    from rag.evaluate.tune import Tuned
    from rag.search.rerank import Reranker
    from rag.search.retrieve import Retriever

WIDTH, LABEL = 100, 22  # columns of a terminal that a table may fill; those of what a row is
MAIN = "nDCG@10"  # the metric by which modes are compared on a terminal; the JSON has all

evaluate = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="How good it is: labelled questions to measures with intervals."
)


@evaluate.callback()
def _root() -> None:
    """A group, also while it has one command only."""


@evaluate.command()
def retrieval(
    dataset: Annotated[Path, typer.Option(metavar="DIR", help="A folder in BEIR layout.")],
    split: Annotated[str, typer.Option(help="Which judgements: qrels/SPLIT.tsv.")] = "test",
    mode: Annotated[
        str | None, typer.Option(metavar="MODE,…", help="One or more; `hybrid+NAME` reranks. [default: search.mode]")
    ] = None,
    rerank: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the modes that name none themselves. [default: rerank.name]")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="Sections retrieved for a query.")] = 100,
    run_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write TREC runs: r.trec, or r.MODE.trec for several modes.")
    ] = None,
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", help="Search this one as it is. [default: made of the corpus]")
    ] = None,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="First find the best weight of meaning in hybrid; keep it with the collection."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure retrieval: nDCG@10, recall, RR, AP and latency, each with its 95 % interval; modes are compared.

    The corpus is ingested once, with the settings in force; a second time costs the searches only.

    \b
    rag evaluate retrieval --dataset data/scifact --split test
    rag evaluate retrieval --dataset data/scifact --mode hybrid,semantic,lexical --json
    rag evaluate retrieval --dataset data/scifact --mode hybrid --run-file run.trec
    rag evaluate retrieval --dataset questions/ --split dev --collection handbook --tune
    """
    from rag.evaluate.corpus import prepare_corpus
    from rag.evaluate.dataset import load_dataset
    from rag.evaluate.retrieval import Plan, parse_mode, report_json
    from rag.evaluate.retrieval import evaluate as run
    from rag.evaluate.trec import check_folder, run_path, write_run
    from rag.generate.complete import open_search

    settings = settings_for(collection)
    rerank = rerank or settings.rerank.name
    modes = _modes(mode or settings.search.mode)
    rerankers = {name: _reranker(settings, name) for name in {parse_mode(mode, rerank)[1] for mode in modes}}
    paths = {name: run_path(run_file, name, len(modes)) for name in modes} if run_file else {}
    labelled = load_dataset(dataset, split)
    for path in paths.values():
        check_folder(path)
    corpus = prepare_corpus(labelled, settings, collection)
    retriever = open_search(_without_reranker(settings))
    try:
        tuned = _tuned(retriever, labelled, corpus.collection) if tune else None
        plan = Plan(k, settings.llm.k, rerank, rerankers.__getitem__)
        report = run(retriever, labelled, corpus.collection, modes, plan)
    finally:
        retriever.store.close()
    for name, path in paths.items():
        write_run(path, report.runs[name].rankings, name)
    if as_json:
        print_json(
            report_json(report)
            | {"corpus": asdict(corpus), "rerank": rerank, "tuned": asdict(tuned) if tuned else None}
        )
        return
    if tuned:
        out.print(_tuned_line(tuned), markup=False)
    for line in table(report, corpus):
        out.print(line, markup=False)


def _tuned(retriever: "Retriever", labelled: "Dataset", collection: str) -> "Tuned":
    """Also keeps what it found. Raises ConfigError where the setting would override it."""
    from rag.evaluate.tune import tune
    from rag.index.generations import live_generation

    if retriever.config.weight is not None:
        raise ConfigError(
            f"search.weight is set ({retriever.config.weight}) and would override what --tune finds; unset it"
        )
    tuned = tune(retriever, labelled, collection)
    retriever.store.set_collection(live_generation(retriever.store, collection).collection_id, weight=tuned.best)
    return tuned


def _tuned_line(tuned: "Tuned") -> str:
    d = tuned.gain
    found = f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}] on questions not seen"
    if tuned.best == tuned.before:
        return f"search.weight stays {tuned.before}: choosing another gives {MAIN} {found}"
    return f"search.weight is now {tuned.best} for this collection, was {tuned.before}: {MAIN} {found}"


def _without_reranker(settings: "Settings") -> "Settings":
    """For a search that is handed the reranker of each mode, or none: what the report says is what runs."""
    return settings.model_copy(update={"rerank": settings.rerank.model_copy(update={"name": "none"})})


def _reranker(settings: "Settings", name: str) -> "Reranker | None":
    from rag.generate.complete import load_complete
    from rag.search.rerank.choose import make_reranker

    complete = load_complete(settings.llm) if name == "llm" else None
    return make_reranker(settings.rerank.model_copy(update={"name": name}), complete, settings.home)


def table(report: "Report", corpus: "Corpus") -> list[str]:
    """The report in lines of at most 100 columns, as long as no mode has a name of more than 80."""
    lines = [
        f"{report.dataset} {report.split}: {report.queries} queries; collection {corpus.collection},"
        f" {corpus.documents} documents, {corpus.chunks} chunks",
        *_remarks(corpus),
    ]
    width = max(20, *map(len, report.runs))
    per_block = max(1, (WIDTH - LABEL) // (width + 2))
    names = list(report.runs)
    for start in range(0, len(names), per_block):
        lines += ["", *_block({name: report.runs[name] for name in names[start : start + per_block]}, width)]
    shown = [c for c in report.comparisons if c.metric == MAIN]
    return lines + ([""] if shown else []) + [_comparison_line(c) for c in shown]


def _remarks(corpus: "Corpus") -> list[str]:
    remarks = []
    if corpus.failed:
        remarks.append(f"{corpus.failed} not ingested; `rag status --failures -c {corpus.collection}` tells why")
    if corpus.missing:
        verbs = ("section is", "counts") if corpus.missing == 1 else ("sections are", "count")
        remarks.append(f"{corpus.missing} relevant {verbs[0]} not in the collection and {verbs[1]} as not found")
    return remarks


def _block(runs: dict[str, "RunReport"], width: int) -> list[str]:
    """A column for each mode: means with intervals, then p50 / p95 of the stages."""
    first = next(iter(runs.values()))
    stages = dict.fromkeys(stage for run in runs.values() for stage in run.ms)
    rows = [("", list(runs))]
    rows += [(metric, [_interval(run.means[metric]) for run in runs.values()]) for metric in first.means]
    rows += [(f"{stage} ms p50/p95", [_times(run.ms.get(stage)) for run in runs.values()]) for stage in stages]
    return ["".join([f"{label:<{LABEL}}", *(f"  {cell:>{width}}" for cell in cells)]) for label, cells in rows]


def _interval(found: "Interval") -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _times(found: tuple[float | None, float | None] | None) -> str:
    p50, p95 = found or (None, None)
    return "-" if p50 is None or p95 is None else f"{p50:.1f} / {p95:.1f}"


def _comparison_line(c: "Comparison") -> str:
    d = c.result
    p = "p < 0.001" if d.p < 0.001 else f"p = {d.p:.3f}"
    return f"{c.a} - {c.b}: {c.metric} {d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}], {p}"


def _modes(text: str) -> list[str]:
    """The modes as they were asked for. Raises ConfigError."""
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"--mode: expected names separated by commas, each once, found {text!r}")
    return names
