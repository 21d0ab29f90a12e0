"""Questions with the sources that answer them in, a topic model out, and what it reaches on questions it never saw.

The topic of a question is that of its source, by a rule. The model is a linear SVM over words and pieces of words;
its margins become probabilities by one factor before softmax, fitted on margins of questions held out. Knows no hits.
"""

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rag.errors import SourceError
from rag.search.rerank.topic_model import OTHER, Features, TopicModel, plain_words, save_topics, softmax
from rag.search.rerank.topic_rule import TopicRule

NEAR = 0.9  # cosine of two questions' words from which they are one question asked twice
BLOCK = 1000  # questions compared with all others at a time
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95)
BINS = 10


@dataclass(frozen=True)
class Example:
    question: str
    source: str


@dataclass(frozen=True)
class TopicOptions:
    min_share: float = 0.02  # of the questions; a smaller topic is merged into `other`
    threshold: float = 0.9  # probability from which hits are moved
    folds: int = 5
    seed: int = 0
    regularization: float = 0.3  # the SVM's C; 0.1 to 1 give the same F1 within its noise


@dataclass(frozen=True)
class Trained:
    model: TopicModel
    report: dict[str, Any]


def train_topics(data: Path, folder: Path, rule: TopicRule, options: TopicOptions) -> dict[str, Any]:
    """Trains on all of `data`, saves to `folder`; the report of the cross-validation. Raises SourceError."""
    trained = fit_topics(read_examples(data), rule, options)
    save_topics(trained.model, folder)
    return trained.report


def read_examples(path: Path) -> list[Example]:
    """JSON lines with `question` and `source`; other keys are passed over. Raises SourceError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: expected a file of JSON lines, found {error}") from error
    examples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, source = row["question"], row["source"]
        except (ValueError, KeyError, TypeError):
            question = source = None
        if not isinstance(question, str) or not isinstance(source, str):
            raise SourceError(
                f'{path}:{number}: expected {{"question": "…", "source": "…"}}, found {line[:80]!r}; correct the line'
            )
        examples.append(Example(question, source))
    return examples


def fit_topics(examples: Sequence[Example], rule: TopicRule, options: TopicOptions) -> Trained:
    """The model of all examples, and the cross-validated report, which is saved with it."""
    labels = label(examples, rule, options)
    kept = [i for i, topic in enumerate(labels) if topic is not None]
    questions = [examples[i].question for i in kept]
    topics = sorted({labels[i] or "" for i in kept})
    if len(topics) < 2:
        raise SourceError(
            f"expected two topics or more with {2 * options.folds} questions each, found {', '.join(topics) or 'none'}"
            f" in {len(examples)} questions; check the rule, lower --min-share or add questions"
        )
    targets = np.array([topics.index(labels[i] or "") for i in kept])
    documents = np.unique([examples[i].source.split("#", 1)[0] for i in kept], return_inverse=True)[1]
    trial = Trial(questions, targets, len(topics), options)
    margins = trial.held_out_margins(group_questions(questions))
    scale = fit_scale(margins.values, targets)
    report = {
        "questions": len(kept),
        "left_out": len(examples) - len(kept),
        "topics": {topic: int((targets == i).sum()) for i, topic in enumerate(topics)},
        **measure(margins, targets, topics),
        "f1_ungrouped": _mean_and_spread(trial.held_out_margins(np.arange(len(kept))).f1s(targets)),
        "f1_new_documents": _mean_and_spread(trial.held_out_margins(documents).f1s(targets)),
    }
    features, weights, intercepts = trial.fit(np.arange(len(kept)))
    model = TopicModel(tuple(topics), rule, options.threshold, features, weights, intercepts, scale, report)
    return Trained(model, report)


def label(examples: Sequence[Example], rule: TopicRule, options: TopicOptions) -> list[str | None]:
    """The topic of each example; `other` for the small ones, None for sources the rule does not know.

    A topic, `other` too, needs two questions a fold; what is left over then is None.
    """
    found = [rule.topic(example.source) for example in examples]
    counts = Counter(topic for topic in found if topic is not None)
    enough = max(options.min_share * sum(counts.values()), 2 * options.folds)
    large = {topic for topic, count in counts.items() if count >= enough}
    labels = [topic if topic is None or topic in large else OTHER for topic in found]
    if labels.count(OTHER) < 2 * options.folds:
        labels = [None if topic == OTHER else topic for topic in labels]
    return labels


def group_questions(questions: Sequence[str]) -> np.ndarray:
    """(len(questions),): equal numbers for questions that are nearly the same, directly or through others."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows = TfidfVectorizer(token_pattern=r"\S+", sublinear_tf=True).fit_transform([plain_words(q) for q in questions])
    pairs: list[np.ndarray] = []
    for start in range(0, len(questions), BLOCK):
        near = (rows[start : start + BLOCK] @ rows.T).tocoo()
        is_near = near.data > NEAR
        pairs.append(np.stack([near.row[is_near] + start, near.col[is_near]]))
    ends = np.concatenate(pairs, axis=1)
    size = (len(questions), len(questions))
    groups: np.ndarray = connected_components(coo_matrix((np.ones(ends.shape[1]), ends), shape=size), directed=False)[1]
    return groups


@dataclass(frozen=True)
class Margins:
    """What models said of questions they had not seen. `folds` says which model it was."""

    values: np.ndarray  # (questions, topics)
    folds: np.ndarray  # (questions,)

    def f1s(self, targets: np.ndarray) -> list[float]:
        """Weighted F1 of each fold."""
        predicted = self.values.argmax(axis=1)
        return [_f1(targets[self.folds == fold], predicted[self.folds == fold]) for fold in np.unique(self.folds)]


