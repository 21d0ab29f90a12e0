from samples import docx_parts, item, paragraph, word_table, zipped

from rag.ingest.extract import extract
from rag.ingest.mimes import DOCX
from rag.records import Document


def sections(body: str, title: str = "") -> list[tuple[str, str, str]]:
    found = extract(Document("file:///our%20plan.docx", DOCX, zipped(docx_parts(body, title))))
    return [(section.source.removeprefix("file:///our%20plan.docx"), section.title, section.text) for section in found]


def test_headings_make_sections_with_paths_and_anchors():
    body = (
        paragraph("The Plan", "Title")
        + paragraph("Why.")
        + paragraph("Key findings", "H1")
        + paragraph("We found it.")
        + paragraph("In the north", "H2")
        + paragraph("Cold.")
        + paragraph("Key findings", "Own")
        + paragraph("Again.")
        + paragraph("By level", "", '<w:outlineLvl w:val="1"/>')
        + paragraph("Deep.")
    )
    assert sections(body, "ignored") == [
        ("", "The Plan", "Why."),
        ("#key-findings", "The Plan > Key findings", "We found it."),
        ("#in-the-north", "The Plan > Key findings > In the north", "Cold."),
        ("#key-findings-1", "The Plan > Key findings", "Again."),
        ("#by-level", "The Plan > Key findings > By level", "Deep."),
    ]


def test_without_a_title_paragraph_the_properties_name_the_document_and_then_the_file():
    assert sections(paragraph("x"), "Budget") == [("", "Budget", "x")]
    assert sections(paragraph("x"), "Document1") == [("", "our plan", "x")]


def test_lists_stand_together_and_numbers_count():
    body = (
        paragraph("Before")
        + item("a", 1)
        + paragraph("b", "Bullet")
        + paragraph("Between")
        + item("one", 2)
        + item("inner", 2, 1)
        + item("inner too", 2, 1)
        + item("two", 2)
        + item("inner again", 2, 1)
        + paragraph("After")
    )
    text = "Before\n\n- a\n- b\n\nBetween\n\n1. one\n  1. inner\n  2. inner too\n2. two\n  1. inner again\n\nAfter"
    assert sections(body) == [("", "our plan", text)]


def test_a_table_is_one_block_of_rows():
    body = paragraph("x") + word_table(["Name", "Age"], ["Ann", "31"], ["Bob", ""]) + paragraph("y")
    assert sections(body) == [("", "our plan", "x\n\nName | Age\nAnn | 31\nBob\n\ny")]


def test_the_text_is_what_a_reader_sees():
    body = (
        paragraph("Contents .... 1", "TOC1")
        + "<w:sdt><w:sdtContent>" + paragraph("in a control") + "</w:sdtContent></w:sdt>"
        + "<w:p><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t></w:r>"
        "<w:ins><w:r><w:t xml:space='preserve'> new</w:t></w:r></w:ins>"
        "<w:del><w:r><w:delText>old</w:delText></w:r></w:del>"
        "<w:r><w:footnoteReference w:id='7'/><w:instrText>PAGE</w:instrText></w:r>"
        "<w:hyperlink r:id='x'><w:r><w:t>, link</w:t></w:r></w:hyperlink></w:p>"
        "<w:p><w:r><w:drawing><w:txbxContent>" + paragraph("boxed") + "</w:txbxContent></w:drawing>"
        "<w:Fallback><w:txbxContent>" + paragraph("boxed") + "</w:txbxContent></w:Fallback></w:r></w:p>"
        + paragraph("looped", "Loop")
        + paragraph("unknown", "no such style")
    )  # fmt: skip
    assert sections(body) == [
        ("", "our plan", "in a control\n\na\tb\nc new, link\n\nNote: As of May.\n\nboxed\n\nlooped\n\nunknown")
    ]
