import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import ConfigError
from rag.index.tokens import MAX_TERM_CHARS, Analyzer


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("map_batches", ["map_batches", "map", "batch"]),
        (
            "RAY_memory_monitor_refresh_ms",
            ["ray_memory_monitor_refresh_ms", "ray", "memori", "monitor", "refresh", "ms"],
        ),
        ("GKE-1128-B", ["gke-1128-b", "gke", "1128", "b"]),
        ("torch.nn.Linear", ["torch.nn.linear", "torch", "nn", "linear"]),
        ("DataParallelTrainer", ["dataparalleltrainer", "data", "parallel", "trainer"]),
        ("HTTPServer", ["httpserver", "http", "server"]),
        ("__init__", ["__init__", "init"]),
        ("C++ and C#", ["c++", "c", "c#", "c"]),
        ("v2.60.1", ["v2.60.1", "v2", "60", "1"]),
    ],
)
def test_an_identifier_is_found_whole_and_by_its_parts(text: str, terms: list[str]) -> None:
    assert Analyzer("english").terms(text) == terms


@pytest.mark.parametrize(
    ("language", "text", "terms"),
    [
        ("english", "The batches were running", ["batch", "run"]),
        ("english", "state-of-the-art", ["state", "art"]),
        ("english", "the dog's bones, don't", ["dog", "bone"]),
        ("german", "Die Häuser der Städte", ["haus", "stadt"]),
        ("french", "l'avion des chevaux", ["avion", "cheval"]),
        ("none", "The batches", ["the", "batches"]),
        ("none", "機械学習 データ", ["機械", "械学", "学習", "デー", "ータ"]),
        ("english", "機", ["機"]),
        ("none", "ＡＢＣ ｶﾞ", ["abc", "ガ"]),
    ],
)
def test_words_are_cut_as_their_language_asks(language: str, text: str, terms: list[str]) -> None:
    assert Analyzer(language).terms(text) == terms


def test_a_query_of_stop_words_alone_keeps_them() -> None:
    analyzer = Analyzer("english")
    assert analyzer.terms("to be or not to be") == []
    assert analyzer.query_terms("to be or not to be") == ["to", "be", "or", "not", "to", "be"]
    assert analyzer.query_terms("to be a whale") == ["whale"]


def test_an_unknown_language_is_one_line() -> None:
    with pytest.raises(ConfigError, match="^ingest.language: expected one of arabic, .* or none, found 'klingon'"):
        Analyzer("klingon")


@given(st.text(max_size=300))
def test_any_text_gives_terms_that_are_short_and_never_blank(text: str) -> None:
    analyzer = Analyzer("english")
    terms = analyzer.terms(text)
    assert all(term.strip() and len(term) <= MAX_TERM_CHARS for term in terms)
    assert analyzer.terms(text) == terms


@given(st.lists(st.sampled_from(["map_batches", "whale", "GKE-1128-B", "the", "機械学習"]), max_size=20))
def test_the_terms_of_a_text_are_those_of_its_words(words: list[str]) -> None:
    analyzer = Analyzer("english")
    assert analyzer.terms(" ".join(words)) == [term for word in words for term in analyzer.terms(word)]


def test_a_megabyte_of_one_word_takes_no_time() -> None:
    analyzer = Analyzer("english")
    assert analyzer.terms("x" * 1_000_000) == ["x" * MAX_TERM_CHARS]
    assert len(analyzer.terms("a." * 100_000)) == 1  # the whole name; "a" is a stop word


def test_an_identifier_within_a_dotted_name_is_a_term_of_its_own() -> None:
    terms = Analyzer("english").terms("ray.data.Dataset.map_batches")
    assert terms == ["ray.data.dataset.map_batches", "ray", "data", "dataset", "map_batches", "map", "batch"]