@dataclass(frozen=True)
class Trial:
    """Labelled questions, and how a model of some of them is made."""

    questions: Sequence[str]
    targets: np.ndarray
    num_topics: int
    options: TopicOptions

    def held_out_margins(self, groups: np.ndarray) -> Margins:
        """By cross-validation: questions of one group are all held out, or none of them is."""
        margins = np.zeros((len(self.questions), self.num_topics), dtype=np.float32)
        folds = np.zeros(len(self.questions), dtype=int)
        for fold, (seen, held_out) in enumerate(self._splits(groups)):
            features, weights, intercepts = self.fit(seen)
            margins[held_out] = features.rows([self.questions[i] for i in held_out]) @ weights.T + intercepts
            folds[held_out] = fold
        return Margins(margins, folds)

    def fit(self, seen: np.ndarray) -> tuple[Features, np.ndarray, np.ndarray]:
        """Features, (topics, features) weights and (topics,) intercepts of a model of the questions `seen`."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.svm import LinearSVC

        questions = [self.questions[i] for i in seen]
        features = Features.fit(questions)
        # Balanced: how often a topic was asked for in the data is not how often users will.
        machine = LinearSVC(C=self.options.regularization, class_weight="balanced", random_state=self.options.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits; what counts is measured
            machine.fit(features.rows(questions), self.targets[seen])
        coefficients, intercepts = machine.coef_, machine.intercept_
        if len(machine.classes_) == 2:  # one row says both
            coefficients, intercepts = np.concatenate([-coefficients, coefficients]), np.array([-1, 1]) * intercepts
        weights = np.zeros((self.num_topics, coefficients.shape[1]), dtype=np.float32)
        offsets = np.full(self.num_topics, -1, dtype=np.float32)  # a topic that was not seen is not likely
        weights[machine.classes_], offsets[machine.classes_] = coefficients, intercepts
        return features, weights, offsets

    def _splits(self, groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        from sklearn.model_selection import StratifiedGroupKFold

        splitter = StratifiedGroupKFold(self.options.folds, shuffle=True, random_state=self.options.seed)
        yield from splitter.split(np.zeros(len(self.questions)), self.targets, groups)


def fit_scale(margins: np.ndarray, targets: np.ndarray) -> float:
    """The factor with which softmax gives the right topics the highest likelihood (temperature scaling).

    As if one answer more were spread over all topics (Platt's correction): a few questions that were all told apart
    do not make certain.
    """
    from scipy.optimize import minimize_scalar

    spread = 1 / (len(targets) + 2)

    def loss(log_scale: float) -> float:
        logs = np.log(np.maximum(softmax(margins * np.exp(log_scale)), 1e-12))
        right = logs[np.arange(len(targets)), targets].mean()
        return -float((1 - spread) * right + spread * logs.mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 5), method="bounded").x))


def measure(margins: Margins, targets: np.ndarray, topics: Sequence[str]) -> dict[str, Any]:
    """Figures on held-out questions. The probabilities of a fold are scaled by what the other folds ask for."""
    probabilities = np.zeros_like(margins.values)
    for fold in np.unique(margins.folds):
        here = margins.folds == fold
        probabilities[here] = softmax(margins.values[here] * fit_scale(margins.values[~here], targets[~here]))
    predicted, best = probabilities.argmax(axis=1), probabilities.max(axis=1)
    is_right = predicted == targets
    largest = int(np.bincount(targets).argmax())
    moves = predicted != topics.index(OTHER) if OTHER in topics else np.ones(len(targets), dtype=bool)
    folds = range(int(margins.folds.max()) + 1)
    return {
        "accuracy": _mean_and_spread([float(is_right[margins.folds == fold].mean()) for fold in folds]),
        "f1": _mean_and_spread(margins.f1s(targets)),
        "baseline": {
            "topic": topics[largest],
            "accuracy": round(float((targets == largest).mean()), 4),
            "f1": round(_f1(targets, np.full_like(targets, largest)), 4),
        },
        "f1_by_topic": {
            topic: round(float(f1), 4) for topic, f1 in zip(topics, _f1_by_topic(targets, predicted), strict=True)
        },
        "calibration_error": round(calibration_error(best, is_right), 4),
        "thresholds": [_at(threshold, best, is_right, moves) for threshold in THRESHOLDS],
    }


def calibration_error(probabilities: np.ndarray, is_right: np.ndarray) -> float:
    """Expected calibration error: by how much a probability misses the share of right ones, over ten equal bins."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    return sum(
        float(abs(probabilities[bins == b].mean() - is_right[bins == b].mean()) * (bins == b).mean())
        for b in np.unique(bins)
    )


def _at(threshold: float, best: np.ndarray, is_right: np.ndarray, moves: np.ndarray) -> dict[str, float | None]:
    """For how many questions hits would be moved, and for how many of these the topic is the right one."""
    moved = moves & (best >= threshold)
    precision = round(float(is_right[moved].mean()), 4) if moved.any() else None
    return {"threshold": threshold, "moved": round(float(moved.mean()), 4), "precision": precision}


def _mean_and_spread(values: Sequence[float]) -> dict[str, float]:
    """Over folds; the spread is the standard deviation of one fold, not the error of the mean."""
    return {"mean": round(float(np.mean(values)), 4), "std": round(float(np.std(values, ddof=1)), 4)}


def _f1(targets: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(targets, predicted, average="weighted", zero_division=0))


def _f1_by_topic(targets: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    from sklearn.metrics import f1_score

    scores: np.ndarray = f1_score(
        targets, predicted, labels=range(int(targets.max()) + 1), average=None, zero_division=0
    )
    return scores
