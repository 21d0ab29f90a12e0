"""Markdown or source code in, spans of whole blocks out. Knows the shape of both, and no meaning.

A text becomes units that stay whole where they fit: a paragraph, a code fence, a table, a list; a line of code. Units
are packed in order up to the size. Sizes are in characters.
"""

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from markdown_it.token import Token

from rag.ingest.markdown import block_parser
from rag.ingest.windows import Span, char_windows, trim_span

SLAB = 100_000  # characters parsed at once: the parser holds hundreds of bytes for each line
EARLY = 4  # a chunk is filled to a quarter at least before a better place to cut counts
TAB_WIDTH = 4
WHOLE = {"fence", "code_block", "html_block"}  # their lines are cut as those of source code
# Lines that belong to what stands above them: closing brackets, the later parts of a statement.
CLOSING = re.compile(r"[)\]}]|(?:else|elif|except|finally|catch|end|done|fi|esac)\b|\*/|```|~~~")


@dataclass(frozen=True, slots=True)
class Unit:
    """A span that is not cut where it fits."""

    start: int
    end: int
    level: float = 0  # of a cut before it: the lowest is the best place
    is_glued: bool = False  # to the unit before: cut there only if there is no other place
    is_code: bool = False


@dataclass
class Block:
    """A block of Markdown and those inside it, by lines."""

    kind: str
    first_line: int
    inner: list["Block"] = field(default_factory=list)


def pack(units: Iterable[Unit], size: int, split: Callable[[Unit], Iterator[Span]]) -> Iterator[Span]:
    """Runs of whole units up to the size, each ending at the best place; `split` is for a unit that is too long."""
    run: list[Unit] = []
    for unit in units:
        while run and unit.end - run[0].start > size:
            num_units = _best_cut([*run, unit], size)
            yield run[0].start, run[num_units - 1].end
            run = run[num_units:]
        if unit.end - unit.start > size:
            yield from split(unit)
        else:
            run.append(unit)
    if run:
        yield run[0].start, run[-1].end


def _best_cut(units: Sequence[Unit], size: int) -> int:
    """How many of the units, all but the last at most, make the next chunk."""

    def badness(num_units: int) -> tuple[bool, bool, float, int]:
        after = units[num_units]
        is_early = units[num_units - 1].end - units[0].start < size // EARLY
        return after.is_glued, is_early, after.level, -num_units

    return min(range(1, len(units)), key=badness)


# Source code


def code_windows(text: str, size: int, overlap: int, span: Span | None = None) -> Iterator[Span]:
    """Whole lines; cut before the least indented line, and of those before one that follows a blank line."""

    def split(line: Unit) -> Iterator[Span]:
        return char_windows(text, size, overlap, (line.start, line.end))

    return pack(_lines(text, span or (0, len(text))), size, split)


def _lines(text: str, span: Span) -> Iterator[Unit]:
    follows_blank, previous, indent_before = True, "", 0
    for start, end in _line_spans(text, *span):
        line = text[start:end].rstrip()
        words = line.lstrip()
        if not words:
            follows_blank = True
            continue
        indent = len(line[: len(line) - len(words)].expandtabs(TAB_WIDTH))
        # A decorator or a comment stands before what it is about, `if x:` before what it governs.
        opens = indent > indent_before or previous.startswith(("@", "#", "//"))
        is_glued = CLOSING.match(words) is not None or (opens and not follows_blank)
        yield Unit(start, start + len(line), 2 * indent + (not follows_blank), is_glued)
        follows_blank, previous, indent_before = False, words, indent


def _line_spans(text: str, start: int, end: int) -> Iterator[Span]:
    while start < end:
        newline = text.find("\n", start, end)
        stop = newline + 1 if newline >= 0 else end
        yield start, stop
        start = stop


# Markdown


def markdown_windows(text: str, size: int, overlap: int) -> Iterator[Span]:
    """Whole blocks; too long a list or table is cut between items or rows; a heading stays with its text."""

    def split(unit: Unit) -> Iterator[Span]:
        cut = code_windows if unit.is_code else char_windows
        return cut(text, size, overlap, (unit.start, unit.end))

    return pack(_markdown_units(text, size), size, split)


def _markdown_units(text: str, size: int) -> Iterator[Unit]:
    start, is_glued = 0, False
    while start < len(text):
        end = _slab_end(text, start)
        # A lone carriage return would count as a line here, and the lines below are those of "\n".
        blocks = _blocks(block_parser().parse(text[start:end].replace("\r", " ")))
        offsets = array("q", (line_start for line_start, _ in _line_spans(text, start, end)))
        if end < len(text) and len(blocks) > 1:  # the last may go on
            end = offsets[blocks.pop().first_line]
        # Definitions of link targets alone are no block at all.
        blocks = blocks or [Block("", 0)]
        yield from _units(text, blocks, (start, end), offsets, size, is_glued)
        start, is_glued = end, blocks[-1].kind == "heading_open"


def _slab_end(text: str, start: int) -> int:
    end = start + SLAB
    if end >= len(text):
        return len(text)
    return text.rfind("\n", start, end) + 1 or text.rfind(" ", start, end) + 1 or end


def _blocks(tokens: Iterable[Token]) -> list[Block]:
    """The blocks of the text, with those inside them."""
    path = [Block("", 0)]
    for token in tokens:
        if token.nesting < 0:
            path.pop()
        elif token.type != "inline":
            block = Block(token.type, token.map[0] if token.map else -1)
            if token.map:  # a cell has none
                path[-1].inner.append(block)
            if token.nesting > 0:
                path.append(block)
    return path[0].inner


def _units(
    text: str, blocks: Sequence[Block], span: Span, offsets: Sequence[int], size: int, is_glued: bool = False
) -> Iterator[Unit]:
    """The blocks that fit, and of the others what is inside them. What lies between blocks goes with the one before."""
    starts = [span[0], *(offsets[block.first_line] for block in blocks[1:])]
    for block, block_start, block_end in zip(blocks, starts, [*starts[1:], span[1]], strict=True):
        start, end = trim_span(text, block_start, block_end)
        if end - start > size and block.inner:
            yield from _units(text, block.inner, (start, end), offsets, size, is_glued)
        elif end > start:
            is_heading = block.kind == "heading_open"
            yield Unit(start, end, not is_heading, is_glued, block.kind in WHOLE)
        is_glued = block.kind in ("heading_open", "thead_open")
