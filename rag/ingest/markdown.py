"""Markdown in, sections out: raw source lines under GitHub's anchors. Front matter is removed."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, table
from markdown_it.token import Token

from rag.ingest.outline import Heading, split_at_headings
from rag.records import Section

FRONT_MATTER = re.compile(r"---[ \t]*\n(?=[\w-]+[ \t]*:)(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
FRONT_TITLE = re.compile(r"^title[ \t]*:(.*\S)", re.MULTILINE)  # blanks are stripped: a pattern for them is quadratic
NOT_IN_SLUG = re.compile(r"[^\w\- ]")


@cache
def block_parser() -> MarkdownIt:
    """Parses blocks, and nothing within a line: a fifth of the time and of the memory."""
    parser = MarkdownIt("commonmark").enable("table")
    parser.block.ruler.at("table", _table_rows, {"alt": ["paragraph", "reference"]})
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser


def _table_rows(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """As markdown-it's rule for tables, without cells: of those it makes as many in each row as in the first.

    2 KB of a wide table's short rows would be 65,000 cells and 60 MB.
    """
    if not table(state, start, end, True):
        return False
    if silent:
        return True
    outside, state.parentType = state.parentType, "table"
    after = _table_end(state, start + 2, end)
    _push(state, "table_open", 1, start, after)
    _push(state, "thead_open", 0, start, start + 1)
    if after > start + 2:
        _push(state, "tbody_open", 1, start + 2, after)
        for line in range(start + 2, after):
            _push(state, "tr_open", 0, line, line + 1)
        state.push("tbody_close", "", -1)
    state.push("table_close", "", -1)
    state.parentType, state.line = outside, after
    return True


def _table_end(state: StateBlock, line: int, end: int) -> int:
    ends = state.md.block.ruler.getRules("blockquote")  # what ends a quotation ends a table
    while line < end:
        is_outside = state.sCount[line] < state.blkIndent or state.is_code_block(line)
        if is_outside or state.isEmpty(line) or any(rule(state, line, end, True) for rule in ends):
            break
        line += 1
    return line


def _push(state: StateBlock, kind: str, nesting: Literal[-1, 0, 1], start: int, end: int) -> None:
    state.push(kind, "", nesting).map = [start, end]


def split_markdown(text: str, source: str) -> list[Section]:
    """Sections of a Markdown text; a `#` in a code fence or a quotation is no heading."""
    front = FRONT_MATTER.match(text)
    title = FRONT_TITLE.search(front[1]) if front else None
    body = text[front.end() :] if front else text
    headings = find_headings(body)
    return split_at_headings(body.split("\n"), headings, source, title[1].strip().strip("\"'") if title else "")


def find_headings(text: str) -> list[Heading]:
    """The headings, their lines counted at \\n."""
    return list(_headings(text))


def _headings(text: str) -> Iterator[Heading]:
    parser = block_parser()
    link_targets: dict[str, Any] = {}  # defined anywhere in the text, used in any line
    tokens = parser.parse(text, link_targets)
    anchors = GithubAnchors()
    for token, content in zip(tokens, tokens[1:], strict=False):
        if token.type == "heading_open" and token.level == 0 and token.map:
            inline: list[Token] = []
            parser.inline.parse(content.content, parser, link_targets, inline)
            title = " ".join("".join(_words(inline)).split())
            yield Heading(int(token.tag[1]), title, anchors.next(title), *token.map)


def _words(inline: list[Token]) -> Iterator[str]:
    for child in inline:
        if child.type in ("text", "code_inline", "image"):
            yield child.content
        elif child.type in ("softbreak", "hardbreak"):
            yield " "


class GithubAnchors:
    """The anchors that GitHub gives the headings of one text: "What's new?" -> "whats-new", again -> "whats-new-1"."""

    def __init__(self) -> None:
        self._times: Counter[str] = Counter()

    def next(self, title: str) -> str:
        slug = NOT_IN_SLUG.sub("", title.lower()).replace(" ", "-") or "section"
        self._times[slug] += 1
        return f"{slug}-{self._times[slug] - 1}" if self._times[slug] > 1 else slug
