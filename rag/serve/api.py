"""The HTTP contract: routes, shapes, errors. Knows FastAPI and the agent, nothing of Ray."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from psycopg import OperationalError
from psycopg_pool import PoolTimeout
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from rag.config import Settings
from rag.errors import (
    ConfigError,
    DatabaseError,
    GenerationError,
    IndexMismatch,
    ModelError,
    NotFound,
    Overloaded,
    RagError,
)
from rag.generate.answer import Event, QueryAgent, Retrieved, Token, answer_json
from rag.index.generations import live_generation
from rag.records import Answer

MAX_BODY_BYTES = 1_000_000
RETRY_AFTER_S = "2"

STATUS: dict[type[Exception], int] = {
    NotFound: 404,
    ConfigError: 422,
    IndexMismatch: 409,
    Overloaded: 503,
    DatabaseError: 503,
    OperationalError: 503,
    PoolTimeout: 503,
    ModelError: 503,
    GenerationError: 502,
    TimeoutError: 504,
}


class QueryRequest(BaseModel):
    """A question."""

    query: str = Field(min_length=1, max_length=20_000)
    collection: str | None = None
    k: int | None = Field(None, ge=1, le=100)


class State:
    """What the replica opened; set once before the first request."""

    agent: QueryAgent


state = State()


def build_api(settings: Settings) -> FastAPI:
    """The FastAPI application. `state.agent` must be set before it answers."""
    api = FastAPI(title="rag", summary="Questions in, cited answers out.")
    deadline_s = settings.serve.deadline_s

    @api.post("/query")
    async def query(request: QueryRequest) -> dict[str, Any]:
        """The whole answer: text, sources, citations, usage, times."""
        async with asyncio.timeout(deadline_s):
            async for event in _events(request):
                if isinstance(event, Answer):
                    return answer_json(event) | {"answer_id": uuid.uuid4().hex}
        raise GenerationError("the answer ended before it was whole")

    @api.post("/stream")
    async def stream(body: QueryRequest, request: Request) -> StreamingResponse:
        """Text as it is written, sources at the end; typed events with `Accept: text/event-stream`."""
        events = _events(body)
        # The first event is awaited here, so that an error before the answer begins has its own HTTP status.
        ends_at = asyncio.get_running_loop().time() + deadline_s
        async with asyncio.timeout_at(ends_at):
            first = await anext(events)
        wants_events = "text/event-stream" in request.headers.get("accept", "")
        encode = _sse if wants_events else _plain
        pieces = _guarded(_chain(first, events), ends_at, encode)
        return StreamingResponse(pieces, media_type="text/event-stream" if wants_events else "text/plain")

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Alive."""
        return {"status": "ok"}

    @api.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Ready to answer: the database answers and the collection has an index."""
        agent = _agent()
        generation = await asyncio.to_thread(live_generation, agent.retriever.store, agent.collection)
        return {"status": "ready", "collection": agent.collection, "index_id": str(generation.generation_id)}

    _add_errors(api)
    return api


def _agent() -> QueryAgent:
    """This process's agent. Routes are pickled by value on their way to a replica and must not take `state` along."""
    return state.agent


def _events(request: QueryRequest) -> AsyncIterator[Event]:
    return _agent().stream(request.query, request.collection, request.k)


async def _chain(first: Event, rest: AsyncIterator[Event]) -> AsyncIterator[Event]:
    yield first
    async for event in rest:
        yield event


def _plain(event: Event | Exception) -> str:
    """Tokens, then the reference's list of sources."""
    if isinstance(event, Token):
        return event.text
    if isinstance(event, Answer):
        return "\n\n**Sources:**\n" + "".join(f"* {source}\n" for source in event.sources)
    if isinstance(event, Exception):
        return f"\n\n[error] {_message(event)}\n"
    return ""


def _sse(event: Event | Exception) -> str:
    """Typed server-sent events: retrieval, token, citations, usage, done, error."""
    if isinstance(event, Retrieved):
        return _frame("retrieval", {"hits": [asdict(hit) for hit in event.hits]})
    if isinstance(event, Token):
        return _frame("token", {"text": event.text})
    if isinstance(event, Exception):
        return _frame("error", {"type": type(event).__name__, "message": _message(event)})
    body = answer_json(event)
    return (
        _frame("citations", {"citations": body["citations"], "sources": body["sources"]})
        + _frame("usage", {"usage": body["usage"], "cost_usd": body["cost_usd"], "timings_ms": body["timings_ms"]})
        + _frame("done", {"answer": body["answer"], "llm": body["llm"], "route": body["route"]})
    )


def _frame(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


async def _guarded(events: AsyncIterator[Event], ends_at: float, encode: Any) -> AsyncIterator[str]:
    """Encodes events under the request's deadline; an error after the headers becomes the last piece."""
    try:
        async with asyncio.timeout_at(ends_at):
            async for event in events:
                if piece := encode(event):
                    yield piece
    except (RagError, OperationalError, PoolTimeout, TimeoutError) as error:
        yield encode(error)


def _message(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no whole answer before the deadline (serve.deadline_s); ask for less or raise it"
    if isinstance(error, OperationalError | PoolTimeout):
        return "the database does not answer; try again in a few seconds"
    return str(error)


def _add_errors(api: FastAPI) -> None:
    """Every error leaves as {"error": {"type", "message"}} with its status."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        status = next(code for kind, code in STATUS.items() if isinstance(error, kind))
        return error_response(status, type(error).__name__, _message(error))

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return error_response(422, "ValidationError", f"{where}: {first['msg']}")

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return error_response(error.status_code, "HTTPException", str(error.detail))

    async def bug(request: Request, error: Exception) -> JSONResponse:
        return error_response(500, "InternalError", "the server failed; its log says why")

    api.add_exception_handler(Exception, bug)
    for kind in STATUS:
        api.add_exception_handler(kind, known)
    api.add_exception_handler(RequestValidationError, invalid)
    api.add_exception_handler(HTTPException, http)

    @api.middleware("http")
    async def limit_body(request: Request, call_next: Any) -> Any:
        """Refuses a body too large by its announced length, before it is read."""
        length = request.headers.get("content-length", "0")
        if "chunked" in request.headers.get("transfer-encoding", ""):
            return error_response(411, "LengthRequired", "send a Content-Length; chunked bodies are not accepted")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            return error_response(413, "TooLarge", f"body of {length} bytes; expected at most {MAX_BODY_BYTES}")
        return await call_next(request)


def error_response(status: int, kind: str, message: str) -> JSONResponse:
    headers = {"Retry-After": RETRY_AFTER_S} if status in (429, 503) else None
    return JSONResponse({"error": {"type": kind, "message": message}}, status, headers)
