"""Hits in, the same hits in a better order out. Each module is one way; this one only says what they share."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from rag.records import Hit


class Reranker(Protocol):
    """Thread-safe; made once per process."""

    def rerank(self, query: str, hits: Sequence[Hit]) -> list[Hit]:
        """The same hits, best first, ranks from 1, scores the reranker's own (higher is better)."""
        ...


def ranked(hits: Sequence[Hit], scores: Sequence[float]) -> list[Hit]:
    """The hits by `scores`, highest first; among equals the one that was ahead stays ahead."""
    order = sorted(range(len(hits)), key=lambda i: -scores[i])
    return [replace(hits[i], rank=rank, score=float(scores[i])) for rank, i in enumerate(order, start=1)]
