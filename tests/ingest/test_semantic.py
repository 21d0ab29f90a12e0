import numpy as np

from rag.ingest.semantic import semantic_windows, sentence_spans


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


def test_sentences_end_at_full_stops_and_blank_lines_but_not_at_abbreviations():
    text = 'He came, e.g. by car. "Why?" she said.\n\nNo full stop here\n\n  - an item\nthat goes on'
    assert sentences(text) == [
        "He came, e.g. by car.",
        '"Why?" she said.',
        "No full stop here",
        "  - an item\nthat goes on",
    ]
    assert sentences("これは文です。次の文！「はい。」終わり") == ["これは文です。", "次の文！", "「はい。」", "終わり"]
    assert sentences(" \n\n ") == []


def by_subject(texts: list[str]) -> np.ndarray:
    """Vectors by hand: how often a text speaks of cats and of stars."""
    rows = np.array([[1 + 10 * t.count("cat"), 1 + 10 * t.count("star")] for t in texts], np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


CATS = "A cat sleeps all day. The cat eats fish. My cat is grey. No cat likes water."
STARS = "A star is very hot. The star shines at night. Each star is far away. One star is our sun."


def cut(text: str, size: int, embed=by_subject) -> list[str]:
    return [text[start:end] for start, end in semantic_windows(text, size, embed)]


def test_the_text_is_cut_where_its_subject_changes():
    assert cut(f"{CATS} {STARS}", 200) == [CATS, STARS]


def test_a_subject_longer_than_the_size_is_cut_between_sentences():
    chunks = cut(f"{CATS} {STARS}", 50)
    assert all(len(chunk) <= 50 and chunk.endswith(".") for chunk in chunks)
    assert " ".join(chunks) == f"{CATS} {STARS}"


def test_a_piece_below_a_quarter_of_the_size_joins_its_neighbour():
    assert cut(f"Cats. {STARS}", 300) == [f"Cats. {STARS}"]
    assert cut(f"{CATS} {STARS}", 400) == [f"{CATS} {STARS}"]


def test_one_sentence_asks_for_no_embedding():
    def fails(texts: list[str]) -> np.ndarray:
        raise AssertionError("embedded without need")

    assert cut("Only one sentence", 100, fails) == ["Only one sentence"]
    assert cut("", 100, fails) == []


def test_each_sentence_is_embedded_with_one_neighbour_on_each_side():
    asked: list[str] = []

    def embed(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return by_subject(texts)

    cut("One. Two. Three. Four.", 100, embed)
    assert asked == ["One. Two.", "One. Two. Three.", "Two. Three. Four.", "Three. Four."]
