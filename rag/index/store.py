"""The SQL of collections, documents and chunks. Rows in, records out; knows no Ray and no model."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import psycopg
from psycopg import sql

from rag.errors import DatabaseError
from rag.index.database import Pool, connect, open_pool
from rag.records import Access, Chunk, Section, document_id, to_json

DEFAULT_LANGUAGE = "english"  # of a collection that was not told another
# What is wrong with the data, as PostgreSQL says it; ProgramLimitExceeded: something is too long for an index.
REFUSALS = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded)
WRITER_LOCK = 4  # advisory, with a generation's id: shared by who writes to it, exclusive for who drops it
# PostgreSQL moves the vector out of a row of more than 2 kB, and a search that reads a hundred of them looks each up.
WHOLE_ROWS = sql.SQL("with (toast_tuple_target = 4096)")


@dataclass(frozen=True)
class Generation:
    """One way of indexing a collection, and how far it is."""

    generation_id: int
    collection_id: int
    collection: str
    config: dict[str, Any]
    fingerprint: dict[str, Any]
    dim: int
    state: str  # building, ready (finished), retired (was live)
    stats: dict[str, Any]
    is_live: bool
    created_at: datetime
    live_since: datetime | None  # the last time it went live
    retired_at: datetime | None
    settings: dict[str, Any]  # the collection's: language, weight

    @property
    def language(self) -> str:
        return str(self.settings.get("language", DEFAULT_LANGUAGE))

    @property
    def table(self) -> sql.Identifier:
        return sql.Identifier(f"chunks_{self.generation_id}")


@dataclass(frozen=True)
class IndexedDocument:
    """A document with everything that goes into one transaction. `embeddings` is (len(chunks), dim) float32."""

    source: str
    mime: str
    content_hash: str
    meta: str
    sections: tuple[Section, ...]
    chunks: tuple[Chunk, ...]
    embeddings: np.ndarray
    seconds: float = 0.0  # spent on reading and extracting it
    access: Access = Access()

    @property
    def doc_id(self) -> str:
        return document_id(self.source)


class Known(NamedTuple):
    """What the store has of one document: enough to tell whether it changed. Millions of them fit into memory."""

    source: str
    content_hash: str | None  # None where the generation in question does not have it
    access: Access = Access()


class Store:
    """One database. Holds a pool; share it between threads."""

    def __init__(self, url: str, max_connections: int = 8) -> None:
        self.url = url
        self.pool: Pool = open_pool(url, max_connections)
        self._held: dict[int, psycopg.Connection[Any]] = {}

    def close(self) -> None:
        for generation_id in list(self._held):
            self.release(generation_id)
        self.pool.close()

    # Collections

    def ensure_collection(self, name: str) -> int:
        """The collection's id; created where it is missing."""
        with self.pool.connection() as conn:
            conn.execute("insert into collections (name) values (%s) on conflict do nothing", [name])
            return int(scalar(conn, "select collection_id from collections where name = %s", [name]))

    def set_collection(self, collection_id: int, **settings: Any) -> None:
        """Changes settings of a collection: `language`, `weight`."""
        with self.pool.connection() as conn:
            conn.execute(
                "update collections set settings = settings || %s::jsonb where collection_id = %s",
                [to_json(settings), collection_id],
            )

    def collections(self) -> list[str]:
        with self.pool.connection() as conn:
            return [row[0] for row in conn.execute("select name from collections order by name")]

    # Generations that this process writes

    def hold(self, generation_id: int) -> None:
        """Keeps a generation from being dropped until `release` or `close`.

        The lock goes with a connection of its own, so a killed process holds nothing.
        """
        if generation_id not in self._held:
            conn = connect(self.url)
            conn.autocommit = True
            conn.execute("select pg_advisory_lock_shared(%s, %s)", [WRITER_LOCK, generation_id])
            self._held[generation_id] = conn

    def release(self, generation_id: int) -> None:
        if conn := self._held.pop(generation_id, None):
            with contextlib.suppress(psycopg.Error):  # closing alone, the server would notice some time later
                conn.execute("select pg_advisory_unlock_all()")
            conn.close()

    # Documents

    def documents(self, collection_id: int, generation_id: int | None = None) -> dict[str, Known]:
        """doc_id -> what the store has of it, for every document of the collection."""
        access: dict[tuple[str, tuple[str, ...]], Access] = {}  # few, for many documents
        found = {}
        with self.pool.connection() as conn, conn.cursor(name="documents") as rows:
            rows.itersize = 10_000
            rows.execute(
                "select d.doc_id, d.source, m.content_hash, d.tenant, d.labels from documents d"
                " left join generation_documents m on m.generation_id = %s and m.doc_id = d.doc_id"
                " where d.collection_id = %s",
                [generation_id, collection_id],
            )
            for doc_id, source, content_hash, tenant, labels in rows:
                key = tenant, tuple(labels)
                found[doc_id] = Known(source, content_hash, access.setdefault(key, Access(*key)))
        return found

    def known_documents(self, generation: Generation) -> dict[str, Known]:
        """Those of the documents that the generation has."""
        every = self.documents(generation.collection_id, generation.generation_id)
        return {doc_id: document for doc_id, document in every.items() if document.content_hash is not None}

    def lacking(self, generation: Generation, live: Generation) -> dict[str, str]:
        """doc_id -> source, of the documents that `live` has and `generation` has not."""
        with self.pool.connection() as conn:
            rows = conn.execute(
                "select doc_id, d.source from generation_documents m join documents d using (doc_id)"
                " where m.generation_id = %s and d.collection_id = %s and doc_id not in"
                " (select doc_id from generation_documents where generation_id = %s) order by d.source",
                [live.generation_id, live.collection_id, generation.generation_id],
            )
            return dict(rows.fetchall())

    def write_documents(self, generation: Generation, documents: Sequence[IndexedDocument]) -> int:
        """Puts whole documents in, replaces what changed, in one transaction; returns the chunks written.

        Writing the same documents again changes nothing: ids are deterministic and every statement is an upsert.
        """
        if not documents:
            return 0
        with self.pool.connection() as conn, conn.transaction():
            changed = _with_other_access(conn, generation, {d.doc_id: d.access for d in documents})
            _write_documents_and_sections(conn, generation, documents)
            num_chunks = _write_chunks(conn, generation, documents)
            _give_chunks_access(conn, generation, changed)
            _write_manifest(conn, generation, documents)
            conn.execute(
                "delete from failures where generation_id = %s and source = any(%s)",
                [generation.generation_id, [d.source for d in documents]],
            )
            return num_chunks

    def set_access(self, generation: Generation, access: Mapping[str, Access]) -> None:
        """Gives documents another tenant or labels, by doc_id, in one transaction; embeds nothing."""
        with self.pool.connection() as conn, conn.transaction():
            conn.cursor().executemany(
                "update documents set tenant = %s, labels = %s, updated_at = now()"
                " where collection_id = %s and doc_id = %s",
                [(a.tenant, list(a.labels), generation.collection_id, doc_id) for doc_id, a in sorted(access.items())],
            )
            _give_chunks_access(conn, generation, list(access))

    def remove_documents(self, collection_id: int, doc_ids: Sequence[str]) -> int:
        """Takes documents out of every generation of the collection, in one transaction."""
        with self.pool.connection() as conn, conn.transaction():
            key = [collection_id, list(doc_ids)]
            mine = "generation_id in (select generation_id from generations where collection_id = %s)"
            conn.execute(f"delete from chunks where {mine} and doc_id = any(%s)", key)
            conn.execute(f"delete from generation_documents where {mine} and doc_id = any(%s)", key)
            done = conn.execute("delete from documents where collection_id = %s and doc_id = any(%s)", key)
            return done.rowcount

    def counts(self, generation: Generation) -> dict[str, int]:
        """Documents and chunks in a generation, from its manifest."""
        with self.pool.connection() as conn:
            row = conn.execute(
                "select count(*), coalesce(sum(num_chunks), 0) from generation_documents where generation_id = %s",
                [generation.generation_id],
            ).fetchone()
        assert row is not None
        return {"documents": row[0], "chunks": int(row[1])}


