"""Files made to do harm: each ends as a reason, in a child that stays small."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import docx_parts, epub_parts, paragraph, relations, rows, xlsx_parts, zipped

from rag.errors import ExtractionError
from rag.ingest.isolate import IsolatedReader
from rag.ingest.mimes import DOCX, NOTEBOOK, XLSX
from rag.records import Document, Section

EPUB = "application/epub+zip"
MEMORY = 256 * 2**20
BASELINE = 128 * 2**20  # what the child needs to start, with room to spare


@pytest.fixture(scope="module")
def reader() -> Iterator[IsolatedReader]:
    reader = IsolatedReader(timeout_s=30, memory_bytes=MEMORY)
    yield reader
    reader.close()


def read(reader: IsolatedReader, mime: str, content: bytes) -> list[Section]:
    try:
        return reader.read(Document("file:///evil", mime, content), "test")
    finally:
        assert reader.peak_bytes < MEMORY + BASELINE


def word(document: str | bytes, **more: str) -> bytes:
    return zipped(docx_parts("") | {"word/document.xml": document})


def lying(content: bytes, declared: int) -> bytes:
    """The archive, its first entry's size declared as something else."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        real = archive.infolist()[0].file_size
    assert content.count(real.to_bytes(4, "little")) >= 2
    return content.replace(real.to_bytes(4, "little"), declared.to_bytes(4, "little"))


LAUGHS = "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
STRAY = '<row r="1048576"><c r="XFD1048576"><v>7</v></c></row>'
SHARED = '<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><si><t>{}</t></si></sst>'
SHARED_CELLS = "".join(f'<row r="{n}"><c r="A{n}" t="s"><v>0</v></c></row>' for n in range(1, 20_001))
SHARED_RELATIONS = relations(("r1", "worksheet", "worksheets/sheet1.xml"), ("r2", "sharedStrings", "sharedStrings.xml"))
UNPACKED = {f"xl/{n}.xml": b" " * 2**20 for n in range(257)}

