"""The ingestion job: sources in, a live index generation out. Pure stages from rag.ingest, Ray Data around them.

    list -> hash and compare with the manifest -> [extract, chunk] -> [embed] -> [write]  -> HNSW -> activate
            (driver: what is unchanged ends here)   tasks             actors     tasks

A row is one document with all its chunks, so that a document is written in one transaction and no retry can leave
half of it. Killed at any point, the next run goes on with what the manifest does not have.
"""

import gc
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from rag.config import ChunkConfig, EmbedConfig, Settings
from rag.errors import ExtractionError, IndexMismatch
from rag.index.cluster import TASK_CPUS, EmbedPlan, plan_embedding, ray_session
from rag.index.database import open_database
from rag.index.drop import collect
from rag.index.embed import Embedder, load_embedder
from rag.index.generations import activate, ensure_generation, generations
from rag.index.hnsw import update_hnsw
from rag.index.store import Failure, Generation, IndexedDocument, Store
from rag.ingest.chunks import chunk_section
from rag.ingest.extract import extract
from rag.ingest.sources import canonical_source, is_within, list_documents, read_document
from rag.progress import Progress
from rag.records import Chunk, Document, DocumentRef, Section

EXTRACTOR_VERSION = 1  # raise it when extraction changes what a document's sections are
BATCH_BYTES = 300_000  # about 500 chunks: enough to sort by length, little enough for writing to overlap
MAX_BATCH = 256  # documents
NO_PROGRESS_TIMEOUT_S = 600.0  # a stalled job is an error, not a hang; loading a model takes tens of seconds


@dataclass(frozen=True)
class IngestReport:
    """What one run did. `seen == new + changed + unchanged + failed`."""

    collection: str
    index_id: int
    documents: dict[str, int]
    chunks_written: int
    chunks_embedded: int
    seconds: float
    failures: list[dict[str, str]]


@dataclass(frozen=True)
class Listing:
    """What the sources of one run hold now."""

    origins: tuple[str, ...]
    documents: dict[str, DocumentRef]  # by source; what two origins list counts once

    def lost(self, source: str) -> bool:
        """Whether one of the origins held `source` and does not any more."""
        return source not in self.documents and any(is_within(source, origin) for origin in self.origins)


@dataclass(frozen=True)
class Changes:
    """A listing, held against what the generation has."""

    new: list[DocumentRef]
    changed: list[DocumentRef]
    num_unchanged: int
    num_bytes: int  # of new and changed documents
    failures: list[Failure]
    vanished: list[str]  # doc_ids


def ingest(sources: Sequence[str], settings: Settings) -> IngestReport:
    """Brings a collection up to date with its sources; see the module's docstring.

    Raises SourceError, ModelError, DatabaseError, ResourceError, IndexMismatch; a single bad document goes to the
    ledger instead.
    """
    started = time.monotonic()
    listing = list_sources(sources)
    store = Store(open_database(settings))
    try:
        embedder = load_embedder(settings.embed, settings.home)
        generation = _generation(store, settings, embedder, listing)
        changes = _compare(listing, store, generation)
        num_chunks, late = 0, list[Failure]()
        if changes.new or changes.changed:
            num_chunks, late = _index(changes, settings, store, generation)
        removed = store.remove_documents(generation, changes.vanished) if changes.vanished else 0
        _update_ledger(store, generation, listing, changes.failures, late)
        stats = update_hnsw(store, generation, settings.index, settings.search.ef_search)
        activate(store, generation, stats)
        collect(store, generation.collection_id, settings.index.keep_generations)
    finally:
        store.close()
    failed_late = {failure.source for failure in late}
    return IngestReport(
        collection=settings.collection,
        index_id=generation.generation_id,
        documents={
            "seen": len(listing.documents),
            "new": sum(ref.source not in failed_late for ref in changes.new),
            "changed": sum(ref.source not in failed_late for ref in changes.changed),
            "unchanged": changes.num_unchanged,
            "removed": removed,
            "failed": len(changes.failures) + len(late),
        },
        chunks_written=num_chunks,
        chunks_embedded=num_chunks,
        seconds=round(time.monotonic() - started, 2),
        failures=[{"source": f.source, "reason": f.reason} for f in changes.failures + late],
    )


