"""Where a dump lies: a folder, local or at any URL that fsspec opens, whose manifest is written last.

Bytes and names in, files out; knows nothing of what is in them.
"""

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from rag.errors import DumpError
from rag.index.dump_format import MAX_MANIFEST_BYTES, Manifest, parse_manifest

MANIFEST = "manifest.json"
READ_BYTES = 2**20


class Folder:
    """Where a dump is or will be. Raises DumpError for a URL that nothing here opens."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.shown = re.sub(r"//[^/@]*@", "//***@", url)
        try:
            self.fs, path = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise DumpError(f"{self.shown}: expected a folder or a URL that fsspec opens; {error}") from None
        self.path = str(path).rstrip("/")

    def open(self, name: str, mode: Literal["rb", "wb"]) -> Any:
        return self.fs.open(f"{self.path}/{name}", mode)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Storage that fails is one line."""
        try:
            yield
        except OSError as error:
            raise DumpError(f"{self.shown}: {error.strerror or error}; check the path, the space and access") from None

    def prepare(self) -> None:
        """Makes the folder; refuses one that holds anything, as nothing of the user's is overwritten or mixed in."""
        with self.errors():
            self.fs.invalidate_cache()
            self.fs.makedirs(self.path, exist_ok=True)
            paths = [str(path).rstrip("/") for path in self.fs.ls(self.path, detail=False)]
        names = sorted(path.rsplit("/", 1)[-1] for path in paths if path != self.path)
        if MANIFEST in names:
            raise DumpError(f"{self.shown}: expected an empty folder, found a finished dump; name another folder")
        if names:
            raise DumpError(
                f"{self.shown}: expected an empty folder, found {names[0]!r}; name another folder, or delete what is"
                " there if an interrupted dump left it"
            )

    def write_manifest(self, manifest: Manifest) -> None:
        with self.errors(), self.open(MANIFEST, "wb") as out:
            out.write(manifest.model_dump_json(indent=1).encode())

    def read_manifest(self) -> Manifest:
        """Raises DumpError where there is none, or none that this version can read."""
        with self.errors():
            self.fs.invalidate_cache()
            if not self.fs.exists(f"{self.path}/{MANIFEST}"):
                raise DumpError(
                    f"{self.shown}: expected a dump, found no {MANIFEST}, which is written last; check the path, or"
                    " repeat `rag db dump` if it was interrupted"
                )
            with self.open(MANIFEST, "rb") as file:
                text = file.read(MAX_MANIFEST_BYTES + 1)
        return parse_manifest(text, f"{self.shown}/{MANIFEST}")

    def hash_file(self, name: str) -> tuple[int, str]:
        """(bytes, sha256)."""
        digest, num_bytes = hashlib.sha256(), 0
        with self.errors(), self.open(name, "rb") as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
                num_bytes += len(block)
        return num_bytes, digest.hexdigest()


class HashingWriter(io.RawIOBase):
    """Passes bytes on to a file of any storage and knows their number and sha256: what was written is read once."""

    def __init__(self, file: Any) -> None:
        self.file, self.num_bytes, self.digest = file, 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.file.write(data)
        self.digest.update(data)
        self.num_bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self.num_bytes
