"""Twenty tenants with labelled documents in one collection, requests of random callers, and what each may see.

The rules are written again here, in Python over the documents in memory, so that a mistake in the SQL shows.
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rag.config import IndexConfig, SearchConfig
from rag.index.filters import Filter
from rag.index.fingerprint import Fingerprint
from rag.index.generations import activate, ensure_generation, live_generation
from rag.index.hnsw import update_hnsw
from rag.index.store import Generation, IndexedDocument, Store
from rag.index.vectors import nearest
from rag.records import Access, Chunk, Section
from rag.search.retrieve import Retriever

DIM = 16


class MadeEmbedder:
    """A text's direction is random, and always the same."""

    fingerprint = Fingerprint("made", "", "mean", True, "", "", DIM, 256)

    def embed(self, texts: list[str], kind: str) -> np.ndarray:
        return np.concatenate([random_vectors(1, random.Random(text)) for text in texts])


TENANTS = ("", "O'Brien", "a,b", '{"x"}', "NULL", "%s", "ключ", *(f"tenant{i}" for i in range(13)))
LABELS = ("hr", "legal", "'; drop table chunks; --", "NULL", "{}", "with space", "ü")
LANGUAGES = ("pt", "en", "fi")


@dataclass(frozen=True)
class Request:
    access: Access
    filter: Filter | None
    query: np.ndarray
    k: int
    exact: bool
    text: str
    mode: str


@dataclass(frozen=True)
class Corpus:
    generation: Generation
    documents: dict[str, IndexedDocument]  # by the source of their only section

    def allowed(self, request: Request) -> set[str]:
        """The sections that the caller may see and asked for."""
        return {s for s, d in self.documents.items() if may_see(request.access, d) and matches(request.filter, d)}


def may_see(access: Access, d: IndexedDocument) -> bool:
    return d.access.tenant == access.tenant and (not d.access.labels or bool({*d.access.labels} & {*access.labels}))


def matches(filter: Filter | None, d: IndexedDocument) -> bool:
    return all(_has(d, key, values) for key, values in (filter.clauses if filter else ()))


def _has(d: IndexedDocument, key: str, values: tuple[str, ...]) -> bool:
    match key:
        case "source":
            return any(d.source == value or d.source.startswith(f"{value}/") for value in values)
        case "tenant":
            return d.access.tenant in values
        case "label":
            return bool({*d.access.labels} & {*values})
    return json.loads(d.meta).get(key) in values


def fill(store: Store, name: str, num_documents: int, num_chunks: int, seed: int = 0) -> Corpus:
    """A live generation with an HNSW index."""
    rng = random.Random(seed)
    generation = ensure_generation(store, name, {"made": seed}, asdict(MadeEmbedder.fingerprint), DIM)
    made = [_document(name, i, num_chunks, rng) for i in range(num_documents)]
    for start in range(0, len(made), 500):
        store.write_documents(generation, made[start : start + 500])
    activate(store, generation, update_hnsw(store, generation, IndexConfig(), 100))
    return Corpus(live_generation(store, name), {d.sections[0].source: d for d in made})


def _document(name: str, number: int, num_chunks: int, rng: random.Random) -> IndexedDocument:
    source = f"file:///{name}/{number % 7}/{number}.md"
    texts = [f"document {number} chunk {i}" for i in range(num_chunks)]
    section = Section(f"{source}#s", "Title", "\n".join(texts))
    chunks = tuple(Chunk(section.section_id, section.source, "Title", t, i, i + len(t)) for i, t in enumerate(texts))
    meta = json.dumps({"lang": rng.choice(LANGUAGES)})
    access = Access(rng.choice(TENANTS), _some(LABELS, rng))
    vectors = random_vectors(num_chunks, rng)
    return IndexedDocument(source, "text/plain", "h", meta, (section,), chunks, vectors, access=access)


def _some(names: tuple[str, ...], rng: random.Random) -> tuple[str, ...]:
    return tuple(sorted(rng.sample(names, rng.choice([0, 0, 1, 2]))))


def random_vectors(num: int, rng: random.Random) -> np.ndarray:
    rows = np.random.default_rng(rng.getrandbits(32)).normal(size=(num, DIM)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def random_request(name: str, rng: random.Random) -> Request:
    clauses: dict[str, tuple[str, ...]] = {
        "lang": (rng.choice(LANGUAGES),),
        "source": (f"file:///{name}/{rng.randrange(7)}", f"file:///{name}/{rng.randrange(7)}"),
        "tenant": (rng.choice(TENANTS), rng.choice(TENANTS)),  # another's: asked for, and not to be had
        "label": (rng.choice(LABELS),),
    }
    kept = tuple((key, values) for key, values in clauses.items() if rng.random() < 0.2)
    access = Access(rng.choice([*TENANTS, "nobody"]), _some(LABELS, rng))
    query = random_vectors(1, rng)[0]
    text = f"document {rng.randrange(1000)} chunk {rng.randrange(3)}"  # every chunk has two of the words
    mode = rng.choice(["hybrid", "semantic", "lexical"])
    k, exact = rng.choice([1, 5, 10, 40]), rng.random() < 0.3
    return Request(access, Filter(kept) if kept else None, query, k, exact, text, mode)


def made_retriever(store: Store, home: Path) -> Retriever:
    embedder: Any = MadeEmbedder()
    return Retriever(store, SearchConfig(), embedder, home)


def search(retriever: Retriever, name: str, r: Request) -> list[str]:
    """The sections of the hits."""
    found = retriever.search(r.text, name, r.k, mode=r.mode, filters=r.filter, access=r.access, exact=r.exact)
    return [hit.source for hit in found.hits]


def ask(store: Store, corpus: Corpus, r: Request) -> list[Any]:
    rows = nearest(store, corpus.generation, r.query, r.k, exact=r.exact, filter=r.filter, access=r.access)
    return [row for _, row in rows]
