"""A start URL in, the documents of that website out: crawled breadth-first, in document order, into a local cache.

Stays on the start page's site and below its folder. A page that fails goes on with its reason; one that fails only for
now is listed as it was last time. SourceError where the site as a whole cannot be read: then nothing is listed, and so
nothing taken for vanished.
"""

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from rag.config import WebConfig
from rag.errors import ExtractionError, SourceError
from rag.ingest.extract import decode
from rag.ingest.html import refuse_depth
from rag.ingest.public_net import FetchError, PublicClient, gunzip
from rag.ingest.site_cache import Entry, SiteCache, cached_root
from rag.ingest.urls import canonical_url, folder_of, is_below, join_url, origin_of, split_host
from rag.ingest.web_fetch import Fetcher
from rag.ingest.web_page import PageLinks, has_asset_suffix, page_mime, read_links, read_sitemap
from rag.progress import Progress
from rag.records import DocumentRef, Gap

logger = logging.getLogger(__name__)

MAX_REDIRECTS = 10
MAX_PARAMETERS = 8  # of a query string; filters and calendars combine them without end
MAX_SITEMAPS = 50
NO_LINKS = PageLinks((), None, is_noindex=False, is_nofollow=False)


def crawl(url: str, config: WebConfig, folder: Path, gaps: list[Gap] | None = None) -> Iterator[DocumentRef]:
    """The documents of the site at `url`, or the reason in `error` of those that cannot be fetched.

    `folder` belongs to this start URL: a second crawl costs a 304 for each page, a killed one is gone on with.
    Raises SourceError: the start page or robots.txt cannot be had, the site stops answering, another crawl is at work.
    """
    start = canonical_url(url)
    with (
        SiteCache(folder) as cache,
        closing(PublicClient(config)) as client,
        Progress("crawl", None, "pages") as progress,
    ):
        site = _Site(config, cache, client)
        yield from site.documents(start, progress)
        cache.finish(site.seen)


def site_root(url: str, folder: Path) -> str:
    """The folder URL that the last crawl of `url` into `folder` stayed below: elsewhere if the start redirected."""
    return cached_root(folder) or folder_of(canonical_url(url))


