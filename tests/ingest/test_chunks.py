from hypothesis import given
from hypothesis import strategies as st

from rag.config import ChunkConfig
from rag.ingest.chunks import chunk_section
from rag.records import Section


def chunks(text: str, size: int = 50, overlap: int = 10) -> list[tuple[str, int, int]]:
    found = chunk_section(Section("s#a", "T", text), ChunkConfig(size=size, overlap=overlap))
    return [(chunk.text, chunk.start_char, chunk.end_char) for chunk in found]


def test_a_short_section_is_one_chunk_with_its_identity():
    section = Section("s#a", "T", "short")
    (chunk,) = chunk_section(section, ChunkConfig())
    assert (chunk.section_id, chunk.source, chunk.title) == (section.section_id, "s#a", "T")
    assert (chunk.text, chunk.start_char, chunk.end_char) == ("short", 0, 5)


def test_paragraphs_are_kept_whole_and_blank_edges_are_cut():
    text = "\n\n" + "a" * 40 + "\n\n  " + "b" * 30 + "\n \n"
    assert chunks(text) == [("a" * 40, 2, 42), ("  " + "b" * 30, 44, 76)]


def test_repeated_text_has_the_spans_of_each_place():
    assert chunks("ab " * 40) == [(("ab " * 40)[start:end], start, end) for _, start, end in chunks("ab " * 40)]
    assert [start for _, start, _ in chunks("a" * 120)] == [0, 40, 80]


def test_code_keeps_the_indentation_of_its_first_line():
    text = "def f():\n" + "    " + "x" * 44 + "\n    " + "y" * 40
    assert [chunk for chunk, _, _ in chunks(text)] == ["def f():", "    " + "x" * 44, "    " + "y" * 40]


def test_a_section_of_blanks_has_no_chunk():
    assert chunks(" \n\t\n ") == []


TEXT = st.text(alphabet="ab \n\t.é\U0001f600\u00a0\x85", max_size=600)


@given(TEXT, st.integers(50, 120), st.integers(0, 49))
def test_chunks_are_exact_windows_that_miss_nothing(text, size, overlap):
    covered: set[int] = set()
    previous = (-1, -1)
    for chunk, start, end in chunks(text, size, overlap):
        assert chunk == text[start:end]
        assert chunk.strip() and len(chunk) <= size
        assert previous < (start, end) and previous[1] < end
        previous = (start, end)
        covered |= set(range(start, end))
    assert all(char.isspace() or position in covered for position, char in enumerate(text))
