"""Two rankings of the same candidates in, one out. Pure arithmetic on arrays; knows no chunks.

Both ways take for each candidate a cosine and a BM25 score, and `weight`, the share of the cosine: 1 is semantic
search alone, 0 lexical alone.
"""

from typing import Literal

import numpy as np

Fusion = Literal["scores", "rrf"]

RRF_K = 60  # Cormack, Clarke and Buettcher 2009


def fuse(how: Fusion, cosines: np.ndarray, bm25: np.ndarray, weight: float) -> np.ndarray:
    """(candidates,) and (candidates,) -> (candidates,), higher is better."""
    if how == "rrf":
        return weight / (RRF_K + ranks(cosines)) + (1 - weight) / (RRF_K + ranks(bm25))
    return weight * standardised(cosines) + (1 - weight) * standardised(bm25)


def standardised(scores: np.ndarray) -> np.ndarray:
    """In standard deviations from the mean of the candidates; 0 where all are equal.

    How far the best stands out counts, which ranks forget. Unlike minimum and maximum, one outlier does not squeeze
    all the others together.
    """
    spread = scores.std() if len(scores) else 0.0
    return np.asarray((scores - scores.mean()) / spread if spread > 1e-9 else np.zeros(len(scores)))


def ranks(scores: np.ndarray) -> np.ndarray:
    """1 for the highest; equal scores share the best of their ranks."""
    ordered = np.sort(scores)
    return len(scores) - np.searchsorted(ordered, scores, side="right") + 1
