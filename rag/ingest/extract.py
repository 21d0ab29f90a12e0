"""A document's bytes in, its titled sections out; ExtractionError with the reason where there are none.

Dispatches on the MIME type; decoding never fails. What may hurt is read in a child process: all formats that are
not text, and large documents of any format. Knows nothing of files, chunks or models.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from charset_normalizer import from_bytes

from rag.errors import ExtractionError
from rag.ingest.code import LANGUAGES, split_code, split_python
from rag.ingest.docx import split_docx
from rag.ingest.encodings import LATIN, codec
from rag.ingest.epub import split_epub
from rag.ingest.html import split_html
from rag.ingest.isolate import read_isolated
from rag.ingest.markdown import split_markdown
from rag.ingest.mimes import DOCX, NOTEBOOK, PPTX, XLSX
from rag.ingest.notebook import split_notebook
from rag.ingest.outline import LINE_ENDS, MAX_TITLE_CHARS, UNSTORABLE, clip, file_name, name_each, trim
from rag.ingest.pdf import split_pdf
from rag.ingest.pptx import split_pptx
from rag.ingest.rows import ROW, split_row
from rag.ingest.rst import split_rst
from rag.ingest.tables import split_csv, split_tsv
from rag.ingest.xlsx import split_xlsx
from rag.records import Document, Section

# byte order mark -> encoding; UTF-32 first, because its mark begins with that of UTF-16
MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
PDF_MARK, ZIP_MARK, OLE_MARK = b"%PDF-", b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
MAGIC = (b"\x89PNG", PDF_MARK, ZIP_MARK, OLE_MARK, b"GIF8", b"\xff\xd8\xff", b"\x7fELF", b"\x1f\x8b", b"BZh")
CONTROLS = bytes([*range(9), *range(14, 27), *range(28, 32), 127])  # not \t \n \v \f \r, nor terminal escapes
CONTROL_SHARE = 0.02  # of the bytes; a stray one is dropped, compressed data has a tenth
META_CHARSET = re.compile(rb"""<meta[^>]{1,200}charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
SAMPLE_BYTES = 1 << 16
BREAKS = re.compile("\r\n?|[\v\f\x1c-\x1e\x85]")  # what parts words though it is a control character
# A terminal may obey what is left of those, C1 included.
UNSHOWABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
MARK_WITHIN = 1024  # bytes: PDF allows some before its mark, and so do the readers of ZIP

# Odd markup of this size takes 1.6 s and 170 MB at most, of 32 KiB 35 s and 2.9 GB: both grow with its square.
ISOLATED_BYTES = 1 << 13
ISOLATED_TEXT_BYTES = 1 << 20  # of what is only decoded, in linear time; starting the child takes longer
MAX_SECTIONS = 100_000
MAX_TEXT_CHARS = 16 * 2**20  # more than ten minutes of embedding on a CPU
MAX_EXPANSION, MANY_CHARS = 100, 2**20  # a batch is cut by the size of files, so small ones may not hold much more text


def split_plain(text: str, source: str) -> list[Section]:
    """One section, named by the file."""
    return [Section(source, "", trim(text))]


def split_docstring(text: str, source: str) -> list[Section]:
    """One section, named by the object's public path."""
    return [Section(source, source.removeprefix("python:"), trim(text))]


def split_config(text: str, source: str) -> list[Section]:
    """One section, named by the file with its suffix."""
    return [Section(source, file_name(source), trim(text))]


SPLITTERS: dict[str, tuple[str, Callable[[str, str], list[Section]]]] = {
    "text/html": ("HTML", split_html),
    "text/markdown": ("Markdown", split_markdown),
    "text/plain": ("text", split_plain),
    "text/x-rst": ("reStructuredText", split_rst),
    "text/x-python-doc": ("a docstring", split_docstring),
    ROW: ("a row", split_row),
    "text/csv": ("CSV", split_csv),
    "text/tab-separated-values": ("TSV", split_tsv),
    "application/json": ("JSON", split_config),
    "application/yaml": ("YAML", split_config),
    "application/toml": ("TOML", split_config),
    "text/x-ini": ("INI", split_config),
    NOTEBOOK: ("a notebook", split_notebook),
    "text/x-python": ("Python", split_python),
}
UNPARSED = (split_plain, split_docstring, split_config)
SPLITTERS |= {mime: ("source code", partial(split_code, language=language)) for mime, language in LANGUAGES.items()}

