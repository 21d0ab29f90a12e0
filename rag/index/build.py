"""Brings a collection up to date with its sources: sources in, a live index generation out.

    list -> hash and compare with the manifest -> the Ray Data job (rag.index.job) -> HNSW -> activate -> BM25

What is unchanged ends before Ray starts. Killed at any point, the next run goes on with what the manifest lacks.
"""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rag.config import Settings
from rag.errors import ConfigError, IndexMismatch
from rag.index import ledger
from rag.index.chunking import check_chunk_size, needs_embedder
from rag.index.database import open_database
from rag.index.drop import collect
from rag.index.duplicates import update_near_copies
from rag.index.embed import find_fingerprint
from rag.index.fingerprint import Fingerprint
from rag.index.generations import activate, ensure_generation, generations
from rag.index.hnsw import update_hnsw
from rag.index.job import JobResult, run_job
from rag.index.ledger import Failure
from rag.index.lexical import update_lexical
from rag.index.listing import (
    Changes,
    Listing,
    compare,
    hides,
    list_sources,
    refuse_great_loss,
    refuse_move,
    without_idle_gaps,
)
from rag.index.prefix import MakeComplete, documents_lacking, generation_part
from rag.index.store import Generation, Known, Store
from rag.index.tokens import Analyzer

log = logging.getLogger(__name__)

