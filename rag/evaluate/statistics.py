"""Values of many queries in, means with intervals and paired comparisons out. Pure numpy; knows no metric.

The queries of a test set are a sample of those that users will ask, so a mean without an interval says little, and
two ways of searching are compared query by query. Fixed seeds: the same values give the same interval everywhere.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 10_000
LEVEL = 0.95
BLOCK_CELLS = 4_000_000  # resampled values in memory at once: 32 MB

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie for other queries of the same kind."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean of a minus mean of b over the same queries; `p` that it is so far from 0 by chance alone."""

    difference: float
    low: float
    high: float
    p: float


def mean_interval(values: npt.ArrayLike, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Interval:
    """The mean of one value a query, with its percentile bootstrap interval (Efron 1979), 95 %.

    Of one query, or of equal values, the interval is a point: there is nothing to resample. That is no certainty.
    """
    column = _checked(values)
    if column.ndim != 1:
        raise ValueError(f"expected one value a query, found an array of shape {column.shape}")
    return mean_intervals(column[:, None], num_resamples, seed)[0]


def mean_intervals(values: npt.ArrayLike, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> list[Interval]:
    """The same for each column of (num_queries, num_columns), all from the same resamples."""
    table = _checked(values)
    means = table.mean(axis=0)
    resampled = np.concatenate([weights @ table for weights in _resample_weights(len(table), num_resamples, seed)])
    tails = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    lows, highs = np.quantile(resampled, tails, axis=0)
    # Sums in another order differ in their last digit; the mean is never outside its own interval.
    return [
        Interval(float(mean), float(min(low, mean)), float(max(high, mean)))
        for mean, low, high in zip(means, lows, highs, strict=True)
    ]


def compare(a: npt.ArrayLike, b: npt.ArrayLike, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Difference:
    """How far a is above b, value by value of the same queries: bootstrap interval and randomisation test."""
    return compare_columns(_checked(a)[:, None], _checked(b)[:, None], num_resamples, seed)[0]


def compare_columns(
    a: npt.ArrayLike, b: npt.ArrayLike, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> list[Difference]:
    """The same for each column of two (num_queries, num_columns)."""
    left, right = _checked(a), _checked(b)
    if left.shape != right.shape:
        raise ValueError(f"expected values of the same queries, found shapes {left.shape} and {right.shape}")
    differences = left - right
    intervals = mean_intervals(differences, num_resamples, seed)
    chances = sign_flip_p(differences, num_resamples, seed)
    return [
        Difference(interval.mean, interval.low, interval.high, float(p))
        for interval, p in zip(intervals, chances, strict=True)
    ]


def sign_flip_p(differences: npt.ArrayLike, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Floats:
    """Two-sided p of each column of paired differences, (num_queries, num_columns).

    Were the two the same, each query's difference could as well have the other sign (Fisher 1935). All patterns of
    signs where they are fewer than `num_resamples`, and p is exact; otherwise a sample, to which the pattern that
    was observed belongs, so that p is never 0.
    """
    table = _checked(differences)
    observed = np.abs(table.sum(axis=0))
    enough = observed - 1e-9 * np.abs(table).sum(axis=0)  # equal sums that were added in another order
    is_exact = len(table) < num_resamples.bit_length()  # 2 ** len(table) <= num_resamples
    signs = _all_signs(len(table)) if is_exact else _random_signs(len(table), num_resamples, seed)
    num_patterns, as_far = 0, np.zeros(table.shape[1])
    for block in signs:
        as_far += (np.abs(block @ table) >= enough).sum(axis=0)
        num_patterns += len(block)
    return as_far / num_patterns if is_exact else (as_far + 1) / (num_patterns + 1)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """None where there are no values."""
    return float(np.percentile(values, percent)) if len(values) else None


def _resample_weights(num_queries: int, num_resamples: int, seed: int) -> Iterator[Floats]:
    """Blocks of rows: how often each query was drawn, divided by how many were. A row times values is a mean."""
    rng = np.random.default_rng(seed)
    for num_rows in _blocks(num_queries, num_resamples):
        drawn = rng.integers(0, num_queries, (num_rows, num_queries))
        drawn += np.arange(num_rows)[:, None] * num_queries
        counts = np.bincount(drawn.ravel(), minlength=num_rows * num_queries)
        yield counts.reshape(num_rows, num_queries) / num_queries


def _all_signs(num_queries: int) -> Iterator[Floats]:
    patterns = np.arange(2**num_queries)[:, None] >> np.arange(num_queries)
    yield np.where(patterns & 1, -1.0, 1.0)


def _random_signs(num_queries: int, num_resamples: int, seed: int) -> Iterator[Floats]:
    rng = np.random.default_rng(seed)
    for num_rows in _blocks(num_queries, num_resamples):
        yield np.where(rng.integers(0, 2, (num_rows, num_queries), dtype=np.int8), -1.0, 1.0)


def _blocks(num_queries: int, num_resamples: int) -> Iterator[int]:
    size = max(1, BLOCK_CELLS // num_queries)
    for start in range(0, num_resamples, size):
        yield min(size, num_resamples - start)


def _checked(values: npt.ArrayLike) -> Floats:
    array = np.asarray(values, np.float64)
    if not array.size or not np.isfinite(array).all():
        raise ValueError(f"expected at least one value, all of them finite; found {array!r:.200}")
    return array
