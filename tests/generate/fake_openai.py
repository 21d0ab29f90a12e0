"""A real HTTP server on 127.0.0.1 that speaks POST /v1/chat/completions as scripted, one step per request.

    with fake_openai(status(429, retry_after="0"), ok("Paris [1].")) as server:
        ... base_url=server.base_url ...
    assert len(server.requests) == 2

The last step answers all further requests. Knows nothing of the client under test.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Step = Callable[["_Handler"], None]


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]  # names in lower case
    body: dict[str, Any]
    time_s: float


@dataclass
class FakeOpenAI:
    base_url: str
    requests: list[Request] = field(default_factory=list)


def ok(text: str, prompt_tokens: int = 11, output_tokens: int = 7, has_usage: bool = True) -> Step:
    """The text, a word a chunk, finish_reason, the usage if asked for, and [DONE]; or one JSON body."""

    def step(handler: "_Handler") -> None:
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": prompt_tokens + output_tokens,
        }
        if not handler.body.get("stream"):
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            handler.send_json(200, _completion("chat.completion", [choice], usage if has_usage else None))
            return
        handler.start_stream()
        handler.send_words(text)
        handler.send_event(_completion("chat.completion.chunk", [_choice({}, "stop")]))
        if has_usage and handler.body.get("stream_options", {}).get("include_usage"):
            handler.send_event(_completion("chat.completion.chunk", [], usage))
        handler.send_raw("data: [DONE]\n\n")
        handler.end_stream()

    return step


def empty() -> Step:
    """A completion without a word."""
    return ok("")


def status(code: int, message: str = "scripted", retry_after: str | None = None) -> Step:
    """An HTTP error with a body as OpenAI words it; `{authorization}` in `message` is filled in."""

    def step(handler: "_Handler") -> None:
        text = message.replace("{authorization}", handler.headers.get("authorization", ""))
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        handler.send_json(code, {"error": {"message": text, "type": "scripted"}}, headers)

    return step


def hang(seconds: float, after: str = "") -> Step:
    """The words of `after`, then silence; the connection closes when the time is over."""

    def step(handler: "_Handler") -> None:
        if after:
            handler.start_stream()
            handler.send_words(after)
        time.sleep(seconds)
        handler.close_connection = True

    return step


def cut(text: str, is_clean: bool = False) -> Step:
    """The words of `text`, then no finish_reason: the connection drops, or (clean) the body just ends."""

    def step(handler: "_Handler") -> None:
        handler.start_stream()
        handler.send_words(text)
        if is_clean:
            handler.end_stream()
        handler.close_connection = True

    return step


@contextmanager
def fake_openai(*steps: Step) -> Iterator[FakeOpenAI]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    fake = FakeOpenAI(f"http://127.0.0.1:{server.server_port}/v1")
    server.fake, server.steps = fake, steps  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    body: dict[str, Any]

    def do_POST(self) -> None:
        fake, steps = self.server.fake, self.server.steps  # type: ignore[attr-defined]
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        fake.requests.append(Request(self.path, headers, self.body, time.monotonic()))
        if self.path != "/v1/chat/completions":
            self.send_json(404, {"error": {"message": f"no such path: {self.path}"}})
            return
        with suppress(BrokenPipeError, ConnectionResetError):  # a client may leave
            steps[min(len(fake.requests), len(steps)) - 1](self)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send_json(self, code: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def start_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_words(self, text: str) -> None:
        words = text.split(" ")
        for i, word in enumerate(words):
            content = word if i == 0 else f" {word}"
            self.send_event(_completion("chat.completion.chunk", [_choice({"content": content}, None)]))

    def send_event(self, value: dict[str, Any]) -> None:
        self.send_raw(f"data: {json.dumps(value)}\n\n")

    def send_raw(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")


def _choice(delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def _completion(kind: str, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
    return {"id": "fake-1", "object": kind, "created": 0, "model": "fake", "choices": choices, "usage": usage}
