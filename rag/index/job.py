"""The Ray Data job: listed documents in, whole documents in the store. Pure stages from rag.ingest, Ray around them.

    rows -> [read, extract, chunk] -> [embed] -> [write] -> counts
            tasks                     actors     tasks

A row is one document with all its chunks, so that a document is written in one transaction and no retry can leave
half of it.
"""

import gc
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from psycopg_pool import PoolTimeout

from rag.config import ChunkConfig, EmbedConfig, Settings
from rag.errors import DatabaseError, ExtractionError, RagError, ResourceError
from rag.index.chunking import chunk_with, needs_embedder, tokenizer_tools
from rag.index.cluster import TASK_CPUS, EmbedPlan, num_hosts, plan_embedding, ray_session
from rag.index.embed import Embedder, Fingerprint, load_embedder
from rag.index.ledger import Failure, write_failures
from rag.index.store import Generation, IndexedDocument, Store
from rag.ingest.chunks import ChunkTools, chunk_section
from rag.ingest.extract import extract
from rag.ingest.sources import read_document
from rag.progress import Progress
from rag.records import Chunk, DocumentRef, Section

# A batch is what a kill can undo, so it is a small part of the whole; yet enough to sort by length (about 40 chunks).
BATCH_SHARE, MIN_BATCH_BYTES, MAX_BATCH_BYTES = 1 / 100, 20_000, 300_000
MAX_BATCH = 256  # documents
NO_PROGRESS_TIMEOUT_S = 600.0  # a stalled job is an error, not a hang; loading a model takes tens of seconds


@dataclass
class JobResult:
    """What one job wrote. `embed_busy` is the share of its time that the embedding actors computed."""

    num_chunks: int = 0
    num_truncated: int = 0  # chunks whose ends the model does not read
    failures: list[Failure] = field(default_factory=list)
    embed_busy: float = 0.0


