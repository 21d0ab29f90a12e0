"""Search over the real index."""

import numpy as np
import pytest

from rag.config import SearchConfig, Settings
from rag.errors import ConfigError
from rag.index.embed import load_embedder
from rag.records import Access
from rag.search.retrieve import open_retriever


def test_the_section_that_answers_comes_first_with_its_anchor_and_span(antarctica: Settings) -> None:
    result = open_retriever(antarctica).search("how deep do penguins dive", "antarctica", mode="semantic")
    first = result.hits[0]
    assert first.source.endswith("penguins.md#diet")
    assert (first.rank, first.title) == (1, "Penguins > Diet")
    assert first.end - first.start == len(first.text)
    assert [hit.rank for hit in result.hits] == list(range(1, len(result.hits) + 1))
    assert set(result.timings_ms) == {"embed", "semantic", "search"}


def test_scores_are_the_cosines_of_the_embedder(antarctica: Settings) -> None:
    hits = open_retriever(antarctica).search("seals", "antarctica", mode="semantic", exact=True).hits
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


def test_words_alone_find_what_has_them_best_first(antarctica: Settings) -> None:
    retriever = open_retriever(antarctica)
    hits = retriever.search("krill squid", "antarctica", mode="lexical").hits
    assert [hit.title for hit in hits] == ["Penguins > Diet"]
    assert hits[0].score > 0 and hits[0].text.startswith("Emperor penguins eat krill")
    assert retriever.search("xylophone", "antarctica", mode="lexical").hits == ()


def test_hybrid_scores_every_candidate_in_both_arms(antarctica: Settings) -> None:
    retriever = open_retriever(antarctica)
    result = retriever.search("largest research station", "antarctica")
    assert len(result.hits) == 4 and result.hits[0].source.endswith("stations.txt")
    assert sum(hit.score for hit in result.hits) == pytest.approx(0, abs=1e-6)  # standardised over the candidates
    assert set(result.timings_ms) == {"embed", "semantic", "lexical", "read", "fuse", "search"}


def test_a_weight_of_one_orders_as_semantic_search_does(antarctica: Settings) -> None:
    def order(mode: str, weight: float | None = None) -> list[str]:
        settings = antarctica.model_copy(update={"search": SearchConfig(weight=weight)})
        return [
            hit.chunk_id for hit in open_retriever(settings).search("seals under ice", "antarctica", mode=mode).hits
        ]

    assert order("hybrid", 1.0) == order("semantic")
    assert order("hybrid", 0.0)[:1] == order("lexical")[:1]


@pytest.mark.parametrize("mode", ["hybrid", "semantic", "lexical"])
def test_a_filter_holds_in_every_arm(antarctica: Settings, mode: str) -> None:
    retriever = open_retriever(antarctica)
    hits = retriever.search("fish", "antarctica", mode=mode, filters={"mime": "text/html"}).hits
    assert [hit.title for hit in hits] == ["Seals"]
    page = next(hit.source for hit in retriever.search("krill", "antarctica", mode="lexical").hits)
    hits = retriever.search("penguins", "antarctica", mode=mode, filters={"source": page}).hits
    assert {hit.source for hit in hits} == {page}


@pytest.mark.parametrize("mode", ["hybrid", "semantic", "lexical"])
def test_a_caller_of_another_tenant_finds_nothing(antarctica: Settings, mode: str) -> None:
    retriever = open_retriever(antarctica)
    assert retriever.search("fish", "antarctica", mode=mode, access=Access("acme")).hits == ()
    assert retriever.search("fish", "antarctica", mode=mode, access=Access("")).hits != ()


def test_an_unknown_mode_is_one_line(antarctica: Settings) -> None:
    with pytest.raises(ConfigError, match="expected hybrid, semantic, lexical; found 'vibes'"):
        open_retriever(antarctica).search("fish", "antarctica", mode="vibes")
