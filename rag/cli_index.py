"""`rag index …`: what index generations there are, which one is live, which go; `rag status`: all of a collection."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.markup import escape

from rag.terminal import AsJson, Collection, open_store, out, print_json, settings_for

ABANDONED_DAYS = 7  # an unfinished index that nobody has written to for so long is worth a remark

index = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Index generations: ways in which a collection was indexed. One is live.",
)

IndexId = Annotated[int, typer.Argument(metavar="ID", min=1, help="As `rag index list` shows it.")]


@index.command("list")
def list_(collection: Collection = None, as_json: AsJson = False) -> None:
    """Generations, oldest first: which is live, how each was made, its size, how far it is behind the documents.

    \b
    rag index list
    rag index list --collection handbook --json
    """
    from rag.index.generations import generations

    with open_store(settings_for(collection)) as store:
        names = [collection] if collection else store.collections()
        found = {name: [generation_json(store, g) for g in generations(store, name)] for name in names}
    if as_json:
        print_json({"collections": [{"name": name, "generations": entries} for name, entries in found.items()]})
        return
    if not names:
        out.print("no collections yet; run `rag ingest SOURCE --collection NAME`")
    for name, entries in found.items():
        out.print(f"[bold]{escape(name)}[/]")
        for entry in entries:
            print_generation(entry)


@index.command()
def activate(index_id: IndexId, as_json: AsJson = False) -> None:
    """Make a finished generation live, in one step: queries see the old one until then, and this one from then on.

    Retired generations beyond `index.keep_generations` (2) are dropped.

    \b
    rag index activate 3
    """
    from rag.index.drop import collect
    from rag.index.generations import switch

    settings = settings_for()
    with open_store(settings) as store:
        generation = switch(store, index_id)
        dropped = collect(store, generation.collection_id, settings.index.keep_generations)
        entry = generation_json(store, generation)
    _report(entry, generation.collection, dropped, as_json)


@index.command()
def rollback(collection: Collection = None, as_json: AsJson = False) -> None:
    """Make the generation live that was live before this one. Again, and it is the one before that. Drops nothing.

    \b
    rag index rollback --collection handbook
    """
    from rag.index.generations import rollback as run

    settings = settings_for(collection)
    with open_store(settings) as store:
        generation = run(store, settings.collection)
        entry = generation_json(store, generation)
    _report(entry, generation.collection, [], as_json)


@index.command()
def drop(index_id: IndexId, as_json: AsJson = False) -> None:
    """Delete a generation that is not live, or that was never finished. It cannot be had back but by `rag ingest`.

    \b
    rag index drop 2
    """
    from rag.index.drop import drop as run

    with open_store(settings_for()) as store:
        generation = run(store, index_id)
    if as_json:
        print_json({"collection": generation.collection, "index_id": index_id, "dropped": [index_id]})
        return
    out.print(f"index {index_id} of {escape(generation.collection)} dropped")


def status(
    collection: Collection = None,
    show_failures: Annotated[bool, typer.Option("--failures", help="Each failed document and its reason.")] = False,
    as_json: AsJson = False,
) -> None:
    """Collections, index generations, documents and failures.

    \b
    rag status
    rag status --collection handbook --failures
    """
    with open_store(settings_for(collection)) as store:
        names = [collection] if collection else store.collections()
        report = {"collections": [_collection_status(store, name) for name in names]}
    if as_json:
        print_json(report)
        return
    if not names:
        out.print("no collections yet; run `rag ingest SOURCE --collection NAME`")
    for entry in report["collections"]:
        _print_status(entry, show_failures)


def _print_status(entry: dict[str, Any], show_failures: bool) -> None:
    out.print(f"[bold]{entry['name']}[/]")
    for generation in entry["generations"]:
        print_generation(generation)
    run = entry["last_run"]
    if run and run["finished_at"]:
        counts = ", ".join(f"{count} {name}" for name, count in run["documents"].items())
        out.print(f"  last run {run['finished_at']}: {counts}, {run['seconds']:.1f} s")
    elif run:
        out.print(f"  last run began {run['started_at']} and has not ended")
    for source in entry["unfinished"]:
        out.print(f"  [yellow]not finished[/]: {escape(source)}; `rag ingest -c {entry['name']}` goes on with it")
    if entry["failures"] and not show_failures:
        out.print(f"  [red]{len(entry['failures'])} failed[/]; --failures lists them with their reasons")
    for failure in entry["failures"] if show_failures else []:
        out.print(f"  [red]failed[/] {escape(failure['source'])}: {escape(failure['reason'])}")


def _collection_status(store: Any, name: str) -> dict[str, Any]:
    from rag.index import ledger
    from rag.index.generations import generations as generations_of

    generations = generations_of(store, name)
    live = next((g for g in generations if g.is_live), generations[-1] if generations else None)
    return {
        "name": name,
        "sources": ledger.origins(store, name),
        "unfinished": ledger.unfinished(store, name),
        "generations": [generation_json(store, g) for g in generations],
        "last_run": ledger.run_json(ledger.last_run(store, live)) if live else None,
        "failures": [asdict(f) for f in ledger.failures(store, live)] if live else [],
    }


def index_line(stats: dict[str, Any]) -> str:
    """What is known of the HNSW index, for a terminal; "" where there is none."""
    if "vectors" not in stats:
        return escape(stats.get("notice", ""))
    parts = [f"HNSW of {stats['vectors']}, m {stats['m']}, ef_construction {stats['ef_construction']}"]
    if "hnsw_bytes" in stats:
        parts.append(f"{_megabytes(stats['hnsw_bytes'])} built in {stats['hnsw_seconds']:.1f} s")
    if "ef_search" in stats:
        parts.append(f"recall@10 {stats['recall@10']:.3f} at ef_search {stats['ef_search']}")
    if stats.get("notice"):
        parts.append(stats["notice"])
    return escape("; ".join(parts))


def generation_json(store: Any, g: Any) -> dict[str, Any]:
    from rag.index.generations import details

    more = details(store, g)
    return {
        "index_id": g.generation_id,
        "live": g.is_live,
        "state": g.state,
        "config": g.config,
        "model": g.fingerprint["model"],
        "stats": g.stats,
        **store.counts(g),
        "documents_behind": more["documents_behind"],
        "bytes": more["bytes"],
        "created_at": _iso(g.created_at),
        "written_at": _iso(more["written_at"]),
        "live_since": _iso(g.live_since),
        "retired_at": _iso(g.retired_at),
        "abandoned": g.state == "building" and more["idle_days"] >= ABANDONED_DAYS,
    }


def print_generation(entry: dict[str, Any]) -> None:
    out.print(
        f"  index {entry['index_id']} ({_state(entry)}): {entry['documents']} documents, {entry['chunks']} chunks"
        f"{_chunk_size(entry['config'])}, {escape(entry['model'])}, {_megabytes(entry['bytes'])}"
    )
    if line := index_line(entry["stats"]):
        out.print(f"    {line}")
    if entry["state"] != "building" and entry["documents_behind"]:
        out.print(f"    {_behind(entry)}")
    if entry["abandoned"]:
        out.print(
            f"    [yellow]not finished, last written {_minute(entry['written_at'])}[/]:"
            f" `rag ingest` with its settings goes on, `rag index drop {entry['index_id']}` deletes it"
        )


def _report(entry: dict[str, Any], collection: str, dropped: list[int], as_json: bool) -> None:
    if as_json:
        shown = ("index_id", "documents", "chunks", "documents_behind", "live_since")
        print_json({"collection": collection} | {name: entry[name] for name in shown} | {"dropped": dropped})
        return
    out.print(
        f"index {entry['index_id']} is live in {escape(collection)}: {entry['documents']} documents,"
        f" {entry['chunks']} chunks{_chunk_size(entry['config'])}, {escape(entry['model'])}"
    )
    if entry["documents_behind"]:
        out.print(_behind(entry))
    if dropped:
        out.print(f"dropped: index {', '.join(map(str, dropped))}")


def _state(entry: dict[str, Any]) -> str:
    if entry["live"]:
        return f"live since {_minute(entry['live_since'])}"
    return f"retired {_minute(entry['retired_at'])}" if entry["state"] == "retired" else str(entry["state"])


def _behind(entry: dict[str, Any]) -> str:
    count = entry["documents_behind"]
    noun = "document" if count == 1 else "documents"
    return f"[yellow]{count} {noun} behind[/]; `rag ingest` with its settings brings it up to date"


def _chunk_size(config: dict[str, Any]) -> str:
    chunk = config.get("chunk")
    return f" of {chunk['size']}/{chunk['overlap']}" if isinstance(chunk, dict) and "overlap" in chunk else ""


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MB"


def _iso(at: datetime | None) -> str | None:
    return at.isoformat(timespec="seconds") if at else None


def _minute(at: str | None) -> str:
    """`2026-03-01 12:30`; the database's time zone, as in the JSON."""
    return at[:16].replace("T", " ") if at else "?"
