"""A source named by the user in, the documents behind it out: first listed, then read as bytes.

Knows nothing of what is inside a document.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rag.errors import ExtractionError, SourceError
from rag.ingest.mimes import SUPPORTED, mime_of
from rag.ingest.python_api import list_python_objects
from rag.records import Document, DocumentRef

SKIPPED_FOLDERS = {"node_modules", "__pycache__"}  # hidden ones, .git among them, are skipped as well
SPHINX_INDEX, SPHINX_COPIES = "objects.inv", {"_sources", "_static"}  # not pages: copies of their sources, scripts
MAX_DOCUMENT_BYTES = 64 * 2**20
REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|git\+|git@")


def list_documents(source: str) -> Iterator[DocumentRef]:
    """The documents of a folder, a file or an installed package (`python:ray.data`), in a fixed order."""
    if source.startswith("python:"):
        return list_python_objects(source.removeprefix("python:"))
    if REMOTE.match(source) and not source.startswith("file://"):
        raise SourceError(
            f"{source}: not supported yet; expected a folder, a file ({SUPPORTED}) or python:<package>;"
            " download it first and pass the folder"
        )
    if not source:
        raise SourceError("expected a folder, a file or python:<package>, found an empty name; pass a path")
    path = _absolute(source)
    if os.path.isdir(path):
        return _list_folder(path)
    if not os.path.exists(path):
        raise SourceError(f"{path}: expected a folder or a file, found nothing; check the path")
    if not mime_of(path.name):
        found = f"found {path.suffix!r}, which is not supported yet" if path.suffix else "found no suffix"
        raise SourceError(f"{path}: expected one of {SUPPORTED}, {found}; convert the file first")
    return iter([_file_ref(path)])


def canonical_source(source: str) -> str:
    """One spelling for each source, however the user wrote its path."""
    return source if source.startswith("python:") else _absolute(source).as_uri()


def is_within(source: str, origin: str) -> bool:
    """Whether listing `origin` (canonical) would list a document `source`, were it still there."""
    separator = "." if origin.startswith("python:") else "/"
    return source == origin or source.startswith(origin.rstrip(separator) + separator)


def read_document(ref: DocumentRef) -> Document:
    """The bytes of a listed document; ExtractionError where it cannot be read any more."""
    if ref.error:
        raise ExtractionError(ref.error)
    if ref.path is None:
        return Document(ref.source, ref.mime, ref.content or b"", ref.meta)
    try:
        status = os.stat(ref.path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise ExtractionError(f"expected a regular file, found something else at {ref.path}")
        if status.st_size > MAX_DOCUMENT_BYTES:
            raise ExtractionError(
                f"expected at most {MAX_DOCUMENT_BYTES} bytes, found {status.st_size}; split the file"
            )
        return Document(ref.source, ref.mime, Path(ref.path).read_bytes(), ref.meta)
    except OSError as error:
        raise ExtractionError(f"cannot be read: {error.strerror or error}") from None


def _absolute(source: str) -> Path:
    """Symlinks are kept: the name the user gave is the one that is cited."""
    if source.startswith("file://"):
        source = unquote(urlsplit(source).path)
    return Path(os.path.abspath(source))


def _list_folder(folder: Path) -> Iterator[DocumentRef]:
    """The refs below `folder`; the first is found before returning, so an empty folder fails at once."""
    refs = _walk_folder(folder)
    first = next(refs, None)
    if first is None:
        raise SourceError(f"{folder}: expected files ending in {SUPPORTED}, found none; point at another folder")

    def listed() -> Iterator[DocumentRef]:
        yield first
        yield from refs

    return listed()


def _walk_folder(folder: Path) -> Iterator[DocumentRef]:
    visited: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        real = os.path.realpath(here)
        if real in visited:  # a symlink leads back, or here a second time
            folders.clear()
            continue
        visited.add(real)
        skipped = SKIPPED_FOLDERS | SPHINX_COPIES if SPHINX_INDEX in names else SKIPPED_FOLDERS
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in skipped)
        for name in sorted(names):
            path = Path(here, name)
            if name[0] != "." and mime_of(name):
                yield _file_ref(path)


def _refuse_folder(error: OSError) -> None:
    reason = error.strerror or error
    raise SourceError(f"{error.filename}: expected a readable folder, found {reason}; fix its permissions")


def _file_ref(path: Path) -> DocumentRef:
    return DocumentRef(path.as_uri(), mime_of(path.name), path=str(path))
