"""Headings in, cited sections out: what all formats share. Knows nothing of any markup."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from rag.records import Section

FRAGMENT_SAFE = "!$&'()*+,;=:@/?"  # RFC 3986, beside letters, digits and -._~
MAX_NAME_CHARS = 200  # of a heading within a title
# A section's title stands before the text of each of its chunks, and an embedder reads some 1,000 characters.
MAX_TITLE_CHARS = 500
MAX_ANCHOR_CHARS = 2_000  # as quoted; a longer one nobody could cite, and each chunk carries its section's source
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # PostgreSQL and UTF-8 take neither
LINE_ENDS = re.compile("\r\n?")
BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)+")


@dataclass(frozen=True)
class Heading:
    """A heading in a text kept as lines: its own lines are `lines[start:end]`."""

    level: int  # 1 is the highest
    title: str
    anchor: str
    start: int
    end: int


def split_at_headings(lines: Sequence[str], headings: Sequence[Heading], source: str, title: str = "") -> list[Section]:
    """The text before the first heading, then one section per heading. Empty ones are dropped.

    Without a `title` the document is named by its highest heading, if there is only one such.
    """
    top = [heading.title for heading in headings if heading.level == 1]
    title = title or (top[0] if len(top) == 1 else "")
    ends = [heading.start for heading in headings] + [len(lines)]
    sections = [Section(source, title, trim("\n".join(lines[: ends[0]])))]
    path: list[Heading] = []
    for heading, end in zip(headings, ends[1:], strict=True):
        path = [outer for outer in path if outer.level < heading.level] + [heading]
        # what a title has no room for stays in the text
        start = heading.end if len(heading.title) <= MAX_NAME_CHARS else heading.start
        text = trim("\n".join(lines[start:end]))
        names = [title, *(part.title for part in path)]
        sections.append(Section(cite(source, heading.anchor), heading_path(names), text))
    return [section for section in sections if section.text]


def heading_path(titles: Iterable[str]) -> str:
    """ "Sorting > Key functions"; the document's title is not repeated by a first heading that equals it.

    Short, however many and long the headings are: it is made for each section.
    """
    path = [clip(title, MAX_NAME_CHARS) for title in titles if title]
    return clip(" > ".join(path[1:] if path[:1] == path[1:2] else path), MAX_TITLE_CHARS)


def clip(text: str, max_chars: int) -> str:
    """At most so many characters: cut at a word, the cut shown by "…"."""
    if len(text) <= max_chars:
        return text
    words = text[:max_chars].rpartition(" ")[0]
    return (words.rstrip() or text[: max_chars - 1]) + "…"


def cite(source: str, anchor: str) -> str:
    """The address of a part: `source#anchor`."""
    return f"{source}#{quote(anchor, safe=FRAGMENT_SAFE)}" if anchor else source


def name_each(sections: Iterable[Section], source: str) -> list[Section]:
    """The sections, no two with the same source, none with an endless one and none without a title."""
    title = clip(file_stem(source), MAX_TITLE_CHARS)
    taken: set[str] = set()
    times: Counter[str] = Counter()
    named = []
    for section in sections:
        name = section.source if len(section.source) <= len(source) + MAX_ANCHOR_CHARS else source
        base = name if name != source else f"{source}#"  # `source-2` may be another document
        while name in taken:
            times[base] += 1
            name = f"{base}-{times[base] + 1}"
        taken.add(name)
        named.append(replace(section, source=name, title=section.title or title))
    return named


def file_stem(source: str) -> str:
    """ "a b" of "file:///docs/a%20b.md", to name what has no title."""
    return PurePosixPath(file_name(source)).stem


def file_name(source: str) -> str:
    return PurePosixPath(unquote(urlsplit(source).path)).name


def trim(text: str) -> str:
    """Without blank lines around it; the first line keeps its indentation."""
    blank = BLANK_LINES.match(text)
    return text[blank.end() if blank else 0 :].rstrip()
