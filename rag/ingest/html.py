"""HTML in, sections out: one pass over the main content, without recursion, so depth cannot hurt.

A section starts at a heading that can be linked to, or at an API entry of Sphinx (`<dt id>`); it ends where
the next one starts or the element that holds it ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from selectolax.lexbor import LexborHTMLParser, LexborNode

from rag.ingest.flow import Flow
from rag.ingest.html_tree import parse_html
from rag.ingest.outline import MAX_NAME_CHARS, cite, clip, heading_path
from rag.records import Section

DROPPED = {"script", "style", "nav", "header", "footer", "aside", "noscript", "svg", "template", "iframe"}
PERMALINKS = {"headerlink", "viewcode-link", "anchor", "header-anchor", "hash-link", "anchorjs-link"}
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
PARAGRAPHS = {"p", "blockquote", "ul", "ol", "dl", "table", "figure", "details", "form", "fieldset", "hr"}
LINES = {
    "div",
    "section",
    "article",
    "main",
    "address",
    "dt",
    "dd",
    "tr",
    "td",
    "th",
    "caption",
    "figcaption",
    "summary",
    "br",
}
NOT_IN_CELLS = HEADINGS | {"table", "pre", "dl"}  # a table with one of these is layout, not data

MAX_OUTER = 100  # headings above a section that are kept for its title, which shows fewer
MAX_TERM_NODES = 1000  # a signature names its object at its beginning; a term that never ends may hold the whole page


def split_html(text: str, source: str) -> list[Section]:
    """Sections of a page; empty when it has no text."""
    tree = parse_html(text)
    title = tree.head.css_first("title") if tree.head else None
    name = " ".join(title.text().split()) if title else ""
    for root in _main_content(tree):
        reader = _Reader(name)
        reader.read(root)
        sections = [Section(cite(source, part.anchor), part.title, part.flow.text()) for part in reader.parts]
        if any(section.text for section in sections):
            return sections
    return []


def _main_content(tree: LexborHTMLParser) -> Iterator[LexborNode]:
    """Where the text may be, the most likely element first."""
    for selector in ("main", "[role=main]", "article"):
        found = tree.css(selector)
        if len(found) == 1 or (found and selector != "article"):  # many articles are a list of them
            yield found[0]
    if tree.body:
        yield tree.body


@dataclass
class _Part:
    """A section that grows."""

    level: int
    anchor: str
    heading: str
    outer: tuple["_Part", ...] = ()
    flow: Flow = field(default_factory=Flow)

    @property
    def title(self) -> str:
        return heading_path(part.heading for part in (*self.outer, self))


@dataclass
class _Holder:
    """An element whose end closes the sections opened inside it."""

    num_open: int
    anchor: str  # for the first heading in it
    is_list: bool


class _Reader:
    """Sees each element open and close; `parts` are the sections in their order."""

    def __init__(self, title: str) -> None:
        root = _Part(0, "", title)
        self.parts = [root]
        self.open = [root]
        self.holders: list[_Holder] = []
        self.heading: _Part | None = None  # its flow is the heading's words until it closes
        self.near = ""  # id of an anchor with no text after it yet
        self.in_table = False
        self.is_first_cell = False
        self.after_term = False
        self.is_named = False  # the document, by its first h1

    @property
    def flow(self) -> Flow:
        return self.heading.flow if self.heading else self.open[-1].flow

    def read(self, root: LexborNode) -> None:
        stack = [(root, True)]
        while stack:
            node, is_opening = stack.pop()
            if not is_opening:
                self._close(node)
            elif node.is_text_node:
                self._add(node.text_content or "")
            elif self._open(node):
                stack.append((node, False))
                stack.extend((child, True) for child in reversed(list(node.iter(include_text=True))))

    def _add(self, text: str) -> None:
        self.flow.add(text)
        if self.near and not text.isspace():
            self.near = ""

    def _open(self, node: LexborNode) -> bool:
        """Whether to go on to the children."""
        tag, attributes = node.tag or "", node.attributes
        if tag in ("a", "span"):
            self._note_anchor(attributes)
        if tag in DROPPED or not PERMALINKS.isdisjoint(_classes(attributes)):
            return False
        if self.heading:
            self._add(" " if _gap(tag) else "")
        elif self.in_table:
            self._open_in_table(tag)
        elif tag in HEADINGS:
            self._open_heading(int(tag[1]), attributes.get("id") or "")
        elif tag == "pre":
            self.flow.add_verbatim(_preformatted(node))
            return False
        else:
            self._open_block(tag, attributes, node)
        return True

    def _open_block(self, tag: str, attributes: dict[str, str | None], node: LexborNode) -> None:
        self.flow.end_line(_gap(tag))
        if tag == "li":
            self.flow.begin_item()
        elif tag == "dt":
            self._open_term(attributes, node)
        elif tag == "dd":
            self.after_term = False
        elif tag == "table":
            self.in_table = _is_data(node)
        elif _is_holder(tag, attributes):
            anchor = attributes.get("id") or "" if tag != "dl" else ""
            self.holders.append(_Holder(len(self.open), anchor, tag == "dl"))
            self.after_term = False

    def _open_in_table(self, tag: str) -> None:
        if tag == "tr":
            self.flow.end_line("\n")
            self.is_first_cell = True
        elif tag in ("td", "th"):
            self.flow.add(" " if self.is_first_cell else " | ")
            self.is_first_cell = False
        elif _gap(tag) or tag == "li":
            self.flow.add(" ")

    def _open_heading(self, level: int, anchor: str) -> None:
        self.flow.end_line("\n\n")
        holder = self.holders[-1] if self.holders else None
        if holder:
            anchor, holder.anchor = anchor or holder.anchor, ""
        self.heading = _Part(level, anchor or self.near, "")
        self.near = ""

    def _open_term(self, attributes: dict[str, str | None], node: LexborNode) -> None:
        """Terms that share one explanation are one section, the first one's."""
        anchor, holder = attributes.get("id"), self.holders[-1] if self.holders else None
        if not anchor or not holder or not holder.is_list or "label" in _classes(attributes):
            return
        if not self.after_term:
            del self.open[holder.num_open :]
            self._begin(_Part(len(HEADINGS) + 1, anchor, _term_name(node)))
        self.after_term = True

    def _note_anchor(self, attributes: dict[str, str | None]) -> None:
        anchor = attributes.get("id") or attributes.get("name")
        if anchor and self.heading:
            self.heading.anchor = self.heading.anchor or anchor
        elif anchor:
            self.near = anchor

    def _begin(self, part: _Part) -> None:
        part.outer = tuple(self.open[:MAX_OUTER])
        self.parts.append(part)
        self.open.append(part)

    def _close(self, node: LexborNode) -> None:
        tag = node.tag or ""
        if self.heading:
            if tag in HEADINGS:
                self._close_heading(self.heading)
            return
        if self.in_table and tag != "table":
            if _gap(tag):
                self.flow.add(" ")
            return
        self.in_table = False
        self.flow.end_line(_gap(tag))
        if tag == "li":
            self.flow.end_item()
        elif _is_holder(tag, node.attributes):
            del self.open[self.holders.pop().num_open :]
            self.after_term = False

    def _close_heading(self, part: _Part) -> None:
        part.heading = part.flow.text().rstrip("¶ ")
        part.flow = Flow()
        self.heading = None
        root = self.parts[0]
        if part.level == 1 and part.heading and not self.is_named:
            self.is_named = True
            if not root.heading or root.heading.startswith(part.heading):
                root.heading = part.heading  # "Sorting — Python 3.11 documentation" is Sorting
        if not part.anchor:
            self.flow.add(part.heading)
            self.flow.end_line("\n\n")
        elif part.heading:
            floor = next((holder.num_open for holder in reversed(self.holders) if holder.is_list), 1)
            while len(self.open) > floor and self.open[-1].level >= part.level:
                self.open.pop()
            self._begin(part)
            if len(part.heading) > MAX_NAME_CHARS:  # what a title has no room for stays in the text
                self.flow.add(part.heading)
                self.flow.end_line("\n\n")


def _classes(attributes: dict[str, str | None]) -> list[str]:
    return (attributes.get("class") or "").split()


def _gap(tag: str) -> str:
    return "\n\n" if tag in PARAGRAPHS else "\n" if tag in LINES else ""


def _is_holder(tag: str, attributes: dict[str, str | None]) -> bool:
    return tag in ("section", "article", "dl") or (tag == "div" and "section" in _classes(attributes))


def _is_data(table: LexborNode) -> bool:
    return not any(node.tag in NOT_IN_CELLS for node in table.traverse() if node.mem_id != table.mem_id)


def _preformatted(pre: LexborNode) -> str:
    nodes = pre.traverse(include_text=True)
    return "".join("\n" if node.tag == "br" else node.text_content or "" for node in nodes)


def _term_name(term: LexborNode) -> str:
    """The name in a Sphinx signature, `math.ceil` of `math.ceil(x)`; of other terms all the words."""
    name = ""
    for node in islice(term.traverse(), MAX_TERM_NODES):
        classes = _classes(node.attributes)
        if "descclassname" in classes or "descname" in classes:
            name += node.text()
        if "descname" in classes:
            break
    words = " ".join((name or term.text()).split()).rstrip("¶ ")
    return clip(words, MAX_NAME_CHARS)
