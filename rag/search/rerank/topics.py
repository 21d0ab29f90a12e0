"""A question and its hits in; hits of the question's topic first where the model is sure of it, untouched where not.

Knows nothing of training: the model comes from `rag train topics`.
"""

from collections.abc import Sequence
from pathlib import Path

from rag.errors import ConfigError
from rag.records import Hit
from rag.search.rerank import ranked
from rag.search.rerank.topic_model import OTHER, TopicModel, load_topics


class TopicReranker:
    """May be used from several threads at once."""

    def __init__(self, model: TopicModel, threshold: float | None = None) -> None:
        self.model = model
        self.threshold = model.threshold if threshold is None else threshold
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"rerank.threshold: expected a probability, 0 to 1, found {threshold}")

    def rerank(self, query: str, hits: Sequence[Hit]) -> list[Hit]:
        """Moved hits score the topic's probability, the others 0; among themselves both stay in order."""
        topic, probability = self.model.predict(query)
        if topic == OTHER or probability < self.threshold:
            return list(hits)
        scores = [probability if self.model.topic_of(hit.source) == topic else 0.0 for hit in hits]
        return ranked(hits, scores) if any(scores) else list(hits)


def load_topic_reranker(folder: str, threshold: float | None = None) -> TopicReranker:
    """Raises ModelError, ConfigError."""
    return TopicReranker(load_topics(Path(folder).expanduser()), threshold)
