"""One URL in, the page out: from the site, from the cache where the site says or has to be excused, or its redirect.

Knows nothing of links, folders or limits.
"""

from dataclasses import dataclass
from http.client import NOT_MODIFIED, OK

from rag.config import WebConfig
from rag.errors import SourceError
from rag.ingest.public_net import FetchError, PublicClient, Reply
from rag.ingest.site_cache import Entry, SiteCache
from rag.ingest.urls import join_url, origin_of, shown_target
from rag.ingest.visitor import REDIRECTS, Visitor
from rag.ingest.web_page import is_asset, is_supported, page_mime, with_charset

MAX_FAILURES_IN_A_ROW = 10  # then the site is down, and what it did not show is not gone
GONE = {404, 410}
MOVED = {301, 308}  # for good; another redirect, to a login page say, may be none tomorrow
FOR_NOW = {408, 425}  # besides 5xx, and 429, which has been waited for


class NoSuchPage(FetchError):
    """A broken link: nothing is there, and nothing was."""


@dataclass(frozen=True)
class Redirect:
    """Where the site says that the page is. Its cached self is kept: whether that place is of use is not known yet."""

    target: str
    is_temporary: bool


class Fetcher:
    """`stale` are the pages that were taken from the cache because they fail for now, and why they do."""

    def __init__(self, config: WebConfig, cache: SiteCache, client: PublicClient) -> None:
        self.visitor = Visitor(client, config)
        self.stale: dict[str, str] = {}
        self._cache = cache
        self._num_in_a_row = 0

    def fetch(self, url: str, is_sitemap: bool = False) -> Entry | Redirect | None:
        """The page, from the site or the cache; or where it redirects to; or None: forbidden, gone, no document.

        A page that fails for now is its cached self: an index that is built anew must not lose it, its links lead to
        other pages, and the report warns. So is a sitemap that fails for good. Where there is none, the failure goes
        to the ledger.
        """
        if not self.visitor.may_visit(url):
            return None
        entry = self._cache.entry(url)
        if entry and entry.is_fresh:
            return entry
        try:
            reply = self._reply(url, entry.conditions if entry else {}, is_sitemap)
            return self._judge(url, entry, reply, is_sitemap)
        except FetchError as error:
            if entry is None or not (error.is_temporary or is_sitemap):
                raise
            self.stale[url] = str(error)
            return entry

    def _reply(self, url: str, conditions: dict[str, str], is_sitemap: bool) -> Reply:
        try:
            reply = self.visitor.get(url, conditions, lambda kind: is_sitemap or is_supported(page_mime(kind, url)))
        except FetchError as error:
            self._num_in_a_row = self._num_in_a_row + 1 if error.is_temporary else 0
            if self._num_in_a_row < MAX_FAILURES_IN_A_ROW:
                raise
            raise SourceError(
                f"{origin_of(url)}: expected replies, found {self._num_in_a_row} failures in a row, the last: {error};"
                " run again later, what was fetched is kept"
            ) from None
        self._num_in_a_row = 0
        return reply

    def _judge(self, url: str, entry: Entry | None, reply: Reply, is_sitemap: bool) -> Entry | Redirect | None:
        if reply.status == OK:
            return self._keep(url, reply, is_sitemap)
        if reply.status == NOT_MODIFIED and entry:
            return self._cache.confirm(entry)
        if reply.status in REDIRECTS:
            return Redirect(_target(url, reply.headers.get("location", "")), reply.status not in MOVED)
        if reply.status in GONE:
            if not self._cache.was_here(url):
                raise NoSuchPage(reply.reason)
            self._cache.mark_gone(url)
            return None
        raise FetchError(reply.reason, is_temporary=reply.status >= 500 or reply.status in FOR_NOW)

    def _keep(self, url: str, reply: Reply, is_sitemap: bool) -> Entry | None:
        kind = reply.headers.get("content-type", "")
        mime = page_mime(kind, url)
        if is_sitemap or is_supported(mime):
            body = reply.body if is_sitemap else with_charset(reply.body, kind, mime)
            return self._cache.keep(url, body, mime, dict(reply.headers))
        if is_asset(mime):
            self._cache.forget(url)
            return None
        raise FetchError(f"expected a document of a supported type, found {mime[:100] or 'no content type'}")


def _target(url: str, location: str) -> str:
    target = join_url(url, location) if location else None
    if target is None:
        raise FetchError(f"redirects to {shown_target(location) or 'nowhere'}: expected a web page")
    if url.startswith("https:") and target.startswith("http:"):
        raise FetchError(f"redirects to {shown_target(target)}: expected to stay with https")
    return target
