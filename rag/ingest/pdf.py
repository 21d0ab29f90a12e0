"""PDF in, one section per page out: the page's text in the order its author wrote it, cited as `#page=7` (RFC 8118).

A page is titled by the bookmarks it stands under. Text in images is not read: that takes OCR.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from os.path import commonprefix
from typing import Any

from rag.errors import ExtractionError
from rag.ingest.archive import clean_title
from rag.ingest.outline import cite, file_stem, heading_path
from rag.records import Section

MAX_PAGES = 20_000
MAX_BOOKMARKS = 20_000
MAX_BOOKMARK_DEPTH = 6
# PDFium puts U+FFFE (older versions: U+0002) in place of a hyphen at the end of a line and joins the two lines
LINE_END_HYPHEN = re.compile("(\\w+)(?:[\ufffe\x02\xad]\\s*|[-\u2010]\n)(\\w+)")
STRAY_HYPHEN = re.compile("[\ufffe\x02]")
WORD = re.compile(r"\w+(?:-\w+)*")
WRONG_PASSWORD = 4  # FPDF_ERR_PASSWORD


def split_pdf(content: bytes, source: str) -> list[Section]:
    """The pages that have text. ExtractionError for one that is encrypted, damaged or scanned."""
    import pypdfium2 as pdfium

    try:
        pdf = pdfium.PdfDocument(content)
    except pdfium.PdfiumError as error:
        if error.err_code == WRONG_PASSWORD:
            raise ExtractionError("encrypted: it needs a password; save it without one") from None
        raise ExtractionError("damaged PDF: PDFium cannot open it") from None
    num_pages = len(pdf)
    if num_pages > MAX_PAGES:
        raise ExtractionError(f"expected at most {MAX_PAGES} pages, found {num_pages}; split the file")
    read = [_page_text(pdf, index) for index in range(num_pages)]
    if all(text is None for text in read):
        raise ExtractionError(f"damaged PDF: PDFium can open none of its {num_pages} pages")
    texts = _join_words([text or "" for text in read])
    if not any(texts):
        raise ExtractionError(f"no text on its {num_pages} pages; it looks scanned: run OCR first")
    title = _metadata_title(pdf) or file_stem(source)
    titles = _page_titles(pdf, title, num_pages)
    return [
        Section(cite(source, f"page={number}"), page_title, text)
        for number, (page_title, text) in enumerate(zip(titles, texts, strict=True), 1)
    ]


def _page_text(pdf: Any, index: int) -> str | None:
    """None for a page that is damaged: the others are still good."""
    import pypdfium2 as pdfium

    try:
        page = pdf[index]
        text_page = page.get_textpage()
        text: str = text_page.get_text_range(errors="replace")
        text_page.close()
        page.close()
    except pdfium.PdfiumError:
        return None
    return "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")).strip()


def _metadata_title(pdf: Any) -> str:
    with suppress(UnicodeError):
        return clean_title(pdf.get_metadata_value("Title"))
    return ""


def _page_titles(pdf: Any, title: str, num_pages: int) -> list[str]:
    """For each page the title and what the bookmarks that begin on it share, or else the one it goes on with."""
    begun: dict[int, list[list[str]]] = {}
    path: list[tuple[int, str]] = []
    for level, name, page in sorted(_bookmarks(pdf), key=lambda bookmark: bookmark[2]):
        path = [outer for outer in path if outer[0] < level] + [(level, name)]
        begun.setdefault(page, []).append([name for _, name in path])
    titles = []
    names: list[str] = []
    for page in range(num_pages):
        paths = begun.get(page, [names])
        titles.append(heading_path([title, *commonprefix(paths)]))
        names = paths[-1]
    return titles


def _bookmarks(pdf: Any) -> Iterator[tuple[int, str, int]]:
    """(level, title, page from 0) of those that lead to a page."""
    for bookmark in islice(pdf.get_toc(max_depth=MAX_BOOKMARK_DEPTH), MAX_BOOKMARKS):
        with suppress(UnicodeError):
            name, target = " ".join(bookmark.get_title().split()), bookmark.get_dest()
            page = target.get_index() if target else None
            if name and page is not None:
                yield bookmark.level, name, page


def _join_words(texts: list[str]) -> list[str]:
    """The texts, words that were parted at the end of a line in one piece again.

    "infor-" and "mation" is "information"; but "self-" and "aware" is "self-aware" where the document has that
    word elsewhere, and so is what goes on with a digit or a capital letter.
    """
    known = {word.lower() for text in texts for word in WORD.findall(text)}

    def join(parted: re.Match[str]) -> str:
        first, second = parted[1], parted[2]
        whole, hyphened = f"{first}{second}", f"{first}-{second}"
        if whole.lower() in known:
            return whole
        if hyphened.lower() in known or not second[0].islower() or first.isdigit():
            return hyphened
        return whole

    return [STRAY_HYPHEN.sub("-", LINE_END_HYPHEN.sub(join, text)) for text in texts]
