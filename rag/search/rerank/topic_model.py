"""A question in, a calibrated probability of each topic out; and the folder such a model is kept in.

The features are words, pairs of words and pieces of words of the question, nothing else: what the source of an answer
looks like is not known when somebody asks. The model is linear, so a prediction takes a millisecond. It is kept as
JSON and plain arrays; loading checks every shape and runs nothing. Importing this does not import scikit-learn.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.errors import ModelError
from rag.index.model_files import one_line
from rag.search.rerank.topic_rule import TopicRule, rule_from_json

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FORMAT = 1
OTHER = "other"  # what is not a topic: hits are never moved for it
PIECES_WEIGHT = 0.7  # of the pieces of words, beside whole words: they help with typing errors and rare names
MAX_CHARS = 2000  # of a question

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NOT_A_WORD = re.compile(r"[\W_]+")


def plain_words(text: str) -> str:
    """`RayDeepSpeedStrategy.batch_size` is five words: ray deep speed strategy batch size."""
    return _NOT_A_WORD.sub(" ", _CAMEL.sub(" ", text[:MAX_CHARS])).strip().lower()


class Features:
    """Texts in, rows of weighted words and pieces of words out. Fitted, or made of what a fitted one has saved."""

    def __init__(self, words: Any, pieces: Any) -> None:
        self._parts = (words, pieces)

    @staticmethod
    def fit(questions: Sequence[str]) -> "Features":
        words, pieces = _vectorizer("words"), _vectorizer("pieces")
        texts = [plain_words(question) for question in questions]
        return Features(words.fit(texts), pieces.fit(texts))

    @staticmethod
    def of(vocabularies: Sequence[Sequence[str]], idf: np.ndarray) -> "Features":
        parts = [_vectorizer(kind, list(names)) for kind, names in zip(("words", "pieces"), vocabularies, strict=True)]
        parts[0].idf_, parts[1].idf_ = np.split(idf, [len(vocabularies[0])])
        return Features(*parts)

    @property
    def vocabularies(self) -> tuple[list[str], list[str]]:
        words, pieces = (part.get_feature_names_out().tolist() for part in self._parts)
        return words, pieces

    @property
    def idf(self) -> np.ndarray:
        return np.concatenate([part.idf_ for part in self._parts]).astype(np.float32)

    def rows(self, questions: Sequence[str]) -> "csr_matrix":
        """(len(questions), words + pieces)"""
        from scipy.sparse import hstack

        words, pieces = self._parts
        texts = [plain_words(question) for question in questions]
        return hstack([words.transform(texts), pieces.transform(texts) * PIECES_WEIGHT], format="csr")


@dataclass(frozen=True)
class TopicModel:
    """`topics` and the model's rows stand in the same order. Thread-safe: nothing is written after it is made."""

    topics: tuple[str, ...]
    rule: TopicRule
    threshold: float  # probability from which hits are moved
    features: Features
    weights: np.ndarray  # (topics, features) float32
    intercepts: np.ndarray  # (topics,) float32
    scale: float  # of the margins, before softmax: makes the probabilities those that are observed
    report: dict[str, Any] = field(default_factory=dict)  # of the cross-validation it was trained with

    def probabilities(self, questions: Sequence[str]) -> np.ndarray:
        """(len(questions), len(topics)), rows that sum to 1."""
        margins = self.features.rows(questions) @ self.weights.T + self.intercepts
        return softmax(margins * self.scale)

    def predict(self, question: str) -> tuple[str, float]:
        """The likeliest topic and its probability."""
        row = self.probabilities([question])[0]
        best = int(row.argmax())
        return self.topics[best], float(row[best])

    def topic_of(self, source: str) -> str:
        """The topic of a hit's source; `other` for what the model has no topic for."""
        topic = self.rule.topic(source)
        return topic if topic in self.topics else OTHER


def softmax(margins: np.ndarray) -> np.ndarray:
    shifted = np.exp(margins - margins.max(axis=1, keepdims=True))
    rows: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
    return rows


def save_topics(model: TopicModel, folder: Path) -> None:
    """topics.json and weights.npz; the former names the latter's hash and is written last, so both fit or neither."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "topics.json"
    manifest.unlink(missing_ok=True)
    np.savez_compressed(
        folder / "weights.npz", weights=model.weights, intercepts=model.intercepts, idf=model.features.idf
    )
    words, pieces = model.features.vocabularies
    entries = {
        "format": FORMAT,
        "topics": model.topics,
        "rule": model.rule.to_json(),
        "threshold": model.threshold,
        "scale": model.scale,
        "weights": _sha256(folder / "weights.npz"),
        "report": model.report,
        "words": words,
        "pieces": pieces,
    }
    aside = folder / "topics.json.part"
    aside.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    aside.replace(manifest)


def load_topics(folder: Path) -> TopicModel:
    """What `save_topics` wrote. Raises ModelError for anything else."""
    try:
        entries = json.loads((folder / "topics.json").read_text(encoding="utf-8"))
        if entries["format"] != FORMAT:
            raise ValueError(f"format {entries['format']}, expected {FORMAT}")
        if _sha256(folder / "weights.npz") != entries["weights"]:
            raise ValueError("weights.npz is not the one topics.json was written with")
        with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
            weights, intercepts, idf = (arrays[name] for name in ("weights", "intercepts", "idf"))
        return _checked(entries, weights, intercepts, idf)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, RecursionError) as error:
        raise ModelError(
            f"{folder}: expected a folder that `rag train topics` wrote, found {one_line(error)}; train it again"
        ) from error


def _checked(entries: dict[str, Any], weights: np.ndarray, intercepts: np.ndarray, idf: np.ndarray) -> TopicModel:
    topics, words, pieces = entries["topics"], entries["words"], entries["pieces"]
    for name, strings in (("topics", topics), ("words", words), ("pieces", pieces)):
        if not isinstance(strings, list) or not strings or not all(isinstance(one, str) for one in strings):
            raise ValueError(f"{name}: expected a list of strings")
        if len(set(strings)) != len(strings):
            raise ValueError(f"{name}: expected each once")
    num_features = len(words) + len(pieces)
    shapes = {"weights": (len(topics), num_features), "intercepts": (len(topics),), "idf": (num_features,)}
    for (name, shape), array in zip(shapes.items(), (weights, intercepts, idf), strict=True):
        if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite float32 {shape}, found {array.dtype} {array.shape}")
    scale, threshold = float(entries["scale"]), float(entries["threshold"])
    if not (0 < scale < 1e6 and 0 <= threshold <= 1):
        raise ValueError(f"scale {scale} or threshold {threshold} out of range")
    rule = rule_from_json(entries["rule"])
    features = Features.of((words, pieces), idf)
    return TopicModel(tuple(topics), rule, threshold, features, weights, intercepts, scale, dict(entries["report"]))


def _vectorizer(kind: str, vocabulary: list[str] | None = None) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    if kind == "words":
        how: dict[str, Any] = {"ngram_range": (1, 2), "token_pattern": r"\S+"}
    else:
        how = {"analyzer": "char_wb", "ngram_range": (3, 5), "min_df": 1 if vocabulary else 2}
    return TfidfVectorizer(
        lowercase=False, sublinear_tf=True, norm="l2", dtype=np.float32, vocabulary=vocabulary, **how
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
