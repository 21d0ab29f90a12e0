"""A query in, ranked hits out: by meaning, by words, or by both. Knows no LLM and no HTTP.

             ┌ embed ─► HNSW ──────────┐
query ─► ────┤                         ├─► scores of all candidates in both ─► fuse ─► hits
             └ terms ─► BM25 ──────────┘
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from psycopg import Connection

from rag.config import Mode, SearchConfig, Settings
from rag.errors import ConfigError, IndexMismatch
from rag.index.access import reading_as
from rag.index.database import open_database
from rag.index.embed import Embedder, load_embedder
from rag.index.filters import Filter, allowed_documents
from rag.index.fingerprint import Fingerprint
from rag.index.generations import live_generation, read_live
from rag.index.lexical import LexicalIndex
from rag.index.lexical_view import View
from rag.index.replies import Complete
from rag.index.restricted import Restriction
from rag.index.store import Generation, Store
from rag.index.vectors import Row, Scored, ask_chunks, ask_nearest, choose_graph, nearest
from rag.records import Access, Hit
from rag.search.arrange import Arrangement
from rag.search.filters import make_filter
from rag.search.fusion import RRF_K, fuse
from rag.search.rerank import Reranker
from rag.search.rerank.choose import make_reranker
from rag.search.rewrite import hypothetical_passage, mean_embedding, paraphrases

MAX_QUERY_CHARS = 20_000  # the embedder reads a few hundred tokens; more is a mistake or an attack
MAX_QUERY_TERMS = 1000  # of the rest BM25 takes no notice: each may stand in every chunk
MAX_INDEXES = 8  # lexical indexes kept open; a collection has one
DEFAULT_WEIGHT = 0.55  # experiments/LOG.md


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first, and how long each stage took."""

    query: str
    collection: str
    hits: tuple[Hit, ...]
    timings_ms: dict[str, float]


@dataclass(frozen=True)
class Candidates:
    """Chunks that one arm or both found, each with both scores."""

    rows: list[Row]
    cosines: np.ndarray  # (len(rows),)
    bm25: np.ndarray  # (len(rows),); 0 where no word of the query stands


@dataclass(frozen=True)
class _Asked:
    """One search, as all its stages see it."""

    query: str
    k: int
    restriction: Restriction
    exact: bool
    paraphrases: tuple[str, ...] = ()  # searched too
    passage: str = ""  # that might answer the query; searched by with it
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


Way = Callable[[Generation, _Asked], Scored]  # how a mode finds


