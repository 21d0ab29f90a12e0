"""What a dump is: a folder of Parquet files, and a manifest.json that names, counts and hashes them, written last.

    manifest.json                            format version, collection, generations with config and fingerprint
    documents-00000.parquet, sections-…      of the collection
    generation-7-documents-…, -chunks-…, -failures-…

The folder is a local path or any URL that fsspec opens. Knows the columns and the files; knows no SQL.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rag.config import COLLECTION_NAME
from rag.errors import DumpError
from rag.index.tokens import LANGUAGES, NO_LANGUAGE

FORMAT: Literal["rag-collection"] = "rag-collection"
VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 * 2**20
FILE_NAME = r"^[a-z0-9][a-z0-9-]{0,80}\.parquet$"  # no separator, so no name leads out of the folder
READ_BYTES = 2**20

# Column -> PostgreSQL type. A test compares them with the database: what a migration adds must be added here.
Columns = Mapping[str, str]
DOCUMENTS: Columns = {
    "doc_id": "text",
    "source": "text",
    "mime": "text",
    "content_hash": "text",
    "meta": "jsonb",
    "tenant": "text",
    "labels": "text[]",
    "updated_at": "timestamptz",
}
SECTIONS: Columns = {
    "section_id": "text",
    "doc_id": "text",
    "ordinal": "int4",
    "source": "text",
    "title": "text",
    "text": "text",
}
GENERATION_DOCUMENTS: Columns = {
    "doc_id": "text",
    "content_hash": "text",
    "num_chunks": "int4",
    "indexed_at": "timestamptz",
    "seconds": "float4",
}
CHUNKS: Columns = {
    "chunk_id": "text",
    "doc_id": "text",
    "section_id": "text",
    "source": "text",
    "title": "text",
    "text": "text",
    "start_char": "int4",
    "end_char": "int4",
    "embedding": "vector",
    "is_duplicate": "bool",
    "tenant": "text",
    "labels": "text[]",
    "prefix": "text",
}
FAILURES: Columns = {
    "source": "text",
    "reason": "text",
    "content_hash": "text",
    "failed_at": "timestamptz",
    "seconds": "float4",
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardFile(_Part):
    name: str = Field(pattern=FILE_NAME)
    num_rows: int = Field(gt=0)
    num_bytes: int = Field(gt=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class TablePart(_Part):
    """The rows of one table, over as many files as they need; none where there is no row."""

    files: tuple[ShardFile, ...] = ()

    @property
    def num_rows(self) -> int:
        return sum(file.num_rows for file in self.files)


class GenerationPart(_Part):
    """One index generation. `index_id` is what it was called where it was dumped; a load gives it a new one."""

    index_id: int
    config: dict[str, Any]
    fingerprint: dict[str, Any]
    dim: int = Field(gt=0, le=16_000)  # pgvector's limit
    state: Literal["building", "ready", "retired"]
    stats: dict[str, Any]
    live: bool
    created_at: str
    ready_at: str | None
    documents: TablePart
    chunks: TablePart
    failures: TablePart


class CollectionSettings(_Part):
    """What a collection was told or tuned to; nothing where the defaults serve."""

    language: str | None = None
    weight: float | None = Field(None, ge=0, le=1)

    @field_validator("language")
    @classmethod
    def _is_known(cls, language: str | None) -> str | None:
        if language not in (None, NO_LANGUAGE, *LANGUAGES):
            raise ValueError(f"expected a language that texts can be cut in, found {language!r}")
        return language


class Manifest(_Part):
    format: Literal["rag-collection"] = FORMAT
    version: Literal[1] = VERSION
    rag: str  # the version that wrote it
    created_at: str
    collection: str = Field(pattern=COLLECTION_NAME)
    settings: CollectionSettings = CollectionSettings()
    documents: TablePart
    sections: TablePart
    generations: tuple[GenerationPart, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> "Manifest":
        names = [file.name for file in self.files]
        if len(names) != len(set(names)):
            raise ValueError("a file is named twice")
        if sum(g.live for g in self.generations) > 1:
            raise ValueError("more than one generation is live")
        return self

    @property
    def parts(self) -> Iterator[tuple[Columns, int, TablePart]]:
        """(columns, dim, rows) of every table."""
        yield DOCUMENTS, 0, self.documents
        yield SECTIONS, 0, self.sections
        for g in self.generations:
            yield GENERATION_DOCUMENTS, g.dim, g.documents
            yield CHUNKS, g.dim, g.chunks
            yield FAILURES, g.dim, g.failures

    @property
    def files(self) -> list[ShardFile]:
        return [file for _, _, part in self.parts for file in part.files]

    @property
    def num_chunks(self) -> int:
        return sum(g.chunks.num_rows for g in self.generations)


@dataclass(frozen=True)
class MoveReport:
    """What a dump or a load moved."""

    collection: str
    dump: str  # where the files are, without passwords
    index_ids: tuple[int, ...]
    documents: int
    sections: int
    chunks: int
    files: int
    bytes: int
    seconds: float


def report(manifest: Manifest, folder: "Folder", collection: str, index_ids: list[int], seconds: float) -> MoveReport:
    return MoveReport(
        collection=collection,
        dump=folder.shown,
        index_ids=tuple(index_ids),
        documents=manifest.documents.num_rows,
        sections=manifest.sections.num_rows,
        chunks=manifest.num_chunks,
        files=len(manifest.files),
        bytes=sum(file.num_bytes for file in manifest.files),
        seconds=round(seconds, 2),
    )


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
        return _parse_manifest(text, f"{self.shown}/{MANIFEST}")

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


def arrow_schema(columns: Columns, dim: int) -> Any:
    """The Parquet side of a table; vectors are float32 lists of fixed length."""
    import pyarrow as pa

    types = {
        "text": pa.string(),
        "jsonb": pa.string(),
        "int4": pa.int32(),
        "float4": pa.float32(),
        "bool": pa.bool_(),
        "text[]": pa.list_(pa.string()),
        "timestamptz": pa.timestamp("us", tz="UTC"),
        "vector": pa.list_(pa.float32(), dim),
    }
    return pa.schema([(name, types[kind]) for name, kind in columns.items()])


def _parse_manifest(text: bytes, where: str) -> Manifest:
    damaged = f"{where}: expected the manifest of a dump, found"
    if len(text) > MAX_MANIFEST_BYTES:
        raise DumpError(f"{damaged} more than {MAX_MANIFEST_BYTES} bytes; dump the collection again")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise DumpError(f"{damaged} something that is not JSON; dump the collection again") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DumpError(f"{damaged} something else; point at a folder that `rag db dump` wrote")
    if found.get("version") != VERSION:
        raise DumpError(
            f"{where}: expected format version {VERSION}, found {str(found.get('version'))[:20]}; load it with the"
            " version of rag that wrote it, or dump it again with this one"
        )
    try:
        return Manifest.model_validate(found)
    except (ValidationError, RecursionError) as error:
        raise DumpError(f"{damaged} {_first_fault(error)}; dump the collection again") from None


def _first_fault(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "endless nesting"
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'manifest'}: {first['msg']}"[:300]
