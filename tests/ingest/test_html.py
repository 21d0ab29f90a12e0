import time

import pytest

from rag.errors import ExtractionError
from rag.ingest.extract import extract
from rag.records import Document

SOURCE = "file:///docs/page.html"


def sections(html: str | bytes) -> list[tuple[str, str, str]]:
    content = html if isinstance(html, bytes) else html.encode()
    found = extract(Document(SOURCE, "text/html", content))
    return [(section.source.removeprefix(SOURCE), section.title, section.text) for section in found]


def test_nested_sections_have_their_own_text_only():
    html = """<html><head><title>Sorting Techniques — Python 3.11 documentation</title></head><body>
    <nav>Home</nav><div role="main"><section id="sorting">
    <h1>Sorting Techniques<a class="headerlink" href="#sorting">¶</a></h1><p>Lists   have
    a sort.</p>
    <section id="keys"><h2>Key <em>Functions</em><a class="headerlink" href="#keys">¶</a></h2>
    <p>Use key.</p><section id="deep"><h3>Deeper</h3><p>Down.</p></section></section>
    <section id="order"><h2>Order</h2><p>Use reverse.</p></section>
    <p>The end.</p></section></div><footer>Copyright</footer></body></html>"""
    assert sections(html) == [
        ("#sorting", "Sorting Techniques", "Lists have a sort.\n\nThe end."),
        ("#keys", "Sorting Techniques > Key Functions", "Use key."),
        ("#deep", "Sorting Techniques > Key Functions > Deeper", "Down."),
        ("#order", "Sorting Techniques > Order", "Use reverse."),
    ]


def test_flat_headings_nest_by_level():
    html = """<title>Guide</title><p>Before.</p><h2 id="a">A</h2>one<h3 id="b">B</h3>two<h2 id="c">C</h2>three"""
    assert sections(html) == [
        ("", "Guide", "Before."),
        ("#a", "Guide > A", "one"),
        ("#b", "Guide > A > B", "two"),
        ("#c", "Guide > C", "three"),
    ]


def test_an_anchor_in_or_before_a_heading_is_its_address():
    html = '<h1><a name="in"></a>In</h1>one<a id="before"></a><h2>Before</h2>two<a id="x">far</a> off<h2>Far</h2>three'
    assert sections(html) == [("#in", "In", "one"), ("#before", "In > Before", "twofar off\n\nFar\n\nthree")]


def test_headings_without_an_anchor_stay_in_the_text():
    assert sections("<h1>Title</h1><p>one</p><h2>Part</h2><p>two</p>") == [("", "Title", "Title\n\none\n\nPart\n\ntwo")]


def test_a_page_without_headings_is_one_section_named_by_its_file():
    assert sections("<p>Only text</p>") == [("", "page", "Only text")]


def test_equal_anchors_get_numbers_and_odd_ones_are_encoded():
    html = '<h2 id="a">A</h2>1<h2 id="a">A</h2>2<h2 id="a b é">C</h2>3<h2 id="x.y(z)">D</h2>4'
    assert [source for source, _, _ in sections(html)] == ["#a", "#a-2", "#a%20b%20%C3%A9", "#x.y(z)"]


def test_sphinx_entries_are_sections_with_signature_and_explanation():
    html = """<title>Types</title><section id="lists"><h2>Lists</h2><dl class="py class">
    <dt class="sig" id="list"><em>class </em><span class="descname">list</span>(iterable)<a class="headerlink">¶</a>
    <dd><p>A sequence.</p><dl class="py method">
    <dt class="sig" id="list.sort"><span class="descname">sort</span>(*, key=None)</dt><dd><p>Sorts.</p></dd>
    <dt class="sig" id="list.a"><span class="descclassname">list.</span><span class="descname">a</span></dt>
    <dt class="sig" id="list.b"><span class="descname">b</span></dt><dd>Both.</dd></dl>
    <p>More on lists.</p></dd></dl><p>After.</p></section>"""
    assert sections(html) == [
        ("#lists", "Types > Lists", "After."),
        ("#list", "Types > Lists > list", "class list(iterable)\n\nA sequence.\n\nMore on lists."),
        ("#list.sort", "Types > Lists > list > sort", "sort(*, key=None)\n\nSorts."),
        ("#list.a", "Types > Lists > list > list.a", "list.a\nb\nBoth."),
    ]


