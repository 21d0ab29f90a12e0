"""How to visit a site without being a nuisance: its robots.txt, a pause between requests, patience when it is busy.

One URL in, one final reply out. Knows nothing of pages, links or caches.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from protego import Protego

from rag.config import WebConfig
from rag.errors import SourceError
from rag.ingest.public_net import FetchError, PublicClient, Reply
from rag.ingest.urls import join_url, origin_of, shown_target

logger = logging.getLogger(__name__)

WILDCARD = re.compile("[*$]")
BUSY = {429, 502, 503, 504}
REDIRECTS = {301, 302, 303, 307, 308}
BACKOFF_S = 0.5  # before the second attempt; doubles
MAX_PAUSE_S = 60.0  # of one pause, whatever Retry-After says
MAX_CRAWL_DELAY_S = 10.0
MAX_ROBOTS_BYTES = 512 * 1024  # RFC 9309 asks for 500 KiB at least
MAX_ROBOTS_HOPS = 5
MAX_WILDCARDS_PER_PAGE = 1_000_000  # rules matched per page that may be visited, some 0.4 s: 1,000 rules, 1,000 links


class Visitor:
    """One request at a time, to one site at a time."""

    def __init__(self, client: PublicClient, config: WebConfig) -> None:
        self._client, self._config = client, config
        self._robots: dict[str, Protego] = {}
        self._num_wildcards: dict[str, int] = {}  # rules that are matched one by one, by site
        self._num_matched = 0
        self._delay_s, self._last = config.delay_s, 0.0

    def get(
        self, url: str, headers: Mapping[str, str] | None = None, wanted: Callable[[str], bool] = lambda mime: True
    ) -> Reply:
        """As PublicClient.get, tried again where that may help; a server still busy is a FetchError."""
        for attempt in range(self._config.max_retries + 1):
            is_last = attempt == self._config.max_retries
            pause_s = min(BACKOFF_S * 2**attempt, MAX_PAUSE_S)
            self._wait()
            try:
                reply = self._client.get(url, headers, wanted)
            except FetchError as error:
                if is_last or not error.is_temporary:
                    raise
                logger.info("%s: %s; trying again in %.1f s", shown_target(url), error, pause_s)
            else:
                if reply.status not in BUSY:
                    return reply
                if is_last:
                    break
                pause_s = max(pause_s, _retry_after_s(reply.headers.get("retry-after", "")))
                logger.info("%s: %s; trying again in %.1f s", shown_target(url), reply.reason, pause_s)
            finally:
                self._last = time.monotonic()
            time.sleep(pause_s)
        raise FetchError(f"{reply.reason}, {self._config.max_retries + 1} times", is_temporary=True)

    def may_visit(self, url: str) -> bool:
        """Whether the site's robots.txt lets us. SourceError where the site cannot say."""
        site = origin_of(url)
        rules = self._rules(site)
        self._num_matched += self._num_wildcards[site]
        return rules.can_fetch(url, self._config.user_agent)

    @property
    def is_worn_out(self) -> bool:
        """Whether a robots.txt has asked for more work than a crawl is worth: thousands of rules for each link."""
        return self._num_matched > MAX_WILDCARDS_PER_PAGE * self._config.max_pages

    def sitemaps(self, url: str) -> list[str]:
        """The sitemaps named in the robots.txt of the site of `url`, those of the same site."""
        site = origin_of(url)
        places = [join_url(f"{site}/", place) for place in self._rules(site).sitemaps]
        return [place for place in dict.fromkeys(places) if place and origin_of(place) == site]

    def _wait(self) -> None:
        time.sleep(max(0.0, self._last + self._delay_s - time.monotonic()))

    def _rules(self, origin: str) -> Protego:
        if origin not in self._robots:
            text = self._robots_txt(origin)
            rules = Protego.parse(text)
            self._num_wildcards[origin] = sum(1 for line in text.splitlines() if WILDCARD.search(line))
            wished_s = float(rules.crawl_delay(self._config.user_agent) or 0.0)
            self._delay_s = max(self._config.delay_s, min(wished_s, MAX_CRAWL_DELAY_S))
            self._robots[origin] = rules
        return self._robots[origin]

    def _robots_txt(self, origin: str) -> str:
        """Rules, or "" where there are none. A site that cannot answer is not crawled: it may forbid everything."""
        url = f"{origin}/robots.txt"
        for _ in range(MAX_ROBOTS_HOPS + 1):
            try:
                reply = self.get(url)
            except FetchError as error:
                raise _no_rules(url, str(error)) from None
            if reply.status == 200:
                return reply.body[:MAX_ROBOTS_BYTES].decode("utf-8-sig", "replace")
            if reply.status >= 500:
                raise _no_rules(url, reply.reason)
            target = join_url(url, reply.headers.get("location", "")) if reply.status in REDIRECTS else None
            if target is None:
                return ""
            url = target
        return ""


def _no_rules(url: str, found: str) -> SourceError:
    return SourceError(f"{shown_target(url)}: expected rules for crawlers or 404, found: {found}; try again later")


def _retry_after_s(value: str) -> float:
    """Seconds that a Retry-After header asks for, a number or a date; capped, 0 where it says nothing."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), MAX_PAUSE_S) if seconds == seconds else 0.0
