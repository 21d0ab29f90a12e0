"""Each test scripts a real HTTP server and checks what the client makes of it."""

import asyncio
import time
from email.utils import formatdate

import pytest
from fake_openai import cut, empty, fake_openai, hang, ok, status

from rag.catalog import LOCAL_LLM
from rag.config import LLMConfig
from rag.errors import ConfigError, GenerationError, ModelError
from rag.generate.llm import load_llm
from rag.generate.openai_client import OpenAIClient, _retry_after_s
from rag.records import Message, Usage

KEY = "sk-secret-0123456789"
MESSAGES: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital?"}]


def client_for(server, **overrides) -> OpenAIClient:
    settings = {"name": "gpt-4o", "base_url": server.base_url, "api_key": KEY, "timeout_s": 5.0, **overrides}
    return OpenAIClient(LLMConfig(**settings), backoff_s=0.001)


def drain(client, into: list | None = None) -> list:
    """Every item of one stream; those before an error stay in `into`."""
    items = [] if into is None else into

    async def run() -> None:
        async for item in client.stream(MESSAGES, 50):
            items.append(item)

    asyncio.run(run())
    return items


def test_stream_yields_the_text_and_then_one_usage_with_its_cost():
    with fake_openai(ok("Paris is it [1].", prompt_tokens=1000, output_tokens=100)) as server:
        items = drain(client_for(server))
    assert items[:-1] == ["Paris", " is", " it", " [1]."]
    assert items[-1] == Usage(1000, 100, pytest.approx(1000 * 2.5e-6 + 100 * 10e-6))


def test_request_carries_the_settings_and_the_key():
    with fake_openai(ok("Yes.")) as server:
        drain(client_for(server, temperature=0.3))
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    expected = {"model": "gpt-4o", "max_tokens": 50, "temperature": 0.3, "messages": MESSAGES, "stream": True}
    assert expected.items() <= request.body.items()


def test_unknown_model_costs_none_and_missing_usage_is_estimated():
    with fake_openai(ok("Paris.", has_usage=False)) as server:
        client = client_for(server, name="llama-7b", api_key=None)
        usage = drain(client)[-1]
    assert usage == Usage(client.count_tokens(MESSAGES), 2, None)


def test_429_waits_as_long_as_retry_after_says_and_then_succeeds():
    with fake_openai(status(429, retry_after="1"), ok("Paris.")) as server:
        assert drain(client_for(server))[0] == "Paris."
    first, second = server.requests
    assert second.time_s - first.time_s >= 1.0


@pytest.mark.parametrize("code", [408, 500, 503])
def test_passing_failures_are_retried(code):
    with fake_openai(status(code), ok("Paris.")) as server:
        assert drain(client_for(server))[0] == "Paris."
    assert len(server.requests) == 2


def test_500_to_the_end_says_how_many_attempts_were_made():
    with fake_openai(status(500)) as server, pytest.raises(GenerationError) as caught:
        drain(client_for(server, max_retries=2))
    assert len(server.requests) == 3
    assert str(caught.value).startswith("gpt-4o: HTTP 500 (")
    assert "after 3 attempts; try again later" in str(caught.value)


@pytest.mark.parametrize("code", [400, 401, 403, 404])
def test_a_wrong_request_fails_at_once_without_the_key_in_the_message(code):
    with fake_openai(status(code, "denied: {authorization}")) as server, pytest.raises(GenerationError) as caught:
        drain(client_for(server))
    assert len(server.requests) == 1
    assert str(caught.value).startswith(f"gpt-4o: HTTP {code} (")
    assert "after 1 attempt;" in str(caught.value)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_silence_is_an_error_after_every_attempt_timed_out():
    with fake_openai(hang(0.5)) as server, pytest.raises(GenerationError) as caught:
        drain(client_for(server, timeout_s=0.1, max_retries=1))
    assert str(caught.value) == (
        "gpt-4o: no reply in 0.1 s after 2 attempts; raise llm.timeout_s or choose another model"
    )
    assert len(server.requests) == 2


def test_timeout_is_retried():
    with fake_openai(hang(0.6), ok("Paris.")) as server:
        assert drain(client_for(server, timeout_s=0.3))[0] == "Paris."


