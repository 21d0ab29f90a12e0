"""One frozen, resolved configuration: flags over environment over `rag.toml` over defaults.

A stage gets only its part: `chunk_section(section, settings.chunk)`.
"""

import ipaddress
import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from rag.errors import ConfigError

SECRET = re.compile(r"key|passw|token(?!s$)|secret|url", re.IGNORECASE)  # a name whose value is not shown
COLLECTION_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"

Mode = Literal["hybrid", "semantic", "lexical"]  # of a search


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChunkConfig(_Part):
    method: str = Field("recursive", pattern="^(recursive|tokens|markdown|semantic|code)$", description="how to cut")
    size: int = Field(700, ge=50, le=100_000, description="characters in a chunk, at most; tokens for method tokens")
    overlap: int = Field(50, ge=0, description="characters, or tokens, that neighbouring chunks share, at most")

    @model_validator(mode="after")
    def _overlap_is_smaller(self) -> "ChunkConfig":
        if self.overlap >= self.size:
            raise ValueError(f"overlap ({self.overlap}) must be smaller than size ({self.size})")
        return self

    @model_serializer(mode="wrap")
    def _without_default_method(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Generations from before there were methods are stored without one, and stay what they are."""
        values: dict[str, Any] = serialize(self)
        if values.get("method") == "recursive":
            del values["method"]
        return values


class ContextConfig(_Part):
    """A prefix for each chunk: an LLM says in a sentence or two what it is about within its document."""

    llm: str = Field("", description="whose, named as llm.name; none by default")
    base_url: str | None = Field(None, description="its endpoint, where it is not that of llm.base_url")
    document_chars: int = Field(6000, ge=500, le=1_000_000, description="of the document shown with a chunk, at most")
    max_chars: int = Field(300, ge=50, le=2000, description="of a prefix")
    concurrency: int = Field(8, ge=1, le=256, description="requests at once")


class IngestConfig(_Part):
    language: str | None = Field(None, description="of the collection, for words and their stems: german, none")
    deduplicate: bool = Field(False, description="leave out identical documents, hide near copies of chunks")
    tenant: str | None = Field(None, description="whose the documents are; by default as in the run before")
    labels: tuple[str, ...] | None = Field(None, description="who of the tenant's may see them; by default as before")
    row_access: bool = Field(False, description="rows name their own `tenant` and `labels`; only of trusted sources")

    @field_validator("tenant", "labels")
    @classmethod
    def _are_names(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        """No control characters, as PostgreSQL takes no NUL. An empty label, `--label ''`, takes the labels away."""
        for name in [value] if isinstance(value, str) else value or ():
            if not name.isprintable():
                raise ValueError("expected printable characters")
        return tuple(label for label in value if label) if isinstance(value, tuple) else value


class EmbedConfig(_Part):
    model: str = Field("all-MiniLM-L6-v2", description="packaged name, local folder or hub id")
    precision: str = Field("auto", pattern="^(auto|fp32|bf16|fp16|openvino)$", description="auto measures")


class IndexConfig(_Part):
    keep_generations: int = Field(2, ge=0, description="retired generations kept beside the live one")
    vectors: str = Field("auto", pattern="^(auto|halfvec|vector)$", description="what HNSW indexes; auto is halfvec")
    m: int | None = Field(None, ge=2, le=100, description="HNSW links of a chunk; chosen by size")
    ef_construction: int | None = Field(None, ge=4, le=1000, description="HNSW candidates while building")

    @model_validator(mode="after")
    def _candidates_suffice(self) -> "IndexConfig":
        if self.ef_construction is not None and self.ef_construction < 2 * (self.m or 2):
            raise ValueError(f"ef_construction ({self.ef_construction}) must be at least twice m ({self.m})")
        return self


class SearchConfig(_Part):
    k: int = Field(10, ge=1, le=1000, description="hits returned by a search")
    mode: Mode = Field("hybrid", description="by meaning, by words, or by both")
    candidates: int = Field(100, ge=1, le=1000, description="chunks that each arm of a hybrid search offers, at least")
    fusion: Literal["scores", "rrf"] = Field("scores", description="standardised scores, or reciprocal ranks")
    weight: float | None = Field(None, ge=0, le=1, description="of meaning in hybrid; tuned for the collection, or .55")
    rewrite: Literal["none", "multi-query", "hyde"] = Field("none", description="by an LLM, before searching")
    merge_copies: bool = Field(False, description="hits that nearly repeat a better one are left out")
    diversity: float = Field(1.0, ge=0, le=1, description="below 1 hits are chosen to differ: lambda of MMR")
    neighbours: int = Field(0, ge=0, le=50, description="chunks before and after a hit that are shown with it")
    section_chars: int = Field(0, ge=0, le=100_000, description="a hit shows its section, so much of it; 0: itself")
    ef_search: int = Field(100, ge=1, le=1000, description="HNSW candidates; more is slower and more exact")


class RerankConfig(_Part):
    """Measure before switching on: `rag evaluate retrieval --rerank`."""

    name: str = Field("none", description="none, topics:FOLDER, cross-encoder:NAME or llm")
    k: int = Field(50, ge=1, le=1000, description="hits of the search that are put in order")
    threshold: float | None = Field(None, ge=0, le=1, description="topics: probability needed; the model's own")
    precision: str = Field("auto", pattern="^(auto|fp32|bf16|fp16)$", description="cross-encoder: auto measures")


class WebConfig(_Part):
    """How `rag ingest https://…` crawls a site."""

    max_pages: int = Field(1000, ge=1, le=1_000_000, description="URLs visited, at most")
    max_depth: int = Field(10, ge=0, le=1000, description="links away from the start page, at most")
    delay_s: float = Field(0.2, ge=0, le=60, description="between requests; a longer Crawl-delay is respected")
    timeout_s: float = Field(30.0, gt=0, description="for one whole reply")
    max_retries: int = Field(3, ge=0, le=10, description="after no reply, 429, 502, 503, 504")
    max_bytes: int = Field(20 * 2**20, ge=1024, description="in a page, also after decompression")
    user_agent: str = Field("rag-crawler", pattern=r"^[\x21-\x7e][\x20-\x7e]*$", description="also for robots.txt")
    allow_private: tuple[str, ...] = Field(
        (), description="hosts that need not be public: wiki.internal, 127.0.0.1:8123, [::1]:80, 10.1.0.0/16"
    )

    @field_validator("allow_private")
    @classmethod
    def _are_hosts_or_networks(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            if "/" in entry:
                ipaddress.ip_network(entry)
            elif not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", entry):
                raise ValueError(f"expected host, host:port or a network such as 10.1.0.0/16, found {entry!r}")
        return entries


class LLMConfig(_Part):
    name: str = Field("SmolLM2-135M-Instruct", description="local model, `extractive`, or an endpoint's model")
    base_url: str | None = Field(None, description="an OpenAI-compatible endpoint")
    api_key: SecretStr | None = Field(None, description="falls back to OPENAI_API_KEY")
    context_tokens: int | None = Field(None, ge=256, description="overrides the catalogue")
    k: int = Field(4, ge=1, le=100, description="hits offered to the prompt")
    max_tokens: int = Field(256, ge=1, description="tokens in an answer, at most")
    temperature: float = Field(0.0, ge=0, le=2)
    timeout_s: float = Field(60.0, gt=0, description="for one attempt")
    max_retries: int = Field(3, ge=0, le=10)


class RayConfig(_Part):
    address: str = Field("local", description="`local` starts Ray here; `auto` or ray://… joins a cluster")
    num_cpus: int | None = Field(None, ge=1, description="CPUs for a local Ray; all by default")
    shared_files: bool = Field(False, description="all machines read the same paths, so no file is sent to them")


class ServeConfig(_Part):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    deadline_s: float = Field(120.0, gt=0, description="for one request, its whole stream included")
    max_waiting: int = Field(32, ge=1, description="requests that may wait for the local LLM; more get 503")


class Settings(BaseSettings):
    """All settings. Environment: `RAG_CHUNK__SIZE=500`; TOML: `[chunk] size = 500`."""

    model_config = SettingsConfigDict(
        env_prefix="RAG_", env_nested_delimiter="__", toml_file="rag.toml", frozen=True, extra="forbid"
    )

    home: Path = Field(Path("~/.rag"), validate_default=True, description="embedded server, caches")
    database_url: SecretStr | None = Field(None, description="any PostgreSQL with pgvector >= 0.8.4")
    collection: str = Field("default", pattern=COLLECTION_NAME)
    ingest: IngestConfig = IngestConfig()
    chunk: ChunkConfig = ChunkConfig()
    context: ContextConfig = ContextConfig()
    embed: EmbedConfig = EmbedConfig()
    index: IndexConfig = IndexConfig()
    search: SearchConfig = SearchConfig()
    rerank: RerankConfig = RerankConfig()
    web: WebConfig = WebConfig()
    llm: LLMConfig = LLMConfig()
    ray: RayConfig = RayConfig()
    serve: ServeConfig = ServeConfig()

    @model_validator(mode="after")
    def _home_is_absolute(self) -> "Settings":
        object.__setattr__(self, "home", self.home.expanduser().absolute())
        return self

    @classmethod
    def settings_customise_sources(  # noqa: PLR0913 - the signature is pydantic's
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(**overrides: Any) -> Settings:
    """The resolved settings; `overrides` win and are nested dicts, `chunk={"size": 500}`.

    `DATABASE_URL` and `OPENAI_API_KEY` are read where the RAG_ names are not set.
    Raises ConfigError with one line a user can act on.
    """
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        found = "" if SECRET.search(where.rpartition(".")[2]) else f"; found {first.get('input')!r}"
        raise ConfigError(f"{where}: {first['msg']}{found}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"rag.toml or environment cannot be read: {error}") from None
    if settings.database_url is None and os.environ.get("DATABASE_URL"):
        settings = settings.model_copy(update={"database_url": SecretStr(os.environ["DATABASE_URL"])})
    if settings.llm.api_key is None and os.environ.get("OPENAI_API_KEY"):
        llm = settings.llm.model_copy(update={"api_key": SecretStr(os.environ["OPENAI_API_KEY"])})
        settings = settings.model_copy(update={"llm": llm})
    return settings
