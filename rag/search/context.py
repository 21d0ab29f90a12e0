"""What stands around hits: neighbouring chunks, whole sections, copies, diversity. Hits in, hits out.

The pure functions know no database; `with_neighbours`, `with_sections` and `diversify` read what they need in one
transaction, of the generation that was searched. All keep to documents that already have a hit, so what a caller may
see stays what it was. A hit whose chunk is gone meanwhile stays as it is. Ranks are counted again from 1; the score
of a hit is still what the search gave to its chunk.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from rag.index.duplicates import MIN_LETTERS
from rag.index.store import Generation, Store
from rag.records import Hit, content_id

SHINGLE_WORDS = 5
FAR = 2**40  # characters: no limit


@dataclass(frozen=True)
class Piece:
    """Text as it stands in its section: `text == section.text[start:end]`."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Passage:
    """A hit and the chunks that are to stand in its place, ordered by start; they overlap or touch, but for blanks."""

    hit: Hit
    pieces: tuple[Piece, ...]

    @property
    def start(self) -> int:
        return self.pieces[0].start

    @property
    def end(self) -> int:
        return max(piece.end for piece in self.pieces)


# Neighbours and sections


def with_neighbours(store: Store, generation: Generation, hits: Sequence[Hit], num_chunks: int) -> list[Hit]:
    """Each hit with the `num_chunks` chunks before and after it in its section; what overlaps then is one hit."""
    if num_chunks <= 0 or not hits:
        return list(hits)
    with store.pool.connection() as conn, conn.transaction():
        return _expand(conn, generation, hits, _around(conn, generation, hits, num_chunks, FAR))


def with_sections(store: Store, generation: Generation, hits: Sequence[Hit], max_chars: int) -> list[Hit]:
    """Each hit as its whole section, or as the chunks around it that fit `max_chars`, itself at least.

    Hits of one section become one. Where it is longer than `max_chars` and their windows overlap, the one hit is as
    long as the windows together.
    """
    if max_chars <= 0 or not hits:
        return list(hits)
    with store.pool.connection() as conn, conn.transaction():
        around = _around(conn, generation, hits, None, max_chars)
        starts = {hit.chunk_id: hit.start for hit in hits}
        capped = {chunk_id: fitting(pieces, starts[chunk_id], max_chars) for chunk_id, pieces in around.items()}
        return _expand(conn, generation, hits, capped)


def fitting(pieces: Sequence[Piece], start: int, max_chars: int) -> list[Piece]:
    """The piece at `start` and its neighbours, in turn the next and the one before, while all fit `max_chars`."""
    first = last = next(i for i, piece in enumerate(pieces) if piece.start == start)
    has_grown = True
    while has_grown:
        has_grown = False
        if last + 1 < len(pieces) and pieces[last + 1].end - pieces[first].start <= max_chars:
            last, has_grown = last + 1, True
        if first > 0 and pieces[last].end - pieces[first - 1].start <= max_chars:
            first, has_grown = first - 1, True
    return list(pieces[first : last + 1])


def merge_passages(hits: Sequence[Hit], around: Mapping[str, Sequence[Piece]]) -> list[Passage]:
    """The hits, each with its pieces; those of one section that overlap or touch are one, the best hit's.

    `around` is by chunk_id and has the hit's own piece too; a hit that it lacks stands alone.
    """
    best_first = [Passage(hit, tuple(around.get(hit.chunk_id, ())) or (_own(hit),)) for hit in hits]
    order = {id(passage): place for place, passage in enumerate(best_first)}
    merged: list[tuple[int, Passage]] = []
    for passage in sorted(best_first, key=lambda p: (p.hit.source, p.start, p.end)):
        place = order[id(passage)]
        if merged:
            other_place, other = merged[-1]
            if other.hit.source == passage.hit.source and passage.start <= other.end:
                pieces = {piece.start: piece for piece in (*other.pieces, *passage.pieces)}
                ordered = tuple(pieces[start] for start in sorted(pieces))
                best = min((other_place, other.hit), (place, passage.hit), key=lambda pair: pair[0])
                merged[-1] = (best[0], Passage(best[1], ordered))
                continue
        merged.append((place, passage))
    return [passage for _, passage in sorted(merged, key=lambda pair: pair[0])]


def join_pieces(pieces: Sequence[Piece], section_text: str | None = None) -> Piece:
    """Pieces in order as one, without repeating what they share.

    Chunks are trimmed, so the blanks between two may be in neither. `section_text`, the section's from the first start
    on, has them; where it is not given, or is another version's, as many blanks stand in for them: spans stay exact.
    """
    start, end, text = pieces[0].start, pieces[0].end, pieces[0].text
    for piece in pieces[1:]:
        if piece.end > end:
            blanks = piece.start - end
            text += _blanks(blanks) + piece.text if blanks > 0 else piece.text[-blanks:]
            end = piece.end
    true = (section_text or "")[: end - start]
    # But for blanks, equal; so the version is the same, or differs where nobody can tell.
    is_same = all(true[piece.start - start : piece.end - start] == piece.text for piece in pieces)
    return Piece(start, end, true if is_same and len(true) == len(text) and true.split() == text.split() else text)


def _blanks(num: int) -> str:
    """A new line, or an empty line: chunks end at paragraphs first, then at lines."""
    return "\n" * min(num, 2) + " " * (num - 2)


def _own(hit: Hit) -> Piece:
    return Piece(hit.start, hit.end, hit.text)


