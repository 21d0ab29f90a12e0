"""Prefixes of chunks: what the LLM is shown, what is kept of its reply, and where it goes. The LLM is a function."""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest

from rag.config import ChunkConfig, ContextConfig, Settings
from rag.errors import ConfigError
from rag.index.build import ingest
from rag.index.generations import ensure_generation
from rag.index.prefix import (
    GAP,
    INSTRUCTIONS,
    MAX_FAILURES,
    add_prefixes,
    documents_lacking,
    excerpt,
    generation_part,
    read_prefixes,
)
from rag.index.replies import shortened
from rag.index.store import IndexedDocument, Store
from rag.records import Chunk, Message, Section

TEXT = "It was founded in 1956.\nIt is the largest of them."
CONFIG = ContextConfig(llm="fake")


def batch(name: str, num_documents: int = 1) -> Any:
    """Prepared documents of one section and two chunks each, like no other test's."""
    rows = []
    for i in range(num_documents):
        section = Section(f"file:///{name}/{i}#s", f"{name} {i}", TEXT)
        chunks = [
            Chunk(section.section_id, section.source, section.title, TEXT[a:b], a, b)
            for a, b in ((0, 23), (24, len(TEXT)))
        ]
        rows.append(
            {
                "source": f"file:///{name}/{i}",
                "sections": json.dumps([asdict(section)]),
                "chunks": json.dumps([asdict(chunk) for chunk in chunks]),
                "prefixes": "{}",
            }
        )
    return pa.Table.from_pylist(rows)


def prefixes(table: Any) -> list[str]:
    return [chunk["prefix"] for row in table.column("chunks").to_pylist() for chunk in json.loads(row)]


def counts(table: Any) -> list[dict[str, Any]]:
    return [json.loads(text) for text in table.column("prefixes").to_pylist()]


def run(store: Store, table: Any, complete: Callable[[list[Message]], str], config: ContextConfig = CONFIG) -> Any:
    return add_prefixes(table, lambda: store, config, lambda: complete)


def never() -> Any:
    raise AssertionError("the LLM was made")


# What it is shown


def test_the_llm_is_shown_the_document_and_the_passage_under_its_title(store: Store) -> None:
    seen: list[list[Message]] = []

    def complete(messages: list[Message]) -> str:
        seen.append(messages)
        return "About a station."

    run(store, batch("shown"), complete, ContextConfig(llm="fake", concurrency=1))
    assert [message[0] for message in seen] == [{"role": "system", "content": INSTRUCTIONS}] * 2
    assert [message[1]["content"] for message in seen] == [
        f"<document>\nshown 0\n{TEXT}\n</document>\n\n<passage>\nshown 0\n{passage}\n</passage>\n\n"
        "What is the passage about?"
        for passage in TEXT.split("\n")
    ]


def test_of_a_long_document_its_beginning_and_what_surrounds_the_passage_are_shown() -> None:
    text = "".join(f"[{i:04}]" for i in range(100))  # 600 characters
    assert excerpt(text, 300, 306, 600) == text
    assert excerpt(text, 300, 306, 90) == text[:30] + GAP + text[273:333]
    assert excerpt(text, 594, 600, 90) == text[:30] + GAP + text[540:600]
    assert excerpt(text, 6, 12, 90) == text[:90]


# What becomes of the reply


def test_a_prefix_is_searched_before_the_text_and_changes_the_id_of_its_chunk() -> None:
    plain = Chunk("s", "file:///a#s", "Title", "text", 0, 4)
    prefixed = Chunk("s", "file:///a#s", "Title", "text", 0, 4, "About it.")
    assert (plain.context, prefixed.context) == ("Title\n\ntext", "Title\n\nAbout it.\n\ntext")
    assert plain.chunk_id == Chunk("s", "file:///a#s", "Title", "text", 0, 4, "").chunk_id
    assert plain.chunk_id == "282a1414928558e901e149ffa05b7882"  # as it was before there were prefixes
    assert prefixed.chunk_id != plain.chunk_id


