"""What each run did, which documents failed and why, and where a collection comes from. SQL; knows no Ray."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from psycopg.rows import class_row

from rag.errors import DatabaseError
from rag.index.database import connect
from rag.index.store import Generation, Store, scalar
from rag.ingest.sources import place_of_origin
from rag.records import Access, to_json

INGEST_LOCK = 6  # advisory, with a collection's id


@dataclass(frozen=True)
class Failure:
    """A document that could not be ingested, and why. No hash where it could not be read."""

    source: str
    reason: str
    content_hash: str = ""
    seconds: float = 0.0  # spent on it


@dataclass(frozen=True)
class Run:
    """One run of the ingestion job. `finished_at` is None while it runs, and after it was killed."""

    run_id: int
    origins: list[str]
    documents: dict[str, int]
    chunks_embedded: int
    seconds: float
    started_at: datetime
    finished_at: datetime | None


@contextmanager
def only_one(store: Store, collection_id: int, collection: str) -> Iterator[Callable[[], Any]]:
    """Holds the collection for one ingestion; gives what raises OperationalError where it is held no more.

    The lock goes with the connection, so a killed run leaves none, and a database that was started anew has none.
    Raises DatabaseError where another run has it.
    """
    with connect(store.url) as conn:
        conn.autocommit = True  # a transaction would stay open for the whole job
        if not scalar(conn, "select pg_try_advisory_lock(%s, %s)", [INGEST_LOCK, collection_id]):
            raise DatabaseError(
                f"another ingestion into {collection!r} is running; wait for its end, or use another --collection"
            )
        yield partial(scalar, conn, "select 1")


def start_run(
    store: Store, generation: Generation, origins: Sequence[str], access: Mapping[str, Access] | None = None
) -> int:
    """Remembers the origins, and by origin whose they are; another commit of a repository takes the place of the one
    before."""
    given = {origin: (access or {}).get(origin, Access()) for origin in origins}
    places = {place_of_origin(origin) for origin in origins}
    with store.pool.connection() as conn:
        known = conn.execute("select origin from origins where collection_id = %s", [generation.collection_id])
        replaced = [o for (o,) in known if o not in origins and place_of_origin(o) in places]
        conn.execute(
            "delete from origins where collection_id = %s and origin = any(%s)", [generation.collection_id, replaced]
        )
        conn.cursor().executemany(
            "insert into origins (collection_id, origin, tenant, labels) values (%s, %s, %s, %s)"
            " on conflict (collection_id, origin) do update set tenant = excluded.tenant, labels = excluded.labels",
            [(generation.collection_id, origin, a.tenant, list(a.labels)) for origin, a in given.items()],
        )
        return int(
            scalar(
                conn,
                "insert into runs (generation_id, origins) values (%s, %s) returning run_id",
                [generation.generation_id, list(origins)],
            )
        )


def finish_run(store: Store, run_id: int, documents: dict[str, int], chunks_embedded: int) -> None:
    with store.pool.connection() as conn:
        conn.execute(
            "update runs set documents = %s, chunks_embedded = %s, finished_at = clock_timestamp(),"
            " seconds = extract(epoch from clock_timestamp() - started_at) where run_id = %s",
            [to_json(documents), chunks_embedded, run_id],
        )


def last_run(store: Store, generation: Generation) -> Run | None:
    with store.pool.connection() as conn, conn.cursor(row_factory=class_row(Run)) as cur:
        cur.execute(
            "select run_id, origins, documents, chunks_embedded, seconds, started_at, finished_at from runs"
            " where generation_id = %s order by run_id desc limit 1",
            [generation.generation_id],
        )
        return cur.fetchone()


def origins(store: Store, collection: str) -> list[str]:
    """The sources a collection was made from, oldest first."""
    with store.pool.connection() as conn:
        rows = conn.execute(
            "select o.origin from origins o join collections c using (collection_id) where c.name = %s"
            " order by o.added_at, o.origin",
            [collection],
        )
        return [row[0] for row in rows]


def origin_access(store: Store, collection: str) -> dict[str, Access]:
    """What the documents of each place were given in its last run (`place_of_origin`)."""
    with store.pool.connection() as conn:
        rows = conn.execute(
            "select o.origin, o.tenant, o.labels from origins o join collections c using (collection_id)"
            " where c.name = %s",
            [collection],
        )
        return {place_of_origin(origin): Access(tenant, tuple(labels)) for origin, tenant, labels in rows}


def unfinished(store: Store, collection: str) -> list[str]:
    """The sources whose newest run has not ended: killed, or at work."""
    with store.pool.connection() as conn:
        rows = conn.execute(
            "select o.origin from origins o join collections c using (collection_id) where c.name = %s and ("
            "  select r.finished_at is null from runs r join generations g using (generation_id)"
            "  where g.collection_id = o.collection_id and o.origin = any(r.origins) order by r.run_id desc limit 1)"
            " order by o.added_at, o.origin",
            [collection],
        )
        return [row[0] for row in rows]


def forget_origins(store: Store, collection_id: int, forgotten: Sequence[str]) -> None:
    with store.pool.connection() as conn:
        conn.execute(
            "delete from origins where collection_id = %s and origin = any(%s)", [collection_id, list(forgotten)]
        )


def failures(store: Store, generation: Generation) -> list[Failure]:
    with store.pool.connection() as conn, conn.cursor(row_factory=class_row(Failure)) as cur:
        cur.execute(
            "select source, reason, content_hash, seconds from failures where generation_id = %s order by source",
            [generation.generation_id],
        )
        return cur.fetchall()


def write_failures(store: Store, generation: Generation, failed: Sequence[Failure]) -> None:
    with store.pool.connection() as conn, conn.cursor() as cur:
        cur.executemany(
            "insert into failures (generation_id, source, reason, content_hash, seconds) values (%s, %s, %s, %s, %s)"
            " on conflict (generation_id, md5(source)) do update set reason = excluded.reason,"
            " content_hash = excluded.content_hash, seconds = excluded.seconds, failed_at = now()",
            [(generation.generation_id, f.source, _storable(f.reason), f.content_hash, f.seconds) for f in failed],
        )


def forget_failures(store: Store, generation: Generation, sources: Sequence[str]) -> None:
    """Drops the entries of documents that got in, or that their source no longer lists."""
    with store.pool.connection() as conn:
        conn.execute(
            "delete from failures where generation_id = %s and source = any(%s)",
            [generation.generation_id, list(sources)],
        )


def run_json(run: Run | None) -> dict[str, Any] | None:
    if run is None:
        return None
    return {
        "origins": run.origins,
        "documents": run.documents,
        "chunks_embedded": run.chunks_embedded,
        "seconds": round(run.seconds, 2),
        "started_at": run.started_at.isoformat(timespec="seconds"),
        "finished_at": run.finished_at.isoformat(timespec="seconds") if run.finished_at else None,
    }


def _storable(text: str) -> str:
    """PostgreSQL's text holds neither NUL nor lone surrogates."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
