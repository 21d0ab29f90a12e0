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
from rag.index.embed import Embedder, load_embedder
from rag.index.store import Failure, Generation, IndexedDocument, Known, Store
from rag.index.vectors import build_hnsw, recall
from rag.ingest.chunks import chunk_section
from rag.ingest.extract import extract
from rag.ingest.sources import canonical_source, list_documents, read_document
from rag.progress import Progress
from rag.records import Chunk, Document, DocumentRef, Section, document_id

EXTRACTOR_VERSION = 1  # raise it when extraction changes what a document's sections are
DOCUMENTS_PER_BATCH = 32
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
class Changes:
    """Listed documents, held against what the generation has."""

    to_index: list[tuple[DocumentRef, str]]  # (document, origin)
    num_new: int
    num_unchanged: int
    failures: list[Failure]
    vanished: list[str]  # doc_ids that an origin of this run no longer lists


def ingest(sources: Sequence[str], settings: Settings) -> IngestReport:
    """Brings a collection up to date with its sources; see the module's docstring.

    Raises SourceError, ModelError, DatabaseError, ResourceError; a single bad document goes to the ledger instead.
    """
    started = time.monotonic()
    listed = _list(sources)
    store = Store(open_database(settings))
    try:
        embedder = load_embedder(settings.embed, settings.home)
        generation = _generation(store, settings, embedder)
        changes = _compare(listed, store, generation)
        _check_covers_live(store, generation, listed)
        num_chunks, late_failures = 0, list[Failure]()
        if changes.to_index:
            num_chunks, late_failures = _index(changes.to_index, settings, store, generation)
        removed = store.remove_documents(generation, changes.vanished) if changes.vanished else 0
        failures = changes.failures + late_failures
        _update_ledger(store, generation, listed, changes.failures)
        stats = build_hnsw(store, generation)
        if stats:
            stats["recall@10"] = round(recall(store, generation), 4)
        store.activate(generation, stats)
    finally:
        store.close()
    num_indexed = len(changes.to_index) - len(late_failures)
    num_new = min(changes.num_new, num_indexed)
    return IngestReport(
        collection=settings.collection,
        index_id=generation.generation_id,
        documents={
            "seen": len(listed),
            "new": num_new,
            "changed": num_indexed - num_new,
            "unchanged": changes.num_unchanged,
            "removed": removed,
            "failed": len(failures),
        },
        chunks_written=num_chunks,
        chunks_embedded=num_chunks,
        seconds=round(time.monotonic() - started, 2),
        failures=[{"source": f.source, "reason": f.reason} for f in failures],
    )


def _list(sources: Sequence[str]) -> dict[str, tuple[DocumentRef, str]]:
    """source -> (document, origin); a document that two sources list counts once, for the first."""
    listed: dict[str, tuple[DocumentRef, str]] = {}
    for source in sources:
        origin = canonical_source(source)
        for ref in list_documents(source):
            listed.setdefault(ref.source, (ref, origin))
    return listed


def _generation(store: Store, settings: Settings, embedder: Embedder) -> Generation:
    config = {"extractor": EXTRACTOR_VERSION, "chunk": settings.chunk.model_dump()}
    return store.ensure_generation(settings.collection, config, asdict(embedder.fingerprint), embedder.dim)


def _compare(listed: dict[str, tuple[DocumentRef, str]], store: Store, generation: Generation) -> Changes:
    """Reads and hashes every document here: an unchanged collection never starts Ray."""
    known = store.known_documents(generation)
    failed = {f.source: f for f in store.failures(generation)}
    to_index, failures, num_new, num_unchanged = [], [], 0, 0
    for ref, origin in listed.values():
        try:
            content_hash = read_document(ref).content_hash
        except ExtractionError as error:
            failures.append(Failure(ref.source, origin, str(error)))
            continue
        before = known.get(document_id(ref.source))
        if before is not None and before.content_hash == content_hash:
            num_unchanged += 1
        elif ref.source in failed and failed[ref.source].content_hash == content_hash:
            failures.append(failed[ref.source])
        else:
            to_index.append((ref, origin))
            num_new += before is None
    return Changes(to_index, num_new, num_unchanged, failures, _vanished(known, listed))


def _vanished(known: dict[str, Known], listed: dict[str, tuple[DocumentRef, str]]) -> list[str]:
    origins = {origin for _, origin in listed.values()}
    listed_ids = {document_id(source) for source in listed}
    return sorted(doc_id for doc_id, d in known.items() if d.origin in origins and doc_id not in listed_ids)


