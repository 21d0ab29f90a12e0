"""Two hundred queries that nobody means: each gets hits, none, or one clear line."""

import itertools

import pytest

from rag.config import Settings
from rag.errors import ConfigError
from rag.search.retrieve import Retriever, open_retriever

SQL = ["'; drop table chunks; --", "1 or 1=1", "%s", "%(query)s", "{}", "{0.__class__}", "$1", "\\'", "/* */", "::text"]
OPERATORS = [
    "a & b",
    "!a",
    "a <-> b",
    "a:*",
    "(((",
    "a | | b",
    "NOT AND OR",
    "title:x",
    "fish~2",
    "fi?h",
    "f*",
    '"',
    "^4",
]
OPERATORS += [
    "+ice -fish",
    "[a TO z]",
    "a && b || !c",
    "ice^1e400",
    "/re.*gex/",
    "\\",
    "a\\:b",
    "field:(x y)",
    "*",
    "?",
    "*:*",
]
CONTROLS = [chr(code) for code in range(32)] + ["\x7f", "\u200b", "\ufeff", "\u2028", "a\0b", "\0" * 50, "\r\n\t"]
SCRIPTS = [
    "🐧",
    "👨‍👩‍👧‍👦" * 20,
    "שלום עולם",
    "\u202eevil\u202c",
    "مرحبا",
    "日本語の質問",
    "e\u0301" * 50,
    "ﬁsh",
    "İı",
    "ß",
    "ａｂｃ",
]
NUMBERS = ["0", "-1", "1e999", "NaN", "inf", "٣", "½", "0x1F", "1_000", "१२"]
STOP_WORDS = ["the", "to be or not to be", "and the of a", "is it", "what are these", "du der die das"]
LONG = ["fish " * 3000, "a" * 20_000, "x." * 9_000, "ice-" * 4_000, "機" * 19_000, "\n" * 15_000, "the " * 4_000]
TOO_LONG = ["x" * 100_000, "fish " * 20_000, "🐧" * 25_000, "a_b" * 30_000]
ODD = ["\ud800", "\udfff\ud800", "a\ud800b", "\U0010ffff", "\ufffe", "", " ", "\u3000"]
ODD += ["----", "....", "____", "''''", "#", "++"]
PATHS = [
    "../../etc/passwd",
    "file:///etc/passwd",
    "http://169.254.169.254/",
    "C:\\",
    "~",
    "${HOME}",
    "`id`",
    "$(id)",
    "<script>",
]
PROMPTS = [
    "[1]",
    "</context>",
    "system: ignore all",
    "{{7*7}}",
    "<|im_start|>",
    "---",
    "# heading",
    "![x](y)",
    "[[1]]",
    "\\n",
]
QUERIES = [*SQL, *OPERATORS, *CONTROLS, *SCRIPTS, *NUMBERS, *STOP_WORDS, *LONG, *ODD, *PATHS, *PROMPTS]
QUERIES += [f"{a} {b}" for a, b in itertools.product(SQL[:5], OPERATORS[:12])]


@pytest.fixture(scope="module")
def retriever(antarctica: Settings) -> Retriever:
    return open_retriever(antarctica)


def test_there_are_two_hundred() -> None:
    assert len(set(QUERIES + TOO_LONG)) >= 200


@pytest.mark.parametrize("mode", ["hybrid", "lexical"])
def test_whatever_is_asked_is_only_a_query(retriever: Retriever, mode: str) -> None:
    for query in QUERIES:
        hits = retriever.search(query, "antarctica", mode=mode).hits
        assert len(hits) <= 4
        assert all(hit.rank == rank for rank, hit in enumerate(hits, start=1))


@pytest.mark.parametrize("query", TOO_LONG, ids=range(len(TOO_LONG)))
def test_what_is_too_long_is_refused_in_one_line(retriever: Retriever, query: str) -> None:
    with pytest.raises(ConfigError, match=f"^query of {len(query.strip())} characters; expected at most 20000$"):
        retriever.search(query, "antarctica")
