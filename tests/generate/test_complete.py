"""Whole replies of a real endpoint, and an ingestion whose chunks get prefixes from it."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fake_openai import FakeOpenAI, fake_openai, ok, status

from rag.catalog import EXTRACTIVE
from rag.config import ContextConfig, EmbedConfig, LLMConfig, Settings
from rag.errors import ConfigError, GenerationError, ModelError
from rag.generate.complete import contextualizer, load_complete
from rag.index.build import IngestReport, ingest
from rag.index.dump import dump_collection
from rag.index.embed import load_embedder
from rag.index.generations import generations, live_generation
from rag.index.load import load_collection
from rag.index.store import Store
from rag.search.retrieve import Retriever

FP32 = EmbedConfig(precision="fp32")
PAGE = "# Stations of {test}\n\nIt was founded in 1956.\n\n## Staff\n\nThey number a thousand in summer.\n"
PREFIXES = {
    "It was founded in 1956.": "The founding of McMurdo, the largest station in the Antarctic.",
    "They number a thousand in summer.": "How many people work at McMurdo.",
}


def situate(handler: Any) -> None:
    """Answers with the prefix of the passage in the request."""
    passage = handler.body["messages"][1]["content"].partition("<passage>")[2]
    ok(next((prefix for text, prefix in PREFIXES.items() if text in passage), "Something else."))(handler)


def with_context(settings: Settings, server: FakeOpenAI, **llm: Any) -> Settings:
    return settings.model_copy(
        update={
            "embed": FP32,
            "context": ContextConfig(llm="small-model", concurrency=2),
            "llm": LLMConfig(base_url=server.base_url, timeout_s=5, **llm),
        }
    )


def run(folder: Path, settings: Settings, **flags: bool) -> IngestReport:
    return ingest([str(folder)], settings, contextualize=contextualizer(settings), **flags)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "stations.md").write_text(PAGE.format(test=tmp_path.name))  # like no other test's
    (folder / "empty.txt").write_text("")
    return folder


def rows(store: Store, settings: Settings) -> dict[str, str]:
    generation = live_generation(store, settings.collection)
    with store.pool.connection() as conn:
        return dict(
            conn.execute(
                "select text, prefix from chunks where generation_id = %s", [generation.generation_id]
            ).fetchall()
        )


def test_a_whole_reply_or_an_error() -> None:
    with fake_openai(ok("Two words."), status(401), status(503), ok("At last.")) as server:
        complete = load_complete(LLMConfig(name="m", base_url=server.base_url, max_tokens=7))
        assert complete([{"role": "user", "content": "Speak."}]) == "Two words."
        assert server.requests[0].body["max_tokens"] == 7
        with pytest.raises(GenerationError, match="HTTP 401"):
            complete([{"role": "user", "content": "Speak."}])
        assert complete([{"role": "user", "content": "Speak."}]) == "At last."  # retried
    with pytest.raises(ConfigError, match="one that only quotes"):
        load_complete(LLMConfig(name=EXTRACTIVE))


def test_an_llm_that_cannot_be_used_is_named_before_anything_is_ingested(settings: Settings) -> None:
    assert contextualizer(settings) is None
    for name in ("gpt-4o-mini", "unknown", EXTRACTIVE):
        with pytest.raises((ModelError, ConfigError)):
            contextualizer(settings.model_copy(update={"context": ContextConfig(llm=name)}))


def test_prefixes_are_embedded_and_stored_never_quoted_and_paid_for_once(
    folder: Path, settings: Settings, store: Store
) -> None:
    plain = ingest([str(folder)], settings.model_copy(update={"embed": FP32}))
    assert plain.prefixes == {}
    with fake_openai(situate) as server:
        asked = with_context(settings, server, api_key="sk-x")
        report = run(folder, asked)
        assert report.prefixes == {"asked": 2, "cached": 0, "missing": 0, "reason": ""}
        assert (report.documents["new"], report.documents["failed"], report.chunks_embedded) == (1, 1, 2)
        assert rows(store, settings) == PREFIXES
        assert {r.body["model"] for r in server.requests} == {"small-model"}
        assert len(server.requests) == 2

        embedder = load_embedder(FP32, settings.home)
        query = "How large is McMurdo's staff?"
        hits = (
            Retriever(store, settings.search, embedder, settings.home)
            .search(query, settings.collection, mode="semantic")
            .hits
        )
        texts = [f"{hit.title}\n\n{PREFIXES[hit.text]}\n\n{hit.text}" for hit in hits]
        cosines = embedder.embed(texts, "passage") @ embedder.embed([query], "query")[0]
        assert [hit.text for hit in hits] == list(reversed(PREFIXES))
        assert [hit.score for hit in hits] == pytest.approx(cosines.tolist(), abs=1e-3)

        again = run(folder, asked)
        assert (again.documents["unchanged"], again.prefixes["asked"]) == (1, 0)
        other = asked.model_copy(update={"chunk": asked.chunk.model_copy(update={"size": 600})})
        third = run(folder, other)  # another generation of the same chunks
        assert third.prefixes == {"asked": 0, "cached": 2, "missing": 0, "reason": ""}
        assert len(server.requests) == 2
    configs = [g.config for g in generations(store, settings.collection)]
    assert [sorted(config) for config in configs] == [
        ["chunk", "extractor"],
        ["chunk", "context", "extractor"],
        ["chunk", "context", "extractor"],
    ]
    back = ingest([str(folder)], settings.model_copy(update={"embed": FP32}))
    assert back.index_id == plain.index_id  # the default's stored config is what it was


def test_an_endpoint_that_fails_leaves_documents_without_prefixes_and_says_so(
    folder: Path, settings: Settings, store: Store
) -> None:
    with fake_openai(status(500, "overloaded")) as server:
        report = run(folder, with_context(settings, server, max_retries=0))
        assert report.documents["new"] == 1
        assert (report.prefixes["asked"], report.prefixes["missing"]) == (0, 2)
        assert "HTTP 500" in report.prefixes["reason"]
        assert set(rows(store, settings).values()) == {""}
    with fake_openai(situate) as server:
        asked = with_context(settings, server)
        assert run(folder, asked).documents["unchanged"] == 1  # as a failed document, not tried again unasked
        healed = run(folder, asked, retry_failed=True)
        assert (healed.documents["changed"], healed.prefixes["asked"]) == (1, 2)
        assert rows(store, settings) == PREFIXES
        assert run(folder, asked, retry_failed=True).documents["unchanged"] == 1
        assert len(server.requests) == 2


def test_a_changed_document_is_situated_again_and_prefixes_move_with_a_dump(
    folder: Path, settings: Settings, store: Store, tmp_path: Path
) -> None:
    with fake_openai(situate) as server:
        asked = with_context(settings, server)
        run(folder, asked)
        page = folder / "stations.md"
        page.write_text(page.read_text() + "\n## Food\n\nIt comes by ship.\n")
        assert run(folder, asked).prefixes["asked"] == 3  # each is shown another document
    expected = PREFIXES | {"It comes by ship.": "Something else."}
    assert rows(store, settings) == expected
    dump_collection(store, settings.collection, str(tmp_path / "dump"))
    loaded = f"{settings.collection[:50]}-loaded"
    load_collection(store, str(tmp_path / "dump"), loaded)
    assert rows(store, settings.model_copy(update={"collection": loaded})) == expected


def test_a_killed_command_has_paid_for_what_it_got(folder: Path, settings: Settings, store: Store) -> None:
    is_killed = threading.Event()

    def wait_at_the_second(handler: Any) -> None:
        if len(server.requests) == 2:
            is_killed.wait(120)
        situate(handler)

    with fake_openai(wait_at_the_second) as server:
        env = {"RAG_HOME": str(settings.home), "RAG_LLM__BASE_URL": server.base_url, "RAG_CONTEXT__CONCURRENCY": "1"}
        flags = ["--collection", settings.collection, "--context-llm", "small-model"]
        command = [sys.executable, "-m", "rag.cli", "ingest", str(folder), *flags]
        with subprocess.Popen(command, env=os.environ | env) as killed:
            while len(server.requests) < 2 and killed.poll() is None:
                time.sleep(0.02)
            killed.kill()
        is_killed.set()
    with fake_openai(situate) as server:
        report = run(folder, with_context(settings, server))
        assert report.prefixes == {"asked": 1, "cached": 1, "missing": 0, "reason": ""}
        assert len(server.requests) == 1
    assert rows(store, settings) == PREFIXES
