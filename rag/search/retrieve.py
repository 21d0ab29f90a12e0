"""A query in, ranked hits out. Knows no LLM and no HTTP."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from rag.config import SearchConfig, Settings
from rag.errors import ConfigError, IndexMismatch
from rag.index.database import open_database
from rag.index.embed import Embedder, load_embedder
from rag.index.fingerprint import Fingerprint
from rag.index.generations import live_generation, read_live
from rag.index.store import Generation, Store
from rag.index.vectors import nearest
from rag.records import Hit

MAX_QUERY_CHARS = 20_000  # the embedder reads a few hundred tokens; more is a mistake or an attack


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first, and how long each stage took."""

    query: str
    collection: str
    hits: tuple[Hit, ...]
    timings_ms: dict[str, float]


class Retriever:
    """Searches the live generation of a collection. Thread-safe; keep one for each process."""

    def __init__(self, store: Store, config: SearchConfig, embedder: Embedder) -> None:
        self.store, self.config, self.embedder = store, config, embedder

    def search(self, query: str, collection: str, k: int | None = None, exact: bool = False) -> SearchResult:
        """The k chunks nearest in meaning to `query`; none for a blank one.

        `exact` scans every chunk instead of asking HNSW. Raises NotFound, IndexMismatch, ConfigError.
        """
        query = query.replace("\0", " ").strip()
        if len(query) > MAX_QUERY_CHARS:
            raise ConfigError(f"query of {len(query)} characters; expected at most {MAX_QUERY_CHARS}")
        started = time.perf_counter()
        generation = live_generation(self.store, collection)
        self._check_fingerprint(generation)
        if not query:
            return SearchResult(query, collection, (), {})
        embedded_at = time.perf_counter()
        embedding = self.embedder.embed([query], "query")[0]
        searched_at = time.perf_counter()

        def find(generation: Generation) -> list[tuple[float, Any]]:
            self._check_fingerprint(generation)  # again: the live one may have changed since
            return nearest(self.store, generation, embedding, k or self.config.k, self.config.ef_search, exact)

        rows = read_live(self.store, generation, find)
        hits = tuple(
            Hit(rank, score, row.chunk_id, row.source, row.title, row.text, row.start_char, row.end_char)
            for rank, (score, row) in enumerate(rows, start=1)
        )
        done = time.perf_counter()
        timings = {"embed": searched_at - embedded_at, "semantic": done - searched_at, "search": done - started}
        return SearchResult(query, collection, hits, {name: round(s * 1000, 2) for name, s in timings.items()})

    def _check_fingerprint(self, generation: Generation) -> None:
        """Vectors of two embedders share a space by accident only: their cosine means nothing."""
        stored = Fingerprint(**generation.fingerprint)
        if difference := stored.difference(self.embedder.fingerprint):
            raise IndexMismatch(
                f"collection {generation.collection!r} was embedded with another model than the query would be:"
                f" {difference}; set RAG_EMBED__MODEL={stored.model}, or ingest"
                " again with the model you want"
            )


def open_retriever(settings: Settings) -> Retriever:
    """A retriever over the configured database and embedder. Raises DatabaseError, ModelError."""
    store = Store(open_database(settings))
    return Retriever(store, settings.search, load_embedder(settings.embed, settings.home))


def hit_json(hit: Hit) -> dict[str, object]:
    """A hit in the shape of `rag search --json`."""
    return asdict(hit)
