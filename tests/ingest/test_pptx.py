from samples import pptx_parts, shape, slide_table, zipped

from rag.ingest.extract import extract
from rag.ingest.mimes import PPTX
from rag.records import Document


def sections(slides: list[str], notes: dict[int, str] | None = None, title: str = "") -> list[tuple[str, str, str]]:
    content = zipped(pptx_parts(slides, notes or {}, title))
    found = extract(Document("file:///talk.pptx", PPTX, content))
    return [(section.source.removeprefix("file:///talk.pptx"), section.title, section.text) for section in found]


def test_a_slide_is_a_section_in_the_order_shown_with_its_notes():
    slides = [
        shape("Point\n deeper", "body") + shape("Why", "title") + shape("3", "sldNum"),
        shape("Just text"),
        "",
        shape("", "title") + shape("x"),
    ]
    assert sections(slides, {1: "Say this.\nSlowly."}, "Our Deck") == [
        ("#slide=1", "Our Deck > Why", "Why\n\nPoint\n  deeper"),
        ("#slide=2", "Our Deck", "Just text\n\nNotes: Say this.\nSlowly."),
        ("#slide=4", "Our Deck", "x"),
    ]


def test_tables_and_groups_are_read():
    slide = f"<p:grpSp>{shape('in a group')}</p:grpSp>" + slide_table(["Year", "Sum"], ["2024", "7"])
    assert sections([slide]) == [("#slide=1", "talk", "in a group\n\nYear | Sum\n2024 | 7")]


def test_a_deck_that_nobody_titled_is_named_by_its_file():
    assert sections([shape("x")], title="PowerPoint Presentation")[0][1] == "talk"
