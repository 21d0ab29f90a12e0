"""Ray, started or joined, and how a job divides its CPUs. Every reservation is checked before work begins."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from rag.config import RayConfig
from rag.errors import ResourceError

TASK_CPUS = 0.25  # extract and write mostly wait; a whole CPU each would starve the embedders (docs/architecture.md)


# What Ray reads from the environment when it starts; a value the user set wins. Errors still reach us as exceptions,
# and Ray's own log files stay where it writes them.
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported anywhere
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@dataclass(frozen=True)
class EmbedPlan:
    """How many embedding actors, and what each reserves. `threads` is what it computes with."""

    num_actors: int
    num_cpus: float
    num_gpus: float
    threads: int


def plan_embedding(total_cpus: float, free_cpus: float, total_gpus: float) -> EmbedPlan:
    """The largest plan that leaves room for one extractor and one writer; an actor pool that takes every CPU hangs.

    Raises ResourceError where not even half a CPU is left for an embedder.
    """
    smallest = 0.5 + 2 * TASK_CPUS
    if free_cpus < smallest:
        raise ResourceError(
            f"ingestion needs {smallest:g} free CPU at least, the cluster has {free_cpus:g} of {total_cpus:g} free;"
            " stop other Ray jobs, add a node, or start Ray with more --num-cpus"
        )
    if total_gpus >= 1:
        return EmbedPlan(int(total_gpus), 0.5, 1, 1)
    if free_cpus <= 2:
        return EmbedPlan(1, 0.5, 0, max(1, int(total_cpus)))
    return EmbedPlan(max(1, int((free_cpus - 1) // 2)), 2, 0, 2)


def num_hosts() -> int:
    """Machines of the cluster; simulated nodes on one machine count once."""
    import ray

    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})


@contextmanager
def ray_session(config: RayConfig, num_cpus: int | None = None) -> Iterator[None]:
    """Ray for the length of the block. One that runs in this process already is used and left running."""
    import ray

    if ray.is_initialized():
        yield
        return
    for name, value in QUIET_RAY.items():
        os.environ.setdefault(name, value)
    try:
        if config.address == "local":
            memory = min(2 * 2**30, psutil.virtual_memory().available // 5)
            with _silent_stderr():  # Ray's C++ core announces its log level there
                ray.init(
                    address="local",
                    num_cpus=num_cpus or config.num_cpus,
                    object_store_memory=max(80 * 2**20, memory),
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
        else:
            ray.init(address=config.address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # a node that does not come up in time is a plain Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if config.address == "local":
            raise ResourceError(
                f"Ray did not start: {reason}; run the command again when the machine is less busy"
            ) from None
        raise ResourceError(
            f"no Ray at {config.address!r}: {reason}; set RAG_RAY__ADDRESS=local to start one"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Sends file descriptor 2, which C++ writes to, nowhere; exceptions are not affected."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
