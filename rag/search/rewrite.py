"""A question in, better search queries out, by any LLM: `complete(messages)` gives its whole reply.

Three ways, each of which costs one reply: a follow-up made standalone, paraphrases, a hypothetical passage. None ever
raises: an LLM that fails, which is logged, or that refuses, says nothing, too much or garbage leaves the original
query. So does one that answers a question where it should have asked it again, which small models do. Knows no index;
who searches with several queries fuses their hits.
"""

import logging
from collections.abc import Sequence

import numpy as np

from rag.index.replies import Complete, usable_lines, usable_text
from rag.records import Message

MAX_TURNS = 6  # messages before the follow-up that the LLM is shown
MAX_TURN_CHARS = 1000  # of each; the end of a long answer is seldom what a follow-up is about
MAX_QUERY_CHARS = 500  # a longer "query" is an answer
MAX_PASSAGE_CHARS = 2000  # the embedder reads about half of it
MAX_PARAPHRASES = 10

STANDALONE = """\
Rewrite the last question so that it can be understood without the conversation. Replace words such as "it", "that" \
or "the second one" by what they mean. Keep its language. Do not answer it. Write only the question."""
PARAPHRASES = """\
Write {num} different questions that ask for the same as the question, in other words. Keep its language. Do not \
answer it. Write one question on each line and nothing else."""
PASSAGE = """\
Write a short passage of documentation, two to four sentences, that answers the question. Keep its language. Write \
only the passage."""

log = logging.getLogger(__name__)


def standalone_query(conversation: Sequence[Message], complete: Complete) -> str:
    """The last user message of a conversation as a query of its own; the message itself where that does not succeed.

    The LLM is asked only where something was said before.
    """
    turns = [message for message in conversation if message["role"] != "system"]
    while turns and turns[-1]["role"] != "user":
        turns.pop()
    if not turns:
        return ""
    query, before = turns[-1]["content"], turns[:-1][-MAX_TURNS:]
    if not before or len(query) > MAX_QUERY_CHARS:
        return query
    names = {"user": "User", "assistant": "Assistant"}
    shown = [f"{names[turn['role']]}: {turn['content'][:MAX_TURN_CHARS]}" for turn in before]
    asked = "\n".join(["Conversation:", *shown, "", f"Last question: {query}"])
    return next(iter(_queries(query, _reply(STANDALONE, asked, complete))), query)


def paraphrases(query: str, complete: Complete, num: int = 3) -> list[str]:
    """The query, then at most `num` distinct paraphrases of it."""
    num = min(num, MAX_PARAPHRASES)
    if num < 1 or not query.strip() or len(query) > MAX_QUERY_CHARS:
        return [query]
    distinct = {_folded(query): query}
    for line in _queries(query, _reply(PARAPHRASES.format(num=num), f"Question: {query}", complete)):
        distinct.setdefault(_folded(line), line)
    return list(distinct.values())[: num + 1]


def hypothetical_passage(query: str, complete: Complete) -> str:
    """A passage that might answer the query, to search by its embedding; the query itself where there is none.

    HyDE: Gao et al., Precise Zero-Shot Dense Retrieval without Relevance Labels, 2022. What it says may be wrong: it
    only has to be worded as a passage is. Embed it as a passage, and see `mean_embedding`.
    """
    if not query.strip() or len(query) > MAX_QUERY_CHARS:
        return query
    text = usable_text(_reply(PASSAGE, f"Question: {query}", complete))
    return text if text and len(text) <= MAX_PASSAGE_CHARS else query


def mean_embedding(embeddings: np.ndarray) -> np.ndarray:
    """(n, dim) rows of norm 1, those of the query and its hypothetical passages -> (dim,), of norm 1.

    The mean with the query is what the paper searches by: a passage that went astray pulls only half as far.
    Opposite embeddings have no mean; then it is the first one, the query's.
    """
    mean = embeddings.astype(np.float64).mean(axis=0)
    norm = np.linalg.norm(mean)
    chosen = mean / norm if norm > 1e-6 else embeddings[0]
    return np.asarray(chosen, np.float32)


def _reply(system: str, user: str, complete: Complete) -> object:
    try:
        return complete([{"role": "system", "content": system}, {"role": "user", "content": user}])
    except Exception as error:  # whatever the LLM's client raises, the search goes on
        log.warning("the query is not rewritten: %s", " ".join(f"{type(error).__name__}: {error}".split()))
        return ""


def _queries(query: str, reply: object) -> list[str]:
    """The lines of the reply that can stand for the query: of a question, questions only; the rest answers it."""
    lines = [line for line in usable_lines(reply) if len(line) <= MAX_QUERY_CHARS]
    return [line for line in lines if _is_question(line) or not _is_question(query)]


def _is_question(text: str) -> bool:
    return text.rstrip().endswith(("?", "？", "؟"))


def _folded(query: str) -> str:
    """What makes two queries the same: letter case, spaces and the punctuation at the end do not."""
    return " ".join(query.casefold().split()).rstrip(" ?!.")
