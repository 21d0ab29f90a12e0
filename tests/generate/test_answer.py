"""QueryAgent from question to cited answer: real database and embedder, the real local LLM, a scripted endpoint."""

import asyncio
from typing import Any

import pytest
from fake_openai import cut, fake_openai, ok, status

from rag.config import Settings
from rag.errors import GenerationError, NotFound
from rag.generate.answer import QueryAgent, Retrieved, Token, answer_json
from rag.records import Answer

QUESTION = "What do emperor penguins eat?"


def agent(settings: Settings, **llm: Any) -> QueryAgent:
    config = settings.llm.model_copy(update={"max_retries": 0, "timeout_s": 10.0, **llm})
    return QueryAgent(settings=settings.model_copy(update={"llm": config}))


def test_the_local_model_answers_with_a_citation_of_the_right_section(antarctica: Settings) -> None:
    answer = agent(antarctica, name="SmolLM2-135M-Instruct")(QUESTION)
    assert answer.route == "model"
    assert answer.sources[0].endswith("penguins.md#diet")
    assert "krill" in answer.answer or "fish" in answer.answer
    assert answer.citations[0].source.endswith("penguins.md#diet")
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.output_tokens > 0


def test_events_come_as_retrieved_then_tokens_then_one_answer(antarctica: Settings) -> None:
    with fake_openai(ok("They eat krill and fish [1].")) as server:
        events = list(agent(antarctica, name="gpt-4o-mini", base_url=server.base_url).events(QUESTION))
    assert isinstance(events[0], Retrieved)
    assert all(isinstance(event, Token) for event in events[1:-1])
    answer = events[-1]
    assert isinstance(answer, Answer)
    assert "".join(event.text for event in events if isinstance(event, Token)).strip() == answer.answer
    assert answer.answer == "They eat krill and fish [1]."
    assert [c.n for c in answer.citations] == [1]
    assert answer.citations[0].chunk_id == answer.hits[0].chunk_id


def test_an_answer_that_no_passage_backs_gets_quotes_beside_it_and_says_so(antarctica: Settings) -> None:
    with fake_openai(ok("They mostly order pizza downtown.")) as server:
        answer = agent(antarctica, name="gpt-4o-mini", base_url=server.base_url)(QUESTION)
    assert answer.answer.startswith("They mostly order pizza downtown.\n\nThe passages do not say this")
    assert "- Emperor penguins eat krill, fish and squid. [1]" in answer.answer
    assert answer.citations[0].source.endswith("penguins.md#diet")
    assert answer.route == "model: not supported by the passages, quotes added"


def test_stream_yields_the_text_in_pieces(antarctica: Settings) -> None:
    with fake_openai(ok("Krill and fish [1].")) as server:
        pieces = list(agent(antarctica, name="gpt-4o-mini", base_url=server.base_url)(QUESTION, stream=True))
    assert len(pieces) > 1
    assert "".join(pieces).strip() == "Krill and fish [1]."


@pytest.mark.parametrize(
    "text", ["\n Emperor penguins eat krill, fish and squid.\n", " They mostly order pizza downtown."]
)
def test_a_stream_has_what_was_added_to_a_text_that_begins_with_a_blank(antarctica: Settings, text: str) -> None:
    with fake_openai(ok(text)) as server:
        events = list(agent(antarctica, name="gpt-4o-mini", base_url=server.base_url).events(QUESTION))
    answer = events[-1]
    assert isinstance(answer, Answer)
    assert answer.citations
    shown = "".join(event.text for event in events if isinstance(event, Token))
    assert " ".join(shown.split()) == " ".join(answer.answer.split())


def test_a_stream_has_the_quotes_beside_a_text_that_cites_what_is_not_there(antarctica: Settings) -> None:
    with fake_openai(ok("They order pizza downtown [99].")) as server:
        events = list(agent(antarctica, name="gpt-4o-mini", base_url=server.base_url).events(QUESTION))
    answer = events[-1]
    assert isinstance(answer, Answer)
    shown = "".join(event.text for event in events if isinstance(event, Token))
    assert shown.replace(" [99]", "") == answer.answer
    assert "- Emperor penguins eat krill" in shown


def test_it_answers_inside_a_running_event_loop_as_in_a_notebook(antarctica: Settings) -> None:
    async def cell() -> Answer:
        return agent(antarctica)(QUESTION)

    assert "krill" in asyncio.run(cell()).answer


def test_without_a_model_the_best_sentences_are_quoted_and_it_says_so(antarctica: Settings) -> None:
    answer = agent(antarctica)(QUESTION)
    assert answer.route == "extractive: no language model configured"
    assert answer.llm == "extractive"
    assert "Emperor penguins eat krill, fish and squid." in answer.answer
    assert answer.citations[0].source.endswith("penguins.md#diet")


def test_a_model_that_fails_before_its_first_token_gives_way_to_quotes_with_the_reason(antarctica: Settings) -> None:
    with fake_openai(status(500)) as server:
        answer = agent(antarctica, name="gpt-4o-mini", base_url=server.base_url)(QUESTION)
    assert answer.route.startswith("extractive: gpt-4o-mini: ")
    assert "krill" in answer.answer


def test_a_model_that_fails_in_the_middle_is_an_error_not_half_an_answer(antarctica: Settings) -> None:
    with fake_openai(cut("They eat krill and many other", 3)) as server:
        events = agent(antarctica, name="gpt-4o-mini", base_url=server.base_url).events(QUESTION)
        with pytest.raises(GenerationError):
            list(events)


def test_an_unknown_collection_is_an_error_before_the_first_event(antarctica: Settings) -> None:
    with pytest.raises(NotFound):
        next(iter(QueryAgent(collection="nope", settings=antarctica).events(QUESTION)))


def test_the_json_has_the_keys_other_programs_rely_on(antarctica: Settings) -> None:
    answer = answer_json(agent(antarctica)(QUESTION))
    assert {"question", "answer", "sources", "llm", "citations", "usage", "cost_usd", "route", "timings_ms"} <= set(
        answer
    )
    assert set(answer["citations"][0]) == {"n", "source", "chunk_id"}  # type: ignore[index]
