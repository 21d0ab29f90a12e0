import tracemalloc

from rag.ingest import blocks
from rag.ingest.blocks import code_windows, markdown_windows
from rag.ingest.windows import trim_span


def cut(windows, text: str, size: int, overlap: int = 0) -> list[str]:
    return [text[slice(*trim_span(text, *span))] for span in windows(text, size, overlap)]


FENCE = "```python\nx = 1\n\n\ny = 2\n```"
TABLE = "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |"


def test_a_fence_a_table_and_a_list_item_stay_whole_where_they_fit():
    text = f"Some words before.\n\n{FENCE}\n\n{TABLE}\n\n- one item\n\n  of two paragraphs\n- another item"
    assert cut(markdown_windows, text, 50) == [
        f"Some words before.\n\n{FENCE}",
        TABLE,
        "- one item\n\n  of two paragraphs\n- another item",
    ]


def test_too_long_a_list_is_cut_between_items_and_its_items_stay_whole():
    items = [f"{i}. item number {i}\n   goes on" for i in range(1, 7)]
    assert cut(markdown_windows, "\n".join(items), 70) == ["\n".join(items[i : i + 2]) for i in (0, 2, 4)]


def test_too_long_a_table_is_cut_between_rows_and_the_header_keeps_its_first_row():
    text = "| name | value |\n|---|---|\n" + "\n".join(f"| row {i} | {i * 1000} |" for i in range(6))
    chunks = cut(markdown_windows, text, 60)
    assert chunks[0] == "| name | value |\n|---|---|\n| row 0 | 0 |\n| row 1 | 1000 |"
    assert all(chunk.startswith("| row") and chunk.endswith("|") for chunk in chunks[1:])


def test_too_long_a_fence_is_cut_between_lines_and_its_end_goes_with_the_last_of_them():
    text = "```\n" + "\n".join(f"line_{i} = {i}" for i in range(8)) + "\n```"
    chunks = cut(markdown_windows, text, 40)
    assert "\n".join(chunks) == text
    assert chunks[-1].endswith("\n```") and len(chunks[-1]) > 5


def test_a_heading_goes_with_the_text_below_it():
    text = "A paragraph of words.\n\n## Heading\n\nThe text below the heading."
    assert cut(markdown_windows, text, 45) == ["A paragraph of words.", "## Heading\n\nThe text below the heading."]


def test_too_long_a_paragraph_is_cut_at_words_with_overlap():
    text = "Short.\n\n" + "word " * 30
    chunks = cut(markdown_windows, text, 50, 10)
    assert chunks[0] == "Short." and all(len(chunk) <= 50 for chunk in chunks)
    assert chunks[1] == ("word " * 10)[:-1] and len(chunks) == 5


def test_a_text_parsed_in_slabs_has_the_chunks_of_the_whole(monkeypatch):
    parts = ["Some words before.", "## Heading", "Text below.", FENCE, TABLE, "- one item\n\n  goes on\n- another item"]
    text = "\n\n".join(parts * 3)
    whole = cut(markdown_windows, text, 50)
    for slab in range(70, 200):
        monkeypatch.setattr(blocks, "SLAB", slab)
        assert cut(markdown_windows, text, 50) == whole


def test_what_is_longer_than_a_slab_is_kept_to_the_last_character(monkeypatch):
    monkeypatch.setattr(blocks, "SLAB", 40)
    for text in ("x" * 500, "word " * 99 + "word", "- item\n" * 70 + "- item", "```\n" + "line\n" * 90 + "```"):
        chunks = cut(markdown_windows, text, 30)
        assert "".join("".join(chunks).split()) == "".join(text.split())
        assert max(len(chunk) for chunk in chunks) <= 30


def test_a_long_table_is_cut_in_little_memory():
    text = "|a|b|c|d|\n|-|-|-|-|\n" + "|penguin|b2|c3|d4|\n" * 20_000
    tracemalloc.start()
    *_, last = markdown_windows(text, 1000, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert last[1] == len(text) - 1
    assert peak < 16 * 2**20


def test_definitions_of_links_alone_are_kept():
    assert cut(markdown_windows, "[a]: http://x\n[b]: http://y", 50) == ["[a]: http://x\n[b]: http://y"]


def test_a_lone_carriage_return_moves_no_line():
    assert cut(markdown_windows, "a\rb\n\n" + FENCE, 30) == ["a\rb", FENCE]


CODE = """\
import os

@cache
def first(x):
    y = x + 1

    return y

# about the second
def second(x):
    if x:
        return 1
    else:
        return 2
"""


def test_code_is_cut_between_definitions_with_what_stands_above_them():
    second = CODE.index("# about")
    assert cut(code_windows, CODE, 95) == [CODE[:second].rstrip(), CODE[second:].rstrip()]


def test_a_definition_that_is_too_long_is_cut_where_the_indentation_is_least():
    assert cut(code_windows, CODE[CODE.index("def second") :], 50) == [
        "def second(x):\n    if x:\n        return 1",
        "    else:\n        return 2",
    ]


def test_methods_of_a_class_stay_whole_and_indented():
    methods = [f"    def method_{i}(self):\n        return {i}" for i in range(4)]
    text = "class A:\n" + "\n\n".join(methods) + "\n"
    assert cut(code_windows, text, 60) == ["class A:\n" + methods[0], methods[1], methods[2], methods[3]]


def test_a_closing_bracket_stays_with_what_it_closes():
    text = "int f() {\n    int a = 1;\n    return a;\n}\n\nint g() {\n    return 2;\n}\n"
    assert cut(code_windows, text, 60) == [text[: text.index("int g")].rstrip(), text[text.index("int g") :].rstrip()]


def test_only_a_line_that_is_too_long_is_cut_inside():
    text = "a = 1\n" + "x = '" + "y" * 90 + "'\n" + "b = 2\n"
    chunks = cut(code_windows, text, 50)
    assert chunks[0] == "a = 1" and chunks[-1] == "b = 2"
    assert "".join(chunks[1:-1]).replace(" ", "") == "x='" + "y" * 90 + "'"
