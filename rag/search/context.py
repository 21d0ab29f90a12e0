"""What stands around hits: neighbouring chunks, whole sections. Hits in, hits with more text out.

The pure functions know no database; `with_neighbours` and `with_sections` read what they need in one transaction, of
the generation that was searched. Both keep to documents that already have a hit, so what a caller may see stays what
it was. A hit whose chunk is gone meanwhile stays as it is. Ranks are counted again from 1; chunk_id and score are
still those of the best hit in each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql

from rag.index.store import Generation, Store
from rag.records import Hit, content_id

ANYWHERE = 2**40  # characters: no limit


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


def with_neighbours(store: Store, generation: Generation, hits: Sequence[Hit], num_chunks: int) -> list[Hit]:
    """Each hit with the `num_chunks` chunks before and after it in its section; what overlaps then is one hit."""
    if num_chunks <= 0 or not hits:
        return list(hits)
    with store.pool.connection() as conn, conn.transaction():
        found = _around(conn, generation, hits, num_chunks, ANYWHERE)
        return _expand(conn, generation, hits, {chunk_id: pieces for chunk_id, (_, pieces) in found.items()})


def with_sections(store: Store, generation: Generation, hits: Sequence[Hit], max_chars: int) -> list[Hit]:
    """Each hit as its whole section, or as the chunks around it that fit `max_chars`, itself at least.

    Hits of one section become one. Where it is longer than `max_chars` and their windows overlap, the one hit is as
    long as the windows together.
    """
    if max_chars <= 0 or not hits:
        return list(hits)
    with store.pool.connection() as conn, conn.transaction():
        found = _around(conn, generation, hits, None, max_chars)
        fit = {chunk_id: fitting(pieces, start, max_chars) for chunk_id, (start, pieces) in found.items()}
        return _expand(conn, generation, hits, fit)


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
    passages = [
        (place, Passage(hit, tuple(around.get(hit.chunk_id, ())) or (Piece(hit.start, hit.end, hit.text),)))
        for place, hit in enumerate(hits)
    ]
    merged: list[tuple[int, Passage]] = []
    for place, passage in sorted(passages, key=lambda p: (p[1].hit.source, p[1].start, p[0])):
        last = merged[-1] if merged else None
        if last and last[1].hit.source == passage.hit.source and passage.start <= last[1].end:
            pieces = {piece.start: piece for piece in (*last[1].pieces, *passage.pieces)}
            best_place, best = min(last, (place, passage), key=lambda p: p[0])
            merged[-1] = best_place, Passage(best.hit, tuple(pieces[start] for start in sorted(pieces)))
        else:
            merged.append((place, passage))
    return [passage for _, passage in sorted(merged, key=lambda p: p[0])]


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


_NEIGHBOURS = """(
    select b.start_char, b.end_char, b.text from {chunks} b
    where b.generation_id = {id} and b.doc_id = hit.doc_id and b.section_id = hit.section_id and %s limit %%(num)s
)"""
_BEFORE = "b.start_char < hit.start_char and b.end_char > hit.start_char - %(reach)s::int8 order by b.start_char desc"
_AFTER = "b.start_char > hit.start_char and b.start_char < hit.end_char + %(reach)s::int8 order by b.start_char"
_AROUND = f"""
    with hit as materialized (
        select chunk_id, doc_id, section_id, start_char, end_char, text from {{chunks}}
        where generation_id = {{id}} and chunk_id = any(%(ids)s)
    )
    select hit.chunk_id, hit.start_char, c.start_char, c.end_char, c.text from hit cross join lateral (
        (select hit.start_char, hit.end_char, hit.text)
        union all {_NEIGHBOURS % _BEFORE} union all {_NEIGHBOURS % _AFTER}
    ) c (start_char, end_char, text) order by hit.chunk_id, c.start_char
"""


def _around(
    conn: psycopg.Connection[Any], generation: Generation, hits: Sequence[Hit], num_chunks: int | None, reach: int
) -> dict[str, tuple[int, list[Piece]]]:
    """chunk_id -> its start, and the pieces of its section around it, itself included, ordered by start: at most
    `num_chunks` on each side, none that lies further than `reach` characters away."""
    statement = sql.SQL(_AROUND).format(chunks=generation.table, id=sql.Literal(generation.generation_id))
    parameters = {"ids": [hit.chunk_id for hit in hits], "num": num_chunks, "reach": reach}
    found: dict[str, tuple[int, list[Piece]]] = {}
    for chunk_id, hit_start, start, end, text in conn.execute(statement, parameters):
        found.setdefault(chunk_id, (hit_start, []))[1].append(Piece(start, end, text))
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
