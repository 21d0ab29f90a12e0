"""Index generations: made, listed, made live, rolled back. SQL; knows no Ray, no model and no vectors.

    building ──activate──► live ──another goes live──► retired ──activate, rollback──► live
        └─────drop──────►  gone  ◄──────drop, collect─────┘           (rag.index.drop)

Readers take no lock: they choose the live generation and read it, by `read_live` where that can take a moment.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from rag.errors import NotAllowed, NotFound
from rag.index.access import protect
from rag.index.store import WHOLE_ROWS, Generation, Store, scalar
from rag.records import to_json

NUM_SHOWN = 10  # collections named in an error
COLLECTION_LOCK = 1  # advisory, with a collection's id: creating and forgetting its generations

Rows = TypeVar("Rows")
Conn = psycopg.Connection[Any]

_GENERATION = """
    select g.generation_id, g.collection_id, c.name as collection, g.config, g.fingerprint, g.dim, g.state, g.stats,
           coalesce(g.generation_id = c.live_generation_id, false) as is_live,
           g.created_at, g.live_since, g.retired_at, c.settings
    from generations g join collections c using (collection_id)
"""


# Reading


def generations(store: Store, collection: str) -> list[Generation]:
    """Oldest first. Raises NotFound for an unknown collection."""
    found = select_generations(store, "where c.name = %s order by g.generation_id", collection)
    if not found:
        _check_collection(store, collection)
    return found


def find_generation(store: Store, generation_id: int) -> Generation:
    """Raises NotFound."""
    found = select_generations(store, "where g.generation_id = %s", generation_id)
    if not found:
        raise NotFound(f"no index {generation_id}; `rag index list` shows what there is")
    return found[0]


def live_generation(store: Store, collection: str) -> Generation:
    """The generation readers use. Raises NotFound."""
    found = select_generations(store, "where c.name = %s and g.generation_id = c.live_generation_id", collection)
    if found:
        return found[0]
    _check_collection(store, collection)
    raise NotFound(
        f"collection {collection!r} has no finished index yet; run `rag ingest SOURCE --collection {collection}`"
    )


def read_live(store: Store, generation: Generation, read: Callable[[Generation], Rows]) -> Rows:
    """What `read` finds in `generation`, the live one when the caller looked, or in the one that is live by now.

    It reads again only where nothing was found and another generation went live: the one it chose was dropped.
    """
    while True:
        missing: psycopg.errors.UndefinedTable | None = None
        try:
            rows = read(generation)
            if rows:
                return rows
        except psycopg.errors.UndefinedTable as error:
            missing = error
        latest = live_generation(store, generation.collection)
        if latest.generation_id == generation.generation_id:
            if missing:
                raise missing
            return rows
        generation = latest


def details(store: Store, generation: Generation) -> dict[str, Any]:
    """What `rag index list` shows beside the record: bytes on disk, documents behind, the last write.

    A document is behind where this generation lacks it or holds an older text than the newest one ingested.
    """
    with store.pool.connection() as conn:
        num_behind = scalar(
            conn,
            "select count(*) from documents d left join generation_documents m"
            " on m.generation_id = %s and m.doc_id = d.doc_id"
            " where d.collection_id = %s and m.content_hash is distinct from d.content_hash",
            [generation.generation_id, generation.collection_id],
        )
        num_bytes = scalar(
            conn, "select pg_total_relation_size(to_regclass(%s))", [f"chunks_{generation.generation_id}"]
        )
        written_at, idle_days = conn.execute(
            "select at, extract(day from now() - at)::int from (select coalesce(max(indexed_at), %s) as at"
            " from generation_documents where generation_id = %s) m",
            [generation.created_at, generation.generation_id],
        ).fetchone() or (None, 0)
    return {"documents_behind": num_behind, "bytes": num_bytes or 0, "written_at": written_at, "idle_days": idle_days}


def select_generations(store: Store, where: str, key: str | int) -> list[Generation]:
    with store.pool.connection() as conn, conn.cursor(row_factory=class_row(Generation)) as cur:
        return cur.execute(_GENERATION + where, [key]).fetchall()


def _check_collection(store: Store, collection: str) -> None:
    names = store.collections()
    if collection not in names:
        raise NotFound(
            f"no collection named {collection!r} (known: {_shown(names)});"
            f" run `rag ingest SOURCE --collection {collection}`"
        )


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more or "none yet"


# Building


def ensure_generation(
    store: Store, collection: str, config: dict[str, Any], fingerprint: dict[str, Any], dim: int
) -> Generation:
    """The generation built by exactly this config and embedder; a new one is `building`, beside the live one.

    It is held by `store`, so that nobody drops it, until it goes live or the store is closed.
    """
    collection_id = store.ensure_collection(collection)
    with store.pool.connection() as conn:
        # Two jobs that start at once must not both create it, and nobody may drop it before it is held.
        conn.execute("select pg_advisory_xact_lock(%s, %s)", [COLLECTION_LOCK, collection_id])
        key = [collection_id, to_json(config), to_json(fingerprint)]
        found = conn.execute(
            "select generation_id from generations where collection_id = %s and config = %s and fingerprint = %s", key
        ).fetchone()
        generation_id = int(found[0]) if found else _create(conn, key, dim)
        store.hold(generation_id)
    return find_generation(store, generation_id)


def _create(conn: Conn, key: list[Any], dim: int) -> int:
    """A row and its partition. `create table ... partition of` would wait for whoever reads any generation through
    the partitioned table, and they for it; a table of its own that is attached waits for nobody."""
    generation_id = scalar(
        conn,
        "insert into generations (collection_id, config, fingerprint, dim) values (%s, %s, %s, %s)"
        " returning generation_id",
        [*key, dim],
    )
    names = {"table": sql.Identifier(f"chunks_{generation_id}"), "id": sql.Literal(generation_id)}
    conn.execute(
        sql.SQL(
            "create table {table} (like chunks including defaults including generated including constraints"
            " including storage, check (vector_dims(embedding) = {dim})) {whole_rows}"
        ).format(dim=sql.Literal(dim), whole_rows=WHOLE_ROWS, **names)
    )
    protect(conn, names["table"])
    conn.execute(sql.SQL("alter table chunks attach partition {table} for values in ({id})").format(**names))
    return int(generation_id)


# Switching


def activate(store: Store, generation: Generation, stats: dict[str, Any], seen_live: int | None = None) -> bool:
    """Finishes a generation that was built: it is live, `stats` are added to its own, and it is held no more.

    Readers see the old one or this one, nothing between. False where another than `seen_live` has been made live
    meanwhile: whoever did that meant it, and this one waits, ready, for a switch.
    """
    with store.pool.connection() as conn, conn.transaction():
        live_id, _ = lock_live(conn, generation.collection_id)
        is_wanted = seen_live is None or live_id in (seen_live, generation.generation_id)
        if is_wanted:
            _switch(conn, generation)
        conn.execute(
            "update generations set stats = stats || %s, ready_at = coalesce(ready_at, now()),"
            " state = case state when 'building' then 'ready' else state end where generation_id = %s",
            [to_json(stats), generation.generation_id],
        )
    store.release(generation.generation_id)
    return is_wanted


def switch(store: Store, generation_id: int) -> Generation:
    """Makes a finished generation live. Raises NotFound, NotAllowed."""
    generation = find_generation(store, generation_id)
    if generation.state == "building":
        raise NotAllowed(
            f"index {generation_id} of {generation.collection!r} is not finished; run `rag ingest` with its settings"
            f" to finish it, or `rag index drop {generation_id}`"
        )
    with store.pool.connection() as conn, conn.transaction():
        _switch(conn, generation)
    return find_generation(store, generation_id)


def rollback(store: Store, collection: str) -> Generation:
    """Makes the generation live that was live before this one; again, and it is the one before that.

    Drops nothing. What was dropped meanwhile is passed over. Raises NotFound, NotAllowed.
    """
    live = live_generation(store, collection)
    with store.pool.connection() as conn, conn.transaction():
        live_id, _ = lock_live(conn, live.collection_id)
        target = conn.execute(
            "with recursive back as ("
            "  (select generation_id, previous_id, 0 as steps from activations where collection_id = %s"
            "   order by activation_id desc limit 1)"
            "  union all select a.generation_id, a.previous_id, steps + 1"
            "  from back join activations a on a.activation_id = back.previous_id)"
            " select generation_id, previous_id from back join generations using (generation_id)"
            " where generation_id <> %s order by steps limit 1",
            [live.collection_id, live_id],
        ).fetchone()
        if target is None:
            raise NotAllowed(
                f"collection {collection!r} has no other index that was live; `rag index list -c {collection}` shows"
                " what there is, and `rag index activate ID` makes one live"
            )
        make_live(conn, live.collection_id, live_id, target[0], target[1])
    return find_generation(store, target[0])


def _switch(conn: Conn, generation: Generation) -> None:
    live_id, activation_id = lock_live(conn, generation.collection_id)
    if live_id != generation.generation_id:
        make_live(conn, generation.collection_id, live_id, generation.generation_id, activation_id)


def lock_live(conn: Conn, collection_id: int) -> tuple[int | None, int | None]:
    """(the live generation, its activation), which stay so until the transaction ends; readers are not blocked."""
    live_id = scalar(
        conn,
        "select live_generation_id from collections where collection_id = %s for no key update",
        [collection_id],
    )
    return live_id, scalar(conn, "select max(activation_id) from activations where collection_id = %s", [collection_id])


def make_live(conn: Conn, collection_id: int, old_id: int | None, new_id: int, previous_id: int | None) -> None:
    """The one atomic switch. `previous_id` is the activation that a rollback goes to."""
    done = conn.execute(
        "update generations set state = 'ready', live_since = clock_timestamp(), retired_at = null"
        " where generation_id = %s",
        [new_id],
    )
    if not done.rowcount:
        raise NotFound(f"index {new_id} has been dropped meanwhile; `rag index list` shows what there is")
    conn.execute(
        "update generations set state = 'retired', retired_at = clock_timestamp() where generation_id = %s", [old_id]
    )
    conn.execute(
        "insert into activations (collection_id, generation_id, previous_id) values (%s, %s, %s)",
        [collection_id, new_id, previous_id],
    )
    conn.execute("update collections set live_generation_id = %s where collection_id = %s", [new_id, collection_id])
