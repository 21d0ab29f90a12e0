import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_text_splitters import RecursiveCharacterTextSplitter

from rag.config import EmbedConfig
from rag.index.embed import load_token_spans
from rag.ingest.windows import char_windows, token_windows, trim_span

TEXT = st.text(alphabet="ab \n\t.é\U0001f600\u00a0\x85", max_size=600)


def langchain_windows(text: str, size: int, overlap: int) -> list[tuple[int, int]]:
    """The reference: spans found by giving every character but the separators a code of its own."""
    splitter = RecursiveCharacterTextSplitter(chunk_size=size, chunk_overlap=overlap, strip_whitespace=False)
    numbered = "".join(c if c in "\n " else chr(0x10000 + position) for position, c in enumerate(text))
    spans = []
    for piece in splitter.split_text(numbered):
        num_blank = len(piece) - len(piece.lstrip("\n "))
        if num_blank < len(piece):
            start = ord(piece[num_blank]) - 0x10000 - num_blank
            spans.append((start, start + len(piece)))
    return spans


@settings(deadline=None)  # a machine may be busy
@given(TEXT, st.integers(1, 120), st.integers(0, 119))
def test_windows_by_characters_are_those_of_langchain(text, size, overlap):
    overlap = min(overlap, size - 1)
    ours = [(start, end) for start, end in char_windows(text, size, overlap) if text[start:end].strip("\n ")]
    assert ours == langchain_windows(text, size, overlap)


def test_a_span_inside_a_text_is_cut_as_a_text_of_its_own():
    text = "xx\n\n" + "one two three\n\nfour five" + "\n\nyy"
    alone = [(start + 4, end + 4) for start, end in char_windows("one two three\n\nfour five", 10, 4)]
    assert list(char_windows(text, 10, 4, (4, len(text) - 4))) == alone
    assert alone == [(4, 11), (7, 17), (17, 18), (18, 28)]


def test_one_endless_line_is_cut_in_strides():
    assert list(char_windows("a" * 120, 50, 10)) == [(0, 50), (40, 90), (80, 120)]


@pytest.mark.parametrize("text", ["a" * 1_500_000, "a\n" * 750_000, "ab " * 500_000, " " * 1_500_000 + "x"])
def test_above_a_million_characters_every_place_is_found_once(text):
    started = time.monotonic()
    windows = list(char_windows(text, 50_000, 1_000))
    assert windows[0][0] == 0 and windows[-1][1] == len(text)
    assert all(start - 1_000 <= following <= start for (_, start), (following, _) in zip(windows, windows[1:]))  # noqa: B905
    assert time.monotonic() - started < 30  # one second; with a window copied for each piece that leaves it, minutes


def by_threes(text: str) -> list[tuple[int, int]]:
    """A tokenizer whose tokens shift with the beginning of the text: the worst to cut exactly."""
    return [(start, min(start + 3, len(text))) for start in range(0, len(text), 3)]


def by_bytes(text: str) -> list[tuple[int, int]]:
    """Several tokens for one character, as byte-level tokenizers have them."""
    return [(i, i + 1) for i, char in enumerate(text) for _ in char.encode("utf-8", "replace")]


def of_nothing(text: str) -> list[tuple[int, int]]:
    """Some tokenizers drop control characters: here all are dropped."""
    return []


@pytest.fixture(scope="module")
def minilm():
    return load_token_spans(EmbedConfig())


@settings(deadline=None)  # a machine may be busy
@given(TEXT, st.integers(8, 60), st.integers(0, 30), st.sampled_from([by_threes, by_bytes, of_nothing]))
def test_no_window_has_more_tokens_than_the_size_whatever_the_tokenizer(text, size, overlap, token_spans):
    reached = 0
    for start, end in token_windows(text, size, overlap, token_spans):
        start, end = trim_span(text, start, end)
        assert len(token_spans(text[start:end])) <= size
        assert not text[reached:start].strip()
        reached = max(reached, end)
    assert not text[reached:].strip()


def test_words_of_the_packaged_model_are_counted_in_its_tokens(minilm):
    text = "unbelievable " * 40  # two words' worth of pieces each
    per_word = len(minilm("unbelievable"))
    windows = token_windows(text, 20 * per_word, 0, minilm)
    assert [text[start:end].split().count("unbelievable") for start, end in windows] == [20, 20]


def test_neighbours_share_at_most_the_overlap_in_tokens(minilm):
    text = "A ray of light crosses the room. " * 30
    windows = token_windows(text, 50, 10, minilm)
    shared = [len(minilm(text[b:a])) for (_, a), (b, _) in zip(windows, windows[1:], strict=False)]
    assert len(windows) > 4 and set(shared) <= set(range(5, 11))


def test_a_word_that_the_model_does_not_read_is_cut_nevertheless(minilm):
    assert len(minilm("a" * 200_000)) == 1  # one unknown token
    windows = token_windows("a" * 200_000, 100, 10, minilm)
    assert max(end - start for start, end in windows) <= 100 * 100
    assert token_windows("\u200b" * 100_000, 50, 0, minilm)[-1][1] == 100_000


@settings(deadline=None)  # a machine may be busy
@given(st.text(alphabet="ab e\n漢字é\U0001f600\u200b\ufffd.#", max_size=400), st.integers(10, 40))
def test_windows_in_the_packaged_model_s_tokens_fit(text, size):
    spans = load_token_spans(EmbedConfig())
    for start, end in token_windows(text, size, size // 4, spans):
        assert len(spans(text[slice(*trim_span(text, start, end))])) <= size
