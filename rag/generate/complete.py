"""Messages in, an LLM's whole reply out, for those who want no stream: query rewriting, prefixes of chunks.

A `complete` may be called from any thread that runs no event loop. It knows nothing of what it is asked.
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from functools import partial

from rag.config import LLMConfig, Settings
from rag.errors import ConfigError
from rag.generate.llm import LLM, is_local, load_llm
from rag.index.replies import Complete
from rag.records import Message
from rag.search.retrieve import Retriever, open_retriever

CHARS_PER_TOKEN = 2  # on the low side, so that a reply of so many characters is not cut


def load_complete(config: LLMConfig) -> Complete:
    """The LLM that `config` names; replies have at most `config.max_tokens`. Raises ModelError, ConfigError."""
    llm = load_llm(config)
    if llm is None:
        raise ConfigError(f"{config.name}: expected a language model, found one that only quotes; name another")
    return partial(complete, llm, config.max_tokens)


def open_search(settings: Settings) -> Retriever:
    """A retriever with the LLM that its settings ask for. Raises what `open_retriever` and `load_complete` raise."""
    needs_llm = settings.rerank.name == "llm" or settings.search.rewrite != "none"
    return open_retriever(settings, load_complete(settings.llm) if needs_llm else None)


def complete(llm: LLM, max_tokens: int, messages: list[Message]) -> str:
    """The whole reply. Raises GenerationError."""

    async def drain() -> str:
        async with aclosing(llm.stream(messages, max_tokens)) as pieces:
            return "".join([piece async for piece in pieces if isinstance(piece, str)])

    return asyncio.run(drain())


def contextualizer(settings: Settings) -> Callable[[], Complete] | None:
    """What `rag.ingest(..., contextualize=…)` takes: how a worker makes the LLM of `context.llm`; None without one.

    Raises ModelError, ConfigError for one that cannot be used, before anything is ingested.
    """
    context, llm = settings.context, settings.llm
    if not context.llm:
        return None
    config = llm.model_copy(
        update={
            "name": context.llm,
            "base_url": context.base_url or llm.base_url,
            "max_tokens": -(-context.max_chars // CHARS_PER_TOKEN),
            "temperature": 0.0,
        }
    )
    if not is_local(config):
        load_complete(config)  # a client costs nothing; a local model is loaded where there is something to ask
    return partial(load_complete, config)