def test_every_chunk_has_its_own_prefix_and_the_second_run_makes_no_llm(store: Store) -> None:
    def complete(messages: list[Message]) -> str:
        passage = messages[1]["content"].partition("<passage>\n")[2].splitlines()
        return f"  In {passage[0]}: {passage[1]}\n"

    found = run(store, batch("own", 3), complete)
    expected = [f"In own {i}: {line}" for i in range(3) for line in TEXT.split("\n")]
    assert prefixes(found) == expected
    assert counts(found) == [{"asked": 2, "cached": 0, "missing": 0, "reason": ""}] * 3
    again = add_prefixes(batch("own", 3), lambda: store, CONFIG, never)
    assert prefixes(again) == expected
    assert counts(again) == [{"asked": 0, "cached": 2, "missing": 0, "reason": ""}] * 3


def test_another_model_or_length_is_asked_again_and_other_settings_are_not(store: Store) -> None:
    asked: list[str] = []

    def complete(messages: list[Message]) -> str:
        asked.append(messages[1]["content"])
        return "About a station."

    for config, num_asked in (
        (CONFIG, 2),
        (ContextConfig(llm="fake", concurrency=3, base_url="http://127.0.0.1:9/v1"), 2),
        (ContextConfig(llm="other"), 4),
        (ContextConfig(llm="fake", max_chars=200), 6),
        (ContextConfig(llm="fake", document_chars=7000), 6),  # the whole document either way
    ):
        run(store, batch("settings"), complete, config)
        assert len(asked) == num_asked


def test_what_was_paid_for_before_a_kill_is_kept(store: Store) -> None:
    def dies(messages: list[Message]) -> str:
        if "founded" in messages[1]["content"].partition("<passage>")[2]:
            return "The founding."
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, batch("killed"), dies, ContextConfig(llm="fake", concurrency=1))
    found = run(store, batch("killed"), lambda messages: "The rest.")
    assert prefixes(found) == ["The founding.", "The rest."]
    assert counts(found) == [{"asked": 1, "cached": 1, "missing": 0, "reason": ""}]


def test_equal_chunks_of_equal_documents_are_asked_for_once(store: Store) -> None:
    one = batch("equal").to_pylist()[0]
    twice = pa.Table.from_pylist([one, one | {"source": "file:///copy"}])
    asked: list[int] = []
    found = run(store, twice, lambda messages: f"Number {len(asked)}{asked.append(0) or ''}.")
    assert len(asked) == 2
    assert prefixes(found)[:2] == prefixes(found)[2:]
    assert [(c["asked"], c["cached"]) for c in counts(found)] == [(2, 0), (0, 2)]


@pytest.mark.parametrize(
    ("reply", "prefix"),
    [
        ("I'm sorry, I cannot help with that.", ""),
        ("", ""),
        ("\0\x1b[2J\n", ""),
        ("x" * 10_000_000, ""),
        ("Passage: The station's\x00 founding,\n\nin 1956.\u202e", "The station's founding, in 1956."),
        ("One sentence that is long enough. " + "Another one. " * 4 + " ".join(map(str, range(99))), None),
    ],
    ids=["refusal", "empty", "control", "10 MB", "labelled", "long"],
)
def test_a_reply_is_one_line_of_bounded_length_or_nothing(store: Store, reply: str, prefix: str | None) -> None:
    name = f"reply {len(reply)}"
    found = run(store, batch(name), lambda messages: reply, ContextConfig(llm="fake", max_chars=60))
    expected = "One sentence that is long enough. Another one. Another one." if prefix is None else prefix
    assert prefixes(found) == [expected] * 2
    reason = "" if expected else "the reply could not be used"
    assert counts(found) == [{"asked": 2, "cached": 0, "missing": 0 if expected else 2, "reason": reason}]
    again = add_prefixes(batch(name), lambda: store, ContextConfig(llm="fake", max_chars=60), never)
    assert (prefixes(again), counts(again)[0]["missing"]) == ([expected] * 2, 0 if expected else 2)


def test_a_text_is_cut_after_a_sentence_or_else_a_word() -> None:
    assert shortened("One. Two. Three four.", 30) == "One. Two. Three four."
    assert shortened("One. Two. Three four.", 12) == "One. Two."
    assert shortened("One two three", 9) == "One two"
    assert shortened("Onetwothree", 6) == "Onetwo"
    assert shortened("A. " + "b" * 40, 20) == "A."  # a cut word is worse than a short prefix


