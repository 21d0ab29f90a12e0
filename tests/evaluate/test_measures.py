"""Measures against values computed by hand."""

from math import log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.evaluate.measures import measure, ordered_scores, retrieval_score

QRELS = {"q1": {"a": 1, "b": 2, "x": 0}, "q2": {"c": 1}}


def test_each_measure_is_what_its_definition_gives() -> None:
    found = measure({"q1": {"x": 0.9, "a": 0.8, "y": 0.7, "b": 0.6}, "q2": {"c": 0.5}}, QRELS, k=100)
    assert list(found) == ["nDCG@10", "R@1", "R@4", "R@10", "R@100", "RR@10", "AP"]
    ideal = 2 + 1 / log2(3)
    assert found["nDCG@10"] == pytest.approx([(1 / log2(3) + 2 / log2(5)) / ideal, 1])
    assert (found["R@1"], found["R@4"], found["R@100"]) == ([0, 1], [1, 1], [1, 1])
    assert found["RR@10"] == [0.5, 1]
    assert found["AP"] == [(1 / 2 + 2 / 4) / 2, 1]


def test_a_judged_query_that_found_nothing_counts_zero() -> None:
    assert measure({}, QRELS, k=100)["RR@10"] == [0, 0]
    assert measure({"q1": {}, "q2": {"c": 1.0}}, QRELS, k=100)["R@10"] == [0, 1]
    assert measure({"other": {"c": 1.0}}, QRELS, k=100)["AP"] == [0, 0]


def test_values_are_in_the_order_of_the_judgements() -> None:
    reordered = {"q2": QRELS["q2"], "q1": QRELS["q1"]}
    assert measure({"q1": {"a": 1.0}}, reordered, k=100)["RR@10"] == [0, 1]


def test_measures_that_look_deeper_than_was_retrieved_are_left_out() -> None:
    assert list(measure({}, QRELS, k=4)) == ["R@1", "R@4", "AP"]


def test_our_order_decides_not_that_of_equal_scores() -> None:
    """trec_eval alone would put the later id first."""
    assert measure({"q2": {"c": 0.5, "z": 0.5}}, QRELS, k=100)["RR@10"][1] == 1
    assert measure({"q2": {"z": 0.5, "c": 0.5}}, QRELS, k=100)["RR@10"][1] == 0.5
    assert measure({"q2": {"c": 0.1, "z": 0.9}}, QRELS, k=100)["RR@10"][1] == 1  # a reranker's head, another tail


def test_scores_that_fall_already_stay_as_they_are() -> None:
    assert ordered_scores({"a": 2.5, "b": 0.5, "c": -1.0}) == {"a": 2.5, "b": 0.5, "c": -1.0}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), max_size=30))
def test_ordered_scores_fall_strictly_as_float32_and_keep_the_order(scores: list[float]) -> None:
    import numpy as np

    found = ordered_scores({str(i): score for i, score in enumerate(scores)})
    values = np.array(list(found.values()), np.float32)
    assert list(found) == [str(i) for i in range(len(scores))]
    assert (np.diff(values) < 0).all()


def test_retrieval_score_counts_queries_whose_page_would_be_in_the_prompt() -> None:
    qrels = {"q1": {"https://x/a.html#one": 1}, "q2": {"https://x/b.html": 1}, "q3": {"c": 0}, "q4": {"d": 1}}
    prompted = {"q1": ["https://x/z.html", "https://x/a.html#two"], "q2": ["https://x/a.html#one"], "q3": ["c"]}
    assert retrieval_score(prompted, qrels) == [1, 0, 0, 0]
