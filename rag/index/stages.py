"""What happens to a document on its way in: read, extracted, cut, situated, embedded, written.

Rows in, rows out; knows no Ray.

A row is one document with all its chunks, so that a document is written in one transaction and no retry can leave
half of it. The Ray Data job (rag.index.job) runs these; so does a small job in its own process.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from psycopg_pool import PoolTimeout

from rag.config import ChunkConfig, ContextConfig, EmbedConfig
from rag.errors import ExtractionError, first_line
from rag.index.chunking import chunk_with, needs_embedder
from rag.index.embed import Embedder, load_embedder
from rag.index.ledger import Failure, write_failures
from rag.index.prefix import MakeComplete, add_prefixes
from rag.index.store import REFUSALS, Generation, IndexedDocument, Store
from rag.ingest.chunks import ChunkTools, chunk_section
from rag.ingest.extract import extract
from rag.ingest.sources import read_document
from rag.records import Access, Chunk, DocumentRef, Section, to_json


def prepare(row: dict[str, Any], config: ChunkConfig, tools: Callable[[], ChunkTools] = ChunkTools) -> dict[str, Any]:
    """One listed document -> its sections and chunks as JSON, or the reason why not in `error`.

    No chunks yet where cutting needs the embedder.
    """
    started = time.perf_counter()
    ref = DocumentRef(**row)
    out: dict[str, Any] = {"source": ref.source, "mime": ref.mime, "content_hash": "", "meta": ref.meta}
    out |= {"tenant": ref.tenant, "labels": ref.labels}
    sections: list[Section] = []
    chunks: list[Chunk] = []
    error = ""
    try:
        document = read_document(ref)
        out |= {"content_hash": document.content_hash, "meta": document.meta}
        out |= {"tenant": document.access.tenant, "labels": to_json(document.access.labels)}
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
        "prefixes": "{}",  # what became of them, where there are any
    }
    return out | packed | {"error": error, "seconds": time.perf_counter() - started}


def situate(batch: Any, url: str, config: ContextConfig, complete: MakeComplete) -> Any:
    """As `add_prefixes`, in a worker process."""
    return add_prefixes(batch, partial(_worker_store, url), config, complete)


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
        documents = [chunks_of(text) for text in batch.column("chunks").to_pylist()]
        texts = [chunk.context for chunks in documents for chunk in chunks]
        embeddings, is_truncated = self.embedder.embed_marking(texts, "passage")
        ends = np.cumsum([len(chunks) for chunks in documents])[:-1]
        num_truncated = [int(part.sum()) for part in np.split(is_truncated, ends)]
        return with_embeddings(batch, np.split(embeddings, ends), started, num_truncated)


def _cut(batch: Any, embedder: Embedder, config: ChunkConfig) -> Any:
    """The batch with the chunks of its sections, or the reason why a document has none."""
    import pyarrow as pa

    chunks, errors = [], []
    for row in batch.select(["sections", "error"]).to_pylist():
        cut, error = list[Chunk](), row["error"]
        try:
            cut = chunk_with(embedder, [Section(**section) for section in json.loads(row["sections"])], config)
        except Exception as bug:  # as in `prepare`
            error = f"{type(bug).__name__}: {bug}"
        chunks.append(json.dumps([asdict(chunk) for chunk in cut]))
        errors.append(error)
    for name, values in (("chunks", chunks), ("error", errors)):
        batch = batch.set_column(batch.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return batch


def with_embeddings(batch: Any, embeddings: Sequence[np.ndarray], started: float, num_truncated: Sequence[int]) -> Any:
    """The batch, its documents' vectors and when they were made appended."""
    import pyarrow as pa

    columns = {
        "num_truncated": pa.array(num_truncated, pa.int64()),
        "embeddings": pa.array([part.tobytes() for part in embeddings], pa.large_binary()),
        "embed_start": pa.array([started] * len(embeddings), pa.float64()),
        "embed_end": pa.array([time.time()] * len(embeddings), pa.float64()),
    }
    for name, column in columns.items():
        batch = batch.append_column(name, column)
    return batch


def write(batch: Any, url: str, generation: Generation) -> Any:
    """As `write_batch`, in a worker process."""
    return write_batch(batch, partial(_worker_store, url), generation)


def write_batch(batch: Any, open_store: Callable[[], Store], generation: Generation) -> Any:
    """Puts a batch of documents into the store; a row a document: what was written, or why the database is `lost`."""
    import pyarrow as pa

    rows = batch.to_pylist()
    documents = [_indexed(row, generation.dim) for row in rows if not row["error"]]
    refused: dict[str, str] = {}
    lost = ""  # a value, since Ray Data's own exception arrives without its cause
    try:
        store = open_store()
        refused = _store_what_can_be(store, generation, documents)
        rows = [row | {"error": row["error"] or refused.get(row["source"], "")} for row in rows]
        failed = [Failure(r["source"], r["error"], r["content_hash"], r["seconds"]) for r in rows if r["error"]]
        write_failures(store, generation, failed)
    except (psycopg.OperationalError, PoolTimeout) as error:
        lost = first_line(error)
    num_chunks = {d.source: len(d.chunks) for d in documents if d.source not in refused}
    keep = ("source", "error", "content_hash", "seconds", "embed_start", "embed_end", "num_truncated", "prefixes")
    return pa.Table.from_pylist(
        [
            {name: row[name] for name in keep} | {"num_chunks": num_chunks.get(row["source"], 0), "lost": lost}
            for row in rows
        ]
    )


def _store_what_can_be(store: Store, generation: Generation, documents: Sequence[IndexedDocument]) -> dict[str, str]:
    """Writes the documents at once, or each by itself where the database refuses one; source -> why, of those."""
    refused = {}
    try:
        store.write_documents(generation, documents)
    except REFUSALS:
        for document in documents:
            try:
                store.write_documents(generation, [document])
            except REFUSALS as error:
                refused[document.source] = f"refused by the database: {first_line(error)}"
    return refused


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
        chunks=tuple(chunks_of(row["chunks"])),
        embeddings=np.frombuffer(row["embeddings"], np.float32).reshape(-1, dim),
        seconds=row["seconds"],
        access=Access(row["tenant"], tuple(json.loads(row["labels"]))),
    )


def chunks_of(text: str) -> list[Chunk]:
    """The chunks of a row, from its JSON."""
    return [Chunk(**chunk) for chunk in json.loads(text)]
