"""What a lexical index knows at one moment, as arrays: parts that hold whole documents, and the view of all of them.

A chunk is often too small a piece of its document to hold all that a query asks for, so its score has three terms: its
own BM25, that of its whole document, and that of the pairs of neighbouring words in its document. What each is worth:
experiments/LOG.md. Knows nothing of texts, files or databases.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rag.index.bm25 import BM25, Postings, hash_pairs, hash_term, merge, top
from rag.records import Access

MAX_PARTS = 8  # a search looks into each
MERGE_SHARE = 0.2  # of the large part; where the small ones hold more, all become one
PAIR_WEIGHT = 0.6  # beside a word's 1
MAX_MASKS = 64  # filters whose documents are remembered

Class = tuple[str, tuple[str, ...]]  # tenant and labels of a document


@dataclass(frozen=True)
class Part:
    """Some whole documents of a generation, searchable. Chunks are known by their slot, documents by their number."""

    postings: Postings  # of chunks
    whole: Postings  # of documents
    pairs: Postings  # of documents, which words stand side by side; lengths are those of `whole`
    chunk_ids: np.ndarray  # (chunks, 16) uint8
    owner: np.ndarray  # (chunks,) int32, the number of each one's document
    by_id: np.ndarray  # (chunks,) int32, slots in the order of the first half of their chunk_id
    halves: np.ndarray  # (chunks,) uint64, these halves in that order
    documents: np.ndarray  # (documents,) uint64, the first half of the doc_id
    classes: np.ndarray  # (documents,) int32, who may see it: a place in the index's list of classes
    alive: np.ndarray | None = None  # (documents,) bool; None: all


class View:
    """The index at one moment. Immutable."""

    def __init__(self, parts: Sequence[Part], classes: tuple[Class, ...]) -> None:
        self.parts, self.classes = tuple(parts), classes
        self._alive = [None if part.alive is None else part.alive[part.owner] for part in parts]  # chunks
        self.bm25 = BM25([part.postings for part in parts], self._alive)
        self.whole = BM25([part.whole for part in parts], [part.alive for part in parts])
        self.pairs = BM25([part.pairs for part in parts], [part.alive for part in parts])
        self._owner = _joined([part.owner for part in parts], self.whole.offsets)
        self._masks: dict[Any, np.ndarray] = {}  # by filter, while this view is the newest

    def search(self, terms: Sequence[str], k: int, allowed: np.ndarray | None = None) -> tuple[list[str], np.ndarray]:
        """Ids of the k best allowed chunks, best first, and the scores of all slots.

        A slot is a chunk's number, counted through all parts. One where no term stands has 0, whatever its document
        holds.
        """
        scores = self.bm25.scores(terms)
        if allowed is not None:
            scores *= allowed
        hashes = np.array([hash_term(term) for term in terms], np.uint64)
        pairs = hash_pairs(hashes[:-1], hashes[1:])
        of_documents = self.whole.scores(terms) + PAIR_WEIGHT * self.pairs.scores_of(pairs.tolist())
        found = np.flatnonzero(scores > 0)
        of_found = scores[found] + of_documents[self._owner[found]]
        scores[found] = of_found
        return self.chunk_ids(found[top(of_found, k)]), scores

    def chunk_ids(self, slots: np.ndarray) -> list[str]:
        """(n,) int64 -> n ids."""
        rows = np.empty((len(slots), 16), np.uint8)
        for part, start, end in zip(self.parts, self.bm25.offsets, self.bm25.offsets[1:], strict=False):
            here = (slots >= start) & (slots < end)
            rows[here] = part.chunk_ids[slots[here] - start]
        text = rows.tobytes().hex()
        return [text[i : i + 32] for i in range(0, len(text), 32)]

    def slots(self, chunk_ids: Sequence[str]) -> np.ndarray:
        """(len(chunk_ids),) int64; -1 for a chunk that is not here."""
        found = np.full(len(chunk_ids), -1, np.int64)
        wanted = keys(chunk_ids)
        for part, alive, offset in zip(self.parts, self._alive, self.bm25.offsets, strict=False):
            if not len(part.halves):
                continue
            at = np.minimum(np.searchsorted(part.halves, wanted), len(part.halves) - 1)
            slot = part.by_id[at]
            is_here = part.halves[at] == wanted
            if alive is not None:
                is_here &= alive[slot]
            found[is_here] = slot[is_here] + offset
        return found

    def seen_by(self, access: Access | None) -> np.ndarray | None:
        """(slots,) bool: what the caller may see; None: everything."""
        if access is None:
            return None
        may = np.array([_may_see(access, one) for one in self.classes], bool)
        if may.all():
            return None
        seen: np.ndarray = np.concatenate([may[part.classes] for part in self.parts])[self._owner]
        return seen

    def of_documents(self, key: Any, find: Callable[[], Sequence[str]]) -> np.ndarray:
        """(slots,) bool: chunks of the documents that `find` returns, asked for once in this view's life."""
        if key not in self._masks:
            if len(self._masks) >= MAX_MASKS:
                self._masks.clear()
            wanted = keys(find())
            self._masks[key] = np.concatenate([np.isin(part.documents, wanted) for part in self.parts])[self._owner]
        return self._masks[key]


