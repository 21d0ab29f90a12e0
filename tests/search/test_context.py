"""Neighbours and sections: what is joined, by its spans, and read from the real database."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.config import ChunkConfig, Settings
from rag.index.generations import ensure_generation
from rag.index.store import Generation, IndexedDocument, Store
from rag.ingest.chunks import chunk_section
from rag.records import Chunk, Hit, Section
from rag.search.context import Piece, fitting, join_pieces, merge_passages, with_neighbours, with_sections

DIM = 4
TEXT = "One is first.\n\nTwo  comes after.\n \nThree, at last.\n\nFour ends it."


def hit(chunk_id: str, start: int, text: str, rank: int = 1, source: str = "file:///a#s") -> Hit:
    return Hit(rank, 1 / rank, chunk_id, source, "Title", text, start, start + len(text))


def pieces(text: str, *spans: tuple[int, int]) -> list[Piece]:
    return [Piece(start, end, text[start:end]) for start, end in spans]


# Pure


def test_joined_pieces_say_what_they_share_once() -> None:
    assert join_pieces(pieces("abcdefgh", (0, 5), (3, 6), (6, 8))) == Piece(0, 8, "abcdefgh")


def test_blanks_that_no_chunk_holds_are_the_section_s_or_as_many() -> None:
    parts = pieces("ab\n   cd ef", (0, 2), (6, 8), (9, 11))
    assert join_pieces(parts) == Piece(0, 11, "ab\n\n  cd\nef")
    assert join_pieces(parts, "ab\n   cd ef") == Piece(0, 11, "ab\n   cd ef")


@pytest.mark.parametrize("other", ["", "ab", "ab\n   cd-ef", "AB\n   cd ef", "ab cd ef and more"])
def test_the_text_of_another_version_is_not_used(other: str) -> None:
    parts = pieces("ab\n   cd ef", (0, 2), (6, 8), (9, 11))
    assert join_pieces(parts, other) == Piece(0, 11, "ab\n\n  cd\nef")


@given(st.text("ab \n.", min_size=1, max_size=400), st.integers(50, 80), st.integers(0, 40), st.data())
def test_any_run_of_chunks_joins_to_its_span_of_the_section(
    text: str, size: int, overlap: int, data: st.DataObject
) -> None:
    chunks = chunk_section(Section("s", "", text), ChunkConfig(size=size, overlap=overlap))
    if not chunks:
        return
    first = data.draw(st.integers(0, len(chunks) - 1))
    run = [Piece(c.start_char, c.end_char, c.text) for c in chunks[first : data.draw(st.integers(first, len(chunks)))]]
    if not run:
        return
    joined = join_pieces(run)
    true = text[run[0].start : run[-1].end]
    assert (joined.start, joined.end, len(joined.text)) == (run[0].start, run[-1].end, len(true))
    assert [a for a, b in zip(joined.text, true, strict=True) if a != b and not (a + b).isspace()] == []
    assert join_pieces(run, text[run[0].start :]).text == true


def test_a_section_s_window_grows_on_both_sides_while_it_fits() -> None:
    five = pieces("a" * 50, (0, 10), (10, 20), (20, 30), (30, 40), (40, 50))
    assert [p.start for p in fitting(five, 20, 5)] == [20]  # itself at least
    assert [p.start for p in fitting(five, 20, 20)] == [20, 30]
    assert [p.start for p in fitting(five, 20, 35)] == [10, 20, 30]
    assert [p.start for p in fitting(five, 40, 30)] == [20, 30, 40]
    assert [p.start for p in fitting(five, 0, 1000)] == [0, 10, 20, 30, 40]


def test_hits_that_overlap_become_the_best_of_them_in_its_place() -> None:
    text = "a" * 50
    hits = [hit("c4", 40, text[40:50], 1), hit("other", 0, "x", 2, "file:///b#s"), hit("c1", 10, text[10:20], 3)]
    around = {"c4": pieces(text, (25, 41), (40, 50)), "c1": pieces(text, (0, 10), (10, 20), (19, 26))}
    found = merge_passages(hits, around)
    assert [(p.hit.chunk_id, p.start, p.end) for p in found] == [("c4", 0, 50), ("other", 0, 1)]
    apart = merge_passages(hits, {"c1": around["c1"]})
    assert [(p.hit.chunk_id, p.start, p.end) for p in apart] == [("c4", 40, 50), ("other", 0, 1), ("c1", 0, 26)]


# On the database


@pytest.fixture
def generation(store: Store, settings: Settings) -> Generation:
    return ensure_generation(store, settings.collection, {"chunk": 1}, {"model": "m"}, DIM)


def write(store: Store, generation: Generation, text: str, spans: list[tuple[int, int]]) -> list[Hit]:
    """A document of two sections of that text; hits for the chunks of the first."""
    sections = tuple(Section(f"file:///a#{name}", "Title", text) for name in ("s", "t"))
    chunks = [Chunk(s.section_id, s.source, s.title, text[a:b], a, b) for s in sections for a, b in spans]
    vectors = np.tile(np.eye(1, DIM, dtype=np.float32), (len(chunks), 1))
    store.write_documents(
        generation, [IndexedDocument("file:///a", "text/plain", text, "{}", sections, tuple(chunks), vectors)]
    )
    return [hit(c.chunk_id, c.start_char, c.text, rank) for rank, c in enumerate(chunks[: len(spans)], start=1)]


SPANS = [(0, 13), (15, 32), (35, 50), (52, 65)]


def test_neighbours_come_from_the_same_section_and_nothing_else_changes(store: Store, generation: Generation) -> None:
    hits = write(store, generation, TEXT, SPANS)
    assert [h.text for h in hits] == ["One is first.", "Two  comes after.", "Three, at last.", "Four ends it."]
    (found,) = with_neighbours(store, generation, [hits[1]], 1)
    assert found == replace(hits[1], rank=1, start=0, end=50, text=TEXT[0:50])
    (last,) = with_neighbours(store, generation, [hits[3]], 2)
    assert (last.start, last.end, last.text) == (15, 65, TEXT[15:65])


def test_hits_whose_neighbours_meet_are_one_and_ranks_are_counted_again(store: Store, generation: Generation) -> None:
    hits = write(store, generation, TEXT, SPANS)
    other = hit("gone", 7, "not there", 2, "file:///z#s")
    found = with_neighbours(store, generation, [hits[2], other, hits[0]], 1)
    assert [(h.rank, h.chunk_id, h.text) for h in found] == [(1, hits[2].chunk_id, TEXT), (2, "gone", "not there")]
    assert found[1] == other


def test_without_a_request_hits_stay_as_they_are(store: Store, generation: Generation) -> None:
    hits = write(store, generation, TEXT, SPANS)
    assert with_neighbours(store, generation, hits, 0) == hits
    assert with_sections(store, generation, hits, 0) == hits
    assert with_neighbours(store, generation, [], 3) == with_sections(store, generation, [], 100) == []


def test_a_section_is_whole_or_what_fits_around_the_hit(store: Store, generation: Generation) -> None:
    hits = write(store, generation, TEXT, SPANS)
    (whole,) = with_sections(store, generation, [hits[2], hits[0]], 1000)
    assert (whole.chunk_id, whole.start, whole.end, whole.text) == (hits[2].chunk_id, 0, 65, TEXT)
    found = with_sections(store, generation, [hits[0], hits[3]], 35)
    assert [(h.start, h.end, h.text) for h in found] == [(0, 32, TEXT[:32]), (35, 65, TEXT[35:])]
    assert [h.text for h in with_sections(store, generation, hits[:1], 3)] == ["One is first."]
    (once_more,) = with_sections(store, generation, with_neighbours(store, generation, [hits[2]], 1), 1000)
    assert once_more.text == TEXT


def test_a_generation_is_read_alone_while_another_rewrites_the_sections(
    store: Store, settings: Settings, generation: Generation
) -> None:
    hits = write(store, generation, TEXT, SPANS)
    newer = ensure_generation(store, settings.collection, {"chunk": 2}, {"model": "m"}, DIM)
    write(store, newer, "Another text altogether, and longer than the one that was there before it.", [(0, 20)])
    (found,) = with_neighbours(store, generation, [hits[1]], 1)
    assert (found.start, found.end) == (0, 50)
    assert found.text == "One is first.\n\nTwo  comes after.\n\n Three, at last."
