"""The ingestion job on real Ray, the real embedder and the real database."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rag.config import Settings, load_settings
from rag.errors import ConfigError, IndexMismatch, RagError, ResourceError, SourceError
from rag.index.build import ingest
from rag.index.cluster import EmbedPlan, plan_embedding
from rag.index.generations import details, generations, live_generation, rollback
from rag.index.ledger import failures, last_run
from rag.index.store import Store
from rag.search.retrieve import open_retriever

pytestmark = pytest.mark.usefixtures("ray_here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "sort.html").write_text(
        "<html><head><title>Sorting</title></head><body><h1 id=top>Sorting</h1><p>Use sorted.</p>"
        "<h2 id=keys>Key functions</h2><p>Pass a key function to sort a list of dicts.</p></body></html>"
    )
    (folder / "guide.md").write_text("# Guide\n\nInstall it.\n\n## Usage\n\nRun the command.\n")
    (folder / "notes.txt").write_text("Plain notes about penguins in the Antarctic.")
    (folder / "empty.html").write_text("")
    (folder / "fake.html").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8)
    return folder


def test_documents_go_in_and_what_cannot_is_in_the_ledger(folder: Path, settings: Settings) -> None:
    report = ingest([str(folder)], settings)
    assert report.documents == {"seen": 5, "new": 3, "changed": 0, "unchanged": 0, "removed": 0, "failed": 2}
    assert sorted(Path(f["source"]).name for f in report.failures) == ["empty.html", "fake.html"]
    assert all(f["reason"] for f in report.failures)
    hits = open_retriever(settings).search("sort a list of dicts by key", settings.collection).hits
    assert hits[0].source == f"{(folder / 'sort.html').as_uri()}#keys"
    assert hits[0].title == "Sorting > Key functions"


def test_a_second_run_embeds_nothing_and_a_third_only_what_changed(folder: Path, settings: Settings) -> None:
    ingest([str(folder)], settings)
    again = ingest([str(folder)], settings)
    assert again.documents == {"seen": 5, "new": 0, "changed": 0, "unchanged": 3, "removed": 0, "failed": 2}
    assert (again.chunks_embedded, again.chunks_written) == (0, 0)
    (folder / "notes.txt").write_text("Now about walruses.")
    (folder / "guide.md").unlink()
    (folder / "empty.html").unlink()
    third = ingest([str(folder)], settings)
    assert third.documents == {"seen": 3, "new": 0, "changed": 1, "unchanged": 1, "removed": 1, "failed": 1}
    assert third.chunks_embedded == 1
    sources = [hit.source for hit in open_retriever(settings).search("penguins or walruses", settings.collection).hits]
    assert sources[0] == (folder / "notes.txt").as_uri()
    assert not any("guide.md" in source for source in sources)


def test_a_document_that_fails_and_is_mended_leaves_the_ledger_and_what_vanishes_is_removed(
    folder: Path, settings: Settings
) -> None:
    ingest([str(folder)], settings)
    notes = folder / "notes.txt"
    text = notes.read_text()
    notes.write_text("")
    (folder / "guide.md").write_text("# Guide\n\nChanged.\n")
    broken = ingest([str(folder)], settings)
    assert broken.documents == {"seen": 5, "new": 0, "changed": 1, "unchanged": 1, "removed": 0, "failed": 3}
    notes.write_text(text)
    assert ingest([str(notes)], settings).documents["unchanged"] == 1  # the old text was kept all along
    store = Store(_url(settings))
    names = [Path(f.source).name for f in failures(store, live_generation(store, settings.collection))]
    assert names == ["empty.html", "fake.html"]
    store.close()
    notes.write_text("Now about walruses.")
    ingest([str(notes)], settings)
    notes.unlink()
    assert ingest([str(folder)], settings).documents["removed"] == 1


def test_another_chunk_size_makes_another_generation_and_never_loses_documents(
    folder: Path, settings: Settings
) -> None:
    first = ingest([str(folder)], settings)
    smaller = settings.model_copy(update={"chunk": settings.chunk.model_copy(update={"size": 60, "overlap": 10})})
    with pytest.raises(IndexMismatch, match="name all its sources or none in one command"):
        ingest([str(_single(folder))], smaller)
    second = ingest([str(folder)], smaller)
    assert second.index_id != first.index_id
    assert second.documents["new"] == 3
    store = Store(_url(settings))
    assert live_generation(store, settings.collection).generation_id == second.index_id
    assert len(generations(store, settings.collection)) == 2
    store.close()


def test_an_index_that_was_rolled_back_to_is_brought_up_to_date_by_ingesting_with_its_settings(
    folder: Path, settings: Settings
) -> None:
    first = ingest([str(folder)], settings)
    smaller = settings.model_copy(update={"chunk": settings.chunk.model_copy(update={"size": 60, "overlap": 10})})
    (folder / "notes.txt").write_text("Now about walruses.")
    ingest([str(folder)], smaller)
    store = Store(_url(settings))
    assert rollback(store, settings.collection).generation_id == first.index_id
    assert details(store, live_generation(store, settings.collection))["documents_behind"] == 1
    again = ingest([str(folder)], settings)
    assert (again.index_id, again.documents["changed"], again.documents["unchanged"]) == (first.index_id, 1, 2)
    assert details(store, live_generation(store, settings.collection))["documents_behind"] == 0
    store.close()


def test_the_sources_of_before_are_read_again_when_none_is_named(folder: Path, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="has no sources yet; name one"):
        ingest([], settings)
    first = ingest([str(folder)], settings)
    (folder / "notes.txt").write_text("Now about walruses.")
    assert ingest([], settings).documents["changed"] == 1
    smaller = settings.model_copy(update={"chunk": settings.chunk.model_copy(update={"size": 60, "overlap": 10})})
    again = ingest([], smaller)
    assert (again.documents["new"], again.index_id != first.index_id) == (3, True)


def test_a_source_that_lost_most_of_its_documents_asks_for_force(folder: Path, settings: Settings) -> None:
    ingest([str(folder)], settings)
    (folder / "guide.md").unlink()
    (folder / "notes.txt").unlink()
    with pytest.raises(SourceError, match="expected the 3 documents it had, or most of them, found 1"):
        ingest([str(folder)], settings)
    assert ingest([str(folder)], settings, prune=False).documents["removed"] == 0
    assert ingest([str(folder)], settings, force=True).documents["removed"] == 2


def test_another_index_is_not_built_from_a_source_that_lost_most_of_its_documents(
    folder: Path, settings: Settings
) -> None:
    ingest([str(folder)], settings)
    (folder / "guide.md").unlink()
    smaller = settings.model_copy(update={"chunk": settings.chunk.model_copy(update={"size": 60, "overlap": 10})})
    with pytest.raises(IndexMismatch, match="1 documents would be lost"):  # a new index cannot keep what is gone
        ingest([str(folder)], smaller, prune=False)
    (folder / "notes.txt").unlink()
    with pytest.raises(SourceError, match="expected the 3 documents it had, or most of them, found 1"):
        ingest([str(folder)], smaller)
    assert ingest([str(folder)], smaller, force=True).documents["new"] == 1


def test_what_is_wrong_with_the_model_in_a_worker_is_said_in_our_words(tmp_path: Path, settings: Settings) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has what the model asks for")
    (tmp_path / "a.txt").write_text("One.")
    embed = settings.embed.model_copy(update={"precision": "fp16"})  # needs a GPU
    with pytest.raises(RagError, match="^precision fp16: expected a CUDA device, found none"):
        ingest([str(tmp_path)], settings.model_copy(update={"embed": embed}))


def test_a_run_leaves_its_counts_in_the_ledger(folder: Path, settings: Settings) -> None:
    report = ingest([str(folder)], settings)
    store = Store(_url(settings))
    generation = live_generation(store, settings.collection)
    run = last_run(store, generation)
    assert run is not None and run.finished_at is not None
    assert (run.documents, run.chunks_embedded) == (report.documents, report.chunks_embedded)
    assert run.origins == [folder.as_uri()]
    assert 0 < report.embed_busy <= 1
    store.close()


def test_an_unchanged_run_loads_no_model(folder: Path, settings: Settings) -> None:
    ingest([str(folder)], settings)
    code = (
        "import sys; from rag.index.build import ingest; from rag.config import load_settings;"
        f"report = ingest([{str(folder)!r}], load_settings(collection={settings.collection!r}));"
        "print(report.documents['unchanged'], 'torch' in sys.modules, 'ray' in sys.modules)"
    )
    env = os.environ | {"RAG_HOME": str(settings.home)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "False", "False"]


def test_little_work_is_done_without_starting_ray(folder: Path, settings: Settings) -> None:
    code = (
        "import sys; from rag.index import job; from rag.index.build import ingest;"
        "from rag.config import load_settings; job.ray_session = None;"
        f"report = ingest([{str(folder)!r}], load_settings(collection={settings.collection!r}));"
        "print(report.documents['new'], report.documents['failed'], 'ray' in sys.modules)"
    )
    env = os.environ | {"RAG_HOME": str(settings.home)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "2", "False"]
    hits = open_retriever(settings).search("sort a list of dicts by key", settings.collection).hits
    assert hits[0].source == f"{(folder / 'sort.html').as_uri()}#keys"


def test_a_query_encoder_that_is_not_the_index_s_is_refused(folder: Path, settings: Settings) -> None:
    report = ingest([str(folder)], settings)
    retriever = open_retriever(settings)
    with retriever.store.pool.connection() as conn:
        conn.execute(
            'update generations set fingerprint = fingerprint || \'{"weights": "0000"}\' where generation_id = %s',
            [report.index_id],
        )
    with pytest.raises(IndexMismatch, match="weights"):
        retriever.search("sort", settings.collection)


def test_a_killed_driver_leaves_whole_documents_and_the_next_run_ends_equal(tmp_path: Path, settings: Settings) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(160):
        (folder / f"{i:03}.md").write_text(f"# Page {i}\n\n" + f"Sentence {i} about topic {i % 7}. " * 150)
    env = os.environ | {"RAG_HOME": str(settings.home), "RAG_RAY__NUM_CPUS": "2"}
    command = [sys.executable, "-m", "rag.cli", "ingest", str(folder), "-c", settings.collection, "--json"]
    store = Store(_url(settings))
    driver = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    num_before = 0
    while time.monotonic() < deadline and driver.poll() is None:
        found = generations(store, settings.collection) if settings.collection in store.collections() else []
        num_before = store.counts(found[0])["documents"] if found else 0
        if num_before:
            break
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert 0 < num_before < 160, "the driver must be killed in the middle of its work"
    time.sleep(3)  # its workers notice and end
    report = ingest([str(folder)], settings)
    assert report.documents["seen"] == 160
    assert report.documents["new"] + report.documents["unchanged"] == 160
    assert report.documents["unchanged"] >= num_before  # what was done is not done again
    generation = live_generation(store, settings.collection)
    with store.pool.connection() as conn:
        broken = conn.execute(
            "select m.doc_id from generation_documents m left join chunks c using (generation_id, doc_id)"
            " where m.generation_id = %s group by m.doc_id, m.num_chunks having count(c.chunk_id) <> m.num_chunks",
            [generation.generation_id],
        ).fetchall()
        orphans = conn.execute(
            "select count(*) from chunks c where generation_id = %s and not exists (select 1 from"
            " generation_documents m where m.generation_id = c.generation_id and m.doc_id = c.doc_id)",
            [generation.generation_id],
        ).fetchone()
    assert (broken, orphans) == ([], (0,))
    assert store.counts(generation)["documents"] == 160
    store.close()


@pytest.mark.parametrize(
    ("free", "gpus", "plan"),
    [
        ([1], 0, EmbedPlan(1, 0.5, 0, 1)),
        ([2], 0, EmbedPlan(1, 0.5, 0, 2)),
        ([8], 0, EmbedPlan(3, 2, 0, 2)),
        ([32], 0, EmbedPlan(15, 2, 0, 2)),
        ([9] * 4, 0, EmbedPlan(16, 2, 0, 2)),
        ([1] * 8, 0, EmbedPlan(8, 0.5, 0, 1)),
        ([2] * 8 + [0.5], 0, EmbedPlan(8, 1, 0, 2)),
        ([16], 4, EmbedPlan(4, 0.5, 1, 1)),
    ],
)
def test_a_plan_fits_its_nodes_and_leaves_room_for_extractors_and_writers(
    free: list[float], gpus: float, plan: EmbedPlan
) -> None:
    assert plan_embedding(free, gpus) == plan
    places = sum(int(cpus // plan.num_cpus) for cpus in free)
    assert plan.num_actors <= places
    assert plan.num_actors * plan.num_cpus + 0.5 * sum(cpus >= 1 for cpus in free) <= sum(free)


def test_too_few_free_cpus_are_an_error_and_not_a_hang() -> None:
    with pytest.raises(ResourceError, match="needs 1 free CPU at least on one node, the freest of 2 has 0.5"):
        plan_embedding([0.5, 0.25], 0)


def test_a_source_that_is_not_there_creates_no_collection(settings: Settings) -> None:
    with pytest.raises(SourceError, match="no-such-folder"):
        ingest(["no-such-folder"], settings)
    store = Store(_url(settings))
    assert settings.collection not in store.collections()
    store.close()


def _single(folder: Path) -> Path:
    path = folder.parent / "single.txt"
    path.write_text("A lonely document.")
    return path


def _url(settings: Settings) -> str:
    from rag.index.database import open_database

    return open_database(load_settings(home=settings.home))
