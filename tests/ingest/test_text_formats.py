from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from rag.errors import ExtractionError
from rag.ingest.extract import SPLITTERS, decode, extract
from rag.ingest.markdown import block_parser
from rag.records import Document

CELLS = {"th_open", "td_open", "inline"}


def sections(text: str, mime: str) -> list[tuple[str, str, str]]:
    found = extract(Document("file:///a%20b.x", mime, text.encode()))
    return [(section.source.removeprefix("file:///a%20b.x"), section.title, section.text) for section in found]


def test_markdown_sections_have_github_anchors_and_raw_text():
    text = """---
title: "The Guide"
tags: [a]
---
Intro *text*.

# The Guide

## What's `new`?

| a | b |
|---|---|
| 1 | 2 |

```python
# not a heading
    indented
```

Set up
------
    code first

## What's new?
last
"""
    assert sections(text, "text/markdown") == [
        ("", "The Guide", "Intro *text*."),
        (
            "#whats-new",
            "The Guide > What's new?",
            "| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\n# not a heading\n    indented\n```",
        ),
        ("#set-up", "The Guide > Set up", "    code first"),
        ("#whats-new-1", "The Guide > What's new?", "last"),
    ]


def test_markdown_is_named_by_its_only_first_level_heading():
    assert sections("pre\n# One\na\n## Two\nb", "text/markdown") == [
        ("", "One", "pre"),
        ("#one", "One", "a"),
        ("#two", "One > Two", "b"),
    ]


def test_a_rule_at_the_top_of_markdown_is_not_front_matter():
    assert sections("---\nHello there\n\n---\nb", "text/markdown")[0][2].startswith("---\nHello there")


def test_restructuredtext_keeps_what_only_sphinx_knows():
    text = """\
=====
Title
=====

Intro :ref:`other`.

.. tabs:: x

   kept

Part one
--------
::

    code

Part one
--------
.. raw:: html

   <b>raw</b>

====
Next
====
end
"""
    assert sections(text, "text/x-rst") == [
        ("#title", "Title", "Intro :ref:`other`.\n\n.. tabs:: x\n\n   kept"),
        ("#part-one", "Title > Part one", "::\n\n    code"),
        ("#part-one-1", "Title > Part one", ".. raw:: html\n\n   <b>raw</b>"),
        ("#next", "Next", "end"),
    ]


def test_restructuredtext_reads_no_other_file_and_writes_nothing(capfd):
    text = "Top\n===\n.. include:: /etc/passwd\n\n:bad:`role` and *open\n"
    assert sections(text, "text/x-rst") == [("#top", "Top", ".. include:: /etc/passwd\n\n:bad:`role` and *open")]
    assert capfd.readouterr() == ("", "")


def test_a_heading_too_long_for_a_title_stays_in_the_text_and_one_that_is_not_does_not():
    long = " ".join(["penguin"] * 30)
    assert sections(f"## short\n\na\n\n## {long}\n\nb", "text/markdown")[1][2] == f"## {long}\n\nb"
    assert sections(f"<h2 id=a>{long}</h2><p>b", "text/html")[-1][2] == f"{long}\n\nb"


@pytest.mark.parametrize("name", ["punycode", "idna", "uu", "rot13", "unicode_escape"])
def test_an_encoding_that_no_page_has_is_not_believed(name):
    assert decode(f"<meta charset={name}>".encode() + b"\xe9t\xe9-", "text/html") == f"<meta charset={name}>été-"


def test_a_table_is_parsed_row_by_row_as_markdown_it_does_without_its_cells():
    text = (
        "# h\n\nbefore\na|b\n-|-\n1|2\n3\n> q\n\n- |x|\n  |-|\n  |y|\n\nc|d\n-|-\n\n    |no|\n    |-|\n\n|a|\n|-|-|\n"
    )

    def rows(parser: MarkdownIt) -> list[tuple[str, list[int] | None]]:
        found = [(token.type, token.map) for token in parser.parse(text)]
        found = [block for block in found if block[0] not in CELLS and not block[0].endswith("_close")]
        pairs = pairwise([("", None), *found])
        return [block for before, block in pairs if (before[0], block[0]) != ("thead_open", "tr_open")]

    assert rows(block_parser()) == rows(MarkdownIt("commonmark").enable("table"))
    assert sum(kind == "tr_open" for kind, _ in rows(block_parser())) == 3


def test_short_rows_of_a_wide_table_do_not_grow():
    text = "|".join("a" * 181) + "\n" + "|".join("-" * 181) + "\n" + "b\n" * 355
    assert len(block_parser().parse(text)) == 3 + 355 + 2


def test_plain_text_is_one_section_named_by_its_file():
    assert sections("\r\n  one\r\n\r\ntwo\x00 " + "x" * 50, "text/plain") == [("", "a b", "  one\n\ntwo " + "x" * 50)]


def test_an_unknown_type_is_refused():
    with pytest.raises(ExtractionError, match="found image/png"):
        sections("x", "image/png")


MARKUP = st.text(alphabet='<>/hdlt12id="a# -=`|\n\t:.*_é\x00\u2028\x0c', max_size=200)


@given(st.one_of(st.binary(max_size=300), MARKUP.map(str.encode)), st.sampled_from(sorted(SPLITTERS)))
def test_any_bytes_become_sections_or_a_reason(content, mime):
    try:
        found = extract(Document("file:///x", mime, content))
    except ExtractionError as error:
        assert str(error)
    else:
        assert len({section.source for section in found}) == len(found) > 0
        assert all(section.text.strip() and section.title and "\x00" not in section.text for section in found)
