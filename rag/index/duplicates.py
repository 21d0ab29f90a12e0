"""Near copies among the chunks of a generation: counted, and hidden from search on request. SQL alone.

Two chunks are near copies when their texts are equal but for letter case, spaces, punctuation and digits: pages of
two versions, repeated notices, tables of contents. The same callers must see both: a copy that somebody may not read
hides nothing from them. The first one by source and place is kept, so that the choice does not depend on the order of
writing, and it is made again after every run.
"""

from typing import Any

import psycopg
from psycopg import sql

from rag.index.store import Generation, Store, scalar

MIN_LETTERS = 40  # shorter texts are equal by chance: "See also", "Parameters"

_RANKED = """
    select chunk_id, row_number() over (
        partition by tenant, labels, regexp_replace(lower(text), '[^[:alpha:]]+', '', 'g')
        order by source, start_char, chunk_id
    ) > 1 and length(regexp_replace(text, '[^[:alpha:]]+', '', 'g')) >= {} as is_copy from {}
"""


def update_near_copies(store: Store, generation: Generation, hide: bool, has_changed: bool = True) -> int:
    """How many chunks nearly equal another, hidden or shown; counted again only where chunks came or went."""
    if hide:
        return hide_near_copies(store, generation)
    if generation.stats.get("deduplicated"):
        show_near_copies(store, generation)
    if has_changed or "near_copies" not in generation.stats:
        return count_near_copies(store, generation)
    return int(generation.stats["near_copies"])


def count_near_copies(store: Store, generation: Generation) -> int:
    """Chunks that another chunk before them nearly equals."""
    ranked = sql.SQL(_RANKED).format(sql.Literal(MIN_LETTERS), generation.table)
    with store.pool.connection() as conn:
        return int(scalar(conn, sql.SQL("select count(*) from ({}) r where is_copy").format(ranked)))


def hide_near_copies(store: Store, generation: Generation) -> int:
    """Marks them, and unmarks what is no copy any more; returns how many are marked now."""
    ranked = sql.SQL(_RANKED).format(sql.Literal(MIN_LETTERS), generation.table)
    with store.pool.connection() as conn, conn.transaction():
        _update(
            conn,
            generation,
            sql.SQL(
                "update {0} c set is_duplicate = r.is_copy from ({1}) r"
                " where r.chunk_id = c.chunk_id and c.is_duplicate <> r.is_copy"
            ).format(generation.table, ranked),
        )
        return int(scalar(conn, sql.SQL("select count(*) from {} where is_duplicate").format(generation.table)))


def show_near_copies(store: Store, generation: Generation) -> None:
    """Unmarks all."""
    with store.pool.connection() as conn:
        _update(
            conn,
            generation,
            sql.SQL("update {} c set is_duplicate = false where is_duplicate").format(generation.table),
        )


def _update(conn: psycopg.Connection[Any], generation: Generation, update: sql.Composed) -> None:
    """Notes whose chunks it shows or hides: the lexical index follows."""
    statement = (
        "with touched as ({} returning c.doc_id) insert into changes select distinct {}::int, doc_id,"
        " pg_current_xact_id() from touched order by doc_id"
        " on conflict (generation_id, doc_id) do update set changed_in = excluded.changed_in"
    )
    conn.execute(sql.SQL(statement).format(update, sql.Literal(generation.generation_id)))
