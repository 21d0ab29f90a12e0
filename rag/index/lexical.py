"""The lexical index of a generation: kept beside the database, in step with it, shared by the machine's processes.

    RAG_HOME/lexical/<database>/<generation>-<language>-<version>/<number>/*.npy

PostgreSQL holds the truth. What was indexed is mapped from files that the first process of a machine writes; what
changed since is read from the table `changes`, at most once a second and only when somebody searches. Nothing here
decides what a caller may see: `allowed` does, before ranking, and the database again when the hits are read.
"""

import contextlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from rag.index.bm25 import BM25, Postings, best, build_postings, load_array, merge
from rag.index.generations import live_generation
from rag.index.store import Generation, Store, scalar
from rag.index.tokens import TOKENS_VERSION, Analyzer
from rag.records import Access

REFRESH_S = 1.0  # how old what a search sees may be
MAX_PARTS = 8  # a search looks into each
MERGE_SHARE = 0.2  # of the large part; where the small ones hold more, all become one
FETCH_ROWS = 5_000

Class = tuple[str, tuple[str, ...]]  # tenant and labels of a document


@dataclass(frozen=True)
class Part:
    """Some chunks of a generation, searchable. Arrays go by slot."""

    postings: Postings
    chunk_ids: np.ndarray  # (chunks, 16) uint8
    documents: np.ndarray  # (chunks,) uint64, the first half of each one's doc_id
    classes: np.ndarray  # (chunks,) int32, who may see it: a place in the index's list of classes
    by_id: np.ndarray  # (chunks,) int32, slots in the order of the first half of their chunk_id
    alive: np.ndarray | None = None  # (chunks,) bool; None: all


@dataclass(frozen=True)
class View:
    """The index at one moment. Immutable."""

    parts: tuple[Part, ...]
    bm25: BM25
    classes: tuple[Class, ...]
    masks: dict[Any, np.ndarray] = field(default_factory=dict)  # by filter, while this view is the newest

    def search(self, terms: Sequence[str], k: int, allowed: np.ndarray | None = None) -> tuple[list[str], np.ndarray]:
        """Ids of the k best allowed chunks, best first, and the scores of all slots."""
        scores = self.bm25.scores(terms)
        if allowed is not None:
            scores *= allowed
        slots = best(scores, k)
        return [self.chunk_id(slot) for slot in slots], scores

    def chunk_id(self, slot: int) -> str:
        part = int(np.searchsorted(self.bm25.offsets, slot, side="right")) - 1
        return str(self.parts[part].chunk_ids[slot - self.bm25.offsets[part]].tobytes().hex())

    def slots(self, chunk_ids: Sequence[str]) -> np.ndarray:
        """(len(chunk_ids),) int64; -1 for a chunk that is not here."""
        found = np.full(len(chunk_ids), -1, np.int64)
        keys = _keys(chunk_ids)
        for part, offset in zip(self.parts, self.bm25.offsets, strict=False):
            own = _first_half(part.chunk_ids)
            at = np.searchsorted(own, keys, sorter=part.by_id)
            at = np.minimum(at, len(own) - 1)
            slot = part.by_id[at] if len(own) else np.zeros(len(keys), np.int32)
            is_here = own[slot] == keys if len(own) else np.zeros(len(keys), bool)
            if part.alive is not None and len(own):
                is_here &= part.alive[slot]
            found[is_here] = slot[is_here] + offset
        return found

    def seen_by(self, access: Access | None) -> np.ndarray | None:
        """(slots,) bool: what the caller may see; None: everything."""
        if access is None:
            return None
        may = np.array([_may_see(access, one) for one in self.classes], bool)
        if may.all():
            return None
        return np.concatenate([may[part.classes] for part in self.parts])

    def of_documents(self, key: Any, find: Callable[[], Sequence[str]]) -> np.ndarray:
        """(slots,) bool: chunks of the documents that `find` returns, asked for once in this view's life."""
        if key not in self.masks:
            if len(self.masks) >= 64:
                self.masks.clear()
            wanted = _keys(find())
            self.masks[key] = np.concatenate([np.isin(part.documents, wanted) for part in self.parts])
        return self.masks[key]


