"""PPTX in, one section per slide out: `#slide=3`, with its tables, diagrams and speaker's notes.

Hidden slides count; slide numbers, dates and footers do not.
"""

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from rag.ingest.archive import Archive, Relation, document_title, main_part, relations, target_of
from rag.ingest.outline import cite, file_stem, heading_path
from rag.ingest.tables import format_table
from rag.records import Section

TITLES = {"title", "ctrTitle"}
NO_CONTENT = {"sldNum", "dt", "ftr", "hdr"}
SHAPES = {"sp", "cxnSp", "graphicFrame"}
SKIPPED = {"Fallback", "txStyles"}


def split_pptx(content: bytes, source: str) -> list[Section]:
    """The slides that have text, in the order they are shown."""
    archive = Archive(content, "PPTX")
    part = main_part(archive)
    deck = document_title(archive) or file_stem(source)
    near = relations(archive, part)
    slides = [near.get(slide.get("r:id", "")) for slide in archive.xml(part).iter("sldId")]
    return [
        _split_slide(archive, slide.target, cite(source, f"slide={number}"), deck)
        for number, slide in enumerate(slides, 1)
        if slide is not None and slide.kind == "slide"
    ]


def _split_slide(archive: Archive, part: str, source: str, deck: str) -> Section:
    near = relations(archive, part)
    title, blocks = "", list[str]()
    for shape in _shapes(archive.xml(part)):
        kind = _placeholder(shape)
        text = "\n\n".join(_blocks(shape, archive, near)) if kind not in NO_CONTENT else ""
        if kind in TITLES and not title:
            title = " ".join(text.split())
            blocks.insert(0, title)
        else:
            blocks.append(text)
    notes = _notes(archive, target_of(near, "notesSlide"))
    blocks.append(f"Notes: {notes}" if notes else "")
    return Section(source, heading_path([deck, title]), "\n\n".join(block for block in blocks if block))


def _shapes(element: Element) -> Iterator[Element]:
    """In the slide's order, those in groups too."""
    for child in element:
        if child.tag in SHAPES:
            yield child
        elif child.tag not in SKIPPED:
            yield from _shapes(child)


def _placeholder(shape: Element) -> str:
    """What the shape stands for: title, body, sldNum; "" where it stands for itself."""
    for found in shape.iter("ph"):
        return found.get("type", "body")
    return ""


def _blocks(shape: Element, archive: Archive, near: dict[str, Relation]) -> Iterator[str]:
    tables = list(shape.iter("tbl"))
    for table in tables:
        yield format_table([[_text(cell, " ") for cell in row.iter("tc")] for row in table.iter("tr")])
    if not tables:
        yield _text(shape, "\n")
    for diagram in shape.iter("relIds"):
        data = near.get(diagram.get("r:dm", ""))
        if data is not None:
            yield _text(archive.find_xml(data.target), "\n")


def _notes(archive: Archive, part: str) -> str:
    shapes = _shapes(archive.find_xml(part))
    return "\n".join(text for shape in shapes if _placeholder(shape) == "body" and (text := _text(shape, "\n")))


def _text(element: Element, separator: str) -> str:
    """The paragraphs, each indented by its level."""
    lines = []
    for paragraph in element.iter("p"):
        words = "".join(_words(paragraph)).strip()
        properties = paragraph.find("pPr")
        level = properties.get("lvl", "0") if properties is not None else "0"
        indent = "  " * int(level) if level.isdecimal() and len(level) == 1 and separator == "\n" else ""
        lines += [indent + words] if words else []
    return separator.join(lines)


def _words(paragraph: Element) -> Iterator[str]:
    for element in paragraph.iter():
        if element.tag == "t":
            yield element.text or ""
        elif element.tag == "br":
            yield "\n"
        elif element.tag == "tab":
            yield "\t"
