"""What one document does to the others of its batch: nothing."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rag.config import Settings, load_settings
from rag.index import job
from rag.index.build import ingest
from rag.index.generations import ensure_generation
from rag.index.ledger import Failure, failures, write_failures
from rag.index.stages import prepare, with_embeddings, write_batch
from rag.index.store import Generation, Store
from rag.records import DocumentRef, Section


@pytest.fixture
def generation(database_url: str, settings: Settings) -> tuple[Store, Generation]:
    store = Store(database_url)
    return store, ensure_generation(store, settings.collection, {}, {"model": "none"}, 4)


def row(name: str) -> dict[str, Any]:
    ref = DocumentRef(f"file:///{name}", "text/plain", content=f"The text of {name}.".encode())
    return prepare(asdict(ref), load_settings().chunk)


def test_a_document_that_the_database_refuses_is_a_failure_and_the_others_get_in(
    generation: tuple[Store, Generation],
) -> None:
    store, made = generation
    rows = [row("a"), row("b"), row("c")]
    rows[1]["sections"] = json.dumps([asdict(Section("file:///a", "", "Under the name of another's section."))])
    batch = with_embeddings(pa.Table.from_pylist(rows), [np.full((1, 4), 0.5, np.float32)] * 3, 0.0, [0, 0, 0])
    written = write_batch(batch, lambda: store, made).to_pylist()
    assert [one["num_chunks"] for one in written] == [1, 0, 1]
    assert [one["lost"] for one in written] == ["", "", ""]
    (refused,) = failures(store, made)
    assert (refused.source, refused.reason) == ("file:///b", written[1]["error"])
    assert refused.reason.startswith("refused by the database: duplicate key value violates unique constraint")
    assert sorted(d.source for d in store.known_documents(made).values()) == ["file:///a", "file:///c"]


def test_a_failure_is_kept_however_long_its_source_is(generation: tuple[Store, Generation]) -> None:
    store, made = generation
    digits = np.random.default_rng(0).integers(0, 16, 9000)  # which no compression makes short
    source = "file:///" + "".join(f"{digit:x}" for digit in digits)
    for reason in ("no text", "empty"):
        write_failures(store, made, [Failure(source, reason), Failure(f"{source}0", reason)])
    assert [(f.source, f.reason) for f in failures(store, made)] == [(source, "empty"), (f"{source}0", "empty")]


def test_small_files_with_much_text_are_embedded_one_after_the_other(
    settings: Settings, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "PORTION_CHARS", 10)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"All there is to say about {name}.")
    report = ingest([str(tmp_path)], settings)
    assert (report.documents["new"], report.chunks_written) == (3, 3)
