"""The database withholds what a caller may not see, whatever the application asks for."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import many_tenants
import numpy as np
import psycopg
import pytest
from many_tenants import Corpus, ask, fill, may_see, random_request, random_vectors
from psycopg import sql

from rag.config import Settings
from rag.errors import ConfigError, DatabaseError
from rag.index import restricted
from rag.index.access import reading_as
from rag.index.database import migrate
from rag.index.dump import dump_collection
from rag.index.filters import Filter, allowed_documents
from rag.index.generations import ensure_generation, live_generation, rollback
from rag.index.load import load_collection
from rag.index.restricted import Restriction, chunk_by_chunk
from rag.index.store import Generation, Store
from rag.index.vectors import Graph, ask_graph, ask_scan, nearest
from rag.records import Access, document_id

TABLES = ("documents", "sections", "chunks")


@pytest.fixture(scope="module")
def crowd(database_url: str) -> Iterator[tuple[Store, Corpus]]:
    """Twenty tenants, and no more connections than threads that use them."""
    store = Store(database_url, max_connections=3)
    yield store, fill(store, "crowd", num_documents=400, num_chunks=3)
    store.close()


def foreign(corpus: Corpus, access: Access, rows: list) -> list[str]:
    return [row.source for row in rows if not may_see(access, corpus.documents[row.source])]


@pytest.mark.parametrize("along_graph", [False, True])
def test_no_caller_ever_gets_a_foreign_chunk(
    crowd: tuple[Store, Corpus], along_graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, corpus = crowd
    if along_graph:  # which is not worth it for so few chunks
        monkeypatch.setattr(restricted, "MIN_SCANNED", 1)
        monkeypatch.setattr(restricted, "STEP_COST", 0.0)

    def check(seed: int) -> None:
        request = random_request("crowd", random.Random(seed))
        allowed = corpus.allowed(request)
        rows = ask(store, corpus, request)
        assert [row.source for row in rows if row.source not in allowed] == []
        assert len(rows) == min(request.k, 3 * len(allowed))
        if request.exact:
            vectors = np.concatenate([corpus.documents[source].embeddings for source in allowed] or [np.eye(16)[:0]])
            best = sorted((vectors @ request.query).tolist(), reverse=True)[: request.k]
            found = nearest(
                store, corpus.generation, request.query, request.k, 100, True, request.filter, request.access
            )
            assert [score for score, _ in found] == pytest.approx(best, abs=1e-5)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(check, range(250)))


def test_without_the_applications_own_conditions_the_database_still_withholds(crowd: tuple[Store, Corpus]) -> None:
    store, corpus = crowd
    everything = chunk_by_chunk(corpus.generation, Restriction())  # no tenant, no label, no filter

    def check(seed: int) -> None:
        request = random_request("crowd", random.Random(seed))
        with store.pool.connection() as conn, reading_as(conn, request.access):
            rows = ask_scan(conn, everything, request.query, 2000)()
            assert foreign(corpus, request.access, rows) == []
            assert len(rows) == 3 * sum(may_see(request.access, d) for d in corpus.documents.values())
            rows = ask_graph(conn, corpus.generation, Graph(100), everything, request.query, 10)()
            assert foreign(corpus, request.access, rows) == []
            for table in TABLES:
                columns = sql.SQL("source from {}").format(sql.Identifier(table))
                for (source,) in conn.execute(sql.SQL("select {} where source ^@ 'file:///crowd/'").format(columns)):
                    section = source if "#" in source else f"{source}#s"
                    assert may_see(request.access, corpus.documents[section])

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(check, range(1000, 1060)))


def test_a_failed_transaction_leaves_its_caller_behind(database_url: str, crowd: tuple[Store, Corpus]) -> None:
    _, corpus = crowd
    store = Store(database_url, max_connections=1)  # every request has the same connection
    rng = random.Random(7)
    for seed in range(40):
        with pytest.raises(psycopg.errors.DivisionByZero):  # noqa: SIM117
            with store.pool.connection() as conn, reading_as(conn, Access(rng.choice(many_tenants.TENANTS), ("hr",))):
                conn.execute("select 1 / 0")
        with store.pool.connection() as conn:
            row = conn.execute("select current_user = session_user, current_setting('rag.access', true)").fetchone()
            assert row in ((True, ""), (True, None))
        request = random_request("crowd", random.Random(seed))
        assert foreign(corpus, request.access, ask(store, corpus, request)) == []
    store.close()


def test_a_reader_without_settings_sees_nothing(crowd: tuple[Store, Corpus]) -> None:
    store, corpus = crowd

    def counts() -> list[int]:
        with store.pool.connection() as conn, conn.transaction():
            conn.execute("set local role rag_reader")
            tables = [*map(sql.Identifier, TABLES), corpus.generation.table]
            return [conn.execute(sql.SQL("select count(*) from {}").format(t)).fetchone()[0] for t in tables]  # type: ignore[index]

    assert counts() == [0, 0, 0, 0]
    for _ in range(4):  # a setting that was local to a transaction is '' after it, and '' is a tenant
        nearest(store, corpus.generation, random_vectors(1, random.Random(1))[0], 5, access=Access(""))
        nearest(store, corpus.generation, random_vectors(1, random.Random(1))[0], 5)
    assert counts() == [0, 0, 0, 0]


def test_a_reader_can_change_nothing(crowd: tuple[Store, Corpus]) -> None:
    store, corpus = crowd
    for statement in ("update chunks set tenant = 'me'", "delete from documents", "select 1 from failures"):
        with store.pool.connection() as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):  # noqa: SIM117
            with reading_as(conn, None):
                conn.execute(statement)


def test_the_operator_sees_everything(crowd: tuple[Store, Corpus]) -> None:
    store, corpus = crowd
    rows = nearest(store, corpus.generation, random_vectors(1, random.Random(1))[0], 1000, exact=True)
    assert len(rows) == 1000
    with store.pool.connection() as conn, reading_as(conn, None):
        assert len(allowed_documents(conn, corpus.generation, Filter())) == 400


@pytest.mark.parametrize(
    "hostile",
    [
        "x' or true --",
        "'); set role postgres; --",
        "{}",
        '{"a","b"}',
        "NULL",
        "\\",
        '"',
        "all",
        "%(tenant)s",
        "%s",
        "$1",
        "a" * 100_000,
        "\u202e\U0001f427",
    ],
)
def test_hostile_tenants_and_labels_are_only_names(crowd: tuple[Store, Corpus], hostile: str) -> None:
    store, corpus = crowd
    query = random_vectors(1, random.Random(3))[0]
    access = Access(hostile, (hostile, f"{hostile},hr", f"}},{hostile}"))
    rows = nearest(store, corpus.generation, query, 50, access=access)
    assert foreign(corpus, access, [row for _, row in rows]) == []
    labelled = Access("tenant1", access.labels)
    rows = nearest(store, corpus.generation, query, 2000, access=labelled)
    assert foreign(corpus, labelled, [row for _, row in rows]) == []
    assert len(rows) == 3 * sum(may_see(labelled, d) for d in corpus.documents.values())


@pytest.mark.parametrize("impossible", ["a\0b", "\ud800"])
def test_a_name_that_no_document_can_have_is_refused(crowd: tuple[Store, Corpus], impossible: str) -> None:
    store, corpus = crowd
    query = random_vectors(1, random.Random(3))[0]
    for access in (Access(impossible), Access("tenant1", (impossible,))):
        with pytest.raises(ConfigError, match="without NUL"):
            nearest(store, corpus.generation, query, 5, access=access)


def test_reading_begins_a_transaction_of_its_own(crowd: tuple[Store, Corpus]) -> None:
    store, _ = crowd
    with store.pool.connection() as conn:
        conn.execute("select 1")  # psycopg has begun one
        with pytest.raises(DatabaseError, match="expected a connection without a transaction"):  # noqa: SIM117
            with reading_as(conn, Access("tenant1")):
                pass


def test_a_table_that_was_not_closed_cannot_be_read_at_all(store: Store) -> None:
    with store.pool.connection() as conn, pytest.raises(psycopg.errors.InsufficientPrivilege), conn.transaction():
        conn.execute("create table chunks_0 (like chunks including defaults)")
        conn.execute("set local role rag_reader")
        conn.execute("select from chunks_0")


def visible(store: Store, generation: Generation, access: Access) -> list[str]:
    query = np.eye(many_tenants.DIM, dtype=np.float32)[0]
    return sorted({row.source for _, row in nearest(store, generation, query, 100, exact=True, access=access)})


def test_other_labels_hold_in_every_generation_at_once(store: Store, settings: Settings) -> None:
    name = settings.collection
    corpus = fill(store, name, num_documents=6, num_chunks=2)
    source, document = next(iter(corpus.documents.items()))
    second = ensure_generation(store, name, {"made": 2}, {"model": "made"}, many_tenants.DIM)
    closed = Access("acme", ("board",))
    before = _embeddings(store, corpus.generation)
    store.write_documents(second, [replace(document, access=closed)])
    for generation in (corpus.generation, second):
        assert visible(store, generation, Access("acme", ("board", "other"))) == [source]
        assert visible(store, generation, Access("acme", ("other",))) == []
        assert source not in visible(store, generation, document.access)
    store.set_access(second, {document_id(document.source): Access("acme")})
    for generation in (corpus.generation, second):
        assert visible(store, generation, Access("acme")) == [source]
    assert _embeddings(store, corpus.generation) == before
    assert store.known_documents(corpus.generation)[document_id(document.source)].access == Access("acme")


def _embeddings(store: Store, generation: Generation) -> list[tuple]:
    with store.pool.connection() as conn:
        statement = sql.SQL("select chunk_id, vector_send(embedding) from {} order by 1").format(generation.table)
        return conn.execute(statement).fetchall()


def test_a_dump_carries_tenants_and_labels_and_what_is_loaded_is_closed(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    corpus = fill(store, settings.collection, num_documents=60, num_chunks=2)
    dump_collection(store, settings.collection, str(tmp_path / "dump"))
    load_collection(store, str(tmp_path / "dump"), f"{settings.collection[:50]}-copy")
    copy = live_generation(store, f"{settings.collection[:50]}-copy")
    for tenant in many_tenants.TENANTS:
        access = Access(tenant, ("hr", "NULL"))
        seen = visible(store, corpus.generation, access)
        assert seen == sorted(s for s, d in corpus.documents.items() if may_see(access, d))
        assert visible(store, copy, access) == seen


def test_near_copies_of_other_callers_hide_nothing(store: Store, settings: Settings) -> None:
    from rag.index.duplicates import hide_near_copies

    corpus = fill(store, settings.collection, num_documents=2, num_chunks=1)
    text = "Penguins live in the Antarctic, in large and noisy colonies."
    copies = []
    for d, tenant in zip(corpus.documents.values(), ("acme", "zeta"), strict=True):
        chunk = replace(d.chunks[0], text=text, end_char=len(text))
        copies.append(replace(d, chunks=(chunk,), access=Access(tenant)))
    store.write_documents(corpus.generation, copies)
    assert hide_near_copies(store, corpus.generation) == 0
    store.set_access(corpus.generation, {copies[1].doc_id: Access("acme")})
    assert hide_near_copies(store, corpus.generation) == 1


def test_a_rollback_opens_nothing(store: Store, settings: Settings) -> None:
    first = fill(store, settings.collection, num_documents=3, num_chunks=1, seed=0)
    second = fill(store, settings.collection, num_documents=3, num_chunks=1, seed=1)
    closed = {d.doc_id: Access("acme", ("board",)) for d in second.documents.values()}
    store.set_access(second.generation, closed)
    live = rollback(store, settings.collection)
    assert live.generation_id == first.generation.generation_id
    for d in first.documents.values():
        assert visible(store, live, d.access) == []


def test_a_user_who_may_not_create_roles_is_told_what_to_run(database_url: str) -> None:
    admin = psycopg.connect(database_url, autocommit=True)
    admin.execute("create role managed login")
    admin.execute("create database managed owner managed")
    url = database_url.replace("/rag?", "/managed?")
    with psycopg.connect(url) as conn:
        conn.execute("create extension vector")
    mine = url.replace("user=postgres", "user=managed")
    try:
        with pytest.raises(DatabaseError, match="as a superuser run `create role rag_reader nologin; grant"):
            migrate(mine)
        admin.execute("grant rag_reader to managed")
        assert migrate(mine)[-1] >= "0004-access"
        store = Store(mine)
        corpus = fill(store, "mine", num_documents=20, num_chunks=1)
        access = next(iter(corpus.documents.values())).access
        assert visible(store, corpus.generation, access) == sorted(
            s for s, d in corpus.documents.items() if may_see(access, d)
        )
        store.close()
    finally:
        admin.execute("drop database managed with (force)")
        admin.execute("drop role managed")
        admin.close()