EXTRACTOR_VERSION = 2  # raise it when extraction changes what a document's sections are


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
    moving documents to another tenant, and making an index live that lacks documents of the one before.
    `retry_failed` tries documents again that failed with the same bytes before, and chunks that have no prefix.
    `contextualize` makes the LLM of `context.llm`: rag.generate.complete.contextualizer(settings).

    Raises SourceError, ConfigError, ModelError, DatabaseError, ResourceError, IndexMismatch, NotAllowed; a single bad
    document goes to the ledger instead.
    """
    started = time.monotonic()
    _check_context(settings, contextualize)
    store = Store(open_database(settings))
    try:
        remembered = ledger.origin_access(store, settings.collection)
        listing = list_sources(sources or _remembered(store, settings), settings, remembered)
        _warn_of_unfinished(store, settings.collection, listing)
        fingerprint = find_fingerprint(settings.embed, settings.home)
        check_chunk_size(settings.chunk, settings.embed, fingerprint)
        if settings.ingest.language is not None:
            Analyzer(settings.ingest.language)  # says what there is
        collection_id = store.ensure_collection(settings.collection)
        with ledger.only_one(store, collection_id, settings.collection) as check_lock:
            plan = _plan(store, settings, fingerprint, listing, prune=prune, force=force, retry_failed=retry_failed)
            generation, changes = plan.generation, plan.changes
            run_id = ledger.start_run(store, generation, listing.origins, listing.access)
            store.set_access(generation, changes.relabelled)
            result = JobResult()
            if changes.new or changes.changed:
                refs, llm = changes.new + changes.changed, contextualize if settings.context.llm else None
                result = run_job(refs, changes.num_bytes, settings, generation, store, llm)
            check_lock()  # a database that was started anew may have let another ingestion in
            removed = store.remove_documents(generation.collection_id, changes.vanished) if changes.vanished else 0
            _update_ledger(store, generation, plan.listing, changes.failures, result.failures)
            if plan.live and not generation.is_live and not force:
                _refuse_loss(store, plan, result)
            copies = _finish(store, settings, plan, check_lock)
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


@dataclass(frozen=True)
class _Plan:
    """What one run is to do, decided before anything is written."""

    listing: Listing
    live: Generation | None
    generation: Generation  # the one to write: the live one, or one beside it
    changes: Changes


def _plan(  # noqa: PLR0913 - what there is, and what the caller allows
    store: Store,
    settings: Settings,
    fingerprint: Fingerprint,
    listing: Listing,
    *,
    prune: bool,
    force: bool,
    retry_failed: bool,
) -> _Plan:
    """Raises SourceError, IndexMismatch, NotAllowed where the collection would lose what it should not."""
    existing = generations(store, settings.collection)
    live = next((g for g in existing if g.is_live), None)
    config = {"extractor": EXTRACTOR_VERSION, "chunk": settings.chunk.model_dump()} | generation_part(settings.context)
    made_so = [g.generation_id for g in existing if (g.config, g.fingerprint) == (config, asdict(fingerprint))]
    known = store.documents(store.ensure_collection(settings.collection), made_so[0] if made_so else None)
    sources = {document.source for document in known.values()}
    listing = replace(listing, gaps=()) if force else without_idle_gaps(listing, sources)
    if prune and not force:
        refuse_great_loss(listing, sources)
        _warn_of_gaps(listing, sources)
    if not force:
        refuse_move(listing, known)
    if live and not force and live.generation_id not in made_so:
        _refuse_unlisted(store, live, _described(config, fingerprint.model), listing, prune)
    generation = ensure_generation(store, settings.collection, config, asdict(fingerprint), fingerprint.dim)
    if retry_failed and settings.context.llm:
        known = _lacking_as_changed(store, generation, known)
    changes = compare(
        listing,
        known,
        {f.source: f for f in ledger.failures(store, generation)},
        prune=prune,
        retry_failed=retry_failed,
        deduplicate=settings.ingest.deduplicate,
        may_move=force,
    )
    return _Plan(listing, live, generation, changes)


def _finish(store: Store, settings: Settings, plan: _Plan, check_lock: Callable[[], Any]) -> int:
    """HNSW, near copies, the switch, BM25; returns the number of near copies."""
    generation, deduplicate = plan.generation, settings.ingest.deduplicate
    copies = update_near_copies(store, generation, deduplicate, plan.changes.is_any)
    stats = update_hnsw(store, generation, settings.index, settings.search.ef_search)
    if settings.ingest.language is not None:
        store.set_collection(generation.collection_id, language=settings.ingest.language)
    check_lock()
    stats |= {"near_copies": copies, "deduplicated": deduplicate}
    if not activate(store, generation, stats, plan.live.generation_id if plan.live else None):
        number = generation.generation_id
        log.warning("index %d is finished; another was made live meanwhile: `rag index activate %d`", number, number)
    collect(store, generation.collection_id, settings.index.keep_generations)
    update_lexical(store, settings.collection, settings.home)
    return copies


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
    return {doc_id: d._replace(content_hash="") if doc_id in lacking else d for doc_id, d in known.items()}


def _remembered(store: Store, settings: Settings) -> list[str]:
    """The sources of earlier runs. Raises ConfigError where there are none."""
    found = ledger.origins(store, settings.collection)
    if not found:
        raise ConfigError(
            f"collection {settings.collection!r} has no sources yet; name one: rag ingest SOURCE"
            f" --collection {settings.collection}"
        )
    return found


def _refuse_unlisted(store: Store, live: Generation, wanted: str, listing: Listing, prune: bool) -> None:
    """Raises IndexMismatch where an index made in another way would lack what the live one has: sources that this run
    does not list."""
    unlisted = [d.source for d in store.known_documents(live).values() if d.source not in listing.documents]
    missing = [source for source in unlisted if not (prune and listing.lost(source))]
    if missing:
        unseen = f" ({listing.gaps[0].place}: {listing.gaps[0].reason})" if listing.gaps else ""
        raise IndexMismatch(
            f"collection {live.collection!r} is indexed with {_described(live.config, live.fingerprint['model'])}; to"
            f" index it with {wanted}, name all its sources or none in one command ({len(missing)} documents would be"
            f" lost, {missing[0]} is one){unseen}, use another --collection, or --force the loss"
        )


def _refuse_loss(store: Store, plan: _Plan, result: JobResult) -> None:
    """Raises IndexMismatch where what would go live lacks documents of the live generation: they are listed, and could
    not be read. What is built stays, and the next run goes on with it."""
    assert plan.live
    skipped = set(plan.changes.skipped)
    lost = [source for doc_id, source in store.lacking(plan.generation, plan.live).items() if doc_id not in skipped]
    if lost:
        reasons = {failure.source: failure.reason for failure in plan.changes.failures + result.failures}
        raise IndexMismatch(
            f"index {plan.generation.generation_id} is not made live: it lacks {len(lost)} documents of index"
            f" {plan.live.generation_id}, {lost[0]} is one: {reasons.get(lost[0], 'not listed')}; mend them and run"
            " again, or --force makes it live without them"
        )


def _warn_of_unfinished(store: Store, collection: str, listing: Listing) -> None:
    for origin in ledger.unfinished(store, collection):
        if origin not in listing.origins:
            log.warning("%s: its last ingestion did not end; `rag ingest -c %s` goes on with it", origin, collection)


def _warn_of_gaps(listing: Listing, sources: Collection[str]) -> None:
    unlisted = (source for source in sources if source not in listing.documents)
    unseen = sum(any(hides(gap, source) for gap in listing.gaps) for source in unlisted)
    if unseen:
        place, reason = listing.gaps[0].place, listing.gaps[0].reason
        log.warning("%s: %s; %d documents were not seen and stay, --force removes them", place, reason, unseen)


def _described(config: dict[str, Any], model: str) -> str:
    prefixes = f" with prefixes by {config['context']}" if "context" in config else ""
    return f"{config['chunk']}{prefixes} and model {model}"


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
    return counts | ({"skipped": len(changes.skipped)} if changes.skipped else {})
