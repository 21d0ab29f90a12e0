"""Ids: equal parts, equal id, on every machine."""

from hypothesis import given
from hypothesis import strategies as st

from rag.records import Chunk, Document, Section, content_id


def test_an_id_is_the_same_on_every_machine() -> None:
    assert content_id("python:ray.data") == "f1f4e869e949656721970f2c58770fc2"


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_different_parts_have_different_ids(a: list[str], b: list[str]) -> None:
    assert (content_id(*a) == content_id(*b)) == (a == b)


def test_a_document_is_where_it_is_and_its_hash_what_it_says() -> None:
    old, new = Document("file:///a", "text/plain", b"old"), Document("file:///a", "text/plain", b"new")
    assert old.doc_id == new.doc_id
    assert old.content_hash != new.content_hash


def test_a_chunk_id_changes_with_text_place_and_heading_and_with_nothing_else() -> None:
    section = Section("file:///a#s", "Title", "text")
    chunk = Chunk(section.section_id, section.source, "Title", "text", 0, 4)
    assert chunk.chunk_id == Chunk(section.section_id, section.source, "Title", "text", 0, 4).chunk_id
    assert (
        len(
            {
                chunk.chunk_id,
                *(
                    Chunk(section.section_id, section.source, t, x, s, s + 4).chunk_id
                    for t, x, s in [("Title", "text", 1), ("Title", "texts", 0), ("Other", "text", 0)]
                ),
            }
        )
        == 4
    )
    assert chunk.context == "Title\n\ntext"
