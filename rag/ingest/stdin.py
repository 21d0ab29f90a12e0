"""Standard input in, one document or the rows of a JSONL stream listed.

There is one standard input, so its document has one name: the next run's text replaces it.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from rag.errors import SourceError
from rag.ingest.files import BLOCK_BYTES, cache_folder, keep, locked
from rag.ingest.mimes import mime_of
from rag.ingest.rows import list_rows
from rag.records import DocumentRef

STDIN = "stdin:input"
LOOK_BYTES = 1 << 20
HTML_START = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype html|html|head|body)\b", re.I | re.S)


def list_stdin(cache: Path) -> Iterator[DocumentRef]:
    """What is read from standard input, to its end: JSONL by its first line, HTML by its first tag, else Markdown."""
    folder = cache_folder(cache, "stdin", STDIN)
    stream = sys.stdin.buffer
    with locked(folder):
        copy = keep(folder, iter(lambda: stream.read(BLOCK_BYTES), b""))
    with open(copy, "rb") as file:
        start = file.read(LOOK_BYTES)
    if not start.strip():
        raise SourceError("-: expected a document on standard input, found nothing; pipe one in")
    if _is_rows(start):
        return list_rows(copy, STDIN)
    return iter([DocumentRef(STDIN, _mime(start), path=str(copy))])


def _mime(start: bytes) -> str:
    if start.startswith(b"%PDF-"):
        return mime_of("a.pdf") or mime_of("a.md")
    return mime_of("a.html" if HTML_START.match(start.removeprefix(b"\xef\xbb\xbf")) else "a.md")


def _is_rows(start: bytes) -> bool:
    line, end, _ = start.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    if not line.startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return not end  # a first line longer than what was looked at