def _check_covers_live(store: Store, generation: Generation, listed: dict[str, tuple[DocumentRef, str]]) -> None:
    """A generation built another way goes live at the end of this run; it must not lose what the live one has."""
    live = next((g for g in store.generations(generation.collection) if g.is_live), None)
    if live is None or live.generation_id == generation.generation_id:
        return
    origins = {origin for _, origin in listed.values()}
    listed_ids = {document_id(source) for source in listed}
    missing = {
        d.origin
        for doc_id, d in store.known_documents(live).items()
        if doc_id not in listed_ids and d.origin not in origins
    }
    if missing:
        raise IndexMismatch(
            f"collection {generation.collection!r} is indexed with {live.config['chunk']} and model"
            f" {live.fingerprint['model']}; to index it with {generation.config['chunk']} and"
            f" {generation.fingerprint['model']}, name all its sources in one command"
            f" (missing: {', '.join(sorted(missing))}), or use another --collection"
        )


def _update_ledger(
    store: Store, generation: Generation, listed: dict[str, tuple[DocumentRef, str]], failures: list[Failure]
) -> None:
    store.write_failures(generation, failures)
    origins = {origin for _, origin in listed.values()}
    gone = [f.source for f in store.failures(generation) if f.origin in origins and f.source not in listed]
    store.forget_failures(generation, gone)


# The Ray Data job


def _index(
    documents: list[tuple[DocumentRef, str]], settings: Settings, store: Store, generation: Generation
) -> tuple[int, list[Failure]]:
    """Runs the job; (chunks written, failures). Raises what Ray raises when it cannot go on."""
    import ray

    with ray_session(settings.ray), Progress("ingest", len(documents), "documents") as progress:
        total, free = ray.cluster_resources(), ray.available_resources()
        plan = plan_embedding(total.get("CPU", 0), free.get("CPU", 0), total.get("GPU", 0))
        dataset = _dataset(documents, settings, store.url, generation, plan)
        num_chunks, failures = 0, []
        try:
            for row in dataset.iter_rows():
                progress.update(1)
                num_chunks += row["num_chunks"]
                if row["error"]:
                    failures.append(Failure(row["source"], row["origin"], row["error"], row["content_hash"]))
        finally:
            del dataset
            gc.collect()  # a failed run's actors keep their CPUs until the dataset is collected
    return num_chunks, failures


def _dataset(
    documents: list[tuple[DocumentRef, str]], settings: Settings, url: str, generation: Generation, plan: EmbedPlan
) -> Any:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S  # read when the Dataset is built
    rows = [{**asdict(ref), "origin": origin} for ref, origin in documents]
    num_blocks = max(1, math.ceil(len(rows) / DOCUMENTS_PER_BATCH))
    return (
        ray.data.from_items(rows, override_num_blocks=num_blocks)
        .map(partial(prepare, config=settings.chunk), num_cpus=TASK_CPUS)
        .map_batches(
            EmbedChunks,
            fn_constructor_args=(settings.embed, settings.home, plan.threads),
            batch_format="pyarrow",
            batch_size=DOCUMENTS_PER_BATCH,
            compute=ray.data.ActorPoolStrategy(size=plan.num_actors),
            num_cpus=plan.num_cpus,
            num_gpus=plan.num_gpus or None,
        )
        .map_batches(
            partial(write, url=url, generation=generation),
            batch_format="pyarrow",
            batch_size=DOCUMENTS_PER_BATCH,
            num_cpus=TASK_CPUS,
        )
    )


def prepare(row: dict[str, Any], config: ChunkConfig) -> dict[str, Any]:
    """One listed document -> its sections and chunks as JSON, or the reason why not in `error`."""
    ref = DocumentRef(row["source"], row["mime"], row["path"], row["content"])
    out = {"source": ref.source, "origin": row["origin"], "mime": ref.mime, "content_hash": "", "meta": "{}"}
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
        [Failure(r["source"], r["origin"], r["error"], r["content_hash"]) for r in rows if r["error"]],
    )
    num_chunks = {d.source: len(d.chunks) for d in documents}
    keep = ("source", "origin", "error", "content_hash")
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
        origin=row["origin"],
        mime=row["mime"],
        content_hash=row["content_hash"],
        meta=row["meta"],
        sections=tuple(Section(**section) for section in json.loads(row["sections"])),
        chunks=tuple(_chunks(row["chunks"])),
        embeddings=np.frombuffer(row["embeddings"], np.float32).reshape(-1, dim),
    )


def _chunks(text: str) -> list[Chunk]:
    return [Chunk(**chunk) for chunk in json.loads(text)]