class _Site:
    """One crawl. Of the URLs `seen`, some wait in the queue, the others were `visited`, and some of these `listed`."""

    def __init__(self, config: WebConfig, cache: SiteCache, client: PublicClient) -> None:
        self.config, self.cache, self.client = config, cache, client
        self.fetcher = Fetcher(config, cache, client)
        self.root = ""  # known when the start page's redirects are
        self.seen: set[str] = set()
        self.queue: deque[tuple[str, int]] = deque()  # URL, depth
        self.visited: set[str] = set()
        self.listed: set[str] = set()
        self.preferred: set[str] = set()  # named as canonical by some page
        self.gave_way: dict[str, Entry] = {}  # canonical URL, not visited yet -> the page that named it
        self.limits_hit: dict[str, None] = {}

    def documents(self, start: str, progress: Progress) -> Iterator[DocumentRef]:
        entry = self._enter(start)
        progress.update(1)
        yield from self._read(entry, 0)
        for place in self._sitemap_pages():
            self._enqueue(place, 1)
        while self.queue and len(self.visited) < self.config.max_pages:
            url, depth = self.queue.popleft()
            yield from self._visit(url, depth)
            progress.update(1)
        yield from map(_document, self.gave_way.values())
        self._report()

    def _visit(self, url: str, depth: int) -> Iterator[DocumentRef]:
        self.visited.add(url)
        gave_way, page = self.gave_way.pop(url, None), None
        try:
            page = self._load(url)
        except FetchError as error:
            yield DocumentRef(url, page_mime("", url) or "text/html", error=str(error))
        if page:
            yield from self._read(page, depth)
        elif gave_way:  # for nothing: some sites redirect the canonical page to the one that names it
            yield _document(gave_way)

    def _report(self) -> None:
        if self.limits_hit:
            limits = " and ".join(self.limits_hit)
            logger.warning("%s: crawl cut short: linked pages beyond web.%s were not visited", self.root, limits)
        stale = self.fetcher.stale
        if stale:
            url, reason = next(iter(stale.items()))
            logger.warning(
                "%s: %d pages failed for now and are used as last fetched; the first is %s: %s",
                self.root,
                len(stale),
                url,
                reason,
            )

    def _enter(self, start: str) -> Entry:
        """The start page, after its redirects, which say where the site is. Only this page may lead elsewhere."""
        self.seen.add(start)
        self.visited.add(start)
        try:
            entry = self._load(start)
        except FetchError as error:
            raise SourceError(f"{start}: expected a page, found: {error}; check the URL or try again later") from None
        if entry is None:
            raise SourceError(
                f"{start}: expected a page that crawlers may read, found none (robots.txt forbids it, it is gone,"
                " or it is no document); start at another page"
            )
        if self.fetcher.stale:
            raise SourceError(f"{start}: expected a page, found: {self.fetcher.stale[entry.url]}; try again later")
        folder = folder_of(start)
        moved = origin_of(entry.url) + folder[len(origin_of(start)) :]
        self.root = moved if is_below(entry.url, moved) else folder_of(entry.url)
        self.cache.root = self.root
        return entry

    def _read(self, entry: Entry, depth: int) -> Iterator[DocumentRef]:
        """The page as a document, unless it asks not to be one; its links go into the queue."""
        found = _links_of(entry)
        if not found.is_nofollow:
            for link in found.links:
                self._enqueue(link, depth + 1)
        if not found.is_noindex and not self._yields_to(entry, found.canonical, depth):
            self.listed.add(entry.url)
            yield _document(entry)

    def _enqueue(self, url: str, depth: int) -> None:
        if url in self.seen or not self._is_ours(url):
            return
        if depth > self.config.max_depth:
            self.limits_hit[f"max_depth={self.config.max_depth}"] = None
        elif len(self.visited) + len(self.queue) >= self.config.max_pages:  # its turn would never come
            self.limits_hit[f"max_pages={self.config.max_pages}"] = None
        else:
            self.seen.add(url)
            self.queue.append((url, depth))

    def _is_ours(self, url: str) -> bool:
        if not is_below(url, self.root) or has_asset_suffix(url):
            return False
        return urlsplit(url).query.count("&") < MAX_PARAMETERS and self.fetcher.visitor.may_visit(url)

    def _yields_to(self, entry: Entry, canonical: str | None, depth: int) -> bool:
        """Whether another page stands for this one. Two that name each other do not both give way."""
        if canonical is None or canonical == entry.url or entry.url in self.preferred or not self._is_ours(canonical):
            return False
        if canonical in self.listed or canonical in self.visited:
            return canonical in self.listed
        self.preferred.add(canonical)
        self.gave_way.setdefault(canonical, entry)
        if canonical not in self.seen:
            self.seen.add(canonical)
            self.queue.appendleft((canonical, depth))
        return True

    def _load(self, url: str) -> Entry | None:
        """The page at `url` or where it redirects to; None where that is none of ours, or listed already."""
        trail = [url]
        while True:
            found = self.fetcher.fetch(trail[-1])
            if not isinstance(found, str):
                return found
            if found in trail:
                raise FetchError(f"redirects in a circle, back to {found}")
            if len(trail) > MAX_REDIRECTS:
                raise FetchError(f"expected at most {MAX_REDIRECTS} redirects, found more")
            if self.root and not self._is_ours(found):
                self._refuse_private(found)
                return None
            if found in self.seen:
                return None
            self.seen.add(found)
            trail.append(found)

    def _refuse_private(self, url: str) -> None:
        """A redirect that leaves the site is not followed; one into the private network is worth a line."""
        if origin_of(url) == origin_of(self.root):
            return
        try:
            self.client.checked(*split_host(url))
        except FetchError as error:
            if not error.is_temporary:
                raise FetchError(f"redirects to {url}; {error}") from None

    def _sitemap_pages(self) -> list[str]:
        """Pages named in the site's sitemaps, about as many as may be visited."""
        waiting, done, pages = deque(self.fetcher.visitor.sitemaps(self.root)), set[str](), dict[str, None]()
        while waiting and len(done) < MAX_SITEMAPS and len(pages) < self.config.max_pages:
            url = waiting.popleft()
            if url in done or origin_of(url) != origin_of(self.root):
                continue
            done.add(url)
            self.seen.add(url)
            try:
                places, is_index = self._sitemap(url)
            except (FetchError, ValueError) as error:
                logger.warning("%s: expected a sitemap, found: %s; going on without it", url, error)
                continue
            found = [place for text in places if (place := join_url(url, text))]
            if is_index:
                waiting.extend(found)
            else:
                pages |= dict.fromkeys(place for place in found if self._is_ours(place))
        return list(pages)

    def _sitemap(self, url: str) -> tuple[list[str], bool]:
        """Fetched and cached as a page is, so what only a sitemap leads to does not vanish while that fails."""
        found = self.fetcher.fetch(url, is_sitemap=True)
        if found is None or isinstance(found, str):
            return ([found] if found else []), True  # redirected: one more to read
        content = Path(found.path).read_bytes()
        return read_sitemap(gunzip([content], self.config.max_bytes) if content.startswith(b"\x1f\x8b") else content)


def _document(entry: Entry) -> DocumentRef:
    return DocumentRef(entry.url, entry.mime, path=entry.path)


def _links_of(entry: Entry) -> PageLinks:
    text = decode(Path(entry.path).read_bytes(), entry.mime) if entry.mime == "text/html" else ""
    try:
        refuse_depth(text)
    except ExtractionError:  # its reason reaches the ledger when the document is read
        return NO_LINKS
    return read_links(text, entry.url, entry.robots)
