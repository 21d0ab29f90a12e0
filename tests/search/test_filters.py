"""Filters are parsed, bound and mean the same in SQL as in these few lines of Python."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as with_settings
from hypothesis import strategies as st

from rag.errors import ConfigError
from rag.index.access import reading_as
from rag.index.filters import Filter, allowed_documents, chunk_condition, document_condition
from rag.index.generations import ensure_generation
from rag.index.store import Generation, IndexedDocument, Store
from rag.records import Access
from rag.search.filters import make_filter, parse_filters

DOCUMENTS: dict[str, tuple[dict[str, Any], Access]] = {
    "file:///docs/a.md": ({"lang": "pt", "author": {"name": "Ana", "tags": ["x", 3]}}, Access("", ("hr",))),
    "file:///docs/b/c.md": ({"lang": "en", "pages": 3, "draft": True, "source": "wiki"}, Access("acme", ("hr", "it"))),
    "file:///docs2/a.md": ({"lang": None, "a.b": "whole", "a": {"b": "path"}}, Access()),
    "file:///rows.jsonl?id=7": ({"langs": ["pt", "en"], "it's": '100 % "sure"'}, Access()),
    "python:ray.data.Dataset": ({}, Access()),
    "python:ray.datasets": ({}, Access()),
    "hf:org/name:test?id=1": ({}, Access()),
}


@pytest.fixture(scope="module")
def filtered(database_url: str) -> Iterator[tuple[Store, Generation]]:
    store = Store(database_url)
    generation = ensure_generation(store, "filtered", {"f": 1}, {"model": "m"}, 3)
    store.write_documents(
        generation,
        [
            IndexedDocument(
                source,
                "text/html" if "a.md" in source else "text/plain",
                "h",
                json.dumps(meta),
                (),
                (),
                (),
                access=access,
            )
            for source, (meta, access) in DOCUMENTS.items()
        ],
    )
    yield store, generation
    store.close()


def found(filtered: tuple[Store, Generation], filter: Filter | None, access: Access | None = None) -> list[str]:
    store, generation = filtered
    with store.pool.connection() as conn, reading_as(conn, access):
        ids = allowed_documents(conn, generation, filter or Filter())
        rows = conn.execute("select source from documents where doc_id = any(%s) order by 1", [ids])
        return [source for (source,) in rows]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["source=file:///docs"], ["file:///docs/a.md", "file:///docs/b/c.md"]),
        (["source=file:///docs/"], ["file:///docs/a.md", "file:///docs/b/c.md"]),
        (["source=file:///docs/a"], []),
        (["source=file:///docs/a.md#install"], ["file:///docs/a.md"]),
        (["source=file:///rows.jsonl"], ["file:///rows.jsonl?id=7"]),
        (["source=python:ray.data"], ["python:ray.data.Dataset"]),
        (["source=hf:org/name"], ["hf:org/name:test?id=1"]),
        (["source=file:///docs/a.md", "source=python:ray"], sorted(["file:///docs/a.md", *list(DOCUMENTS)[4:6]])),
        (["mime=text/html"], ["file:///docs/a.md", "file:///docs2/a.md"]),
        (["label=hr"], ["file:///docs/a.md", "file:///docs/b/c.md"]),
        (["label=it", "label=none"], ["file:///docs/b/c.md"]),
        (["tenant=acme"], ["file:///docs/b/c.md"]),
        (["lang=pt"], ["file:///docs/a.md"]),
        (["lang=pt", "lang=en"], ["file:///docs/a.md", "file:///docs/b/c.md"]),
        (["lang=pt", "mime=text/plain"], []),
        (["langs=pt"], ["file:///rows.jsonl?id=7"]),
        (["pages=3"], ["file:///docs/b/c.md"]),
        (["draft=true"], ["file:///docs/b/c.md"]),
        (["author.name=Ana"], ["file:///docs/a.md"]),
        (["author.tags=3"], ["file:///docs/a.md"]),
        (["a.b=whole"], ["file:///docs2/a.md"]),
        (["a.b=path"], ["file:///docs2/a.md"]),
        (["meta.source=wiki"], ["file:///docs/b/c.md"]),
        (['it\'s=100 % "sure"'], ["file:///rows.jsonl?id=7"]),
        (["lang="], []),
        ([], sorted(DOCUMENTS)),
    ],
)
def test_a_filter_finds_its_documents(
    filtered: tuple[Store, Generation], texts: list[str], expected: list[str]
) -> None:
    assert found(filtered, parse_filters(texts)) == expected


def test_a_filter_narrows_what_a_caller_may_see_and_never_widens_it(filtered: tuple[Store, Generation]) -> None:
    assert found(filtered, parse_filters(["tenant=acme"]), Access("", ("hr", "it"))) == []
    assert found(filtered, parse_filters(["label=hr"]), Access("acme", ("it",))) == ["file:///docs/b/c.md"]
    assert found(filtered, parse_filters(["label=hr"]), Access("acme")) == []


def means(filter: Filter | None, source: str) -> bool:
    """What a filter says of a document, the slow and obvious way."""
    meta, access = DOCUMENTS[source]
    for key, values in filter.clauses if filter else ():
        match key:
            case "source":
                found = {v for v in values if source == v.partition("#")[0] or _is_below(source, v)}
            case "mime":
                found = {"text/html" if "a.md" in source else "text/plain"} & {*values}
            case "tenant":
                found = {access.tenant} & {*values}
            case "label":
                found = {*access.labels} & {*values}
            case _:
                key = key.removeprefix("meta.")
                found = (_texts(meta, [key]) | _texts(meta, key.split("."))) & {*values}
        if not found:
            return False
    return True


def _is_below(source: str, place: str) -> bool:
    rest = source.removeprefix(place)
    return "#" not in place and rest != source and (place.endswith("/") or rest[0] in "/?#&.:")


def _texts(value: Any, path: list[str]) -> set[str]:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    values = value if isinstance(value, list) else [value]
    return {v if isinstance(v, str) else json.dumps(v) for v in values if v is not None}


KNOWN_KEYS = ["source", "mime", "tenant", "label", "lang", "langs", "pages", "draft", "author.name", "a.b", "it's"]
KNOWN_VALUES = [*DOCUMENTS, "text/html", "acme", "", "hr", "it", "pt", "en", "3", "true", "Ana", "whole", "path"]


@given(
    pairs=st.lists(
        st.tuples(st.sampled_from(KNOWN_KEYS) | st.text(), st.sampled_from(KNOWN_VALUES) | st.text()), max_size=3
    )
)
@with_settings(max_examples=100, deadline=None)
def test_a_filter_is_refused_or_means_what_it_says(
    filtered: tuple[Store, Generation], pairs: list[tuple[str, str]]
) -> None:
    given: dict[str, list[str]] = {}
    for key, value in pairs:
        given.setdefault(key, []).append(value)
    try:
        filter = make_filter(given)
    except ConfigError:
        return
    assert found(filtered, filter) == sorted(source for source in DOCUMENTS if means(filter, source))


@pytest.mark.parametrize(
    "value", ["' or 1=1 --", "%s", "%(query)s", "{}", '"', "\\", "$1", "x" * 2000, "🐧", "a\nb", "{a,b}", "NULL"]
)
@pytest.mark.parametrize("key", ["lang", "source", "mime", "label", "tenant", "' or 1>0 --", "%s", "{}", "a..b", "."])
def test_no_value_is_ever_part_of_the_statement(filtered: tuple[Store, Generation], key: str, value: str) -> None:
    filter = parse_filters([f"{key}={value}"])
    assert found(filtered, filter) == []
    assert filter is not None
    for statement, _ in (document_condition(filter), chunk_condition(filter)):
        assert value not in statement.as_string(None).replace("'{}'", "") or value in ("%s", '"', ".")


@pytest.mark.parametrize(
    "text",
    ["lang", "=pt", "", "source=", "mime=", "label=", "a\0b=c", "a=b\0c", "a=\ud800", "a=" + "x" * 2001, "meta.=x"],
)
def test_what_cannot_be_a_filter_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="^filter: expected"):
        parse_filters([text])


def test_equal_filters_are_equal_however_they_are_given() -> None:
    filter = parse_filters(["b=2", "a=1", "b=1", "b=2"])
    assert filter == Filter((("a", ("1",)), ("b", ("1", "2"))))
    assert make_filter({"b": ["1", "2"], "a": "1"}) == filter
    assert parse_filters([]) is make_filter({}) is make_filter(None) is None
    with pytest.raises(ConfigError, match="at most 100 values"):
        make_filter({"a": [str(i) for i in range(101)]})
    with pytest.raises(ConfigError, match="empty list"):
        make_filter({"a": []})
