"""One ingestion over several Ray nodes."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rag.index.generations import live_generation
from rag.index.store import Store

NUM_DOCUMENTS = 192
BULK = "p { color: black }" * 150  # no text, but bytes: batches are cut by bytes, and a job of one batch uses one node


@pytest.fixture(scope="module")
def jobs(home: Path, database_url: str) -> dict[str, Any]:
    """What two_nodes.py reports."""
    with tempfile.TemporaryDirectory(prefix="rag-") as work:  # Ray's sockets need a short path
        documents = Path(work) / "documents"
        documents.mkdir()
        for i in range(NUM_DOCUMENTS):
            (documents / f"{i:03}.html").write_text(
                f"<title>Page {i}</title><style>{BULK}</style><h1>Page {i}</h1><p>First words of {i}.</p>"
                f"<h2 id=more>More</h2><p>Other words of {i}.</p>"
            )
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("two_nodes.py")), str(home), str(documents), f"{work}/nodes"],
            env=os.environ | {"RAY_TMPDIR": work},
            stdout=subprocess.PIPE,
            timeout=480,
            check=True,
        )
    # Ray may have the last word.
    report = next(line for line in done.stdout.splitlines() if line.startswith(b'{"whole"'))
    return dict(json.loads(report))


def chunks(collection: str, database_url: str) -> list[tuple[str, str, int]]:
    """(document's source, chunk_id, chunks that the manifest says the document has), of every chunk."""
    store = Store(database_url)
    generation = live_generation(store, collection)
    with store.pool.connection() as conn:
        rows = conn.execute(
            "select split_part(c.source, '#', 1), chunk_id, m.num_chunks from chunks c"
            " left join generation_documents m using (generation_id, doc_id) where generation_id = %s"
            " order by c.source, start_char",
            [generation.generation_id],
        ).fetchall()
    store.close()
    return [(row[0], row[1], row[2]) for row in rows]


def test_a_job_uses_every_node(jobs: dict[str, Any], database_url: str) -> None:
    assert len(jobs["nodes"]) == 2
    assert jobs["whole"]["documents"]["new"] == NUM_DOCUMENTS
    assert len(chunks("two-nodes", database_url)) == 2 * NUM_DOCUMENTS


def test_a_node_that_dies_in_a_job_costs_nothing_and_doubles_nothing(jobs: dict[str, Any], database_url: str) -> None:
    assert 0 < jobs["killed_at"] < NUM_DOCUMENTS
    found = chunks("one-node-dies", database_url)
    assert found == chunks("two-nodes", database_url)
    assert {num_chunks for _, _, num_chunks in found} == {2}
    assert jobs["crippled"]["documents"]["new"] == NUM_DOCUMENTS


def test_the_files_of_one_machine_are_read_there_and_sent_to_the_others(
    jobs: dict[str, Any], database_url: str
) -> None:
    assert jobs["sent"]["documents"]["new"] == NUM_DOCUMENTS
    assert jobs["read_by"] == [jobs["head"]]
    assert chunks("sent", database_url) == chunks("two-nodes", database_url)
