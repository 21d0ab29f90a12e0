"""Ray, started or joined, and how a job divides its CPUs. Every reservation is checked before work begins."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from rag.config import RayConfig
from rag.errors import ResourceError, first_line

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


def plan_embedding(free: Sequence[float], total_gpus: float) -> EmbedPlan:
    """The largest plan that leaves room for extractors and writers; an actor pool that takes every CPU hangs.

    `free` is the number of free CPUs of each node: an actor must fit into one. Raises ResourceError where not even
    half a CPU is left for an embedder.
    """
    largest = max(free, default=0)
    if largest < 0.5 + 2 * TASK_CPUS:
        raise ResourceError(
            f"ingestion needs {0.5 + 2 * TASK_CPUS:g} free CPU at least on one node, the freest of {len(free)} has"
            f" {largest:g}; stop other Ray jobs, add a node, or start Ray with more --num-cpus"
        )
    if total_gpus >= 1:
        return EmbedPlan(int(total_gpus), 0.5, 1, 1)
    if largest >= 3:
        return EmbedPlan(sum(max(0, int((cpus - 1) // 2)) for cpus in free), 2, 0, 2)
    # Small nodes get one actor each, with threads for all of its CPUs; it shares them with tasks that mostly wait.
    num_actors = sum(cpus >= 0.5 + 2 * TASK_CPUS for cpus in free)
    return EmbedPlan(num_actors, 0.5 if len(free) == 1 or largest < 1.5 else 1, 0, max(1, int(largest)))


def free_cpus() -> list[float]:
    """Of each node of the cluster."""
    from ray._private.state import available_resources_per_node  # the public call adds up the nodes

    return [float(resources.get("CPU", 0)) for resources in available_resources_per_node().values()]


def is_running() -> bool:
    """Whether Ray runs in this process; asking does not import it."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def num_hosts() -> int:
    """Machines of the cluster; simulated nodes on one machine count once."""
    import ray

    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})


@contextmanager
def ray_session(config: RayConfig) -> Iterator[None]:
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
                    num_cpus=config.num_cpus,
                    object_store_memory=max(80 * 2**20, memory),
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
        else:
            ray.init(address=config.address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # a node that does not come up in time is a plain Exception
        reason = first_line(error)
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
