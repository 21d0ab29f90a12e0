"""A start URL in, the documents of that website out: crawled breadth-first, in document order, into a local cache.

Stays on the start page's site and below its folder. A page that fails goes on with its reason; one that fails only for
now is listed as it was last time. What limits and failures kept from sight is a gap. SourceError where the site as a
whole cannot be read: then nothing is listed, and so nothing taken for vanished.
"""

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from rag.config import WebConfig
from rag.errors import ExtractionError, SourceError
from rag.ingest.public_net import FetchError, PublicClient
from rag.ingest.site_cache import Entry, SiteCache, cached_root
from rag.ingest.urls import canonical_url, folder_of, is_below, origin_of, shown_target, split_host
from rag.ingest.web_fetch import Fetcher, NoSuchPage, Redirect
from rag.ingest.web_page import PageLinks, has_asset_suffix, links_of, page_mime, read_links
from rag.ingest.web_sitemaps import read_sitemaps
from rag.progress import Progress
from rag.records import Document, DocumentRef, Gap

logger = logging.getLogger(__name__)

MAX_REDIRECTS = 10
MAX_PARAMETERS = 8  # of a query string; filters and calendars combine them without end


def crawl(url: str, config: WebConfig, folder: Path, gaps: list[Gap] | None = None) -> Iterator[DocumentRef]:
    """The documents of the site at `url`, or the reason in `error` of those that cannot be fetched.

    `folder` belongs to this start URL: a second crawl costs a 304 for each page, a killed one is gone on with. `gaps`
    gets what the crawl could not see, at its end.
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
        if gaps is not None:
            gaps += site.gaps()
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
        self.failed: dict[str, str] = {}  # pages that nothing is known of, also not what they link to -> why
        self.unread: list[str] = []  # sitemaps that nothing is known of, and why

    def documents(self, start: str, progress: Progress) -> Iterator[DocumentRef]:
        entry = self._enter(start)
        progress.update(1)
        yield from self._read(entry, 0)
        self._enter_sitemaps()
        while self.queue and len(self.visited) < self.config.max_pages:
            url, depth = self.queue.popleft()
            yield from self._visit(url, depth)
            progress.update(1)
        if self.queue:  # a canonical page goes to its head, limit or not
            self.limits_hit[self._max_pages()] = None
        yield from map(_document, self.gave_way.values())
        self._report()

    def gaps(self) -> list[Gap]:
        """At the end of the crawl. A page that failed hides others only if it was there once: nobody knows here."""
        unknown = self.failed.keys() | {url for url, _ in self.queue}
        visited = frozenset(self.seen - unknown)
        reasons = list(self.unread)
        if self.limits_hit:
            reasons.append(f"crawl cut short by {self._limits()}")
        return [Gap(self.root, reason, url, visited) for url, reason in self.failed.items()] + [
            Gap(self.root, reason, visited=visited) for reason in reasons
        ]

    def _visit(self, url: str, depth: int) -> Iterator[DocumentRef]:
        self.visited.add(url)
        gave_way, page = self.gave_way.pop(url, None), None
        trail = [url]
        try:
            page = self._load(trail)
        except FetchError as error:
            yield self._failure(trail, error, depth)
        if page:
            yield from self._read(page, depth)
        elif gave_way:  # for nothing: some sites redirect the canonical page to the one that names it
            yield _document(gave_way)

    def _failure(self, trail: list[str], error: FetchError, depth: int) -> DocumentRef:
        """For the ledger. What the page leads to is visited nevertheless, as far as the cache knows."""
        entry = self._last_fetched(trail)
        if entry:
            found = self._follow_links(entry, depth)
            if found.canonical:
                self._enqueue(found.canonical, depth)
        elif not isinstance(error, NoSuchPage):
            self.failed |= dict.fromkeys(trail, str(error))
        url = entry.url if entry else trail[0]
        return DocumentRef(url, page_mime("", url) or "text/html", error=str(error))

    def _last_fetched(self, trail: list[str]) -> Entry | None:
        """The first page of the trail that was one the last time."""
        return next((entry for url in trail if (entry := self.cache.entry(url))), None)

    def _limits(self) -> str:
        return " and ".join(self.limits_hit)

    def _report(self) -> None:
        if self.limits_hit:
            logger.warning("%s: crawl cut short: linked pages beyond %s were not visited", self.root, self._limits())
        stale = self.fetcher.stale
        if stale:
            url, reason = next(iter(stale.items()))
            logger.warning(
                "%s: %d pages failed for now and are used as last fetched; the first is %s: %s",
                self.root,
                len(stale),
                shown_target(url),
                reason,
            )

    def _enter(self, start: str) -> Entry:
        """The start page, after its redirects, which say where the site is. Only this page may lead elsewhere."""
        self.seen.add(start)
        self.visited.add(start)
        try:
            entry = self._load([start])
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

    def _enter_sitemaps(self) -> None:
        """What only a sitemap leads to does not vanish while that fails: it is cached, or a gap."""
        found = read_sitemaps(self.fetcher, self.config, self.root, self._is_ours)
        self.seen |= found.asked
        self.unread = found.failed
        for place in found.pages:
            self._enqueue(place, 1)
        if found.limit:
            self.limits_hit[found.limit] = None
        self._is_worn_out()  # also where no sitemap named a page that is allowed

    def _read(self, entry: Entry, depth: int) -> Iterator[DocumentRef]:
        """The page as a document, unless it asks not to be one; its links go into the queue."""
        found = self._follow_links(entry, depth)
        if not found.is_noindex and not self._yields_to(entry, found.canonical, depth):
            self.listed.add(entry.url)
            yield _document(entry)

    def _follow_links(self, entry: Entry, depth: int) -> PageLinks:
        found = self._links_of(entry)
        if not found.is_nofollow:
            for link in found.links:
                self._enqueue(link, depth + 1)
        return found

    def _links_of(self, entry: Entry) -> PageLinks:
        by_header = read_links("", entry.url, entry.robots)
        if entry.mime != "text/html":
            return by_header
        try:
            found = links_of(Document(entry.url, entry.mime, Path(entry.path).read_bytes()))
        except ExtractionError as error:  # the ledger gets a reason too, when the document is read
            self.failed[entry.url] = f"its links cannot be read: {error}"
            return by_header
        return replace(
            found,
            is_noindex=found.is_noindex or by_header.is_noindex,
            is_nofollow=found.is_nofollow or by_header.is_nofollow,
        )

    def _enqueue(self, url: str, depth: int) -> None:
        limit = self._limit_at(depth)
        if url in self.seen or limit in self.limits_hit:  # asked first: robots.txt may be dear
            return
        if self._is_worn_out() or not self._is_ours(url):
            return
        if limit:
            self.limits_hit[limit] = None
        else:
            self.seen.add(url)
            self.queue.append((url, depth))

    def _is_worn_out(self) -> bool:
        if self.fetcher.visitor.is_worn_out:
            self.limits_hit["too many rules in robots.txt"] = None
        return self.fetcher.visitor.is_worn_out

    def _limit_at(self, depth: int) -> str:
        """What keeps a page at this depth from being visited; "" where nothing does."""
        if depth > self.config.max_depth:
            return f"web.max_depth={self.config.max_depth}"
        is_full = len(self.visited) + len(self.queue) >= self.config.max_pages  # its turn would never come
        return self._max_pages() if is_full else ""

    def _max_pages(self) -> str:
        return f"web.max_pages={self.config.max_pages}"

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

    def _load(self, trail: list[str]) -> Entry | None:
        """The page that `trail`, one URL, redirects to, if it does; None where that is none of ours, or listed already.

        `trail` gets the pages on the way.
        """
        while isinstance(found := self.fetcher.fetch(trail[-1]), Redirect):
            if found.target in trail:
                raise FetchError(f"redirects in a circle, back to {shown_target(found.target)}")
            if len(trail) > MAX_REDIRECTS:
                raise FetchError(f"expected at most {MAX_REDIRECTS} redirects, found more")
            if not self._is_new(found.target):
                return self._turned_away(trail, found)
            self.seen.add(found.target)
            self.visited.add(found.target)  # a request as any other: it counts
            trail.append(found.target)
        self._forget(trail[:-1])
        return found

    def _is_new(self, target: str) -> bool:
        """Whether a redirect is to be followed: the start page's anywhere, others to pages of ours that nobody saw."""
        if self.root and not self._is_ours(target):
            self._refuse_private(target)
            return False
        return target not in self.seen

    def _turned_away(self, trail: list[str], found: Redirect) -> Entry | None:
        """A redirect for now, to a login page say, leaves the page as last fetched; one for good says it is gone."""
        if not found.is_temporary:
            self._forget(trail)
            return None
        reason = f"redirects for now to {shown_target(found.target)}"
        entry = self._last_fetched(trail)
        if entry:
            self.fetcher.stale[entry.url] = reason
        else:
            self.failed |= dict.fromkeys(trail, reason)
        return entry

    def _forget(self, trail: list[str]) -> None:
        """They are elsewhere now: no later crawl takes them for what they were."""
        for url in trail:
            self.cache.forget(url)

    def _refuse_private(self, url: str) -> None:
        """A redirect that leaves the site is not followed; one into the private network is worth a line."""
        if origin_of(url) == origin_of(self.root):
            return
        try:
            self.client.checked(*split_host(url))
        except FetchError as error:
            if not error.is_temporary:
                raise FetchError(f"redirects to {shown_target(url)}; {error}") from None


def _document(entry: Entry) -> DocumentRef:
    return DocumentRef(entry.url, entry.mime, path=entry.path)
