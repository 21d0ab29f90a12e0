"""The settings in, a reranker out, or None where the order of the search stands."""

from pathlib import Path

from rag.config import RerankConfig
from rag.errors import ConfigError
from rag.index.replies import Complete
from rag.search.rerank import Reranker

NAMES = "none, topics:FOLDER, cross-encoder:NAME, llm"


def make_reranker(
    config: RerankConfig, complete: Complete | None = None, cache_dir: Path | None = None
) -> Reranker | None:
    """`complete` runs the LLM of an `llm` reranker; `cache_dir` keeps what a cross-encoder's precision was measured at.

    Raises ConfigError for a name that says nothing, ModelError for a model that cannot be loaded.
    """
    kind, _, which = config.name.partition(":")
    if config.name == "none":
        return None
    if config.name == "llm":
        if complete is None:
            raise ConfigError("rerank.name: llm needs a language model, found none; set llm.name, or rerank.name=none")
        from rag.search.rerank.listwise import ListwiseReranker

        return ListwiseReranker(complete)
    if kind == "topics" and which:
        from rag.search.rerank.topics import load_topic_reranker

        return load_topic_reranker(which, config.threshold)
    if kind == "cross-encoder" and which:
        from rag.search.rerank.cross_encoder import load_cross_encoder

        return load_cross_encoder(which, config.precision, cache_dir)
    raise ConfigError(f"rerank.name: expected one of {NAMES}; found {config.name!r}")
