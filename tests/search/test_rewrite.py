"""Rewritten queries, whatever the LLM says: a fake `complete` for each reply."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.records import Message
from rag.search.rewrite import (
    MAX_PASSAGE_CHARS,
    MAX_QUERY_CHARS,
    Complete,
    hypothetical_passage,
    mean_embedding,
    paraphrases,
    standalone_query,
)

TALK: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How do I sort a list in Python?"},
    {"role": "assistant", "content": "Call sorted()."},
    {"role": "user", "content": "And in Rust?"},
]
QUERY = "And in Rust?"


def says(reply: object) -> Complete:
    return lambda messages: reply  # type: ignore[return-value]


def fails(messages: list[Message]) -> str:
    raise TimeoutError("no reply")


GARBAGE: list[object] = [
    "",
    " \n\t ",
    "\0\0\x07\x1b[31m\x1b[0m",
    "```\n```",
    "...",
    "---\n***",
    "None",
    "n/a.",
    "I'm sorry, but I can't assist with that.",
    "I’m sorry, I do not know.",
    "As an AI language model, I have no opinion.",
    "**I cannot help with that.**",
    "Sure! Here is the question:",
    "{}",
    "[]",
    '{"query": null, "n": 3}',
    '{"query": "cut off',
    "[" * 19_000,
    "<think>The user wants to know about Rust, so",
    "x" * 10_000_000,
    "a\n" * 5_000_000,
    "\ud800",
    None,
    7,
]


@pytest.mark.parametrize("reply", GARBAGE, ids=lambda reply: repr(reply)[:30])
def test_garbage_leaves_the_original_query(reply: object) -> None:
    assert standalone_query(TALK, says(reply)) == QUERY
    assert paraphrases(QUERY, says(reply)) == [QUERY]
    assert hypothetical_passage(QUERY, says(reply)) == QUERY


def test_an_llm_that_fails_leaves_the_original_query() -> None:
    assert standalone_query(TALK, fails) == QUERY
    assert paraphrases(QUERY, fails) == [QUERY]
    assert hypothetical_passage(QUERY, fails) == QUERY


@pytest.mark.parametrize(
    "reply",
    [
        "How do I sort a list in Rust?",
        '  "How do I sort a list in Rust?"\n',
        "Standalone question: How do I sort a list in Rust?",
        "**Question:** How do I sort a list in Rust?",
        "Sure! Here is the rewritten question:\n\nHow do I sort a list in Rust?\n\nLet me know if it helps.",
        "```text\nHow do I sort a list in Rust?\n```",
        "<think>Rust.\nSo a list.</think>\n\nHow do I sort a list in Rust?",
        "1. How do I sort a list in Rust?\n2. How do I sort a Vec?",
        '{"query": "How do I sort a list in Rust?"}',
        '["How do I sort a list in Rust?", "How do I sort a Vec?"]',
        "How do I sort\x00 a\x1b list\x07 in Rust?\u202e",
    ],
)
def test_the_question_is_found_in_what_surrounds_it(reply: str) -> None:
    assert standalone_query(TALK, says(reply)) == "How do I sort a list in Rust?"


def test_the_llm_sees_the_last_turns_and_no_system_message() -> None:
    seen: list[list[Message]] = []

    def complete(messages: list[Message]) -> str:
        seen.append(messages)
        return "ok then?"

    turns: list[Message] = [{"role": "user", "content": f"turn {i} " + "x" * 2000} for i in range(20)]
    assert standalone_query([*turns, *TALK], complete) == "ok then?"
    ((system, user),) = seen
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["content"].endswith("Assistant: Call sorted().\n\nLast question: And in Rust?")
    assert "Be brief" not in user["content"]
    assert ("turn 15 " in user["content"], "turn 16 " in user["content"]) == (False, True)
    assert len(user["content"]) < 6 * 1100


def test_a_first_question_is_not_sent_to_the_llm() -> None:
    assert standalone_query(TALK[:2], fails) == "How do I sort a list in Python?"
    assert standalone_query([*TALK, {"role": "assistant", "content": "Call sort()."}], says("Rust sorting?")) == (
        "Rust sorting?"
    )
    assert standalone_query([], fails) == ""
    assert standalone_query(TALK[:1], fails) == ""


def test_a_reply_too_long_for_a_query_is_an_answer() -> None:
    answer = "In Rust one calls sort on a mutable slice. " * 12
    assert len(answer) > MAX_QUERY_CHARS
    assert standalone_query(TALK, says(answer)) == QUERY
    assert paraphrases(QUERY, says(answer)) == [QUERY]


def test_paraphrases_are_distinct_and_the_query_comes_first() -> None:
    reply = "Here:\n1. Sorting in Rust?\n2) sorting in rust ?\n- And in Rust?\n* How is a Vec sorted?\n\n(4) 4th?\n"
    assert paraphrases(QUERY, says(reply), num=3) == [QUERY, "Sorting in Rust?", "How is a Vec sorted?", "4th?"]
    assert paraphrases(QUERY, says(reply), num=1) == [QUERY, "Sorting in Rust?"]
    assert paraphrases("sorting rust", says(json.dumps({"queries": ["One", "Two"]}))) == ["sorting rust", "One", "Two"]
    assert paraphrases(QUERY, fails, num=0) == [QUERY]
    assert paraphrases(" ", says(reply)) == [" "]


def test_an_answer_does_not_take_the_place_of_a_question() -> None:
    answer = "Call sort() on it:\n```rust\nv.sort();\nv.is_sorted()?\n```\nIt sorts in place."
    assert standalone_query(TALK, says(answer)) == QUERY
    assert paraphrases(QUERY, says(answer)) == [QUERY]
    assert hypothetical_passage(QUERY, says(answer)) == "It sorts in place."
    assert standalone_query([*TALK[:3], {"role": "user", "content": "in Rust"}], says("sorting in Rust")) == (
        "sorting in Rust"
    )


def test_a_hypothetical_passage_is_one_text() -> None:
    reply = "Passage: Rust slices have sort().\n\nFor keys there is **sort_by_key**."
    assert hypothetical_passage(QUERY, says(reply)) == "Rust slices have sort(). For keys there is sort_by_key."
    loop = "the same words again " * 50
    assert hypothetical_passage(QUERY, says(loop)) == QUERY
    long = " ".join(f"word{i}" for i in range(400))
    assert len(long) > MAX_PASSAGE_CHARS
    assert hypothetical_passage(QUERY, says(long)) == QUERY
    assert hypothetical_passage("x" * 501, fails) == "x" * 501


@given(st.text(max_size=300))
def test_no_reply_raises_or_makes_an_empty_or_unprintable_query(reply: str) -> None:
    for query in (standalone_query(TALK, says(reply)), *paraphrases(QUERY, says(reply))):
        assert query.strip()
        assert not any(ord(char) < 32 or 0xD800 <= ord(char) < 0xE000 for char in query)
        assert len(query) <= MAX_QUERY_CHARS
    assert hypothetical_passage(QUERY, says(reply)).strip()


def test_the_mean_embedding_has_norm_1_and_lies_between() -> None:
    rows = np.array([[1, 0], [0, 1]], np.float32)
    assert mean_embedding(rows).tolist() == pytest.approx([0.5**0.5, 0.5**0.5])
    assert mean_embedding(rows[:1]).tolist() == [1, 0]
    assert mean_embedding(np.array([[1, 0], [-1, 0]], np.float32)).tolist() == [1, 0]


def test_an_llm_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(messages: object) -> str:
        raise ConnectionError("no\nroute")

    assert paraphrases("what is krill?", fail) == ["what is krill?"]
    assert [record.message for record in caplog.records] == ["the query is not rewritten: ConnectionError: no route"]
