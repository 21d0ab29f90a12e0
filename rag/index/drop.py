"""Generations that nobody needs: dropped on request, or collected when newer ones have retired. SQL only.

First a generation is forgotten, in one transaction: from then on nobody can choose it. Then its table is taken away
without blocking anyone. A reader that had chosen it a moment before still finds the table, or finds by `read_live`
what is live now. What cannot be taken away at once, since somebody still reads it, goes with a later sweep.
"""

import logging
import time
from typing import Any

import psycopg
from psycopg import sql

from rag.errors import NotAllowed
from rag.index.database import connect
from rag.index.generations import COLLECTION_LOCK, find_generation, lock_live, select_generations
from rag.index.store import WRITER_LOCK, Generation, Store, scalar

SWEEP_LOCK = 5  # advisory: one process at a time takes tables away
SWEEP_ATTEMPTS = 10  # three seconds

BUSY = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)

log = logging.getLogger(__name__)


def drop(store: Store, generation_id: int) -> Generation:
    """Drops a generation that is not live; returns what it was. Raises NotFound, NotAllowed."""
    generation = find_generation(store, generation_id)
    try:
        _forget(store, generation)
    except BUSY:
        raise NotAllowed(f"index {generation_id} is in use by another command; run `rag index drop` again") from None
    sweep(store)
    return generation


def collect(store: Store, collection_id: int, keep: int) -> list[int]:
    """Drops the retired generations beyond the `keep` newest ones; returns their ids."""
    where = "where g.collection_id = %s and g.state = 'retired' order by g.retired_at desc nulls last, 1 desc"
    dropped = []
    for generation in select_generations(store, where, collection_id)[keep:]:
        try:
            _forget(store, generation)
            dropped.append(generation.generation_id)
        except (NotAllowed, *BUSY) as reason:  # the next switch collects it
            log.info("index %d stays for now: %s", generation.generation_id, reason)
    sweep(store)
    return dropped


def _forget(store: Store, generation: Generation) -> None:
    """Takes away everything but the chunks. Raises NotAllowed, or one of BUSY."""
    collection_id, generation_id = generation.collection_id, generation.generation_id
    with store.pool.connection() as conn, conn.transaction():
        conn.execute("set local lock_timeout = '5s'")
        conn.execute("select pg_advisory_xact_lock(%s, %s)", [COLLECTION_LOCK, collection_id])
        if lock_live(conn, collection_id)[0] == generation_id:
            raise NotAllowed(
                f"index {generation_id} is live in {generation.collection!r}; make another one live first:"
                f" `rag index rollback -c {generation.collection}` or `rag index activate ID`"
            )
        _lock_out_writers(conn, generation_id)
        conn.execute("delete from generations where generation_id = %s", [generation_id])
    _forget_documents(store, collection_id)


def _lock_out_writers(conn: psycopg.Connection[Any], generation_id: int) -> None:
    try:
        conn.execute("set local lock_timeout = '1s'")  # the server needs a moment to notice that a process was killed
        conn.execute("select pg_advisory_xact_lock(%s, %s)", [WRITER_LOCK, generation_id])
        conn.execute("set local lock_timeout = '5s'")
    except psycopg.errors.LockNotAvailable:
        raise NotAllowed(f"index {generation_id} is being written by an ingestion; wait for its end") from None


def _forget_documents(store: Store, collection_id: int) -> None:
    """Documents that only the dropped generation held.

    One that is written at this moment stays: the snapshot that found it in no generation is out of date then, and
    the transaction fails as a whole.
    """
    try:
        with store.pool.connection() as conn, conn.transaction():
            conn.execute("set transaction isolation level repeatable read")
            conn.execute("set local lock_timeout = '5s'")
            conn.execute(
                "delete from documents d where collection_id = %s and not exists (select 1 from generations g"
                " join generation_documents m using (generation_id)"
                " where g.collection_id = d.collection_id and m.doc_id = d.doc_id)",
                [collection_id],
            )
    except (psycopg.errors.SerializationFailure, *BUSY) as reason:
        log.info("documents that no index holds stay for now: %s", reason)


_FORGOTTEN = """
    select t.relname from pg_class t
    where t.relnamespace = (select relnamespace from pg_class where oid = 'chunks'::regclass)
      and t.relkind = 'r' and t.relname ~ '^chunks_[0-9]+$'
      and not exists (select 1 from generations g where 'chunks_' || g.generation_id = t.relname)
    order by 1
"""


def sweep(store: Store) -> list[str]:
    """Takes away the tables of forgotten generations; returns their names."""
    with connect(store.url) as conn:
        conn.autocommit = True
        if not scalar(conn, "select pg_try_advisory_lock(%s, 0)", [SWEEP_LOCK]):
            return []
        return [name for (name,) in conn.execute(_FORGOTTEN).fetchall() if _take_away(conn, name)]


def _take_away(conn: psycopg.Connection[Any], name: str) -> bool:
    """Whether it went. A drop locks the partitioned table too; who comes while it waits for the lock waits with it,
    so it gives up quickly and tries again."""
    conn.execute("set lock_timeout = '100ms'")
    for _ in range(SWEEP_ATTEMPTS):
        try:
            conn.execute(sql.SQL("drop table {}").format(sql.Identifier(name)))
            return True
        except BUSY:
            time.sleep(0.2)
    log.info("table %s is still read and stays for now", name)
    return False
