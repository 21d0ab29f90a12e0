"""Index generations against the real database: switching, rolling back, dropping, while others read."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from toy_corpus import Report, document, fill, new_generation, read_until, toy_retriever, unit_vectors

from rag.config import IndexConfig, Settings
from rag.errors import NotAllowed, NotFound
from rag.index.database import migrate
from rag.index.drop import collect, drop, sweep
from rag.index.generations import (
    activate,
    details,
    find_generation,
    generations,
    live_generation,
    read_live,
    rollback,
    switch,
)
from rag.index.hnsw import update_hnsw
from rag.index.store import Generation, Store
from rag.index.vectors import nearest


def live_ones(store: Store, settings: Settings, count: int, num_documents: int = 3) -> list[Generation]:
    """Generations that went live one after the other; the last one is."""
    made = []
    for n in range(count):
        generation = new_generation(store, settings.collection, n)
        fill(store, generation, n, num_documents)
        activate(store, generation, {})
        made.append(generation)
    return made


def ids(found: list[Generation]) -> list[int]:
    return [g.generation_id for g in found]


def tables(store: Store, generation: Generation) -> int:
    with store.pool.connection() as conn:
        return len(
            conn.execute(
                "select 1 where to_regclass(%s) is not null", [f"chunks_{generation.generation_id}"]
            ).fetchall()
        )


# What they are


def test_a_generation_is_the_same_for_the_same_config_and_goes_live_when_activated(
    store: Store, settings: Settings
) -> None:
    first = new_generation(store, settings.collection, 1)
    assert new_generation(store, settings.collection, 1) == first
    with pytest.raises(NotFound, match="has no finished index yet"):
        live_generation(store, settings.collection)
    second = new_generation(store, settings.collection, 2)
    activate(store, first, {})
    assert live_generation(store, settings.collection).generation_id == first.generation_id
    activate(store, second, {"recall@10": 0.99})
    assert live_generation(store, settings.collection).stats == {"recall@10": 0.99}
    assert [g.state for g in generations(store, settings.collection)] == ["retired", "ready"]


def test_two_jobs_that_start_at_once_make_one_generation(database_url: str, settings: Settings) -> None:
    made: list[Generation] = []

    def start() -> None:
        store = Store(database_url)
        made.append(new_generation(store, settings.collection, 1))
        store.close()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len({g.generation_id for g in made}) == 1


def test_an_unknown_collection_or_index_is_named_with_the_command_that_helps(store: Store) -> None:
    with pytest.raises(NotFound, match="no collection named 'nope'.*rag ingest SOURCE --collection nope"):
        live_generation(store, "nope")
    for call in (switch, drop, find_generation):
        with pytest.raises(NotFound, match="no index 999999; `rag index list` shows"):
            call(store, 999999)


def test_a_generation_tells_how_many_documents_it_is_behind(store: Store, settings: Settings) -> None:
    old = new_generation(store, settings.collection, 1)
    store.write_documents(old, [document("a", ["one"]), document("b", ["two"]), document("c", ["three"])])
    new = new_generation(store, settings.collection, 2)
    store.write_documents(new, [document("a", ["one"]), document("b", ["2"], "h2"), document("d", ["four"])])
    assert details(store, old)["documents_behind"] == 2  # b is older, d is missing
    assert details(store, new)["documents_behind"] == 1  # c is missing
    store.write_documents(old, [document("b", ["2"], "h2"), document("d", ["four"])])
    store.write_documents(new, [document("c", ["three"])])
    assert [details(store, g)["documents_behind"] for g in (old, new)] == [0, 0]
    assert details(store, old)["bytes"] > 0


# Switching


def test_rollback_goes_back_one_by_one_and_an_activation_forward_again(store: Store, settings: Settings) -> None:
    a, b, c = ids(live_ones(store, settings, 3))
    name = settings.collection
    assert rollback(store, name).generation_id == b
    assert rollback(store, name).generation_id == a
    with pytest.raises(NotAllowed, match=f"no other index that was live.*rag index list -c {name}"):
        rollback(store, name)
    assert switch(store, c).is_live
    assert rollback(store, name).generation_id == a  # c took the place of a this time
    assert live_generation(store, name).generation_id == a


def test_rollback_passes_over_what_was_dropped_and_activating_the_live_one_leaves_no_trace(
    store: Store, settings: Settings
) -> None:
    first, second, third = live_ones(store, settings, 3)
    activate(store, third, {"again": 1})  # every ingestion ends so
    switch(store, third.generation_id)
    drop(store, second.generation_id)
    assert rollback(store, settings.collection).generation_id == first.generation_id
    with store.pool.connection() as conn:
        history = conn.execute(
            "select generation_id from activations where collection_id = %s order by activation_id",
            [first.collection_id],
        ).fetchall()
    assert [row[0] for row in history] == [*ids([first, second, third]), first.generation_id]


def test_an_unfinished_generation_is_not_made_live(store: Store, settings: Settings) -> None:
    building = new_generation(store, settings.collection, 1)
    with pytest.raises(NotAllowed, match="is not finished; run `rag ingest` with its settings.*`rag index drop"):
        switch(store, building.generation_id)


# Dropping


def test_the_live_generation_is_not_dropped(store: Store, settings: Settings) -> None:
    first, second = live_ones(store, settings, 2)
    with pytest.raises(NotAllowed, match=f"index {second.generation_id} is live.*`rag index rollback -c"):
        drop(store, second.generation_id)
    drop(store, first.generation_id)
    assert ids(generations(store, settings.collection)) == [second.generation_id]
    assert (tables(store, first), tables(store, second)) == (0, 1)


def test_a_generation_is_not_dropped_while_a_job_writes_it_nor_kept_by_a_killed_one(
    store: Store, database_url: str, settings: Settings
) -> None:
    job = Store(database_url)
    generation = new_generation(job, settings.collection, 1)
    with pytest.raises(NotAllowed, match="is being written by an ingestion; wait for its end"):
        drop(store, generation.generation_id)
    job.close()  # as its end does, in whatever way it comes
    drop(store, generation.generation_id)
    assert generations(store, settings.collection) == []


def test_the_newest_retired_generations_are_kept_and_unfinished_ones_stay(store: Store, settings: Settings) -> None:
    building = new_generation(store, settings.collection, 99)
    a, b, c, d = live_ones(store, settings, 4)
    rollback(store, settings.collection)  # c is live; d retired last
    assert collect(store, a.collection_id, keep=2) == [a.generation_id]
    assert ids(generations(store, settings.collection)) == ids([building, b, c, d])
    assert collect(store, a.collection_id, keep=0) == ids([d, b])
    assert live_generation(store, settings.collection).generation_id == c.generation_id


def test_a_generation_that_retired_nobody_knows_when_goes_before_the_others(store: Store, settings: Settings) -> None:
    a, b, c, _ = live_ones(store, settings, 4)
    with store.pool.connection() as conn:  # as an older dump is loaded
        conn.execute("update generations set retired_at = null where generation_id = any(%s)", [ids([a, b])])
    assert collect(store, a.collection_id, keep=2) == [a.generation_id]
    assert collect(store, a.collection_id, keep=1) == [b.generation_id]
    assert c.generation_id in ids(generations(store, settings.collection))


def test_documents_that_only_a_dropped_generation_held_go_with_it(store: Store, settings: Settings) -> None:
    old, new = new_generation(store, settings.collection, 1), new_generation(store, settings.collection, 2)
    store.write_documents(old, [document("both", ["x"]), document("old", ["y"])])
    store.write_documents(new, [document("both", ["x"])])
    activate(store, old, {})
    activate(store, new, {})
    drop(store, old.generation_id)
    with store.pool.connection() as conn:
        left = conn.execute("select source from documents where collection_id = %s", [new.collection_id]).fetchall()
    assert left == [("file:///both",)]


def test_a_reader_that_chose_a_generation_before_it_was_dropped_reads_the_live_one(
    store: Store, settings: Settings
) -> None:
    old, new = live_ones(store, settings, 2)
    query, asked = unit_vectors(1, 0)[0], []

    def find(generation: Generation) -> list[str]:
        if not asked:
            drop(store, old.generation_id)
        asked.append(generation.generation_id)
        return [row.text.split()[0] for _, row in nearest(store, generation, query, k=3)]

    assert read_live(store, old, find) == ["g1", "g1", "g1"]
    assert asked == ids([old, new])


def test_an_empty_live_generation_is_an_empty_result_and_not_an_endless_search(
    store: Store, settings: Settings
) -> None:
    empty = new_generation(store, settings.collection, 1)
    activate(store, empty, {})
    assert toy_retriever(store).search("anything", settings.collection).hits == ()


def test_creating_and_dropping_generations_makes_nobody_wait(
    store: Store, database_url: str, settings: Settings
) -> None:
    old, live = live_ones(store, settings, 2)
    impatient = Store(make_conninfo(database_url, options="-c lock_timeout=1s"))
    dropping = threading.Thread(target=drop, args=(store, old.generation_id))
    with psycopg.connect(database_url) as long_reader, psycopg.connect(database_url, autocommit=True) as watcher:
        long_reader.execute("select count(*) from chunks")  # and its transaction stays open for a while
        created = new_generation(impatient, settings.collection, 7)
        dropping.start()
        wait_until_a_drop_waits(watcher)
        assert len(nearest(impatient, live, unit_vectors(1, 0)[0], k=3)) == 3
        fill(impatient, live, 8, num_documents=2)
        with impatient.pool.connection() as conn:
            conn.execute("select count(*) from chunks")
        dropping.join()
    impatient.close()
    assert ids(generations(store, settings.collection)) == ids([live, created])  # forgotten at once,
    assert tables(store, old) == 1  # but there was a reader; so its table goes with the next sweep
    assert sweep(store) == [f"chunks_{old.generation_id}"]
    assert tables(store, old) == 0


def wait_until_a_drop_waits(conn: psycopg.Connection[Any]) -> None:
    waiting = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like 'drop table%'"
    deadline = time.monotonic() + 30
    while not conn.execute(waiting).fetchone():
        assert time.monotonic() < deadline


def test_generations_from_before_the_history_are_listed_and_rolled_back_in_the_order_they_were_ready(
    database_url: str,
) -> None:
    from yoyo import get_backend, read_migrations

    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("create database older")
    older = make_conninfo(database_url, dbname="older")
    host = conninfo_to_dict(older)["host"]
    backend = get_backend(f"postgresql+psycopg:///older?host={quote(str(host), safe='')}&user=postgres")
    root = Path(__file__).parents[2] / "migrations"
    backend.apply_migrations(read_migrations(str(root)).filter(lambda m: m.id == "0001-foundation"))
    backend.connection.close()
    with psycopg.connect(older) as conn:
        conn.execute("insert into collections (name) values ('c')")
        conn.execute(
            "insert into generations (collection_id, config, fingerprint, dim, state, ready_at, stats) values"
            " (1, '1', '{}', 3, 'ready', '2026-01-03', '{}'), (1, '2', '{}', 3, 'ready', '2026-01-01', '{}'),"
            " (1, '3', '{}', 3, 'ready', '2026-01-02', '{\"hnsw_chunks\": 5000}'),"
            " (1, '4', '{}', 3, 'building', null, '{}')"
        )
        conn.execute("update collections set live_generation_id = 3")
    assert "0002-generations" in migrate(older)
    store = Store(older)
    assert [g.state for g in generations(store, "c")] == ["retired", "retired", "ready", "building"]
    assert live_generation(store, "c").stats["vectors"] == "halfvec"
    assert [rollback(store, "c").generation_id for _ in range(2)] == [1, 2]
    store.close()


# All of it at once


def test_readers_see_one_whole_generation_at_any_time_while_generations_come_and_go(
    store: Store, database_url: str, settings: Settings
) -> None:
    name = settings.collection
    build(database_url, name, 0, keep=0)
    stop, reports = threading.Event(), [Report() for _ in range(3)]
    readers = [
        threading.Thread(target=read_until, args=(stop, toy_retriever(store), name, report)) for report in reports
    ]
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("toy_corpus.py")), database_url, name],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for reader in readers:
        reader.start()
    writer = Store(database_url)
    for n in range(1, 13):
        build(database_url, name, n, keep=n % 3)
        if n % 3:
            rollback(writer, name)
            bad = generations(writer, name)[-1]
            if n % 2:
                drop(writer, bad.generation_id)
            else:
                switch(writer, bad.generation_id)
    writer.close()
    stop.set()
    for reader in readers:
        reader.join()
    output, _ = process.communicate("", timeout=30)
    reports.append(Report(**json.loads(output)))
    for report in reports:
        assert (report.errors, report.num_short, report.mixed) == ([], 0, [])
        assert report.num_reads > 20
        assert len(report.seen) > 3


def build(url: str, collection: str, n: int, keep: int) -> None:
    """What an ingestion does; every other generation has an HNSW index."""
    store = Store(url)
    generation = new_generation(store, collection, n)
    fill(store, generation, n, num_documents=20 if n % 2 else 120)
    stats = update_hnsw(store, generation, IndexConfig(), ef_search=100)
    activate(store, generation, stats)
    collect(store, generation.collection_id, keep)
    store.close()
