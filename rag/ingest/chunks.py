"""A section in, its chunks out: overlapping windows whose spans are exact. Knows nothing of markup."""

from collections.abc import Iterator

from langchain_text_splitters import RecursiveCharacterTextSplitter

from rag.config import ChunkConfig
from rag.ingest.outline import BLANK_LINES
from rag.records import Chunk, Section

FIRST_CODE = 0x10000
NUM_CODES = 0x110000 - FIRST_CODE


def chunk_section(section: Section, config: ChunkConfig) -> list[Chunk]:
    """Windows of at most `config.size` characters that together hold all the text of the section."""
    chunks: list[Chunk] = []
    for window_start, window_end in _windows(section.text, config):
        start, end = _trim(section.text, window_start, window_end)
        if start < end and (not chunks or end > chunks[-1].end_char):
            text = section.text[start:end]
            chunks.append(Chunk(section.section_id, section.source, section.title, text, start, end))
    return chunks


def _windows(text: str, config: ChunkConfig) -> Iterator[tuple[int, int]]:
    """Where the splitter cuts. It tells only the pieces, and a piece may occur in the text many times.

    So it gets a stand-in in which every character but the separators is a number: its position.
    """
    splitter = RecursiveCharacterTextSplitter(
        chunk_size=config.size, chunk_overlap=config.overlap, strip_whitespace=False
    )
    numbered = "".join(
        char if char in "\n " else chr(FIRST_CODE + position % NUM_CODES) for position, char in enumerate(text)
    )
    previous = 0
    for piece in splitter.split_text(numbered):
        num_blank = len(piece) - len(piece.lstrip("\n "))
        if num_blank < len(piece):
            previous += (ord(piece[num_blank]) - FIRST_CODE - previous) % NUM_CODES
            start = previous - num_blank
            yield start, start + len(piece)


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without blank lines at its ends; the indentation of a whole first line stays."""
    end = start + len(text[start:end].rstrip())
    blank = BLANK_LINES.match(text, start, end)
    start = blank.end() if blank else start
    if start and text[start - 1] != "\n":  # cut in mid-line: the space belongs to no line's indentation
        start = end - len(text[start:end].lstrip())
    return start, end
