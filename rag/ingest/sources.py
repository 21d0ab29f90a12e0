"""A source named by the user in, the documents behind it out: first listed, then read as bytes.

One kind of source, one module. Knows nothing of what is inside a document.

    folder/  file.md  file:///path        rag.ingest.folder        file:///path/file.md
    file.jsonl  file.jsonl.gz             rag.ingest.rows          file:///path/file.jsonl?id=7
    git+https://host/org/repo             rag.ingest.git           git+https://host/org/repo/file.md
    s3://bucket/folder  gs://...          rag.ingest.remote        s3://bucket/folder/file.md
    hf:org/name:split                     rag.ingest.huggingface   hf:org/name:split?id=7
    https://host/page                     rag.ingest.web           https://host/page
    -                                     rag.ingest.stdin         stdin:input
    python:package                        rag.ingest.python_api    python:package.object
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rag.config import Settings
from rag.errors import ExtractionError
from rag.ingest.access import access_of
from rag.ingest.files import local_path, read_file
from rag.ingest.folder import list_path
from rag.ingest.git import list_repository
from rag.ingest.git_url import canonical_repository, place_of
from rag.ingest.huggingface import canonical_dataset, list_dataset
from rag.ingest.python_api import list_python_objects
from rag.ingest.remote import canonical_remote, is_remote, list_remote, read_remote
from rag.ingest.rows import ROW, read_row
from rag.ingest.stdin import STDIN, list_stdin
from rag.records import Document, DocumentRef, Gap, content_id

Kind = Literal["python", "dataset", "stdin", "git", "web", "remote", "path"]
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def list_documents(source: str, settings: Settings, gaps: list[Gap] | None = None) -> Iterator[DocumentRef]:
    """The documents of a source in a fixed order. SourceError where there is nothing to read.

    `gaps` gets what the listing could not see, complete at its end.
    """
    cache = settings.home / "sources"
    match _kind(source):
        case "python":
            return list_python_objects(source.removeprefix("python:"))
        case "dataset":
            return list_dataset(source, cache)
        case "stdin":
            return list_stdin(source, cache, settings.collection, gaps)
        case "git":
            return list_repository(source, cache)
        case "remote":
            return list_remote(source, cache, gaps)
        case "path":
            return list_path(source, cache, gaps)
        case "web":
            from rag.ingest.urls import canonical_url
            from rag.ingest.web import crawl

            url = canonical_url(source)
            return crawl(url, settings.web, _site_cache(url, settings), gaps)


def canonical_source(source: str) -> str:
    """One spelling for each source, however the user wrote it. SourceError where it cannot be read as one."""
    match _kind(source):
        case "python":
            return source
        case "dataset":
            return canonical_dataset(source)
        case "stdin":
            return STDIN
        case "git":
            return canonical_repository(source)
        case "remote":
            return canonical_remote(source)
        case "path":
            return local_path(source).as_uri()
        case "web":
            from rag.ingest.urls import canonical_url

            return canonical_url(source)


def listed_roots(source: str, settings: Settings) -> tuple[str, ...]:
    """What bounds the documents that listing `source` gives, or gave before the site sent its visitors elsewhere."""
    root = canonical_source(source)
    if _kind(source) == "web":
        from rag.ingest.urls import folder_of
        from rag.ingest.web import site_root

        return tuple(dict.fromkeys((folder_of(root), site_root(root, _site_cache(root, settings)))))
    return (root,)


def place_of_origin(origin: str) -> str:
    """What an origin is apart from its version: two commits of one repository are one place."""
    return place_of(origin) if _kind(origin) == "git" else origin


def is_within(source: str, origin: str) -> bool:
    """Whether listing `origin` (canonical) would list a document `source`, were it still there."""
    match _kind(origin):
        case "python":
            return source == origin or source.startswith(origin.rstrip(".") + ".")
        case "web":
            from rag.ingest.urls import is_below

            return _kind(source) == "web" and is_below(source, origin)
    origin = place_of_origin(origin)
    place, is_row, _ = source.partition("?")  # the rows of a file are listed where the file itself is named
    if is_row or place == origin:
        return place == origin or (_kind(origin) == "dataset" and place.startswith(f"{origin}:"))
    return place.startswith(origin.rstrip("/") + "/")


def read_document(ref: DocumentRef) -> Document:
    """The bytes of a listed document; ExtractionError where it cannot be read any more."""
    if ref.error:
        raise ExtractionError(ref.error)
    if ref.path is None:
        content = ref.content or b""
    elif is_remote(ref.path):
        content = read_remote(ref.path)
    else:
        content = read_file(ref.path, ref.start, ref.end)
    meta = read_row(content, ref.source) if ref.mime == ROW else ref.meta
    return Document(ref.source, ref.mime, content, meta, access_of(ref, meta))


def _site_cache(url: str, settings: Settings) -> Path:
    return settings.home / "sources" / f"web-{content_id(url)}"


def _kind(source: str) -> Kind:
    if source.startswith("python:"):
        return "python"
    if source.startswith("hf:") and not source.startswith("hf://"):
        return "dataset"
    if source in ("-", STDIN):
        return "stdin"
    if source.startswith("git+"):
        return "git"
    scheme = SCHEME.match(source)
    if scheme is None or scheme[1].lower() == "file":
        return "path"
    return "web" if scheme[1].lower() in ("http", "https") else "remote"
