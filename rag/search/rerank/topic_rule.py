"""A source in, its topic out: by a segment of its path, or by a table. Knows no questions and no model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rag.errors import ConfigError, ModelError


@dataclass(frozen=True)
class PathRule:
    """Segment n behind a prefix: of https://docs.ray.io/en/master/train/api.html#x behind https://docs.ray.io/, 3 is
    `train`. What the segment ends in does not count: `tune.html` is a topic of its own unless `merge` says otherwise.
    """

    prefix: str
    segment: int  # from 1
    merge: Mapping[str, str] = field(default_factory=dict)  # segment -> topic, where they differ

    def __post_init__(self) -> None:
        if self.segment < 1:
            raise ConfigError(f"topic rule: expected a segment of 1 or more, found {self.segment}; the first one is 1")

    def topic(self, source: str) -> str | None:
        """None for a source that does not begin with the prefix, or is not as deep."""
        path = source.split("#", 1)[0].split("?", 1)[0]
        if not path.startswith(self.prefix):
            return None
        segments = path[len(self.prefix) :].strip("/").split("/")
        found = segments[self.segment - 1] if len(segments) >= self.segment else ""
        return self.merge.get(found, found) or None

    def to_json(self) -> dict[str, Any]:
        return {"kind": "path", "prefix": self.prefix, "segment": self.segment, "merge": dict(self.merge)}


@dataclass(frozen=True)
class TableRule:
    """What was known of each section or document when the table was made: a metadata value, a cluster."""

    topics: Mapping[str, str]  # source of a section or of a document -> topic

    def topic(self, source: str) -> str | None:
        """The section's, else its document's; None where neither was there yet."""
        return self.topics.get(source) or self.topics.get(source.split("#", 1)[0])

    def to_json(self) -> dict[str, Any]:
        return {"kind": "table", "topics": dict(self.topics)}


TopicRule = PathRule | TableRule


def rule_from_json(value: Any) -> TopicRule:
    """Raises ModelError for anything that `to_json` did not write."""
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind == "path" and _are_str([value.get("prefix")]) and isinstance(value.get("segment"), int):
        return PathRule(value["prefix"], max(1, value["segment"]), _strings(value.get("merge")))
    if kind == "table":
        return TableRule(_strings(value.get("topics")))
    raise ModelError(f"topic rule: expected a path or a table, found {str(value)[:80]!r}; train the topics again")


def _strings(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not _are_str(value) or not _are_str(value.values()):
        raise ModelError(f"topic rule: expected names and topics, found {str(value)[:80]!r}; train the topics again")
    return value


def _are_str(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)
