"""The Ray Serve application: an ingress that searches in its own process, and the local LLM one hop away.

    client -> Api (FastAPI, search, prompt) -> LocalModel (llama.cpp, one generation at a time)

A hop between deployments costs about 10 ms under load, so search has none; the LLM is apart because it is slow, and
because a cluster gives it other machines.
"""

import logging
import signal
import threading
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from ray import serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from rag.config import LLMConfig, Settings
from rag.errors import ConfigError, GenerationError, Overloaded
from rag.generate.llm import LLM, is_local, load_llm
from rag.index.cluster import ray_session
from rag.index.server import EmbeddedServer
from rag.records import Message, Usage
from rag.serve.api import build_api


class LocalModel:
    """The local LLM in a process of its own; everything it streams is plain data."""

    def __init__(self, config: LLMConfig) -> None:
        self.llm = _local(config)

    async def stream(self, messages: list[Message], max_tokens: int) -> AsyncGenerator[str | Usage]:
        async for piece in self.llm.stream(messages, max_tokens):
            yield piece


class RemoteModel:
    """LocalModel as the `LLM` protocol sees it: counts tokens here, streams from there."""

    def __init__(self, handle: "DeploymentHandle[Any]", config: LLMConfig) -> None:
        local = _local(config)  # its tokenizer; the weights are memory-mapped, shared with LocalModel's process
        self.name, self.prompt_budget_tokens = local.name, local.prompt_budget_tokens
        self.count_tokens = local.count_tokens
        self.handle = handle.options(stream=True)

    async def stream(self, messages: Sequence[Message], max_tokens: int) -> AsyncGenerator[str | Usage]:
        pieces = self.handle.stream.remote(list(messages), max_tokens)
        try:
            async for piece in pieces:
                yield piece
        except BackPressureError as error:
            raise Overloaded(f"{self.name}: too many requests wait; try again in a few seconds") from error
        except Exception as error:
            # What crosses processes arrives as an exception of Ray, its text a remote traceback; the cause is ours.
            cause = getattr(error, "cause", error)
            reason = str(cause) if isinstance(cause, GenerationError) else f"{self.name}: {type(cause).__name__}"
            raise GenerationError(reason) from error


def _local(config: LLMConfig) -> LLM:
    llm = load_llm(config)
    assert llm is not None
    return llm


def build_app(settings: Settings) -> serve.Application:
    """The application graph, for `serve.run` and for Serve config files."""
    ingress = serve.deployment(
        serve.ingress(build_api(settings))(Ingress),
        name="Api",
        ray_actor_options={"num_cpus": 0.25},
        max_ongoing_requests=100,
        max_queued_requests=settings.serve.max_waiting * 4,
    )
    model = None
    if is_local(settings.llm):
        model = serve.deployment(
            LocalModel,
            ray_actor_options={"num_cpus": 0.25},
            max_ongoing_requests=4,
            max_queued_requests=settings.serve.max_waiting,
        ).bind(settings.llm)
    return ingress.bind(settings, model)


class Ingress:
    """Holds what a replica opens once. The routes are in rag.serve.api."""

    def __init__(self, settings: Settings, model: "DeploymentHandle[Any] | None") -> None:
        import torch

        from rag.generate.answer import QueryAgent
        from rag.index.embed import usable_cpus
        from rag.serve import api

        torch.set_num_threads(usable_cpus())  # Ray gives a replica with a fraction of a CPU one thread
        llm = RemoteModel(model, settings.llm) if model is not None else None
        api.state.agent = QueryAgent(settings=settings, llm=llm)


def run(settings: Settings) -> None:
    """Serves until SIGINT or SIGTERM, then stops everything it started, the embedded database included."""
    _check_port_is_free(settings)
    server = EmbeddedServer(settings.home)
    owns_database = settings.database_url is None and not server.is_running()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with ray_session(settings.ray):
            host, port = settings.serve.host, settings.serve.port
            serve.start(http_options={"host": host, "port": port, "request_timeout_s": None}, logging_config=_QUIET)
            serve.run(build_app(settings), name="rag", logging_config=_QUIET)
            print(f"serving {settings.collection!r} at http://{host}:{port} (Ctrl-C stops)", flush=True)
            stop.wait()
            if settings.ray.address != "local":  # the cluster goes on without us; a local Ray ends with the block
                serve.delete("rag")
    finally:
        if owns_database:
            server.stop()


_QUIET = {"log_level": "WARNING", "enable_access_log": False}  # of replicas and proxy; they log to files


def _check_port_is_free(settings: Settings) -> None:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.serve.host, settings.serve.port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {settings.serve.host}:{settings.serve.port}: {error.strerror};"
                " stop what runs there or pass another --port"
            ) from None