class LexicalIndex:
    """Follows one generation. Thread-safe; one for each process."""

    def __init__(self, store: Store, generation: Generation, home: Path) -> None:
        self.store, self.generation = store, generation
        self.analyzer = Analyzer(generation.language)
        name = f"{generation.generation_id}-{generation.language}-{TOKENS_VERSION}"
        self._folder = home / "lexical" / database_key(store) / name
        self._lock = threading.Lock()
        self._view: View | None = None
        self._watermark = "0"  # every transaction before it is in the view
        self._applied: dict[str, str] = {}  # doc_id: the transaction after the watermark that is in the view
        self._checked_at = 0.0

    def view(self) -> View:
        """As of a second ago at most; while another thread brings it up to date, as it was."""
        view = self._view
        if view is not None and time.monotonic() - self._checked_at < REFRESH_S:
            return view
        if self._lock.acquire(blocking=view is None):
            try:
                if self._view is None:
                    self._open()
                self._follow()
                self._checked_at = time.monotonic()
            finally:
                self._lock.release()
        assert self._view is not None
        return self._view

    def save(self) -> None:
        """Makes what this process knows the file that others begin with, where that is not nearly the same already."""
        self.view()
        with self._lock:
            view = self._view
            assert view is not None
            if len(_compact(list(view.parts))) == 1 < len(view.parts) or _newest(self._folder) is None:
                self._set([_merged(view.parts)], view.classes)
                self._publish()

    def _open(self) -> None:
        """From the newest file, or from the database, which one process of a machine does for all."""
        import fasteners

        self._folder.mkdir(parents=True, exist_ok=True)
        with fasteners.InterProcessLock(self._folder / "lock"):
            newest = _newest(self._folder)
            if newest is not None:
                with contextlib.suppress(OSError, ValueError, KeyError):  # damaged: read everything again
                    self._read(newest)
                    return
            self._build()
        self._publish()

    def _build(self) -> None:
        classes: dict[Class, int] = {}
        with self.store.pool.connection() as conn, _snapshot(conn):
            self._watermark = _oldest_running(conn)
            statement = _CHUNKS.format(self.generation.table, sql.SQL("true"))
            with conn.cursor("lexical") as cursor:  # a named one: the server sends it piece by piece
                cursor.itersize = FETCH_ROWS
                self._set([self._part(cursor.execute(statement), classes)], tuple(classes))

    def _follow(self) -> None:
        """Takes in what changed since the watermark."""
        assert self._view is not None
        with self.store.pool.connection() as conn, _snapshot(conn):
            watermark = _oldest_running(conn)
            changed = dict(
                conn.execute(
                    "select doc_id, changed_in::text from changes where generation_id = %s and changed_in >= %s::xid8",
                    [self.generation.generation_id, self._watermark],
                ).fetchall()
            )
            fresh = [doc_id for doc_id, xid in changed.items() if self._applied.get(doc_id) != xid]
            classes = {one: i for i, one in enumerate(self._view.classes)}
            part = None
            if fresh:
                statement = _CHUNKS.format(self.generation.table, sql.SQL("doc_id = any(%s)"))
                part = self._part(conn.execute(statement, [fresh]), classes)
        if part is not None:
            parts = [_without(one, _keys(fresh)) for one in self._view.parts]
            self._set(_compact([*parts, part]), tuple(classes))
        self._watermark = watermark
        if len(self._view.parts) == 1 and part is not None:
            self._publish()
        self._applied = {doc_id: xid for doc_id, xid in changed.items() if int(xid) >= int(watermark)}

    def _part(self, rows: Iterable[tuple[Any, ...]], classes: dict[Class, int]) -> Part:
        """`classes` learns those of the rows."""
        ids, documents, own = [], [], []

        def terms() -> Iterable[list[str]]:
            for chunk_id, doc_id, tenant, labels, title, prefix, text in rows:
                ids.append(chunk_id)
                documents.append(doc_id)
                own.append(classes.setdefault((tenant, tuple(labels)), len(classes)))
                yield self.analyzer.terms(f"{title}\n{prefix}\n{text}")

        postings = build_postings(terms())
        chunk_ids = np.frombuffer(bytes.fromhex("".join(ids)), np.uint8).reshape(-1, 16)
        return Part(postings, chunk_ids, _keys(documents), np.asarray(own, np.int32), _sorted_by_id(chunk_ids))

    def _set(self, parts: Sequence[Part], classes: tuple[Class, ...]) -> None:
        bm25 = BM25([part.postings for part in parts], [part.alive for part in parts])
        self._view = View(tuple(parts), bm25, classes)

    def _publish(self) -> None:
        """Writes the only part to a file, whole or not at all, and maps it.

        Older files go, which those who map them do not notice.
        """
        import fasteners

        assert self._view is not None
        part = self._view.parts[0]
        with contextlib.suppress(OSError), fasteners.InterProcessLock(self._folder / "lock"):  # a full disk: unshared
            aside = Path(tempfile.mkdtemp(dir=self._folder))
            part.postings.save(aside)
            for name in _ARRAYS:
                np.save(aside / f"{name}.npy", getattr(part, name), allow_pickle=False)
            about = {"watermark": self._watermark, "classes": self._view.classes}
            (aside / "about.json").write_text(json.dumps(about))
            newest = _newest(self._folder)
            target = self._folder / str(int(newest.name) + 1 if newest else 1)
            aside.rename(target)
            self._read(target)
            for folder in self._folder.iterdir():
                if folder.is_dir() and folder != target:
                    shutil.rmtree(folder, ignore_errors=True)

    def _read(self, folder: Path) -> None:
        about = json.loads((folder / "about.json").read_text())
        part = Part(Postings.load(folder), *(load_array(folder / f"{name}.npy") for name in _ARRAYS))
        self._watermark = str(int(about["watermark"]))
        self._set([part], tuple((tenant, tuple(labels)) for tenant, labels in about["classes"]))


