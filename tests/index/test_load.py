"""A dump into the database: the same rows, at once and whole, or nothing."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_documents import DIM, FINGERPRINT, content, document, make_collection, vectors
from test_dump import start_rag, wait_for_lock

from rag.cli_index import index_line
from rag.config import IndexConfig, SearchConfig, Settings
from rag.errors import DumpError, NotFound
from rag.index.dump import dump_collection
from rag.index.fingerprint import Fingerprint
from rag.index.generations import ensure_generation, generations, live_generation
from rag.index.hnsw import update_hnsw
from rag.index.load import load_collection
from rag.index.store import Store
from rag.index.vectors import nearest
from rag.search.retrieve import Retriever


@pytest.fixture
def copy_name(settings: Settings) -> str:
    return f"{settings.collection[:55]}-copy"


def everything(store: Store) -> tuple[Any, ...]:
    """Names, generations and chunk tables of the whole database."""
    with store.pool.connection() as conn:
        return tuple(
            conn.execute(query).fetchall()
            for query in (
                "select * from collections order by 1",
                "select generation_id, collection_id, state from generations order by 1",
                "select relname from pg_class where relname like 'chunks%' order by 1",
            )
        )


def orphans(store: Store) -> list[Any]:
    with store.pool.connection() as conn:
        return conn.execute(
            "select relname from pg_class where relname ~ '^chunks_[0-9]+$'"
            " and not exists (select from generations where relname = 'chunks_' || generation_id)"
        ).fetchall()


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_a_loaded_collection_has_the_very_rows_of_the_dumped_one(
    store: Store, settings: Settings, tmp_path: Path, copy_name: str, scheme: str
) -> None:
    original = make_collection(store, settings.collection, [10, 1, 13])
    where = f"{scheme}{tmp_path}/d"
    dump_collection(store, settings.collection, where, shard_rows=7)
    report = load_collection(store, where, copy_name)
    copy = live_generation(store, copy_name)
    assert content(store, copy) == content(store, original)
    assert (report.collection, report.index_ids, report.chunks) == (copy_name, (copy.generation_id,), 24)
    kept = ("config", "fingerprint", "dim", "state", "stats", "is_live")
    assert [getattr(copy, name) for name in kept] == [getattr(original, name) for name in kept]


def test_language_and_weight_of_a_collection_move_with_it(
    store: Store, settings: Settings, tmp_path: Path, copy_name: str
) -> None:
    original = make_collection(store, settings.collection, [2])
    store.set_collection(original.collection_id, language="german", weight=0.7)
    dump_collection(store, settings.collection, str(tmp_path / "d"))
    load_collection(store, str(tmp_path / "d"), copy_name)
    assert live_generation(store, copy_name).settings == {"language": "german", "weight": 0.7}


def test_the_dumped_name_is_the_default(store: Store, settings: Settings, tmp_path: Path) -> None:
    original = content(store, make_collection(store, settings.collection, [2]))
    dump_collection(store, settings.collection, str(tmp_path / "d"))
    assert load_collection(store, str(tmp_path / "d"), is_replacing=True).collection == settings.collection
    assert content(store, live_generation(store, settings.collection)) == original


def test_searches_of_the_copy_find_the_same(store: Store, settings: Settings, tmp_path: Path, copy_name: str) -> None:
    original = make_collection(store, settings.collection, [700, 800])
    update_hnsw(store, original, IndexConfig(), ef_search=100)
    original = live_generation(store, settings.collection)
    dump_collection(store, settings.collection, str(tmp_path / "d"))
    load_collection(store, str(tmp_path / "d"), copy_name)
    copy = live_generation(store, copy_name)
    assert copy.stats["hnsw_chunks"] == 1500
    assert copy.stats["recall@10"] >= 0.95
    assert (copy.stats["ef_search"], copy.stats["recall_chunks"]) == (100, 1500)
    assert index_line(copy.stats).endswith(" at ef_search 100")  # as `rag status` shows it
    same = 0
    for query in vectors(20, seed=1):
        expected = nearest(store, original, query, 10, exact=True)
        assert nearest(store, copy, query, 10, exact=True) == expected
        same += len({row.chunk_id for _, row in nearest(store, copy, query, 10)} & {r.chunk_id for _, r in expected})
    assert same / 200 >= 0.95
    with store.pool.connection() as conn:
        plan = conn.execute(
            f"explain select 1 from chunks_{copy.generation_id} order by"
            f" embedding::halfvec({DIM}) <#> array_fill(0.1::real, array[{DIM}])::halfvec({DIM}) limit 10"
        ).fetchall()
    assert "hnsw" in str(plan)


def test_all_generations_move_with_their_states_and_one_is_live(
    store: Store, settings: Settings, tmp_path: Path, copy_name: str
) -> None:
    live = make_collection(store, settings.collection, [2])
    other = ensure_generation(store, live.collection, live.config | {"extractor": 2}, live.fingerprint, DIM)
    store.write_documents(other, [document("file:///elsewhere", 4)])
    dump_collection(store, live.collection, str(tmp_path / "d"), all_generations=True)
    load_collection(store, str(tmp_path / "d"), copy_name)
    copies = generations(store, copy_name)
    assert [(g.state, g.is_live, store.counts(g)["chunks"]) for g in copies] == [
        ("ready", True, 2),
        ("building", False, 4),
    ]
    assert [content(store, g) for g in copies] == [content(store, g) for g in (live, other)]


def test_what_was_loaded_can_be_written_to_and_dumped_again(
    store: Store, settings: Settings, tmp_path: Path, copy_name: str
) -> None:
    make_collection(store, settings.collection, [3])
    dump_collection(store, settings.collection, str(tmp_path / "d"))
    load_collection(store, str(tmp_path / "d"), copy_name)
    copy = live_generation(store, copy_name)
    source = f"file:///{settings.collection}/0"
    assert ensure_generation(store, copy_name, copy.config, copy.fingerprint, DIM) == copy
    store.write_documents(copy, [document(source, 2, "v2"), document("file:///new", 1)])
    assert store.counts(copy) == {"documents": 2, "chunks": 3}
    assert store.remove_documents(copy.collection_id, [document("file:///new", 1).doc_id]) == 1
    assert dump_collection(store, copy_name, str(tmp_path / "again")).chunks == 2


def test_a_name_that_exists_is_refused_unless_it_is_to_be_replaced(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    make_collection(store, settings.collection, [2])
    dump_collection(store, settings.collection, str(tmp_path / "d"))
    before = everything(store)
    with pytest.raises(DumpError, match=r"exists; load under another name, --collection NEWNAME, or pass --replace"):
        load_collection(store, str(tmp_path / "d"))
    assert everything(store) == before


class MadeEmbedder:
    """The model of `made_documents`: one vector for every query."""

    fingerprint = Fingerprint(**FINGERPRINT)  # type: ignore[arg-type]

    def embed(self, texts: list[str], kind: str) -> np.ndarray:
        return vectors(len(texts), seed=7)


def test_readers_of_a_replaced_collection_see_the_old_or_the_new_and_never_half(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    name = settings.collection
    for version, sizes in (("new", [30, 35]), ("old", [40, 45])):
        make_collection(store, name, sizes, version)
        dump_collection(store, name, str(tmp_path / version))
        if version == "new":
            load_collection(store, str(tmp_path / "new"), f"{name[:50]}-x")  # so that both exist from the start
    retriever = Retriever(store, SearchConfig(mode="semantic"), MadeEmbedder(), tmp_path)  # type: ignore[arg-type]
    stop = threading.Event()
    seen: list[tuple[int, str]] = []
    failed: list[Exception] = []

    def read() -> None:
        while not stop.is_set():
            try:
                hits = retriever.search("anything", name, k=1000, exact=True).hits
            except Exception as error:
                failed.append(error)
                return
            seen.append((len(hits), " ".join(sorted({hit.text.split()[0] for hit in hits}))))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for version in ("new", "old") * 5:
            load_collection(store, str(tmp_path / version), name, is_replacing=True)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert failed == []
    assert set(seen) == {(65, "new"), (85, "old")}
    assert orphans(store) == []


@pytest.mark.parametrize("table", ["sections", "chunks"])  # waits while copying in; when all is there but the switch
def test_a_load_killed_midway_leaves_nothing_and_the_next_one_works(
    store: Store, settings: Settings, tmp_path: Path, table: str
) -> None:
    name = settings.collection
    make_collection(store, name, [700, 800], "new")
    dump_collection(store, name, str(tmp_path / "d"))
    make_collection(store, name, [3, 2], "old")
    old, before = live_generation(store, name), everything(store)
    rows_before = content(store, old)
    with psycopg.connect(store.url) as blocker:
        blocker.execute(f"lock table {table} in share mode")
        process = start_rag(settings, "db", "load", str(tmp_path / "d"), "--replace")
        wait_for_lock(store, table)
        process.kill()
        process.communicate()
        assert everything(store) == before
        assert content(store, old) == rows_before
    assert load_collection(store, str(tmp_path / "d"), is_replacing=True).chunks == 1500
    assert store.counts(live_generation(store, name)) == {"documents": 2, "chunks": 1500}
    assert orphans(store) == []


def test_two_loads_into_one_name_are_one_load_and_one_refusal(
    store: Store, settings: Settings, tmp_path: Path, copy_name: str
) -> None:
    make_collection(store, settings.collection, [50])
    dump_collection(store, settings.collection, str(tmp_path / "d"))
    results: list[str] = []

    def run() -> None:
        try:
            load_collection(store, str(tmp_path / "d"), copy_name)
            results.append("loaded")
        except DumpError as error:
            results.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.split(";")[0] for result in results) == [f"collection {copy_name!r} exists", "loaded"]


def test_an_ingestion_can_start_a_generation_while_a_load_is_on(
    store: Store, settings: Settings, tmp_path: Path, copy_name: str
) -> None:
    make_collection(store, settings.collection, [50])
    dump_collection(store, settings.collection, str(tmp_path / "d"))
    with psycopg.connect(store.url) as blocker:
        blocker.execute("lock table failures in share mode")  # the last table of a load
        load = threading.Thread(target=load_collection, args=(store, str(tmp_path / "d"), copy_name))
        load.start()
        wait_for_lock(store, "failures")
        other = ensure_generation(store, f"{settings.collection[:50]}-other", {}, {}, DIM)
        assert other.state == "building"
        with pytest.raises(NotFound):
            live_generation(store, copy_name)
    load.join()
    assert live_generation(store, copy_name).state == "ready"


# Damaged and hostile dumps


@pytest.fixture(scope="module")
def good_dump(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "d"
    store = Store(database_url)
    make_collection(store, "good-dump", [4, 3])
    dump_collection(store, "good-dump", str(folder))
    store.close()
    return folder


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def rewrite(folder: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Changes a shard as an attacker would: with checksums and counts to match."""
    (path,) = folder.glob(f"*{name}-00000.parquet") if name.startswith("-") else [folder / f"{name}-00000.parquet"]
    table = change(pq.read_table(path))
    pq.write_table(table, path)
    data = path.read_bytes()

    def update(manifest: dict[str, Any]) -> None:
        g = manifest["generations"][0]
        parts = [manifest["documents"], manifest["sections"], g["documents"], g["chunks"], g["failures"]]
        (file,) = [f for part in parts for f in part["files"] if f["name"] == path.name]
        file |= {"num_rows": len(table), "num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    edit_manifest(folder, update)


def with_column(name: str, make: Callable[[list[Any]], list[Any]]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        i = table.schema.get_field_index(name)
        return table.set_column(i, table.schema.field(i), pa.array(make(table[name].to_pylist()), table.schema[i].type))

    return change


def flip_a_byte(folder: Path) -> None:
    path = next(folder.glob("*-chunks-*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rename_file(name: str) -> Callable[[Path], None]:
    return lambda d: edit_manifest(d, lambda m: m["documents"]["files"][0].update(name=name))


SCALED = with_column("embedding", lambda rows: [[2 * x for x in rows[0]], *rows[1:]])
NAN = with_column("embedding", lambda rows: [[float("nan")] * DIM, *rows[1:]])
HUGE = with_column("embedding", lambda rows: [[3e38] * DIM, *rows[1:]])

DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped byte": (flip_a_byte, "chunks-00000.parquet is not the file that was written"),
    "cut file": (lambda d: next(d.glob("*-chunks-*")).write_bytes(b"PAR1"), "is not the file that was written"),
    "lost file": (lambda d: (d / "sections-00000.parquet").unlink(), "sections-00000.parquet is missing"),
    "no manifest": (lambda d: (d / "manifest.json").unlink(), "found no manifest.json"),
    "torn manifest": (lambda d: (d / "manifest.json").write_text('{"form'), "is not JSON"),
    "deep manifest": (lambda d: (d / "manifest.json").write_text("[" * 10**6), "is not JSON"),
    "other JSON": (lambda d: (d / "manifest.json").write_text("[]"), "point at a folder that `rag db dump` wrote"),
    "later format": (lambda d: edit_manifest(d, lambda m: m.update(version=2)), "expected format version 1, found 2"),
    "no generation": (lambda d: edit_manifest(d, lambda m: m.update(generations=[])), "generations"),
    "name": (lambda d: edit_manifest(d, lambda m: m.update(collection="a b")), "collection"),
    "two live": (lambda d: edit_manifest(d, lambda m: m["generations"].append(m["generations"][0])), "named twice"),
    "parent": (rename_file("../documents-00000.parquet"), "documents.files.0.name"),
    "absolute": (rename_file("/etc/passwd"), "documents.files.0.name"),
    "newline": (rename_file("documents-00000.parquet\n"), "documents.files.0.name"),
    "url": (rename_file("file:///etc/passwd.parquet"), "documents.files.0.name"),
    "norm 2": (lambda d: rewrite(d, "-chunks", SCALED), "a vector of norm 2, expected 1"),
    "nan": (lambda d: rewrite(d, "-chunks", NAN), "a vector of norm nan"),
    "huge": (lambda d: rewrite(d, "-chunks", HUGE), "a vector of norm 8.4"),
    "dim": (lambda d: edit_manifest(d, lambda m: m["generations"][0].update(dim=9)), "other columns than expected"),
    "fewer chunks": (lambda d: rewrite(d, "-chunks", lambda t: t.slice(1)), "1 documents do not have the chunks"),
    "fewer documents": (lambda d: rewrite(d, "documents", lambda t: t.slice(1)), "violates foreign key constraint"),
    "fewer in manifest": (lambda d: rewrite(d, "-documents", lambda t: t.slice(1)), "1 documents do not have"),
    "chunk twice": (
        lambda d: rewrite(d, "-chunks", lambda t: pa.concat_tables([t, t.slice(0, 1)])),
        "could not create unique index",
    ),
    "missing value": (
        lambda d: rewrite(d, "sections", with_column("title", lambda rows: [None, *rows[1:]])),
        "values that are missing",
    ),
    "nul": (lambda d: rewrite(d, "sections", with_column("title", lambda rows: ["\0", *rows[1:]])), "0x00"),
    "not json": (lambda d: rewrite(d, "documents", with_column("meta", lambda rows: ["{", *rows[1:]])), "json"),
    "span": (
        lambda d: rewrite(d, "-chunks", with_column("start_char", lambda rows: [-5, *rows[1:]])),
        "not as long as its span",
    ),
    "column": (lambda d: rewrite(d, "sections", lambda t: t.drop_columns(["title"])), "other columns than expected"),
    "not parquet": (
        lambda d: (
            (d / "sections-00000.parquet").write_bytes(b"gone"),
            edit_manifest(
                d,
                lambda m: m["sections"]["files"][0].update(num_bytes=4, sha256=hashlib.sha256(b"gone").hexdigest()),
            ),
        ),
        "damaged dump: ",
    ),
    "row count": (
        lambda d: edit_manifest(d, lambda m: m["sections"]["files"][0].update(num_rows=99)),
        "has 2 rows, not 99",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_dump_is_refused_in_one_line_and_changes_nothing(
    store: Store, good_dump: Path, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(good_dump, tmp_path / "d")
    break_it, message = DAMAGES[damage]
    break_it(tmp_path / "d")
    before = everything(store)
    with pytest.raises(DumpError) as caught:
        load_collection(store, str(tmp_path / "d"), "damaged-dump")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert everything(store) == before
    with pytest.raises(NotFound):
        live_generation(store, "damaged-dump")


def test_the_report_is_plain_data(store: Store, good_dump: Path, copy_name: str) -> None:
    report = asdict(load_collection(store, str(good_dump), copy_name))
    assert json.loads(json.dumps(report))["documents"] == 2
    assert set(report) == {
        *("collection", "dump", "index_ids", "documents", "sections", "chunks", "files", "bytes", "seconds"),
    }
