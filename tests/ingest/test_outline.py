"""Titles and sources that every format shares."""

from rag.ingest.outline import clip, heading_path, name_each
from rag.records import Section


def test_a_second_section_without_an_anchor_cannot_be_another_document():
    sections = [Section(source, "t", "x") for source in ("u/n", "u/n", "u/n#a", "u/n#a", "u/n")]
    assert [section.source for section in name_each(sections, "u/n")] == ["u/n", "u/n#-2", "u/n#a", "u/n#a-2", "u/n#-3"]


def test_an_anchor_too_long_to_be_cited_is_left_out():
    sections = [Section(f"u#{'a' * n}", "t", "x") for n in (1999, 2000, 3000)]
    assert [section.source for section in name_each(sections, "u")] == ["u#" + "a" * 1999, "u", "u#-2"]


def test_a_title_is_cut_at_a_word():
    assert clip("one two three", 13) == "one two three"
    assert clip("one two three", 12) == "one two…"
    assert clip("one two three", 8) == "one two…"
    assert clip("x" * 20, 10) == "x" * 9 + "…"


def test_a_path_of_long_headings_is_short():
    assert heading_path(["a " * 500, "b " * 500, "c"]) == "a " * 99 + "a… > " + "b " * 99 + "b… > c"
    assert len(heading_path(["word " * 500] + ["words " * 500] * 500)) <= 500
