"""reStructuredText in, sections out: docutils finds the titles, the text is the source between them.

So a directive or role that only Sphinx knows loses nothing.
"""

import re

from docutils import nodes
from docutils.frontend import get_default_settings
from docutils.parsers.rst import Parser
from docutils.utils import new_document

from rag.ingest.outline import Heading, split_at_headings
from rag.records import Section

SETTINGS = {
    "report_level": 5,
    "halt_level": 6,  # above every level: an unknown directive stops nothing
    "warning_stream": False,
    "raw_enabled": False,
    "file_insertion_enabled": False,
    "syntax_highlight": "none",
}


def split_rst(text: str, source: str) -> list[Section]:
    """Sections of a reStructuredText document, anchored by docutils' section ids."""
    lines = re.sub("[\v\f]", " ", text).splitlines()  # as docutils counts them
    try:
        headings = _headings(text, lines)
    except Exception:  # docutils fails in many ways on text that is not its own; the text is still good
        headings = []
    return split_at_headings(lines, headings, source)


def _headings(text: str, lines: list[str]) -> list[Heading]:
    settings = get_default_settings(Parser)
    vars(settings).update(SETTINGS)
    document = new_document("", settings)
    Parser().parse(text, document)
    return [_heading(section, lines) for section in document.findall(nodes.section) if section.line]


def _heading(section: nodes.section, lines: list[str]) -> Heading:
    end = section.line or 0  # docutils gives the line of the underline, counted from 1
    title_line = end - 2
    has_overline = title_line > 0 and lines[title_line - 1].rstrip() == lines[end - 1].rstrip()
    level = 1
    parent = section.parent
    while isinstance(parent, nodes.section):
        level, parent = level + 1, parent.parent
    title = " ".join(section[0].astext().split())
    return Heading(level, title, section["ids"][0], title_line - has_overline, end)
