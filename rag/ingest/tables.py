"""Rows of cells in, readable text out: `a | b` a line, the header again at the head of every block.

A block is what a chunk of the default size holds, so a row is found together with the names of its columns.
Also CSV. Knows nothing of office files.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from rag.ingest.outline import cite, file_stem, trim
from rag.records import Section

BLOCK_CHARS = 600
ROWS_IN_SECTION = 1000
DELIMITERS = ",;\t|"
NUMBER = re.compile(r"[^\w\s]?\d[\d.,:/ -]*%?$")  # also a date, a time, a price
YEAR = re.compile(r"(?:19|20)\d\d$")


@dataclass(frozen=True)
class Block:
    """Lines of a table; `first` and `last` are row numbers, counted from 1, a repeated header not among them."""

    first: int
    last: int
    text: str


def format_table(rows: Iterable[list[str]]) -> str:
    """A table as text."""
    return "\n\n".join(block.text for block in table_blocks(enumerate(rows, 1)))


def table_blocks(rows: Iterable[tuple[int, list[str]]]) -> Iterator[Block]:
    """The blocks of numbered rows; an empty row ends a table."""
    for is_filled, table in groupby(rows, key=lambda row: any(row[1])):
        if is_filled:
            yield from _blocks_of_one(table)


def _blocks_of_one(rows: Iterator[tuple[int, list[str]]]) -> Iterator[Block]:
    header = ""
    lines: list[str] = []
    first = last = num_chars = 0
    for number, cells in rows:
        line = format_row(cells)
        if not lines:
            first, header = number, line if _is_header(cells) else ""
        elif num_chars + len(line) > max(BLOCK_CHARS, 4 * len(header)):
            yield Block(first, last, "\n".join(lines))
            first, lines = number, [header] if header else []
            num_chars = len(header)
        lines.append(line)
        num_chars += len(line) + 1
        last = number
    if lines:
        yield Block(first, last, "\n".join(lines))


def format_row(cells: list[str]) -> str:
    """`a | b |  | d`, without empty cells at its end."""
    return " | ".join(" ".join(cell.split()) for cell in cells).rstrip(" |")


def _is_header(cells: list[str]) -> bool:
    """Names in two columns or more, and no numbers among them but years."""
    filled = [cell.strip() for cell in cells if cell.strip()]
    return len(filled) > 1 and not any(NUMBER.match(cell) and not YEAR.match(cell) for cell in filled)


def group_blocks(blocks: Iterable[Block]) -> Iterator[Block]:
    """Blocks joined, about a thousand rows together: the sections of a long table."""
    group: list[Block] = []
    for block in blocks:
        if group and block.last - group[0].first >= ROWS_IN_SECTION:
            yield _joined(group)
            group = []
        group.append(block)
    if group:
        yield _joined(group)


def _joined(group: list[Block]) -> Block:
    return Block(group[0].first, group[-1].last, "\n\n".join(block.text for block in group))


# CSV


def split_csv(text: str, source: str) -> list[Section]:
    """One section; of a long file one per thousand rows, cited as RFC 7111 does: `#row=1-1000`."""
    head = text[: text.find("\n")] if "\n" in text else text
    return _split_rows(text, source, max(DELIMITERS, key=head.count))


def split_tsv(text: str, source: str) -> list[Section]:
    return _split_rows(text, source, "\t")


def _split_rows(text: str, source: str, delimiter: str) -> list[Section]:
    title = file_stem(source)
    try:
        rows = enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 1)
        parts = list(group_blocks(table_blocks(rows)))
    except csv.Error:  # a quote that never ends, a cell of megabytes: the text is still good
        return [Section(source, title, trim(text))]
    if len(parts) == 1:
        return [Section(source, title, parts[0].text)]
    return [Section(cite(source, f"row={part.first}-{part.last}"), title, part.text) for part in parts]
