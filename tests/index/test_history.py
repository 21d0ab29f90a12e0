"""What moves beside the rows: sources with whose they are, and what was live when."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_documents import CONFIG, DIM, FINGERPRINT, document, make_collection
from test_load import edit_manifest, everything

from rag.config import IngestConfig, Settings
from rag.errors import DumpError, NotAllowed
from rag.index import ledger
from rag.index.drop import collect, drop
from rag.index.dump import dump_collection
from rag.index.generations import activate, ensure_generation, generations, live_generation, rollback, switch
from rag.index.load import load_collection
from rag.index.store import Generation, Store
from rag.ingest.access import choose_access
from rag.records import Access

BOARD = Access("acme", ("board",))


@pytest.fixture
def copy_name(settings: Settings) -> str:
    return f"{settings.collection[:55]}-copy"


@pytest.fixture
def dumped(store: Store, settings: Settings, tmp_path: Path) -> Path:
    """Of one generation."""
    make_collection(store, settings.collection, [2])
    dump_collection(store, settings.collection, str(tmp_path / "d"))
    return tmp_path / "d"


def history(store: Store, collection: str) -> list[tuple[Any, ...]]:
    """Of each switch: which generation, the switch that a rollback goes to, when. Both by their places."""
    ids = [g.generation_id for g in generations(store, collection)]
    with store.pool.connection() as conn:
        rows = conn.execute(
            "select activation_id, generation_id, previous_id, activated_at from activations"
            " join collections using (collection_id) where name = %s order by activation_id",
            [collection],
        ).fetchall()
    switches = [row[0] for row in rows]
    return [(ids.index(g), None if back is None else switches.index(back), at) for _, g, back, at in rows]


def live_ones(store: Store, collection: str, count: int) -> list[Generation]:
    """Generations of a document each that went live one after the other."""
    made = []
    for n in range(count):
        generation = ensure_generation(store, collection, CONFIG | {"extractor": n}, FINGERPRINT, DIM)
        store.write_documents(generation, [document("file:///a", n + 1)])
        activate(store, generation, {})
        made.append(generation)
    return made


def chunk_counts(store: Store, found: list[Generation]) -> list[int]:
    """`live_ones` differ in it."""
    return [store.counts(g)["chunks"] for g in found]


# Sources


def test_the_copy_knows_its_sources_and_whose_they_are(
    store: Store, settings: Settings, tmp_path: Path, copy_name: str
) -> None:
    name = settings.collection
    original = make_collection(store, name, [2])
    for origin, access in (("file:///minutes", BOARD), ("https://example.org/a/", Access())):
        ledger.start_run(store, original, [origin], {origin: access})
    dump_collection(store, name, str(tmp_path / "d"))
    load_collection(store, str(tmp_path / "d"), copy_name)
    assert ledger.origins(store, copy_name) == ["file:///minutes", "https://example.org/a/"]
    remembered = ledger.origin_access(store, copy_name)
    assert remembered == ledger.origin_access(store, name)
    assert choose_access(IngestConfig(), remembered["file:///minutes"]) == BOARD


def test_a_collection_that_is_replaced_gives_up_its_sources_too(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    original = make_collection(store, settings.collection, [2])
    ledger.start_run(store, original, ["file:///minutes"], {"file:///minutes": BOARD})
    dump_collection(store, settings.collection, str(tmp_path / "d"))
    ledger.start_run(store, original, ["file:///minutes", "file:///later"])
    load_collection(store, str(tmp_path / "d"), is_replacing=True)
    assert ledger.origin_access(store, settings.collection) == {"file:///minutes": BOARD}


# What was live when


def test_a_rollback_of_the_copy_goes_where_that_of_the_original_goes(
    store: Store, settings: Settings, tmp_path: Path, copy_name: str
) -> None:
    name = settings.collection
    _, second, third, _ = live_ones(store, name, 4)
    rollback(store, name)  # to the third,
    switch(store, second.generation_id)  # which is the one before the second now
    drop(store, third.generation_id)  # but is not there any more
    dump_collection(store, name, str(tmp_path / "d"), all_generations=True)
    load_collection(store, str(tmp_path / "d"), copy_name)
    assert [(place, back) for place, back, _ in history(store, copy_name)] == [(0, None), (1, 0), (2, 1), (1, 1)]
    for collection in (copy_name, name):
        assert chunk_counts(store, [rollback(store, collection)]) == [1]
        with pytest.raises(NotAllowed, match="no other index that was live"):
            rollback(store, collection)


def test_a_switch_after_a_load_collects_the_one_that_retired_first(
    store: Store, settings: Settings, tmp_path: Path, copy_name: str
) -> None:
    live_ones(store, settings.collection, 4)
    dump_collection(store, settings.collection, str(tmp_path / "d"), all_generations=True)
    load_collection(store, str(tmp_path / "d"), copy_name)
    copies = generations(store, copy_name)
    for copy, original in zip(copies, generations(store, settings.collection), strict=True):
        assert (copy.live_since, copy.retired_at) == (original.live_since, original.retired_at)
    assert history(store, copy_name) == history(store, settings.collection)
    switch(store, copies[0].generation_id)
    assert collect(store, copies[0].collection_id, keep=1) == [copies[2].generation_id, copies[1].generation_id]
    assert chunk_counts(store, [live_generation(store, copy_name), rollback(store, copy_name)]) == [1, 4]


def test_what_a_rollback_goes_to_has_its_hnsw_too(
    store: Store, settings: Settings, tmp_path: Path, copy_name: str
) -> None:
    make_collection(store, settings.collection, [1000])
    live_ones(store, settings.collection, 1)
    dump_collection(store, settings.collection, str(tmp_path / "d"), all_generations=True)
    load_collection(store, str(tmp_path / "d"), copy_name)
    assert rollback(store, copy_name).stats["recall_chunks"] == 1000


def test_without_the_other_generations_there_is_nothing_to_go_back_to(
    store: Store, settings: Settings, tmp_path: Path, copy_name: str
) -> None:
    live_ones(store, settings.collection, 2)
    dump_collection(store, settings.collection, str(tmp_path / "d"))
    load_collection(store, str(tmp_path / "d"), copy_name)
    at = live_generation(store, settings.collection).live_since
    assert [(place, back) for place, back, _ in history(store, copy_name)] == [(0, None)]
    assert live_generation(store, copy_name).live_since == at
    with pytest.raises(NotAllowed, match="no other index that was live"):
        rollback(store, copy_name)


def test_a_dump_from_before_sources_and_history_moved_is_loaded_and_live_from_then_on(
    store: Store, settings: Settings, tmp_path: Path, copy_name: str
) -> None:
    live_ones(store, settings.collection, 2)
    dump_collection(store, settings.collection, str(tmp_path / "d"), all_generations=True)

    def make_old(manifest: dict[str, Any]) -> None:
        del manifest["origins"], manifest["activations"]
        for g in manifest["generations"]:
            del g["live_since"], g["retired_at"]

    edit_manifest(tmp_path / "d", make_old)
    load_collection(store, str(tmp_path / "d"), copy_name)
    retired, live = generations(store, copy_name)
    assert (retired.state, retired.retired_at, live.is_live, live.live_since is None) == ("retired", None, True, False)
    assert ledger.origins(store, copy_name) == []
    assert [(place, back) for place, back, _ in history(store, copy_name)] == [(1, None)]


# Hostile dumps

AT = "2026-03-01T12:30:00Z"


def origin(**changes: Any) -> dict[str, Any]:
    return {"origin": "file:///a", "tenant": "", "labels": [], "added_at": AT} | changes


def origins(*entries: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: manifest.update(origins=list(entries))


def switches(*entries: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """`index` 0 is the one generation of `dumped`."""

    def change(manifest: dict[str, Any]) -> None:
        (g,) = manifest["generations"]
        manifest["activations"] = [
            {"index_id": g["index_id"] + e.get("index", 0), "previous": e.get("previous"), "activated_at": AT}
            for e in entries
        ]

    return change


def unfinished(manifest: dict[str, Any]) -> None:
    manifest["generations"][0] |= {"state": "building", "live": False}


FORGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "origin with NUL": (origins(origin(origin="file:///a\0")), "origins.0.origin"),
    "origin with an escape": (origins(origin(origin="file:///a\x1b[2J")), "origins.0.origin"),
    "origin of no kind": (origins(origin(origin="nosuch://a")), "origins.0.origin"),
    "long origin": (origins(origin(origin="file:///" + "a" * 20_000)), "origins.0.origin"),
    "two of an origin": (origins(origin(), origin(tenant="acme")), "named twice"),
    "origin of no time": (origins(origin(added_at="now")), "origins.0.added_at"),
    "origin before time": (origins(origin(added_at="0001-01-01T00:00:00+14:00")), "origins.0.added_at"),
    "tenant with NUL": (origins(origin(tenant="\0")), "origins.0.tenant"),
    "tenant of no text": (origins(origin(tenant=7)), "origins.0.tenant"),
    "lone surrogate": (origins(origin(labels=["\ud800"])), "origins.0.labels"),
    "label with NUL": (origins(origin(labels=["a", "\0"])), "origins.0.labels"),
    "labels of no text": (origins(origin(labels=[None])), "origins.0.labels"),
    "another's index": (switches({"index": 1}, {}), "an index that is not there or not finished"),
    "unfinished index": (lambda m: (unfinished(m), switches({})(m)), "an index that is not there or not finished"),
    "switch to itself": (switches({"previous": 0}), "goes back to one that came later"),
    "no switch to the live one": (lambda m: m["generations"][0].update(live=False), "not to the live index"),
    "live and unfinished": (lambda m: m["generations"][0].update(state="building"), "not ready"),
    "made at no time": (lambda m: m["generations"][0].update(created_at="now"), "generations.0.created_at"),
}


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_history_is_refused_in_one_line_and_changes_nothing(
    store: Store, dumped: Path, copy_name: str, forged: str
) -> None:
    forge, message = FORGED[forged]
    edit_manifest(dumped, forge)
    before = everything(store)
    with pytest.raises(DumpError) as caught:
        load_collection(store, str(dumped), copy_name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert everything(store) == before


def test_a_name_that_is_too_long_for_an_index_is_damage(store: Store, dumped: Path, copy_name: str) -> None:
    noise = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=12_000))  # cannot be compressed
    edit_manifest(dumped, origins(origin(origin=f"file:///{noise}")))
    with pytest.raises(DumpError, match="damaged dump: index row"):
        load_collection(store, str(dumped), copy_name)
