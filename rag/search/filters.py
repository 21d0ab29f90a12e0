"""`key=value` strings, or a JSON object, in; one frozen filter out. Knows no SQL: rag.index.filters does."""

from collections.abc import Iterable, Mapping, Sequence

from rag.errors import ConfigError
from rag.index.access import is_storable
from rag.index.filters import META, Filter

MAX_VALUES = 100  # in a whole filter
MAX_CHARS = 2000  # in a key or a value; a URL that is longer works nowhere else either
EXAMPLE = "expected key=value, as in lang=pt or source=file:///docs"


def parse_filters(texts: Iterable[str]) -> Filter | None:
    """What `--filter key=value` gives, repeated; None for none. Raises ConfigError."""
    pairs = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"filter: {EXAMPLE}; found {text!r:.200}")
        pairs.append((key.strip(), value))
    return _made(pairs)


def make_filter(given: Mapping[str, str | Sequence[str]] | None) -> Filter | None:
    """What a request's `filter` gives, {"key": "value", "other": ["a", "b"]}; None for none. Raises ConfigError."""
    pairs = []
    for key, values in (given or {}).items():
        alternatives = [values] if isinstance(values, str) else values
        if not alternatives:
            raise ConfigError(f"filter: expected a value for {key!r:.200}, found an empty list")
        pairs += [(key.strip(), value) for value in alternatives]
    return _made(pairs)


def _made(pairs: list[tuple[str, str]]) -> Filter | None:
    if len(pairs) > MAX_VALUES:
        raise ConfigError(f"filter: expected at most {MAX_VALUES} values, found {len(pairs)}")
    clauses: dict[str, dict[str, None]] = {}  # in a fixed order, so that equal filters are equal
    for key, value in sorted(pairs):
        _check(key, value)
        clauses.setdefault(key, {})[value] = None
    return Filter(tuple((key, tuple(values)) for key, values in clauses.items())) if clauses else None


def _check(key: str, value: str) -> None:
    for name, text in (("key", key), ("value", value)):
        if len(text) > MAX_CHARS:
            raise ConfigError(f"filter: expected a {name} of at most {MAX_CHARS} characters, found {len(text)}")
        if not is_storable(text):
            raise ConfigError(f"filter: expected a {name} without NUL and lone surrogates, found {text!r:.200}")
    if not key or key == META or (key in ("source", "mime", "label") and not value):
        raise ConfigError(f"filter: {EXAMPLE}; found {f'{key}={value}'!r:.200}")