def run_job(
    documents: Sequence[DocumentRef],
    num_bytes: int,
    settings: Settings,
    generation: Generation,
    store: Store,
    embedder: type | None = None,
) -> JobResult:
    """Ingests `documents`, `num_bytes` in all. `embedder` replaces EmbedChunks: a benchmark's fixed-time one.

    Raises ResourceError, ModelError, DatabaseError; RagError for whatever else Ray could not get over.
    """
    import ray

    result = JobResult()
    batch_bytes = min(MAX_BATCH_BYTES, max(MIN_BATCH_BYTES, int(num_bytes * BATCH_SHARE)))
    batch_size = max(1, min(MAX_BATCH, batch_bytes * len(documents) // max(1, num_bytes)))
    with ray_session(settings.ray), Progress("ingest", len(documents), "documents") as progress:
        total, free = ray.cluster_resources(), ray.available_resources()
        plan = plan_embedding(total.get("CPU", 0), free.get("CPU", 0), total.get("GPU", 0))
        tools = partial(tokenizer_tools, settings.chunk, settings.embed, Fingerprint(**generation.fingerprint))
        stages = (partial(prepare, config=settings.chunk, tools=tools), embedder or EmbedChunks)
        dataset = _dataset(_source(documents, batch_size, settings), batch_size, plan, stages, settings)
        dataset = dataset.map_batches(
            partial(write, url=store.url, generation=generation),
            batch_format="pyarrow",
            batch_size=batch_size,
            num_cpus=TASK_CPUS,
        )
        times = _BusyTime(plan.num_actors)
        try:
            for row in dataset.iter_rows():
                if row["lost"]:
                    raise DatabaseError(_lost(row["lost"]))
                progress.update(1)
                result.num_chunks += row["num_chunks"]
                result.num_truncated += row["num_truncated"]
                times.add(row["embed_start"], row["embed_end"])
                if row["error"]:
                    failure = Failure(row["source"], row["error"], row["content_hash"], row["seconds"])
                    result.failures.append(failure)
        except (ray.exceptions.RayError, SystemError) as error:
            raise _plain(error) from error
        finally:
            del dataset
            gc.collect()  # a failed run's actors keep their CPUs until the dataset is collected
        result.embed_busy = times.share()
    return result


def _source(documents: Sequence[DocumentRef], batch_size: int, settings: Settings) -> Any:
    """The rows of the listed documents; with their bytes, where other machines cannot read this one's files."""
    import pyarrow as pa
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S  # read when the Dataset is built
    if num_hosts() == 1 or settings.ray.shared_files:
        num_blocks = math.ceil(len(documents) / batch_size)
        return ray.data.from_items([asdict(ref) for ref in documents], override_num_blocks=num_blocks)
    if settings.database_url is None:
        raise ResourceError(
            "a cluster of several machines needs a PostgreSQL that all of them reach, found the embedded one;"
            " set DATABASE_URL"
        )
    # Block by block: Ray spills to disk what does not fit its memory, this process never holds more than one.
    batches = (documents[start : start + batch_size] for start in range(0, len(documents), batch_size))
    blocks = [ray.put(pa.Table.from_pylist([asdict(_with_content(ref)) for ref in batch])) for batch in batches]
    return ray.data.from_arrow_refs(blocks)


def _with_content(ref: DocumentRef) -> DocumentRef:
    if ref.path is None or "://" in ref.path:
        return ref
    try:
        return replace(ref, path=None, content=read_document(ref).content, start=0, end=None)
    except ExtractionError as error:
        return replace(ref, error=str(error))


def _dataset(rows: Any, batch_size: int, plan: EmbedPlan, stages: tuple[Any, type], settings: Settings) -> Any:
    """Rows of documents -> rows of documents with their chunks and embeddings."""
    import ray

    prepared, embedder = stages
    to_cut = [settings.chunk] if needs_embedder(settings.chunk) else []
    return rows.map(prepared, num_cpus=TASK_CPUS).map_batches(
        embedder,
        fn_constructor_args=(settings.embed, settings.home, plan.threads, *to_cut),
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=plan.num_actors),
        num_cpus=plan.num_cpus,
        num_gpus=plan.num_gpus or None,
    )


def prepare(row: dict[str, Any], config: ChunkConfig, tools: Callable[[], ChunkTools] = ChunkTools) -> dict[str, Any]:
    """One listed document -> its sections and chunks as JSON, or the reason why not in `error`.

    No chunks yet where cutting needs the embedder.
    """
    started = time.perf_counter()
    ref = DocumentRef(**row)
    out: dict[str, Any] = {"source": ref.source, "mime": ref.mime, "content_hash": "", "meta": ref.meta}
    sections: list[Section] = []
    chunks: list[Chunk] = []
    error = ""
    try:
        document = read_document(ref)
        out |= {"content_hash": document.content_hash, "meta": document.meta}
        sections = extract(document)
        if not needs_embedder(config):
            chunks = [chunk for section in sections for chunk in chunk_section(section, config, tools())]
        error = "" if any(section.text.strip() for section in sections) else "no text"
    except ExtractionError as reason:
        error = str(reason)
    except Exception as bug:  # one odd document must not end a job of a million: the ledger names it
        error = f"{type(bug).__name__}: {bug}"
    packed = {
        "sections": json.dumps([asdict(section) for section in sections]),
        "chunks": json.dumps([asdict(chunk) for chunk in chunks]),
    }
    return out | packed | {"error": error, "seconds": time.perf_counter() - started}


class EmbedChunks:
    """Adds `embeddings`: a document's chunks as the bytes of one (num_chunks, dim) float32 array."""

    def __init__(self, config: EmbedConfig, cache_dir: Path, threads: int, to_cut: ChunkConfig | None = None) -> None:
        import torch

        torch.set_num_threads(threads)  # Ray gives an actor with half a CPU one thread
        self.embedder = load_embedder(config, cache_dir)
        self.to_cut = to_cut  # by what, where cutting needs the embedder

    def __call__(self, batch: Any) -> Any:
        started = time.time()
        if self.to_cut is not None:
            batch = _cut(batch, self.embedder, self.to_cut)
        documents = [_chunks(text) for text in batch.column("chunks").to_pylist()]
        texts = [chunk.context for chunks in documents for chunk in chunks]
        embeddings, is_truncated = self.embedder.embed_marking(texts, "passage")
        ends = np.cumsum([len(chunks) for chunks in documents])[:-1]
        num_truncated = [int(part.sum()) for part in np.split(is_truncated, ends)]
        return with_embeddings(batch, np.split(embeddings, ends), started, num_truncated)


def _cut(batch: Any, embedder: Embedder, config: ChunkConfig) -> Any:
    """The batch with the chunks of its sections."""
    import pyarrow as pa

    cut = []
    for text in batch.column("sections").to_pylist():
        sections = [Section(**section) for section in json.loads(text)]
        cut.append(json.dumps([asdict(chunk) for chunk in chunk_with(embedder, sections, config)]))
    return batch.set_column(batch.schema.get_field_index("chunks"), "chunks", pa.array(cut, pa.string()))


def with_embeddings(
    batch: Any, embeddings: Sequence[np.ndarray], started: float, num_truncated: Sequence[int] = ()
) -> Any:
    """The batch, its documents' vectors and when they were made appended."""
    import pyarrow as pa

    columns = {
        "num_truncated": pa.array(num_truncated or [0] * len(embeddings), pa.int64()),
        "embeddings": pa.array([part.tobytes() for part in embeddings], pa.large_binary()),
        "embed_start": pa.array([started] * len(embeddings), pa.float64()),
        "embed_end": pa.array([time.time()] * len(embeddings), pa.float64()),
    }
    for name, column in columns.items():
        batch = batch.append_column(name, column)
    return batch


def write(batch: Any, url: str, generation: Generation) -> Any:
    """Puts a batch of documents into the store; a row a document: what was written, or why the database is `lost`."""
    import pyarrow as pa

    rows = batch.to_pylist()
    documents = [_indexed(row, generation.dim) for row in rows if not row["error"]]
    failed = [Failure(r["source"], r["error"], r["content_hash"], r["seconds"]) for r in rows if r["error"]]
    lost = ""  # a value, since Ray Data's own exception arrives without its cause
    try:
        store = _worker_store(url)
        store.write_documents(generation, documents)
        write_failures(store, generation, failed)
    except (psycopg.OperationalError, PoolTimeout) as error:
        lost = (str(error).strip() or type(error).__name__).splitlines()[0]
    num_chunks = {d.source: len(d.chunks) for d in documents}
    keep = ("source", "error", "content_hash", "seconds", "embed_start", "embed_end", "num_truncated")
    return pa.Table.from_pylist(
        [
            {name: row[name] for name in keep} | {"num_chunks": num_chunks.get(row["source"], 0), "lost": lost}
            for row in rows
        ]
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
        seconds=row["seconds"],
    )


def _chunks(text: str) -> list[Chunk]:
    return [Chunk(**chunk) for chunk in json.loads(text)]


class _BusyTime:
    """How much of the time between their first and last batch the actors computed."""

    def __init__(self, num_actors: int) -> None:
        self.num_actors = num_actors
        self.batches: set[tuple[float, float]] = set()

    def add(self, start: float, end: float) -> None:
        self.batches.add((start, end))

    def share(self) -> float:
        if not self.batches:
            return 0.0
        elapsed = max(end for _, end in self.batches) - min(start for start, _ in self.batches)
        busy = sum(end - start for start, end in self.batches)
        return round(min(1.0, busy / max(1e-9, elapsed * self.num_actors)), 3)


def _lost(reason: str) -> str:
    return f"lost the database: {reason}; run the command again, what was done is kept"


def _plain(error: BaseException) -> RagError:
    """What went wrong in a worker, as one line; Ray's own message is a page."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RagError):
            return cause
        if isinstance(cause, psycopg.OperationalError | PoolTimeout):
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[-1]
            return DatabaseError(_lost(reason))
        cause = getattr(cause, "cause", None) or cause.__cause__
    reason = next((line for line in reversed(str(error).strip().splitlines()) if line.strip()), type(error).__name__)
    return RagError(f"the ingestion job stopped: {reason.strip()[:300]}; run the command again, what was done is kept")
