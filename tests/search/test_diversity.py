"""Copies are merged, and maximal marginal relevance is what its definition says."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rag.config import Settings
from rag.index.generations import ensure_generation
from rag.index.store import IndexedDocument, Store
from rag.records import Chunk, Hit, Section
from rag.search.diversity import diversify, merge_copies, mmr, relevance

NOTICE = "This release is provided without warranty of any kind, to the extent permitted by law, since 2019."


def hit(rank: int, text: str, score: float | None = None) -> Hit:
    score = 1 / rank if score is None else score
    return Hit(rank, score, f"c{rank}", f"file:///{rank}#s", "", text, 0, len(text))


def unit(*rows: list[float]) -> np.ndarray:
    array = np.array(rows, np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


# Copies


def test_a_copy_goes_and_its_source_is_kept_with_the_better_hit() -> None:
    other = "Penguins of the Antarctic eat krill, and they dive to five hundred metres."
    hits = [hit(1, other), hit(2, NOTICE), hit(3, NOTICE.upper().replace("2019", "2026")), hit(4, other + " ")]
    kept, copies = merge_copies(hits)
    assert kept == [hits[0], hits[1]]
    assert copies == {"c1": ("file:///4#s",), "c2": ("file:///3#s",)}


def test_a_text_with_few_other_words_is_a_copy_and_one_with_many_is_none() -> None:
    words = [f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(100)]
    text = " ".join(words)
    nearly = " ".join([*words[:-1], "else"])  # 95 of 97 runs of five words
    half = " ".join(words[:50] + ["x" * 5] * 50)
    kept, copies = merge_copies([hit(1, text), hit(2, nearly), hit(3, half)])
    assert [(h.rank, h.chunk_id) for h in kept] == [(1, "c1"), (2, "c3")]
    assert copies == {"c1": ("file:///2#s",)}
    assert len(merge_copies([hit(1, text), hit(2, nearly)], similarity=1.0)[0]) == 2


def test_short_texts_are_equal_by_chance() -> None:
    hits = [hit(1, "See also"), hit(2, "See also"), hit(3, ""), hit(4, "...")]
    assert merge_copies(hits) == (hits, {})


def runs(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


some_texts = st.lists(
    st.lists(st.sampled_from(["penguins", "colonies", "antarctic", "krillswarm"]), min_size=8, max_size=12), max_size=12
)


@given(some_texts, st.floats(0.1, 1.0))
def test_a_copy_is_what_shares_enough_runs_of_words_with_a_hit_that_was_kept(
    words: list[list[str]], similarity: float
) -> None:
    texts = [" ".join(one) for one in words]
    kept: list[str] = []
    for text in texts:
        shares = [len(runs(text) & runs(one)) / len(runs(text) | runs(one)) for one in kept]
        if not any(share >= similarity for share in shares):
            kept.append(text)
    found, _ = merge_copies([hit(rank, text) for rank, text in enumerate(texts, start=1)], similarity)
    assert [one.text for one in found] == kept


# Maximal marginal relevance


def test_mmr_by_hand() -> None:
    # cosines: 0-1 .8, 0-2 0, 0-3 .6, 1-2 .6, 1-3 .96, 2-3 .8
    rows = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], np.float32)
    values = np.array([1.0, 0.9, 0.3, 0.2])
    # weight .5, after 0:      1: .45 - .40 = .05     2: .15 - 0 = .15      3: .10 - .30 = -.20   -> 2
    # after 0 and 2:           1: .45 - .40 = .05                           3: .10 - .40 = -.30   -> 1
    assert mmr(values, rows, 4, 0.5) == [0, 2, 1, 3]
    # weight .8, after 0:      1: .72 - .16 = .56     2: .24                3: .16 - .12 = .04    -> 1
    # after 0 and 1:           2: .24 - .12 = .12                           3: .16 - .192 = -.032 -> 2
    assert mmr(values, rows, 4, 0.8) == [0, 1, 2, 3]
    assert mmr(values, rows, 2, 0.5) == [0, 2]
    # weight 0: what is least like the chosen ones
    assert mmr(values, rows, 4, 0.0) == [0, 2, 1, 3]


@given(st.integers(0, 12), st.integers(0, 12), st.floats(0, 1), st.integers(0, 10_000))
def test_mmr_chooses_each_once_the_best_first_and_is_a_prefix_of_a_longer_choice(
    num: int, k: int, weight: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(num, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    values = np.sort(random.random(num))[::-1]
    chosen = mmr(values, rows, k, weight)
    assert len(chosen) == len(set(chosen)) == min(k, num)
    assert set(chosen) <= set(range(num))
    assert chosen[:1] == [0][: min(k, num)]
    assert chosen == mmr(values, rows, num, weight)[:k]
    assert mmr(values, rows, num, 1.0) == list(range(num))
    assert chosen == slow_mmr(values, rows, k, weight)


def slow_mmr(values: np.ndarray, rows: np.ndarray, k: int, weight: float) -> list[int]:
    """The definition, word for word."""
    chosen: list[int] = []
    while len(chosen) < min(k, len(values)):
        left = [i for i in range(len(values)) if i not in chosen]
        likeness = {i: max((rows[i] @ rows[j] for j in chosen), default=0.0) for i in left}
        novelty_counts = (1 - weight) if chosen else 0.0
        marginal = [(weight if chosen else 1) * values[i] - novelty_counts * likeness[i] for i in left]
        chosen.append(left[int(np.argmax(marginal))])
    return chosen


def test_relevance_is_stretched_and_never_rises() -> None:
    assert relevance([12.0, 9.0, 6.0]).tolist() == [1.0, 0.5, 0.0]
    assert relevance([0.02, 0.02]).tolist() == [1.0, 1.0]
    assert relevance([3.0, 1.0, 2.0]).tolist() == [1.0, 0.0, 0.0]  # the order is the search's, whatever a score says


def test_stored_embeddings_make_hits_diverse(store: Store, settings: Settings) -> None:
    generation = ensure_generation(store, settings.collection, {"chunk": 1}, {"model": "m"}, 2)
    section = Section("file:///a#s", "", "abcd")
    chunks = tuple(Chunk(section.section_id, section.source, "", t, i, i + 1) for i, t in enumerate("abcd"))
    vectors = unit([1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8])
    store.write_documents(generation, [IndexedDocument("file:///a", "", "h", "{}", (section,), chunks, vectors)])
    scores = [0.9, 0.82, 0.34, 0.1]  # stretched: 1, .9, .3, 0
    hits = [
        Hit(rank, score, c.chunk_id, c.source, "", c.text, 0, 1)
        for rank, (c, score) in enumerate(zip(chunks, scores, strict=True), start=1)
    ]
    found = diversify(store, generation, hits, 3, 0.5)
    assert [(h.rank, h.text, h.score) for h in found] == [(1, "a", 0.9), (2, "c", 0.34), (3, "b", 0.82)]
    assert diversify(store, generation, hits, 3, 1.0) == hits[:3]
    gone = replace(hits[1], chunk_id="gone")  # without an embedding it is like nothing else
    assert [h.text for h in diversify(store, generation, [hits[0], gone, hits[2]], 2, 0.5)] == ["a", "b"]
    assert diversify(store, generation, [], 3, 0.5) == []
