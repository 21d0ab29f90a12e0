"""Nearest vectors in one generation: the HNSW index, the exact scan, and how far they agree. SQL, no model.

What a caller may see and a filter asks for is in rag.index.restricted. The functions named `ask_` send a statement and
return one that waits for its rows: within `reading_as` the database works while the caller does other things.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import psycopg
from psycopg import sql
from psycopg.rows import args_row

from rag.index.access import reading_as
from rag.index.filters import Filter
from rag.index.restricted import (
    Chunks,
    Restriction,
    chunk_by_chunk,
    document_by_document,
    steps_worth_taking,
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


class Row(NamedTuple):
    """A chunk as a search reads it, and how near it is to the query."""

    cosine: float
    chunk_id: str
    source: str
    title: str
    text: str
    start_char: int
    end_char: int


Scored = list[tuple[float, Row]]  # (what it was found by, chunk)
_COLUMNS = sql.SQL("chunk_id, source, title, text, start_char, end_char")


@dataclass(frozen=True)
class Graph:
    """How far the HNSW index is followed. `ef_search` below the number of rows wanted would give fewer."""

    ef_search: int
    max_steps: int = 20_000  # pgvector's default; near copies alone are passed over without a restriction

    @property
    def iterative_scan(self) -> str:
        """Off where one look is enough. Going on, pgvector ends with whatever it has met, however far from the query,
        and nobody could tell that from a search that found what it should."""
        return "off" if self.max_steps <= 1.4 * MAX_EF_SEARCH else "relaxed_order"


def nearest(  # noqa: PLR0913 - what is searched, how, and for whom
    store: Store,
    generation: Generation,
    query: np.ndarray,
    k: int,
    ef_search: int = 100,
    exact: bool = False,
    filter: Filter | None = None,
    access: Access | None = None,
) -> Scored:
    """The k chunks nearest to `query`, (dim,) float32 and L2-normalised: [(cosine, row)], best first.

    Ties go by chunk_id. `exact` scans every chunk that `filter` and `access` leave; otherwise HNSW answers where it
    has been built and is the better way. No access means the operator, who sees everything. Raises ConfigError for a
    tenant or label that no document can have.
    """
    restriction = Restriction(filter, access)
    graph = None if exact else choose_graph(store, generation, k, ef_search, restriction)
    with store.pool.connection() as conn, reading_as(conn, access):
        return ask_nearest(conn, generation, query, k, graph, restriction)()


def choose_graph(
    store: Store, generation: Generation, k: int, ef_search: int, restriction: Restriction
) -> Graph | None:
    """How far to follow the graph for k chunks; None where there is none, or where scanning is faster."""
    if "vectors" not in generation.stats:
        return None
    if not restriction:
        return Graph(max(ef_search, DEPTH * k))
    max_steps = steps_worth_taking(store, generation, restriction, OVERFETCH * k)
    return Graph(max(2 * ef_search, max_steps), max_steps) if max_steps else None


def ask_nearest(  # noqa: PLR0913 - what is searched, how, and for whom
    conn: psycopg.Connection[Any],
    generation: Generation,
    query: np.ndarray,
    k: int,
    graph: Graph | None,
    restriction: Restriction,
) -> Callable[[], Scored]:
    """`nearest` within a transaction of the caller's, by the graph or, without one, by a scan."""
    scanned = document_by_document(generation, restriction)
    if graph is None:
        rows = ask_scan(conn, scanned, query, k)
        return lambda: _ranked(rows(), k)
    chunks = chunk_by_chunk(generation, restriction)
    num_wanted = OVERFETCH * k if restriction else k
    candidates = ask_graph(conn, generation, graph, chunks, query, num_wanted)

    def answer() -> Scored:
        found = candidates()
        if restriction and len(found) < num_wanted:  # it gave up on its way to chunks that are all far from the query
            found = ask_scan(conn, scanned, query, k)()
        return _ranked(found, k)

    return answer


def ask_scan(conn: psycopg.Connection[Any], chunks: Chunks, query: np.ndarray, k: int) -> Callable[[], list[Row]]:
    return _ask(conn, chunks, sql.SQL("c.embedding <#> %(query)s"), query, k)


