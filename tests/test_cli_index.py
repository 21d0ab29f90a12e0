"""`rag index …` as a user runs it: a process, its exit status, its two streams."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import rag

from rag.config import load_settings
from rag.index.generations import activate, ensure_generation
from rag.index.store import Generation, Store
from rag.records import to_json

COLLECTION = "cli-index"


@pytest.fixture
def made(database_url: str) -> Iterator[list[Generation]]:
    """Three generations, the second and third were live, the third is; and one document that only two of them hold."""
    store = Store(database_url)
    found = []
    for size in (100, 200, 300):
        config = {"chunk": {"size": size, "overlap": 10}}
        found.append(ensure_generation(store, COLLECTION, config, {"model": "toy"}, 3))
    for generation in found[1:]:
        activate(store, generation, {})
    store.release(found[0].generation_id)
    with store.pool.connection() as conn:
        conn.execute(
            "insert into documents (collection_id, doc_id, source, mime, content_hash)"
            " values (%s, 'd', 's', 'm', 'new')",
            [found[0].collection_id],
        )
        for generation, content_hash in zip(found[1:], ("old", "new"), strict=True):
            conn.execute(
                "insert into generation_documents (generation_id, doc_id, content_hash, num_chunks)"
                " values (%s, 'd', %s, 1)",
                [generation.generation_id, content_hash],
            )
        conn.execute(
            "update generations set created_at = now() - interval '9 days', stats = %s where generation_id = %s",
            [to_json({}), found[0].generation_id],
        )
        conn.execute(
            "update generations set stats = %s where generation_id = %s",
            [
                to_json(
                    {"vectors": "halfvec", "m": 16, "ef_construction": 64, "hnsw_bytes": 3_145_728}
                    | {"hnsw_seconds": 1.25, "recall@10": 0.998, "ef_search": 100, "notice": ""}
                ),
                found[2].generation_id,
            ],
        )
    yield found
    with store.pool.connection() as conn:
        conn.execute("update collections set live_generation_id = null where name = %s", [COLLECTION])
        conn.execute("delete from collections where name = %s", [COLLECTION])
    store.close()


def test_the_list_tells_what_is_live_what_is_behind_and_what_was_never_finished(
    home: Path, made: list[Generation]
) -> None:
    a, b, c = (g.generation_id for g in made)
    lines = rag("index", "list", "-c", COLLECTION, home=home).stdout.splitlines()
    assert lines[0] == COLLECTION
    assert lines[1].startswith(f"  index {a} (building): 0 documents, 0 chunks of 100/10, toy, 0.")
    assert lines[2].startswith("    not finished, last written 20")
    assert lines[2].endswith(f": `rag ingest` with its settings goes on, `rag index drop {a}` deletes it")
    assert lines[3].startswith(f"  index {b} (retired 20")
    assert lines[4] == "    1 document behind; `rag ingest` with its settings brings it up to date"
    assert lines[5].startswith(f"  index {c} (live since 20")
    assert lines[6] == (
        "    HNSW of halfvec, m 16, ef_construction 64; 3.0 MB built in 1.2 s; recall@10 0.998 at ef_search 100"
    )
    found = json.loads(rag("index", "list", "-c", COLLECTION, "--json", home=home).stdout)["collections"]
    entries = found[0]["generations"]
    assert [e["index_id"] for e in entries] == [a, b, c]
    assert [e["live"] for e in entries] == [False, False, True]
    assert [e["state"] for e in entries] == ["building", "retired", "ready"]
    assert [e["documents_behind"] for e in entries] == [1, 1, 0]
    assert [e["abandoned"] for e in entries] == [True, False, False]
    status = rag("status", "-c", COLLECTION, home=home).stdout
    assert "recall@10 0.998 at ef_search 100" in status


def test_activate_and_rollback_switch_and_tell_what_is_live_now(home: Path, made: list[Generation]) -> None:
    a, b, c = (g.generation_id for g in made)
    back = json.loads(rag("index", "rollback", "-c", COLLECTION, "--json", home=home).stdout)
    assert back["live_since"].startswith("20")
    assert {name: back[name] for name in back if name != "live_since"} == {
        "collection": COLLECTION,
        "index_id": b,
        "documents": 1,
        "chunks": 1,
        "documents_behind": 1,
        "dropped": [],
    }
    forward = rag("index", "activate", str(c), home=home, RAG_INDEX__KEEP_GENERATIONS="0").stdout.splitlines()
    assert forward == [
        f"index {c} is live in {COLLECTION}: 1 documents, 1 chunks of 300/10, toy",
        f"dropped: index {b}",
    ]
    nothing = rag("index", "rollback", "-c", COLLECTION, home=home)
    assert nothing.returncode == 1
    assert "has no other index that was live" in nothing.stderr


def test_drop_deletes_what_is_not_live_and_refuses_the_live_one(home: Path, made: list[Generation]) -> None:
    a, _, c = (g.generation_id for g in made)
    refused = rag("index", "drop", str(c), home=home)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"error: index {c} is live in '{COLLECTION}'; make another one live first:"
        f" `rag index rollback -c {COLLECTION}` or `rag index activate ID`\n"
    )
    done = rag("index", "drop", str(a), "--json", home=home)
    assert json.loads(done.stdout) == {"collection": COLLECTION, "index_id": a, "dropped": [a]}
    assert "no index" in rag("index", "drop", str(a), home=home).stderr
    assert rag("index", "drop", "last", home=home).returncode == 2


def test_every_command_explains_itself_with_an_example(home: Path) -> None:
    for command in ("list", "activate", "rollback", "drop"):
        assert f"rag index {command}" in rag("index", command, "--help", home=home).stdout
    assert load_settings(home=home).index.keep_generations == 2