REASONS = {
    "bomb": (DOCX, word(b"<a>" + b" " * 2**21), "expected parts packed at most 200:1, found 10"),
    "many small parts": (
        XLSX,
        zipped(UNPACKED),
        "expected at most 268435456 bytes unpacked, found more in xl/256.xml",
    ),
    "smaller than declared": (
        DOCX,
        lying(zipped({"_rels/.rels": b"<a>" + b"x" * 70_000, "b": b""}), 90_000),
        "damaged DOCX: _rels/.rels: ",
    ),
    "larger than declared": (
        DOCX,
        lying(zipped({"_rels/.rels": b"<a>" + b"x" * 70_000, "b": b""}), 900),
        "damaged DOCX: _rels/.rels: Bad CRC-32 for file '_rels/.rels'",
    ),
    "many entries": (
        DOCX,
        zipped({f"{n}": b"" for n in range(10_001)}, zipfile.ZIP_STORED),
        "expected at most 10000 entries, found 10001",
    ),
    "billion laughs": (
        DOCX,
        word(f'<!DOCTYPE x [<!ENTITY a "haha">{LAUGHS}]><document>&j;</document>'),
        "declares XML entities, which are not read: DOCX: word/document.xml",
    ),
    "external entity": (
        DOCX,
        word('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><document><body>&a;</body></document>'),
        "declares XML entities, which are not read: DOCX: word/document.xml",
    ),
    "parameter entity": (
        EPUB,
        zipped(epub_parts({}) | {"OEBPS/book.opf": '<!DOCTYPE x [<!ENTITY % a SYSTEM "http://[::1]:9/x"> %a;]><a/>'}),
        "declares XML entities, which are not read: EPUB: OEBPS/book.opf",
    ),
    "deep XML": (
        DOCX,
        word("<a>" * 100_000 + "</a>" * 100_000),
        "expected elements nested at most 256 deep, found more in DOCX: word/document.xml",
    ),
    "unknown encoding": (DOCX, word('<?xml version="1.0" encoding="none"?><a/>'), "damaged DOCX: word/document.xml: "),
    "sheet of 17,000,000,000 cells": (
        XLSX,
        zipped(xlsx_parts({"S": rows(["a"]) + STRAY})),
        "needs more than 0.25 GiB of memory",
    ),
    "one text in 20,000 cells": (
        XLSX,
        zipped(
            xlsx_parts({"S": SHARED_CELLS})
            | {"xl/sharedStrings.xml": SHARED.format("abcdefghij" * 10_000)}
            | {"xl/_rels/workbook.xml.rels": SHARED_RELATIONS}
        ),
        "needs more than 0.25 GiB of memory",
    ),
    "deep notebook": (NOTEBOOK, b'{"cells":' + b"[" * 100_000, "damaged notebook: its JSON is nested too deep"),
    "deep HTML": (
        "text/html",
        b"<div>" * 100_000,
        "expected elements nested at most 10000 deep, found 100000",
    ),
    "end tags that close nothing": (
        "text/html",
        b"<div></x>" * 20_000,
        "expected elements nested at most 10000 deep, found 20000",
    ),
    "formatting that is opened again in each paragraph": (
        "text/html",
        ("<p>" + "".join(f"<b c{i}>" for i in range(1000)) + "<p>x" * 4000).encode(),
        "needs more than 0.25 GiB of memory",
    ),
    "line of 30 MB, minified": (
        "text/javascript",
        b"a " * 15_000_000,
        "expected source code, found a line of 30000000 characters; is it minified?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_a_hostile_file_ends_as_a_reason(reader, name):
    mime, content, reason = REASONS[name]
    with pytest.raises(ExtractionError) as caught:
        read(reader, mime, content)
    assert str(caught.value).startswith(reason)


def test_a_line_of_16_megabytes_is_read_and_one_of_30_is_refused(reader):
    (section,) = read(reader, "text/plain", b"a" * 16_000_000)
    assert len(section.text) == 16_000_000
    with pytest.raises(ExtractionError, match="^expected at most 16777216 characters, found 30000000; split the file$"):
        read(reader, "text/plain", b"a" * 30_000_000)


def test_a_small_file_may_not_hold_a_hundred_times_as_much_text(reader):
    parts = epub_parts({f"{i}.xhtml": f"<p>{'word ' * 60_000}</p>" for i in range(4)})
    book = zipped(parts)
    assert len(book) < 10_000
    with pytest.raises(ExtractionError, match="^expected at most 1048576 characters, found 1199996; split the file$"):
        read(reader, EPUB, book)


def test_terms_within_terms_have_short_titles(reader):
    found = read(reader, "text/html", b"<dl><dt id=a>x" * 2300)
    assert len(found) == 2300
    assert max(len(section.title) for section in found) <= 500


def test_an_endless_heading_stands_in_the_text_and_not_before_each_chunk(reader):
    found = read(reader, "text/markdown", b"# " + b"word " * 200_000 + b"\n\n" + b"text of it " * 90_000)
    (section,) = found
    assert section.title == "word " * 39 + "word…"
    assert section.source == "file:///evil"
    assert section.text.count("word") == 200_000 and section.text.endswith("text of it")


def test_3000_sections_below_an_endless_heading_are_read(reader):
    found = read(reader, "text/markdown", b"# " + b"word " * 20_000 + b"\n\n" + b"## b\n\ntext\n\n" * 3000)
    assert {section.title for section in found[1:]} == {"word " * 39 + "word… > b"}
    assert len(found) == 3001


def test_blanks_in_front_matter_take_no_time(reader):
    (section,) = read(reader, "text/markdown", b"---\ntitle: a" + b" " * 200_000 + b"b\n---\ntext")
    assert section.text == "text" and section.title == "a b"


def test_a_chapter_that_a_book_repeats_is_read_once(reader):
    parts = epub_parts({"one.xhtml": "<p>x</p>", "two.xhtml": "<p>y</p>"})
    opf = str(parts["OEBPS/book.opf"]).replace('<itemref idref="c0"/>', '<itemref idref="c0"/>' * 1000)
    found = read(reader, EPUB, zipped(parts | {"OEBPS/book.opf": opf}))
    assert [section.text for section in found] == ["x", "y"]


def test_what_a_terminal_obeys_is_left_out(reader):
    found = read(reader, "text/markdown", "# A\x1b]0;evil\x07\n\na\x9b31mb\x7f\tc\x0cd\n".encode())
    assert [(section.title, section.text) for section in found] == [("A]0;evil", "a31mb\tc\nd")]


def test_names_that_lead_out_of_the_archive_and_archives_inside_it_are_left_alone(reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = {"../../../evil.txt": "x", "/tmp/evil.txt": "x", "word/embeddings/a.zip": zipped({"bomb": b" " * 2**24})}
    (section,) = read(reader, DOCX, zipped(docx_parts(paragraph("kind")) | evil))
    assert section.text == "kind"
    assert not list(tmp_path.iterdir()) and not Path("/tmp/evil.txt").exists()
    leading_out = docx_parts("") | {
        "_rels/.rels": '<a><Relationship Type="x/officeDocument" Target="../../../etc/passwd"/></a>'
    }
    with pytest.raises(ExtractionError, match="^damaged DOCX: etc/passwd is missing$"):
        read(reader, DOCX, zipped(leading_out))


def test_a_document_type_elsewhere_is_not_fetched(reader):
    text = '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><document><body><p><r><t>a&amp;&nbsp;b</t></r></p></body></document>'
    assert [section.text for section in read(reader, DOCX, word(text))] == ["a&b"]


def test_text_that_no_database_takes_is_cleaned(reader):
    found = read(reader, NOTEBOOK, b'{"cells": [{"cell_type": "raw", "source": "a\\u0000\\ud800b\\r\\nc"}]}')
    assert [section.text for section in found] == ["ab\nc"]
