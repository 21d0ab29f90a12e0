"""A text and an embedder in, spans that keep to one subject out: cut where neighbouring sentences are least alike.

After the idea of Greg Kamradt ("5 Levels of Text Splitting", 2024), known from LangChain's experimental
SemanticChunker and used by the RAFT recipe: each sentence is embedded together with its neighbours, so that a short
one does not count as a change of subject, and the text is cut where the distance from one to the next is in the top
few per cent of the text. Ours has bounds besides: a piece below a quarter of the size joins the next one, a piece
above the size is cut at its largest distance. Sizes are in characters; neighbours share nothing.
"""

import re
from collections.abc import Callable, Iterator

import numpy as np

from rag.ingest.blocks import EARLY, Unit, pack
from rag.ingest.windows import Span, char_windows, trim_span

Embed = Callable[[list[str]], np.ndarray]

PERCENTILE = 95  # of the distances in a text: a larger one is a change of subject
BUFFER = 1  # sentences embedded together with each, on both sides

# A full stop before a small letter is an abbreviation's. Indentation belongs to what follows. Possessive, so that long
# runs cost linear time.
SENTENCE_END = re.compile(
    r"""(?:(?<=[.!?…])|(?<=[.!?…]["'”’)\]])) (?:(?:[^\S\n]*+\n)++|[^\S\n]++) (?![^\S\n]*+[a-z])  # Latin and its like
    |(?:(?<=[。！？])|(?<=[。！？][」』”’）])) (?![。！？」』”’）])  # Chinese, Japanese
    |\n (?:[^\S\n]*+\n)++  # blank lines""",
    re.VERBOSE,
)


def sentence_spans(text: str) -> Iterator[Span]:
    """The sentences of a text and what stands alone between blank lines, in order, without the blanks between."""
    start = 0
    for end in (*(match.end() for match in SENTENCE_END.finditer(text)), len(text)):
        if text[start:end].strip():
            yield trim_span(text, start, end)
        start = end


def semantic_windows(text: str, size: int, embed: Embed) -> Iterator[Span]:
    """Runs of whole sentences of one subject, of at most `size` characters each."""
    sentences = [part for span in sentence_spans(text) for part in char_windows(text, size, 0, span)]
    distances = _distances(text, sentences, embed)
    units = [Unit(*trim_span(text, *sentences[0]))] if sentences else []
    units += [
        Unit(*trim_span(text, *sentence), level=-distance)
        for sentence, distance in zip(sentences[1:], distances, strict=True)
    ]
    for subject in _subjects(units, distances, size // EARLY):
        yield from pack(subject, size, lambda unit: iter([(unit.start, unit.end)]))


def _distances(text: str, sentences: list[Span], embed: Embed) -> list[float]:
    """1 - cosine between each sentence, with its neighbours, and the next."""
    if len(sentences) < 2:
        return []
    groups = [
        text[sentences[max(0, i - BUFFER)][0] : sentences[min(len(sentences) - 1, i + BUFFER)][1]]
        for i in range(len(sentences))
    ]
    rows = embed(groups)
    return [float(distance) for distance in 1 - np.einsum("ij,ij->i", rows[:-1], rows[1:])]


def _subjects(units: list[Unit], distances: list[float], min_size: int) -> Iterator[list[Unit]]:
    threshold = np.percentile(distances, PERCENTILE) if distances else 0.0
    subject = units[:1]
    for unit, distance in zip(units[1:], distances, strict=True):
        is_long = subject[-1].end - subject[0].start >= min_size
        rest_is_long = units[-1].end - unit.start >= min_size
        if distance > threshold and is_long and rest_is_long:
            yield subject
            subject = []
        subject.append(unit)
    if subject:
        yield subject
