"""Which chunks a search may consider: those that a filter asks for and the caller may see. SQL, no vectors.

Two ways lead to them, and how many there are decides. Few are read through their documents, all of them. Many are met
often enough along the HNSW graph, where each chunk is checked in passing.
"""

import math
import threading
import time
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg import sql

from rag.index.access import access_condition
from rag.index.filters import Filter, chunk_condition, document_condition
from rag.index.store import Generation, Store, scalar
from rag.records import Access

FORGET_S = 60.0  # an old count makes a search slower or no worse: too few found along the graph are looked for again
MAX_REMEMBERED = 10_000  # counts for one store
STEP_COST = 8.0  # of a step along the graph, in chunks read through their documents; benchmarks/filtered.py
PATIENCE = 2  # times the steps that are to be expected
COUNTED = 10  # times as many chunks as are worth scanning: counting all of a large collection takes too long
MIN_SCANNED = 2_000  # chunks; below it the other way gains nothing


@dataclass(frozen=True)
class Restriction:
    """What is asked for, and by whom. False where every chunk is."""

    filter: Filter | None = None
    access: Access | None = None

    def __bool__(self) -> bool:
        return bool(self.filter) or self.access is not None


@dataclass(frozen=True)
class Chunks:
    """`from {source} where {condition}`, the chunks having the alias `c`."""

    source: sql.Composable
    condition: sql.Composable
    params: dict[str, Any]


def document_by_document(generation: Generation, restriction: Restriction) -> Chunks:
    """Documents first, then the chunks of each by the index. `offset 0` keeps the planner from joining otherwise: it
    takes a filter on metadata for rare or frequent by chance, and would read the whole table."""
    if not restriction:
        return chunk_by_chunk(generation, restriction)
    documents, params = _documents(generation, restriction)
    of_sections, more = chunk_condition(restriction.filter or Filter())
    source = sql.SQL(
        "(select d.doc_id from documents d where {documents} offset 0) m cross join lateral"
        " (select * from {table} where generation_id = {id} and doc_id = m.doc_id offset 0) c"
    ).format(documents=documents, table=generation.table, id=sql.Literal(generation.generation_id))
    return Chunks(source, of_sections, params | more)


def chunk_by_chunk(generation: Generation, restriction: Restriction) -> Chunks:
    """Every chunk, checked when it is met. The document is looked up in a scalar subquery, which no planner can turn
    into a join that would lose the order of the index."""
    may_see, params = access_condition(restriction.access, "c")
    conditions = [may_see]
    if restriction.filter:
        of_sections, more = chunk_condition(restriction.filter)
        documents, also = document_condition(restriction.filter)
        lookup = sql.SQL(
            "coalesce((select true from documents d where d.collection_id = {} and d.doc_id = c.doc_id and {}), false)"
        ).format(sql.Literal(generation.collection_id), documents)
        conditions += [of_sections, lookup]
        params |= more | also
    return Chunks(sql.SQL("{} c").format(generation.table), sql.SQL(" and ").join(conditions), params)


def steps_worth_taking(store: Store, generation: Generation, restriction: Restriction, num_wanted: int) -> int:
    """How far to follow the graph for `num_wanted` of the chunks that are left; 0 where scanning them is faster.

    Of N chunks n are allowed: the graph takes num_wanted * N / n steps where they lie everywhere, the scan n reads.
    Where they lie far from the query it would take many more, to find chunks that are not the nearest.
    """
    num_chunks = generation.stats["hnsw_chunks"]
    scanned = max(MIN_SCANNED, int(math.sqrt(STEP_COST * num_wanted * num_chunks)))
    num_allowed = count_allowed(store, generation, restriction, COUNTED * scanned)
    if num_allowed < scanned:
        return 0
    return max(num_wanted, int(PATIENCE * num_wanted * num_chunks / num_allowed))


def count_allowed(store: Store, generation: Generation, restriction: Restriction, limit: int) -> int:
    """Chunks that the restriction leaves, counted as far as `limit` and remembered for a minute.

    Counted by the owner of the tables, since indexes serve a policy badly; a number tells a caller nothing.
    """
    key = (generation.generation_id, restriction, limit)
    now = time.monotonic()
    with _lock:
        counts = _counts.setdefault(store, {})
        at, count = counts.get(key, (-math.inf, 0))
    if now - at < FORGET_S:
        return count
    with store.pool.connection() as conn, conn.transaction():
        count = _count(conn, generation, restriction, limit)
    with _lock:
        if len(counts) >= MAX_REMEMBERED:
            counts.clear()
        counts[key] = (now, count)
    return count


_lock = threading.Lock()
_counts: WeakKeyDictionary[Store, dict[tuple[int, Restriction, int], tuple[float, int]]] = WeakKeyDictionary()


def _count(conn: psycopg.Connection[Any], generation: Generation, restriction: Restriction, limit: int) -> int:
    documents, params = _documents(generation, restriction)
    statement = sql.SQL(
        "select coalesce(sum(num_chunks), 0) from (select m.num_chunks from documents d join generation_documents m"
        " on m.generation_id = {} and m.doc_id = d.doc_id where {} limit {}) n"
    ).format(sql.Literal(generation.generation_id), documents, sql.Literal(limit))
    return min(limit, int(scalar(conn, statement, params)))


def _documents(generation: Generation, restriction: Restriction) -> tuple[sql.Composable, dict[str, Any]]:
    """A condition on documents, alias `d`."""
    may_see, params = access_condition(restriction.access, "d")
    matches, more = document_condition(restriction.filter or Filter())
    of_collection = sql.SQL("d.collection_id = {}").format(sql.Literal(generation.collection_id))
    return sql.SQL(" and ").join([of_collection, may_see, matches]), params | more
