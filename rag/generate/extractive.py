"""A question and its hits in, the hits' best sentences out, quoted: the answer when no language model wrote one.

A sentence is as good as the question's content words it holds, each weighted by its rarity among the
sentences at hand. Knows no language model. Splits docstrings and code as well as prose: a line that is not
prose stands for itself.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rag.records import Citation, Hit

QUOTED = "No language model answered; these passages fit best:"
UNSUPPORTED = "The passages do not say this in so many words. Closest in them:"
NOTHING = "Nothing in the collection matches this question."
MAX_QUOTE_CHARS = 300

# Words that say how a sentence is built, not what it is about.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a about an and any are as at be been but by can could did do does for from had has have he her
        his how i if in into is it its may me more most must my no not of on one only or other our out
        shall she should so some such than that the their them then there these they this those to use
        used using was we were what when where which who why will with would you your
        """,
    )
)
_WORD = re.compile(r"\w+")
# Crude, but alike for both sides of a comparison: preserve, preserves and preserved become one.
_ENDING = re.compile(r"(?<=\w{3})(?:ing|ed|es|e|(?<!s)s)$")
# Lines that do not continue the line above: list items, prompts, headings, fences, tables, `name: what it is`.
_OWN_LINE = re.compile(r"\s*(?:[-*+•] |\d+[.)] |>>>|\.\.\. |#|```|~~~|\||[\w*`.]+(?: \([^)]*\))?:(?:\s|$))")
_CODE_LINE = re.compile(
    r"\s*(?:>>>|\.\.\. |@\w|import \w+$|from [\w.]+ import |(?:def|class) \w+[(:]|[\w.,\[\] ]+ = \S|[\w.]+\(.*\)$)"
)
_SENTENCE_END = re.compile(r"""(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!\bvs\.)["')\]]*\s+(?=["'(`\[]*(?:[A-Z0-9]|\w+: ))""")


def quote(
    question: str, hits: Sequence[Hit], max_sentences: int = 3, heading: str = QUOTED
) -> tuple[str, tuple[Citation, ...]]:
    """The best sentences of `hits` under `heading`, best first, each with the [n] of its hit, and those citations.

    Equally good sentences come in the order of their hits. Where no sentence shares a word with the
    question, the first hits speak with their first sentences. Never empty.
    """
    if not hits:
        return NOTHING, ()
    sentences = [(n, sentence) for n, hit in enumerate(hits, 1) for sentence in _sentences_of(hit)]
    scores = _scores(question, [sentence for _, sentence in sentences])
    ranked = sorted(range(len(sentences)), key=lambda i: -scores[i])  # stable: ties stay in hit order
    best = [sentences[i] for i in ranked if scores[i] > 0]
    if not best:
        best = [(n, next(_sentences_of(hit))) for n, hit in enumerate(hits, 1)]
    chosen = list(dict.fromkeys(best))[: max(1, max_sentences)]
    lines = [f"- {_shortened(sentence)} [{n}]" for n, sentence in chosen]
    cited = dict.fromkeys(n for n, _ in chosen)
    citations = tuple(Citation(n, hits[n - 1].source, hits[n - 1].chunk_id) for n in cited)
    return "\n".join([heading, *lines]), citations


def best_sentence(question: str, hit: Hit) -> str:
    """The sentence of `hit` that answers `question` best; the first one where none shares a word with it."""
    sentences = list(_sentences_of(hit))
    scores = _scores(question, sentences)
    return _shortened(sentences[scores.index(max(scores))])


def split_sentences(text: str) -> list[str]:
    """The sentences of `text` on one line each, without blank ones; a line of code is a sentence."""
    return [
        sentence
        for block in _blocks(text)
        for part in ([block] if _is_code(block) else _SENTENCE_END.split(block))
        if _WORD.search(sentence := " ".join(part.split()))
    ]


def content_words(text: str) -> frozenset[str]:
    """The words that carry the meaning, in lower case and without endings; names also in their parts."""
    words = _WORD.findall(text.lower())
    parts = [part for word in words if "_" in word for part in word.split("_") if part]
    return frozenset(_ENDING.sub("", word) for word in words + parts if word not in STOP_WORDS)


def _blocks(text: str) -> Iterator[str]:
    """Wrapped lines joined into paragraphs; a line of its own kind (code, list item) opens a new one."""
    block: list[str] = []
    in_fence = False
    for line in text.splitlines():
        is_fence = line.lstrip().startswith(("```", "~~~"))
        if block and (in_fence or is_fence or not line.strip() or _stands_alone(line) or _is_code(block[-1])):
            yield "\n".join(block)
            block = []
        in_fence ^= is_fence
        if line.strip() and not is_fence:
            block.append(line)
    if block:
        yield "\n".join(block)


def _is_code(line: str) -> bool:
    return _CODE_LINE.match(line) is not None


def _stands_alone(line: str) -> bool:
    return _is_code(line) or _OWN_LINE.match(line) is not None


def _sentences_of(hit: Hit) -> Iterator[str]:
    """At least one: a hit without a sentence is quoted by its title, or by where it is."""
    yield from split_sentences(hit.text) or [hit.text.strip() or hit.title.strip() or hit.source]


def _scores(question: str, sentences: Sequence[str]) -> list[float]:
    """For each sentence the summed rarity, log(1 + N / df), of the question's words that it holds."""
    wanted = content_words(question)
    found = [wanted & content_words(sentence) for sentence in sentences]
    num_with = Counter(word for words in found for word in words)
    return [_rarity(words, num_with, len(sentences)) for words in found]


def _rarity(words: Iterable[str], num_with: Counter[str], num_sentences: int) -> float:
    return math.fsum(math.log(1 + num_sentences / num_with[word]) for word in words)


def _shortened(sentence: str) -> str:
    if len(sentence) <= MAX_QUOTE_CHARS:
        return sentence
    return sentence[: MAX_QUOTE_CHARS - 2].rsplit(" ", 1)[0] + " …"
