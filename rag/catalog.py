"""Facts about models that no model says of itself: context length, prefixes, price. Data only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EmbedderFacts:
    """Prefixes a model was trained with; a forgotten prefix costs recall silently."""

    hub_id: str
    query_prefix: str = ""
    passage_prefix: str = ""


@dataclass(frozen=True)
class LLMFacts:
    """Context length in tokens; prices in USD per million tokens, None where nobody charges."""

    context_tokens: int
    input_usd: float | None = None
    output_usd: float | None = None


EMBEDDERS: dict[str, EmbedderFacts] = {
    "all-MiniLM-L6-v2": EmbedderFacts("sentence-transformers/all-MiniLM-L6-v2"),
    "bge-small-en-v1.5": EmbedderFacts(
        "BAAI/bge-small-en-v1.5", "Represent this sentence for searching relevant passages: "
    ),
    "bge-base-en-v1.5": EmbedderFacts(
        "BAAI/bge-base-en-v1.5", "Represent this sentence for searching relevant passages: "
    ),
    "e5-base-v2": EmbedderFacts("intfloat/e5-base-v2", "query: ", "passage: "),
    "gte-large": EmbedderFacts("thenlper/gte-large"),
}

LOCAL_LLM = "SmolLM2-135M-Instruct"
EXTRACTIVE = "extractive"

# Prices as published by the vendor in 2025; an unknown model costs None, never 0.
LLMS: dict[str, LLMFacts] = {
    LOCAL_LLM: LLMFacts(8192),
    "gpt-4o": LLMFacts(128_000, 2.50, 10.00),
    "gpt-4o-mini": LLMFacts(128_000, 0.15, 0.60),
    "gpt-4.1": LLMFacts(1_047_576, 2.00, 8.00),
    "gpt-4.1-mini": LLMFacts(1_047_576, 0.40, 1.60),
    "gpt-4.1-nano": LLMFacts(1_047_576, 0.10, 0.40),
}
DEFAULT_CONTEXT_TOKENS = 4096  # an endpoint's model that the catalogue does not know


def cost_usd(llm: str, prompt_tokens: int, output_tokens: int) -> float | None:
    """The price of one call, or None where the catalogue has none for `llm`."""
    facts = LLMS.get(llm)
    if facts is None or facts.input_usd is None or facts.output_usd is None:
        return None
    return (prompt_tokens * facts.input_usd + output_tokens * facts.output_usd) / 1e6
