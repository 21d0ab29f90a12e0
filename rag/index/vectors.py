"""Nearest vectors in one generation: the HNSW index, the exact scan, and how far they agree. SQL, no model."""

import time
from typing import Any

import numpy as np
import psutil
import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row

from rag.index.store import Generation, Store, scalar

HNSW_MIN_CHUNKS = 1000  # below it an exact scan takes about a millisecond
HNSW_M, HNSW_EF_CONSTRUCTION = 16, 64  # pgvector's defaults; recall@10 .998 at ef_search 100 on 100,000 chunks


def build_hnsw(store: Store, generation: Generation) -> dict[str, Any]:
    """HNSW over half-precision vectors, built after the bulk load; returns what it cost.

    Half precision halves the index at the same recall (see docs/concepts.md); scores stay exact, since the hits
    are scored again on the full vectors.
    """
    with store.pool.connection() as conn:
        return create_hnsw(conn, generation)


def create_hnsw(conn: psycopg.Connection[Any], generation: Generation) -> dict[str, Any]:
    """The same within a transaction of the caller's."""
    name = f"chunks_{generation.generation_id}_hnsw"
    with conn.transaction():
        conn.execute("select pg_advisory_xact_lock(%s, %s)", [2, generation.generation_id])
        if scalar(conn, "select to_regclass(%s)", [name]) is not None:
            return {}
        count = sql.SQL("select count(*) from {}").format(generation.table)
        num_chunks = scalar(conn, count)
        if num_chunks < HNSW_MIN_CHUNKS:
            return {}
        started = time.monotonic()
        conn.execute(f"set local maintenance_work_mem = '{_index_memory_mb(num_chunks, generation.dim)}MB'")
        conn.execute(f"set local max_parallel_maintenance_workers = {max(0, (psutil.cpu_count() or 1) - 1)}")
        conn.execute(
            sql.SQL(
                "create index {} on {} using hnsw ((embedding::halfvec({})) halfvec_ip_ops)"
                f" with (m = {HNSW_M}, ef_construction = {HNSW_EF_CONSTRUCTION})"
            ).format(sql.Identifier(name), generation.table, sql.Literal(generation.dim))
        )
        conn.execute(sql.SQL("analyze {}").format(generation.table))
    return {"hnsw_chunks": num_chunks, "hnsw_seconds": round(time.monotonic() - started, 2)}


def nearest(
    store: Store, generation: Generation, query: np.ndarray, k: int, ef_search: int = 100, exact: bool = False
) -> list[tuple[float, Any]]:
    """The k chunks nearest to `query`, (dim,) float32 and L2-normalised: [(cosine, row)], best first.

    Rows have chunk_id, source, title, text, start_char, end_char. Ties go by chunk_id. `exact` scans every
    chunk; otherwise HNSW answers where it has been built.
    """
    with store.pool.connection() as conn:
        return _nearest(conn, generation, query, k, ef_search, exact)


def _nearest(
    conn: psycopg.Connection[Any], generation: Generation, query: np.ndarray, k: int, ef_search: int, exact: bool
) -> list[tuple[float, Any]]:
    distance = sql.SQL(
        "embedding <#> %(query)s" if exact else "embedding::halfvec({0}) <#> %(query)s::halfvec({0})"
    ).format(sql.Literal(generation.dim))
    statement = sql.SQL(
        "with nearest as materialized (select * from {} where not is_duplicate order by {} limit %(k)s)"
        " select -(embedding <#> %(query)s) as score, chunk_id, source, title, text, start_char, end_char"
        " from nearest"
    ).format(generation.table, distance)
    with conn.transaction():
        # ef_search below k would return fewer than k hits; 1000 is pgvector's limit.
        conn.execute(f"set local hnsw.ef_search = {min(1000, max(ef_search, k))}")
        conn.execute("set local hnsw.iterative_scan = relaxed_order")
        with conn.cursor(row_factory=namedtuple_row) as cur:
            cur.execute(statement, {"query": np.asarray(query, np.float32), "k": k})
            rows: list[Any] = cur.fetchall()
    return [(float(row.score), row) for row in sorted(rows, key=lambda row: (-row.score, row.chunk_id))]


def recall(store: Store, generation: Generation, k: int = 10, num_queries: int = 50) -> float:
    """Recall@k of HNSW against the exact scan, over stored vectors as queries (their own chunk is easy to find)."""
    with store.pool.connection() as conn:
        return measure_recall(conn, generation, k, num_queries)


def measure_recall(conn: psycopg.Connection[Any], generation: Generation, k: int = 10, num_queries: int = 50) -> float:
    """The same within a transaction of the caller's."""
    sample = sql.SQL("select embedding from {} order by md5(chunk_id) limit %s").format(generation.table)
    queries = [row[0].to_numpy() for row in conn.execute(sample, [num_queries])]
    found = wanted = 0
    for query in queries:
        exact = {row.chunk_id for _, row in _nearest(conn, generation, query, k, 100, exact=True)}
        approximate = {row.chunk_id for _, row in _nearest(conn, generation, query, k, 100, exact=False)}
        found, wanted = found + len(exact & approximate), wanted + len(exact)
    return found / wanted if wanted else 1.0


def _index_memory_mb(num_chunks: int, dim: int) -> int:
    """The graph should fit: about 2 bytes a dimension and 600 bytes of links a chunk, never above a quarter of RAM."""
    needed = num_chunks * (2 * dim + 600) * 1.5 / 2**20
    return int(min(max(64, needed), psutil.virtual_memory().total / 4 / 2**20))
