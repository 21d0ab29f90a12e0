"""Which sentences are quoted when no language model answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.generate.extractive import NOTHING, QUOTED, best_sentence, content_words, quote, split_sentences
from rag.records import Citation, Hit


def hit(n: int, text: str, title: str = "Title") -> Hit:
    return Hit(n, 1 / n, f"c{n}", f"file:///{n}.html", title, text, 0, len(text))


HITS = [
    hit(1, "Apply a function to batches of data. batch_size: The number of rows in each batch.\nDefault is None."),
    hit(2, "Sorts are guaranteed to be stable. A stable sort keeps the order of equal records."),
    hit(3, "Ray starts workers. Workers run tasks."),
]


def test_the_sentence_that_answers_is_quoted_first_with_its_number():
    text, citations = quote("Is a sort stable?", HITS, max_sentences=1)
    assert text == f"{QUOTED}\n- Sorts are guaranteed to be stable. [2]"
    assert citations == (Citation(2, "file:///2.html", "c2"),)


def test_a_rare_word_weighs_more_than_a_common_one():
    hits = [hit(1, "Ray runs tasks."), hit(2, "Ray runs actors."), hit(3, "Nothing but the autoscaler.")]
    assert "autoscaler. [3]" in quote("Ray autoscaler", hits, 1)[0]


def test_equal_sentences_come_in_the_order_of_their_hits():
    hits = [hit(1, "Ray is fast."), hit(2, "Ray is quick."), hit(3, "Ray is good.")]
    assert quote("ray", hits)[0] == f"{QUOTED}\n- Ray is fast. [1]\n- Ray is quick. [2]\n- Ray is good. [3]"


def test_sentences_without_a_word_of_the_question_are_not_quoted():
    text, _ = quote("stable records", HITS, max_sentences=9)
    assert text.count("\n- ") == 2


def test_without_any_common_word_the_first_hits_speak():
    text, citations = quote("xyzzy", HITS, max_sentences=2)
    assert [citation.n for citation in citations] == [1, 2]
    assert "Sorts are guaranteed to be stable. [2]" in text


def test_no_hits_is_said_in_a_sentence():
    assert quote("anything", []) == (NOTHING, ())


@pytest.mark.parametrize(
    ("odd", "says"), [(hit(1, ""), "Title"), (hit(1, " \n", ""), "file:///1.html"), (hit(1, "---"), "---")]
)
def test_an_odd_hit_is_still_quoted(odd, says):
    assert quote("why", [odd])[0] == f"{QUOTED}\n- {says} [1]"
    assert best_sentence("why", odd) == says


def test_a_very_long_sentence_is_shortened():
    assert len(best_sentence("word", hit(1, "word " * 500))) <= 300


def test_best_sentence_is_the_one_with_the_question_in_it():
    assert best_sentence("How many rows has a batch?", HITS[0]) == "batch_size: The number of rows in each batch."
    assert best_sentence("xyzzy", HITS[1]) == "Sorts are guaranteed to be stable."


@given(st.text(max_size=40), st.lists(st.text(max_size=80), max_size=4), st.integers(0, 5))
def test_quote_is_never_empty_and_cites_only_what_it_quotes(question, texts, max_sentences):
    hits = [hit(n, text) for n, text in enumerate(texts, 1)]
    text, citations = quote(question, hits, max_sentences)
    assert text.strip()
    assert all(f"[{citation.n}]" in text and 1 <= citation.n <= len(hits) for citation in citations)
    assert bool(citations) == bool(hits)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("A sentence that is\nwrapped. Another.", ["A sentence that is wrapped.", "Another."]),
        ("Formats, e.g. Parquet or 3.5 GB. Done.", ["Formats, e.g. Parquet or 3.5 GB.", "Done."]),
        (
            "x: The rows.\ny (int): The columns,\n    all of them.",
            ["x: The rows.", "y (int): The columns, all of them."],
        ),
        ("See:\n\n>>> ds.take(1)\n[1]\n", ["See:", ">>> ds.take(1)", "[1]"]),
        ("```python\nimport ray\nray.init()\n```", ["import ray", "ray.init()"]),
        ("- first\n- second\n", ["first", "second"]),
        ("So:\nds = ray.data.range(5)\nds.count()\nLook.", ["So:", "ds = ray.data.range(5)", "ds.count()", "Look."]),
        ("", []),
        ("---\n***", []),
    ],
)
def test_sentences_are_found_in_prose_docstrings_and_code(text, sentences):
    assert [s.removeprefix("- ") for s in split_sentences(text)] == sentences


def test_content_words_drop_grammar_and_endings_and_keep_names_with_their_parts():
    assert content_words("The Rows of map_batches are in the class") == {"row", "map_batch", "map", "batch", "class"}
    assert content_words("preserve") == content_words("preserved") == content_words("preserving")
