"""`rag train …`: data in, a model's folder out, and what it reaches. Parse, call one function, print."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from rag.errors import ConfigError
from rag.terminal import AsJson, Collection, open_store, out, print_json, settings_for

if TYPE_CHECKING:
    from rag.search.rerank.topic_rule import TopicRule

train = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Models of your own data.")


@train.callback()
def _group() -> None:
    """A single command would otherwise take the group's place."""


@train.command()
def topics(
    data: Annotated[Path, typer.Argument(metavar="FILE", help='JSON lines: {"question": …, "source": …}.')],
    to: Annotated[Path, typer.Option("--out", "-o", help="The folder for the model.")],
    prefix: Annotated[str | None, typer.Option(help="Topic from the path: what sources begin with.")] = None,
    segment: Annotated[int, typer.Option(min=1, help="Which segment behind the prefix is the topic.")] = 1,
    merge: Annotated[list[str] | None, typer.Option(help="SEGMENT=TOPIC, may be repeated.")] = None,
    metadata: Annotated[str | None, typer.Option(help="Topic from this key of the documents' metadata.")] = None,
    clusters: Annotated[int | None, typer.Option(min=2, help="Topic from so many clusters of sections.")] = None,
    collection: Collection = None,
    min_share: Annotated[float, typer.Option(min=0, max=1, help="Smaller topics become `other`.")] = 0.02,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Probability from which hits are moved.")] = 0.9,
    folds: Annotated[int, typer.Option(min=2, max=20, help="Of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(help="Of folds and clusters.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Learn the topic of a question, for `rerank.name = "topics:FOLDER"`. One of --prefix, --metadata, --clusters.

    The report is of questions that the model had not seen, those that are nearly the same kept together.

    \b
    rag train topics questions.jsonl --prefix https://docs.ray.io/ --segment 3 --out models/topics
    rag train topics questions.jsonl --metadata team --collection handbook --out models/topics
    rag train topics questions.jsonl --clusters 12 --collection handbook --out models/topics
    """
    if sum(given is not None for given in (prefix, metadata, clusters)) != 1:
        raise ConfigError("expected one of --prefix, --metadata and --clusters; choose what a topic is")
    from rag.train.topics import TopicOptions, train_topics

    rule = _path_rule(prefix, segment, merge or []) if prefix else _table(collection, metadata, clusters, seed)
    options = TopicOptions(min_share=min_share, threshold=threshold, folds=folds, seed=seed)
    report = train_topics(data, to, rule, options)
    if as_json:
        print_json({"folder": str(to), "threshold": threshold, **report})
        return
    print_report(report, to)


def _path_rule(prefix: str, segment: int, merge: list[str]) -> "TopicRule":
    from rag.search.rerank.topic_rule import PathRule

    pairs = [pair.partition("=") for pair in merge]
    if wrong := [pair for pair, (name, _, topic) in zip(merge, pairs, strict=True) if not (name and topic)]:
        raise ConfigError(f"--merge: expected SEGMENT=TOPIC, found {wrong[0]!r}")
    return PathRule(prefix, segment, {name: topic for name, _, topic in pairs})


def _table(collection: str | None, metadata: str | None, clusters: int | None, seed: int) -> "TopicRule":
    from rag.train.topic_tables import topics_by_cluster, topics_by_metadata

    settings = settings_for(collection)
    with open_store(settings) as store:
        if metadata is not None:
            return topics_by_metadata(store, settings.collection, metadata)
        return topics_by_cluster(store, settings.collection, clusters or 0, seed)


def print_report(report: dict[str, Any], folder: Path) -> None:
    baseline = report["baseline"]
    left_out = f", {report['left_out']} left out" if report["left_out"] else ""
    out.print(f"{report['questions']} questions{left_out}, {len(report['topics'])} topics; on questions not seen:")
    out.print(
        f"  accuracy    {_spread(report['accuracy'])}   always {escape(baseline['topic'])}: {baseline['accuracy']:.3f}"
    )
    out.print(f"  weighted F1 {_spread(report['f1'])}   always {escape(baseline['topic'])}: {baseline['f1']:.3f}")
    out.print(f"    near copies not kept together {_spread(report['f1_ungrouped'])}")
    out.print(f"    documents never seen          {_spread(report['f1_new_documents'])}")
    out.print(f"  calibration error {report['calibration_error']:.3f}")
    for topic, f1 in sorted(report["f1_by_topic"].items(), key=lambda item: -item[1]):
        out.print(f"    F1 {f1:.3f}  {escape(topic)} ({report['topics'][topic]} questions)")
    for at in report["thresholds"]:
        precision = "none" if at["precision"] is None else f"{at['precision']:.3f}"
        out.print(
            f"  threshold {at['threshold']:.2f}: {at['moved']:.0%} of questions moved, topic right in {precision}"
        )
    out.print(f'saved to {escape(str(folder))}; use it with rerank.name = "topics:{escape(str(folder))}"')


def _spread(figure: dict[str, float]) -> str:
    return f"{figure['mean']:.3f} ± {figure['std']:.3f}"
