"""DOCX in, sections out: one per heading, cited as a Markdown text would be, `#key-findings`.

Read from the XML itself: inserted text, content controls, text boxes and notes belong to the text; deleted text, the
table of contents, headers, footers and comments do not.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from rag.ingest.archive import Archive, document_title, main_part, relations, target_of
from rag.ingest.markdown import GithubAnchors
from rag.ingest.outline import Heading, split_at_headings
from rag.ingest.tables import format_table
from rag.records import Section

SKIPPED = {"del", "moveFrom", "Fallback", "instrText", "delText", "pPr", "rPr", "tblPr", "sectPr"}
LETTERS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
NUM_LEVELS = 9  # of headings and of lists


@dataclass(frozen=True)
class _Style:
    name: str
    based_on: str
    level: int | None  # outline level, 0 is the highest
    list_id: str | None
    list_level: int


@dataclass
class _Text:
    """The document as it grows."""

    title: str = ""
    blocks: list[str] = field(default_factory=list)  # paragraphs, lists and tables, to be parted by blank lines
    headings: list[tuple[int, int, str]] = field(default_factory=list)  # (block, level, title)
    is_in_list: bool = False

    def add(self, text: str, is_item: bool = False) -> None:
        if not text.strip():
            return
        if is_item and self.is_in_list:
            self.blocks[-1] += "\n" + text
        else:
            self.blocks.append(text)
        self.is_in_list = is_item

    def add_heading(self, level: int, title: str) -> None:
        self.headings.append((len(self.blocks), level, title))
        self.blocks.append(title)
        self.is_in_list = False


def split_docx(content: bytes, source: str) -> list[Section]:
    """Sections by heading style or outline level; a paragraph styled Title names the document."""
    archive = Archive(content, "DOCX")
    reader = _Reader(archive, main_part(archive))
    text = reader.read()
    lines: list[str] = []
    headings = []
    starts = {block: (level, title) for block, level, title in text.headings}
    anchors = GithubAnchors()
    for number, block in enumerate(text.blocks):
        start = len(lines)
        lines += [*block.split("\n"), ""]
        if number in starts:
            level, title = starts[number]
            headings.append(Heading(level, title, anchors.next(title), start, len(lines)))
    return split_at_headings(lines, headings, source, text.title or document_title(archive))


class _Reader:
    """Walks the body once. The depth of recursion is that of the XML, which is limited."""

    def __init__(self, archive: Archive, part: str) -> None:
        self.body = archive.xml(part)
        near = relations(archive, part)
        self.styles = _styles(archive.find_xml(target_of(near, "styles")))
        self.formats = _list_formats(archive.find_xml(target_of(near, "numbering")))
        self.notes = {
            kind: {note.get("id"): note for note in archive.find_xml(target_of(near, f"{kind}s")).iter(kind)}
            for kind in ("footnote", "endnote")
        }
        self.numbers: dict[str, list[int]] = {}  # of each list, by level
        self.boxes: list[Element] = []  # text boxes of the paragraph being read
        self.noted: list[Element] = []  # and its notes
        self.text = _Text()

    def read(self) -> _Text:
        for body in self.body.iter("body"):
            self._read_blocks(body)
            break
        return self.text

    def _read_blocks(self, parent: Element) -> None:
        for child in parent:
            if child.tag == "p":
                self._read_paragraph(child)
            elif child.tag == "tbl":
                self.text.add(format_table(self._rows(child)))
                self._add_notes()
            elif child.tag not in SKIPPED:
                self._read_blocks(child)

    def _read_paragraph(self, paragraph: Element) -> None:
        words = "".join(self._words(paragraph)).strip()
        boxes, self.boxes = self.boxes, []
        style, level, list_id, list_level = self._properties(paragraph)
        title = " ".join(words.split())
        if style.lower().startswith("toc"):
            pass
        elif title and style.lower() == "title" and not self.text.title:
            self.text.title = title
        elif title and level is not None:
            self.text.add_heading(level + 1, title)
        elif words and list_id:
            marker = self._marker(list_id, list_level)
            self.text.add(f"{'  ' * list_level}{marker} {words}", is_item=True)
        else:
            self.text.add(words)
        for inner in boxes:
            self._read_blocks(inner)
        self._add_notes()

    def _add_notes(self) -> None:
        noted, self.noted = self.noted, []
        for note in noted:
            words = " ".join(" ".join(self._cell_words(note)).split())
            self.text.add(f"Note: {words}" if words else "")

    def _words(self, element: Element) -> Iterator[str]:
        for child in element:
            if child.tag == "t":
                yield child.text or ""
            elif child.tag in LETTERS:
                yield LETTERS[child.tag]
            elif child.tag == "txbxContent":
                self.boxes.append(child)
            elif child.tag in ("footnoteReference", "endnoteReference"):
                note = self.notes[child.tag.removesuffix("Reference")].get(child.get("id"))
                self.noted += [] if note is None else [note]
            elif child.tag not in SKIPPED:
                yield from self._words(child)

    def _rows(self, table: Element) -> Iterator[list[str]]:
        for row in _inside(table, "tr"):
            yield [" ".join(self._cell_words(cell)) for cell in _inside(row, "tc")]

    def _cell_words(self, cell: Element) -> Iterator[str]:
        """Paragraph by paragraph, those of a nested table and of text boxes too."""
        for child in cell:
            if child.tag == "p":
                yield "".join(self._words(child))
                boxes, self.boxes = self.boxes, []
                for box in boxes:
                    yield from self._cell_words(box)
            elif child.tag not in SKIPPED:
                yield from self._cell_words(child)

    def _properties(self, paragraph: Element) -> tuple[str, int | None, str, int]:
        """(style name, outline level, list, level in the list): the paragraph's own or else its style's."""
        own = paragraph.find("pPr")
        if own is None:
            return "", None, "", 0
        style_id = _value(own, "pStyle") or ""
        style = self.styles.get(style_id)
        chain = list(self._chain(style_id))
        level = _level(own)
        if level is None:
            level = next((style.level for style in chain if style.level is not None), None)
        list_id = _value(own, "numPr/numId")
        list_level = _number(_value(own, "numPr/ilvl"))
        if list_id is None:
            inherited = next((style for style in chain if style.list_id is not None), None)
            if inherited:
                list_id, list_level = inherited.list_id, inherited.list_level
        is_body = level is not None and level >= NUM_LEVELS  # 9 is "body text"
        return (
            style.name if style else "",
            None if is_body else level,
            "" if list_id in (None, "0") else list_id or "",
            min(list_level, NUM_LEVELS - 1),
        )

    def _chain(self, style_id: str) -> Iterator[_Style]:
        seen: set[str] = set()
        while style_id in self.styles and style_id not in seen:
            seen.add(style_id)
            yield self.styles[style_id]
            style_id = self.styles[style_id].based_on

    def _marker(self, list_id: str, level: int) -> str:
        """ "-", or the number that the item has."""
        counts = self.numbers.setdefault(list_id, [0] * NUM_LEVELS)
        counts[level] += 1
        counts[level + 1 :] = [0] * (NUM_LEVELS - level - 1)
        kind = self.formats.get(list_id, {}).get(level, "bullet")
        return "-" if kind in ("bullet", "none") else f"{counts[level]}."


def _styles(root: Element) -> dict[str, _Style]:
    found = {}
    for style in root.iter("style"):
        name = _value(style, "name") or ""
        level = _level(style.find("pPr"))
        if level is None and name.lower().startswith("heading ") and name[8:].isdecimal():
            level = int(name[8:]) - 1
        list_id, list_level = _value(style, "pPr/numPr/numId"), _number(_value(style, "pPr/numPr/ilvl"))
        based_on = _value(style, "basedOn") or ""
        found[style.get("styleId", "")] = _Style(name, based_on, level, list_id, list_level)
    return found


def _list_formats(root: Element) -> dict[str, dict[int, str]]:
    """list -> level -> bullet, decimal, lowerLetter, ..."""
    formats = {
        abstract.get("abstractNumId"): {
            _number(level.get("ilvl")): _value(level, "numFmt") or "decimal" for level in abstract.iter("lvl")
        }
        for abstract in root.iter("abstractNum")
    }
    return {num.get("numId", ""): formats.get(_value(num, "abstractNumId"), {}) for num in root.iter("num")}


def _inside(element: Element, tag: str) -> Iterator[Element]:
    """The nearest descendants of that name: a content control or a tracked change may lie between."""
    for child in element:
        if child.tag == tag:
            yield child
        elif child.tag not in SKIPPED and child.tag not in ("tbl", "p"):
            yield from _inside(child, tag)


def _value(element: Element, path: str) -> str | None:
    found = element.find(path)
    return None if found is None else found.get("val")


def _level(properties: Element | None) -> int | None:
    value = None if properties is None else _value(properties, "outlineLvl")
    return _number(value) if value is not None else None


def _number(value: str | None) -> int:
    return int(value) if value and value.isdecimal() and len(value) < 4 else 0