def test_a_table_keeps_one_row_on_one_line():
    html = """<p>See</p><table><thead><tr><th><p>Op</p></th><th>Result</th></tr></thead><tbody>
    <tr><td><p>x or
    y</p></td><td><ul><li>first</li><li>second</li></ul></td></tr></tbody></table><p>Done</p>"""
    assert sections(html) == [("", "page", "See\n\nOp | Result\nx or y | first second\n\nDone")]


def test_a_table_for_layout_is_read_as_blocks():
    html = "<table><tr><td><h2 id=a>A</h2>one</td><td><table><tr><td>1</td><td>2</td></tr></table></td></tr></table>"
    assert sections(html) == [("#a", "A", "one\n\n1 | 2")]


def test_code_keeps_its_indentation():
    html = (
        "<p>Run:</p><pre>\n<span>def</span> f():\n    return  1\n\n  # end\n</pre><ul><li><p>a</p></li><li>b</li></ul>"
    )
    assert sections(html) == [("", "page", "Run:\n\ndef f():\n    return  1\n\n  # end\n\n- a\n- b")]


def test_scripts_and_navigation_are_not_text():
    html = "<body><script>x</script><style>y</style><aside>z</aside><noscript>n</noscript><!-- c --><p>text</p></body>"
    assert sections(html) == [("", "page", "text")]


def test_broken_html_still_has_its_text():
    assert sections("<div><p>one<p>two</div></span><h2 id=a>A<p>three</h2><b>four") == [
        ("", "page", "one\n\ntwo"),
        ("#a", "A three", "four"),
    ]


@pytest.mark.parametrize("html", [b"", b"  \n ", b"<html><head><title>T</title></head><body></body></html>"])
def test_a_page_without_text_is_refused(html):
    with pytest.raises(ExtractionError, match="^(empty|no text)$"):
        sections(html)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n0000", b"\x00\x01\x02\x03" * 9, b"%PDF-1.7 text"])
def test_an_image_named_html_is_refused(content):
    with pytest.raises(ExtractionError, match="^binary content, expected HTML$"):
        sections(content)


def test_a_declared_latin_1_is_obeyed():
    html = '<meta charset="iso-8859-1"><p>Gr\u00fc\u00dfe \u2013 caf\u00e9</p>'.encode("cp1252")
    assert sections(html) == [("", "page", "Grüße – café")]


def test_undeclared_windows_1252_is_guessed():
    words = "Le café était très agréable, où l’été dure à côté de la forêt. "
    assert sections(f"<p>{words * 9}</p>".encode("cp1252"))[0][2] == (words * 9).strip()


def test_damaged_utf_8_stays_utf_8():
    assert sections("<p>Größe und Länge, schön</p>".encode() + b"\xff<p>ende") == [
        ("", "page", "Größe und Länge, schön\n\n\ufffd\n\nende")
    ]


def test_a_byte_order_mark_wins_and_nul_is_removed():
    assert sections("<p>a\x00b — c".encode("utf-16")) == [("", "page", "ab — c")]


def test_deep_nesting_is_read_or_refused_but_never_a_crash():
    assert sections("<div>" * 5000 + "deep") == [("", "page", "deep")]
    with pytest.raises(ExtractionError, match="nested at most 10000 deep, found 100000"):
        sections("<div>" * 100_000 + "deep")


def test_many_sections_take_linear_time():
    start = time.perf_counter()
    html = "".join(f"<h1>x</h1><h2 id=s>t</h2><p>text {n}</p>" for n in range(20_000))
    assert len(sections(html)) == 20_001
    assert time.perf_counter() - start < 20
