"""Collections made without Ray or a model: documents with random unit vectors, and all that a store holds of them."""

from typing import Any

import numpy as np

from rag.index.generations import activate, ensure_generation, live_generation
from rag.index.ledger import Failure, write_failures
from rag.index.store import Generation, IndexedDocument, Store
from rag.records import Chunk, Section

DIM = 8
CONFIG = {"extractor": 1, "chunk": {"size": 700, "overlap": 50}}
FINGERPRINT = {
    "model": "made",
    "weights": "0" * 64,
    "pooling": "mean",
    "normalize": True,
    "query_prefix": "",
    "passage_prefix": "",
    "dim": DIM,
    "max_tokens": 256,
}
TABLES = {
    "documents": "select doc_id, source, mime, content_hash, meta, tenant, labels, updated_at from documents"
    " where collection_id = %(c)s order by doc_id",
    "sections": "select section_id, doc_id, ordinal, source, title, text from sections"
    " where collection_id = %(c)s order by section_id",
    "generation_documents": "select doc_id, content_hash, num_chunks, indexed_at from generation_documents"
    " where generation_id = %(g)s order by doc_id",
    "chunks": "select chunk_id, doc_id, section_id, source, title, text, start_char, end_char, vector_send(embedding)"
    " from chunks where generation_id = %(g)s order by chunk_id",
    "failures": "select source, reason, content_hash, failed_at from failures where generation_id = %(g)s order by 1",
}


def vectors(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def document(source: str, num_chunks: int, version: str = "v1") -> IndexedDocument:
    """One section; the chunks are its lines, "{version} line 0 …"."""
    lines = [f"{version} line {i} \u2028 שלום 🐧 'quoted' \\ \"too\"" for i in range(num_chunks)]
    text = "\n".join(lines)
    section = Section(f"{source}#top", "Título > Ünder", text)
    chunks, start = [], 0
    for line in lines:
        chunks.append(Chunk(section.section_id, section.source, section.title, line, start, start + len(line)))
        start += len(line) + 1
    meta = '{"lang": "pt", "pages": 3}'
    seed = sum(source.encode())
    return IndexedDocument(source, "text/plain", version, meta, (section,), tuple(chunks), vectors(num_chunks, seed))


def make_collection(store: Store, name: str, sizes: list[int], version: str = "v1") -> Generation:
    """A live generation of documents `file:///{name}/0`, … with that many chunks each, and one ledger entry."""
    generation = ensure_generation(store, name, CONFIG, FINGERPRINT, DIM)
    store.write_documents(generation, [document(f"file:///{name}/{i}", n, version) for i, n in enumerate(sizes)])
    write_failures(store, generation, [Failure(f"file:///{name}/bad", "no text", "h")])
    activate(store, generation, {"note": "made"})
    return live_generation(store, name)


def content(store: Store, generation: Generation) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of a generation and its collection, ids of the database left out."""
    params = {"c": generation.collection_id, "g": generation.generation_id}
    with store.pool.connection() as conn:
        return {name: conn.execute(query, params).fetchall() for name, query in TABLES.items()}
