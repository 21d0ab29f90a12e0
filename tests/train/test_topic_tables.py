"""Topics of a collection, against the real database."""

import json

import numpy as np
import pytest

from rag.config import Settings
from rag.errors import NotFound, SourceError
from rag.index.generations import activate, ensure_generation
from rag.index.store import IndexedDocument, Store
from rag.records import Chunk, Section
from rag.train.topic_tables import topics_by_cluster, topics_by_metadata


def document(source: str, meta: dict[str, object], embedding: list[float]) -> IndexedDocument:
    """One section of two chunks around `embedding`."""
    section = Section(f"{source}#s", "Title", "onetwo")
    chunks = tuple(
        Chunk(section.section_id, section.source, "Title", text, 3 * i, 3 * i + 3)
        for i, text in enumerate(("one", "two"))
    )
    embeddings = np.array([embedding, embedding], dtype=np.float32) + [[0.1], [-0.1]]
    return IndexedDocument(source, "text/plain", "h", json.dumps(meta), (section,), chunks, embeddings)


@pytest.fixture
def collection(store: Store, settings: Settings) -> str:
    generation = ensure_generation(store, settings.collection, {"chunk": 1}, {"model": "m"}, 3)
    documents = [
        document("file:///a.md", {"team": "birds"}, [1, 0, 0]),
        document("file:///b.md", {"team": "fish"}, [0, 0, 1]),
        document("file:///c.md", {"team": ""}, [0.9, 0.1, 0]),
        document("file:///d.md", {}, [1, 0.1, 0.1]),
    ]
    store.write_documents(generation, documents)
    activate(store, generation, {})
    return settings.collection


def test_a_metadata_value_is_the_topic_of_a_document_and_its_sections(store: Store, collection: str) -> None:
    rule = topics_by_metadata(store, collection, "team")
    assert rule.topics == {"file:///a.md": "birds", "file:///b.md": "fish"}
    assert rule.topic("file:///a.md#s") == "birds"


def test_metadata_that_nobody_has_is_refused(store: Store, collection: str) -> None:
    with pytest.raises(SourceError, match="expected documents with metadata 'owner', found none; check --metadata"):
        topics_by_metadata(store, collection, "owner")


def test_sections_that_are_near_are_one_topic(store: Store, collection: str) -> None:
    near, far = "cluster-1", "cluster-2"
    assert topics_by_cluster(store, collection, 2, seed=0).topics == {
        "file:///a.md#s": near,
        "file:///b.md#s": far,
        "file:///c.md#s": near,
        "file:///d.md#s": near,
    }


def test_more_clusters_than_sections_are_refused(store: Store, collection: str) -> None:
    with pytest.raises(SourceError, match="expected 2 to 4 clusters of its 4 sections, found 5"):
        topics_by_cluster(store, collection, 5, seed=0)


def test_a_collection_that_is_not_there_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        topics_by_cluster(store, "no-such-collection", 2, seed=0)
