"""Intervals and paired tests against values known by hand, and what holds for any values."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.evaluate.statistics import (
    Difference,
    Interval,
    compare,
    compare_columns,
    mean_interval,
    mean_intervals,
    percentile,
    sign_flip_p,
)

# None below 1e-6 but 0: sums of a huge and a tiny value are a matter of rounding.
VALUES = st.lists(st.integers(-(10**6), 10**6).map(lambda n: n / 10**6), min_size=1, max_size=12)


def test_the_interval_of_a_share_is_that_of_the_binomial() -> None:
    values = np.array([1.0] * 30 + [0.0] * 70)  # 95 % of binomial(100, .3) lie within 21 and 39
    interval = mean_interval(values)
    assert interval.mean == pytest.approx(0.3)
    assert (interval.low, interval.high) == (pytest.approx(0.21, abs=0.0101), pytest.approx(0.39, abs=0.0101))


def test_the_interval_of_many_values_is_1_96_standard_errors_wide() -> None:
    values = np.random.default_rng(7).normal(5, 2, 1000)
    interval = mean_interval(values)
    error = values.std() / np.sqrt(1000)
    assert (interval.high - interval.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.03)


def test_resampling_is_what_a_plain_loop_does() -> None:
    values = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    rng = np.random.default_rng(0)
    means = [np.mean(values[row]) for row in rng.integers(0, 5, (2000, 5))]
    found = mean_interval(values, num_resamples=2000)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_the_same_values_give_the_same_interval_and_another_seed_nearly_so() -> None:
    values = np.linspace(0, 1, 50) ** 2
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, seed=1).low == pytest.approx(mean_interval(values).low, abs=0.01)


def test_one_query_or_equal_values_have_a_point_for_an_interval() -> None:
    assert mean_interval([0.4]) == Interval(0.4, 0.4, 0.4)
    equal = mean_interval([0.1] * 7)
    assert (equal.low, equal.high) == pytest.approx((0.1, 0.1), abs=1e-12)


def test_p_counts_the_patterns_of_signs_that_are_as_far_from_zero() -> None:
    assert sign_flip_p(np.array([[1.0], [1.0], [1.0]])) == [2 / 8]  # +++ and ---
    assert sign_flip_p(np.array([[3.0], [1.0], [-1.0]])) == [6 / 8]  # all but those with a sum of 1 or -1
    assert sign_flip_p(np.array([[2.0, 0.0], [2.0, 0.0]])).tolist() == [0.5, 1.0]


def test_p_of_one_query_is_1_and_so_is_that_of_no_difference() -> None:
    assert compare([0.9], [0.1]) == Difference(0.8, 0.8, 0.8, 1.0)
    assert compare([0.3, 0.7], [0.3, 0.7]) == Difference(0, 0, 0, 1)
    assert compare([0.3] * 100, [0.3] * 100) == Difference(0, 0, 0, 1)


def test_a_sampled_p_agrees_with_the_exact_one_and_is_never_zero() -> None:
    differences = np.random.default_rng(3).normal(0.3, 1, (12, 1))
    assert sign_flip_p(differences, num_resamples=4000) == pytest.approx(sign_flip_p(differences), abs=0.03)
    assert sign_flip_p(np.ones((500, 1))) == [1 / 10_001]


def test_p_is_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(5)
    p = sign_flip_p(rng.normal(size=(40, 400)), num_resamples=1000)
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(p < 0.5) == pytest.approx(0.5, abs=0.08)


def test_pairing_finds_what_two_intervals_hide() -> None:
    hard = np.linspace(0, 1, 60)
    found = compare(hard + 0.01 * (1 + np.sin(np.arange(60))), hard)
    assert found.low > 0 and found.p < 0.001
    assert mean_interval(hard).high > mean_interval(hard + 0.02).low


def test_columns_are_as_if_each_were_alone() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((30, 3)), rng.random((30, 3))
    for column, (interval, difference) in enumerate(zip(mean_intervals(a), compare_columns(a, b), strict=True)):
        alone = mean_interval(a[:, column])
        assert (interval.mean, interval.low, interval.high) == pytest.approx((alone.mean, alone.low, alone.high))
        pair = compare(a[:, column], b[:, column])
        assert (difference.low, difference.p) == pytest.approx((pair.low, pair.p))


def test_many_queries_are_resampled_in_blocks() -> None:
    values = np.random.default_rng(2).random(30_000)
    interval = mean_interval(values, num_resamples=300)
    assert 0 < interval.high - interval.low < 0.01
    assert 0 < sign_flip_p(values[:, None] - 0.5, num_resamples=300)[0] <= 1


@pytest.mark.parametrize("values", [[], [0.1, float("nan")], [float("inf")]])
def test_values_that_have_no_mean_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected at least one value, all of them finite; found"):
        mean_interval(values)


def test_values_of_other_queries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected values of the same queries, found shapes \(2, 1\) and \(1, 1\)"):
        compare([1, 2], [1])
    with pytest.raises(ValueError, match=r"expected one value a query, found an array of shape \(1, 2\)"):
        mean_interval([[1, 2]])


def test_a_percentile_of_nothing_is_none() -> None:
    assert (percentile([], 50), percentile([1, 2, 3], 50), percentile([1, 2, 3], 95)) == (None, 2.0, pytest.approx(2.9))


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_the_mean_lies_in_its_interval_and_the_interval_among_the_values(values: list[float]) -> None:
    found = mean_interval(values, num_resamples=200)
    assert found.low <= found.mean <= found.high
    assert min(values) - 1e-9 <= found.low and found.high <= max(values) + 1e-9


@settings(max_examples=60, deadline=None)
@given(VALUES, st.integers(-3, 3))
def test_who_is_compared_with_whom_turns_the_sign_and_nothing_else(values: list[float], shift: int) -> None:
    there, back = (
        compare(*pair, num_resamples=200) for pair in itertools.permutations((values, [shift] * len(values)))
    )
    assert there.difference == -back.difference
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-9)
    assert there.p == back.p and 0 < there.p <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_the_exact_p_is_what_a_plain_loop_counts(differences: list[int]) -> None:
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
    expected = sum(total >= abs(sum(differences)) for total in sums) / len(patterns)
    assert sign_flip_p(np.array(differences)[:, None]) == [expected]
