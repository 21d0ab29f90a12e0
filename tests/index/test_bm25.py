from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Plus

from rag.index.bm25 import BM25, K1, TOP_BLOCK, B, Postings, build_postings, group, merge, top

CHUNKS = [["whale", "sea", "whale"], ["ship", "sea"], [], ["whale"], ["ship", "ship", "captain", "sea", "sea"]]

words = st.sampled_from("abcdefgh")
some_chunks = st.lists(st.lists(words, max_size=12), min_size=1, max_size=30)


def reference(chunks: list[list[str]], query: list[str]) -> np.ndarray:
    """rank-bm25's; it wants one word at least."""
    if not any(chunks):
        return np.zeros(len(chunks))
    return np.asarray(BM25Plus(chunks, k1=K1, b=B, delta=0).get_scores(query))


@given(some_chunks, st.lists(words, max_size=6))
def test_scores_are_those_of_rank_bm25(chunks: list[list[str]], query: list[str]) -> None:
    ours = BM25([build_postings(chunks)], [None]).scores(query)
    np.testing.assert_allclose(ours, reference(chunks, query), rtol=1e-4, atol=1e-5)


@given(some_chunks, some_chunks, st.lists(words, max_size=6), st.data())
def test_parts_with_chunks_that_went_score_as_one_index_of_the_others(
    first: list[list[str]], second: list[list[str]], query: list[str], data: st.DataObject
) -> None:
    masks = [
        np.array(data.draw(st.lists(st.booleans(), min_size=len(one), max_size=len(one)))) for one in (first, second)
    ]
    alive = np.concatenate(masks)
    left = [chunk for chunk, is_here in zip(first + second, alive, strict=True) if is_here]
    parts = [build_postings(first), build_postings(second)]
    expected = BM25([build_postings(left)], [None]).scores(query)
    scores = BM25(parts, masks).scores(query)
    np.testing.assert_allclose(scores[alive], expected, rtol=1e-5)
    assert not scores[~alive].any()
    merged = merge(parts, masks)
    np.testing.assert_allclose(BM25([merged], [None]).scores(query), expected, rtol=1e-6)


def test_an_index_that_was_saved_and_mapped_is_the_same(tmp_path: Path) -> None:
    for number, chunks in enumerate([CHUNKS, []]):
        folder = tmp_path / str(number)
        folder.mkdir()
        postings = build_postings(chunks)
        postings.save(folder)
        loaded = Postings.load(folder)
        for name in ("hashes", "starts", "chunks", "counts", "lengths"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(postings, name))


def test_a_damaged_file_is_an_error_and_never_runs_code(tmp_path: Path) -> None:
    build_postings(CHUNKS).save(tmp_path)
    np.save(tmp_path / "chunks.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        Postings.load(tmp_path)


def test_a_word_that_is_nowhere_scores_nothing() -> None:
    index = BM25([build_postings(CHUNKS)], [None])
    assert not index.scores(["kraken"]).any()
    assert list(np.flatnonzero(index.scores(["whale"]))) == [0, 3]


@settings(max_examples=50)
@given(st.integers(0, 40), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_the_best_are_those_of_a_full_sort(k: int, scale: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.integers(0, 50, TOP_BLOCK * 40 * scale + 7).astype(np.float32)  # with many equals
    expected = np.lexsort((np.arange(len(scores)), -scores))[:k]
    np.testing.assert_array_equal(top(scores, k), expected)


@given(some_chunks, st.lists(words, max_size=6), st.data())
def test_chunks_grouped_by_document_score_as_documents(
    chunks: list[list[str]], query: list[str], data: st.DataObject
) -> None:
    owner = data.draw(st.lists(st.integers(0, 4), min_size=len(chunks), max_size=len(chunks)))
    documents: list[list[str]] = [[] for _ in range(5)]
    for number, chunk in zip(owner, chunks, strict=True):
        documents[number] += chunk
    postings = build_postings(chunks)
    before = BM25([postings], [None]).scores(query)
    grouped = BM25([group(postings, np.array(owner), 5)], [None]).scores(query)
    np.testing.assert_allclose(grouped, BM25([build_postings(documents)], [None]).scores(query), rtol=1e-5)
    np.testing.assert_array_equal(BM25([postings], [None]).scores(query), before)
