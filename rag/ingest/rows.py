"""A file with one JSON object a line in, one document per object out. Knows nothing of where the file came from.

A listed row is its place in the file, so a million of them list in little memory and each is read by a seek. Its
source is the file's with `?id=7`; `?url=…` where it has only an address, and `?line=12` where it has neither.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rag.errors import ExtractionError, SourceError
from rag.ingest.files import BLOCK_BYTES, MAX_DOCUMENT_BYTES, too_large
from rag.ingest.outline import LINE_ENDS, UNSTORABLE, trim
from rag.records import DocumentRef, Gap, Section, to_json

ROW = "application/x-row"
MAX_META_CHARS = 1_000_000  # PostgreSQL's JSON takes a little more; nobody filters by so much
ROW_FILES = ".jsonl .ndjson"  # and with .gz behind; for messages
TEXT_FIELDS = ("text", "page_content", "contents", "content", "body", "passage", "document", "context", "abstract")
ID_FIELDS = ("_id", "id", "doc_id", "docid", "pid")
URL_FIELDS = ("url", "source")  # many rows may come from one page
QUERY_SAFE = "/:@!$'()*,;"  # beside letters, digits and -._~; RFC 3986 without what separates
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LOGIN = re.compile(r"^((?:[A-Za-z][A-Za-z0-9+.-]*:)?//)[^/?#]*@")  # of an address, for a source holds none


def is_row_file(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith(tuple(ROW_FILES.split()))


def list_rows(path: Path, origin: str, gaps: list[Gap] | None = None) -> Iterator[DocumentRef]:
    """The rows of a file in its order, `origin` being the file's address. A bad line is a ref with an error.

    A line that says no id may be any row that was there before: a gap. SourceError where no line is good: the file is
    something else.
    """
    refs = _walk_rows(path, origin, [] if gaps is None else gaps)
    failed: list[DocumentRef] = []
    for ref in refs:
        if not ref.error:
            return chain(failed, [ref], refs)
        failed.append(ref)
    found = f"none in {len(failed)}; the first has this: {failed[0].error}" if failed else "an empty file"
    raise SourceError(f"{origin}: expected lines with one JSON object each, found {found}; convert the file first")


def read_row(content: bytes, source: str) -> str:
    """The metadata of a row that was listed as `source`: all fields but title and text, as JSON.

    ExtractionError where the row is another one by now.
    """
    row = _parse(content)
    asked, query = source.partition("?")[2].partition("&")[0], _query(row)
    if query != asked and not asked.startswith("line="):
        found = query or "one without"
        raise ExtractionError(f"expected the row with {asked}, found {found}: the file has changed; run again")
    try:
        used = {_text_field(row)} | ({"title"} if isinstance(row.get("title"), str) else set())
        meta = to_json(_storable({name: value for name, value in row.items() if name not in used}))
    except RecursionError:
        raise ExtractionError("expected metadata, found fields nested too deeply; flatten them") from None
    if len(meta) > MAX_META_CHARS:
        raise ExtractionError(
            f"expected at most {MAX_META_CHARS} characters of fields besides the text, found {len(meta)}"
        )
    return meta


def split_row(text: str, source: str) -> list[Section]:
    """One section: the row's title and text."""
    row = _parse(text)
    title, body = _title(row), row[_text_field(row)]
    return [Section(source, " ".join(_clean(title).split()), trim(LINE_ENDS.sub("\n", _clean(body))))]


def _walk_rows(path: Path, origin: str, gaps: list[Gap]) -> Iterator[DocumentRef]:
    name = str(path)
    first_line: dict[str, int] = {}  # where an id was first seen
    parts: Counter[str] = Counter()  # rows of one page so far
    for number, start, end, line in _lines(path, origin):
        query, error = "", ""
        try:
            if line is None:
                raise too_large(end - start)
            row = _parse(line)
            query = _query(row)
            _text_field(row)
        except ExtractionError as reason:
            error = f"line {number}: {reason}"
            if not query and all(gap.place != origin for gap in gaps):
                gaps.append(Gap(origin, error))
        if query.startswith("url="):
            parts[query] += 1
            query += f"&part={parts[query]}" if parts[query] > 1 else ""
        elif query and (first := first_line.setdefault(query, number)) != number:
            error = f"line {number}: expected an id of its own, found the {query} of line {first}; rename one"
            query = ""
        yield DocumentRef(f"{origin}?{query or f'line={number}'}", ROW, path=name, start=start, end=end, error=error)


def _lines(path: Path, origin: str) -> Iterator[tuple[int, int, int, bytes | None]]:
    """(number from 1, start, end, line) of each line that is not blank; None for one that is too long to hold."""
    try:
        with open(path, "rb") as file:
            start = len(BYTE_ORDER_MARK) if file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK else 0
            file.seek(start)
            number = 0
            while line := file.readline(MAX_DOCUMENT_BYTES + 1):
                number += 1
                following = start + len(line)
                rest = b"" if line.endswith(b"\n") else file.readline(BLOCK_BYTES)
                is_long = bool(rest)
                while rest:
                    following += len(rest)
                    rest = b"" if rest.endswith(b"\n") else file.readline(BLOCK_BYTES)
                if row := line.rstrip():  # so that a last row is the same when another is appended
                    yield number, start, following if is_long else start + len(row), None if is_long else row
                start = following
    except OSError as error:
        raise SourceError(f"{origin}: cannot be read: {error.strerror or error}") from None


def _parse(line: bytes | str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except RecursionError:
        raise ExtractionError("expected a JSON object, found one nested too deeply; flatten it") from None
    except ValueError as error:  # bad UTF-8 and numbers of thousands of digits as well
        reason = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
        raise ExtractionError(f"expected a JSON object, found something else: {reason}") from None
    if not isinstance(row, dict):
        raise ExtractionError(f"expected a JSON object, found {type(row).__name__}")
    return row


def _text_field(row: dict[str, Any]) -> str:
    for name in TEXT_FIELDS:
        if isinstance(row.get(name), str):
            return name
    found = ", ".join(list(row)[:10])[:200] or "no field"
    raise ExtractionError(f"expected a text in one of {', '.join(TEXT_FIELDS)}, found {found}; rename the field")


def _title(row: dict[str, Any]) -> str:
    title = row.get("title") or _metadata(row).get("title")
    return title if isinstance(title, str) else ""


def _query(row: dict[str, Any]) -> str:
    """What follows the `?` in the row's source; "" for a row that only its line names."""
    for name in ID_FIELDS:
        if value := _name(row.get(name)):
            return f"id={value}"
    for fields in (row, _metadata(row)):
        for name in URL_FIELDS:
            if value := _name(fields.get(name)):
                return f"url={value}"
    return ""


def _name(value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    return quote(LOGIN.sub(r"\1", _clean(str(value)).strip()), safe=QUERY_SAFE)


def _metadata(row: dict[str, Any]) -> dict[str, Any]:
    found = row.get("metadata")
    return found if isinstance(found, dict) else {}


def _clean(text: str) -> str:
    return UNSTORABLE.sub("", text)


def _storable(value: Any) -> Any:
    """Without what PostgreSQL's JSON does not take."""
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {_clean(name): _storable(item) for name, item in value.items()}
    return value
