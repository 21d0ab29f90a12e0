"""Nearest vectors in one generation: the HNSW index, the exact scan, and how far they agree. SQL, no model."""

from typing import Any

import numpy as np
import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row

from rag.index.store import Generation, Store


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
    indexed = None if exact else generation.stats.get("vectors")  # the type that HNSW was built over, if it was
    distance = sql.SQL("embedding::{0}({1}) <#> %(query)s::{0}({1})" if indexed else "embedding <#> %(query)s").format(
        sql.SQL(indexed or ""), sql.Literal(generation.dim)
    )
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


def recall(store: Store, generation: Generation, k: int = 10, num_queries: int = 50, ef_search: int = 100) -> float:
    """Recall@k of HNSW against the exact scan, over stored vectors as queries, their own chunk left out.

    A chunk as near as the exact k-th counts as found: which of equal chunks comes first says nothing of the index.
    """
    with store.pool.connection() as conn:
        return measure_recall(conn, generation, k, num_queries, ef_search)


def measure_recall(
    conn: psycopg.Connection[Any], generation: Generation, k: int = 10, num_queries: int = 50, ef_search: int = 100
) -> float:
    """The same within a transaction of the caller's."""
    sample = sql.SQL("select chunk_id, embedding from {} order by md5(chunk_id) limit %s").format(generation.table)
    found = wanted = 0
    for chunk_id, embedding in conn.execute(sample, [num_queries]).fetchall():
        exact, approximate = (
            [
                score
                for score, row in _nearest(conn, generation, embedding.to_numpy(), k + 1, ef_search, scan)
                if row.chunk_id != chunk_id
            ][:k]
            for scan in (True, False)
        )
        found += sum(score >= exact[-1] - 1e-6 for score in approximate)
        wanted += len(exact)
    return found / wanted if wanted else 1.0