# formats that are not text: mime -> (name, what the file begins with, reader)
READERS: dict[str, tuple[str, bytes, Callable[[bytes, str], list[Section]]]] = {
    "application/pdf": ("PDF", PDF_MARK, split_pdf),
    DOCX: ("DOCX", ZIP_MARK, split_docx),
    PPTX: ("PPTX", ZIP_MARK, split_pptx),
    XLSX: ("XLSX", ZIP_MARK, split_xlsx),
    "application/epub+zip": ("EPUB", ZIP_MARK, split_epub),
}


def extract(document: Document) -> list[Section]:
    """The sections of a document, in its order, each with text of its own and a source of its own."""
    kind = _check(document)
    return read_isolated(document, kind) if _may_hurt(document) else split_document(document)


def _may_hurt(document: Document) -> bool:
    if document.mime in READERS:
        return True
    is_unparsed = SPLITTERS[document.mime][1] in UNPARSED
    return len(document.content) > (ISOLATED_TEXT_BYTES if is_unparsed else ISOLATED_BYTES)


def _check(document: Document) -> str:
    """The name of the document's format. ExtractionError for what is plainly something else."""
    content, mime = document.content, document.mime
    if mime not in SPLITTERS and mime not in READERS:
        raise ExtractionError(f"expected a type that can be read (docs/formats.md lists them), found {mime}")
    if not content.strip():
        raise ExtractionError("empty")
    if mime in SPLITTERS:
        if is_binary(content):
            raise ExtractionError(f"binary content, expected {SPLITTERS[mime][0]}")
        return SPLITTERS[mime][0]
    kind, mark, _ = READERS[mime]
    if mark == ZIP_MARK and content.startswith(OLE_MARK):
        raise ExtractionError(f"encrypted, or older than {kind}; save it as {kind} without a password")
    others = tuple(other for other in MAGIC if other != mark)
    if content.startswith(others) or mark not in content[:MARK_WITHIN]:
        raise ExtractionError(f"expected {kind}, found something else under its name")
    return kind


def split_document(document: Document) -> list[Section]:
    """As `extract`, in this process and without the checks before."""
    if document.mime in READERS:
        found = READERS[document.mime][2](document.content, document.source)
    else:
        found = SPLITTERS[document.mime][1](decode(document.content, document.mime), document.source)
    sections = [clean for section in found if (clean := _clean(section)).text.strip()]
    if not sections:
        raise ExtractionError("no text")
    if len(sections) > MAX_SECTIONS:
        raise ExtractionError(f"expected at most {MAX_SECTIONS} sections, found {len(sections)}; split the file")
    num_chars = sum(len(section.text) for section in sections)
    most = min(MAX_TEXT_CHARS, max(MANY_CHARS, MAX_EXPANSION * len(document.content)))
    if num_chars > most:
        raise ExtractionError(f"expected at most {most} characters, found {num_chars}; split the file")
    return name_each(sections, document.source)


def _clean(section: Section) -> Section:
    """Without what PostgreSQL, UTF-8 and terminals do not take; the title short."""
    title = " ".join(_shown(section.title).split())
    return replace(section, title=clip(title, MAX_TITLE_CHARS), text=_shown(section.text))


def _shown(text: str) -> str:
    return UNSHOWABLE.sub("", BREAKS.sub("\n", text))


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
    return LINE_ENDS.sub("\n", UNSTORABLE.sub("", text))


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
        name = codec(declared[1].decode())
        yield "cp1252" if name in LATIN else name
    replaced = content[:SAMPLE_BYTES].decode("utf-8", "replace")
    if replaced.count("\ufffd") * 2 < sum(char > "\x7f" for char in replaced):  # UTF-8, a little damaged
        yield "utf-8"
    guesses = from_bytes(content[:SAMPLE_BYTES])
    best = guesses.best()
    # its nearest relatives often score a little better, but Windows-1252 is what people have
    is_western = any("cp1252" in guess.could_be_from_charset for guess in guesses)
    yield "cp1252" if is_western or best is None else best.encoding
