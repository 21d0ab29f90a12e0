"""The store against the real database: upserts, the manifest, the ledger, nearest vectors."""

from dataclasses import replace

import numpy as np
import pytest

from rag.config import Settings
from rag.errors import DatabaseError
from rag.index.duplicates import count_near_copies, hide_near_copies, show_near_copies
from rag.index.generations import ensure_generation
from rag.index.ledger import Failure, failures, only_one, origins, start_run, write_failures
from rag.index.store import Generation, IndexedDocument, Store
from rag.index.vectors import nearest
from rag.records import Chunk, Section

DIM = 8


@pytest.fixture
def generation(store: Store, settings: Settings) -> Generation:
    return ensure_generation(store, settings.collection, {"chunk": 1}, {"model": "m"}, DIM)


def document(source: str, texts: list[str], content_hash: str = "h1") -> IndexedDocument:
    section = Section(f"{source}#s", "Title", " ".join(texts))
    chunks = tuple(
        Chunk(section.section_id, section.source, "Title", text, i, i + len(text)) for i, text in enumerate(texts)
    )
    embeddings = np.random.default_rng(len(source)).normal(size=(len(texts), DIM)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return IndexedDocument(source, "text/plain", content_hash, "{}", (section,), chunks, embeddings)


def texts(store: Store, generation: Generation) -> list[str]:
    with store.pool.connection() as conn:
        rows = conn.execute(
            "select text from chunks where generation_id = %s order by text", [generation.generation_id]
        )
        return [row[0] for row in rows]


def test_writing_the_same_documents_twice_changes_nothing(store: Store, generation: Generation) -> None:
    documents = [document("file:///a", ["one", "two"]), document("file:///b", ["three"])]

    def rows() -> list[tuple[object, ...]]:
        with store.pool.connection() as conn:
            return conn.execute(
                "select xmin::text, chunk_id from chunks where generation_id = %s order by 2",
                [generation.generation_id],
            ).fetchall()

    assert store.write_documents(generation, documents) == 3
    before = rows()
    assert store.write_documents(generation, documents) == 3
    assert rows() == before  # xmin: not a single row version was written
    assert store.counts(generation) == {"documents": 2, "chunks": 3}


def test_a_changed_document_leaves_none_of_its_old_chunks(store: Store, generation: Generation) -> None:
    store.write_documents(generation, [document("file:///a", ["old", "kept"]), document("file:///b", ["other"])])
    changed = document("file:///a", ["new", "kept"], content_hash="h2")
    store.write_documents(generation, [changed])
    assert texts(store, generation) == ["kept", "new", "other"]
    assert store.known_documents(generation)[changed.doc_id].content_hash == "h2"


def test_a_removed_document_is_gone_from_every_generation(store: Store, generation: Generation) -> None:
    second = ensure_generation(store, generation.collection, {"chunk": 2}, {"model": "m"}, DIM)
    gone = document("file:///a", ["one"])
    for g in (generation, second):
        store.write_documents(g, [gone, document("file:///b", ["two"])])
    assert store.remove_documents(generation.collection_id, [gone.doc_id]) == 1
    assert (texts(store, generation), texts(store, second)) == (["two"], ["two"])
    assert list(store.known_documents(second)) == [document("file:///b", []).doc_id]


def test_a_document_whose_write_fails_is_not_there_at_all(store: Store, generation: Generation) -> None:
    good, bad = document("file:///a", ["one"]), document("file:///b", ["two"])
    bad = replace(bad, embeddings=np.ones((1, DIM + 1), np.float32))
    with pytest.raises(Exception, match="violates check constraint"):
        store.write_documents(generation, [good, bad])
    assert texts(store, generation) == []
    assert store.known_documents(generation) == {}


def test_the_ledger_keeps_a_failure_until_the_document_gets_in(store: Store, generation: Generation) -> None:
    write_failures(store, generation, [Failure("file:///a", "bad \0 byte", "h0", 0.5)])
    assert failures(store, generation) == [Failure("file:///a", "bad  byte", "h0", 0.5)]
    store.write_documents(generation, [document("file:///a", ["one"])])
    assert failures(store, generation) == []


def test_nearest_orders_by_cosine_and_ties_by_id(store: Store, generation: Generation) -> None:
    d = document("file:///a", ["far", "near", "near too"])
    embeddings = np.zeros((3, DIM), np.float32)
    embeddings[0, 1] = embeddings[1, 0] = embeddings[2, 0] = 1
    store.write_documents(generation, [replace(d, embeddings=embeddings)])
    hits = nearest(store, generation, embeddings[1], k=3, exact=True)
    ids = sorted(c.chunk_id for c in d.chunks[1:])
    assert [(score, row.chunk_id) for score, row in hits] == [(1.0, ids[0]), (1.0, ids[1]), (0.0, d.chunks[0].chunk_id)]


def test_near_copies_are_counted_and_hidden_on_request(store: Store, generation: Generation) -> None:
    text = "Penguins live in the Antarctic, in large and noisy colonies."
    store.write_documents(generation, [document("file:///a", [text, "See also"])])
    store.write_documents(generation, [document("file:///b", [text.upper().replace(",", " 2 "), "See also"])])
    assert count_near_copies(store, generation) == 1  # a short text is equal by chance
    assert hide_near_copies(store, generation) == 1
    sources = [row.source for _, row in nearest(store, generation, np.eye(DIM, dtype=np.float32)[0], k=10)]
    assert sorted(sources) == ["file:///a#s", "file:///a#s", "file:///b#s"]
    store.remove_documents(generation.collection_id, [document("file:///a", []).doc_id])
    assert hide_near_copies(store, generation) == 0  # what was a copy is the only one now
    show_near_copies(store, generation)
    assert len(nearest(store, generation, np.eye(DIM, dtype=np.float32)[0], k=10)) == 2


def test_a_collection_takes_one_ingestion_at_a_time(store: Store, generation: Generation) -> None:
    def enter() -> None:
        with only_one(store, generation.collection_id, "docs"):
            pass

    with only_one(store, generation.collection_id, "docs"), pytest.raises(DatabaseError, match="another ingestion"):
        enter()
    enter()


def test_another_commit_of_a_repository_takes_the_place_of_the_one_before(store: Store, generation: Generation) -> None:
    start_run(store, generation, ["git+https://host/org/repo@v1", "file:///docs"])
    start_run(store, generation, ["git+https://host/org/repo@v2"])
    assert sorted(origins(store, generation.collection)) == ["file:///docs", "git+https://host/org/repo@v2"]
