"""Nothing that a source still holds leaves the collection, and nothing that it lost comes back."""

import json
from pathlib import Path
from typing import Any

import pytest

from rag.config import Settings
from rag.errors import IndexMismatch, NotFound, SourceError
from rag.index import build, ledger
from rag.index.build import ingest
from rag.index.forget import forget
from rag.index.generations import generations, live_generation, rollback, switch
from rag.index.job import JobResult
from rag.index.listing import Listing, without_idle_gaps
from rag.index.store import Store
from rag.records import Gap

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8  # under a text's name it cannot be read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    for name in ("a", "b", "c", "d"):
        write(folder / f"{name}.md", f"All there is to say about {name}.")
    return folder


@pytest.fixture
def store(database_url: str) -> Store:
    return Store(database_url)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)


def with_size(settings: Settings, size: int) -> Settings:
    return settings.model_copy(update={"chunk": settings.chunk.model_copy(update={"size": size})})


def stored(store: Store, settings: Settings) -> list[str]:
    """File names of the documents in the live generation."""
    known = store.known_documents(live_generation(store, settings.collection)).values()
    return sorted(Path(document.source).name for document in known)


def test_an_index_that_lacks_what_could_not_be_read_is_not_made_live(
    folder: Path, settings: Settings, store: Store
) -> None:
    ingest([str(folder)], settings)
    text = (folder / "b.md").read_text()
    (folder / "b.md").write_bytes(PICTURE)
    smaller = with_size(settings, 300)
    with pytest.raises(IndexMismatch, match=r"is not made live: it lacks 1 documents .*/b.md is one: binary content"):
        ingest([str(folder)], smaller)
    assert stored(store, settings) == ["a.md", "b.md", "c.md", "d.md"]
    write(folder / "b.md", text)
    report = ingest([str(folder)], smaller)
    assert (report.documents["new"], report.documents["unchanged"]) == (1, 3)  # it goes on with what was built
    assert live_generation(store, settings.collection).generation_id == report.index_id


def test_force_makes_it_live_without_them(folder: Path, settings: Settings, store: Store) -> None:
    ingest([str(folder)], settings)
    (folder / "b.md").write_bytes(PICTURE)
    ingest([str(folder)], with_size(settings, 300), force=True)
    assert stored(store, settings) == ["a.md", "c.md", "d.md"]


def test_a_document_that_went_before_a_rebuild_does_not_come_back_with_a_rollback(
    folder: Path, settings: Settings, store: Store
) -> None:
    ingest([str(folder)], settings)
    (folder / "b.md").unlink()
    assert ingest([str(folder)], with_size(settings, 300)).documents["removed"] == 1
    rollback(store, settings.collection)
    assert stored(store, settings) == ["a.md", "c.md", "d.md"]


def test_what_only_a_source_within_the_named_one_shows_is_left_alone(
    folder: Path, settings: Settings, store: Store
) -> None:
    write(folder / ".hidden" / "rules.md", "Rules that only those find who look for them.")
    ingest([str(folder / ".hidden")], settings)
    ingest([str(folder)], settings)
    assert stored(store, settings) == ["a.md", "b.md", "c.md", "d.md", "rules.md"]
    (folder / ".hidden" / "rules.md").unlink()
    write(folder / ".hidden" / "law.md", "Another rule.")
    ingest([str(folder / ".hidden"), str(folder)], settings, force=True)
    assert stored(store, settings) == ["a.md", "b.md", "c.md", "d.md", "law.md"]


def test_a_line_that_cannot_be_read_removes_no_row(tmp_path: Path, settings: Settings, store: Store) -> None:
    rows = [json.dumps({"id": i, "text": f"Row {i} says something."}) for i in range(4)]
    file = tmp_path / "rows.jsonl"
    write(file, "\n".join(rows))
    ingest([str(file)], settings)
    write(file, "\n".join([rows[0], rows[1][:-5], rows[2], '{"id": 3}']))  # cut, and without its text
    report = ingest([str(file)], settings)
    assert (report.documents["failed"], report.documents["removed"]) == (2, 0)
    assert [f["source"].rpartition("?")[2] for f in report.failures] == ["line=2", "id=3"]
    write(file, "\n".join([rows[0], rows[1]]))
    assert ingest([str(file)], settings).documents["removed"] == 2