_ARRAYS = ("chunk_ids", "documents", "classes", "by_id")
_CHUNKS = sql.SQL("select chunk_id, doc_id, tenant, labels, title, prefix, text from {} where not is_duplicate and {}")


def database_key(store: Store) -> str:
    """Of this database on this server, wherever it is reached: files of another one must not be taken for its own."""
    with store.pool.connection() as conn:
        statement = (
            "select system_identifier || '-' || oid from pg_control_system(), pg_database"
            " where datname = current_database()"
        )
        return str(scalar(conn, statement))


def update_lexical(store: Store, collection: str, home: Path) -> None:
    """Writes what the live generation's index on this machine begins with, and removes what dropped ones left."""
    live = live_generation(store, collection)
    LexicalIndex(store, live, home).save()
    with store.pool.connection() as conn:
        kept = {str(row[0]) for row in conn.execute("select generation_id from generations")}
    for folder in (home / "lexical" / database_key(store)).glob("*-*"):
        if folder.name.split("-")[0] not in kept:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _snapshot(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """A transaction whose statements all see the same moment."""
    with conn.transaction():
        conn.execute("set transaction isolation level repeatable read, read only")
        yield


def _oldest_running(conn: psycopg.Connection[Any]) -> str:
    """The oldest transaction that had not ended: what came before it is seen."""
    return str(scalar(conn, "select pg_snapshot_xmin(pg_current_snapshot())::text"))


def _newest(folder: Path) -> Path | None:
    numbers = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return max(numbers, key=lambda path: int(path.name), default=None)


def _keys(ids: Sequence[str]) -> np.ndarray:
    """The first 64 bits of ids of 128: (len(ids),) uint64."""
    return np.frombuffer(bytes.fromhex("".join(one[:16] for one in ids)), np.uint64)


def _first_half(chunk_ids: np.ndarray) -> np.ndarray:
    """(chunks, 16) uint8 -> (chunks,) uint64, without copying."""
    return chunk_ids.view(np.uint64)[:, 0]


def _sorted_by_id(chunk_ids: np.ndarray) -> np.ndarray:
    return np.argsort(_first_half(chunk_ids)).astype(np.int32)


def _may_see(access: Access, one: Class) -> bool:
    tenant, labels = one
    return tenant == access.tenant and (not labels or not set(labels).isdisjoint(access.labels))


def _without(part: Part, documents: np.ndarray) -> Part:
    gone = np.isin(part.documents, documents)
    if not gone.any():
        return part
    return replace(part, alive=~gone if part.alive is None else part.alive & ~gone)


def _compact(parts: list[Part]) -> list[Part]:
    """The same chunks in fewer parts, where there are many, or small ones that are no longer small."""
    large, *small = parts
    if sum(len(part.documents) for part in small) > MERGE_SHARE * len(large.documents):
        return [_merged(parts)]
    return [large, _merged(small)] if len(parts) > MAX_PARTS else parts


def _merged(parts: Sequence[Part]) -> Part:
    alive = [np.ones(len(part.documents), bool) if part.alive is None else part.alive for part in parts]
    kept = list(zip(parts, alive, strict=True))
    chunk_ids = np.concatenate([part.chunk_ids[mask] for part, mask in kept])
    return Part(
        postings=merge([part.postings for part in parts], alive),
        chunk_ids=chunk_ids,
        documents=np.concatenate([part.documents[mask] for part, mask in kept]),
        classes=np.concatenate([part.classes[mask] for part, mask in kept]),
        by_id=_sorted_by_id(chunk_ids),
    )
