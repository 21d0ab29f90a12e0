"""`rag db …`: the database, and collections moved in and out of it."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from rag.errors import ConfigError
from rag.terminal import AsJson, Collection, open_store, out, print_json, settings_for

if TYPE_CHECKING:
    from rag.index.dump_format import MoveReport

db = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The database: embedded, or DATABASE_URL; dumps of collections."
)


@db.command()
def start() -> None:
    """Start the embedded server where it does not run, and migrate."""
    url()


@db.command()
def stop() -> None:
    """Stop the embedded server."""
    from rag.index.server import EmbeddedServer

    settings = settings_for()
    if settings.database_url is not None:
        raise ConfigError("DATABASE_URL names a server that is not ours to stop; unset it to mean the embedded one")
    print("stopped" if EmbeddedServer(settings.home).stop() else "not running")


@db.command()
def url() -> None:
    """Print the database's URL (no password), for psql and other tools; starts and migrates it."""
    from rag.index.database import open_database, without_password

    print(without_password(open_database(settings_for())))


@db.command()
def migrate() -> None:
    """Apply the migrations that are missing."""
    from rag.index.database import migrate as run
    from rag.index.database import without_password
    from rag.index.server import EmbeddedServer

    settings = settings_for()
    secret = settings.database_url
    where = secret.get_secret_value() if secret else EmbeddedServer(settings.home).start()
    applied = run(where)
    print(f"{without_password(where)}: " + (f"applied {', '.join(applied)}" if applied else "up to date"))


@db.command()
def dump(
    target: Annotated[str | None, typer.Argument(metavar="[DIR|URL|-]", help="The same as --to.")] = None,
    to: Annotated[str | None, typer.Option(help="An empty folder, any fsspec URL; `-` for JSON lines.")] = None,
    collection: Collection = None,
    form: Annotated[Literal["parquet", "jsonl"], typer.Option("--format", help="jsonl: a line a chunk.")] = "parquet",
    all_generations: Annotated[bool, typer.Option("--all-generations", help="Not the live one alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a collection, vectors included, to a folder or object storage; or its chunks as JSON lines.

    \b
    rag db dump --collection handbook --to /backup/handbook
    rag db dump --collection handbook --to s3://bucket/handbook
    rag db dump --collection handbook --format jsonl - > chunks.jsonl
    """
    from rag.index.dump import dump_collection, dump_jsonl

    settings = settings_for(collection)
    where = _one_target(target, to)
    if form == "jsonl":
        if where != "-" or as_json or all_generations:
            raise ConfigError("--format jsonl: expected `-` alone; write `rag db dump --format jsonl - > FILE`")
        with open_store(settings) as store:
            dump_jsonl(store, settings.collection, sys.stdout.buffer)
        return
    if where == "-":
        raise ConfigError("`-`: expected a folder or a URL; only `--format jsonl` writes to standard output")
    with open_store(settings) as store:
        done = dump_collection(store, settings.collection, where, all_generations)
    _print_moved(done, f"dumped to {done.dump}", as_json)


@db.command()
def load(
    source: Annotated[str, typer.Argument(metavar="DIR|URL", help="What `rag db dump` wrote.")],
    collection: Annotated[str | None, typer.Option("--collection", "-c", help="[default: the dumped name]")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="In place of a collection of that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Load a dump as a collection: it appears at once and whole, or not at all. Nothing is embedded.

    \b
    rag db load /backup/handbook
    rag db load s3://bucket/handbook --collection handbook-copy
    rag db load /backup/handbook --replace
    """
    from rag.index.load import load_collection

    with open_store(settings_for(collection)) as store:
        done = load_collection(store, source, collection, replace)
    _print_moved(done, f"loaded from {done.dump}", as_json)


def _one_target(target: str | None, to: str | None) -> str:
    given = [value for value in (target, to) if value]
    if len(given) != 1:
        raise ConfigError(f"expected one of DIR, URL or --to, found {len(given)}; write `rag db dump --to DIR`")
    return given[0]


def _print_moved(done: "MoveReport", what: str, as_json: bool) -> None:
    if as_json:
        print_json(asdict(done))
        return
    out.print(
        f"[bold]{escape(done.collection)}[/] {escape(what)}: {done.documents} documents, {done.chunks} chunks,"
        f" {done.files} files, {done.bytes / 2**20:.1f} MB in {done.seconds:.1f} s"
    )
