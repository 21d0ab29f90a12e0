"""What holds for every format: sections with sources of their own or a reason, however the file is broken."""

from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    docx_parts,
    epub_parts,
    item,
    notebook,
    paragraph,
    pdf,
    pptx_parts,
    rows,
    shape,
    slide_table,
    word_table,
    xlsx_parts,
    zipped,
)

from rag.errors import ExtractionError
from rag.ingest.extract import READERS, extract
from rag.ingest.mimes import DOCX, NOTEBOOK, PPTX, XLSX
from rag.records import Document, Section

EPUB = "application/epub+zip"
PARTS = {
    DOCX: docx_parts(
        paragraph("A title", "Title") + paragraph("One", "H1") + item("a", 2) + word_table(["x", "y"], ["1", "2"]), "T"
    ),
    PPTX: pptx_parts([shape("One", "title") + shape("body"), slide_table(["x"], ["1"])], {0: "say"}, "Deck"),
    XLSX: xlsx_parts({"S": rows(["a", "b"], [1, 2.5], ["x", True]), "T": rows(["c"])}),
    EPUB: epub_parts({"a.xhtml": '<h1 id="x">A</h1><p>b</p>', "b.xhtml": "<p>c</p>"}, "Book", {"a.xhtml": "One"}),
}
WHOLE = {mime: zipped(parts) for mime, parts in PARTS.items()} | {
    "application/pdf": pdf(["One\nTwo infor-\nmation", "Three"], "Title", [("A", 0), ("B", 1)]),
    NOTEBOOK: notebook(("markdown", "# A\nb"), ("code", "c", [{"output_type": "stream", "text": "d"}])).encode(),
}


def check(mime: str, content: bytes) -> list[Section]:
    """The sections, if any; anything else but an ExtractionError fails the test."""
    try:
        found = extract(Document("file:///a%20b/c.x", mime, content))
    except ExtractionError as error:
        assert str(error) and "\n" not in str(error) and "Error:" not in str(error)
        return []
    assert found and len({section.source for section in found}) == len(found)
    for section in found:
        assert section.text.strip() and section.title and "\x00" not in section.text
        document, _, anchor = section.source.partition("#")
        assert document == "file:///a%20b/c.x" and "#" not in anchor and " " not in anchor and anchor.isascii()
        assert unquote(anchor) == unquote(unquote(anchor)) or "%25" in anchor
    return found


@pytest.mark.parametrize("mime", WHOLE)
def test_a_good_file_has_sections(mime):
    assert len(check(mime, WHOLE[mime])) >= 1


@settings(deadline=None)  # a child may have to start
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_a_file_that_is_cut_short_or_changed_gives_sections_or_a_reason(mime, data):
    content = bytearray(WHOLE[mime])
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    check(mime, bytes(content[: data.draw(st.integers(0, len(content)))]))
    check(mime, bytes(content))


PIECES = st.one_of(
    st.sampled_from(
        ["<", ">", "/>", "&", "&amp;", "-1", "99999999999999999999", '"', "\ud7ff", "\x00", "<a>", "r:id", "%"]
    ),
    st.text(max_size=4),
)


@settings(deadline=None)  # a child may have to start
@given(st.sampled_from(sorted(PARTS)), st.data())
def test_an_archive_with_a_changed_part_gives_sections_or_a_reason(mime, data):
    parts = dict(PARTS[mime])
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(parts)))
        text = str(parts[name])
        place = data.draw(st.integers(0, len(text)))
        end = place + data.draw(st.sampled_from([0, 1, 3, 20, len(text)]))
        parts[name] = text[:place] + data.draw(PIECES) + text[end:]
    check(mime, zipped({name: str(part).encode("utf-8", "replace") for name, part in parts.items()}))


@pytest.mark.parametrize("mime", READERS)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n%PDF-PK\x03\x04", "expected {}, found something else under its name"),
        (b"Not Found", "expected {}, found something else under its name"),
    ],
)
def test_a_file_of_another_kind_is_refused(mime, content, reason):
    with pytest.raises(ExtractionError) as caught:
        extract(Document("file:///x", mime, content))
    assert str(caught.value) == reason.format(READERS[mime][0])


def test_an_office_file_with_a_password_or_of_an_old_format_says_so():
    with pytest.raises(ExtractionError, match="^encrypted, or older than DOCX; save it as DOCX without a password$"):
        extract(Document("file:///x", DOCX, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"))
    with pytest.raises(ExtractionError, match="^binary content, expected text$"):
        extract(Document("file:///x", "text/plain", WHOLE["application/pdf"]))


@pytest.mark.parametrize(("mime", "name"), [("application/json", "JSON"), ("application/yaml", "YAML")])
def test_settings_are_one_section_named_by_the_file(mime, name):
    (section,) = extract(Document("file:///etc/app%20one.yaml", mime, b"\na: 1\n"))
    assert (section.source, section.title, section.text) == ("file:///etc/app%20one.yaml", "app one.yaml", "a: 1")
