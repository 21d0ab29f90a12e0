"""Messages in, an OpenAI-compatible endpoint's answer out, as it arrives.

Retries what may pass (408, 429, 5xx, connection errors, timeouts) as long as no text has been yielded; a
stream that is cut or stays empty is an error, never a short answer. Errors are GenerationError: one line,
never the key. Does not know the endpoint's tokenizer: token counts are estimates, on the high side.
"""

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, cast

from rag.catalog import DEFAULT_CONTEXT_TOKENS, LLMS, cost_usd
from rag.config import LLMConfig
from rag.errors import ConfigError, GenerationError
from rag.records import Message, Usage

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

VENDOR_URL = "https://api.openai.com/v1"
MAX_BACKOFF_S = 8.0
MAX_RETRY_AFTER_S = 30.0
MARGIN_TOKENS = 32  # what an endpoint's chat template may add
MAX_REASON_CHARS = 200

ADVICE = {
    400: "check llm.max_tokens and llm.context_tokens",
    401: "check OPENAI_API_KEY",
    403: "check that the key may use this model",
    404: "check llm.name and llm.base_url",
    429: "wait, or choose another model",
}


class OpenAIClient:
    """An LLM behind POST {base_url}/chat/completions."""

    def __init__(self, config: LLMConfig, backoff_s: float = 0.5) -> None:
        self.name = config.name
        facts = LLMS.get(config.name)
        known_tokens = facts.context_tokens if facts else DEFAULT_CONTEXT_TOKENS
        context_tokens = config.context_tokens or known_tokens
        self.prompt_budget_tokens = context_tokens - config.max_tokens - MARGIN_TOKENS
        if self.prompt_budget_tokens <= 0:
            raise ConfigError(
                f"llm.max_tokens: expected fewer than the {context_tokens} tokens of {self.name}'s context"
                f" less {MARGIN_TOKENS}; found {config.max_tokens}; lower it or set llm.context_tokens"
            )
        self._config = config
        self._key = config.api_key.get_secret_value() if config.api_key else ""
        self._backoff_s = backoff_s

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(_estimate_tokens(message["content"]) + 4 for message in messages)

    async def stream(self, messages: Sequence[Message], max_tokens: int) -> AsyncGenerator[str | Usage]:
        max_attempts = self._config.max_retries + 1
        # A client's connections belong to the event loop that opened them, and the sync wrapper runs a new
        # loop for each call: so a client per call.
        async with self._client() as client:
            for attempt in range(1, max_attempts + 1):
                has_text = False
                try:
                    async with aclosing(self._attempt(client, messages, max_tokens)) as items:
                        while (item := await self._next(items)) is not None:
                            has_text = True
                            yield item
                    return
                except Exception as error:
                    failure = self._failure(error)
                    if has_text or not failure.is_passing or attempt == max_attempts:
                        # `from None`: an endpoint's own message may repeat the key
                        raise self._error(failure, attempt, has_text) from None
                await asyncio.sleep(self._pause_s(failure, attempt))

    def _client(self) -> "AsyncOpenAI":
        from openai import AsyncOpenAI

        # Retries and timeouts are ours, so that there is one clock and one count of attempts.
        return AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self._config.base_url or VENDOR_URL,
            max_retries=0,
            timeout=None,
        )

    async def _next(self, items: AsyncIterator[str | Usage]) -> str | Usage | None:
        """The next item, None at the end; TimeoutError where it does not come in time."""
        async with asyncio.timeout(self._config.timeout_s):
            return await anext(items, None)

    async def _attempt(
        self, client: "AsyncOpenAI", messages: Sequence[Message], max_tokens: int
    ) -> AsyncGenerator[str | Usage, None]:
        """One request: its text, then its Usage."""
        chunks = await client.chat.completions.create(
            model=self.name,
            messages=cast(Any, list(messages)),
            max_tokens=max_tokens,
            temperature=self._config.temperature,
            stream=True,
            stream_options={"include_usage": True},
        )
        text, finish_reason, reported = "", None, None
        async with chunks:
            async for chunk in chunks:
                reported = chunk.usage or reported
                for choice in chunk.choices[:1]:  # the usage chunk has no choice
                    finish_reason = choice.finish_reason or finish_reason
                    if choice.delta.content:
                        text += choice.delta.content
                        yield choice.delta.content
        if finish_reason is None:
            raise ConnectionError("the stream was cut")
        if not text.strip():
            raise _EmptyCompletion(f"an empty answer (finish_reason {finish_reason!r})")
        if reported is not None:
            yield self._usage(reported.prompt_tokens, reported.completion_tokens)
        else:  # some endpoints send none
            yield self._usage(self.count_tokens(messages), _estimate_tokens(text))

    def _usage(self, prompt_tokens: int, output_tokens: int) -> Usage:
        return Usage(prompt_tokens, output_tokens, cost_usd(self.name, prompt_tokens, output_tokens))

    def _failure(self, error: Exception) -> "_Failure":
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        if isinstance(error, (TimeoutError, APITimeoutError)):
            advice = "raise llm.timeout_s or choose another model"
            return _Failure(f"no reply in {self._config.timeout_s:g} s", advice, is_passing=True)
        if isinstance(error, APIStatusError):
            return self._status_failure(error)
        if isinstance(error, (APIConnectionError, ConnectionError)):
            url = self._config.base_url or VENDOR_URL
            reason = f"connection lost ({self._one_line(error.__cause__ or error)})"
            return _Failure(reason, f"check that {url} is up", is_passing=True)
        if isinstance(error, _EmptyCompletion):
            return _Failure(str(error), "ask again or choose another model")
        return _Failure(f"unusable reply ({self._one_line(error)})", "check llm.base_url")

    def _status_failure(self, error: "APIStatusError") -> "_Failure":
        status = error.status_code
        return _Failure(
            reason=f"HTTP {status} ({self._one_line(error)})",
            advice=ADVICE.get(status, "try again later or choose another model"),
            is_passing=status in (408, 429) or status >= 500,
            retry_after_s=_retry_after_s(error.response.headers.get("retry-after")),
        )

    def _one_line(self, error: BaseException) -> str:
        text = " ".join(str(error).split()) or type(error).__name__
        if self._key:
            text = text.replace(self._key, "***")
        return text[:MAX_REASON_CHARS]

    def _error(self, failure: "_Failure", num_attempts: int, has_text: bool) -> GenerationError:
        when = " in the middle of the answer" if has_text else ""
        attempts = f"{num_attempts} attempt{'s' if num_attempts > 1 else ''}"
        return GenerationError(f"{self.name}: {failure.reason}{when} after {attempts}; {failure.advice}")

    def _pause_s(self, failure: "_Failure", attempt: int) -> float:
        if failure.retry_after_s is not None:
            return failure.retry_after_s
        backoff_s: float = min(MAX_BACKOFF_S, self._backoff_s * 2 ** (attempt - 1))
        return backoff_s * random.uniform(0.5, 1.0)  # clients that failed together must not return together


class _EmptyCompletion(Exception):
    """The endpoint finished without a word."""


@dataclass(frozen=True)
class _Failure:
    """Why an attempt failed, what the user can do, and whether another attempt may help."""

    reason: str
    advice: str
    is_passing: bool = False
    retry_after_s: float | None = None


def _estimate_tokens(text: str) -> int:
    """Three bytes a token: English takes about four, and code, or a script with one token a character, fewer."""
    return math.ceil(len(text.encode("utf-8", "replace")) / 3)


def _retry_after_s(header: str | None) -> float | None:
    """Seconds that a Retry-After header (seconds or an HTTP date) asks for, 30 at most; None if unreadable."""
    if header is None:
        return None
    try:
        wait_s = float(header)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(wait_s, 0.0), MAX_RETRY_AFTER_S) if math.isfinite(wait_s) else None
