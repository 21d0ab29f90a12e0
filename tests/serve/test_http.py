"""`rag serve` as a process of its own, over real HTTP: shapes, streams, errors, and nothing left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx
import psutil
import pytest

from rag.config import Settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(antarctica: Settings) -> Iterator[subprocess.Popen[str]]:
    """`rag serve` with the local LLM, its address in `server.args[-1]`."""
    port = free_port()
    command = [sys.executable, "-m", "rag.cli", "serve", "-c", "antarctica", "--port", str(port)]
    env = os.environ | {"RAG_HOME": str(antarctica.home), "RAG_RAY__NUM_CPUS": "2", "RAG_LLM__MAX_TOKENS": "48"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(150, process.kill)
    watchdog.start()
    assert process.stdout is not None
    line = process.stdout.readline()
    watchdog.cancel()
    assert line.startswith("serving 'antarctica' at "), process.stderr and process.stderr.read()
    process.args = [*command, f"http://127.0.0.1:{port}"]
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


@pytest.fixture
def client(server: subprocess.Popen[str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=list(server.args)[-1], timeout=60) as client:  # type: ignore[call-overload]
        yield client


def test_it_is_alive_and_ready(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert (ready["status"], ready["collection"]) == ("ready", "antarctica")


def test_query_answers_in_the_reference_s_shape_and_more(client: httpx.Client) -> None:
    reply = client.post("/query", json={"query": "What do emperor penguins eat?"})
    assert reply.status_code == 200
    body = reply.json()
    assert body["question"] == "What do emperor penguins eat?"
    assert body["llm"] == "SmolLM2-135M-Instruct"
    assert body["answer"]
    assert body["sources"][0].endswith("penguins.md#diet")
    assert {"citations", "usage", "cost_usd", "route", "timings_ms", "answer_id"} <= set(body)
    assert body["route"].startswith("model")
    assert body["usage"]["output_tokens"] > 0


def test_stream_sends_text_and_then_the_sources(client: httpx.Client) -> None:
    with client.stream("POST", "/stream", json={"query": "What do emperor penguins eat?"}) as reply:
        assert reply.headers["content-type"].startswith("text/plain")
        pieces = list(reply.iter_text())
    text = "".join(pieces)
    assert len(pieces) > 3  # it came as it was written
    answer, sources = text.split("\n\n**Sources:**\n")
    assert answer.strip()
    assert sources.splitlines()[0].endswith("penguins.md#diet")
    assert all(line.startswith("* ") for line in sources.splitlines())


def test_stream_sends_typed_events_to_who_accepts_them(client: httpx.Client) -> None:
    reply = client.post("/stream", json={"query": "What do seals hunt?"}, headers={"Accept": "text/event-stream"})
    frames = [frame.split("\n", 1) for frame in reply.text.strip().split("\n\n")]
    names = [name.removeprefix("event: ") for name, _ in frames]
    data = {name: json.loads(rest.removeprefix("data: ")) for name, (_, rest) in zip(names, frames, strict=True)}
    assert names[0] == "retrieval"
    assert names[-3:] == ["citations", "usage", "done"]
    assert set(names[1:-3]) == {"token"}
    assert data["retrieval"]["hits"][0]["source"].endswith("seals.html#seals")
    assert data["done"]["answer"]


@pytest.mark.parametrize("route", ["/query", "/stream"])
@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"query": "x", "collection": "nope"}, 404, "NotFound"),
        ({"query": ""}, 422, "ValidationError"),
        ({}, 422, "ValidationError"),
        ({"query": "x", "k": 0}, 422, "ValidationError"),
        ({"query": "x" * 30_000}, 422, "ValidationError"),
        ({"query": "x" * 2_000_000}, 413, "TooLarge"),
    ],
)
def test_a_bad_request_is_an_error_of_one_shape(
    client: httpx.Client, route: str, body: dict[str, object], status: int, kind: str
) -> None:
    reply = client.post(route, json=body)
    assert reply.status_code == status
    assert reply.json()["error"]["type"] == kind
    assert reply.json()["error"]["message"]


def test_a_route_that_is_not_there_has_the_same_shape(client: httpx.Client) -> None:
    reply = client.get("/nothing")
    assert (reply.status_code, set(reply.json())) == (404, {"error"})


def test_eight_clients_at_once_are_all_answered(client: httpx.Client) -> None:
    replies: list[httpx.Response] = []
    ask = {"query": "Where do penguins live?"}
    threads = [threading.Thread(target=lambda: replies.append(client.post("/query", json=ask))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.status_code for reply in replies] == [200] * 8
    assert all(reply.json()["answer"] for reply in replies)


def test_z_ctrl_c_stops_everything_it_started(server: subprocess.Popen[str]) -> None:
    children = psutil.Process(server.pid).children(recursive=True)
    assert children
    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=60) == 0
    _, alive = psutil.wait_procs(children, timeout=20)
    assert [process.name() for process in alive] == []


def test_z_a_port_in_use_is_one_clear_line(antarctica: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "rag.cli", "serve", "-c", "antarctica", "--port", port],
            env=os.environ | {"RAG_HOME": str(antarctica.home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}")
