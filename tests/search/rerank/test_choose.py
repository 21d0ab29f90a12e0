from pathlib import Path

import pytest

from rag.config import RerankConfig, load_settings
from rag.errors import ConfigError, ModelError
from rag.search.rerank.choose import make_reranker
from rag.search.rerank.listwise import ListwiseReranker


def test_none_is_the_default_and_no_reranker() -> None:
    assert load_settings().rerank == RerankConfig(name="none", k=50, threshold=None, precision="auto")
    assert make_reranker(RerankConfig()) is None


def test_llm_takes_the_function_that_completes() -> None:
    assert isinstance(make_reranker(RerankConfig(name="llm"), lambda messages: ""), ListwiseReranker)
    with pytest.raises(ConfigError, match="llm needs a language model, found none"):
        make_reranker(RerankConfig(name="llm"))


@pytest.mark.parametrize("name", ["", "topics", "topics:", "cross-encoder:", "llm:x", "bm25"])
def test_a_name_that_says_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected one of none, topics:FOLDER, cross-encoder:NAME, llm; found"):
        make_reranker(RerankConfig(name=name))


@pytest.mark.parametrize("kind", ["topics", "cross-encoder"])
def test_a_folder_that_holds_no_model_is_one_line(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        make_reranker(RerankConfig(name=f"{kind}:{tmp_path}"))
