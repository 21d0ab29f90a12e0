"""Whose a document is, through `rag.ingest`: given, remembered, changed without embedding, moved only by force."""

import json
from pathlib import Path
from typing import Any

import pytest

from rag.config import Settings, load_settings
from rag.errors import ConfigError, NotAllowed
from rag.index.build import IngestReport, ingest
from rag.index.generations import generations
from rag.index.store import Store
from rag.records import Access

PLAIN = {"precision": "fp32"}  # which is the fastest need not be measured


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "penguins.md").write_text("# Penguins\n\nPenguins live in the Antarctic.\n")
    return tmp_path / "docs"


def run(settings: Settings, *sources: Path, force: bool = False, **given: Any) -> IngestReport:
    mine = load_settings(home=settings.home, collection=settings.collection, ingest=given, embed=PLAIN)
    return ingest([str(source) for source in sources], mine, force=force)


def stored(store: Store, settings: Settings) -> dict[str, Access]:
    """Of the chunks of every generation: by the end of the source."""
    ids = [g.generation_id for g in generations(store, settings.collection)]
    with store.pool.connection() as conn:
        rows = conn.execute(
            "select c.source, c.tenant, c.labels, d.tenant, d.labels from chunks c join documents d using (doc_id)"
            " join collections on name = %s and collections.collection_id = d.collection_id"
            " where c.generation_id = any(%s)",
            [settings.collection, ids],
        ).fetchall()
    assert all(row[1:3] == row[3:5] for row in rows)
    return {row[0].rpartition("/")[2].partition("#")[0]: Access(row[1], tuple(row[2])) for row in rows}


def test_labels_change_without_embedding_and_tenants_by_force_alone(
    folder: Path, settings: Settings, store: Store
) -> None:
    assert run(settings, folder, tenant="acme", labels=("legal", "board", "legal")).chunks_embedded == 1
    assert stored(store, settings) == {"penguins.md": Access("acme", ("board", "legal"))}

    report = run(settings, folder, labels=("hr",))
    assert (report.documents["changed"], report.documents["unchanged"], report.chunks_embedded) == (1, 0, 0)
    assert stored(store, settings) == {"penguins.md": Access("acme", ("hr",))}

    (folder / "seals.md").write_text("# Seals\n\nWeddell seals hunt fish.\n")
    report = run(settings)  # nothing named: the sources, the tenant and the labels of before
    assert (report.documents["new"], report.documents["unchanged"]) == (1, 1)
    assert stored(store, settings) == dict.fromkeys(["penguins.md", "seals.md"], Access("acme", ("hr",)))

    with pytest.raises(NotAllowed, match=r"2 documents belong to another tenant than 'zeta'.*to 'acme'.*--force"):
        run(settings, folder, tenant="zeta", labels=())
    assert set(stored(store, settings).values()) == {Access("acme", ("hr",))}
    report = run(settings, folder, tenant="zeta", labels=(), force=True)
    assert (report.documents["changed"], report.chunks_embedded) == (2, 0)
    assert set(stored(store, settings).values()) == {Access("zeta")}


def test_another_generation_moves_nothing_either(folder: Path, settings: Settings, store: Store) -> None:
    run(settings, folder, tenant="acme")
    other = load_settings(
        home=settings.home, collection=settings.collection, embed=PLAIN, chunk={"size": 300}, ingest={"tenant": "zeta"}
    )
    with pytest.raises(NotAllowed, match="belong to another tenant"):
        ingest([str(folder)], other)
    assert stored(store, settings) == {"penguins.md": Access("acme")}


def write_rows(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_row_chooses_its_access_only_where_the_operator_lets_it(
    tmp_path: Path, settings: Settings, store: Store
) -> None:
    rows = tmp_path / "rows.jsonl"
    text = "Penguins live in the Antarctic."
    write_rows(
        rows,
        {"id": "1", "text": text, "tenant": "acme", "labels": ["hr"]},
        {"id": "2", "text": text},
        {"id": "3", "text": text, "labels": "hr"},
    )
    run(settings, rows, tenant="mine", labels=("all",))
    assert set(stored(store, settings).values()) == {Access("mine", ("all",))}

    report = run(settings, rows, row_access=True)
    assert report.documents["failed"] == 2
    reasons = {f["source"].rpartition("=")[2]: f["reason"] for f in report.failures}
    assert reasons["1"] == "belongs to tenant 'mine', the row says 'acme'; --force moves it"
    assert reasons["3"].startswith("expected a list of texts as labels, found 'hr'")

    run(settings, rows, row_access=True, force=True)
    by_row = {name.rpartition("=")[2]: access for name, access in stored(store, settings).items()}
    assert (by_row["1"], by_row["2"]) == (Access("acme", ("hr",)), Access("mine", ("all",)))


def test_equal_documents_of_two_tenants_are_no_duplicates(tmp_path: Path, settings: Settings, store: Store) -> None:
    rows = tmp_path / "rows.jsonl"
    text = "Penguins live in the Antarctic, in large and noisy colonies of many thousand birds."
    write_rows(rows, *({"text": text, "tenant": tenant, "id": tenant} for tenant in ("a", "b")))
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text("Seals hunt fish under the ice; penguins fear them, and orcas hunt both.")
    run(settings, tmp_path / "a.md", tenant="a", deduplicate=True)
    report = run(settings, rows, row_access=True, deduplicate=True)
    assert (report.documents["new"], report.duplicates) == (2, {"documents": 0, "chunks": 0})


def test_impossible_names_are_refused() -> None:
    for given in ({"tenant": "a\0"}, {"labels": ("ok", "a\n")}):
        with pytest.raises(ConfigError, match="printable"):
            load_settings(ingest=given, embed=PLAIN)
    assert load_settings(ingest={"labels": ("",)}).ingest.labels == ()