def _write_documents_and_sections(
    conn: psycopg.Connection[Any], generation: Generation, documents: Sequence[IndexedDocument]
) -> None:
    collection_id = generation.collection_id
    ordered = sorted(documents, key=lambda d: d.doc_id)  # a stable lock order: no deadlocks
    with conn.cursor() as cur:
        cur.executemany(
            "insert into documents (collection_id, doc_id, source, mime, content_hash, meta, tenant, labels)"
            " values (%s, %s, %s, %s, %s, %s, %s, %s) on conflict (collection_id, doc_id) do update set"
            " mime = excluded.mime, content_hash = excluded.content_hash,"
            " meta = excluded.meta, tenant = excluded.tenant, labels = excluded.labels, updated_at = now()",
            [
                (collection_id, d.doc_id, d.source, d.mime, d.content_hash, d.meta)
                + (d.access.tenant, list(d.access.labels))
                for d in ordered
            ],
        )
    conn.execute(
        "delete from sections where collection_id = %s and doc_id = any(%s)",
        [collection_id, [d.doc_id for d in ordered]],
    )
    copy = "copy sections (collection_id, section_id, doc_id, ordinal, source, title, text) from stdin (format binary)"
    with conn.cursor().copy(copy) as rows:
        rows.set_types(["int4", "text", "text", "int4", "text", "text", "text"])
        for d in ordered:
            for ordinal, s in enumerate(d.sections):
                rows.write_row((collection_id, s.section_id, d.doc_id, ordinal, s.source, s.title, s.text))


