"""Brings a collection up to date with its sources: sources in, a live index generation out.

    list -> hash and compare with the manifest -> the Ray Data job (rag.index.job) -> HNSW -> activate -> BM25

What is unchanged ends before Ray starts. Killed at any point, the next run goes on with what the manifest lacks.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rag.config import Settings
from rag.errors import ConfigError, IndexMismatch
from rag.index import ledger
from rag.index.chunking import check_chunk_size, needs_embedder
from rag.index.database import open_database
from rag.index.drop import collect
from rag.index.duplicates import count_near_copies, hide_near_copies, show_near_copies
from rag.index.embed import find_fingerprint
from rag.index.fingerprint import Fingerprint
from rag.index.generations import activate, ensure_generation, generations
from rag.index.hnsw import update_hnsw
from rag.index.job import JobResult, run_job
from rag.index.ledger import Failure
from rag.index.lexical import update_lexical
from rag.index.listing import Changes, Listing, compare, list_sources, refuse_great_loss, refuse_move
from rag.index.prefix import MakeComplete, documents_lacking, generation_part
from rag.index.store import Generation, Known, Store
from rag.index.tokens import Analyzer

EXTRACTOR_VERSION = 1  # raise it when extraction changes what a document's sections are


@dataclass(frozen=True)
class IngestReport:
    """What one run did. `seen == new + changed + unchanged + failed + skipped`; skipped are duplicates, on request."""

    collection: str
    index_id: int
    documents: dict[str, int]
    chunks_written: int
    chunks_embedded: int
    chunks_truncated: int  # of those embedded: longer than `max_tokens`, their ends are not in the vector
    max_tokens: int  # that the model reads of a chunk
    duplicates: dict[str, int]  # documents with equal bytes; near copies among all chunks of the index
    embed_busy: float  # share of the job's time in which the embedding actors computed
    seconds: float
    failures: list[dict[str, str]]
    prefixes: dict[str, Any] = field(default_factory=dict)  # asked, cached, missing, reason; {} without context.llm


def ingest(
    sources: Sequence[str],
    settings: Settings,
    *,
    prune: bool = True,
    force: bool = False,
    retry_failed: bool = False,
    contextualize: MakeComplete | None = None,
) -> IngestReport:
    """Brings a collection up to date with `sources`; with none, with the ones it was made from.

    `prune` removes what a source no longer holds; a source that lost more than half asks for `force`, and so does
    moving documents to another tenant.
    `retry_failed` tries documents again that failed with the same bytes before, and chunks that have no prefix.
    `contextualize` makes the LLM of `context.llm`: rag.generate.complete.contextualizer(settings).

    Raises SourceError, ConfigError, ModelError, DatabaseError, ResourceError, IndexMismatch, NotAllowed; a single bad
    document goes to the ledger instead.
    """
    started = time.monotonic()
    _check_context(settings, contextualize)
    store = Store(open_database(settings))
    try:
        before = ledger.origin_access(store, settings.collection)
        listing = list_sources(sources or _remembered(store, settings), settings, before)
        fingerprint = find_fingerprint(settings.embed, settings.home)
        check_chunk_size(settings.chunk, settings.embed, fingerprint)
        if settings.ingest.language is not None:
            Analyzer(settings.ingest.language)  # says what there is
        generation = _generation(store, settings, fingerprint, listing, prune, force)
        with ledger.only_one(store, generation.collection_id, settings.collection):
            known = store.known_documents(generation)
            if prune and not force:
                refuse_great_loss(listing, known.values())
            tenants = {} if force else store.tenants(generation)
            refuse_move(listing, tenants)
            run_id = ledger.start_run(store, generation, listing.origins, listing.access)
            failed = {f.source: f for f in ledger.failures(store, generation)}
            deduplicate = settings.ingest.deduplicate
            if retry_failed and settings.context.llm:
                known = _lacking_as_changed(store, generation, known)
            changes = compare(listing, known, failed, prune, retry_failed, deduplicate, tenants)
            store.set_access(generation, changes.relabelled)
            result = JobResult()
            if changes.new or changes.changed:
                refs, llm = changes.new + changes.changed, contextualize if settings.context.llm else None
                result = run_job(refs, changes.num_bytes, settings, generation, store, llm)
            removed = store.remove_documents(generation, changes.vanished) if changes.vanished else 0
            _update_ledger(store, generation, listing, changes.failures, result.failures)
            copies = _near_copies(store, generation, changes, deduplicate)
            stats = update_hnsw(store, generation, settings.index, settings.search.ef_search)
            if settings.ingest.language is not None:
                store.set_collection(generation.collection_id, language=settings.ingest.language)
            activate(store, generation, stats | {"near_copies": copies, "deduplicated": deduplicate})
            collect(store, generation.collection_id, settings.index.keep_generations)
            update_lexical(store, settings.collection, settings.home)
            documents = _counts(listing, changes, result, removed)
            ledger.finish_run(store, run_id, documents, result.num_chunks)
    finally:
        store.close()
    return IngestReport(
        collection=settings.collection,
        index_id=generation.generation_id,
        documents=documents,
        chunks_written=result.num_chunks,
        chunks_embedded=result.num_chunks,
        chunks_truncated=result.num_truncated,
        max_tokens=fingerprint.max_tokens,
        duplicates={"documents": changes.num_duplicates, "chunks": copies},
        embed_busy=result.embed_busy,
        seconds=round(time.monotonic() - started, 2),
        failures=[{"source": f.source, "reason": f.reason} for f in changes.failures + result.failures],
        prefixes=asdict(result.prefixes) if settings.context.llm else {},
    )


def _check_context(settings: Settings, contextualize: MakeComplete | None) -> None:
    """Raises ConfigError where chunks are to have prefixes and cannot."""
    if settings.context.llm and contextualize is None:
        raise ConfigError(
            f"context.llm is {settings.context.llm!r}: expected `contextualize`, found none; pass"
            " contextualize=rag.generate.complete.contextualizer(settings)"
        )
    if settings.context.llm and needs_embedder(settings.chunk):
        raise ConfigError(
            f"context.llm: expected chunks before they are embedded, found chunk.method {settings.chunk.method}, which"
            " cuts while it embeds; choose another method"
        )


def _lacking_as_changed(store: Store, generation: Generation, known: dict[str, Known]) -> dict[str, Known]:
    """Documents with chunks that lack their prefix count as changed."""
    lacking = documents_lacking(store, generation)
    return {doc_id: replace(d, content_hash="") if doc_id in lacking else d for doc_id, d in known.items()}


def _remembered(store: Store, settings: Settings) -> list[str]:
    """The sources of earlier runs. Raises ConfigError where there are none."""
    found = ledger.origins(store, settings.collection)
    if not found:
        raise ConfigError(
            f"collection {settings.collection!r} has no sources yet; name one: rag ingest SOURCE"
            f" --collection {settings.collection}"
        )
    return found


def _generation(
    store: Store, settings: Settings, embedder: Fingerprint, listing: Listing, prune: bool, force: bool
) -> Generation:
    """The generation to build: the live one, where it was made the same way.

    Another one goes live at the end of the run, so it must not lose what the live one has. Raises IndexMismatch,
    SourceError.
    """
    config = {"extractor": EXTRACTOR_VERSION, "chunk": settings.chunk.model_dump()}
    config |= generation_part(settings.context)
    fingerprint = asdict(embedder)
    existing = generations(store, settings.collection) if settings.collection in store.collections() else []
    live = next((g for g in existing if g.is_live), None)
    if live is not None and (live.config, live.fingerprint) != (config, fingerprint):
        known = store.known_documents(live).values()
        if prune and not force:
            refuse_great_loss(listing, known)
        kept = [d.source for d in known if d.source not in listing.documents]
        missing = [source for source in kept if not (prune and listing.lost(source))]
        if missing:
            raise IndexMismatch(
                f"collection {settings.collection!r} is indexed with {_described(live.config)} and model"
                f" {live.fingerprint['model']}; to index it with {_described(config)} and {fingerprint['model']}, name"
                f" all its sources or none in one command ({len(missing)} documents would be lost, {missing[0]} is one"
                "), or use another --collection"
            )
    return ensure_generation(store, settings.collection, config, fingerprint, embedder.dim)


def _described(config: dict[str, Any]) -> str:
    return str(config["chunk"]) + (f" with prefixes by {config['context']}" if "context" in config else "")


def _near_copies(store: Store, generation: Generation, changes: Changes, hide: bool) -> int:
    """How many chunks nearly equal another; counted again only where chunks came or went."""
    if hide:
        return hide_near_copies(store, generation)
    if generation.stats.get("deduplicated"):
        show_near_copies(store, generation)
    has_changed = changes.new or changes.changed or changes.vanished or changes.relabelled
    if has_changed or "near_copies" not in generation.stats:
        return count_near_copies(store, generation)
    return int(generation.stats["near_copies"])


def _update_ledger(
    store: Store, generation: Generation, listing: Listing, failures: list[Failure], late: list[Failure]
) -> None:
    """After a run the ledger holds what failed in it, and what it did not look at. The job wrote `late` itself."""
    ledger.write_failures(store, generation, failures)
    failing = {failure.source for failure in failures + late}
    entries = [entry.source for entry in ledger.failures(store, generation)]
    healed = [s for s in entries if listing.lost(s) or (s in listing.documents and s not in failing)]
    ledger.forget_failures(store, generation, healed)


def _counts(listing: Listing, changes: Changes, result: JobResult, removed: int) -> dict[str, int]:
    failed_late = {failure.source for failure in result.failures}
    counts = {
        "seen": len(listing.documents),
        "new": sum(ref.source not in failed_late for ref in changes.new),
        "changed": sum(ref.source not in failed_late for ref in changes.changed) + len(changes.relabelled),
        "unchanged": changes.num_unchanged,
        "removed": removed,
        "failed": len(changes.failures) + len(result.failures),
    }
    return counts | ({"skipped": changes.num_skipped} if changes.num_skipped else {})
