"""A collection out of the database: snapshots, JSON lines, and what a dump refuses."""

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pyarrow.parquet as pq
import pytest
from made_documents import DIM, document, make_collection

from rag.config import Settings
from rag.errors import DumpError, NotFound
from rag.index.dump import dump_collection, dump_jsonl
from rag.index.dump_folder import Folder
from rag.index.dump_format import CHUNKS, DOCUMENTS, FAILURES, GENERATION_DOCUMENTS, SECTIONS
from rag.index.generations import ensure_generation
from rag.index.load import load_collection
from rag.index.store import Store


def wait_for_lock(store: Store, table: str, timeout_s: float = 60) -> None:
    """Until another session waits for a lock on `table`."""
    deadline = time.monotonic() + timeout_s
    with psycopg.connect(store.url, autocommit=True) as conn:
        while time.monotonic() < deadline:
            waiting = "select exists (select from pg_locks where not granted and relation = %s::regclass)"
            if conn.execute(waiting, [table]).fetchone() == (True,):
                return
            time.sleep(0.02)
    raise AssertionError(f"nobody waits for {table}")


def start_rag(settings: Settings, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rag.cli", *args],
        env=os.environ | {"RAG_HOME": str(settings.home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("table", "columns", "owner"),
    [
        ("documents", DOCUMENTS, "collection_id"),
        ("sections", SECTIONS, "collection_id"),
        ("generation_documents", GENERATION_DOCUMENTS, "generation_id"),
        ("chunks", CHUNKS, "generation_id"),
        ("failures", FAILURES, "generation_id"),
    ],
)
def test_every_column_of_the_schema_moves(store: Store, table: str, columns: dict[str, str], owner: str) -> None:
    with store.pool.connection() as conn:
        found = conn.execute(
            "select attname, format_type(atttypid, null) from pg_attribute"
            " where attrelid = %s::regclass and attnum > 0 and not attisdropped",
            [table],
        ).fetchall()
    names = {"integer": "int4", "timestamp with time zone": "timestamptz", "real": "float4", "boolean": "bool"}
    assert {name: names.get(kind, kind) for name, kind in found if name != owner} == columns


def test_a_dump_is_parquet_that_any_reader_opens(store: Store, settings: Settings, tmp_path: Path) -> None:
    make_collection(store, settings.collection, [3, 2])
    report = dump_collection(store, settings.collection, str(tmp_path / "d"))
    assert (report.documents, report.sections, report.chunks, report.files) == (2, 2, 5, 5)
    (chunks,) = (tmp_path / "d").glob("*-chunks-00000.parquet")
    rows = pq.read_table(chunks).to_pylist()
    expected = {c.chunk_id: (c, e) for i, n in ((0, 3), (1, 2)) for c, e in zip_chunks(settings, i, n)}
    assert {row["chunk_id"] for row in rows} == set(expected)
    for row in rows:
        chunk, embedding = expected[row["chunk_id"]]
        assert (row["text"], row["start_char"], row["end_char"]) == (chunk.text, chunk.start_char, chunk.end_char)
        assert row["embedding"] == embedding.tolist()
        assert len(row["embedding"]) == DIM


def zip_chunks(settings: Settings, i: int, n: int) -> Iterator[tuple[object, object]]:
    d = document(f"file:///{settings.collection}/{i}", n)
    yield from zip(d.chunks, d.embeddings, strict=True)


def test_shards_have_at_most_the_rows_asked_for_and_are_counted_and_hashed(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    make_collection(store, settings.collection, [10, 13])
    dump_collection(store, settings.collection, str(tmp_path / "d"), shard_rows=7)
    manifest = Folder(str(tmp_path / "d")).read_manifest()
    assert [file.num_rows for file in manifest.generations[0].chunks.files] == [7, 7, 7, 2]
    for file in manifest.files:
        path = tmp_path / "d" / file.name
        assert Folder(str(tmp_path / "d")).hash_file(file.name) == (path.stat().st_size, file.sha256)
        assert pq.read_metadata(path).num_rows == file.num_rows


def test_only_the_live_generation_and_its_documents_are_dumped_unless_all_are_asked_for(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    live = make_collection(store, settings.collection, [2])
    other = ensure_generation(store, live.collection, live.config | {"extractor": 2}, live.fingerprint, DIM)
    store.write_documents(other, [document("file:///elsewhere", 4)])
    one = dump_collection(store, live.collection, str(tmp_path / "one"))
    assert (one.index_ids, one.documents, one.chunks) == ((live.generation_id,), 1, 2)
    both = dump_collection(store, live.collection, str(tmp_path / "both"), all_generations=True)
    assert (both.index_ids, both.documents, both.chunks) == ((live.generation_id, other.generation_id), 2, 6)


def test_a_dump_taken_while_documents_are_rewritten_holds_whole_documents(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    generation = make_collection(store, settings.collection, [40] * 5)
    stop = threading.Event()
    written = 0

    def rewrite() -> None:
        nonlocal written
        while not stop.is_set():
            written += 1
            batch = [
                document(f"file:///{settings.collection}/{i}", 20 + (written + i) % 30, f"v{written}") for i in range(5)
            ]
            store.write_documents(generation, batch)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for i in range(5):
            before = written
            dump_collection(store, settings.collection, str(tmp_path / str(i)), shard_rows=10)
            while written == before:  # the next dump is of another state
                time.sleep(0.01)
    finally:
        stop.set()
        writer.join()
    for i in range(5):
        rows = [row for file in (tmp_path / str(i)).glob("*-chunks-*") for row in pq.read_table(file).to_pylist()]
        assert len({row["text"].split()[0] for row in rows}) == 1  # of one version, so of one transaction
        load_collection(store, str(tmp_path / str(i)), f"{settings.collection[:50]}-{i}")  # counts the chunks


def test_json_lines_have_the_contract_s_fields_in_reading_order(store: Store, settings: Settings) -> None:
    make_collection(store, settings.collection, [2, 1])
    out = io.BytesIO()
    assert dump_jsonl(store, settings.collection, out) == 3
    name = settings.collection
    assert [json.loads(line) for line in out.getvalue().decode().split("\n")[:-1]] == [
        {
            "source": f"file:///{name}/{i}#top",
            "start": chunk.start_char,
            "end": chunk.end_char,
            "text": chunk.text,
            "document": f"file:///{name}/{i}",
            "metadata": {"lang": "pt", "pages": 3},
        }
        for i, n in ((0, 2), (1, 1))
        for chunk in document(f"file:///{name}/{i}", n).chunks
    ]


def test_a_collection_without_a_live_index_is_not_dumped(store: Store, settings: Settings, tmp_path: Path) -> None:
    ensure_generation(store, settings.collection, {}, {}, DIM)
    with pytest.raises(NotFound, match="has no finished index yet"):
        dump_collection(store, settings.collection, str(tmp_path / "d"))
    with pytest.raises(NotFound, match="no collection named 'nope'"):
        dump_jsonl(store, "nope", io.BytesIO())
    assert not (tmp_path / "d").exists()


def test_nothing_that_is_there_is_overwritten(store: Store, settings: Settings, tmp_path: Path) -> None:
    make_collection(store, settings.collection, [1])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.parquet").write_text("years of work")
    with pytest.raises(DumpError, match="expected an empty folder, found 'thesis.parquet'"):
        dump_collection(store, settings.collection, str(tmp_path / "mine"))
    dump_collection(store, settings.collection, str(tmp_path / "d"))
    with pytest.raises(DumpError, match="found a finished dump"):
        dump_collection(store, settings.collection, str(tmp_path / "d"))
    with pytest.raises(DumpError, match="thesis.parquet"):
        dump_collection(store, settings.collection, str(tmp_path / "mine" / "thesis.parquet"))


@pytest.mark.parametrize("url", ["nosuch://bucket/d", "nosuch://user:secret@host/d"])
def test_a_url_that_nothing_opens_is_one_line_without_its_password(store: Store, settings: Settings, url: str) -> None:
    make_collection(store, settings.collection, [1])
    with pytest.raises(DumpError, match="expected a folder or a URL that fsspec opens") as caught:
        dump_collection(store, settings.collection, url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dump_that_was_killed_has_no_manifest_and_is_refused(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    make_collection(store, settings.collection, [5])
    with psycopg.connect(store.url) as blocker:
        blocker.execute("lock table failures in access exclusive mode")  # the last table of a dump
        process = start_rag(settings, "db", "dump", "-c", settings.collection, "--to", str(tmp_path / "d"))
        wait_for_lock(store, "failures")
        process.kill()
        process.communicate()
    left = sorted(path.name for path in (tmp_path / "d").iterdir())
    assert any("chunks" in name for name in left)
    with pytest.raises(DumpError, match=r"found no manifest.json, which is written last"):
        load_collection(store, str(tmp_path / "d"), "killed-dump")
    with pytest.raises(DumpError, match="delete what is there if an interrupted dump left it"):
        dump_collection(store, settings.collection, str(tmp_path / "d"))
