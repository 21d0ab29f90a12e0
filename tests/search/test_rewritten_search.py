"""Searches by a query that an LLM rewrote; the LLM is a function here."""

import pytest

from rag.config import Settings
from rag.errors import ConfigError
from rag.records import Message
from rag.search.retrieve import Retriever, open_retriever

PASSAGE = "Penguins dive for krill and fish, hundreds of metres deep."


def rewriting(settings: Settings, how: str, reply: str) -> tuple[Retriever, list[list[Message]]]:
    asked: list[list[Message]] = []

    def complete(messages: list[Message]) -> str:
        asked.append(messages)
        return reply

    search = settings.search.model_copy(update={"rewrite": how})
    return open_retriever(settings.model_copy(update={"search": search}), complete), asked


def test_hyde_searches_by_what_an_answer_might_say(antarctica: Settings) -> None:
    retriever, asked = rewriting(antarctica, "hyde", PASSAGE)
    result = retriever.search("zzyzx?", "antarctica", mode="semantic")
    assert result.hits[0].source.endswith("penguins.md#diet")
    assert len(asked) == 1
    assert "rewrite" in result.timings_ms


def test_several_queries_are_searched_and_a_hit_of_most_of_them_comes_first(antarctica: Settings) -> None:
    retriever, asked = rewriting(antarctica, "multi-query", "How deep do penguins dive?\nWhat do penguins eat?")
    result = retriever.search("zzyzx?", "antarctica", k=3, mode="hybrid")
    assert result.hits[0].source.endswith("penguins.md#diet")
    assert len(result.hits) == 3
    assert len(asked) == 1


def test_an_llm_that_answers_garbage_leaves_the_query(antarctica: Settings) -> None:
    plain = open_retriever(antarctica).search("how deep do penguins dive?", "antarctica").hits
    for how in ("hyde", "multi-query"):
        retriever, _ = rewriting(antarctica, how, "")
        assert retriever.search("how deep do penguins dive?", "antarctica").hits == plain


def test_nothing_is_rewritten_by_default(antarctica: Settings) -> None:
    assert antarctica.search.rewrite == "none"
    retriever, asked = rewriting(antarctica, "none", PASSAGE)
    retriever.search("seals", "antarctica")
    assert asked == []


def test_rewriting_without_an_llm_is_refused_in_one_line(antarctica: Settings) -> None:
    search = antarctica.search.model_copy(update={"rewrite": "hyde"})
    with pytest.raises(ConfigError, match=r"^search\.rewrite is hyde, which an LLM does: expected one, found none$"):
        open_retriever(antarctica.model_copy(update={"search": search}))