def test_a_chunk_whose_llm_fails_goes_without_and_is_asked_for_again(store: Store) -> None:
    def fails_once(messages: list[Message]) -> str:
        if "founded" in messages[1]["content"].partition("<passage>")[2]:
            raise TimeoutError("fake: no reply\nin 5 s")
        return "The largest."

    found = run(store, batch("fails"), fails_once)
    assert prefixes(found) == ["", "The largest."]
    assert counts(found) == [{"asked": 1, "cached": 0, "missing": 1, "reason": "fake: no reply in 5 s"}]
    again = run(store, batch("fails"), lambda messages: "The founding.")
    assert prefixes(again) == ["The founding.", "The largest."]


def test_an_endpoint_that_is_down_is_not_asked_for_every_chunk(store: Store) -> None:
    asked: list[int] = []

    def down(messages: list[Message]) -> str:
        asked.append(1)
        raise ConnectionError("refused")

    found = run(store, batch("down", 50), down, ContextConfig(llm="fake", concurrency=2))
    assert MAX_FAILURES <= len(asked) <= MAX_FAILURES + 1
    assert set(prefixes(found)) == {""}
    assert {(c["missing"], c["reason"]) for c in counts(found)} == {(2, "refused")}


def test_no_more_requests_than_allowed_are_open_at_once(store: Store) -> None:
    barrier, lock = threading.Barrier(4, timeout=20), threading.Lock()
    now = most = 0

    def complete(messages: list[Message]) -> str:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        barrier.wait()  # passes only when four wait together
        with lock:
            now -= 1
        return "About a station."

    run(store, batch("at once", 4), complete, ContextConfig(llm="fake", concurrency=4))
    assert most == 4


def test_a_lost_database_is_an_error_and_no_missing_prefix(store: Store) -> None:
    class Lost:
        pool = None

        def connection(self) -> Any:
            raise psycopg.OperationalError("gone")

    lost: Any = Lost()
    lost.pool = lost
    with pytest.raises(psycopg.OperationalError):
        run(lost, batch("lost"), lambda messages: "About a station.")


# The store


def test_the_prefix_is_stored_beside_the_text_and_replaced_with_it(store: Store, settings: Settings) -> None:
    generation = ensure_generation(store, settings.collection, {"chunk": 1}, {"model": "m"}, 2)
    section = Section("file:///a#s", "Title", "text")

    def write(prefix: str) -> None:
        chunk = Chunk(section.section_id, section.source, "Title", "text", 0, 4, prefix)
        vectors = np.array([[1, 0]], np.float32)
        store.write_documents(
            generation, [IndexedDocument("file:///a", "text/plain", "h", "{}", (section,), (chunk,), vectors)]
        )

    def rows() -> list[tuple[Any, ...]]:
        with store.pool.connection() as conn:
            query = "select text, prefix from chunks where generation_id = %s"
            return conn.execute(query, [generation.generation_id]).fetchall()

    write("")
    assert rows() == [("text", "")]
    assert len(documents_lacking(store, generation)) == 1
    write("About it.")
    assert rows() == [("text", "About it.")]
    assert documents_lacking(store, generation) == set()


def test_nothing_is_known_of_what_was_not_asked(store: Store) -> None:
    assert read_prefixes(store, ["unknown", "unknown"]) == read_prefixes(store, []) == {}


# The settings


def test_a_generation_s_config_says_what_made_its_prefixes_and_nothing_without_them() -> None:
    assert generation_part(ContextConfig()) == {}
    config = ContextConfig(llm="gpt-4o-mini", concurrency=2, base_url="http://127.0.0.1:9/v1")
    assert generation_part(config) == {
        "context": {"llm": "gpt-4o-mini", "document_chars": 6000, "max_chars": 300, "prompt": 1}
    }


def test_settings_that_cannot_work_are_refused_before_anything_is_read(settings: Settings, tmp_path: Path) -> None:
    asked = settings.model_copy(update={"context": CONFIG})
    with pytest.raises(ConfigError, match="context.llm is 'fake': expected `contextualize`, found none"):
        ingest([str(tmp_path)], asked)
    semantic = asked.model_copy(update={"chunk": ChunkConfig(method="semantic")})
    with pytest.raises(ConfigError, match="found chunk.method semantic"):
        ingest([str(tmp_path)], semantic, contextualize=never)
