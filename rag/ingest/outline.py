"""Headings in, cited sections out: what all formats share. Knows nothing of any markup."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from rag.records import Section

FRAGMENT_SAFE = "!$&'()*+,;=:@/?"  # RFC 3986, beside letters, digits and -._~
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
        text = trim("\n".join(lines[heading.end : end]))
        names = [title, *(part.title for part in path)]
        sections.append(Section(cite(source, heading.anchor), heading_path(names), text))
    return [section for section in sections if section.text]


def heading_path(titles: Iterable[str]) -> str:
    """ "Sorting > Key functions"; the document's title is not repeated by a first heading that equals it."""
    path = [title for title in titles if title]
    return " > ".join(path[1:] if path[:1] == path[1:2] else path)


def cite(source: str, anchor: str) -> str:
    """The address of a part: `source#anchor`."""
    return f"{source}#{quote(anchor, safe=FRAGMENT_SAFE)}" if anchor else source


def name_each(sections: Iterable[Section], source: str) -> list[Section]:
    """The sections, no two with the same source and none without a title."""
    stem = file_stem(source)
    taken: set[str] = set()
    times: Counter[str] = Counter()
    named = []
    for section in sections:
        name = section.source
        while name in taken:
            times[section.source] += 1
            name = f"{section.source}-{times[section.source] + 1}"
        taken.add(name)
        named.append(replace(section, source=name, title=section.title or stem))
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