def ask_graph(  # noqa: PLR0913 - what is searched, and how
    conn: psycopg.Connection[Any],
    generation: Generation,
    graph: Graph,
    chunks: Chunks,
    query: np.ndarray,
    num_wanted: int,
) -> Callable[[], list[Row]]:
    """Candidates by the type that the index was built over."""
    distance = sql.SQL("c.embedding::{0}({1}) <#> %(query)s::{0}({1})").format(
        sql.SQL(generation.stats["vectors"]), sql.Literal(generation.dim)
    )
    ef_search = str(min(MAX_EF_SEARCH, graph.ef_search))
    conn.execute(_BY_GRAPH, [ef_search, graph.iterative_scan, str(graph.max_steps)])
    return _ask(conn, chunks, distance, query, num_wanted)


def _ask(
    conn: psycopg.Connection[Any], chunks: Chunks, distance: sql.Composable, query: np.ndarray, k: int
) -> Callable[[], list[Row]]:
    statement = sql.SQL(
        "with nearest as materialized (select {columns}, embedding from {source} where not c.is_duplicate"
        " and {condition} order by {distance} limit %(k)s)"
        " select -(embedding <#> %(query)s), {columns} from nearest"
    ).format(columns=_COLUMNS, source=chunks.source, condition=chunks.condition, distance=distance)
    cur = conn.cursor(row_factory=args_row(Row), binary=True)
    cur.execute(statement, {"query": np.asarray(query, np.float32), "k": k, **chunks.params})
    return cur.fetchall


def _ranked(rows: list[Row], k: int) -> Scored:
    best = sorted(rows, key=lambda row: (-row.cosine, row.chunk_id))[:k]
    return [(row.cosine, row) for row in best]


def ask_chunks(
    conn: psycopg.Connection[Any],
    generation: Generation,
    chunk_ids: Sequence[str],
    query: np.ndarray | None,
    restriction: Restriction,
) -> Callable[[], list[Row]]:
    """Those of the named chunks that are there and that the restriction leaves, in no order.

    Within a transaction of the caller's. The cosine is 0 where there is no `query`.
    """
    if not chunk_ids:
        return list
    chunks = chunk_by_chunk(generation, restriction)
    statement = sql.SQL(
        "select {cosine}, {columns} from {source} where c.generation_id = {id} and c.chunk_id = any(%(chunk_ids)s)"
        " and not c.is_duplicate and {condition}"
    ).format(
        cosine=sql.SQL("0::float8" if query is None else "-(c.embedding <#> %(query)s)"),
        columns=_COLUMNS,
        source=chunks.source,
        id=sql.Literal(generation.generation_id),
        condition=chunks.condition,
    )
    params = {"chunk_ids": list(chunk_ids), **chunks.params}
    if query is not None:
        params["query"] = np.asarray(query, np.float32)
    cur = conn.cursor(row_factory=args_row(Row), binary=True)
    cur.execute(statement, params)
    return cur.fetchall


def measure_recall(
    conn: psycopg.Connection[Any], generation: Generation, k: int = 10, num_queries: int = 50, ef_search: int = 100
) -> float:
    """Recall@k of HNSW against the exact scan, over stored vectors as queries, their own chunk left out.

    Within a transaction of the caller's. A chunk as near as the exact k-th counts as found: which of equal chunks comes
    first says nothing of the index.
    """
    sample = sql.SQL("select chunk_id, embedding from {} order by md5(chunk_id) limit %s").format(generation.table)
    along = Graph(max(ef_search, DEPTH * (k + 1))) if "vectors" in generation.stats else None
    found = wanted = 0
    for chunk_id, embedding in conn.execute(sample, [num_queries]).fetchall():
        exact, approximate = (
            [
                score
                for score, row in ask_nearest(conn, generation, embedding.to_numpy(), k + 1, graph, Restriction())()
                if row.chunk_id != chunk_id
            ][:k]
            for graph in (None, along)
        )
        found += sum(score >= exact[-1] - 1e-6 for score in approximate)
        wanted += len(exact)
    return found / wanted if wanted else 1.0