def test_silence_between_tokens_is_an_error_and_not_retried():
    items: list = []
    with fake_openai(hang(0.6, after="Par is")) as server, pytest.raises(GenerationError, match="in the middle"):
        drain(client_for(server, timeout_s=0.3), items)
    assert items == ["Par", " is"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("is_clean", [False, True])
def test_a_stream_cut_after_tokens_is_an_error_and_not_retried(is_clean):
    items: list = []
    with (
        fake_openai(cut("The capital", is_clean), ok("Paris.")) as server,
        pytest.raises(GenerationError, match=r"connection lost .* in the middle of the answer after 1 attempt;"),
    ):
        drain(client_for(server), items)
    assert items == ["The", " capital"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("is_clean", [False, True])
def test_a_stream_cut_before_the_first_token_is_retried(is_clean):
    with fake_openai(cut("", is_clean), ok("Paris.")) as server:
        assert drain(client_for(server))[0] == "Paris."
    assert len(server.requests) == 2


def test_an_empty_completion_is_an_error():
    with fake_openai(empty()) as server, pytest.raises(GenerationError, match="an empty answer"):
        drain(client_for(server))
    assert len(server.requests) == 1


def test_no_server_is_an_error_that_names_the_address():
    with fake_openai(ok("never asked")) as server:
        pass
    with pytest.raises(GenerationError, match=r"connection lost .* after 2 attempts; check that http://127"):
        drain(client_for(server, max_retries=1))


def test_one_client_works_from_two_event_loops():
    with fake_openai(ok("Paris.")) as server:
        client = client_for(server)
        assert drain(client) == drain(client)


def test_leaving_the_stream_early_ends_the_request():
    async def first_word(client) -> str:
        stream = client.stream(MESSAGES, 50)
        word = await anext(stream)
        await stream.aclose()
        return word

    with fake_openai(hang(0.5, after="Par is")) as server:
        start_s = time.monotonic()
        assert asyncio.run(first_word(client_for(server))) == "Par"
        assert time.monotonic() - start_s < 5


def test_retry_after_is_read_as_seconds_or_as_a_date_and_is_capped():
    assert _retry_after_s(None) is None
    assert _retry_after_s("soon") is None
    assert _retry_after_s("2.5") == 2.5
    assert _retry_after_s("-1") == 0
    assert _retry_after_s("3600") == 30
    assert _retry_after_s("nan") is None
    assert 5 < _retry_after_s(formatdate(time.time() + 10, usegmt=True)) <= 10
    assert _retry_after_s(formatdate(time.time() - 10, usegmt=True)) == 0


def test_token_estimates_never_undercount_english_and_code_and_chinese():
    client = OpenAIClient(LLMConfig(name="gpt-4o", api_key=KEY))
    count = lambda text: client.count_tokens([{"role": "user", "content": text}])  # noqa: E731
    assert count("the quick brown fox") >= 4 + 4
    assert count("数据集") >= 3 + 4
    assert count("a[0]=b;") >= 6


def test_prompt_budget_leaves_room_for_the_answer():
    assert OpenAIClient(LLMConfig(name="gpt-4o")).prompt_budget_tokens == 128_000 - 256 - 32
    assert OpenAIClient(LLMConfig(name="unknown", context_tokens=1000)).prompt_budget_tokens == 1000 - 256 - 32
    with pytest.raises(ConfigError, match=r"llm.max_tokens: expected fewer than the 300"):
        OpenAIClient(LLMConfig(name="x", context_tokens=300, max_tokens=300))


def test_load_llm_selects_by_name_address_and_key():
    assert load_llm(LLMConfig(name="extractive", base_url="http://x/v1")) is None
    assert isinstance(load_llm(LLMConfig(name="gpt-4o", api_key=KEY)), OpenAIClient)
    assert isinstance(load_llm(LLMConfig(name="anything", base_url="http://x/v1")), OpenAIClient)
    assert load_llm(LLMConfig(name=LOCAL_LLM, api_key=KEY)).name == LOCAL_LLM
    assert not isinstance(load_llm(LLMConfig(name=LOCAL_LLM, api_key=KEY)), OpenAIClient)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gpt-4o", "needs an API key; found none; set OPENAI_API_KEY"),
        ("nonsense", "expected one of extractive, SmolLM2-135M-Instruct, gpt-4o.*found 'nonsense'; set RAG_LLM__BASE"),
        ("/nowhere/m.gguf", "expected a .gguf file, found nothing at /nowhere/m.gguf"),
    ],
)
def test_load_llm_says_what_to_do_with_a_name_it_cannot_use(name, says):
    with pytest.raises(ModelError, match=says) as caught:
        load_llm(LLMConfig(name=name))
    assert "\n" not in str(caught.value)
