import pytest
from samples import epub_parts, zipped

from rag.errors import ExtractionError
from rag.ingest.extract import extract
from rag.records import Document

EPUB = "application/epub+zip"
CHAPTER = (
    '<?xml version="1.0" encoding="utf-8"?><html xmlns="x"><head><title/></head><body><a id="page7"/>'
    '<h1 id="top">Whales</h1><p>Large.</p><h2 id="diet">Diet &amp; habits</h2><p>Krill.<br/>Squid.</p></body></html>'
)


def sections(parts: dict[str, str | bytes]) -> list[tuple[str, str, str]]:
    found = extract(Document("file:///sea.epub", EPUB, zipped(parts)))
    return [(section.source.removeprefix("file:///sea.epub"), section.title, section.text) for section in found]


def test_chapters_are_read_in_order_and_their_headings_are_cited():
    parts = epub_parts(
        {"z.xhtml": CHAPTER, "text/a b.xhtml": "<p>The end.</p>"}, "The Sea", {"text/a%20b.xhtml": "Epilogue"}
    )
    assert sections(parts) == [
        ("#z.xhtml!top", "The Sea > Whales", "Large."),
        ("#z.xhtml!diet", "The Sea > Whales > Diet & habits", "Krill.\nSquid."),
        ("#text/a%20b.xhtml", "The Sea > Epilogue", "The end."),
    ]


def test_the_navigation_of_epub_3_names_chapters_and_is_no_chapter():
    parts = epub_parts({"nav.xhtml": '<html><a href="one.xhtml#x">First</a></html>', "one.xhtml": "<p>x</p>"})
    opf = str(parts["OEBPS/book.opf"]).replace('id="c0"', 'id="c0" properties="nav"')
    assert sections(parts | {"OEBPS/book.opf": opf}) == [("#one.xhtml", "First", "x")]


def test_a_table_of_contents_that_is_damaged_costs_only_the_names():
    parts = epub_parts({"one.xhtml": "<p>x</p>"}) | {"OEBPS/toc.ncx": "<ncx><"}
    assert sections(parts) == [("#one.xhtml", "sea", "x")]


ENCRYPTION = (
    '<encryption><EncryptedData><CipherData><CipherReference URI="OEBPS/{}"/></CipherData></EncryptedData></encryption>'
)


def test_a_book_under_copy_protection_says_so_and_hidden_fonts_do_not_matter():
    parts = epub_parts({"one.xhtml": "<p>x</p>"})
    font = {"META-INF/encryption.xml": ENCRYPTION.format("font.otf")}
    assert sections(parts | font) == [("#one.xhtml", "sea", "x")]
    with pytest.raises(ExtractionError, match="^encrypted: its chapters are under copy protection"):
        sections(parts | {"META-INF/encryption.xml": ENCRYPTION.format("one.xhtml")})


@pytest.mark.parametrize("missing", ["META-INF/container.xml", "OEBPS/book.opf", "OEBPS/one.xhtml"])
def test_a_book_with_a_part_missing_names_it(missing):
    parts = epub_parts({"one.xhtml": "<p>x</p>"})
    del parts[missing]
    with pytest.raises(ExtractionError) as caught:
        sections(parts)
    assert str(caught.value) == f"damaged EPUB: {missing} is missing"
