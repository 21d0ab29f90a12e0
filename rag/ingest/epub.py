"""EPUB in, sections out: its chapters in reading order, each split as the HTML page it is.

Cited as `#chapter-file.xhtml`, a section of it as `#chapter-file.xhtml!anchor`: the file as the book's package
document names it, then the element's id.
"""

import posixpath
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from urllib.parse import unquote, urldefrag
from xml.etree.ElementTree import Element

from rag.errors import ExtractionError
from rag.ingest.archive import Archive
from rag.ingest.encodings import codec
from rag.ingest.html import split_html
from rag.ingest.outline import cite, heading_path
from rag.records import Section

CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
CHAPTER_TYPES = {"application/xhtml+xml", "text/html", "application/x-dtbook+xml"}
# The name gives nothing back: tried anew at each of its letters, a long one would take quadratic time.
SELF_CLOSED = re.compile(r"<((?!(?:br|hr|img|meta|link|input|col|area|base|wbr)\b)[a-zA-Z][\w-]*+)([^<>]*)/>")
XML_HEAD = re.compile(r"\s*<\?xml[^>]*\?>")
XML_ENCODING = re.compile(rb"""^[^>]*encoding\s*=\s*["']([\w.:-]{1,40})""")


def split_epub(content: bytes, source: str) -> list[Section]:
    """The chapters that have text, titled by the book, the chapter and their headings."""
    archive = Archive(content, "EPUB")
    package = _package_name(archive)
    root = archive.xml(package)
    folder = posixpath.dirname(package)
    book = " ".join((root.findtext("metadata/title") or root.findtext(".//title") or "").split())
    encrypted = _encrypted(archive)
    items = {item.get("id", ""): item for item in root.iter("item")}
    labels = _chapter_labels(archive, items, folder)
    sections: list[Section] = []
    done: set[str] = set()  # a spine that repeats a chapter, which the standard forbids, would repeat it without end
    for reference in root.iter("itemref"):
        item = items.get(reference.get("idref", ""))
        if item is None or not _is_chapter(item):
            continue
        href = unquote(urldefrag(item.get("href", ""))[0])
        name = posixpath.normpath(posixpath.join(folder, href))
        if name in done:
            continue
        done.add(name)
        if name in encrypted:
            raise ExtractionError("encrypted: its chapters are under copy protection; use a copy without it")
        text = _as_html(archive.read(name))
        sections += [_named(part, source, href, book, labels.get(name, "")) for part in split_html(text, "")]
    return sections


def _package_name(archive: Archive) -> str:
    for root in archive.xml(CONTAINER).iter("rootfile"):
        return posixpath.normpath(unquote(root.get("full-path", "")))
    raise ExtractionError(f"damaged EPUB: {CONTAINER} names no package document")


def _is_chapter(item: Element) -> bool:
    return item.get("media-type") in CHAPTER_TYPES and "nav" not in item.get("properties", "").split()


def _named(part: Section, source: str, href: str, book: str, label: str) -> Section:
    """`part` has only its anchor as source, and its headings as title."""
    anchor = unquote(part.source.removeprefix("#"))
    headings = part.title.split(" > ") if part.title and part.title != book else []
    if label and (not headings or not anchor and len(headings) == 1):
        headings[:1] = [label]
    return replace(
        part, source=cite(source, f"{href}!{anchor}" if anchor else href), title=heading_path([book, *headings])
    )


def _encrypted(archive: Archive) -> set[str]:
    """The parts that DRM or font obfuscation has changed."""
    return {unquote(part.get("URI", "")) for part in archive.find_xml(ENCRYPTION).iter("CipherReference")}


def _chapter_labels(archive: Archive, items: dict[str, Element], folder: str) -> dict[str, str]:
    """Part name -> what the table of contents calls it: EPUB 3's navigation document or EPUB 2's NCX."""
    labels: dict[str, str] = {}
    for item in items.values():
        name = posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))
        is_ncx = item.get("media-type") == "application/x-dtbncx+xml"
        if name not in archive.names or not (is_ncx or "nav" in item.get("properties", "").split()):
            continue
        with suppress(ExtractionError):  # a book is good without it
            for href, label in _links(archive.xml(name)):
                target = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(urldefrag(href)[0])))
                labels.setdefault(target, " ".join(label.split()))
    return labels


def _links(contents: Element) -> Iterator[tuple[str, str]]:
    for point in contents.iter("navPoint"):
        for content in point.iter("content"):
            yield content.get("src", ""), point.findtext("navLabel/text") or ""
            break
    for link in contents.iter("a"):
        yield link.get("href", ""), "".join(link.itertext())


def _as_html(content: bytes) -> str:
    """XHTML as an HTML parser understands it: there `<a id="x"/>` is an element that never ends."""
    declared = XML_ENCODING.match(content[:200])
    encoding = codec(declared[1].decode()) if declared else ""
    is_marked = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = content.decode("utf-16" if is_marked else encoding or "utf-8", "replace")
    return SELF_CLOSED.sub(r"<\1\2></\1>", XML_HEAD.sub("", text.lstrip("\ufeff"), count=1))
