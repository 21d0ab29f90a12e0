"""A folder or a file in, its documents listed. Knows nothing of what is in them.

Nothing outside the named folder is listed: a link that leaves it goes to the ledger.
"""

import contextlib
import gzip
import os
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

from rag.errors import SourceError
from rag.ingest.files import (
    BLOCK_BYTES,
    cache_folder,
    forget_old,
    keep,
    local_path,
    locked,
    resolved,
    storable,
    unpacked,
)
from rag.ingest.mimes import SUPPORTED, mime_of
from rag.ingest.rows import ROW_FILES, is_row_file, list_rows
from rag.records import DocumentRef, Gap, content_id

SKIPPED_FOLDERS = {"node_modules", "__pycache__"}  # hidden ones, .git among them, are skipped as well
SPHINX_INDEX, SPHINX_COPIES = "objects.inv", {"_sources", "_static"}  # not pages: copies of their sources, scripts


def list_path(source: str, cache: Path, gaps: list[Gap] | None = None) -> Iterator[DocumentRef]:
    """The documents of a folder or a file in a fixed order; the rows of a JSONL file."""
    if not source:
        raise SourceError("expected a folder, a file or python:<package>, found an empty name; pass a path")
    path = local_path(source)
    shown = storable(path)
    if os.path.isdir(path):
        return at_least_one(_walk_folder(path), shown)
    if not os.path.exists(path):
        raise SourceError(f"{shown}: expected a folder or a file, found nothing; check the path{_git_hint(source)}")
    if not os.path.isfile(path):  # a pipe or a device may never end
        raise SourceError(f"{shown}: expected a folder or a file, found something else; name a regular file")
    if is_row_file(path.name):
        return list_rows(resolved(_seekable(path, cache)), path.as_uri(), gaps)
    check_supported(shown, path.name)
    return iter([_file_ref(path, resolved(path))])


def check_supported(shown: str, name: str) -> None:
    """SourceError where a file that the user named is of no type that can be read."""
    suffix = os.path.splitext(name)[1]
    if not mime_of(name):
        found = f"found {suffix!r}, which is not supported yet" if suffix else "found no suffix"
        raise SourceError(f"{shown}: expected one of {SUPPORTED} {ROW_FILES}, {found}; convert the file first")


def at_least_one(refs: Iterator[DocumentRef], shown: str) -> Iterator[DocumentRef]:
    """The same refs; the first is found before returning, so that an empty source fails at once."""
    first = next(refs, None)
    if first is None:
        raise SourceError(f"{shown}: expected files ending in {SUPPORTED}, found none; point at another folder")

    def listed() -> Iterator[DocumentRef]:
        yield first
        yield from refs

    return listed()


def kept_folders(folders: Collection[str], files: Collection[str]) -> list[str]:
    """Which of the folders beside `files` may hold documents."""
    skipped = SKIPPED_FOLDERS | SPHINX_COPIES if SPHINX_INDEX in files else SKIPPED_FOLDERS
    return sorted(name for name in folders if name[:1] != "." and name not in skipped)


def _walk_folder(folder: Path) -> Iterator[DocumentRef]:
    root = resolved(folder)
    for here, folders, names in os.walk(folder, onerror=_refuse_folder):
        folders[:] = kept_folders(folders, names)
        links = [Path(here, name) for name in folders if os.path.islink(os.path.join(here, name))]
        yield from (_outside(link, folder) for link in links if not _place(link, folder, root).is_relative_to(root))
        for name in sorted(names):
            if name[0] != "." and mime_of(name):
                yield _listed(Path(here, name), folder, root)


def _listed(path: Path, folder: Path, root: Path) -> DocumentRef:
    """The name as it is, the place as it was resolved once: what is put there later is not followed elsewhere."""
    place = _place(path, folder, root)
    return _file_ref(path, place) if place.is_relative_to(root) else _outside(path, folder)


def _place(path: Path, folder: Path, root: Path) -> Path:
    if path.is_symlink():
        with contextlib.suppress(OSError):  # replaced meanwhile, by something that is no link
            return resolved(path)
    return root / path.relative_to(folder)


def _outside(link: Path, folder: Path) -> DocumentRef:
    reason = f"a link that leaves {storable(folder)}; ingest what it points at by its own name"
    return DocumentRef(link.as_uri(), mime_of(link.name), error=reason)


def _refuse_folder(error: OSError) -> None:
    shown, reason = storable(Path(error.filename)), error.strerror or error
    raise SourceError(f"{shown}: expected a readable folder, found {reason}; fix its permissions")


def _file_ref(path: Path, place: Path) -> DocumentRef:
    return DocumentRef(path.as_uri(), mime_of(path.name), path=storable(place))


def _seekable(path: Path, cache: Path) -> Path:
    """The file itself, or its decompressed copy, made again when the file has changed."""
    if not path.name.lower().endswith(".gz"):
        return path
    status = path.stat()
    folder = cache_folder(cache, "rows", path.as_uri())
    copy = folder / content_id(str(status.st_mtime_ns), str(status.st_size), str(status.st_ino))
    with locked(folder):
        if copy.exists():
            forget_old(folder, copy)
            return copy
        try:
            with gzip.open(path) as file:
                blocks = iter(lambda: file.read(BLOCK_BYTES), b"")
                return keep(folder, unpacked(blocks, status.st_size, storable(path)), copy.name)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{storable(path)}: expected gzip, found {error}; compress it again") from None


def _git_hint(source: str) -> str:
    user, at, rest = source.partition("@")
    host, colon, path = rest.partition(":")
    is_clone = at and colon and path and "/" not in user + host
    return f", or write a repository as git+ssh://{user}@{host}/{path}" if is_clone else ""
