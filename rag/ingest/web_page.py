"""A fetched page in, what a crawler has to know of it out: its type, its text's encoding, its links, its wishes.

Knows nothing of HTTP connections, queues or caches.
"""

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from rag.ingest.encodings import LATIN, codec
from rag.ingest.extract import ISOLATED_BYTES, decode
from rag.ingest.html_tree import parse_html
from rag.ingest.isolate import ask_isolated
from rag.ingest.mimes import MIME_OF_SUFFIX
from rag.ingest.urls import join_url
from rag.records import Document

ALIASES = {
    "application/xhtml+xml": "text/html",
    "text/x-markdown": "text/markdown",
    "application/x-pdf": "application/pdf",
    "text/rst": "text/x-rst",
}
UNTYPED = {"", "application/octet-stream", "binary/octet-stream"}  # what servers say of a suffix they do not know
# Linked on pages, never documents; left out without a word, as a folder's images are.
ASSET = re.compile(
    r"(image|audio|video|font|model)/|text/(css|calendar|vcard)$|message/"
    r"|application/(.*javascript|.+json|.*xml|.*zip.*|.*tar.*|.*compressed.*|.*font.*|wasm|octet-stream|x-.*)$"
)
ASSET_SUFFIX = re.compile(
    r"\.(avif|bmp|gif|ico|jpe?g|png|svg|tiff?|webp|css|m?js|map|json|woff2?|ttf|otf|eot|mp[34]|m4a|mov|avi|og[gv]|wav|webm"
    r"|zip|gz|tgz|bz2|xz|zst|7z|rar|tar|whl|jar|exe|dmg|iso|deb|rpm|msi|bin|wasm)$",
    re.IGNORECASE,
)
CHARSET = re.compile(r";\s*charset\s*=\s*[\"']?([\w.:+-]{1,40})", re.IGNORECASE)
REFRESH = re.compile(r"url\s*=\s*[\"']?([^\"']+)", re.IGNORECASE)
BOM = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MAX_LINKS = 20_000  # of one page


@dataclass(frozen=True)
class PageLinks:
    """`links` are canonical URLs in document order, each once, those marked nofollow left out."""

    links: tuple[str, ...]
    canonical: str | None
    is_noindex: bool
    is_nofollow: bool


def has_asset_suffix(url: str) -> bool:
    """Whether the address alone says that this is no document, so that it need not be requested."""
    return ASSET_SUFFIX.search(urlsplit(url).path) is not None


def page_mime(content_type: str, url: str) -> str:
    """The type to read a page as: the server's word, the suffix's where the server has none or a vague one."""
    mime = content_type.partition(";")[0].strip().lower()
    mime = ALIASES.get(mime, mime)
    by_suffix = MIME_OF_SUFFIX.get(PurePosixPath(unquote(urlsplit(url).path)).suffix.lower(), "")
    if mime in UNTYPED:
        return by_suffix or mime
    if mime == "text/plain" and by_suffix.startswith("text/") and by_suffix != "text/html":  # raw .md, .rst
        return by_suffix
    return mime


def is_supported(mime: str) -> bool:
    return mime in MIME_OF_SUFFIX.values()


def is_asset(mime: str) -> bool:
    return ASSET.match(mime) is not None


def with_charset(content: bytes, content_type: str, mime: str) -> bytes:
    """The body so that its encoding shows in the bytes: what the header names becomes UTF-8 with a byte order mark.

    A mark in the bytes wins, as in browsers; Latin-1 is believed only of bytes that are not UTF-8: servers claim it of
    everything when nobody told them.
    """
    declared = CHARSET.search(content_type)
    if not declared or not mime.startswith("text/") or content.startswith(BOM):
        return content
    name = codec(declared[1])
    if name in ("", "utf-8") or (name in LATIN and _is_utf8(content)):
        return content
    text = content.decode("cp1252" if name in LATIN else name, "replace")
    return codecs.BOM_UTF8 + text.encode("utf-8", "replace")


def page_links(page: Document) -> PageLinks:
    """What an HTML page says to a crawler. ExtractionError for one that would keep the parser busy."""
    return read_links(decode(page.content, page.mime), page.source)


def links_of(page: Document) -> PageLinks:
    """As `page_links`, in a child process where the page is not small."""
    if len(page.content) <= ISOLATED_BYTES:
        return page_links(page)
    found = ask_isolated("links", page, "HTML")
    return PageLinks(**(found | {"links": tuple(found["links"])}))


def read_links(text: str, url: str, robots: str = "") -> PageLinks:
    """What an HTML page at `url` says to a crawler; `robots` is its X-Robots-Tag header."""
    tree = parse_html(text)
    base, canonical, wishes = url, None, robots
    refreshed: list[str] = []
    for node in tree.css("base[href], meta[content], link[rel]"):
        attributes = node.attributes
        if node.tag == "base" and base == url:
            base = join_url(url, attributes.get("href") or "") or url
        elif node.tag == "meta" and (attributes.get("name") or "").strip().lower() == "robots":
            wishes += f",{attributes.get('content') or ''}"
        elif node.tag == "meta" and (attributes.get("http-equiv") or "").strip().lower() == "refresh":
            refreshed += REFRESH.findall(attributes.get("content") or "")
        elif node.tag == "link" and canonical is None and "canonical" in _rel(attributes.get("rel")):
            canonical = attributes.get("href")
    words = {word.strip() for word in wishes.lower().split(",")}
    hrefs = (
        node.attributes.get("href") or node.attributes.get("src")
        for node in tree.css("a[href], area[href], frame[src]")
        if "nofollow" not in _rel(node.attributes.get("rel"))
    )
    return PageLinks(
        _joined(base, chain(refreshed, hrefs)),
        join_url(base, canonical) if canonical else None,
        is_noindex=bool(words & {"noindex", "none"}),
        is_nofollow=bool(words & {"nofollow", "none"}),
    )


def read_sitemap(content: bytes) -> tuple[list[str], bool]:
    """The addresses in a sitemap, and whether they are further sitemaps. ValueError where it is none."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        root = fromstring(content, forbid_dtd=True)
    except (ParseError, DefusedXmlException, LookupError, ValueError) as error:
        raise ValueError(f"no sitemap: {error}") from None
    space = root.tag.rpartition("}")[0]
    name = f"{space}}}loc" if space else "loc"  # an image inside has a loc of another namespace
    places = (place.text for entry in root for place in entry if place.tag == name)
    return [place.strip() for place in places if place], root.tag.endswith("sitemapindex")


def _joined(base: str, hrefs: Iterable[str | None]) -> tuple[str, ...]:
    links: dict[str, None] = {}
    for href in hrefs:
        link = join_url(base, href) if href else None
        if link:
            links[link] = None
        if len(links) == MAX_LINKS:
            break
    return tuple(links)


def _rel(value: str | None) -> list[str]:
    return (value or "").lower().split()


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
