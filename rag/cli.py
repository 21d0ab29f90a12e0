"""`rag …`: parse, load the configuration, call one function, print. Results on standard output, the rest on error."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape

from rag import __version__
from rag.cli_db import db
from rag.cli_evaluate import evaluate
from rag.cli_index import index, status
from rag.cli_train import train
from rag.errors import ConfigError, RagError, first_line
from rag.records import Access
from rag.terminal import AsJson, Collection, PlainFormatter, leave, out, plain, print_json, settings_for

# Errors that tell what went wrong are ours to print; a help page is typer's. Rich markup stays off in help texts.
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)
app.add_typer(db, name="db")
app.add_typer(index, name="index")
app.add_typer(evaluate, name="evaluate")
app.add_typer(train, name="train")

LLMName = Annotated[
    str | None, typer.Option("--llm", help="A model's name, a .gguf file, or `extractive` for quotes only.")
]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def demo() -> None:
    """Ingest the API documentation of the installed `ray` package, ask a question, print a cited answer.

    A second run finds everything unchanged and embeds nothing.
    """
    from rag.demo import run_demo

    run_demo(out, settings_for(collection="ray-docs"))


@app.command()
def ingest(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="Folder, file, URL, git+URL, s3://…, hf:…, -, python:package. [default: those of before]",
        ),
    ] = None,
    collection: Collection = None,
    chunk_method: Annotated[
        str | None, typer.Option(help="recursive, tokens, markdown, semantic or code. [default: recursive]")
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option(min=50, help="Characters in a chunk, or tokens for method tokens. [default: 700]")
    ] = None,
    chunk_overlap: Annotated[int | None, typer.Option(min=0, help="Shared characters or tokens. [default: 50]")] = None,
    model: Annotated[str | None, typer.Option(help="Embedding model. [default: all-MiniLM-L6-v2]")] = None,
    context_llm: Annotated[
        str | None, typer.Option(help="An LLM that situates each chunk in its document. [default: none]")
    ] = None,
    prune: Annotated[bool, typer.Option(help="Remove documents that their source no longer holds.")] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Even more than half of them; and move documents to another tenant.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
    language: Annotated[
        str | None,
        typer.Option(help="Of the documents, for words and their stems; none: words as they are. [default: english]"),
    ] = None,
    deduplicate: Annotated[
        bool | None, typer.Option("--deduplicate", help="Skip identical documents, hide near copies of chunks.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose the documents are. [default: as before]")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Only callers with one of these may see them; '' for none. Repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring a collection up to date with its sources. What is unchanged costs a hash; a killed run goes on.

    \b
    rag ingest docs/ --collection handbook
    rag ingest python:ray.data python:ray.serve --collection ray-docs
    rag ingest README.md notes.txt --json
    rag ingest --collection handbook --retry-failed      the sources of before, again
    rag ingest contracts/ --collection handbook --tenant acme --label legal --label board
    """
    from rag.generate.complete import contextualizer
    from rag.index.build import ingest as run

    parts: dict[str, dict[str, Any] | None] = {
        "chunk": {"method": chunk_method, "size": chunk_size, "overlap": chunk_overlap},
        "embed": {"model": model},
        "context": {"llm": context_llm},
        "ingest": {"deduplicate": deduplicate, "language": language, "tenant": tenant, "labels": label or None},
    }
    settings = settings_for(collection, **parts)
    llm = contextualizer(settings)
    report = run(sources or [], settings, prune=prune, force=force, retry_failed=retry_failed, contextualize=llm)
    if as_json:
        print_json(asdict(report))
        return
    for failure in report.failures:
        out.print(f"[red]failed[/] {escape(failure['source'])}: {escape(failure['reason'])}")
    counts = ", ".join(f"{count} {name}" for name, count in report.documents.items())
    out.print(f"[bold]{report.collection}[/]: {counts}")
    out.print(f"{report.chunks_embedded} chunks embedded, {report.chunks_written} written in {report.seconds:.1f} s")
    if report.chunks_truncated:
        out.print(
            f"[yellow]warning[/] {report.chunks_truncated} of {report.chunks_embedded} chunks are longer than the"
            f" model's {report.max_tokens} tokens; their ends are not embedded; use --chunk-size below"
            f" {settings.chunk.size} or --chunk-method tokens"
        )
    if report.prefixes:
        out.print(
            "prefixes: {asked} written by {llm}, {cached} known".format(llm=settings.context.llm, **report.prefixes)
        )
    if report.prefixes.get("missing"):
        out.print(
            f"[yellow]warning[/] {report.prefixes['missing']} chunks have no prefix"
            f" ({escape(report.prefixes['reason'])}); --retry-failed asks again"
        )
    if any(report.duplicates.values()):
        documents, chunks = report.duplicates["documents"], report.duplicates["chunks"]
        hint = "" if settings.ingest.deduplicate else "; --deduplicate leaves them out"
        out.print(f"duplicates: {documents} identical documents, {chunks} near copies of chunks{hint}")