def keys(ids: Sequence[str]) -> np.ndarray:
    """The first 64 bits of ids of 128: (len(ids),) uint64."""
    return np.frombuffer(bytes.fromhex("".join(one[:16] for one in ids)), np.uint64)


def sorted_by_id(chunk_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(chunks, 16) uint8 -> `by_id` and `halves` of a Part."""
    halves = chunk_ids.view(np.uint64)[:, 0]
    by_id = np.argsort(halves).astype(np.int32)
    return by_id, halves[by_id]


def _may_see(access: Access, one: Class) -> bool:
    tenant, labels = one
    return tenant == access.tenant and (not labels or not set(labels).isdisjoint(access.labels))


def without(part: Part, documents: np.ndarray) -> Part:
    gone = np.isin(part.documents, documents)
    if not gone.any():
        return part
    return replace(part, alive=~gone if part.alive is None else part.alive & ~gone)


def compact(parts: list[Part]) -> list[Part]:
    """The same chunks in fewer parts, where there are many, or small ones that are no longer small."""
    large, *small = parts
    if sum(len(part.owner) for part in small) > MERGE_SHARE * len(large.owner):
        return [merged(parts)]
    return [large, merged(small)] if len(parts) > MAX_PARTS else parts


def merged(parts: Sequence[Part]) -> Part:
    alive = [np.ones(len(part.documents), bool) if part.alive is None else part.alive for part in parts]
    alive_chunks = [mask[part.owner] for part, mask in zip(parts, alive, strict=True)]
    numbers = [(np.cumsum(mask, dtype=np.int32) - 1) for mask in alive]
    owners = [number[part.owner[mask]] for part, number, mask in zip(parts, numbers, alive_chunks, strict=True)]
    chunk_ids = np.concatenate([part.chunk_ids[mask] for part, mask in zip(parts, alive_chunks, strict=True)])
    by_id, halves = sorted_by_id(chunk_ids)
    return Part(
        postings=merge([part.postings for part in parts], alive_chunks),
        whole=merge([part.whole for part in parts], alive),
        pairs=merge([part.pairs for part in parts], alive),
        chunk_ids=chunk_ids,
        owner=_joined(owners, np.cumsum([0, *(mask.sum() for mask in alive)])),
        by_id=by_id,
        halves=halves,
        documents=np.concatenate([part.documents[mask] for part, mask in zip(parts, alive, strict=True)]),
        classes=np.concatenate([part.classes[mask] for part, mask in zip(parts, alive, strict=True)]),
    )


def _joined(numbers: Sequence[np.ndarray], offsets: np.ndarray) -> np.ndarray:
    """Numbers within each part -> numbers through all parts; what is one part already is not copied."""
    if len(numbers) == 1:
        return numbers[0]
    return np.concatenate([one + np.int32(offset) for one, offset in zip(numbers, offsets, strict=False)])
