from urllib.parse import unquote

import pytest
from samples import rows, xlsx_parts, zipped

from rag.errors import ExtractionError
from rag.ingest.extract import extract
from rag.ingest.mimes import XLSX
from rag.records import Document


def sections(sheets: dict[str, str]) -> list[tuple[str, str, str]]:
    found = extract(Document("file:///sums.xlsx", XLSX, zipped(xlsx_parts(sheets))))
    return [(section.source.removeprefix("file:///sums.xlsx"), section.title, section.text) for section in found]


def test_a_sheet_is_a_section_of_values():
    sheet = rows(
        ["Region", "2023", "Share"],
        ["North", 3, 0.5],
        ["South", 1234567.25, True],
        ["Sum", b'<c r="@"><f>B2+B3</f><v>12</v></c>', b'<c r="@"><f>NOW()</f></c>'],
        [],
        ["Date", b'<c r="@" s="1"><v>45413</v></c>'],
    )
    assert sections({"Q1 &amp; Q2": sheet, "Empty": "", "Zweite": rows(["x"])}) == [
        (
            "#sheet=Q1%20%26%20Q2",
            "sums > Q1 & Q2",
            "Region | 2023 | Share\nNorth | 3 | 0.5\nSouth | 1234567.25 | TRUE\nSum | 12\n\nDate | 2024-05-01",
        ),
        ("#sheet=Zweite", "sums > Zweite", "x"),
    ]


def test_the_name_of_a_sheet_comes_back_from_its_anchor():
    (section,) = sections({"a/b#c%20&amp;rows=1 \u00e9": rows(["x"])})
    name, _, rest = section[0].removeprefix("#sheet=").partition("&")
    assert (unquote(name), rest) == ("a/b#c%20&rows=1 \u00e9", "")


def test_a_long_sheet_has_its_header_in_every_block_and_a_section_for_a_thousand_rows():
    found = sections({"Long": rows(["Name", "Price"], *(["item", n] for n in range(2500)))})
    assert [source for source, _, _ in found] == [
        "#sheet=Long&rows=1-965",
        "#sheet=Long&rows=966-1948",
        "#sheet=Long&rows=1949-2501",
    ]
    blocks = [block for _, _, text in found for block in text.split("\n\n")]
    assert all(block.startswith("Name | Price\nitem | ") and len(block) < 700 for block in blocks)
    assert sum(block.count("item") for block in blocks) == 2500


def test_a_stray_cell_at_the_end_of_a_sheet_costs_no_text():
    stray = '<row r="900000"><c r="C900000"><v>7</v></c></row>'
    assert sections({"S": rows(["a"]) + stray}) == [
        ("#sheet=S&rows=1-1", "sums > S", "a"),
        ("#sheet=S&rows=900000-900000", "sums > S", " |  | 7"),
    ]


def test_a_workbook_that_is_damaged_says_so():
    with pytest.raises(ExtractionError, match="damaged XLSX: "):
        extract(Document("file:///x.xlsx", XLSX, zipped({"a": "b"})))
