"""A filter of documents as SQL. Every key and value is bound, none is ever part of a statement.

    source=file:///docs/a    the document, what is below it, or one section: `…/a.md#install`
    mime=text/html           the type
    tenant=acme  label=hr    of the document; what the caller may see is narrowed, never widened
    lang=pt  author.name=Ana metadata, a dot leads into an object; `meta.source=…` for metadata with a name from above

Values of one key are alternatives, keys add up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from rag.index.access import Condition
from rag.index.store import Generation

META = "meta."


@dataclass(frozen=True)
class Filter:
    """(key, its values) pairs, each key once. `rag.search.filters` makes it."""

    clauses: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.clauses)


def document_condition(filter: Filter) -> Condition:
    """A condition on documents, alias `d`: everything but which section."""
    parts: list[sql.Composable] = []
    params: dict[str, Any] = {}
    for number, (key, values) in enumerate(filter.clauses):
        template, bound = _CONDITIONS.get(key, _metadata)(key, values)
        names = {part: f"f{number}_{part}" for part in bound}
        params |= {names[part]: value for part, value in bound.items()}
        parts.append(sql.SQL(template).format(**{part: sql.Placeholder(name) for part, name in names.items()}))
    return sql.SQL(" and ").join(parts) if parts else sql.SQL("true"), params


def chunk_condition(filter: Filter) -> Condition:
    """A condition on chunks, alias `c`, where the filter names single sections; `true` elsewhere."""
    values = dict(filter.clauses).get("source", ())
    if not any("#" in value for value in values):
        return sql.SQL("true"), {}
    equal, below = _places(values)
    return sql.SQL("(c.source = any(%(c_equal)s::text[]) or c.source ^@ any(%(c_below)s::text[]))"), {
        "c_equal": equal,
        "c_below": below,
    }


def allowed_documents(conn: psycopg.Connection[Any], generation: Generation, filter: Filter) -> list[str]:
    """The doc_ids of the collection that match, as far as the transaction's caller may see them (`reading_as`)."""
    condition, params = document_condition(filter)
    statement = sql.SQL("select d.doc_id from documents d where d.collection_id = %(collection_id)s and {}")
    rows = conn.execute(statement.format(condition), params | {"collection_id": generation.collection_id})
    return [doc_id for (doc_id,) in rows]


Clause = tuple[str, dict[str, Any]]  # a template, and what its placeholders stand for


def _source(_: str, values: tuple[str, ...]) -> Clause:
    documents = [value.partition("#")[0] for value in values]
    below = _places([value for value in values if "#" not in value])[1]
    return "(d.source = any({equal}::text[]) or d.source ^@ any({below}::text[]))", {"equal": documents, "below": below}


def _places(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """What a source may be, and what it may begin with: `a/b` is within `a`, `ab` is not."""
    below = []
    for value in values:
        if value.endswith("/"):
            below.append(value)
        else:
            marks = ".#" if value.startswith("python:") else ":/?#" if value.startswith("hf:") else "/?#&"
            below += [value + mark for mark in marks]
    return list(values), below


def _mime(_: str, values: tuple[str, ...]) -> Clause:
    return "d.mime = any({values}::text[])", {"values": list(values)}


def _tenant(_: str, values: tuple[str, ...]) -> Clause:
    return "d.tenant = any({values}::text[])", {"values": list(values)}


def _label(_: str, values: tuple[str, ...]) -> Clause:
    return "d.labels && {values}::text[]", {"values": list(values)}


def _metadata(key: str, values: tuple[str, ...]) -> Clause:
    """A scalar equal to a value as JSON writes it, or a list that holds one. The key is tried whole, then as a path."""
    key = key.removeprefix(META)
    clause = (
        "case jsonb_typeof(d.meta #> {path}::text[]) when 'array' then exists (select"
        " from jsonb_array_elements_text(d.meta #> {path}::text[]) e(value) where e.value = any({values}::text[]))"
        " else coalesce((d.meta #>> {path}::text[]) = any({values}::text[]), false) end"
    )
    bound: dict[str, Any] = {"path": [key], "values": list(values)}
    if "." in key:
        clause += " or " + clause.replace("{path}", "{nested}")
        bound["nested"] = key.split(".")
    return f"({clause})", bound


_CONDITIONS: dict[str, Callable[[str, tuple[str, ...]], Clause]] = {
    "source": _source,
    "mime": _mime,
    "tenant": _tenant,
    "label": _label,
}
