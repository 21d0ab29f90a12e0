"""Fewer hits that say the same: near copies merged, and diversity by maximal marginal relevance. Hits in, hits out.

Only `diversify` reads the database: the stored embeddings of the hits, in one query. Ranks are counted again from 1;
a hit's score is still what the search gave it, so after `diversify` the order is that of ranks, not of scores.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from psycopg import sql

from rag.index.duplicates import MIN_LETTERS
from rag.index.store import Generation, Store
from rag.records import Hit

SHINGLE_WORDS = 5
Shingles = frozenset[tuple[str, ...]]


def merge_copies(hits: Sequence[Hit], similarity: float = 0.9) -> tuple[list[Hit], dict[str, tuple[str, ...]]]:
    """The hits without near copies of better ones, and chunk_id of a kept hit -> the sources of its copies.

    A copy has the same letters, as in rag.index.duplicates (letter case, spaces, punctuation and digits do not
    count), or nearly: of the runs of five words that occur in either, a share of `similarity` or more occurs in both
    (Broder's resemblance, 1997). Texts of fewer than 40 letters are no copies: they are equal by chance.
    """
    kept: list[Hit] = []
    sizes: list[int] = []
    with_letters: dict[str, int] = {}  # the place in `kept`
    with_shingle: dict[tuple[str, ...], list[int]] = {}
    copies: dict[str, list[str]] = {}
    for hit in hits:
        words = re.findall(r"[^\W\d_]+", hit.text.lower())
        letters = "".join(words)
        shingles = _shingles(words) if len(letters) >= MIN_LETTERS else frozenset()
        shared = Counter(place for one in shingles for place in with_shingle.get(one, ()))
        same = [at for at, num in shared.items() if num / (len(shingles) + sizes[at] - num) >= similarity]
        if shingles and letters in with_letters:
            same.append(with_letters[letters])
        if same:
            copies.setdefault(kept[min(same)].chunk_id, []).append(hit.source)
            continue
        with_letters.setdefault(letters, len(kept))
        for one in shingles:
            with_shingle.setdefault(one, []).append(len(kept))
        kept.append(hit)
        sizes.append(len(shingles))
    ranked = [replace(hit, rank=rank) for rank, hit in enumerate(kept, start=1)]
    return ranked, {chunk_id: tuple(sources) for chunk_id, sources in copies.items()}


def _shingles(words: Sequence[str]) -> Shingles:
    return frozenset(tuple(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1)))


def diversify(store: Store, generation: Generation, hits: Sequence[Hit], k: int, weight: float) -> list[Hit]:
    """k of the hits, best first, chosen by `mmr` over their stored embeddings; `weight` 1 keeps the first k.

    The relevance of a hit is its score, stretched so that the best has 1 and the worst 0: scores of different
    searches and rerankers have scales of their own. So `weight` means the same to all of them, given enough hits.
    """
    if weight >= 1 or len(hits) < 2:
        return list(hits[:k])
    statement = sql.SQL("select chunk_id, embedding from {} where generation_id = %s and chunk_id = any(%s)")
    with store.pool.connection() as conn, conn.transaction():
        rows = conn.execute(
            statement.format(generation.table), [generation.generation_id, [hit.chunk_id for hit in hits]]
        ).fetchall()
    found = {chunk_id: embedding.to_numpy() for chunk_id, embedding in rows}
    unknown = np.zeros(generation.dim, np.float32)  # like nothing else
    embeddings = np.stack([found.get(hit.chunk_id, unknown) for hit in hits])
    chosen = mmr(relevance([hit.score for hit in hits]), embeddings, k, weight)
    return [replace(hits[i], rank=rank) for rank, i in enumerate(chosen, start=1)]


def relevance(scores: Sequence[float]) -> np.ndarray:
    """Scores in their order, best first, stretched to [0, 1]; all 1 where they are equal. It never rises."""
    falling = np.minimum.accumulate(np.asarray(scores, np.float64))
    extent = falling[0] - falling[-1]
    return (falling - falling[-1]) / extent if extent > 0 else np.ones(len(falling))


def mmr(relevance: np.ndarray, embeddings: np.ndarray, k: int, weight: float) -> list[int]:
    """Indices of k rows, in the order chosen, by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    The most relevant row is the first. Each further step chooses, of the rows R that are left, given those chosen, S,
    and with the cosine as similarity,

        argmax over i in R of   weight * relevance[i] - (1 - weight) * max over j in S of embeddings[i] @ embeddings[j]

    Ties go to the smaller index. `embeddings` is (n, dim), rows of norm 1. With weight 1 the order is that of
    relevance; with 0 only novelty counts.
    """
    if not len(relevance):
        return []
    values = np.asarray(relevance, np.float64)
    rows = np.asarray(embeddings, np.float64)
    chosen = [int(np.argmax(values))]
    nearest = rows @ rows[chosen[0]]
    while len(chosen) < min(k, len(values)):
        marginal = weight * values - (1 - weight) * nearest
        marginal[chosen] = -np.inf
        chosen.append(int(np.argmax(marginal)))
        nearest = np.maximum(nearest, rows @ rows[chosen[-1]])
    return chosen[: max(k, 0)]
