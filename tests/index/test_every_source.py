"""A website, a repository, JSON lines and a PDF in one collection: ingested, searched, and brought up to date."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_site import Site

from rag.config import Settings
from rag.index.build import ingest
from rag.search.retrieve import open_retriever

pytestmark = pytest.mark.usefixtures("ray_here")

PDF = b"""%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>endobj
4 0 obj<</Length 61>>stream
BT /F 12 Tf 20 100 Td (Walruses have long tusks of ivory.) Tj ET
endstream endobj
5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj
trailer<</Root 1 0 R>>
"""


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


def test_all_kinds_of_sources_make_one_collection_and_what_leaves_them_leaves_it(
    tmp_path: Path, settings: Settings, site: Site
) -> None:
    web = settings.web.model_copy(update={"allow_private": (site.host,), "delay_s": 0})
    settings = settings.model_copy(update={"web": web})
    link = '<a href="/orca.html">orcas</a> <a href="/seal.html">seals</a>'
    site.pages["/"] = f"<title>Start</title><h1>Whales and seals</h1><p>An index of animals. {link}</p>"
    site.pages["/orca.html"] = "<title>Orcas</title><h1 id=orcas>Orcas</h1><p>Orcas hunt in pods.</p>"
    site.pages["/seal.html"] = "<title>Seals</title><h1 id=seals>Seals</h1><p>Seals rest on ice floes.</p>"
    rows = [{"id": "p1", "title": "Penguins", "text": "Penguins cannot fly.", "year": 1999}, {"id": "p2"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "walrus.pdf").write_bytes(PDF)
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "krill.py").write_text('def swarm():\n    """Krill swarm near the surface at night."""\n')
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(clone)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)

    sources = [site.url, str(tmp_path / "rows.jsonl"), str(tmp_path / "walrus.pdf"), f"git+{clone.as_uri()}"]
    report = ingest(sources, settings)
    assert report.documents == {"seen": 7, "new": 6, "changed": 0, "unchanged": 0, "removed": 0, "failed": 1}
    assert report.failures[0]["source"].endswith("rows.jsonl?id=p2")

    retriever = open_retriever(settings)

    def first(query: str) -> str:
        return retriever.search(query, settings.collection).hits[0].source

    assert first("orcas hunting in groups") == f"{site.url}/orca.html#orcas"
    assert first("birds that do not fly") == (tmp_path / "rows.jsonl").as_uri() + "?id=p1"
    assert first("ivory tusks") == (tmp_path / "walrus.pdf").as_uri() + "#page=1"
    assert first("swarming at night") == f"git+{clone.as_uri()}/krill.py#L1-L2"

    site.pages["/"] = site.pages["/"].replace('<a href="/seal.html">seals</a>', "")
    del site.pages["/seal.html"]
    again = ingest([], settings)  # all four, remembered
    assert again.documents == {"seen": 6, "new": 0, "changed": 1, "unchanged": 4, "removed": 1, "failed": 1}
    assert not any("seal" in hit.source for hit in retriever.search("seals on ice", settings.collection).hits)