@app.command()
def forget(
    sources: Annotated[list[str], typer.Argument(help="As they were named, or as `rag status --json` lists them.")],
    collection: Collection = None,
    as_json: AsJson = False,
) -> None:
    """Take sources out of a collection, with their documents that no other source of it holds. Reads none of them.

    \b
    rag forget old-docs/ --collection handbook
    """
    from rag.index.forget import forget as run

    done = run(sources, settings_for(collection))
    if as_json:
        print_json(asdict(done))
        return
    forgotten = escape(", ".join(done.sources))
    out.print(f"[bold]{escape(done.collection)}[/]: {done.removed} documents removed; forgotten: {forgotten}")


app.command()(status)


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    collection: Collection = None,
    k: Annotated[int | None, typer.Option("-k", min=1, max=1000, help="Hits. [default: 10]")] = None,
    mode: Annotated[str | None, typer.Option(help="hybrid, semantic or lexical. [default: hybrid]")] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="KEY=VALUE", help="source, mime, label or metadata; again for more."),
    ] = None,
    rerank: Annotated[
        str | None, typer.Option(metavar="NAME", help="topics:FOLDER, cross-encoder:NAME or llm. [default: none]")
    ] = None,
    rewrite: Annotated[str | None, typer.Option(help="By an LLM: multi-query or hyde. [default: none]")] = None,
    tenant: Annotated[
        str | None, typer.Option(help="See what a caller of this tenant sees. [default: everything]")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="A label of that caller; again for more.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Scan every chunk instead of asking the HNSW index.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find passages, by meaning and by words.

    \b
    rag search "how do I sort a list of dicts by key" -k 5
    rag search "retries" --collection handbook --json
    rag search "map_batches" --mode lexical --filter source=python:ray.data
    rag search "salary bands" --tenant acme --label hr
    """
    from rag.generate.complete import open_search
    from rag.generate.extractive import best_sentence
    from rag.search.filters import parse_filters

    settings = settings_for(collection, search={"k": k, "mode": mode, "rewrite": rewrite}, rerank={"name": rerank})
    chosen = parse_filters(filters or [])
    if label and tenant is None:
        raise ConfigError("--label says what a caller may see; name the caller's --tenant too ('' for none)")
    access = None if tenant is None else Access(tenant, tuple(label or ()))
    retriever = open_search(settings)
    result = retriever.search(query, settings.collection, filters=chosen, access=access, exact=exact)
    if as_json:
        hits = [asdict(hit) for hit in result.hits]
        print_json({"query": query, "collection": result.collection, "hits": hits, "timings_ms": result.timings_ms})
        return
    if not result.hits:
        out.print("nothing found")
    for hit in result.hits:
        out.print(f"[bold]{hit.rank:>2}[/] {hit.score:.3f} [cyan]{escape(hit.source)}[/]  {escape(hit.title)}")
        out.print(f"         [dim]{escape(best_sentence(query, hit)[:300])}[/]")


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="In your own words.")],
    collection: Collection = None,
    llm: LLMName = None,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is whole.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer a question from a collection, with citations.

    \b
    rag ask "What is the default batch_size of map_batches?" --collection ray-docs
    rag ask "Who approves holidays?" --collection handbook --llm gpt-4o-mini
    """
    from rag.generate.answer import QueryAgent, answer_json

    agent = QueryAgent(settings=settings_for(collection, llm={"name": llm}))
    if as_json:
        print_json(answer_json(agent(question)))
        return
    from rag.demo import print_answer

    print_answer(out, agent, question, stream=not no_stream)


@app.command()
def serve(
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="[default: 8000]")] = None,
    host: Annotated[str | None, typer.Option(help="[default: 127.0.0.1]")] = None,
    collection: Collection = None,
    llm: LLMName = None,
) -> None:
    """Answer over HTTP until Ctrl-C: POST /query and /stream, GET /healthz, /readyz and /docs.

    \b
    rag serve --collection ray-docs --port 8000
    curl localhost:8000/query -H 'content-type: application/json' -d '{"query": "What is a Dataset?"}'
    """
    from rag.serve.app import run

    run(settings_for(collection, serve={"host": host, "port": port}, llm={"name": llm}))


def run_command(command: Callable[[], Any]) -> int:
    """The exit status: 0 done, 1 failed, 2 wrong usage. An error is one line on standard error."""
    import psycopg
    from psycopg_pool import PoolTimeout

    try:
        command()
    except ConfigError as error:
        return _fail(str(error), 2)
    except RagError as error:
        return _fail(str(error), 1)
    except (psycopg.OperationalError, PoolTimeout) as error:
        reason = first_line(error)
        return _fail(f"lost the database: {reason}; run the command again, what was done is kept", 1)
    except KeyboardInterrupt:
        return _fail("interrupted; run the command again, it goes on where it stopped", 130)
    except BrokenPipeError:  # `rag … | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _fail(message: str, status: int) -> int:
    print(f"error: {plain(message)}", file=sys.stderr)
    return status


def main() -> None:
    """The `rag` command."""
    warnings.filterwarnings("ignore")  # libraries' remarks to programmers are not for a terminal
    level = os.environ.get("RAG_LOG", "WARNING").upper()
    if level not in logging.getLevelNamesMapping():
        sys.exit(_fail(f"RAG_LOG: expected DEBUG, INFO, WARNING or ERROR; found {level!r}", 2))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter(logging.BASIC_FORMAT))
    logging.basicConfig(level=level, handlers=[handler])
    try:
        status = run_command(app)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    leave(status)


if __name__ == "__main__":
    main()