def _write_chunks(conn: psycopg.Connection[Any], generation: Generation, documents: Sequence[IndexedDocument]) -> int:
    conn.execute(
        "create temporary table staged (chunk_id text, doc_id text, section_id text, source text, title text,"
        " text text, start_char int4, end_char int4, embedding vector, prefix text, tenant text, labels text[])"
        " on commit drop"
    )
    num_chunks = 0
    with conn.cursor().copy("copy staged from stdin (format binary)") as rows:
        rows.set_types([*["text"] * 6, "int4", "int4", "vector", "text", "text", "text[]"])
        for d in documents:
            for c, embedding in zip(d.chunks, d.embeddings, strict=True):
                rows.write_row(
                    (c.chunk_id, d.doc_id, c.section_id, c.source, c.title, c.text)
                    + (c.start_char, c.end_char, embedding, c.prefix, d.access.tenant, list(d.access.labels))
                )
                num_chunks += 1
    doc_ids = [d.doc_id for d in documents]
    conn.execute(
        sql.SQL(
            "delete from {} c where doc_id = any(%s)"
            " and not exists (select 1 from staged s where s.chunk_id = c.chunk_id)"
        ).format(generation.table),
        [doc_ids],
    )
    conn.execute(
        sql.SQL(
            "insert into {} (generation_id, chunk_id, doc_id, section_id, source, title, text, start_char, end_char,"
            " embedding, prefix, tenant, labels)"
            " select distinct on (chunk_id) %s, staged.* from staged order by chunk_id"
            " on conflict (generation_id, chunk_id) do nothing"  # equal id, equal row
        ).format(generation.table),
        [generation.generation_id],
    )
    return num_chunks


def _with_other_access(
    conn: psycopg.Connection[Any], generation: Generation, access: Mapping[str, Access]
) -> list[str]:
    """Those of the documents that are stored with another tenant or labels."""
    rows = conn.execute(
        "select doc_id, tenant, labels from documents where collection_id = %s and doc_id = any(%s)",
        [generation.collection_id, list(access)],
    )
    return [doc_id for doc_id, tenant, labels in rows if access[doc_id] != Access(tenant, tuple(labels))]


def _give_chunks_access(conn: psycopg.Connection[Any], generation: Generation, doc_ids: Sequence[str]) -> None:
    """The tenant and labels of their documents, in every generation: a rollback must not open what was closed since."""
    if doc_ids:
        conn.execute(
            "update chunks c set tenant = d.tenant, labels = d.labels from documents d"
            " where c.generation_id in (select generation_id from generations where collection_id = %s)"
            " and d.collection_id = %s and d.doc_id = any(%s) and c.doc_id = d.doc_id"
            " and (c.tenant, c.labels) is distinct from (d.tenant, d.labels)",
            [generation.collection_id, generation.collection_id, list(doc_ids)],
        )


def _write_manifest(
    conn: psycopg.Connection[Any], generation: Generation, documents: Sequence[IndexedDocument]
) -> None:
    with conn.cursor() as cur:
        cur.executemany(
            "insert into generation_documents (generation_id, doc_id, content_hash, num_chunks, seconds)"
            " values (%s, %s, %s, %s, %s) on conflict (generation_id, doc_id) do update set"
            " content_hash = excluded.content_hash, num_chunks = excluded.num_chunks,"
            " seconds = excluded.seconds, indexed_at = now()",
            [
                (generation.generation_id, d.doc_id, d.content_hash, len(d.chunks), d.seconds)
                for d in sorted(documents, key=lambda d: d.doc_id)
            ],
        )


def scalar(conn: psycopg.Connection[Any], statement: Any, params: Any = None) -> Any:
    row = conn.execute(statement, params).fetchone()
    if row is None:
        raise DatabaseError(f"expected one row from {statement!r}, found none")
    return row[0]
