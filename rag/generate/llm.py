"""A configuration in, a language model out: what every LLM can do, and which one the settings mean.

The two implementations (`openai_client`, `local`) share this protocol and nothing else. An LLM gets
messages and yields text; it knows nothing of retrieval, hits or citations.
"""

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Protocol

from rag.catalog import EXTRACTIVE, LLMS, LOCAL_LLM
from rag.config import LLMConfig
from rag.errors import ModelError
from rag.records import Message, Usage


class LLM(Protocol):
    """A language model that streams its answer."""

    name: str
    prompt_budget_tokens: int  # tokens a prompt may take: prompt + answer fit the context

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens that `messages` take in the prompt; never fewer than the model will see."""
        ...

    def stream(self, messages: Sequence[Message], max_tokens: int) -> AsyncGenerator[str | Usage]:
        """Text as it is generated, then exactly one Usage. Raises GenerationError, never ends in silence."""
        ...


def is_local(config: LLMConfig) -> bool:
    """Whether the LLM that `config` names runs on this machine rather than behind an endpoint."""
    return config.base_url is None and (config.name == LOCAL_LLM or config.name.endswith(".gguf"))


def load_llm(config: LLMConfig) -> LLM | None:
    """The LLM that `config` names; None for `extractive`, which needs none.

    An endpoint where there is a `base_url`, or a key and a vendor's model; else a model on this machine.
    """
    if config.name == EXTRACTIVE:
        return None
    is_vendors = config.name in LLMS and config.name != LOCAL_LLM
    if config.base_url is not None or (config.api_key is not None and is_vendors):
        from rag.generate.openai_client import OpenAIClient

        return OpenAIClient(config)
    if is_local(config):
        from rag.generate.local import LocalLLM, packaged_model

        path = packaged_model() if config.name == LOCAL_LLM else Path(config.name).expanduser()
        return LocalLLM(config, path)
    if is_vendors:
        raise ModelError(
            f"llm.name: {config.name!r} needs an API key; found none;"
            " set OPENAI_API_KEY, or RAG_LLM__BASE_URL for an endpoint without one"
        )
    known = ", ".join([EXTRACTIVE, *LLMS])
    raise ModelError(
        f"llm.name: expected one of {known}, or a .gguf file; found {config.name!r};"
        " set RAG_LLM__BASE_URL (and OPENAI_API_KEY) if an endpoint serves it"
    )
