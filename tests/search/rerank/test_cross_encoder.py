"""With a cross-encoder of 2 layers and random weights, made here: no model hub is needed."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rag.errors import ModelError
from rag.index.encoder import quiet
from rag.records import Hit
from rag.search.rerank.cross_encoder import CrossEncoderReranker, load_cross_encoder

QUERY = "what do penguins eat"
WORDS = [*QUERY.split(), "seals", "krill", "fish", "squid", "live", "under", "the", "ice", "in", "antarctic", "deep"]
TEXTS = [
    "penguins eat krill, fish and squid",
    "",
    "the ice",
    "seals live under the ice in the antarctic. " * 40,  # longer than the model reads
    "unknown 日本語 \ud800 words",  # a lone surrogate, as of broken PDFs
    *(" ".join(WORDS[: 1 + i % 16]) for i in range(60)),
]


def make_model(folder: Path, num_labels: int = 1) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", ".", *WORDS, "and"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=num_labels,
        initializer_range=0.3,  # scores that differ
    )
    torch.manual_seed(0)
    with quiet():
        BertForSequenceClassification(config).save_pretrained(folder)
        BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def reranker(folder: Path) -> CrossEncoderReranker:
    return load_cross_encoder(str(folder), "fp32")


@pytest.fixture(scope="module")
def predicted(folder: Path) -> np.ndarray:
    from sentence_transformers import CrossEncoder

    with quiet():
        model = CrossEncoder(str(folder), device="cpu")
        pairs = [(QUERY, text.encode("utf-8", "replace").decode()) for text in TEXTS]
        return np.array([model.predict([pair])[0] for pair in pairs])


def hits_of(texts: list[str]) -> list[Hit]:
    return [Hit(rank, 1 / rank, f"id-{rank}", f"s{rank}", "", text, 0, len(text)) for rank, text in enumerate(texts, 1)]


def test_scores_equal_those_of_sentence_transformers_one_pair_at_a_time(
    reranker: CrossEncoderReranker, predicted: np.ndarray
) -> None:
    scores = reranker.score(QUERY, TEXTS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, predicted, atol=1e-4)
    assert np.ptp(predicted) > 0.1  # or all were equal and nothing proved


def test_hits_come_best_first_with_ranks_from_1_and_the_model_s_scores(
    reranker: CrossEncoderReranker, predicted: np.ndarray
) -> None:
    hits = reranker.rerank(QUERY, hits_of(TEXTS))
    assert [hit.rank for hit in hits] == list(range(1, len(TEXTS) + 1))
    assert sorted(hit.chunk_id for hit in hits) == sorted(f"id-{rank}" for rank in range(1, len(TEXTS) + 1))
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(predicted)[::-1], atol=1e-4)


def test_the_title_is_read_with_the_text(reranker: CrossEncoderReranker) -> None:
    titled = Hit(1, 1.0, "id", "s", "penguins", "eat fish", 0, 8)
    [hit] = reranker.rerank(QUERY, [titled])
    assert hit.score == pytest.approx(reranker.score(QUERY, ["penguins\n\neat fish"])[0])
    assert hit.score != pytest.approx(reranker.score(QUERY, ["eat fish"])[0])


def test_no_hits_are_no_hits(reranker: CrossEncoderReranker) -> None:
    assert reranker.rerank(QUERY, []) == []


def test_threads_get_the_scores_of_one(reranker: CrossEncoderReranker) -> None:
    sizes = [1 + 7 * n % len(TEXTS) for n in range(24)]
    expected = reranker.score(QUERY, TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for size, scores in zip(sizes, pool.map(lambda n: reranker.score(QUERY, TEXTS[:n]), sizes), strict=True):
            np.testing.assert_allclose(scores, expected[:size], atol=1e-4)


def test_a_score_that_is_no_number_leaves_the_order(
    reranker: CrossEncoderReranker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reranker, "score", lambda query, texts: np.array([0.1, np.nan]))
    hits = hits_of(["a", "b"])
    with caplog.at_level(logging.WARNING):
        assert reranker.rerank(QUERY, hits) == hits
    assert "set rerank.precision=fp32" in caplog.text


def test_auto_measures_once_and_keeps_a_precision_with_the_same_scores(
    folder: Path, tmp_path: Path, predicted: np.ndarray
) -> None:
    reranker = load_cross_encoder(str(folder), "auto", tmp_path)
    assert reranker.precision in ("fp32", "bf16")
    np.testing.assert_allclose(reranker.score(QUERY, TEXTS), predicted, atol=0.05)
    assert (tmp_path / "precision.json").exists()
    assert load_cross_encoder(str(folder), "auto", tmp_path) is reranker


def test_half_precision_on_a_cpu_stays_near(folder: Path, predicted: np.ndarray) -> None:
    reranker = load_cross_encoder(str(folder), "bf16")
    np.testing.assert_allclose(reranker.score(QUERY, TEXTS), predicted, atol=0.05)


def test_an_unknown_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a cross-encoder's local folder, or a hub id") as error:
        load_cross_encoder("nobody/no-such-model")
    assert "\n" not in str(error.value) and "found 'nobody/no-such-model'" in str(error.value)


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a cross-encoder with one score, found ValueError: no weight file"):
        load_cross_encoder(str(tmp_path))


def test_a_classifier_is_no_reranker(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="found ValueError: a classifier of 3 classes"):
        load_cross_encoder(str(make_model(tmp_path / "three", num_labels=3)))
