"""The lexical index of a generation, over the real database."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rag.index import lexical, lexical_view
from rag.index.generations import activate, ensure_generation, live_generation
from rag.index.lexical import LexicalIndex, update_lexical
from rag.index.store import Generation, IndexedDocument, Store
from rag.records import Access, Chunk, Section

DIM = 4


def document(name: str, text: str, parts: Sequence[str] = ()) -> IndexedDocument:
    """With a chunk for each of `parts`, which lie in `text`; else one."""
    source = f"file:///{name}"
    section = Section(source, name, text)
    chunks = tuple(
        Chunk(section.section_id, source, name, part, text.index(part), text.index(part) + len(part))
        for part in parts or [text]
    )
    embeddings = np.ones((len(chunks), DIM), np.float32)
    return IndexedDocument(source, "text/plain", text, "{}", (section,), chunks, embeddings)


@pytest.fixture
def generation(store: Store, request: pytest.FixtureRequest) -> Generation:
    """Live, with three documents of a chunk each."""
    made = ensure_generation(store, request.node.name[:60], {"a": 1}, {"b": 2}, DIM)
    store.write_documents(
        made, [document("a", "The whale dives."), document("b", "A ship at sea."), document("c", "The captain sleeps.")]
    )
    activate(store, made, {})
    return live_generation(store, made.collection)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexical, "REFRESH_S", 0.0)


def found(index: LexicalIndex, query: str, access: Access | None = None) -> list[str]:
    """The chunk ids."""
    view = index.view()
    return view.search(index.analyzer.query_terms(query), 10, view.seen_by(access))[0]


def ids(*documents: IndexedDocument) -> list[str]:
    return [chunk.chunk_id for one in documents for chunk in one.chunks]


def test_what_is_written_changed_and_removed_is_followed(store: Store, generation: Generation, tmp_path: Path) -> None:
    index = LexicalIndex(store, generation, tmp_path)
    assert found(index, "whales") == ids(document("a", "The whale dives."))
    new, changed = document("d", "Whales sing, whales dive."), document("a", "The squid dives.")
    store.write_documents(generation, [new, changed])
    assert found(index, "whale") == ids(new)
    assert found(index, "squid") == ids(changed)
    store.remove_documents(generation.collection_id, [new.doc_id])
    assert found(index, "whale") == []
    assert found(index, "squid") == ids(changed)


def test_a_document_that_is_written_while_an_older_transaction_runs_is_not_missed(
    store: Store, generation: Generation, tmp_path: Path
) -> None:
    index = LexicalIndex(store, generation, tmp_path)
    index.view()
    late, early = document("late", "A kraken."), document("early", "A dolphin.")
    with store.pool.connection() as conn, conn.transaction():
        conn.execute("select pg_current_xact_id()")  # the older transaction, which ends last
        store.write_documents(generation, [early])
        assert found(index, "dolphin") == ids(early)
        conn.execute(
            "insert into generation_documents (generation_id, doc_id, content_hash, num_chunks) values (%s, %s, '', 0)",
            [generation.generation_id, late.doc_id],
        )
    store.write_documents(generation, [late])
    assert found(index, "kraken") == ids(late)
    assert found(index, "dolphin") == ids(early)


def test_a_second_process_maps_the_file_of_the_first_and_both_follow(
    store: Store, generation: Generation, tmp_path: Path
) -> None:
    first = LexicalIndex(store, generation, tmp_path)
    first.view()
    new = document("d", "A whale of a time, " + " ".join(f"word{i}" for i in range(100)))
    store.write_documents(generation, [new])
    assert len(found(first, "whale")) == 2
    second = LexicalIndex(store, generation, tmp_path)
    assert isinstance(second.view().parts[0].postings.hashes, np.memmap)
    assert sorted(found(second, "whale")) == sorted(found(first, "whale"))
    assert len(found(second, "whale")) == 2


def test_many_changes_become_one_part_that_is_the_same_index(
    store: Store, generation: Generation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lexical_view, "MERGE_SHARE", 1e9)
    index = LexicalIndex(store, generation, tmp_path)
    written = [document(f"w{i}", f"whale {'song ' * i}") for i in range(lexical_view.MAX_PARTS + 3)]
    for one in written:
        store.write_documents(generation, [one])
        found(index, "whale")
    assert 2 <= len(index.view().parts) <= lexical_view.MAX_PARTS
    fresh = LexicalIndex(store, generation, tmp_path / "elsewhere")
    assert found(index, "whale") == found(fresh, "whale")
    assert len(fresh.view().parts) == 1
    scores, expected = (np.sort(one.view().search(["song", "whale"], 99)[1]) for one in (index, fresh))
    np.testing.assert_allclose(scores[scores > 0], expected[expected > 0], rtol=1e-5)


def test_a_chunk_is_found_by_what_its_document_says_elsewhere(
    store: Store, generation: Generation, tmp_path: Path
) -> None:
    texts = {"e": ("The squid of the north.", "Giant arms."), "f": ("The squid of the south.", "Small arms.")}
    made = {name: document(name, " ".join(parts), parts) for name, parts in texts.items()}
    store.write_documents(generation, list(made.values()))
    index = LexicalIndex(store, generation, tmp_path)
    north, giant = ids(made["e"])
    south, small = ids(made["f"])
    assert found(index, "squid giant") == [giant, north, south]  # `small` holds no word of it
    assert found(index, "squid small")[0] == small
    view = index.view()
    scores = view.search(["squid", "giant"], 9)[1][view.slots([north, giant, south, small])]
    of_chunk = view.bm25.scores(["squid", "giant"])[view.slots([north])][0]
    assert scores[0] == pytest.approx(of_chunk + view.whole.scores(["squid", "giant"]).max())
    assert scores[3] == 0


def test_words_that_stand_side_by_side_count_more(store: Store, generation: Generation, tmp_path: Path) -> None:
    apart, together = document("g", "Squid, small and giant."), document("h", "Small, and giant squid.")
    store.write_documents(generation, [apart, together])
    index = LexicalIndex(store, generation, tmp_path)
    assert found(index, "giant squids") == ids(together, apart)
    assert found(index, "squid small") == ids(apart, together)  # one order only


def test_where_the_changes_are_many_they_are_written_for_the_next_process(
    store: Store, generation: Generation, tmp_path: Path
) -> None:
    update_lexical(store, generation.collection, tmp_path)
    store.write_documents(generation, [document(f"w{i}", f"whale {i}") for i in range(5)])
    update_lexical(store, generation.collection, tmp_path)
    folders = [path for path in tmp_path.glob("lexical/*/*/*") if path.is_dir()]
    assert [path.name for path in folders] == ["2"]
    assert len(np.load(folders[0] / "documents.npy")) == 8


def test_a_damaged_file_is_built_anew(store: Store, generation: Generation, tmp_path: Path) -> None:
    update_lexical(store, generation.collection, tmp_path)
    for path in tmp_path.glob("lexical/*/*/*/chunks/chunks.npy"):
        path.write_bytes(b"not an array")
    assert found(LexicalIndex(store, generation, tmp_path), "whale") == ids(document("a", "The whale dives."))


def test_files_of_a_generation_that_was_dropped_go(store: Store, generation: Generation, tmp_path: Path) -> None:
    update_lexical(store, generation.collection, tmp_path)
    (folder,) = tmp_path.glob("lexical/*/*")
    shutil.copytree(folder, folder.with_name("999999-english-1"))
    update_lexical(store, generation.collection, tmp_path)
    assert list(tmp_path.glob("lexical/*/*")) == [folder]


def test_chunks_of_others_are_left_out_before_ranking(store: Store, generation: Generation, tmp_path: Path) -> None:
    with store.pool.connection() as conn:
        conn.execute("update documents set tenant = 'acme', labels = '{hr}' where source = 'file:///a'")
        conn.execute(
            f"update chunks_{generation.generation_id} set tenant = 'acme', labels = '{{hr}}' where title = 'a'"
        )
    index = LexicalIndex(store, generation, tmp_path)
    assert found(index, "the whale ship", Access("acme", ("hr", "it"))) == ids(document("a", "The whale dives."))
    assert found(index, "the whale ship", Access("acme", ("it",))) == []
    assert found(index, "the whale ship", Access("")) == ids(document("b", "A ship at sea."))


def test_a_label_that_changes_is_followed(store: Store, generation: Generation, tmp_path: Path) -> None:
    index = LexicalIndex(store, generation, tmp_path)
    assert found(index, "whale", Access("")) == ids(document("a", "The whale dives."))
    with store.pool.connection() as conn:
        conn.execute(f"update chunks_{generation.generation_id} set labels = '{{hr}}' where title = 'a'")
        conn.execute(
            "update documents set labels = '{hr}' where source = 'file:///a' and collection_id = %s",
            [generation.collection_id],
        )
    assert found(index, "whale", Access("")) == []


def test_an_index_in_another_language_is_another_index(store: Store, generation: Generation, tmp_path: Path) -> None:
    german = replace(generation, settings={"language": "german"})
    assert found(LexicalIndex(store, generation, tmp_path), "sleeping") == ids(document("c", "The captain sleeps."))
    assert found(LexicalIndex(store, german, tmp_path), "sleeping") == []
    assert len(list(tmp_path.glob("lexical/*/*"))) == 2


PROCESS = """
import sys
from pathlib import Path
from rag.index.generations import live_generation
from rag.index.lexical import LexicalIndex
from rag.index.store import Store
store = Store(sys.argv[1])
index = LexicalIndex(store, live_generation(store, sys.argv[2]), Path(sys.argv[3]))
for query in sys.stdin:
    print(len(index.view().search(index.analyzer.query_terms(query), 10)[0]), flush=True)
"""


def test_another_process_sees_a_new_document_within_five_seconds(
    store: Store, generation: Generation, tmp_path: Path
) -> None:
    command: Sequence[str] = [sys.executable, "-c", PROCESS, store.url, generation.collection, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None

        def ask() -> int:
            process.stdin.write("whale\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return json.loads(process.stdout.readline())  # type: ignore[union-attr]

        assert ask() == 1
        store.write_documents(generation, [document("d", "Another whale.")])
        written = time.monotonic()
        while ask() < 2:
            assert time.monotonic() - written < 5
            time.sleep(0.1)
        store.remove_documents(generation.collection_id, [document("d", "").doc_id, document("a", "").doc_id])
        removed = time.monotonic()
        while ask() > 0:
            assert time.monotonic() - removed < 5
            time.sleep(0.1)
        process.stdin.close()
