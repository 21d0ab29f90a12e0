"""The records that flow through the pipeline, and their ids. Knows nothing of files, models or databases.

DocumentRef -> Document -> Section -> Chunk -> Hit -> Prompt -> Answer
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict


def content_id(*parts: str) -> str:
    """32 hex digits (128 bits of SHA-256): equal parts, equal id, on every machine.

    Each part is preceded by its length, so ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()[:32]


def document_id(source: str) -> str:
    """Where it is: the same source is the same document, whatever it says today."""
    return content_id(source)


@dataclass(frozen=True)
class Access:
    """What a caller may see: documents of its tenant that carry no label, or one of its labels.

    A document has one as well: its tenant and its labels.
    """

    tenant: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DocumentRef:
    """A document that a source has listed and nobody has read yet: where to read it, or its `content`.

    Large sources list paths, not contents: what is listed is held in memory, all of it.
    """

    source: str  # canonical URI: file:///docs/a.html, https://example.org/a, python:ray.data.Dataset
    mime: str
    path: str | None = None  # a local file, or a URL that fsspec opens
    content: bytes | None = None
    start: int = 0  # byte range inside the file: one line of a JSONL file is a document
    end: int | None = None
    meta: str = "{}"  # JSON object
    error: str = ""  # why it cannot be read, where the listing found out: goes to the ledger
    tenant: str = ""  # whose it is
    labels: str = "[]"  # JSON array: who of the tenant's may see it
    own_access: bool = False  # a row: its own `tenant` and `labels` count


@dataclass(frozen=True)
class Gap:
    """What a listing could not see: documents below `place` that it lacks may be there all the same."""

    place: str  # canonical, as an origin is
    reason: str
    by: str = ""  # the document that failed and so hides them: only one that was read before can
    visited: frozenset[str] = frozenset()  # documents that were looked for: these are there, or gone


@dataclass(frozen=True)
class Document:
    """One thing fetched, as bytes."""

    source: str
    mime: str
    content: bytes
    meta: str = "{}"  # JSON object
    access: Access = Access()

    @property
    def doc_id(self) -> str:
        return document_id(self.source)

    @property
    def content_hash(self) -> str:
        """What it says."""
        return hashlib.sha256(self.content).hexdigest()[:32]


@dataclass(frozen=True)
class Section:
    """A titled part of a document with its own text; the text of nested sections is theirs alone."""

    source: str  # document source, `#anchor` appended where the part has one; what an answer cites
    title: str  # heading path, "Sorting HOW TO > Key functions"; the document's title comes first
    text: str

    @property
    def section_id(self) -> str:
        return content_id(self.source)


@dataclass(frozen=True)
class Chunk:
    """A window of one section: `text == section.text[start_char:end_char]`.

    `prefix` situates it in its document (rag.index.prefix): searched with the text, never quoted.
    """

    section_id: str
    source: str  # the section's
    title: str  # the section's
    text: str
    start_char: int
    end_char: int
    prefix: str = ""

    @property
    def chunk_id(self) -> str:
        """What it says and where: a rebuild touches only the chunks that changed.

        The prefix is part of it, since it changes the embedding: equal id, equal row.
        """
        prefix = [self.prefix] if self.prefix else []
        return content_id(self.section_id, str(self.start_char), self.title, self.text, *prefix)

    @property
    def context(self) -> str:
        """What is embedded and searched: the heading path, the prefix, then the text."""
        return "\n\n".join(part for part in (self.title, self.prefix, self.text) if part)


@dataclass(frozen=True)
class Hit:
    """A retrieved chunk. Rank 1 is the best; a higher score is better."""

    rank: int
    score: float
    chunk_id: str
    source: str
    title: str
    text: str
    start: int
    end: int

    @property
    def context(self) -> str:
        return f"{self.title}\n\n{self.text}" if self.title else self.text


class Message(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Prompt:
    """What is sent to the LLM. Citation [1] of the answer is `hits[0]`."""

    messages: tuple[Message, ...]
    hits: tuple[Hit, ...]
    num_dropped: int = 0  # hits that did not fit the budget


@dataclass(frozen=True)
class Usage:
    """What one generation took. `cost_usd` is None where the catalogue has no price for the model."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None


@dataclass(frozen=True)
class Citation:
    """[n] in the answer's text points at this chunk, which was in the prompt."""

    n: int
    source: str
    chunk_id: str


@dataclass(frozen=True)
class Answer:
    """A cited answer, or what went wrong: `text` is never empty."""

    question: str
    answer: str
    sources: tuple[str, ...]  # of the hits in the prompt, best first, each once
    llm: str
    citations: tuple[Citation, ...] = ()
    usage: Usage = Usage()
    route: str = ""  # "model": an LLM wrote it; "extractive": sentences quoted; why, after a colon
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    hits: tuple[Hit, ...] = ()
    num_dropped: int = 0


def to_json(value: Any) -> str:
    """JSON with sorted keys: equal values, equal text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
