import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.search.fusion import fuse, ranks, standardised

COSINES, BM25 = np.array([0.9, 0.5, 0.1]), np.array([0.0, 8.0, 4.0])
scores = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30)


def test_standardised_scores_are_standard_deviations_from_the_mean() -> None:
    assert standardised(np.array([1.0, 3.0])).tolist() == [-1.0, 1.0]
    assert standardised(np.array([2.0, 2.0])).tolist() == [0.0, 0.0]
    assert standardised(np.array([])).tolist() == []


def test_a_rank_is_how_many_are_better_and_one() -> None:
    assert ranks(np.array([0.5, 0.9, 0.5, 0.1])).tolist() == [2, 1, 2, 4]


def test_reciprocal_ranks_are_added() -> None:
    assert fuse("rrf", COSINES, BM25, 0.5) == pytest.approx(
        [0.5 / 61 + 0.5 / 63, 0.5 / 62 + 0.5 / 61, 0.5 / 63 + 0.5 / 62]
    )


@pytest.mark.parametrize("how", ["scores", "rrf"])
def test_a_weight_of_1_is_semantic_search_and_of_0_lexical(how: str) -> None:
    assert np.argsort(-fuse(how, COSINES, BM25, 1.0)).tolist() == [0, 1, 2]  # type: ignore[arg-type]
    assert np.argsort(-fuse(how, COSINES, BM25, 0.0)).tolist() == [1, 2, 0]  # type: ignore[arg-type]


@given(scores, st.data(), st.sampled_from(["scores", "rrf"]), st.floats(0, 1))
def test_who_is_better_in_both_is_better(one: list[float], data: st.DataObject, how: str, weight: float) -> None:
    other = data.draw(st.lists(st.floats(-1e3, 1e3), min_size=len(one), max_size=len(one)))
    fused = fuse(how, np.array(one), np.array(other), weight)  # type: ignore[arg-type]
    for i in range(len(one)):
        for j in range(len(one)):
            if one[i] >= one[j] and other[i] >= other[j]:
                assert fused[i] >= fused[j] - 1e-9
