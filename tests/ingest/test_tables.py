from hypothesis import given
from hypothesis import strategies as st

from rag.ingest.extract import extract
from rag.ingest.tables import format_table, group_blocks, table_blocks
from rag.records import Document


def sections(text: str, mime: str = "text/csv") -> list[tuple[str, str, str]]:
    found = extract(Document("file:///people.csv", mime, text.encode()))
    return [(section.source.removeprefix("file:///people.csv"), section.title, section.text) for section in found]


def test_csv_rows_are_lines_and_a_cell_of_two_lines_is_one():
    assert sections('name;note\nAnn;"a; ""b""\nc"\n\nBob;\n') == [("", "people", 'name | note\nAnn | a; "b" c\n\nBob')]
    assert sections("a\tb, c\n1\t2\n", "text/tab-separated-values") == [("", "people", "a | b, c\n1 | 2")]


def test_a_long_csv_is_cited_by_its_rows():
    found = sections("name,age\n" + "Ann,31\n" * 1500)
    assert [(source, title) for source, title, _ in found] == [("#row=1-976", "people"), ("#row=977-1501", "people")]
    assert found[1][2].startswith("name | age\nAnn | 31\n")


def test_csv_that_cannot_be_parsed_is_still_text():
    text = 'a,"' + "b" * 200_000
    assert sections(text) == [("", "people", text)]


def test_a_short_table_is_one_block_and_numbers_are_no_header():
    assert format_table([["Name", "Age"], ["Ann", "31"]]) == "Name | Age\nAnn | 31"
    long = format_table([["1.5", "x"], *([["7", "y" * 50]] * 20)])
    assert long.count("1.5 | x") == 1 and long.count("\n\n") == 1


CELLS = st.lists(st.text(alphabet="ab 1|\n", max_size=30), max_size=4)


@given(st.lists(CELLS, max_size=80))
def test_every_filled_row_is_in_one_block(rows):
    blocks = list(table_blocks(enumerate(rows, 1)))
    spans = [(block.first, block.last) for block in blocks]
    assert all(first <= last for first, last in spans)
    assert all(before[1] < after[0] for before, after in zip(spans, spans[1:], strict=False))
    covered = {row for first, last in spans for row in range(first, last + 1)}
    assert covered == {number for number, row in enumerate(rows, 1) if any(row)}
    assert "\n\n".join(group.text for group in group_blocks(blocks)) == "\n\n".join(block.text for block in blocks)
