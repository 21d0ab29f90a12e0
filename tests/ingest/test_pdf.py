import pytest
from samples import pdf

from rag.errors import ExtractionError
from rag.ingest.extract import extract
from rag.records import Document

ONE_PAGE = pdf(["x"], bookmarks=[("A", 0), ("B", 0)])
LOCKED = f"/Encrypt << /Filter /Standard /V 1 /R 2 /O ({'o' * 32}) /U ({'u' * 32}) /P -4 >> /ID [(a) (b)]"


def sections(content: bytes, name: str = "a%20report.pdf") -> list[tuple[str, str, str]]:
    found = extract(Document(f"file:///{name}", "application/pdf", content))
    return [(section.source.removeprefix(f"file:///{name}"), section.title, section.text) for section in found]


def test_a_page_is_a_section_with_the_anchor_that_browsers_open():
    content = pdf(["One line\nand another", "Two"], title="Annual Report")
    assert sections(content) == [
        ("#page=1", "Annual Report", "One line\nand another"),
        ("#page=2", "Annual Report", "Two"),
    ]


@pytest.mark.parametrize("title", ["", "untitled", "Microsoft Word - Document1"])
def test_a_pdf_that_nobody_titled_is_named_by_its_file(title):
    assert sections(pdf(["x"], title)) == [("#page=1", "a report", "x")]


def test_a_page_is_titled_by_the_bookmarks_that_it_stands_under():
    marks = [("Intro", 0), ("Methods", 2), ("Results", 3), ("Outlook", 3)]
    assert [title for _, title, _ in sections(pdf(["a", "b", "c", "d", "e"], "T", marks))] == [
        "T > Intro",
        "T > Intro",
        "T > Methods",
        "T",  # two begin on it
        "T > Outlook",
    ]


def test_words_that_were_parted_at_the_end_of_a_line_are_whole_again():
    text = (
        "The infor-\nmation of self-\naware and well-known\npeople, well-\nknown in the year 2020-\n2021 to Jean-\n"
        "Paul, self-aware"
    )
    assert sections(pdf([text]))[0][2].replace("\n", " ") == (
        "The information of self-aware and well-known people, well-known in the year 2020-2021 to Jean-Paul, self-aware"
    )


def test_a_scanned_pdf_says_so_and_a_partly_scanned_one_keeps_its_text():
    with pytest.raises(ExtractionError) as caught:
        sections(pdf(["", "", ""]))
    assert str(caught.value) == "no text on its 3 pages; it looks scanned: run OCR first"
    assert sections(pdf(["", "b", ""])) == [("#page=2", "a report", "b")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pdf(["x"], trailer=LOCKED), "encrypted: it needs a password; save it without one"),
        (b"%PDF-1.7 nothing", "damaged PDF: PDFium cannot open it"),
        (pdf([]), "damaged PDF: PDFium cannot open it"),
        (ONE_PAGE.replace(b"[6 0 R]", b"[2 0 R]"), "damaged PDF: PDFium can open none of its 1 pages"),
        (pdf([""] * 20_001), "expected at most 20000 pages, found 20001; split the file"),
        (b"\x89PNG\r\n\x1a\n" + b"%PDF-", "expected PDF, found something else under its name"),
        (b"<html>Sign in", "expected PDF, found something else under its name"),
    ],
)
def test_a_pdf_that_cannot_be_read_says_why(content, reason):
    with pytest.raises(ExtractionError) as caught:
        sections(content)
    assert str(caught.value).startswith(reason)


def test_bookmarks_that_lead_back_to_themselves_and_a_page_count_of_millions_end():
    looped = ONE_PAGE.replace(b"/Title (A) /Parent 5 0 R", b"/Title (A) /First 8 0 R ")
    assert looped != ONE_PAGE
    assert sections(looped) == [("#page=1", "a report", "x")]
    assert sections(pdf(["x"], count=2_000_000_000)) == [("#page=1", "a report", "x")]
