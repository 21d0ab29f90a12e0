"""A bucket or another store that fsspec opens in, its documents listed; one read. Knows nothing of what is in them.

What the user types is a URI: `%20` is a space, and a `?` or `#` in a name is written %3F or %23.
"""

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from rag.errors import ExtractionError, SourceError
from rag.ingest.files import (
    BLOCK_BYTES,
    MAX_DOCUMENT_BYTES,
    cache_folder,
    forget_old,
    keep,
    locked,
    too_large,
    unpacked,
)
from rag.ingest.folder import at_least_one, check_supported, kept_folders
from rag.ingest.mimes import mime_of
from rag.ingest.rows import is_row_file, list_rows
from rag.records import DocumentRef, Gap, content_id

PROTOCOLS = {"s3", "gs", "abfs", "abfss", "az", "hdfs", "webhdfs", "sftp", "ftp", "smb", "oss", "hf", "memory"}
ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}
EXTRAS = {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs", "oss": "ossfs"}
EXTRAS |= {"sftp": "paramiko", "smb": "smbprotocol"}
BUCKETS = {"s3", "gs", "oss"}  # a name first, no host
CONTAINER_BEFORE_HOST = {"abfs", "abfss", "az"}  # abfs://container@account…: no user name


@dataclass(frozen=True)
class Place:
    """A URL taken apart. `opened` may hold a login, `origin` never does."""

    protocol: str
    origin: str  # canonical: quoted
    opened: str  # for fsspec, which takes names as they are


def canonical_remote(source: str) -> str:
    """Protocol in lower case, one quoting, no login, no slash at the end."""
    return _parse(source).origin


def list_remote(source: str, cache: Path, gaps: list[Gap] | None = None) -> Iterator[DocumentRef]:
    """The documents below a URL, folder by folder in a fixed order; the rows of a JSONL file."""
    place = _parse(source)
    try:
        files, root = _open(place.opened)
        about = files.info(root)
    except ImportError:
        missing = EXTRAS.get(place.protocol, "what fsspec needs for it")
        raise SourceError(f"{place.origin}: expected a client for it, found none; pip install '{missing}'") from None
    except FileNotFoundError:
        raise SourceError(f"{place.origin}: expected files, found nothing; check the address") from None
    except Exception as error:  # each client has errors of its own
        raise _unreadable(place, error) from None
    if about["type"] == "directory":
        return at_least_one(_walk(files, root, place), place.origin)
    name = place.opened.rpartition("/")[2]
    if is_row_file(name):
        return list_rows(_copy(files, root, place, cache), place.origin, gaps)
    check_supported(place.origin, name)
    return iter([DocumentRef(place.origin, mime_of(name), path=place.opened)])


def is_remote(path: str) -> bool:
    """Whether a listed path is a URL for `read_remote`."""
    return "://" in path and not path.startswith(("/", "file://"))


def read_remote(url: str) -> bytes:
    """The bytes behind a listed URL; ExtractionError with the reason where there are none to be had."""
    try:
        files, path = _open(url)
        with files.open(path, "rb") as file:
            content: bytes = file.read(MAX_DOCUMENT_BYTES + 1)
    except FileNotFoundError:
        raise ExtractionError("cannot be read: no longer there") from None
    except Exception as error:  # each client has errors of its own
        raise ExtractionError(f"cannot be read: {_first_line(error, url)}") from None
    if len(content) > MAX_DOCUMENT_BYTES:
        raise too_large(int(getattr(file, "size", None) or len(content)))
    return content


def _parse(source: str) -> Place:
    protocol, _, rest = source.partition("://")
    protocol = ALIASES.get(protocol.lower(), protocol.lower())
    if protocol not in PROTOCOLS:
        known = " ".join(f"{name}://" for name in sorted(PROTOCOLS))
        raise SourceError(f"{protocol}://: expected one of {known}, found another; download it and name the folder")
    plain = re.split("[?#]", rest, maxsplit=1)[0]  # what follows may be a signature
    authority, slash, path = plain.partition("/")
    if protocol in BUCKETS and not authority.startswith("arn:") and re.search("[:@]", authority):
        raise SourceError(
            f"{protocol}://: expected a bucket, found a login before it; set it in the environment, as its client asks"
        )
    login, at, host = authority.rpartition("@")
    if protocol in CONTAINER_BEFORE_HOST:
        login, at, host = "", "", authority
    address = unquote(host + slash + path).rstrip("/")
    if protocol == "memory":
        address = address.lstrip("/")
    origin = f"{protocol}://{quote(address, safe='/@:')}"
    if plain != rest:
        raise SourceError(f"{origin}: expected no ? or #, found one; in a name it is %3F or %23")
    if "::" in address or re.search("[\x00-\x1f]", address):  # fsspec chains file systems with ::
        raise SourceError(f"{origin}: expected a plain address, found :: or control characters; rename it")
    return Place(protocol, origin, f"{protocol}://{login}{at}{address}")


def _open(url: str) -> tuple[Any, str]:
    """(file system, path in it). Listings are not cached: a later run must see what has changed."""
    import fsspec

    found: tuple[Any, str] = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return found


def _walk(files: Any, root: str, place: Place) -> Iterator[DocumentRef]:
    """As fsspec's own `walk`, which leaves out what it cannot list: documents would seem to have vanished."""
    pending = [root]
    while pending:
        here = pending.pop()
        entries = {entry["name"].rstrip("/"): entry for entry in _list(files, here, place)}
        names = {name.rpartition("/")[2]: name for name in entries if _is_below(name, here)}
        folders = [name for name, full in names.items() if entries[full]["type"] == "directory"]
        plain = sorted(names.keys() - set(folders))
        pending += [names[name] for name in reversed(kept_folders(folders, plain))]
        for name in plain:
            if name[0] != "." and mime_of(name):
                inner = names[name][len(root) :].strip("/")
                source = f"{place.origin.rstrip('/')}/{quote(inner)}"
                yield DocumentRef(source, mime_of(name), path=f"{place.opened.rstrip('/')}/{inner}")


def _is_below(name: str, here: str) -> bool:
    """Directly so; an object store also lists the folder itself, where somebody made an object of its name."""
    above, _, last = name.rpartition("/")
    return bool(last) and above.strip("/") == here.strip("/")


def _list(files: Any, here: str, place: Place) -> Iterable[dict[str, Any]]:
    try:
        entries: Iterable[dict[str, Any]] = files.ls(here, detail=True)
        return entries
    except Exception as error:
        raise _unreadable(place, error) from None


def _copy(files: Any, path: str, place: Place, cache: Path) -> Path:
    """A JSONL file in the cache, decompressed; fetched again when it has changed."""
    folder = cache_folder(cache, "rows", place.origin)
    try:
        with locked(folder):
            copy = folder / content_id(str(files.ukey(path)))
            if copy.exists():
                forget_old(folder, copy)
                return copy
            is_packed = path.lower().endswith(".gz")
            with files.open(path, "rb", compression="gzip" if is_packed else None) as file:
                blocks: Iterator[bytes] = iter(lambda: file.read(BLOCK_BYTES), b"")
                blocks = unpacked(blocks, files.size(path) or 0, place.origin) if is_packed else blocks
                return keep(folder, blocks, copy.name)
    except SourceError:
        raise
    except (EOFError, zlib.error) as error:
        raise SourceError(f"{place.origin}: expected gzip, found {error}; compress it again") from None
    except Exception as error:
        raise _unreadable(place, error) from None


def _unreadable(place: Place, error: Exception) -> SourceError:
    return SourceError(
        f"{place.origin}: expected files that can be read, found this: {_first_line(error, place.opened)};"
        " check address and credentials"
    )


def _first_line(error: Exception, url: str) -> str:
    """Without the login of `url`, which a server may repeat."""
    text = str(error).strip()
    for secret in _secrets(url):
        text = text.replace(secret, "...")
    text = re.sub("//[^/@ ]*@", "//...@", text.split("\n")[0][:200])
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _secrets(url: str) -> list[str]:
    """Password and user of an opened URL, as written and decoded; the longest first, since one may hold another."""
    protocol, _, rest = url.partition("://")
    login = "" if protocol in CONTAINER_BEFORE_HOST else rest.partition("/")[0].rpartition("@")[0]
    user, _, password = login.partition(":")
    written = [login, user, password]
    return sorted({*written, *map(unquote, written)} - {""}, key=len, reverse=True)
