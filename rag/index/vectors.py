"""Nearest vectors in one generation: the HNSW index, the exact scan, and how far they agree. SQL, no model.

What a caller may see and a filter asks for is in rag.index.restricted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row

from rag.index.access import reading_as
from rag.index.filters import Filter
from rag.index.restricted import (
    Chunks,
    Restriction,
    along_graph,
    every_chunk,
    steps_worth_taking,
    through_documents,
)
from rag.index.store import Generation, Store
from rag.records import Access

DEPTH = 2  # candidates that the graph is followed for, where one hit is wanted: at 1 the last hits are often missed
OVERFETCH = 4  # candidates for a hit where a filter makes the graph's order less sure
MAX_EF_SEARCH = 1000  # pgvector's

# Whatever the planner thinks of a condition, the way was chosen here: by the graph, and no sorting of a whole table.
_BY_GRAPH = (
    "select set_config('hnsw.ef_search', %s, true), set_config('hnsw.iterative_scan', %s, true),"
    " set_config('hnsw.max_scan_tuples', %s, true), set_config('enable_seqscan', 'off', true),"
    " set_config('enable_sort', 'off', true), set_config('jit', 'off', true)"
)


def nearest(  # noqa: PLR0913 - what is searched, how, and for whom
    store: Store,
    generation: Generation,
    query: np.ndarray,
    k: int,
    ef_search: int = 100,
    exact: bool = False,
    filter: Filter | None = None,
    access: Access | None = None,
) -> list[tuple[float, Any]]:
    """The k chunks nearest to `query`, (dim,) float32 and L2-normalised: [(cosine, row)], best first.

    Rows have chunk_id, source, title, text, start_char, end_char. Ties go by chunk_id. `exact` scans every chunk that
    `filter` and `access` leave; otherwise HNSW answers where it has been built and is the better way. No access means
    the operator, who sees everything. Raises ConfigError for a tenant or label that no document can have.
    """
    restriction = Restriction(filter, access)
    num_wanted, max_steps = k * OVERFETCH, 0
    if restriction and not exact and "vectors" in generation.stats:
        max_steps = steps_worth_taking(store, generation, restriction, num_wanted)
    with store.reading() as conn, reading_as(conn, access):
        if not restriction:
            return _nearest(conn, generation, query, k, ef_search, exact)
        if max_steps:
            graph = Graph(generation, max(2 * ef_search, max_steps), max_steps)
            rows = _by_graph(conn, graph, along_graph(generation, restriction), query, num_wanted)
            if len(rows) >= num_wanted:
                return _ranked(rows, k)
        # Few chunks, or the graph gave up on its way to chunks that are all far from the query.
        return _ranked(_by_scan(conn, through_documents(generation, restriction), query, k), k)


def _nearest(
    conn: psycopg.Connection[Any], generation: Generation, query: np.ndarray, k: int, ef_search: int, exact: bool
) -> list[tuple[float, Any]]:
    """The same without restriction, within a transaction of the caller's."""
    chunks = every_chunk(generation)
    if exact or "vectors" not in generation.stats:
        return _ranked(_by_scan(conn, chunks, query, k), k)
    return _ranked(_by_graph(conn, Graph(generation, max(ef_search, DEPTH * k)), chunks, query, k), k)


def _by_scan(conn: psycopg.Connection[Any], chunks: Chunks, query: np.ndarray, k: int) -> list[Any]:
    return _read(conn, chunks, sql.SQL("c.embedding <#> %(query)s"), query, k)


@dataclass(frozen=True)
class Graph:
    """How far the index is followed. `ef_search` below the number of rows wanted would give fewer."""

    generation: Generation
    ef_search: int
    max_steps: int = 20_000  # pgvector's default; near copies alone are passed over without a restriction

    @property
    def iterative_scan(self) -> str:
        """Off where one look is enough. Going on, pgvector ends with whatever it has met, however far from the query,
        and nobody could tell that from a search that found what it should."""
        return "off" if self.max_steps <= 1.4 * MAX_EF_SEARCH else "relaxed_order"


def _by_graph(
    conn: psycopg.Connection[Any], graph: Graph, chunks: Chunks, query: np.ndarray, num_wanted: int
) -> list[Any]:
    """Candidates by the type that the index was built over, within a transaction of the caller's."""
    distance = sql.SQL("c.embedding::{0}({1}) <#> %(query)s::{0}({1})").format(
        sql.SQL(graph.generation.stats["vectors"]), sql.Literal(graph.generation.dim)
    )
    ef_search = str(min(MAX_EF_SEARCH, graph.ef_search))
    conn.execute(_BY_GRAPH, [ef_search, graph.iterative_scan, str(graph.max_steps)])
    return _read(conn, chunks, distance, query, num_wanted)


def _read(
    conn: psycopg.Connection[Any], chunks: Chunks, distance: sql.Composable, query: np.ndarray, k: int
) -> list[Any]:
    statement = sql.SQL(
        "with nearest as materialized (select c.chunk_id, c.source, c.title, c.text, c.start_char, c.end_char,"
        " c.embedding from {source} where not c.is_duplicate and {condition} order by {distance} limit %(k)s)"
        " select -(embedding <#> %(query)s) as score, chunk_id, source, title, text, start_char, end_char from nearest"
    ).format(source=chunks.source, condition=chunks.condition, distance=distance)
    with conn.cursor(row_factory=namedtuple_row, binary=True) as cur:
        cur.execute(statement, {"query": np.asarray(query, np.float32), "k": k, **chunks.params})
        return cur.fetchall()


def _ranked(rows: list[Any], k: int) -> list[tuple[float, Any]]:
    best = sorted(rows, key=lambda row: (-row.score, row.chunk_id))[:k]
    return [(float(row.score), row) for row in best]


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


def read_chunks(
    store: Store,
    generation: Generation,
    chunk_ids: Sequence[str],
    query: np.ndarray | None = None,
    restriction: Restriction | None = None,
) -> list[tuple[float, Any]]:
    """Those of the named chunks that are there and that the restriction leaves, in no order: [(cosine, row)].

    The cosine is 0 where there is no `query`.
    """
    if not chunk_ids:
        return []
    restriction = restriction or Restriction()
    chunks = along_graph(generation, restriction) if restriction else every_chunk(generation)
    statement = sql.SQL(
        "select {score} as score, c.chunk_id, c.source, c.title, c.text, c.start_char, c.end_char from {source}"
        " where c.generation_id = {id} and c.chunk_id = any(%(chunk_ids)s) and not c.is_duplicate and {condition}"
    ).format(
        score=sql.SQL("0.0" if query is None else "-(c.embedding <#> %(query)s)"),
        source=chunks.source,
        id=sql.Literal(generation.generation_id),
        condition=chunks.condition,
    )
    params = {"chunk_ids": list(chunk_ids), **chunks.params}
    if query is not None:
        params["query"] = np.asarray(query, np.float32)
    with (
        store.reading() as conn,
        reading_as(conn, restriction.access),
        conn.cursor(row_factory=namedtuple_row, binary=True) as cur,
    ):
        rows: list[Any] = cur.execute(statement, params).fetchall()
    return [(float(row.score), row) for row in rows]
