"""A collection out of the database: a dump that `rag.index.load` takes in, or one JSON line a chunk.

Everything is read in one snapshot, so a dump taken while documents are written holds whole documents only. Rows are
streamed by COPY and kept in memory a row group at a time. The manifest is written last: without it there is no dump.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, BinaryIO

import numpy as np
import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row

from rag import __version__
from rag.errors import DumpError, NotFound
from rag.index.dump_folder import Folder, HashingWriter
from rag.index.dump_format import (
    CHUNKS,
    DOCUMENTS,
    FAILURES,
    GENERATION_DOCUMENTS,
    SECTIONS,
    CollectionSettings,
    Columns,
    GenerationPart,
    Manifest,
    MoveReport,
    ShardFile,
    TablePart,
    arrow_schema,
    report,
)
from rag.index.history import read_activations, read_origins
from rag.index.store import Store, scalar
from rag.progress import Progress

SHARD_ROWS = 100_000
GROUP_ROWS, GROUP_BYTES = 10_000, 8 * 2**20  # a row group is what a dump or a load holds in memory
VECTOR_HEADER_BYTES = 4  # pgvector's binary form: dim and a reserved field, 2 bytes each, then big-endian float32
REPEATED = {"doc_id", "section_id", "source", "title", "mime", "tenant"}  # worth a dictionary in Parquet


def dump_collection(
    store: Store, collection: str, to: str, all_generations: bool = False, shard_rows: int = SHARD_ROWS
) -> MoveReport:
    """Writes the live generation of a collection, or all of them, into the empty folder or URL `to`.

    Raises NotFound, DumpError.
    """
    started = time.monotonic()
    folder = Folder(to)
    with _snapshot(store) as conn:
        generations = _generations(conn, collection, all_generations)
        collection_id, index_ids = generations[0].collection_id, [g.generation_id for g in generations]
        folder.prepare()
        total = sum(g.num_chunks for g in generations)
        with folder.errors(), Progress("dump", total, "chunks") as progress:
            dump = _Dump(conn, folder, shard_rows, progress)
            manifest = Manifest(
                rag=__version__,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                collection=collection,
                settings=CollectionSettings(**generations[0].settings),
                origins=read_origins(conn, collection_id),
                activations=read_activations(conn, collection_id, index_ids),
                documents=dump.documents(generations),
                sections=dump.sections(generations),
                generations=tuple(dump.generation(g) for g in generations),
            )
    folder.write_manifest(manifest)
    return report(manifest, folder.shown, collection, index_ids, time.monotonic() - started)


def dump_jsonl(store: Store, collection: str, out: BinaryIO) -> int:
    """Writes a line for each chunk of the live generation, ordered by document and place; returns their number.

    {"source", "start", "end", "text", "document", "metadata"}: the span is in the section that `source` names.
    """
    with _snapshot(store) as conn:
        (generation,) = _generations(conn, collection, all_generations=False)
        statement = sql.SQL(
            'copy (select row_to_json(line)::text from (select c.source, c.start_char as start, c.end_char as "end",'
            " c.text, d.source as document, d.meta as metadata"
            " from {chunks} c join documents d on d.collection_id = {collection} and d.doc_id = c.doc_id"
            # A section that a newer index of the document no longer has: its chunks come after the others.
            " left join sections s on s.collection_id = {collection} and s.section_id = c.section_id"
            ' order by d.source collate "C", s.ordinal, c.source collate "C", c.start_char, c.chunk_id) line)'
            " to stdout (format binary)"
        ).format(chunks=_table(generation), collection=sql.Literal(generation.collection_id))
        num_chunks = 0
        with Progress("dump", generation.num_chunks, "chunks") as progress, conn.cursor().copy(statement) as rows:
            rows.set_types(["text"])
            for (line,) in rows.rows():
                out.write(line.encode() + b"\n")
                num_chunks += 1
                progress.update(1)
    return num_chunks


@contextmanager
def _snapshot(store: Store) -> Iterator[psycopg.Connection[Any]]:
    with store.pool.connection() as conn, conn.transaction():
        conn.execute("set transaction isolation level repeatable read, read only")
        try:
            yield conn
        except psycopg.errors.UndefinedTable:
            raise DumpError("an index generation was dropped while it was read; run the command again") from None


def _generations(conn: psycopg.Connection[Any], collection: str, all_generations: bool) -> list[Any]:
    """Rows of the generations to dump, oldest first. Raises NotFound."""
    with conn.cursor(row_factory=namedtuple_row) as cur:
        cur.execute(
            "select g.*, c.settings, g.generation_id is not distinct from c.live_generation_id as is_live,"
            " (select coalesce(sum(num_chunks), 0)::int8 from generation_documents m"
            "  where m.generation_id = g.generation_id) as num_chunks"
            " from generations g join collections c using (collection_id) where c.name = %s order by g.generation_id",
            [collection],
        )
        rows: list[Any] = cur.fetchall()
    found = [g for g in rows if all_generations or g.is_live]
    if found:
        return found
    if scalar(conn, "select exists (select from collections where name = %s)", [collection]):
        raise NotFound(f"collection {collection!r} has no finished index yet; finish `rag ingest` first")
    raise NotFound(f"no collection named {collection!r}; `rag status` lists those that exist")


def _table(generation: Any) -> sql.Identifier:
    return sql.Identifier(f"chunks_{generation.generation_id}")


@dataclass
class _Dump:
    """One dump on its way: reads a table, writes its files, remembers what they are."""

    conn: psycopg.Connection[Any]
    folder: Folder
    shard_rows: int
    progress: Progress

    def documents(self, generations: Sequence[Any]) -> TablePart:
        return self._write("documents", DOCUMENTS, self._of_collection("documents", generations))

    def sections(self, generations: Sequence[Any]) -> TablePart:
        return self._write("sections", SECTIONS, self._of_collection("sections", generations))

    def _of_collection(self, table: str, generations: Sequence[Any]) -> sql.Composed:
        """Of the documents that are wholly in one of the generations."""
        ids = [g.generation_id for g in generations]
        return sql.SQL(
            "{} t where collection_id = {} and exists (select from generation_documents m"
            " where m.generation_id = any({}) and m.doc_id = t.doc_id)"
        ).format(sql.Identifier(table), sql.Literal(generations[0].collection_id), sql.Literal(ids))

    def generation(self, g: Any) -> GenerationPart:
        name = f"generation-{g.generation_id}"
        mine = sql.SQL(" where generation_id = {}").format(sql.Literal(g.generation_id))
        return GenerationPart(
            index_id=g.generation_id,
            config=g.config,
            fingerprint=g.fingerprint,
            dim=g.dim,
            state=g.state,
            stats=g.stats,
            live=g.is_live,
            created_at=g.created_at,
            ready_at=g.ready_at,
            live_since=g.live_since,
            retired_at=g.retired_at,
            documents=self._write(
                f"{name}-documents", GENERATION_DOCUMENTS, sql.SQL("generation_documents") + mine, g.dim
            ),
            chunks=self._write(f"{name}-chunks", CHUNKS, sql.Composed([_table(g)]), g.dim),
            failures=self._write(f"{name}-failures", FAILURES, sql.SQL("failures") + mine, g.dim),
        )

    def _write(self, name: str, columns: Columns, rows_of: sql.Composed, dim: int = 0) -> TablePart:
        schema = arrow_schema(columns, dim)
        shards = _Shards(self.folder, name, schema, self.shard_rows)
        copy = sql.SQL("copy (select {} from {}) to stdout (format binary)").format(
            sql.SQL(", ").join(_selected(column, kind) for column, kind in columns.items()), rows_of
        )
        with shards, self.conn.cursor().copy(copy) as rows:
            rows.set_types([{"jsonb": "text", "vector": "bytea"}.get(kind, kind) for kind in columns.values()])
            for group in _groups(rows.rows(), min(GROUP_ROWS, self.shard_rows)):
                shards.write(_to_arrow(group, columns, schema, dim))
                if columns is CHUNKS:
                    self.progress.update(len(group))
        return TablePart(files=tuple(shards.files))


def _selected(column: str, kind: str) -> sql.Composed:
    """jsonb as its text, a vector as its bytes: read as they are, without an object for each number."""
    template = {"jsonb": "{}::text", "vector": "vector_send({})"}.get(kind, "{}")
    return sql.SQL(template).format(sql.Identifier(column))


def _groups(rows: Iterable[tuple[Any, ...]], max_rows: int) -> Iterator[list[tuple[Any, ...]]]:
    group: list[tuple[Any, ...]] = []
    num_bytes = 0
    for row in rows:
        group.append(row)
        num_bytes += sum(len(value) for value in row if isinstance(value, str | bytes))
        if len(group) >= max_rows or num_bytes >= GROUP_BYTES:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _to_arrow(group: list[tuple[Any, ...]], columns: Columns, schema: Any, dim: int) -> Any:
    import pyarrow as pa

    arrays = []
    for name, kind, values in zip(columns, columns.values(), zip(*group, strict=True), strict=True):
        if kind == "vector":
            width = VECTOR_HEADER_BYTES + 4 * dim
            wire = np.frombuffer(b"".join(values), np.uint8).reshape(len(group), width)
            floats = np.ascontiguousarray(wire[:, VECTOR_HEADER_BYTES:]).view(">f4").astype(np.float32)
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(floats.ravel()), dim))
        else:
            arrays.append(pa.array(values, schema.field(name).type))
    return pa.Table.from_arrays(arrays, schema=schema)


@dataclass
class _Shards:
    """The Parquet files of one table, at most `max_rows` rows each."""

    folder: Folder
    name: str
    schema: Any
    max_rows: int
    files: list[ShardFile] = field(default_factory=list)
    num_rows: int = 0
    file: Any = None
    sink: HashingWriter | None = None
    writer: Any = None

    def __enter__(self) -> "_Shards":
        return self

    def write(self, table: Any) -> None:
        if self.sink is not None and self.num_rows + len(table) > self.max_rows:
            self._finish()
        if self.sink is None:
            self._start()
        self.writer.write_table(table)
        self.num_rows += len(table)

    def _start(self) -> None:
        import pyarrow.parquet as pq

        self.file = self.folder.open(self._file_name(), "wb")
        self.sink = HashingWriter(self.file)
        self.writer = pq.ParquetWriter(
            self.sink,
            self.schema,
            compression="zstd",
            use_dictionary=[name for name in self.schema.names if name in REPEATED],
            use_byte_stream_split=["embedding.list.element"] if "embedding" in self.schema.names else False,
        )

    def _file_name(self) -> str:
        return f"{self.name}-{len(self.files):05d}.parquet"

    def _finish(self) -> None:
        assert self.sink is not None
        self.writer.close()
        self.file.close()
        self.files.append(
            ShardFile(
                name=self._file_name(),
                num_rows=self.num_rows,
                num_bytes=self.sink.num_bytes,
                sha256=self.sink.digest.hexdigest(),
            )
        )
        self.sink, self.num_rows = None, 0

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.sink is not None:
            self._finish()
        elif self.sink is not None:
            self.file.close()
