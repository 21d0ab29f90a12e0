"""A dump into the database, as a collection that appears at once and whole.

Files are checked against the manifest first. Then everything happens in one transaction: rows are copied in under a
name nobody sees, HNSW is built and measured, and the last statements give the collection its name. A load that is
killed leaves nothing. A dump is data: Parquet and JSON, never code.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from rag.config import IndexConfig, SearchConfig
from rag.errors import DumpError
from rag.index.access import protect
from rag.index.drop import sweep
from rag.index.dump_folder import Folder
from rag.index.dump_format import (
    CHUNKS,
    DOCUMENTS,
    FAILURES,
    GENERATION_DOCUMENTS,
    SECTIONS,
    Columns,
    GenerationPart,
    Manifest,
    MoveReport,
    ShardFile,
    TablePart,
    arrow_schema,
    report,
)
from rag.index.history import write_history
from rag.index.hnsw import MIN_CHUNKS, STATS, choose_parameters, create_hnsw, measure_hnsw
from rag.index.store import REFUSALS, WHOLE_ROWS, Generation, Store, scalar
from rag.progress import Progress
from rag.records import to_json

NORM_TOLERANCE = 1e-3
LOAD_LOCK = 3  # advisory, with a hash of the collection's name
JSONB_VERSION = b"\x01"  # leads jsonb's binary form; the rest is its text

REFUSED = (*REFUSALS, UnicodeError, OverflowError)  # what is wrong with the data of a dump

# Not `like chunks`: that holds a lock which whoever starts another generation would wait for.
_CHUNKS_TABLE = """
    create table {table} (
        generation_id integer not null, chunk_id text not null, doc_id text not null, section_id text not null,
        source text not null, title text not null, text text not null, start_char integer not null,
        end_char integer not null, embedding vector not null, is_duplicate boolean not null default false,
        tenant text not null default '', labels text[] not null default '{{}}',
        prefix text not null default '',
        check (vector_dims(embedding) = {dim}), constraint attached check (generation_id = {generation_id})
    ) {whole_rows}
