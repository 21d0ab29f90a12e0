"""Search over the real index."""

import numpy as np
import pytest

from rag.config import Settings
from rag.errors import ConfigError
from rag.index.embed import load_embedder
from rag.search.retrieve import open_retriever


def test_the_section_that_answers_comes_first_with_its_anchor_and_span(antarctica: Settings) -> None:
    result = open_retriever(antarctica).search("how deep do penguins dive", "antarctica")
    first = result.hits[0]
    assert first.source.endswith("penguins.md#diet")
    assert (first.rank, first.title) == (1, "Penguins > Diet")
    assert first.end - first.start == len(first.text)
    assert [hit.rank for hit in result.hits] == list(range(1, len(result.hits) + 1))
    assert set(result.timings_ms) == {"embed", "semantic", "search"}


def test_scores_are_the_cosines_of_the_embedder(antarctica: Settings) -> None:
    hits = open_retriever(antarctica).search("seals", "antarctica", exact=True).hits
    embedder = load_embedder(antarctica.embed, antarctica.home)
    query = embedder.embed(["seals"], "query")[0]
    cosines = embedder.embed([hit.context for hit in hits], "passage") @ query
    assert np.allclose([hit.score for hit in hits], cosines, atol=2e-3)
    assert sorted(cosines, reverse=True) == pytest.approx(list(cosines), abs=2e-3)


def test_k_limits_the_hits(antarctica: Settings) -> None:
    assert len(open_retriever(antarctica).search("ice", "antarctica", k=2).hits) == 2


@pytest.mark.parametrize("query", ["", "   ", "\0", "\n\t"])
def test_a_blank_query_finds_nothing(antarctica: Settings, query: str) -> None:
    assert open_retriever(antarctica).search(query, "antarctica").hits == ()


@pytest.mark.parametrize("query", ["'; drop table chunks; --", "\ud800", "🐧" * 500, "a\0b", "%s %(x)s", "שלום"])
def test_an_odd_query_is_only_a_query(antarctica: Settings, query: str) -> None:
    assert len(open_retriever(antarctica).search(query, "antarctica").hits) == 4


def test_a_query_of_100_kb_is_refused_in_one_line(antarctica: Settings) -> None:
    with pytest.raises(ConfigError, match="query of 100000 characters; expected at most 20000"):
        open_retriever(antarctica).search("x" * 100_000, "antarctica")
