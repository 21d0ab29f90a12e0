"""How one question is answered: search, prompt, LLM, citations. The file to read first.

    query -> Retriever.search -> build_prompt -> LLM.stream -> cite -> Answer

Everything is one async generator of events, `QueryAgent.stream`; the notebook call, the command line and HTTP are
three ways to drain it. Nothing here knows HTTP or Ray.
"""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from typing import Literal, overload

from rag.catalog import EXTRACTIVE
from rag.config import Settings, load_settings
from rag.errors import GenerationError
from rag.generate.complete import open_search
from rag.generate.extractive import UNSUPPORTED, quote
from rag.generate.llm import LLM, load_llm
from rag.generate.prompt import build_prompt, cite, without_invalid
from rag.records import Answer, Hit, Prompt, Usage
from rag.search.retrieve import Retriever


@dataclass(frozen=True)
class Retrieved:
    """The first event: what was found, before a word is written."""

    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Token:
    """A piece of the answer's text."""

    text: str


Event = Retrieved | Token | Answer  # in this order; exactly one Answer, last


class QueryAgent:
    """Answers questions about a collection with citations.

    agent = QueryAgent(collection="docs")
    answer = agent("How do I batch?")            # Answer
    for text in agent("How do I batch?", stream=True): print(text, end="")
    """

    def __init__(
        self,
        collection: str | None = None,
        settings: Settings | None = None,
        retriever: Retriever | None = None,
        llm: LLM | None = None,
    ) -> None:
        """What is not given is opened from `settings`. Raises DatabaseError, ModelError, ConfigError."""
        self.settings = settings or load_settings()
        self.collection = collection or self.settings.collection
        self.retriever = retriever or open_search(self.settings)
        self.llm = llm or load_llm(self.settings.llm)

    @overload
    def __call__(self, query: str, stream: Literal[False] = False) -> Answer: ...
    @overload
    def __call__(self, query: str, stream: Literal[True]) -> Iterator[str]: ...

    def __call__(self, query: str, stream: bool = False) -> Answer | Iterator[str]:
        """The answer, or with `stream` its text in pieces. Works where an event loop runs already (notebooks)."""
        if stream:
            return (event.text for event in self.events(query) if isinstance(event, Token))
        return next(event for event in self.events(query) if isinstance(event, Answer))

    def events(self, query: str) -> Iterator[Event]:
        """`stream`, drained in a thread of its own, for callers that are not async."""
        events: queue.Queue[Event | BaseException | None] = queue.Queue()

        async def drain() -> None:
            async for event in self.stream(query):
                events.put(event)

        def run() -> None:
            try:
                asyncio.run(drain())
            except BaseException as error:
                events.put(error)
            else:
                events.put(None)

        threading.Thread(target=run, name="rag-answer", daemon=True).start()
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    async def stream(self, query: str, collection: str | None = None, k: int | None = None) -> AsyncGenerator[Event]:
        """Answers one question.

        An LLM that fails before its first token gives way to quoted sentences, and the answer's `route` says why;
        one that fails later raises GenerationError, since half an answer is out.
        """
        started = time.perf_counter()
        found = await asyncio.to_thread(
            self.retriever.search, query, collection or self.collection, k or self.settings.llm.k
        )
        timings = dict(found.timings_ms)
        yield Retrieved(found.hits)
        answer: Answer | None = None
        if self.llm is None or not found.hits:
            reason = "no language model configured" if self.llm is None else "nothing found"
            answer = _extractive(query, found.hits, reason)
            yield Token(answer.answer)
        else:
            async with aclosing(self._generate(query, found.hits, self.llm, timings)) as events:
                async for event in events:
                    if isinstance(event, Answer):
                        answer = event
                    else:
                        yield event
        assert answer is not None
        timings["total"] = round((time.perf_counter() - started) * 1000, 2)
        yield replace(answer, timings_ms=timings)

    async def _generate(
        self, query: str, hits: tuple[Hit, ...], llm: LLM, timings: dict[str, float]
    ) -> AsyncGenerator[Token | Answer]:
        started = time.perf_counter()
        text, usage = "", Usage()
        try:
            prompt = await asyncio.to_thread(build_prompt, query, hits, llm)
            # A client that goes away closes this generator; the model's must be closed with it, not some time later.
            async with aclosing(llm.stream(prompt.messages, self.settings.llm.max_tokens)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Usage):
                        usage = piece
                        continue
                    if not text:
                        timings["first_token"] = round((time.perf_counter() - started) * 1000, 2)
                    text += piece
                    yield Token(piece)
            if not text.strip():
                raise GenerationError(f"{llm.name}: an empty reply")
        except GenerationError as error:
            if text.strip():
                raise
            answer = _extractive(query, hits, str(error))
            yield Token(answer.answer)
            yield answer
            return
        timings["llm"] = round((time.perf_counter() - started) * 1000, 2)
        text = text.strip()
        answer = _cited(query, text, prompt, llm.name, usage)
        if added := answer.answer.removeprefix(without_invalid(text, len(prompt.hits))):
            yield Token(added)  # citations that the model left out, or quotes
        yield answer


def _cited(query: str, text: str, prompt: Prompt, llm: str, usage: Usage) -> Answer:
    """An answer that neither cites a passage nor resembles one gets the best sentences beside it."""
    answer, citations = cite(text, prompt.hits)
    route = "model"
    if not citations:
        quotes, citations = quote(query, prompt.hits, max_sentences=2, heading=UNSUPPORTED)
        answer, route = f"{answer}\n\n{quotes}", "model: not supported by the passages, quotes added"
    return Answer(
        question=query,
        answer=answer,
        sources=_sources(prompt.hits),
        llm=llm,
        citations=citations,
        usage=usage,
        route=route,
        hits=prompt.hits,
        num_dropped=prompt.num_dropped,
    )


def _extractive(query: str, hits: tuple[Hit, ...], reason: str) -> Answer:
    text, citations = quote(query, hits)
    return Answer(
        question=query,
        answer=text,
        sources=_sources(hits),
        llm=EXTRACTIVE,
        citations=citations,
        route=f"extractive: {reason}",
        hits=hits,
    )


def _sources(hits: tuple[Hit, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(hit.source for hit in hits))


def answer_json(answer: Answer) -> dict[str, object]:
    """An answer in the shape of `rag ask --json` and POST /query."""
    fields = asdict(answer)
    hits = fields.pop("hits")
    usage = fields["usage"]
    return fields | {"num_hits": len(hits), "cost_usd": usage.pop("cost_usd")}
