"""BM25 over an inverted index of flat arrays: terms in, the best chunks out, exactly.

    score(q, c) = sum over terms t of q:  idf(t) * f * (k1 + 1) / (f + k1 * (1 - b + b * |c| / avg))
    idf(t)      = ln((N + 1) / df(t))

f is how often t stands in chunk c, |c| how many terms c has. Robertson et al. 1994 (TREC-3), with the idf of Lv and
Zhai 2011, which is never negative: these are the scores of rank-bm25's BM25Plus with delta 0.

An index is a list of parts: a large one that was written once and is mapped from its file, so that all processes of a
machine share its memory, and a small one of what came since. Chunks that went are masked, in results and statistics.
Knows nothing of words, files' places or databases.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

K1, B = 1.2, 0.75
BLOCK = 20_000  # chunks that are sorted at a time; bounds the memory of a build
GROUPED = 2_000_000  # postings that are grouped at a time
MAX_COUNT = 65_535  # of a term in a chunk
TOP_BLOCK = 64  # scores whose maximum is taken before the best are looked for


@dataclass(frozen=True)
class Postings:
    """Which chunks hold which terms. Chunk i is the i-th that was given; terms are known by their hash alone."""

    hashes: np.ndarray  # (terms,) uint64, ascending
    starts: np.ndarray  # (terms + 1,) int64: postings of term i are starts[i]:starts[i + 1]
    chunks: np.ndarray  # (postings,) int32, ascending within a term
    counts: np.ndarray  # (postings,) uint16, how often the term stands in the chunk
    lengths: np.ndarray  # (chunks,) int32, terms in a chunk

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "Postings":
        """Mapped, not read: processes share it, and only what queries touch takes memory.

        Raises OSError, ValueError.
        """
        return cls(*(load_array(folder / f"{field.name}.npy") for field in fields(cls)))


def load_array(path: Path) -> np.ndarray:
    """An array mapped from its file. Raises OSError, ValueError."""
    is_small = path.stat().st_size <= 256  # an empty array cannot be mapped
    found: np.ndarray = np.load(path, mmap_mode=None if is_small else "r", allow_pickle=False)
    return found


def build_postings(chunks: Iterable[Sequence[str]]) -> Postings:
    """The postings of chunks given as their terms, in order."""
    return build_with_pairs(chunks)[0]


def build_with_pairs(chunks: Iterable[Sequence[str]]) -> tuple[Postings, Postings]:
    """The postings of chunks given as their terms, in order, and those of the pairs of neighbouring terms."""
    known: dict[str, int] = {}
    parts: list[tuple[Postings, Postings]] = []
    flat: list[int] = []
    lengths: list[int] = []
    for terms in chunks:
        for term in terms:
            if (found := known.get(term)) is None:
                found = known[term] = hash_term(term)
            flat.append(found)
        lengths.append(len(terms))
        if len(lengths) == BLOCK:
            parts.append(_block(flat, lengths))
            flat, lengths = [], []
    parts.append(_block(flat, lengths))
    alive = [np.ones(len(one.lengths), bool) for one, _ in parts]
    return merge([one for one, _ in parts], alive), merge([pairs for _, pairs in parts], alive)


def merge(parts: Sequence[Postings], alive: Sequence[np.ndarray]) -> Postings:
    """One part of several, without the chunks that are not `alive`; chunks keep their order and are numbered anew."""
    numbers = [np.cumsum(mask, dtype=np.int32) - 1 for mask in alive]
    offsets = np.cumsum([0, *(int(mask.sum()) for mask in alive)])
    kept = [mask[part.chunks] for part, mask in zip(parts, alive, strict=True)]
    hashes = np.unique(np.concatenate([part.hashes for part in parts]))
    terms = np.concatenate(
        [
            np.repeat(np.searchsorted(hashes, part.hashes).astype(np.int32), np.diff(part.starts))[keep]
            for part, keep in zip(parts, kept, strict=True)
        ]
    )
    order = np.argsort(terms, kind="stable")  # parts are sorted already: their runs are merged
    per_term = np.bincount(terms, minlength=len(hashes))
    present = per_term > 0
    chunks = [
        number[part.chunks[keep]] + np.int32(offset)
        for part, number, offset, keep in zip(parts, numbers, offsets, kept, strict=False)
    ]
    return Postings(
        hashes=hashes[present],
        starts=np.concatenate([[0], np.cumsum(per_term[present])]).astype(np.int64),
        chunks=np.concatenate(chunks)[order],
        counts=np.concatenate([part.counts[keep] for part, keep in zip(parts, kept, strict=True)])[order],
        lengths=np.concatenate([part.lengths[mask] for part, mask in zip(parts, alive, strict=True)]),
    )


def group(postings: Postings, owner: np.ndarray, num_groups: int) -> Postings:
    """The same text in larger pieces: chunk i goes into piece owner[i]. (chunks,) int, below `num_groups`."""
    starts, pieces, counts = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.uint16)]
    num_terms, num_postings, term = len(postings.hashes), 0, 0
    while term < num_terms:  # some terms at a time, which bounds the memory
        limit = int(np.searchsorted(postings.starts, postings.starts[term] + GROUPED, "right")) - 1
        end = max(term + 1, min(limit, num_terms))
        here = slice(postings.starts[term], postings.starts[end])
        terms = np.repeat(np.arange(end - term), np.diff(postings.starts[term : end + 1]))
        keys = terms * num_groups + owner[postings.chunks[here]]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        found = keys[first]
        summed = np.add.reduceat(postings.counts[here][order], first, dtype=np.int64) if len(first) else first
        per_term = np.bincount(found // num_groups, minlength=end - term)
        starts.append(num_postings + np.cumsum(per_term))
        pieces.append((found % num_groups).astype(np.int32))
        counts.append(np.minimum(summed, MAX_COUNT).astype(np.uint16))
        num_postings, term = num_postings + len(found), end
    return Postings(
        hashes=postings.hashes,
        starts=np.concatenate(starts),
        chunks=np.concatenate(pieces),
        counts=np.concatenate(counts),
        lengths=np.bincount(owner, postings.lengths, num_groups).astype(np.int32),
    )


def hash_term(term: str) -> int:
    """64 bits of BLAKE2b: among ten million terms two are alike once in 400,000 indexes."""
    return int.from_bytes(hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def hash_pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) uint64 each, hashes of terms -> (n,) uint64; the order of the two counts."""
    return (first * np.uint64(0x9E3779B97F4A7C15)) ^ ((second << np.uint64(23)) | (second >> np.uint64(41)))


