"""The HNSW index of a generation: its parameters, its build after the bulk load, its recall. SQL, no model.

A loaded generation in; an index and what is to be known of it, in the generation's stats, out. An index is made
beside the one that it replaces, so readers always have one.
"""

import logging
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import psycopg
from psycopg import sql

from rag.config import IndexConfig
from rag.index.database import connect
from rag.index.store import Generation, Store, scalar
from rag.index.vectors import measure_recall
from rag.records import to_json

MIN_CHUNKS = 1000  # below it an exact scan takes about a millisecond
MAX_DIM = {"vector": 2000, "halfvec": 4000}  # of pgvector's HNSW
MIN_RECALL = 0.95
RETRY_EF_CONSTRUCTION = 256  # of the second build, where the first one found too little
GROWTH = 1.5  # chunks, as a multiple of those at the last measurement, from which recall is measured again
MEASURED_VECTORS = 5_000_000  # scanned for one measurement, at most: about ten seconds
BUILD_LOCK = 2  # advisory, with a generation's id

# What the stats of a generation say of its index.
STATS = {
    "vectors",
    "m",
    "ef_construction",
    "ef_search",
    "recall@10",
    "recall_chunks",
    "notice",
    "hnsw_chunks",
    "hnsw_seconds",
    "hnsw_bytes",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parameters:
    """How an index is built."""

    vectors: str  # halfvec or vector: what the graph is made of
    m: int  # links of a chunk
    ef_construction: int  # candidates looked at for them


def choose_parameters(num_chunks: int, dim: int, config: IndexConfig) -> Parameters | None:
    """By size, where the configuration leaves it open; None where pgvector has no index for so many dimensions."""
    if dim > MAX_DIM["halfvec"]:
        return None
    # Half precision halves the index at the same recall; hits are scored again on the full vectors.
    vectors = "vector" if config.vectors == "vector" and dim <= MAX_DIM["vector"] else "halfvec"
    m, ef_construction = (16, 64) if num_chunks <= 100_000 else (16, 128) if num_chunks <= 1_000_000 else (24, 200)
    m = config.m or min(m, (config.ef_construction or ef_construction) // 2)
    return Parameters(vectors, m, config.ef_construction or max(ef_construction, 2 * m))


def update_hnsw(store: Store, generation: Generation, config: IndexConfig, ef_search: int) -> dict[str, Any]:
    """Gives a loaded generation its index, or measures the one it has again where the generation has grown much.

    Returns what it has added to the generation's stats; {} where there was nothing to do. An index is built once; again
    where `config` asks for other parameters, and once with more candidates where recall is below MIN_RECALL.
    """
    num_chunks = store.counts(generation)["chunks"]
    if num_chunks < MIN_CHUNKS:
        return {}
    wanted = choose_parameters(num_chunks, generation.dim, config)
    if wanted is None:
        return {"notice": f"searched exactly: {generation.dim} dimensions, HNSW has {MAX_DIM['halfvec']} at most"}
    stats: dict[str, Any] = {}
    if _is_other(generation.stats, wanted, config):
        stats = _build(store, generation, wanted)
    elif num_chunks < GROWTH * generation.stats.get("recall_chunks", 0):
        return {}
    stats |= _measure(store, generation, stats, num_chunks, ef_search)
    ef_construction = (generation.stats | stats)["ef_construction"]
    if stats["recall@10"] < MIN_RECALL and not config.ef_construction and ef_construction < RETRY_EF_CONSTRUCTION:
        current = Parameters(**{name: (generation.stats | stats)[name] for name in asdict(wanted)})
        stats |= _build(store, generation, replace(current, ef_construction=RETRY_EF_CONSTRUCTION))
        stats |= _measure(store, generation, stats, num_chunks, ef_search)
    if stats["recall@10"] < MIN_RECALL:
        log.warning(
            "index %d: HNSW finds %.1f %% of the nearest chunks (expected %.0f %%) with search.ef_search %d; raise it,"
            " or set index.ef_construction and ingest again",
            generation.generation_id,
            100 * stats["recall@10"],
            100 * MIN_RECALL,
            ef_search,
        )
    return stats


def _is_other(stats: dict[str, Any], wanted: Parameters, config: IndexConfig) -> bool:
    """Whether there is no index, or one that differs in what the configuration names."""
    if "vectors" not in stats:
        return True
    named = {
        "vectors": config.vectors != "auto",
        "m": config.m is not None,
        "ef_construction": config.ef_construction is not None,
    }
    return any(named[name] and stats[name] != value for name, value in asdict(wanted).items())


def _measure(
    store: Store, generation: Generation, stats: dict[str, Any], num_chunks: int, ef_search: int
) -> dict[str, Any]:
    with store.pool.connection() as conn:
        return measure_hnsw(conn, replace(generation, stats=generation.stats | stats), num_chunks, ef_search)


def measure_hnsw(
    conn: psycopg.Connection[Any], generation: Generation, num_chunks: int, ef_search: int
) -> dict[str, Any]:
    """Recall of the index, and how it was measured, in a transaction of the caller's; returns what it has put into
    the generation's stats."""
    num_queries = max(10, min(50, MEASURED_VECTORS // num_chunks))
    found = measure_recall(conn, generation, 10, num_queries, ef_search)
    measured = {"recall@10": round(found, 4), "ef_search": ef_search, "recall_chunks": num_chunks}
    _remember(conn, generation, measured)
    return measured


def _build(store: Store, generation: Generation, parameters: Parameters) -> dict[str, Any]:
    """Builds the index beside the one there is, which goes when readers have the new one."""
    with store.pool.connection() as conn:
        stats = create_hnsw(conn, generation, parameters)
    _drop_others(store, generation, _name(generation, parameters))
    return stats


def create_hnsw(conn: psycopg.Connection[Any], generation: Generation, parameters: Parameters) -> dict[str, Any]:
    """Builds the index in a transaction, or in the one of the caller's; returns what it has put into the stats."""
    p, name = parameters, _name(generation, parameters)
    statement = sql.SQL(
        "create index if not exists {} on {} using hnsw ((embedding::{}({})) {}) with (m = {}, ef_construction = {})"
    ).format(
        sql.Identifier(name),
        generation.table,
        sql.SQL(p.vectors),
        sql.Literal(generation.dim),
        sql.SQL(f"{p.vectors}_ip_ops"),
        sql.Literal(p.m),
        sql.Literal(p.ef_construction),
    )
    started = time.monotonic()
    with conn.transaction():
        conn.execute("select pg_advisory_xact_lock(%s, %s)", [BUILD_LOCK, generation.generation_id])
        num_chunks = scalar(conn, sql.SQL("select count(*) from {}").format(generation.table))
        _set_resources(conn, num_chunks, generation.dim, p)
        notices = _create(conn, statement)
        conn.execute(sql.SQL("analyze {}").format(generation.table))
        stats = asdict(p) | {
            "hnsw_chunks": num_chunks,
            "hnsw_seconds": round(time.monotonic() - started, 2),
            "hnsw_bytes": scalar(conn, "select pg_relation_size(to_regclass(%s))", [name]),
            "notice": "; ".join(notices),
        }
        _remember(conn, generation, stats)  # in the same transaction: readers order by the type that the index has
    return stats


def _remember(conn: psycopg.Connection[Any], generation: Generation, stats: dict[str, Any]) -> None:
    conn.execute(
        "update generations set stats = stats || %s where generation_id = %s",
        [to_json(stats), generation.generation_id],
    )


def _name(generation: Generation, p: Parameters) -> str:
    return f"chunks_{generation.generation_id}_hnsw_{p.vectors}_{p.m}_{p.ef_construction}"


def _create(conn: psycopg.Connection[Any], statement: sql.Composed) -> list[str]:
    """Runs it and returns the server's notices: that the graph did not fit is worth knowing."""
    notices: list[str] = []

    def note(notice: psycopg.errors.Diagnostic) -> None:
        if "hnsw" in (notice.message_primary or ""):
            notices.append(notice.message_primary or "")

    conn.add_notice_handler(note)
    try:
        with conn.transaction():
            conn.execute(statement)
    except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory):
        # Workers share the graph in /dev/shm, of which a container may have 64 MB; one process needs none.
        conn.execute("set local max_parallel_maintenance_workers = 0")
        conn.execute(statement)
        notices.append("built by one process: the server has too little shared memory")
    finally:
        conn.remove_notice_handler(note)
    return notices


def _set_resources(conn: psycopg.Connection[Any], num_chunks: int, dim: int, parameters: Parameters) -> None:
    """Memory for the whole graph, and on this machine all CPUs; another's administrator has chosen for it."""
    needed = graph_mb(num_chunks, dim, parameters)
    if conn.info.host.startswith("/"):  # a Unix socket
        limit = psutil.virtual_memory().total / 4 / 2**20
        conn.execute(f"set local max_parallel_maintenance_workers = {max(0, (psutil.cpu_count() or 1) - 1)}")
    else:  # its cache is the only hint at its memory
        limit = scalar(conn, "select pg_size_bytes(current_setting('effective_cache_size'))") / 4 / 2**20
    current = scalar(conn, "select pg_size_bytes(current_setting('maintenance_work_mem'))") / 2**20
    conn.execute(f"set local maintenance_work_mem = '{int(max(current, min(needed, limit)))}MB'")


def graph_mb(num_chunks: int, dim: int, parameters: Parameters) -> float:
    """What the graph takes while it is built; measured with pgvector 0.8.6, a tenth and the shared parts added."""
    element = {"vector": 4, "halfvec": 2}[parameters.vectors] * dim
    return num_chunks * (element + 200 + 32 * parameters.m) * 1.1 / 2**20 + 8


def _drop_others(store: Store, generation: Generation, name: str) -> None:
    """Takes away the index that was replaced, without blocking readers; what is in use goes with the next build."""
    with connect(store.url) as conn:
        conn.autocommit = True
        conn.execute("set lock_timeout = '5s'")
        others = conn.execute(
            "select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam"
            " where i.indrelid = to_regclass(%s) and a.amname = 'hnsw' and c.relname <> %s",
            [f"chunks_{generation.generation_id}", name],
        ).fetchall()
        for (other,) in others:
            try:
                conn.execute(sql.SQL("drop index concurrently {}").format(sql.Identifier(other)))
            except psycopg.errors.LockNotAvailable as reason:
                log.info("index %s is still used and stays for now: %s", other, reason)
