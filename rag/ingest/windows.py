"""A text in, overlapping windows of it out, as spans: cut at paragraphs first, then lines, words and single units.

The unit of sizes is a character or a token of some model. Knows nothing of markup. Takes linear time, also for one
line of many megabytes. By characters the windows are those of LangChain's RecursiveCharacterTextSplitter, which tells
no spans and takes time in proportion to text times size; the tests hold the two against each other.
"""

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rag.ingest.outline import BLANK_LINES

Span = tuple[int, int]  # start and end, in characters of the text
TokenSpans = Callable[[str], Sequence[Span]]

SEPARATORS = ("\n\n", "\n", " ")
SLAB = 100_000  # characters tokenized at once: a tokenizer holds hundreds of bytes for each token
LONGEST_TOKEN = 100  # characters; BERT's tokenizer makes one unknown token of a longer word, however long
ATTEMPTS = 3


@dataclass(frozen=True)
class Ruler:
    """How long a span is, in characters or tokens, and how one without separators is cut."""

    size: int
    overlap: int
    length: Callable[[int, int], int]
    cut: Callable[[int, int], Iterator[Span]]


def trim_span(text: str, start: int, end: int) -> Span:
    """The span without blank lines at its ends; the indentation of a whole first line stays."""
    end = start + len(text[start:end].rstrip())
    blank = BLANK_LINES.match(text, start, end)
    start = blank.end() if blank else start
    if start and text[start - 1] != "\n":  # cut in mid-line: the space belongs to no line's indentation
        start = end - len(text[start:end].lstrip())
    return start, end


def char_windows(text: str, size: int, overlap: int, span: Span | None = None) -> Iterator[Span]:
    """Windows of at most `size` characters that together hold all of the span; neighbours share at most `overlap`."""

    def cut(start: int, end: int) -> Iterator[Span]:
        while end - start > size:
            yield start, start + size
            start += size - overlap
        yield start, end

    ruler = Ruler(size, overlap, lambda start, end: end - start, cut)
    return _windows(text, span or (0, len(text)), SEPARATORS, ruler)


def token_windows(text: str, size: int, overlap: int, token_spans: TokenSpans) -> list[Span]:
    """The same in tokens: no window, tokenized by itself, has more than `size`.

    By itself a part of a word may have other tokens than inside the word. So the windows are counted, and all cut
    anew with a smaller size where one is too long.
    """
    starts = _token_starts(text, token_spans)
    wanted = size
    for _ in range(ATTEMPTS):
        windows = list(
            _windows(text, (0, len(text)), SEPARATORS, _token_ruler(starts, wanted, min(overlap, wanted // 2)))
        )
        longest = max((len(token_spans(text[slice(*trim_span(text, *span))])) for span in windows), default=0)
        if longest <= size:
            return windows
        wanted -= longest - size
        if wanted < size // 2:
            break
    # A tokenizer whose tokens depend on all that surrounds them; none has more than 4 for a character, its bytes.
    return list(char_windows(text, max(1, size // 4), min(overlap, size // 2) // 4))


def _token_ruler(starts: Sequence[int], size: int, overlap: int) -> Ruler:
    def length(start: int, end: int) -> int:
        return bisect_left(starts, end) - bisect_left(starts, start)

    def tokens(start: int, end: int) -> Iterator[Span]:
        for index in range(bisect_left(starts, start + 1), bisect_left(starts, end)):
            if starts[index] > start:  # tokens may share a character
                yield start, starts[index]
                start = starts[index]
        yield start, end

    def cut(start: int, end: int) -> Iterator[Span]:
        return _merge(tokens(start, end), ruler)

    ruler = Ruler(size, overlap, length, cut)
    return ruler


def _token_starts(text: str, token_spans: TokenSpans) -> "array[int]":
    """Where the tokens begin, in order; one at least in every 100 characters, so that no window is without bounds."""
    starts = array("q")
    for slab_start, slab_end in _slabs(text):
        slab = text[slab_start:slab_end]
        found = sorted(start for start, _ in token_spans(slab))
        if not found or found[0] > LONGEST_TOKEN:
            found.insert(0, 0)
        for start, end in zip(found, [*found[1:], len(slab)], strict=True):
            if end - start <= LONGEST_TOKEN:
                starts.append(slab_start + start)
            else:
                starts.extend(slab_start + inner for inner in _inner_starts(slab, start, end, token_spans))
    return starts


def _inner_starts(text: str, start: int, end: int, token_spans: TokenSpans) -> Iterator[int]:
    for first in range(start, end, LONGEST_TOKEN):
        piece = text[first : min(first + LONGEST_TOKEN, end)]
        yield from sorted(first + inner for inner, _ in token_spans(piece)) or [first]


def _slabs(text: str) -> Iterator[Span]:
    """Cut before a line or a word where there is one: there the tokens are the same as in the whole."""
    start = 0
    while start < len(text):
        end = start + SLAB
        if end < len(text):
            cut = max(text.rfind("\n", start + 1, end), text.rfind(" ", start + 1, end))
            end = cut if cut > 0 else end
        yield start, min(end, len(text))
        start = end


def _windows(text: str, span: Span, separators: Sequence[str], ruler: Ruler) -> Iterator[Span]:
    """Cuts at the first of the separators that is there; a piece that is too long is cut at the next ones."""
    if not separators:
        return ruler.cut(*span)
    first, *others = separators
    if text.find(first, *span) < 0:
        return _windows(text, span, others, ruler)
    return _merge(_pieces(text, *span, first), ruler, lambda piece: _windows(text, piece, others, ruler))


def _pieces(text: str, start: int, end: int, separator: str) -> Iterator[Span]:
    """Each but the first begins with the separator."""
    found = text.find(separator, start, end)
    while found >= 0:
        if found > start:
            yield start, found
        start, found = found, text.find(separator, found + len(separator), end)
    yield start, end


def _merge(
    pieces: Iterator[Span], ruler: Ruler, split: Callable[[Span], Iterator[Span]] | None = None
) -> Iterator[Span]:
    """Runs of pieces up to the size, each beginning with the last pieces of the one before, up to the overlap.

    A piece that is not shorter than the size goes to `split`, and its windows stand for themselves.
    """
    window: deque[tuple[Span, int]] = deque()
    total = 0
    for piece in pieces:
        length = ruler.length(*piece)
        if split is not None and length >= ruler.size:
            if window:
                yield window[0][0][0], window[-1][0][1]
            window.clear()
            total = 0
            yield from split(piece)
            continue
        if window and total + length > ruler.size:
            yield window[0][0][0], window[-1][0][1]
            while total > ruler.overlap or (total and total + length > ruler.size):
                total -= window.popleft()[1]
        window.append((piece, length))
        total += length
    if window:
        yield window[0][0][0], window[-1][0][1]