class Retriever:
    """Searches the live generation of a collection. Thread-safe; keep one for each process."""

    def __init__(
        self,
        store: Store,
        config: SearchConfig,
        embedder: Embedder,
        home: Path,
        arrangement: Arrangement | None = None,
        complete: Complete | None = None,
    ) -> None:
        """`home` is where lexical indexes are kept. Without an `arrangement` there is no reranker.

        `complete` runs the LLM of search.rewrite. Raises ConfigError where there is none.
        """
        if config.rewrite != "none" and complete is None:
            raise ConfigError(f"search.rewrite is {config.rewrite}, which an LLM does: expected one, found none")
        self.store, self.config, self.embedder, self.home = store, config, embedder, home
        self._complete = complete
        self.arrangement = arrangement or Arrangement(config)
        self._indexes: dict[tuple[int, str], LexicalIndex] = {}
        self._lock = threading.Lock()

    def search(  # noqa: PLR0913 - what is asked, of what, how, and by whom
        self,
        query: str,
        collection: str,
        k: int | None = None,
        *,
        mode: str | None = None,
        filters: Mapping[str, str | Sequence[str]] | Filter | None = None,
        access: Access | None = None,
        exact: bool = False,
        reranker: Reranker | None = None,
    ) -> SearchResult:
        """The k chunks that fit `query` best; none for a blank one.

        `mode` is hybrid, semantic or lexical. `filters` are {"key": "value"} or {"key": ["one", "of", "these"]}.
        `access` is the caller; None is the operator, who sees everything. `exact` scans every chunk instead of asking
        HNSW. `reranker` takes the place of the configured one. Raises NotFound, IndexMismatch, ConfigError.
        """
        started = time.perf_counter()
        find = self._way(mode or self.config.mode)
        arrangement = self.arrangement if reranker is None else replace(self.arrangement, reranker=reranker)
        k = k or self.config.k
        restriction = Restriction(filters if isinstance(filters, Filter) else make_filter(filters), access)
        asked = _Asked(_plain(query), arrangement.num_needed(k), restriction, exact)
        generation = live_generation(self.store, collection)
        self._check_fingerprint(generation)
        if not asked.query:
            return SearchResult(query, collection, (), {})

        asked = self._rewritten(asked)

        def read(latest: Generation) -> list[Hit]:
            rankings = [find(latest, replace(asked, query=one)) for one in (asked.query, *asked.paraphrases)]
            hits = [
                Hit(rank, score, row.chunk_id, row.source, row.title, row.text, row.start_char, row.end_char)
                for rank, (score, row) in enumerate(_merged(rankings)[: asked.k], start=1)
            ]
            return arrangement.arrange(self.store, latest, asked.query, hits, k, asked.timed)

        hits = tuple(read_live(self.store, generation, read))
        asked.seconds["search"] = time.perf_counter() - started
        return SearchResult(query, collection, hits, {name: round(s * 1000, 2) for name, s in asked.seconds.items()})

    def _rewritten(self, asked: _Asked) -> _Asked:
        if self.config.rewrite == "none" or self._complete is None:
            return asked
        with asked.timed("rewrite"):
            if self.config.rewrite == "hyde":
                passage = hypothetical_passage(asked.query, self._complete)
                return replace(asked, passage="" if passage == asked.query else passage)
            return replace(asked, paraphrases=tuple(paraphrases(asked.query, self._complete)[1:]))

    def _way(self, mode: str) -> Way:
        ways: dict[Mode, Way] = {"hybrid": self._hybrid, "semantic": self._semantic, "lexical": self._lexical}
        if mode not in get_args(Mode):
            raise ConfigError(f"search mode: expected {', '.join(get_args(Mode))}; found {mode!r}")
        return ways[cast(Mode, mode)]

    def _semantic(self, generation: Generation, asked: _Asked) -> Scored:
        embedding = self._embed(generation, asked)
        only, access = asked.restriction.filter, asked.restriction.access
        with asked.timed("semantic"):
            return nearest(self.store, generation, embedding, asked.k, self.config.ef_search, asked.exact, only, access)

    def _lexical(self, generation: Generation, asked: _Asked) -> Scored:
        """Asks for more where the database withholds some: what changed a moment ago, or a filter on sections."""
        index = self._index(generation)
        view, num_wanted = index.view(), asked.k
        with self._as_caller(asked) as conn:
            while True:
                chunk_ids, scores = self._best_by_words(conn, generation, view, asked, num_wanted)
                with asked.timed("read"):
                    rows = ask_chunks(conn, generation, chunk_ids, None, asked.restriction)()
                if len(rows) >= asked.k or len(chunk_ids) < num_wanted:
                    break
                num_wanted *= 4
        found = {row.chunk_id: row for row in rows}
        slots = view.slots(chunk_ids)
        ranked = [(float(scores[slot]), found[one]) for one, slot in zip(chunk_ids, slots, strict=True) if one in found]
        return ranked[: asked.k]

    def _hybrid(self, generation: Generation, asked: _Asked) -> Scored:
        found = self._candidates(generation, asked)
        with asked.timed("fuse"):
            fused = fuse(self.config.fusion, found.cosines, found.bm25, self.weight(generation))
            order = sorted(range(len(fused)), key=lambda i: (-fused[i], found.rows[i].chunk_id))
        return [(float(fused[i]), found.rows[i]) for i in order[: asked.k]]

    def candidates(self, query: str, collection: str) -> Candidates:
        """What a hybrid search fuses, unfused: to tune the fusion. Raises what a search raises."""
        generation = live_generation(self.store, collection)
        return self._candidates(generation, _Asked(_plain(query), self.config.k, Restriction(), False))

    def _candidates(self, generation: Generation, asked: _Asked) -> Candidates:
        """Both arms at once, each of whose chunks gets its score in the other arm, too.

        While the database looks for meaning, this thread looks for words. It does not begin before the embedding is
        there: two threads that compute take the interpreter's lock from each other, which costs more than it saves.
        """
        k = max(self.config.candidates, asked.k)
        embedding = self._embed(generation, asked)
        ef_search = self.config.ef_search
        graph = None if asked.exact else choose_graph(self.store, generation, k, ef_search, asked.restriction)
        view = self._index(generation).view()
        with self._as_caller(asked) as conn:
            with asked.timed("semantic"):
                by_meaning = ask_nearest(conn, generation, embedding, k, graph, asked.restriction)
            chunk_ids, scores = self._best_by_words(conn, generation, view, asked, k)
            with asked.timed("read"):
                by_words = ask_chunks(conn, generation, chunk_ids, embedding, asked.restriction)
            with asked.timed("semantic"):
                found = {row.chunk_id: row for _, row in by_meaning()}
            with asked.timed("read"):
                found |= {row.chunk_id: row for row in by_words()}
        slots = view.slots(list(found))
        bm25 = np.where(slots >= 0, scores[slots], 0.0) if len(scores) else np.zeros(len(found))
        return Candidates(list(found.values()), np.array([row.cosine for row in found.values()]), bm25)

    def _embed(self, generation: Generation, asked: _Asked) -> np.ndarray:
        self._check_fingerprint(generation)  # again: the live one may have changed since
        with asked.timed("embed"):
            embedding: np.ndarray = self.embedder.embed([asked.query], "query")[0]
            if asked.passage:
                embedding = mean_embedding(np.stack([embedding, self.embedder.embed([asked.passage], "passage")[0]]))
        return embedding

    @contextmanager
    def _as_caller(self, asked: _Asked) -> Iterator[Connection[Any]]:
        """One transaction for a search. Within it no other connection may be asked for: searches that hold all of
        them would wait for each other."""
        with self.store.pool.connection() as conn, reading_as(conn, asked.restriction.access):
            yield conn

    def _best_by_words(
        self, conn: Connection[Any], generation: Generation, view: View, asked: _Asked, k: int
    ) -> tuple[list[str], np.ndarray]:
        """The ids of the k best allowed chunks, and the scores of all slots of the view."""
        with asked.timed("lexical"):
            terms = self._index(generation).analyzer.query_terms(asked.query)[:MAX_QUERY_TERMS]
            return view.search(terms, k, self._allowed(conn, generation, asked.restriction, view))

    def _allowed(
        self, conn: Connection[Any], generation: Generation, restriction: Restriction, view: View
    ) -> np.ndarray | None:
        """(slots,) bool: what may be ranked at all; None: everything."""
        allowed = view.seen_by(restriction.access)
        if restriction.filter:
            only = restriction.filter
            matching = view.of_documents(restriction, lambda: allowed_documents(conn, generation, only))
            allowed = matching if allowed is None else allowed & matching
        return allowed

    def _index(self, generation: Generation) -> LexicalIndex:
        key = (generation.generation_id, generation.language)
        with self._lock:
            if key not in self._indexes:
                if len(self._indexes) >= MAX_INDEXES:
                    self._indexes.pop(next(iter(self._indexes)))
                self._indexes[key] = LexicalIndex(self.store, generation, self.home)
            return self._indexes[key]

    def weight(self, generation: Generation) -> float:
        """Of the cosine: what is set, what was tuned for the collection, or what served best on average."""
        if self.config.weight is not None:
            return self.config.weight
        return float(generation.settings.get("weight", DEFAULT_WEIGHT))

    def _check_fingerprint(self, generation: Generation) -> None:
        """Vectors of two embedders share a space by accident only: their cosine means nothing."""
        stored = Fingerprint(**generation.fingerprint)
        if difference := stored.difference(self.embedder.fingerprint):
            raise IndexMismatch(
                f"collection {generation.collection!r} was embedded with another model than the query would be:"
                f" {difference}; set RAG_EMBED__MODEL={stored.model}, or ingest"
                " again with the model you want"
            )


