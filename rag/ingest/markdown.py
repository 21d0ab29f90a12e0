"""Markdown in, sections out: raw source lines under GitHub's anchors. Front matter is removed."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from rag.ingest.outline import Heading, split_at_headings
from rag.records import Section

FRONT_MATTER = re.compile(r"---[ \t]*\n(?=[\w-]+[ \t]*:)(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
FRONT_TITLE = re.compile(r"^title[ \t]*:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
NOT_IN_SLUG = re.compile(r"[^\w\- ]")


@cache
def block_parser() -> MarkdownIt:
    """Parses blocks, and nothing within a line: a fifth of the time and of the memory."""
    parser = MarkdownIt("commonmark").enable("table")
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser


def split_markdown(text: str, source: str) -> list[Section]:
    """Sections of a Markdown text; a `#` in a code fence or a quotation is no heading."""
    front = FRONT_MATTER.match(text)
    title = FRONT_TITLE.search(front[1]) if front else None
    body = text[front.end() :] if front else text
    headings = find_headings(body)
    return split_at_headings(body.split("\n"), headings, source, title[1].strip("\"'") if title else "")


def find_headings(text: str) -> list[Heading]:
    """The headings, their lines counted at \\n."""
    return list(_headings(text))


def _headings(text: str) -> Iterator[Heading]:
    parser = block_parser()
    link_targets: dict[str, Any] = {}  # defined anywhere in the text, used in any line
    tokens = parser.parse(text, link_targets)
    times: Counter[str] = Counter()
    for token, content in zip(tokens, tokens[1:], strict=False):
        if token.type == "heading_open" and token.level == 0 and token.map:
            inline: list[Token] = []
            parser.inline.parse(content.content, parser, link_targets, inline)
            title = " ".join("".join(_words(inline)).split())
            slug = github_slug(title)
            anchor = f"{slug}-{times[slug]}" if times[slug] else slug
            times[slug] += 1
            yield Heading(int(token.tag[1]), title, anchor, *token.map)


def _words(inline: list[Token]) -> Iterator[str]:
    for child in inline:
        if child.type in ("text", "code_inline", "image"):
            yield child.content
        elif child.type in ("softbreak", "hardbreak"):
            yield " "


def github_slug(title: str) -> str:
    """The anchor GitHub gives a heading: "What's new?" -> "whats-new"."""
    return NOT_IN_SLUG.sub("", title.lower()).replace(" ", "-") or "section"
