"""Standard input in, one document or the rows of a JSONL stream listed.

A collection has one standard input, so its document has one name: the next run's text replaces it.
"""

import json
import re
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from rag.errors import SourceError
from rag.ingest.files import BLOCK_BYTES, cache_folder, keep, locked
from rag.ingest.mimes import mime_of
from rag.ingest.rows import list_rows
from rag.records import DocumentRef, Gap

STDIN = "stdin:input"
LOOK_BYTES = 1 << 20
# Possessive, so that nothing is tried twice: "<!---->" forty times would take for ever.
HTML_START = re.compile(
    rb"\s*+(?:<\?xml[^>]*+>\s*+)?+(?:<!--(?:(?!-->).)*+-->\s*+)*+<(?:!doctype html|html|head|body)\b", re.I | re.S
)


def list_stdin(source: str, cache: Path, collection: str, gaps: list[Gap] | None = None) -> Iterator[DocumentRef]:
    """`-`: what comes, to its end. `stdin:input`: what came last for the collection, which remembers its sources.

    It is JSONL by its first line, HTML by its first tag, PDF by its first bytes, else Markdown.
    """
    folder = cache_folder(cache, "stdin", collection)
    with locked(folder):
        copy = _latest(folder) if source == STDIN else _copy(folder)
    with open(copy, "rb") as file:
        start = file.read(LOOK_BYTES)
    if _is_rows(start):
        return list_rows(copy, STDIN, gaps)
    return iter([DocumentRef(STDIN, _mime(start), path=str(copy))])


def _copy(folder: Path) -> Path:
    stream = sys.stdin.buffer
    first = stream.read(BLOCK_BYTES)
    if not first.strip():
        raise SourceError("-: expected a document on standard input, found nothing; pipe one in")
    return keep(folder, chain([first], iter(lambda: stream.read(BLOCK_BYTES), b"")))


def _latest(folder: Path) -> Path:
    copies = [path for path in folder.iterdir() if path.name != "lock" and not path.name.startswith("new-")]
    if not copies:
        raise SourceError(f"{STDIN}: expected what was piped in before, found nothing; pipe it in again: rag ingest -")
    return max(copies, key=lambda path: path.stat().st_mtime_ns)


def _mime(start: bytes) -> str:
    if start.startswith(b"%PDF-"):
        return mime_of("a.pdf")
    return mime_of("a.html" if HTML_START.match(start.removeprefix(b"\xef\xbb\xbf")) else "a.md")


def _is_rows(start: bytes) -> bool:
    line, end, _ = start.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    if not line.startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return not end  # a first line longer than what was looked at
