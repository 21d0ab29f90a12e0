"""Bytes of local files, and the folder for what is fetched or unpacked first. Knows nothing of what is in them.

A listed document is a path, so whatever can only be read from its beginning (a clone, a compressed file, standard
input) is copied below `home/sources` once. Every file there can be deleted while no job runs.
"""

import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote_to_bytes

from rag.errors import ExtractionError, SourceError
from rag.records import content_id

MAX_DOCUMENT_BYTES = 64 * 2**20
BLOCK_BYTES = 1 << 20
# A folder to go through, not to list, where the system knows the difference.
FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_UNPACKED_BYTES = 10 * 10**9  # of a compressed file of rows
MAX_PACKED, MANY_BYTES = 200, 100 * 10**6  # how often smaller packed text may be; so little does no harm in any case
KEEP_S = 86_400.0  # an older copy may be what a job still reads


def local_path(name: str) -> Path:
    """The absolute path of a path or a file:// URI. Symlinks are kept: the name the user gave is what is cited."""
    if name[:7].lower() != "file://":
        return Path(os.path.abspath(name))
    host, slash, path = name[7:].partition("?")[0].partition("#")[0].partition("/")
    if host not in ("", "localhost"):
        raise SourceError(f"file://{host}: expected a file of this machine, file:///path, found another host")
    return Path(os.path.abspath(os.fsdecode(unquote_to_bytes(slash + path))))


def storable(path: Path) -> str:
    """The path as text that every worker can be sent: a URI where the name is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.as_uri()
    return str(path)


def read_file(name: str, start: int = 0, end: int | None = None) -> bytes:
    """The bytes from `start` to `end`; ExtractionError with the reason where there are none to be had."""
    path = local_path(name)
    try:
        with open(_opened(path), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ExtractionError(f"expected a regular file, found something else at {storable(path)}")
            size = (status.st_size if end is None else end) - start
            if size > MAX_DOCUMENT_BYTES:
                raise too_large(size)
            file.seek(start)
            content = file.read(size if end is not None else MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise ExtractionError(f"cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_DOCUMENT_BYTES:  # it grew
        raise too_large(len(content))
    if end is not None and len(content) < size:
        raise ExtractionError("the file is shorter than when it was listed; run again")
    return content


def resolved(path: Path) -> Path:
    """Where `path` is, no part of it a link: what `read_file` takes."""
    return Path(os.path.realpath(path))


def _opened(path: Path) -> int:
    """A descriptor of `path`, no part of which may be a link: one put there since it was listed may lead anywhere.

    Opening a pipe does not wait, so what is opened need not be a file.
    """
    folder = os.open("/", FOLDER)
    try:
        for part in path.parts[1:-1]:
            above, folder = folder, os.open(part, FOLDER, dir_fd=folder)
            os.close(above)
        return os.open(path.name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)


def too_large(num_bytes: int) -> ExtractionError:
    return ExtractionError(f"expected at most {MAX_DOCUMENT_BYTES} bytes, found {num_bytes}; split the file")


def cache_folder(cache: Path, kind: str, source: str) -> Path:
    """The folder that belongs to one source, made if need be. Resolved, as what is in it will be read."""
    folder = resolved(cache) / f"{kind}-{content_id(source)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(f"{folder}: expected a folder to copy to, found {error.strerror}; set RAG_HOME") from None
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time fetches into `folder`."""
    import fasteners

    with fasteners.InterProcessLock(folder / "lock"):
        yield


def keep(folder: Path, blocks: Iterable[bytes], name: str = "") -> Path:
    """`blocks` as the file `name` in `folder`, whole or absent; without a name, one made of what it says."""
    digest = hashlib.sha256()
    handle, aside = tempfile.mkstemp(dir=folder, prefix="new-")
    try:
        with open(handle, "wb") as file:
            for block in blocks:
                digest.update(block)
                file.write(block)
        path = folder / (name or digest.hexdigest()[:32])
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise
    forget_old(folder, path)
    return path


def unpacked(blocks: Iterable[bytes], packed_bytes: int, shown: str) -> Iterator[bytes]:
    """`blocks`, decompressed from so many bytes, as they are; SourceError where they are more than a disk is for."""
    limit = min(MAX_UNPACKED_BYTES, MAX_PACKED * packed_bytes + MANY_BYTES)
    num_bytes = 0
    for block in blocks:
        num_bytes += len(block)
        if num_bytes > limit:
            raise SourceError(
                f"{shown}: expected at most {limit} bytes, unpacked from {packed_bytes}, found more;"
                " unpack it yourself and name the file"
            )
        yield block


def forget_old(folder: Path, current: Path) -> None:
    """Deletes the copies before `current`, except those of the last day."""
    os.utime(current)
    for path in folder.iterdir():
        if path != current and path.name != "lock" and path.is_file() and path.stat().st_mtime < time.time() - KEEP_S:
            path.unlink(missing_ok=True)
