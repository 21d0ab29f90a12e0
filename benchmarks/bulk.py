"""Many made documents written straight into the tables, a hundred times as fast as one after the other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pgvector.psycopg import register_vector
from psycopg.types.json import Jsonb

from rag.index.store import Generation, Store
from rag.records import document_id


@dataclass(frozen=True)
class Made:
    """One document, all of it one section."""

    source: str
    texts: Sequence[str]
    vectors: np.ndarray  # (len(texts), dim)
    meta: dict[str, Any] = field(default_factory=dict)
    tenant: str = ""


def copy_documents(store: Store, g: Generation, documents: Iterable[Made]) -> None:
    """COPY of documents, their place in the generation, and chunks; then VACUUM ANALYZE."""
    known: list[tuple[Any, ...]] = []
    counts: list[tuple[str, int]] = []
    with store.pool.connection() as conn, conn.transaction(), conn.cursor() as cur:
        register_vector(conn)
        with cur.copy(
            f"copy chunks_{g.generation_id} (generation_id, chunk_id, doc_id, section_id, source, title, text,"
            " start_char, end_char, embedding, tenant, labels) from stdin (format binary)"
        ) as rows:
            rows.set_types(["int4", *["text"] * 6, "int4", "int4", "vector", "text", "text[]"])
            for one in documents:
                doc_id = document_id(one.source)
                counts.append((doc_id, len(one.texts)))
                known.append((g.collection_id, doc_id, one.source, "text/plain", "h", Jsonb(one.meta), one.tenant, []))
                for n, (text, vector) in enumerate(zip(one.texts, one.vectors, strict=True)):
                    chunk_id = f"{doc_id[:24]}{n:08x}"
                    row = (g.generation_id, chunk_id, doc_id, doc_id, f"{one.source}#s", "Title", text, 0, len(text))
                    rows.write_row((*row, vector, one.tenant, []))
        with cur.copy(
            "copy documents (collection_id, doc_id, source, mime, content_hash, meta, tenant, labels)"
            " from stdin (format binary)"
        ) as rows:
            rows.set_types(["int4", "text", "text", "text", "text", "jsonb", "text", "text[]"])
            for row in known:
                rows.write_row(row)
        with cur.copy("copy generation_documents (generation_id, doc_id, content_hash, num_chunks) from stdin") as rows:
            for doc_id, num_chunks in counts:
                rows.write_row((g.generation_id, doc_id, "h", num_chunks))
    with store.pool.connection() as conn:
        conn.autocommit = True
        conn.execute("vacuum analyze")
        conn.autocommit = False