def _expand(
    conn: psycopg.Connection[Any], generation: Generation, hits: Sequence[Hit], around: Mapping[str, Sequence[Piece]]
) -> list[Hit]:
    passages = merge_passages(hits, around)
    texts = _section_texts(conn, generation, passages)
    joined = [join_pieces(passage.pieces, texts.get(i)) for i, passage in enumerate(passages)]
    return [
        replace(passage.hit, rank=rank, text=piece.text, start=piece.start, end=piece.end)
        for rank, (passage, piece) in enumerate(zip(passages, joined, strict=True), start=1)
    ]


def _around(
    conn: psycopg.Connection[Any], generation: Generation, hits: Sequence[Hit], num_chunks: int | None, reach: int
) -> dict[str, list[Piece]]:
    """chunk_id -> the pieces of its section around it, itself included, ordered by start: at most `num_chunks` on
    each side, none that begins or ends further than `reach` characters away."""
    neighbours = (
        "(select b.start_char, b.end_char, b.text from {chunks} b where b.generation_id = {id}"
        " and b.doc_id = hit.doc_id and b.section_id = hit.section_id and %s limit %%(num)s)"
    )
    before = "b.start_char < hit.start_char and b.end_char > hit.start_char - %(reach)s::int8 order by b.start_char desc"
    after = "b.start_char > hit.start_char and b.start_char < hit.end_char + %(reach)s::int8 order by b.start_char"
    statement = sql.SQL(
        "with hit as materialized (select chunk_id, doc_id, section_id, start_char, end_char, text from {chunks}"
        " where generation_id = {id} and chunk_id = any(%(ids)s))"
        " select hit.chunk_id, c.start_char, c.end_char, c.text from hit cross join lateral ("
        " (select hit.start_char, hit.end_char, hit.text)"
        f" union all {neighbours.replace('%s', before, 1).replace('%%', '%')}"
        f" union all {neighbours.replace('%s', after, 1).replace('%%', '%')}"
        ") c order by hit.chunk_id, c.start_char"
    ).format(chunks=generation.table, id=sql.Literal(generation.generation_id))
    found: dict[str, list[Piece]] = {}
    parameters = {"ids": [hit.chunk_id for hit in hits], "num": num_chunks, "reach": reach}
    for chunk_id, start, end, text in conn.execute(statement, parameters):
        found.setdefault(chunk_id, []).append(Piece(start, end, text))
    return found


def _section_texts(
    conn: psycopg.Connection[Any], generation: Generation, passages: Sequence[Passage]
) -> dict[int, str]:
    """Place of a passage of several pieces -> its span of the section as it is now.

    Sections are those of the newest ingestion, so this may be another version's text: `join_pieces` looks.
    """
    wanted = [(i, p) for i, p in enumerate(passages) if len(p.pieces) > 1]
    rows = conn.execute(
        "select w.place, substring(s.text from w.first for w.length)"
        " from unnest(%s::int[], %s::text[], %s::int[], %s::int[]) as w (place, section_id, first, length)"
        " join sections s on s.collection_id = %s and s.section_id = w.section_id",
        [
            [i for i, _ in wanted],
            [content_id(p.hit.source) for _, p in wanted],
            [p.start + 1 for _, p in wanted],
            [p.end - p.start for _, p in wanted],
            generation.collection_id,
        ],
    )
    return dict(rows.fetchall())


# Copies


def merge_copies(hits: Sequence[Hit], similarity: float = 0.9) -> tuple[list[Hit], dict[str, tuple[str, ...]]]:
    """The hits without near copies of better ones, and chunk_id of a kept hit -> the sources of its copies.

    A copy has the same letters, as in rag.index.duplicates (letter case, spaces, punctuation and digits do not
    count), or nearly: of the runs of five words that occur in either, a share of `similarity` or more occurs in both
    (Broder's resemblance, 1997). Texts of fewer than 40 letters are no copies: they are equal by chance.
    """
    kept: list[tuple[Hit, str, frozenset[tuple[str, ...]]]] = []
    copies: dict[str, list[str]] = {}
    for hit in hits:
        words = re.findall(r"[^\W\d_]+", hit.text.lower())
        letters, shingles = "".join(words), _shingles(words)
        if len(letters) >= MIN_LETTERS:
            same = (h for h, key, others in kept if key == letters or resemblance(shingles, others) >= similarity)
            if (original := next(same, None)) is not None:
                copies.setdefault(original.chunk_id, []).append(hit.source)
                continue
        kept.append((hit, letters, shingles if len(letters) >= MIN_LETTERS else frozenset()))
    ranked = [replace(hit, rank=rank) for rank, (hit, _, _) in enumerate(kept, start=1)]
    return ranked, {chunk_id: tuple(sources) for chunk_id, sources in copies.items()}


def _shingles(words: Sequence[str]) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1)))


def resemblance(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    """|one and other| / |one or other|, Jaccard's index; 0 of two empty sets."""
    num_shared = len(one & other)
    return num_shared / max(1, len(one) + len(other) - num_shared)


# Diversity


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

    Each step chooses, of the rows R that are left, given the chosen ones S, and with cosines as similarity,

        argmax over i in R of   weight * relevance[i] - (1 - weight) * max over j in S of embeddings[i] @ embeddings[j]

    The maximum over no rows is 0, so the first is the most relevant one. Ties go to the smaller index. `embeddings` is
    (n, dim), rows of norm 1. With weight 1 the order is that of relevance, with 0 only novelty counts after the first.
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