"""


def load_collection(store: Store, source: str, name: str | None = None, is_replacing: bool = False) -> MoveReport:
    """Loads the dump at a folder or URL as collection `name`, the dumped one's by default.

    A collection of that name is refused, or with `is_replacing` given up for the new one in the same instant. Raises
    DumpError, with the database as it was.
    """
    started = time.monotonic()
    folder = Folder(source)
    manifest = folder.read_manifest()
    name = name or manifest.collection
    with store.pool.connection() as conn:
        _refuse_existing(conn, name, is_replacing)
    _check_files(folder, manifest)
    with store.pool.connection() as conn, _damage_is_named(folder), conn.transaction():
        _begin(conn, name)
        _refuse_existing(conn, name, is_replacing)
        with folder.errors(), Progress("load", manifest.num_chunks, "chunks") as progress:
            collection_id = scalar(
                conn,
                "insert into collections (name, settings) values (%s, %s) returning collection_id",
                [f"load {uuid.uuid4()}", to_json(manifest.settings.model_dump(exclude_none=True))],
            )
            load = _Load(conn, folder, name, collection_id, progress)
            load.rows(sql.Identifier("documents"), DOCUMENTS, manifest.documents)
            load.rows(sql.Identifier("sections"), SECTIONS, manifest.sections)
            loaded = [load.generation(part) for part in manifest.generations]
        indexed = [load.index(g) if g.state != "building" else g for g in loaded]  # a rollback may go to a retired one
        index_ids = [g.generation_id for g in indexed]
        called = [g.index_id for g in manifest.generations]
        write_history(conn, collection_id, manifest, dict(zip(called, index_ids, strict=True)))
        _switch(conn, collection_id, name, indexed, is_replacing)
    sweep(store)
    return report(manifest, folder.shown, name, index_ids, time.monotonic() - started)


# Before anything is written


def _refuse_existing(conn: psycopg.Connection[Any], name: str, is_replacing: bool) -> None:
    if not is_replacing and scalar(conn, "select exists (select from collections where name = %s)", [name]):
        raise _exists(name)


def _exists(name: str) -> DumpError:
    return DumpError(f"collection {name!r} exists; load under another name, --collection NEWNAME, or pass --replace")


def _check_files(folder: Folder, manifest: Manifest) -> None:
    """Every file is there, is the one that was written, and holds the columns and rows that it should."""
    with Progress("check", len(manifest.files), "files") as progress:
        for columns, dim, part in manifest.parts:
            for file in part.files:
                if not folder.fs.exists(f"{folder.path}/{file.name}"):
                    raise _damaged(folder, f"{file.name} is missing")
                if folder.hash_file(file.name) != (file.num_bytes, file.sha256):
                    raise _damaged(folder, f"{file.name} is not the file that was written (sha256 differs)")
                with _damage_is_named(folder), _parquet(folder, file) as parquet:
                    if parquet.schema_arrow.remove_metadata() != arrow_schema(columns, dim):
                        raise _damaged(folder, f"{file.name} has other columns than expected")
                    if parquet.metadata.num_rows != file.num_rows:
                        raise _damaged(folder, f"{file.name} has {parquet.metadata.num_rows} rows, not {file.num_rows}")
                progress.update(1)


def _damaged(folder: Folder, what: str) -> DumpError:
    return DumpError(f"{folder.shown}: damaged dump: {what}; nothing was loaded, copy or dump it again")


@contextmanager
def _damage_is_named(folder: Folder) -> Iterator[None]:
    """What Arrow or PostgreSQL refuses in the files is one line."""
    import pyarrow as pa

    try:
        yield
    except (*REFUSED, pa.ArrowException) as error:
        raise _damaged(folder, str(error).strip().splitlines()[0][:300]) from None


@contextmanager
def _parquet(folder: Folder, file: ShardFile) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with folder.errors(), folder.open(file.name, "rb") as opened, pq.ParquetFile(opened) as parquet:
        yield parquet


# The transaction


def _begin(conn: psycopg.Connection[Any], name: str) -> None:
    """One load at a time for each name. A server whose client was killed notices within a second and rolls back."""
    with suppress(psycopg.errors.InvalidParameterValue), conn.transaction():  # not on every operating system
        conn.execute("set local client_connection_check_interval = '1s'")
    conn.execute("select pg_advisory_xact_lock(%s, hashtext(%s))", [LOAD_LOCK, name])


@dataclass(frozen=True)
class _Load:
    """One load on its way: rows of a hidden collection."""

    conn: psycopg.Connection[Any]
    folder: Folder
    name: str
    collection_id: int
    progress: Progress

    def generation(self, part: GenerationPart) -> Generation:
        """The generation with its rows. Its chunks stand alone until they are whole: a partition of `chunks` from
        the start would lock out whoever starts another generation meanwhile."""
        stats = {name: value for name, value in part.stats.items() if name not in STATS}
        generation_id = scalar(
            self.conn,
            "insert into generations (collection_id, config, fingerprint, dim, state, stats, created_at, ready_at,"
            " live_since, retired_at) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) returning generation_id",
            [
                self.collection_id,
                to_json(part.config),
                to_json(part.fingerprint),
                part.dim,
                part.state,
                to_json(stats),
                part.created_at,
                part.ready_at,
                part.live_since,
                part.retired_at,
            ],
        )
        g = Generation(
            generation_id=generation_id,
            collection_id=self.collection_id,
            collection=self.name,
            config=part.config,
            fingerprint=part.fingerprint,
            dim=part.dim,
            state=part.state,
            stats=stats,
            is_live=part.live,
            created_at=part.created_at,
            live_since=part.live_since,
            retired_at=part.retired_at,
            settings={},
        )
        self.conn.execute(
            sql.SQL(_CHUNKS_TABLE).format(
                table=g.table,
                dim=sql.Literal(g.dim),
                generation_id=sql.Literal(generation_id),
                whole_rows=WHOLE_ROWS,
            )
        )
        protect(self.conn, g.table)
        self.rows(sql.Identifier("generation_documents"), GENERATION_DOCUMENTS, part.documents, g)
        self.rows(g.table, CHUNKS, part.chunks, g)
        self.rows(sql.Identifier("failures"), FAILURES, part.failures, g)
        self.conn.execute(sql.SQL("alter table {} add primary key (generation_id, chunk_id)").format(g.table))
        self.conn.execute(sql.SQL("create index on {} (generation_id, doc_id)").format(g.table))
        self._check_whole(g)
        return g

    def index(self, g: Generation) -> Generation:
        """HNSW as it is built and measured here; what the dump says of its own is not true of this one."""
        num_chunks = scalar(self.conn, sql.SQL("select count(*) from {}").format(g.table))
        parameters = choose_parameters(num_chunks, g.dim, IndexConfig())
        if num_chunks >= MIN_CHUNKS and parameters is not None:
            g = replace(g, stats=g.stats | create_hnsw(self.conn, g, parameters))
            measure_hnsw(self.conn, g, num_chunks, SearchConfig().ef_search)
        return g

    def rows(self, table: sql.Identifier, columns: Columns, part: TablePart, g: Generation | None = None) -> None:
        owner, owner_id = ("collection_id", self.collection_id) if g is None else ("generation_id", g.generation_id)
        # A table that this transaction made can be written as vacuum would leave it; the first search then only reads.
        copy = sql.SQL("copy {} ({}) from stdin (format binary, freeze {})").format(
            table, sql.SQL(", ").join(map(sql.Identifier, [owner, *columns])), sql.Literal(columns is CHUNKS)
        )
        with self.conn.cursor().copy(copy) as out:
            out.set_types(["int4", *({"jsonb": "bytea", "vector": "bytea"}.get(k, k) for k in columns.values())])
            for file in part.files:
                with _parquet(self.folder, file) as parquet:
                    for group in range(parquet.num_row_groups):
                        batch = parquet.read_row_group(group)
                        for row in zip(*self._values(batch, columns, file), strict=True):
                            out.write_row((owner_id, *row))
                        if columns is CHUNKS:
                            self.progress.update(len(batch))

    def _values(self, batch: Any, columns: Columns, file: ShardFile) -> list[list[Any]]:
        """A list for each column, ready for COPY: bytes go over the wire as they are."""
        batch = batch.combine_chunks()
        if any(batch.column(name).null_count for name in columns):
            raise _damaged(self.folder, f"{file.name} has values that are missing")
        if columns is CHUNKS and not _spans_fit(batch):
            raise _damaged(self.folder, f"{file.name} has a chunk whose text is not as long as its span")
        values = []
        for name, kind in columns.items():
            if kind == "vector":
                values.append(self._wire_vectors(batch.column(name), file))
            elif kind == "jsonb":
                values.append([JSONB_VERSION + text.encode() for text in batch.column(name).to_pylist()])
            else:
                values.append(batch.column(name).to_pylist())
        return values

    def _wire_vectors(self, column: Any, file: ShardFile) -> list[bytes]:
        """pgvector's binary form. Raises DumpError for a vector that is not finite and of norm 1."""
        dim = column.type.list_size
        matrix = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        norms = np.linalg.norm(matrix.astype(np.float64), axis=1)
        fits = np.abs(norms - 1) <= NORM_TOLERANCE  # False for NaN and infinity too
        if not fits.all():
            raise _damaged(
                self.folder, f"{file.name} has a vector of norm {norms[~fits][0]:.4g}, expected 1 and finite numbers"
            )
        header = np.array([dim, 0], ">u2").view(np.uint8)
        wire = np.empty((len(matrix), len(header) + 4 * dim), np.uint8)
        wire[:, : len(header)] = header
        wire[:, len(header) :] = matrix.astype(">f4").view(np.uint8).reshape(len(matrix), -1)
        return [row.tobytes() for row in wire]

    def _check_whole(self, g: Generation) -> None:
        """Each document of the generation has all its chunks and is in the collection, and no chunk is left over."""
        wrong = scalar(
            self.conn,
            sql.SQL(
                "select count(*) from (select doc_id, num_chunks from generation_documents where generation_id = {}) m"
                " full join (select doc_id, count(*) as num_found from {} group by doc_id) c using (doc_id)"
                " where coalesce(num_chunks, -1) <> coalesce(num_found, 0)"
                " or not exists (select from documents d where d.collection_id = {} and d.doc_id = m.doc_id)"
            ).format(sql.Literal(g.generation_id), g.table, sql.Literal(self.collection_id)),
        )
        if wrong:
            raise _damaged(self.folder, f"{wrong} documents do not have the chunks that the dump says they have")
        opened = scalar(
            self.conn,
            sql.SQL(
                "select count(*) from {} c join documents d on d.collection_id = {} and d.doc_id = c.doc_id"
                " where (c.tenant, c.labels) is distinct from (d.tenant, d.labels)"
            ).format(g.table, sql.Literal(self.collection_id)),
        )
        if opened:
            raise _damaged(self.folder, f"{opened} chunks have another tenant or other labels than their document")


def _spans_fit(batch: Any) -> bool:
    import pyarrow.compute as pc

    starts, ends = (batch.column(name).to_numpy().astype(np.int64) for name in ("start_char", "end_char"))
    lengths = pc.utf8_length(batch.column("text")).to_numpy()
    return bool(((starts >= 0) & (ends - starts == lengths)).all())


def _switch(
    conn: psycopg.Connection[Any], collection_id: int, name: str, generations: list[Generation], is_replacing: bool
) -> None:
    """The last statements: locks that others could wait for are taken here only."""
    for g in generations:
        attach = sql.SQL("alter table chunks attach partition {} for values in ({})")
        conn.execute(attach.format(g.table, sql.Literal(g.generation_id)))
        conn.execute(sql.SQL("alter table {} drop constraint attached").format(g.table))
    if is_replacing:
        conn.execute("delete from collections where name = %s", [name])  # its chunks: see sweep
    try:
        conn.execute("update collections set name = %s where collection_id = %s", [name, collection_id])
    except psycopg.errors.UniqueViolation:
        raise _exists(name) from None