def list_sources(sources: Sequence[str]) -> Listing:
    """Everything the sources hold. Raises SourceError for one that is not there, before anything is written."""
    documents: dict[str, DocumentRef] = {}
    for source in sources:
        for ref in list_documents(source):
            documents.setdefault(ref.source, ref)
    return Listing(tuple(canonical_source(source) for source in sources), documents)


def _generation(store: Store, settings: Settings, embedder: Embedder, listing: Listing) -> Generation:
    """The generation to build: the live one, where it was made the same way.

    Another one goes live at the end of the run, so it must not lose what the live one has. Raises IndexMismatch.
    """
    config = {"extractor": EXTRACTOR_VERSION, "chunk": settings.chunk.model_dump()}
    fingerprint = asdict(embedder.fingerprint)
    existing = generations(store, settings.collection) if settings.collection in store.collections() else []
    live = next((g for g in existing if g.is_live), None)
    if live is not None and (live.config, live.fingerprint) != (config, fingerprint):
        kept = [d.source for d in store.known_documents(live).values()]
        missing = [source for source in kept if source not in listing.documents and not listing.lost(source)]
        if missing:
            raise IndexMismatch(
                f"collection {settings.collection!r} is indexed with {live.config['chunk']} and model"
                f" {live.fingerprint['model']}; to index it with {config['chunk']} and {fingerprint['model']}, name all"
                f" its sources in one command ({len(missing)} documents would be lost, {missing[0]} is one),"
                " or use another --collection"
            )
    return ensure_generation(store, settings.collection, config, fingerprint, embedder.dim)


def _compare(listing: Listing, store: Store, generation: Generation) -> Changes:
    """Reads and hashes every document here: an unchanged collection never starts Ray."""
    known = store.known_documents(generation)
    failed = {f.source: f for f in store.failures(generation)}
    vanished = sorted(doc_id for doc_id, d in known.items() if listing.lost(d.source))
    new, changed, failures = list[DocumentRef](), list[DocumentRef](), list[Failure]()
    num_unchanged = num_bytes = 0
    for ref in listing.documents.values():
        try:
            document = read_document(ref)
        except ExtractionError as error:
            failures.append(Failure(ref.source, str(error)))
            continue
        content_hash, before = document.content_hash, known.get(document.doc_id)
        if before is not None and before.content_hash == content_hash:
            num_unchanged += 1
        elif ref.source in failed and failed[ref.source].content_hash == content_hash:
            failures.append(failed[ref.source])
        else:
            (new if before is None else changed).append(ref)
            num_bytes += len(document.content)
    return Changes(new, changed, num_unchanged, num_bytes, failures, vanished)


def _update_ledger(
    store: Store, generation: Generation, listing: Listing, failures: list[Failure], late: list[Failure]
) -> None:
    """After a run the ledger holds what failed in it, and what it did not look at. The job wrote `late` itself."""
    store.write_failures(generation, failures)
    failing = {failure.source for failure in failures + late}
    entries = [entry.source for entry in store.failures(generation)]
    healed = [s for s in entries if listing.lost(s) or (s in listing.documents and s not in failing)]
    store.forget_failures(generation, healed)


# The Ray Data job


