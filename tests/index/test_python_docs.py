"""Real HTML, as Sphinx writes it: pages of the Python documentation (Debian package python3-doc)."""

from pathlib import Path
from urllib.parse import unquote

import pytest
from selectolax.lexbor import LexborHTMLParser

from rag.config import Settings
from rag.index.build import ingest
from rag.search.retrieve import open_retriever

PAGES = ("howto/sorting.html", "library/heapq.html", "library/csv.html", "library/calendar.html")
FOLDERS = [Path("/usr/share/doc/python3/html"), *sorted(Path("/usr/share/doc").glob("python3.*/html"))]


@pytest.fixture
def pages() -> list[Path]:
    for folder in FOLDERS:
        if (folder / PAGES[0]).exists():
            return [folder / page for page in PAGES]
    pytest.skip("needs the Debian package python3-doc: apt-get install python3-doc")


@pytest.mark.usefixtures("ray_here")
def test_sorting_a_list_of_dicts_finds_the_sorting_page_at_an_anchor_that_exists(
    pages: list[Path], settings: Settings
) -> None:
    report = ingest([str(page) for page in pages], settings)
    assert report.documents["failed"] == 0
    hits = open_retriever(settings).search("how do I sort a list of dicts by key", settings.collection, k=5).hits
    source, _, anchor = hits[0].source.partition("#")
    assert source == pages[0].as_uri()
    ids = {node.attributes.get("id") for node in LexborHTMLParser(pages[0].read_text()).css("[id]")}
    assert all(unquote(hit.source.partition("#")[2]) in ids for hit in hits if hit.source.startswith(source))
    assert anchor