def open_retriever(settings: Settings, complete: Complete | None = None) -> Retriever:
    """A retriever over the configured database, embedder and reranker; `complete` runs the LLM, where one is asked for.

    Raises DatabaseError, ModelError, ConfigError.
    """
    store = Store(open_database(settings))
    embedder = load_embedder(settings.embed, settings.home)
    reranker = make_reranker(settings.rerank, complete, settings.home)
    return Retriever(
        store,
        settings.search,
        embedder,
        settings.home,
        Arrangement(settings.search, reranker, settings.rerank.k),
        complete,
    )


def _merged(rankings: Sequence[Scored]) -> Scored:
    """Several rankings as one, by reciprocal ranks; a single one as it is."""
    if len(rankings) == 1:
        return rankings[0]
    rows: dict[str, Any] = {}
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, (_, row) in enumerate(ranking, start=1):
            rows.setdefault(row.chunk_id, row)
            scores[row.chunk_id] = scores.get(row.chunk_id, 0.0) + 1 / (RRF_K + rank)
    return sorted(((scores[one], rows[one]) for one in rows), key=lambda found: (-found[0], found[1].chunk_id))


def _plain(query: str) -> str:
    """What can be searched for. Raises ConfigError."""
    query = query.replace("\0", " ").strip()
    if len(query) > MAX_QUERY_CHARS:
        raise ConfigError(f"query of {len(query)} characters; expected at most {MAX_QUERY_CHARS}")
    return query
