import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rag.config import ChunkConfig, EmbedConfig
from rag.errors import ConfigError
from rag.index.embed import load_token_spans
from rag.ingest.chunks import ChunkTools, chunk_section
from rag.records import Section

METHODS = ["recursive", "tokens", "markdown", "semantic", "code"]


def by_letters(texts: list[str]) -> np.ndarray:
    """Some vector of norm 1 for each text, always the same."""
    rows = np.array([[zlib.crc32(f"{i}{t}".encode("utf-8", "replace")) % 97 + 1 for i in range(4)] for t in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def tools() -> ChunkTools:
    return ChunkTools(token_spans=load_token_spans(EmbedConfig()), max_tokens=254, embed=by_letters)


def chunks(text: str, size: int = 50, overlap: int = 10, method: str = "recursive") -> list[tuple[str, int, int]]:
    config = ChunkConfig(method=method, size=size, overlap=overlap)
    found = chunk_section(Section("s#a", "T", text), config, tools())
    return [(chunk.text, chunk.start_char, chunk.end_char) for chunk in found]


@pytest.mark.parametrize("method", METHODS)
def test_a_short_section_is_one_chunk_with_its_identity(method):
    section = Section("s#a", "T", "short")
    (chunk,) = chunk_section(section, ChunkConfig(method=method, size=200), tools())
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
    for method in ("recursive", "code"):
        found = [chunk for chunk, _, _ in chunks(text, method=method)]
        assert found == ["def f():", "    " + "x" * 44, "    " + "y" * 40]


@pytest.mark.parametrize("method", METHODS)
def test_a_section_of_blanks_has_no_chunk(method):
    assert chunks(" \n\t\n ", method=method) == []
    assert chunks("", method=method) == []


TEXT = st.text(alphabet="ab \n\t.é\U0001f600\u00a0\x85\r漢\u200b", max_size=600)
LINES = st.lists(
    st.sampled_from(
        ["# H", "- item", "  more", "1. one", "```", "    code", "| a | b |", "|---|---|", "> quoted", "", "", "---"]
        + ["def f(x):", "    return x", "}", "@cache", "A sentence. Another one!", "words " * 15, "x" * 120, "[a]: b"]
    ),
    max_size=40,
).map("\n".join)


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None)  # a machine may be busy
@given(text=TEXT | LINES, size=st.integers(50, 120), overlap=st.integers(0, 49))
@example(text="\ud800 a lone surrogate \x00 and a NUL", size=50, overlap=0)
@example(text="      a\n" + "b" * 60, size=50, overlap=49)
@example(text="x\n" * 200, size=50, overlap=10)
def test_chunks_are_exact_windows_in_order_that_miss_nothing(method, text, size, overlap):
    found = chunks(text, size, overlap, method)
    covered: set[int] = set()
    previous = (-1, -1)
    for chunk, start, end in found:
        assert chunk == text[start:end]
        assert chunk.strip()
        assert previous[0] < start and previous[1] < end
        if method == "tokens":
            assert len(tools().token_spans(chunk)) <= size
        else:
            assert len(chunk) <= size
            assert previous[1] - start <= overlap
        previous = (start, end)
        covered |= set(range(start, end))
    assert all(char.isspace() or position in covered for position, char in enumerate(text))
    assert found == chunks(text, size, overlap, method)


def test_title_and_text_together_are_what_the_model_reads():
    title = "A rather long heading path > " * 6
    config = ChunkConfig(method="tokens", size=254, overlap=0)
    found = chunk_section(Section("s", title, "word " * 1000), config, tools())
    lengths = [len(tools().token_spans(chunk.context)) for chunk in found]
    assert max(lengths) <= 254 and lengths[0] > 250


def test_an_endless_title_leaves_the_text_half_of_the_tokens():
    config = ChunkConfig(method="tokens", size=254, overlap=0)
    first, *_ = chunk_section(Section("s", "title " * 500, "word " * 1000), config, tools())
    assert len(tools().token_spans(first.text)) == 127


@pytest.mark.parametrize("method", ["tokens", "semantic"])
def test_a_method_without_its_tool_is_refused(method):
    with pytest.raises(ConfigError, match=f"chunk.method {method}: expected ChunkTools with"):
        chunk_section(Section("s", "T", "text"), ChunkConfig(method=method))
