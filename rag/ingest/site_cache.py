"""What a site said the last time, on disk: a row for each URL in SQLite, bodies as files named by their content.

One folder for each start URL. A row is written after its body is whole on disk, so a kill leaves no half page; the next
crawl takes what the killed one fetched as fresh. Knows nothing of HTTP, links or robots.
"""

import hashlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import fasteners

from rag.errors import SourceError
from rag.ingest.files import resolved

RESUME_S = 24 * 3600.0  # a crawl killed longer ago than this is begun anew
SCHEMA = """
CREATE TABLE IF NOT EXISTS pages (
    url TEXT PRIMARY KEY, mime TEXT NOT NULL, robots TEXT NOT NULL, etag TEXT NOT NULL, last_modified TEXT NOT NULL,
    body TEXT NOT NULL, checked_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS crawl (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
NEW_PAGE = "INSERT OR REPLACE INTO pages VALUES (?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class Entry:
    """A page in the cache; `path` is its body."""

    url: str
    mime: str
    robots: str  # the X-Robots-Tag header
    etag: str
    last_modified: str
    path: str
    is_fresh: bool = field(default=True, compare=False)  # fetched or confirmed by this crawl

    @property
    def conditions(self) -> dict[str, str]:
        """Request headers that let the server say 304."""
        both = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in both.items() if value}


class SiteCache:
    """`with SiteCache(folder) as cache`: one crawl at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = resolved(folder)
        self.bodies = self.folder / "bodies"
        self.started = 0.0

    def __enter__(self) -> "SiteCache":
        try:
            self.bodies.mkdir(parents=True, exist_ok=True)
            self._lock = fasteners.InterProcessLock(self.folder / "lock")
            if not self._lock.acquire(blocking=False):
                raise SourceError(f"{self.folder}: expected no other crawl, found one at work; wait for it to end")
            try:
                self._db = sqlite3.connect(self.folder / "manifest.sqlite", isolation_level=None)
                self._db.executescript(SCHEMA)
                self._begin()
            except BaseException:
                self._lock.release()
                raise
        except (OSError, sqlite3.Error) as error:
            raise SourceError(f"{self.folder}: expected a usable cache, found {error}; remove the folder") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        self._lock.release()

    def _begin(self) -> None:
        before, now = float(self._value("unfinished") or 0), time.time()
        self.started = before if now - RESUME_S < before <= now else now
        self._set("unfinished", str(self.started))

    def finish(self, seen: Collection[str]) -> None:
        """The crawl is complete: what it has not `seen` is forgotten, and bodies that no page has any more."""
        with self._db:
            self._db.execute("BEGIN")
            urls = [url for (url,) in self._db.execute("SELECT url FROM pages")]
            self._db.executemany("DELETE FROM pages WHERE url = ?", [(url,) for url in urls if url not in seen])
            self._set("unfinished", "")
        used = {body for (body,) in self._db.execute("SELECT body FROM pages")}
        for path in self.bodies.iterdir():
            if path.name not in used:
                path.unlink(missing_ok=True)

    @property
    def root(self) -> str:
        """The folder URL the last crawl stayed below; "" before the first."""
        return self._value("root")

    @root.setter
    def root(self, url: str) -> None:
        self._set("root", url)

    def entry(self, url: str) -> Entry | None:
        """The page as last fetched; None where there is none, or it was gone."""
        row = self._db.execute(
            "SELECT mime, robots, etag, last_modified, body, checked_at FROM pages WHERE url = ? AND body != ''", (url,)
        ).fetchone()
        if row is None or not (self.bodies / row[4]).is_file():
            return None
        mime, robots, etag, last_modified, body, checked_at = row
        path = str(self.bodies / body)
        return Entry(url, mime, robots, etag, last_modified, path, is_fresh=checked_at >= self.started)

    def was_here(self, url: str) -> bool:
        """Whether the page has been fetched by a crawl that saw it linked, also if it is gone by now."""
        return self._db.execute("SELECT 1 FROM pages WHERE url = ?", (url,)).fetchone() is not None

    def keep(self, url: str, content: bytes, mime: str, headers: dict[str, str]) -> Entry:
        """Puts a fetched page in place of the one before."""
        name = hashlib.sha256(content).hexdigest()[:32]
        self._write_body(name, content)
        robots, etag, last_modified = (headers.get(h, "") for h in ("x-robots-tag", "etag", "last-modified"))
        self._db.execute(NEW_PAGE, (url, mime, robots, etag, last_modified, name, time.time()))
        return Entry(url, mime, robots, etag, last_modified, str(self.bodies / name))

    def confirm(self, entry: Entry) -> Entry:
        """The server said that the page is what it was."""
        self._db.execute("UPDATE pages SET checked_at = ? WHERE url = ?", (time.time(), entry.url))
        return entry

    def mark_gone(self, url: str) -> None:
        self._db.execute("UPDATE pages SET body = '' WHERE url = ?", (url,))

    def forget(self, url: str) -> None:
        self._db.execute("DELETE FROM pages WHERE url = ?", (url,))

    def _write_body(self, name: str, content: bytes) -> None:
        if (self.bodies / name).exists():  # whole: it got its name by being renamed
            return
        handle, temporary = tempfile.mkstemp(dir=self.bodies, prefix=".")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, self.bodies / name)

    def _value(self, name: str) -> str:
        row = self._db.execute("SELECT value FROM crawl WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def _set(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO crawl VALUES (?, ?)", (name, value))


def cached_root(folder: Path) -> str:
    """The root of the last crawl into `folder`, "" where there was none. Takes no lock and creates nothing."""
    path = folder.absolute() / "manifest.sqlite"
    if not path.exists():
        return ""
    try:
        db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        try:
            row = db.execute("SELECT value FROM crawl WHERE name = 'root'").fetchone()
        finally:
            db.close()
    except sqlite3.Error:
        return ""
    return str(row[0]) if row else ""