class BM25:
    """Several parts searched as one. Immutable; may be searched by several threads at once."""

    def __init__(self, parts: Sequence[Postings], alive: Sequence[np.ndarray | None]) -> None:
        """`alive` says for each part which chunks still count, (chunks,) bool; None: all."""
        self.parts = parts
        self.offsets = np.cumsum([0, *(len(part.lengths) for part in parts)])
        self.num_slots = int(self.offsets[-1])
        self._alive = [None if mask is None or mask.all() else mask for mask in alive]
        lengths = np.concatenate([part.lengths for part in parts]) if parts else np.zeros(0, np.int32)
        counted = np.ones(len(lengths), bool)
        for mask, start, end in zip(self._alive, self.offsets, self.offsets[1:], strict=False):
            if mask is not None:
                counted[start:end] = mask
        self.num_chunks = int(counted.sum())
        self._gone = None if self.num_chunks == len(lengths) else ~counted
        average = float(lengths[counted].mean()) if self.num_chunks else 1.0
        self._norms = (K1 * (1 - B + B * lengths / max(average, 1e-9))).astype(np.float32)

    def scores(self, terms: Sequence[str]) -> np.ndarray:
        """(num_slots,) float32, 0 where no term stands or the chunk is gone.

        A slot is a chunk's number, counted through all parts.
        """
        return self.scores_of([hash_term(term) for term in terms])

    def scores_of(self, hashes: Sequence[int]) -> np.ndarray:
        """The same, for terms or pairs given by their hashes."""
        scores = np.zeros(self.num_slots, np.float32)
        for key, times in Counter(hashes).items():
            found = self._find(key)
            df = sum(self._num_alive(chunks, part) for part, chunks, _ in found)
            if not df:
                continue
            weight = np.float32(times * (K1 + 1) * np.log((self.num_chunks + 1) / df))
            for part, chunks, counts in found:
                here = slice(self.offsets[part], self.offsets[part + 1])
                chunks, f = chunks.astype(np.intp), counts.astype(np.float32)  # what indexing would do twice
                gain = self._norms[here].take(chunks)
                gain += f
                np.divide(f, gain, out=gain)
                gain *= weight
                gain += scores[here].take(chunks)
                scores[here][chunks] = gain
        if self._gone is not None:
            scores[self._gone] = 0
        return scores

    def _find(self, key: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """[(part, chunks, counts)] of the parts that have the term."""
        found = []
        for number, part in enumerate(self.parts):
            at = int(np.searchsorted(part.hashes, np.uint64(key)))
            if at < len(part.hashes) and int(part.hashes[at]) == key:
                one = slice(part.starts[at], part.starts[at + 1])
                found.append((number, np.asarray(part.chunks[one]), np.asarray(part.counts[one])))
        return found

    def _num_alive(self, chunks: np.ndarray, part: int) -> int:
        mask = self._alive[part]
        return len(chunks) if mask is None else int(np.count_nonzero(mask[chunks]))


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k highest, highest first, equals by index. (n,) float32 -> (min(k, n),) int64."""
    k = min(k, len(scores))
    if k <= 0:
        return np.zeros(0, np.int64)
    candidates = np.arange(len(scores))
    if len(scores) > 4 * TOP_BLOCK * k:  # the k best lie in the k blocks whose best are highest
        whole = len(scores) // TOP_BLOCK * TOP_BLOCK
        best = scores[:whole].reshape(-1, TOP_BLOCK).max(axis=1)
        blocks = np.flatnonzero(best >= np.partition(best, len(best) - k)[len(best) - k])
        candidates = (blocks[:, None] * TOP_BLOCK + np.arange(TOP_BLOCK)).ravel()
        candidates = np.concatenate([candidates, np.arange(whole, len(scores))])
    found = scores[candidates]
    worst = np.partition(found, len(found) - k)[len(found) - k]
    candidates = candidates[found >= worst]
    best_first: np.ndarray = candidates[np.lexsort((candidates, -scores[candidates]))]
    return best_first[:k]


def _block(flat: list[int], lengths: list[int]) -> tuple[Postings, Postings]:
    """Of a block of chunks: the postings of its terms, given by their hashes, and of its pairs."""
    hashes = np.asarray(flat, np.uint64)
    chunks = np.repeat(np.arange(len(lengths)), lengths)
    together = np.flatnonzero(chunks[1:] == chunks[:-1])
    pairs = hash_pairs(hashes[together], hashes[together + 1])
    counted = np.asarray(lengths, np.int32)
    return _postings(hashes, chunks, counted), _postings(pairs, chunks[together], counted)


def _postings(hashes: np.ndarray, chunks: np.ndarray, lengths: np.ndarray) -> Postings:
    """(n,) uint64 and (n,) int64: which term stands in which chunk, as often as it does."""
    terms, numbers = np.unique(hashes, return_inverse=True)
    keys, counts = np.unique((numbers << 32) | chunks, return_counts=True)
    return Postings(
        hashes=terms,
        starts=np.concatenate([[0], np.cumsum(np.bincount(keys >> 32, minlength=len(terms)))]).astype(np.int64),
        chunks=(keys & 0xFFFFFFFF).astype(np.int32),
        counts=np.minimum(counts, MAX_COUNT).astype(np.uint16),
        lengths=lengths,
    )
