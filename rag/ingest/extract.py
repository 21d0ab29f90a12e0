"""A document's bytes in, its titled sections out; ExtractionError with the reason where there are none.

Dispatches on the MIME type; decoding never fails. Knows nothing of files, chunks or models.
"""

import re
from collections.abc import Callable, Iterator

from charset_normalizer import from_bytes

from rag.errors import ExtractionError
from rag.ingest.html import split_html
from rag.ingest.markdown import split_markdown
from rag.ingest.outline import name_each, trim
from rag.ingest.rows import ROW, split_row
from rag.ingest.rst import split_rst
from rag.records import Document, Section

# byte order mark -> encoding; UTF-32 first, because its mark begins with that of UTF-16
MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
MAGIC = (b"\x89PNG", b"%PDF-", b"PK\x03\x04", b"GIF8", b"\xff\xd8\xff", b"\x7fELF", b"\x1f\x8b", b"BZh")
CONTROLS = bytes([*range(9), *range(14, 27), *range(28, 32), 127])  # not \t \n \v \f \r, nor terminal escapes
CONTROL_SHARE = 0.02  # of the bytes; a stray one is dropped, compressed data has a tenth
META_CHARSET = re.compile(rb"""<meta[^>]{1,200}charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
SAMPLE_BYTES = 1 << 16
UNPRINTABLE = re.compile("[\x00\ud800-\udfff]")  # PostgreSQL and UTF-8 take neither
LINE_ENDS = re.compile("\r\n?")


def split_plain(text: str, source: str) -> list[Section]:
    """One section, named by the file."""
    return [Section(source, "", trim(text))]


def split_docstring(text: str, source: str) -> list[Section]:
    """One section, named by the object's public path."""
    return [Section(source, source.removeprefix("python:"), trim(text))]


SPLITTERS: dict[str, tuple[str, Callable[[str, str], list[Section]]]] = {
    "text/html": ("HTML", split_html),
    "text/markdown": ("Markdown", split_markdown),
    "text/plain": ("text", split_plain),
    "text/x-rst": ("reStructuredText", split_rst),
    "text/x-python-doc": ("a docstring", split_docstring),
    ROW: ("a row", split_row),
}


def extract(document: Document) -> list[Section]:
    """The sections of a document, in its order, each with text of its own and a source of its own."""
    if document.mime not in SPLITTERS:
        raise ExtractionError(f"expected one of {', '.join(SPLITTERS)}, found {document.mime}")
    expected, split = SPLITTERS[document.mime]
    if not document.content.strip():
        raise ExtractionError("empty")
    if is_binary(document.content):
        raise ExtractionError(f"binary content, expected {expected}")
    text = decode(document.content, document.mime)
    sections = [section for section in split(text, document.source) if section.text.strip()]
    if not sections:
        raise ExtractionError("no text")
    return name_each(sections, document.source)


def is_binary(content: bytes) -> bool:
    """Whether the bytes are an image, an archive or the like: a known mark, or many control characters."""
    if content.startswith(tuple(MARKS)):
        return False
    sample = content[:SAMPLE_BYTES]
    num_controls = len(sample) - len(sample.translate(None, CONTROLS))
    return content.startswith(MAGIC) or num_controls > CONTROL_SHARE * len(sample)


def decode(content: bytes, mime: str) -> str:
    """The text, without NUL and surrogates, its lines ended by \\n; odd bytes become U+FFFD."""
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "")
    text = content.decode(encoding, "replace") if encoding else _decode_unmarked(content, mime)
    return LINE_ENDS.sub("\n", UNPRINTABLE.sub("", text))


def _decode_unmarked(content: bytes, mime: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        pass
    for encoding in _candidates(content, mime):
        try:
            return content.decode(encoding, "replace")
        except (LookupError, UnicodeError):  # a page may declare anything
            continue
    return content.decode("utf-8", "replace")


def _candidates(content: bytes, mime: str) -> Iterator[str]:
    """Encodings to try on bytes that are not clean UTF-8, the most trustworthy first."""
    declared = META_CHARSET.search(content, 0, 4096) if mime == "text/html" else None
    if declared and not declared[1].lower().startswith(b"utf"):
        name = declared[1].decode().lower()
        # browsers read Latin-1 as Windows-1252, and so do the people who write it
        yield "cp1252" if name in ("iso-8859-1", "latin1", "latin-1", "us-ascii") else name
    replaced = content[:SAMPLE_BYTES].decode("utf-8", "replace")
    if replaced.count("\ufffd") * 2 < sum(char > "\x7f" for char in replaced):  # UTF-8, a little damaged
        yield "utf-8"
    guesses = from_bytes(content[:SAMPLE_BYTES])
    best = guesses.best()
    # its nearest relatives often score a little better, but Windows-1252 is what people have
    is_western = any("cp1252" in guess.could_be_from_charset for guess in guesses)
    yield "cp1252" if is_western or best is None else best.encoding
