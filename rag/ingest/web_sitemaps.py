"""A site's sitemaps in, the pages they name out, those that nothing links to among them.

Knows nothing of what becomes of the pages.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rag.config import WebConfig
from rag.ingest.public_net import FetchError, gunzip
from rag.ingest.urls import join_url, origin_of, shown_target
from rag.ingest.web_fetch import Fetcher, Redirect
from rag.ingest.web_page import read_sitemap

logger = logging.getLogger(__name__)

MAX_SITEMAPS = 50


@dataclass
class Sitemaps:
    """What the sitemaps of a site say, in order."""

    pages: dict[str, None] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)  # for now, each with its reason, and no cached one in its place
    limit: str = ""  # that kept the others from being read


def read_sitemaps(fetcher: Fetcher, config: WebConfig, root: str, is_ours: Callable[[str], bool]) -> Sitemaps:
    """Those that the robots.txt of the site of `root` names, and further ones these name on the same site.

    At most MAX_SITEMAPS, and until about as many pages are known as may be visited.
    """
    found = Sitemaps()
    waiting = deque(fetcher.visitor.sitemaps(root))
    while waiting:
        url = waiting.popleft()
        if url in found.asked or origin_of(url) != origin_of(root):
            continue
        if len(found.asked) == MAX_SITEMAPS or len(found.pages) >= config.max_pages:
            is_many = len(found.asked) == MAX_SITEMAPS
            found.limit = f"{MAX_SITEMAPS} sitemaps" if is_many else f"web.max_pages={config.max_pages}"
            break
        found.asked.add(url)
        try:
            texts, is_index = _read(fetcher, config, url)
        except (FetchError, ValueError) as error:
            logger.warning("%s: expected a sitemap, found: %s; going on without it", shown_target(url), error)
            if isinstance(error, FetchError) and error.is_temporary:
                found.failed.append(f"{shown_target(url)}: {error}")
            continue
        places = [place for text in texts if (place := join_url(url, text))]
        if is_index:
            waiting.extend(places)
        else:
            for place in places:
                # enough for the crawl to come to its limit, these sitemaps left out; robots.txt may take time
                if len(found.pages) > config.max_pages + MAX_SITEMAPS or fetcher.visitor.is_worn_out:
                    break
                if place not in found.pages and is_ours(place):
                    found.pages[place] = None
    return found


def _read(fetcher: Fetcher, config: WebConfig, url: str) -> tuple[list[str], bool]:
    """The addresses in a sitemap, and whether they are further sitemaps."""
    found = fetcher.fetch(url, is_sitemap=True)
    if found is None or isinstance(found, Redirect):
        return ([found.target] if found else []), True  # redirected: one more to read
    content = Path(found.path).read_bytes()
    return read_sitemap(gunzip([content], config.max_bytes) if content.startswith(b"\x1f\x8b") else content)
