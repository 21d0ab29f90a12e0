"""What a dump is: a folder of Parquet files, and a manifest.json that names, counts and hashes them, written last.

    manifest.json                            format version, collection, its sources, generations and their history
    documents-00000.parquet, sections-…      of the collection
    generation-7-documents-…, -chunks-…, -failures-…

A manifest is anybody's: what it says is checked here. Knows the columns and the manifest; knows no files and no SQL.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rag.config import COLLECTION_NAME
from rag.errors import ConfigError, DumpError, SourceError
from rag.index.access import check_names
from rag.index.tokens import LANGUAGES, NO_LANGUAGE
from rag.ingest.sources import canonical_source

FORMAT: Literal["rag-collection"] = "rag-collection"
VERSION: Literal[1] = 1
MAX_MANIFEST_BYTES = 64 * 2**20
FILE_NAME = r"^[a-z0-9][a-z0-9-]{0,80}\.parquet$"  # no separator, so no name leads out of the folder
MAX_CHARS = 16_384  # of a source: a path of 4,096 bytes, each of them quoted; and of a tenant or label

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


# Years that Python can read back from PostgreSQL, whatever the time zone.
Moment = Annotated[AwareDatetime, Field(ge=datetime(1900, 1, 1, tzinfo=UTC), lt=datetime(9000, 1, 1, tzinfo=UTC))]
Name = Annotated[str, Field(max_length=MAX_CHARS)]


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
    created_at: Moment
    ready_at: Moment | None
    live_since: Moment | None = None
    retired_at: Moment | None = None
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


class OriginPart(_Part):
    """A source of the collection, and what its documents get from a run that does not say."""

    origin: Name
    tenant: Name
    labels: tuple[Name, ...]
    added_at: Moment

    @field_validator("origin")
    @classmethod
    def _is_a_source(cls, origin: str) -> str:
        """An ingestion reads every source of its collection, so one that cannot be read as such would end them all."""
        try:
            if not origin.isprintable():
                raise ValueError("expected printable characters")
            canonical_source(origin)
        except SourceError:
            raise ValueError(f"expected a source, found {origin!r:.100}") from None
        return origin

    @field_validator("tenant", "labels")
    @classmethod
    def _are_names(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        try:
            check_names(*([value] if isinstance(value, str) else value))
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value


class ActivationPart(_Part):
    """A switch to an index. `previous` is the place in the history that a rollback from here goes to."""

    index_id: int
    previous: int | None = Field(ge=0)
    activated_at: Moment


class Manifest(_Part):
    format: Literal["rag-collection"] = FORMAT
    version: Literal[1] = VERSION
    rag: str  # the version that wrote it
    created_at: str
    collection: str = Field(pattern=COLLECTION_NAME)
    settings: CollectionSettings = CollectionSettings()
    origins: tuple[OriginPart, ...] = ()  # oldest first
    activations: tuple[ActivationPart, ...] = ()  # oldest first; earlier versions wrote neither
    documents: TablePart
    sections: TablePart
    generations: tuple[GenerationPart, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> "Manifest":
        names = [file.name for file in self.files]
        if len(names) != len(set(names)):
            raise ValueError("a file is named twice")
        if len({entry.origin for entry in self.origins}) < len(self.origins):
            raise ValueError("a source is named twice")
        if len({g.index_id for g in self.generations}) < len(self.generations):
            raise ValueError("an index is named twice")
        if sum(g.live for g in self.generations) > 1:
            raise ValueError("more than one generation is live")
        if any(g.live and g.state != "ready" for g in self.generations):
            raise ValueError("the live generation is not ready")
        return self

    @model_validator(mode="after")
    def _history_leads_to_the_live_one(self) -> "Manifest":
        finished = {g.index_id for g in self.generations if g.state != "building"}
        for place, switch in enumerate(self.activations):
            if switch.index_id not in finished:
                raise ValueError("a switch is to an index that is not there or not finished")
            if switch.previous is not None and switch.previous >= place:
                raise ValueError("a switch goes back to one that came later")
        if self.activations and self.activations[-1].index_id != self.live_index_id:
            raise ValueError("the last switch is not to the live index")
        return self

    @property
    def live_index_id(self) -> int | None:
        return next((g.index_id for g in self.generations if g.live), None)

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


def report(manifest: Manifest, where: str, collection: str, index_ids: list[int], seconds: float) -> MoveReport:
    return MoveReport(
        collection=collection,
        dump=where,
        index_ids=tuple(index_ids),
        documents=manifest.documents.num_rows,
        sections=manifest.sections.num_rows,
        chunks=manifest.num_chunks,
        files=len(manifest.files),
        bytes=sum(file.num_bytes for file in manifest.files),
        seconds=round(seconds, 2),
    )


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


def parse_manifest(text: bytes, where: str) -> Manifest:
    """Raises DumpError for one that this version cannot read."""
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
