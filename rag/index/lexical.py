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
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from rag.index.bm25 import Postings, build_with_pairs, group, load_array
from rag.index.generations import live_generation
from rag.index.lexical_view import Class, Part, View, compact, keys, merged, sorted_by_id, without
from rag.index.store import Generation, Store, scalar
from rag.index.tokens import TOKENS_VERSION, Analyzer

REFRESH_S = 1.0  # how old what a search sees may be
FETCH_ROWS = 5_000


class LexicalIndex:
    """Follows one generation. Thread-safe; one for each process."""

    def __init__(self, store: Store, generation: Generation, home: Path) -> None:
        self.store, self.generation = store, generation
        name = f"{generation.generation_id}-{generation.language}-{TOKENS_VERSION}"
        self._folder = home / "lexical" / database_key(store) / name
        self._lock = threading.Lock()
        self._view: View | None = None
        self._watermark = "0"  # every transaction before it is in the view
        self._applied: dict[str, str] = {}  # doc_id: the transaction after the watermark that is in the view
        self._checked_at = 0.0

    @cached_property
    def analyzer(self) -> Analyzer:
        """Made when there is a text to cut: a run that finds nothing changed has none."""
        return Analyzer(self.generation.language)

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
            if len(compact(list(view.parts))) == 1 < len(view.parts) or _newest(self._folder) is None:
                self._view = View([merged(view.parts)], view.classes)
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
                part = self._part(cursor.execute(statement), classes)
            self._view = View([part], tuple(classes))

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
            parts = [without(one, keys(fresh)) for one in self._view.parts]
            self._view = View(compact([*parts, part]), tuple(classes))
        self._watermark = watermark
        if len(self._view.parts) == 1 and part is not None:
            self._publish()
        self._applied = {doc_id: xid for doc_id, xid in changed.items() if int(xid) >= int(watermark)}

    def _part(self, rows: Iterable[tuple[Any, ...]], classes: dict[Class, int]) -> Part:
        """`classes` learns those of the rows."""
        ids: list[str] = []
        of_chunks: list[str] = []
        own: list[int] = []

        def terms() -> Iterable[list[str]]:
            for chunk_id, doc_id, tenant, labels, title, prefix, text in rows:
                ids.append(chunk_id)
                of_chunks.append(doc_id)
                own.append(classes.setdefault((tenant, tuple(labels)), len(classes)))
                yield self.analyzer.terms(f"{title}\n{prefix}\n{text}")

        postings, pairs = build_with_pairs(terms())
        chunk_ids = np.frombuffer(bytes.fromhex("".join(ids)), np.uint8).reshape(-1, 16)
        documents, first, owner = np.unique(keys(of_chunks), return_index=True, return_inverse=True)
        whole = group(postings, owner, len(documents))
        by_id, halves = sorted_by_id(chunk_ids)
        return Part(
            postings=postings,
            whole=whole,
            pairs=replace(group(pairs, owner, len(documents)), lengths=whole.lengths),
            chunk_ids=chunk_ids,
            owner=owner.astype(np.int32),
            by_id=by_id,
            halves=halves,
            documents=documents,
            classes=np.asarray(own, np.int32)[first],
        )

    def _publish(self) -> None:
        """Writes the only part to a file, whole or not at all, and maps it.

        Older files go, which those who map them do not notice.
        """
        import fasteners

        assert self._view is not None
        part = self._view.parts[0]
        with contextlib.suppress(OSError), fasteners.InterProcessLock(self._folder / "lock"):  # a full disk: unshared
            aside = Path(tempfile.mkdtemp(dir=self._folder))
            part.postings.save(aside / "chunks")
            part.whole.save(aside / "whole")
            part.pairs.save(aside / "pairs")
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
        chunks, whole, pairs = (Postings.load(folder / name) for name in ("chunks", "whole", "pairs"))
        part = Part(chunks, whole, pairs, *(load_array(folder / f"{name}.npy") for name in _ARRAYS))
        self._watermark = str(int(about["watermark"]))
        self._view = View([part], tuple((tenant, tuple(labels)) for tenant, labels in about["classes"]))


_ARRAYS = ("chunk_ids", "owner", "by_id", "halves", "documents", "classes")
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