def _index(changes: Changes, settings: Settings, store: Store, generation: Generation) -> tuple[int, list[Failure]]:
    """Runs the job; (chunks written, failures). Raises what Ray raises when it cannot go on."""
    import ray

    documents = changes.new + changes.changed
    batch_size = max(1, min(MAX_BATCH, BATCH_BYTES * len(documents) // max(1, changes.num_bytes)))
    with ray_session(settings.ray), Progress("ingest", len(documents), "documents") as progress:
        total, free = ray.cluster_resources(), ray.available_resources()
        plan = plan_embedding(total.get("CPU", 0), free.get("CPU", 0), total.get("GPU", 0))
        dataset = _dataset(documents, batch_size, plan, settings, generation, store.url)
        num_chunks, failures = 0, []
        try:
            for row in dataset.iter_rows():
                progress.update(1)
                num_chunks += row["num_chunks"]
                if row["error"]:
                    failures.append(Failure(row["source"], row["error"], row["content_hash"]))
        finally:
            del dataset
            gc.collect()  # a failed run's actors keep their CPUs until the dataset is collected
    return num_chunks, failures


def _dataset(
    documents: list[DocumentRef],
    batch_size: int,
    plan: EmbedPlan,
    settings: Settings,
    generation: Generation,
    url: str,
) -> Any:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S  # read when the Dataset is built
    rows = [asdict(ref) for ref in documents]
    num_blocks = math.ceil(len(rows) / batch_size)
    return (
        ray.data.from_items(rows, override_num_blocks=num_blocks)
        .map(partial(prepare, config=settings.chunk), num_cpus=TASK_CPUS)
        .map_batches(
            EmbedChunks,
            fn_constructor_args=(settings.embed, settings.home, plan.threads),
            batch_format="pyarrow",
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=plan.num_actors),
            num_cpus=plan.num_cpus,
            num_gpus=plan.num_gpus or None,
        )
        .map_batches(
            partial(write, url=url, generation=generation),
            batch_format="pyarrow",
            batch_size=batch_size,
            num_cpus=TASK_CPUS,
        )
    )


def prepare(row: dict[str, Any], config: ChunkConfig) -> dict[str, Any]:
    """One listed document -> its sections and chunks as JSON, or the reason why not in `error`."""
    ref = DocumentRef(**row)
    out = {"source": ref.source, "mime": ref.mime, "content_hash": "", "meta": "{}"}
    sections: list[Section] = []
    chunks: list[Chunk] = []
    error = ""
    try:
        document: Document = read_document(ref)
        out |= {"content_hash": document.content_hash, "meta": document.meta}
        sections = extract(document)
        chunks = [chunk for section in sections for chunk in chunk_section(section, config)]
        error = "" if chunks else "no text"
    except ExtractionError as reason:
        error = str(reason)
    except Exception as bug:  # one odd document must not end a job of a million: the ledger names it
        error = f"{type(bug).__name__}: {bug}"
    packed = {
        "sections": json.dumps([asdict(section) for section in sections]),
        "chunks": json.dumps([asdict(chunk) for chunk in chunks]),
    }
    return out | packed | {"error": error}


class EmbedChunks:
    """Adds `embeddings`: a document's chunks as the bytes of one (num_chunks, dim) float32 array."""

    def __init__(self, config: EmbedConfig, cache_dir: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)  # Ray gives an actor with half a CPU one thread
        self.embedder = load_embedder(config, cache_dir)

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        documents = [_chunks(text) for text in batch.column("chunks").to_pylist()]
        texts = [chunk.context for chunks in documents for chunk in chunks]
        embeddings = self.embedder.embed(texts, "passage")
        ends = np.cumsum([len(chunks) for chunks in documents])[:-1]
        packed = [part.tobytes() for part in np.split(embeddings, ends)]
        return batch.append_column("embeddings", pa.array(packed, pa.large_binary()))


def write(batch: Any, url: str, generation: Generation) -> Any:
    """Puts a batch of documents into the store; a row a document with what was written."""
    import pyarrow as pa

    rows = batch.to_pylist()
    store = _worker_store(url)
    documents = [_indexed(row, generation.dim) for row in rows if not row["error"]]
    store.write_documents(generation, documents)
    store.write_failures(
        generation,
        [Failure(r["source"], r["error"], r["content_hash"]) for r in rows if r["error"]],
    )
    num_chunks = {d.source: len(d.chunks) for d in documents}
    keep = ("source", "error", "content_hash")
    return pa.Table.from_pylist(
        [{name: row[name] for name in keep} | {"num_chunks": num_chunks.get(row["source"], 0)} for row in rows]
    )


@cache
def _worker_store(url: str) -> Store:
    """One small pool for each worker process, however many batches it writes."""
    return Store(url, max_connections=1)


def _indexed(row: dict[str, Any], dim: int) -> IndexedDocument:
    return IndexedDocument(
        source=row["source"],
        mime=row["mime"],
        content_hash=row["content_hash"],
        meta=row["meta"],
        sections=tuple(Section(**section) for section in json.loads(row["sections"])),
        chunks=tuple(_chunks(row["chunks"])),
        embeddings=np.frombuffer(row["embeddings"], np.float32).reshape(-1, dim),
    )


def _chunks(text: str) -> list[Chunk]:
    return [Chunk(**chunk) for chunk in json.loads(text)]