def test_a_row_goes_that_no_unreadable_line_can_be(tmp_path: Path, settings: Settings) -> None:
    rows = [json.dumps({"id": i, "text": f"Row {i} says something."}) for i in range(4)]
    file = tmp_path / "rows.jsonl"
    write(file, "\n".join(rows))
    ingest([str(file)], settings)
    write(file, "\n".join([rows[0][:-5], *rows[2:]]))
    assert ingest([str(file)], settings).documents["removed"] == 0
    assert ingest([str(file)], settings, force=True).documents["removed"] == 2


def test_equal_bytes_under_another_type_are_no_duplicate(tmp_path: Path, settings: Settings, store: Store) -> None:
    folder = tmp_path / "docs"
    write(folder / "a.pdf", "No PDF at all, which says something nevertheless.")
    write(folder / "b.md", "No PDF at all, which says something nevertheless.")
    settings = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"deduplicate": True})})
    report = ingest([str(folder)], settings)
    assert (report.documents["failed"], report.documents["new"]) == (1, 1)
    assert stored(store, settings) == ["b.md"]


def test_a_gap_hides_only_what_it_may_and_only_where_its_cause_was_read_before() -> None:
    site = "https://x.org/docs/"
    gap = Gap(site, "404", by=f"{site}hub", visited=frozenset({f"{site}gone"}))
    listing = Listing((site,), (site,), {}, gaps=(gap,))
    seen = {f"{site}hub", f"{site}gone", f"{site}child"}
    assert [listing.lost(source) for source in sorted(seen)] == [False, True, False]
    assert without_idle_gaps(listing, seen).gaps == (gap,)
    assert without_idle_gaps(listing, seen - {f"{site}hub"}).gaps == ()


def test_a_forgotten_source_goes_with_its_documents_and_leaves_what_others_hold(
    folder: Path, tmp_path: Path, settings: Settings, store: Store
) -> None:
    write(tmp_path / "old" / "e.md", "Something about e.")
    write(folder / "inner" / "f.md", "Something about f.")
    ingest([str(folder), str(tmp_path / "old"), str(folder / "inner")], settings)
    (tmp_path / "old" / "e.md").unlink()
    (tmp_path / "old").rmdir()
    with pytest.raises(SourceError, match=r"found nothing; .*if it is gone for good: rag forget 'file://.*/old' -c "):
        ingest([], settings)
    done = forget([str(tmp_path / "old"), str(folder / "inner")], settings)
    assert done.removed == 1  # the folder still holds inner/f.md
    assert stored(store, settings) == ["a.md", "b.md", "c.md", "d.md", "f.md"]
    assert ingest([], settings).documents["unchanged"] == 5
    with pytest.raises(NotFound, match=r"/old is no source of collection .*, which has: file://.*/docs"):
        forget([str(tmp_path / "old")], settings)


def test_what_another_made_live_meanwhile_stays_live(
    folder: Path, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ingest([str(folder)], settings).index_id
    second = ingest([str(folder)], with_size(settings, 300)).index_id
    write(folder / "e.md", "Something about e.")
    run_job = build.run_job

    def run_and_roll_back(*args: Any) -> JobResult:
        switch(store, first)
        return run_job(*args)

    monkeypatch.setattr(build, "run_job", run_and_roll_back)
    assert ingest([str(folder)], with_size(settings, 300)).index_id == second
    states = {g.generation_id: (g.state, g.is_live) for g in generations(store, settings.collection)}
    assert states == {first: ("ready", True), second: ("retired", False)}


def test_a_run_that_did_not_end_is_remembered_until_its_sources_are_ingested(
    folder: Path, tmp_path: Path, settings: Settings, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "other" / "e.md", "Something about e.")
    ingest([str(folder)], settings)
    ledger.start_run(store, live_generation(store, settings.collection), [(tmp_path / "killed").as_uri()])
    ingest([str(tmp_path / "other")], settings)
    assert ledger.unfinished(store, settings.collection) == [(tmp_path / "killed").as_uri()]
    assert f"killed: its last ingestion did not end; `rag ingest -c {settings.collection}`" in caplog.text


def test_an_ingestion_whose_lock_is_gone_stops_before_it_removes_anything(
    folder: Path, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    ingest([str(folder)], settings)
    (folder / "b.md").unlink()
    write(folder / "e.md", "Something about e.")
    run_job = build.run_job

    def run_and_restart(*args: Any) -> JobResult:
        result = run_job(*args)
        with store.pool.connection() as conn:
            conn.execute("select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and classid = 6")
        return result

    monkeypatch.setattr(build, "run_job", run_and_restart)
    with pytest.raises(psycopg.OperationalError):
        ingest([str(folder)], settings)
    assert stored(store, settings) == ["a.md", "b.md", "c.md", "d.md", "e.md"]
