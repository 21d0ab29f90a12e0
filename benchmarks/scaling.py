"""How the pipeline scales from 1 to 32 embedding workers, on nodes that are simulated on this machine.

    python benchmarks/scaling.py                         # 1 2 4 8 16 32 workers, four on a node
    python benchmarks/scaling.py --workers 1 16 --batches 10

Listing, extraction, chunking, scheduling, transport and writing are the product's, on a real multi-node Ray
(`ray.cluster_utils.Cluster`: one raylet and one object store per node, logical CPUs). Only the embedding is replaced:
an actor waits a fixed time per chunk, as if a GPU computed. So what is measured is whether the pipeline keeps n
workers busy. What it cannot show is the network, and the disks and CPUs of separate machines.

A worker takes 1 s for a batch of 16 chunks. The real work for a chunk, all processes together, is a few milliseconds
of CPU: at 32 workers (512 chunks/s) two cores have about 4 ms for a chunk, and it is the machine that is measured.

Work grows with the workers, `--batches` for each. The clock runs from the first fifth of the documents to the last one:
start-up is excluded (it is sequential here, and parallel on real nodes), the idle end is included.
efficiency(n) = throughput(n) / (n * throughput(1)); `of ideal` is throughput(n) / (16 n), the most they can do.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from corpus import write_documents

from rag.config import EmbedConfig, load_settings
from rag.index import build
from rag.index.cluster import QUIET_RAY, TASK_CPUS, EmbedPlan
from rag.index.database import open_database
from rag.index.server import EmbeddedServer
from rag.index.store import Store

BATCH = 16  # documents of one chunk each
SECONDS_PER_CHUNK = 1 / BATCH
DIM = 384
WORKERS_PER_NODE = 4
SPARE_CPUS = 4 * TASK_CPUS  # of a node, for extraction and writing
TARGET, TARGET_WORKERS = 0.9, 16


class FixedTimeEmbedChunks:
    """In the place of `rag.index.build.EmbedChunks`: same rows out, after a fixed time for each chunk."""

    def __init__(self, config: EmbedConfig, cache_dir: Path, threads: int) -> None:
        self.row = np.full(DIM, DIM**-0.5, np.float32)

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        numbers = [len(json.loads(text)) for text in batch.column("chunks").to_pylist()]
        time.sleep(SECONDS_PER_CHUNK * sum(numbers))
        return batch.append_column(
            "embeddings", pa.array([np.tile(self.row, n).tobytes() for n in numbers], pa.large_binary())
        )


def cpu_seconds() -> float:
    """What this process and its descendants (raylets, workers) have used; PostgreSQL is not among them."""
    used = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            used += sum(process.cpu_times()[:2])
    return used


def measure(num_workers: int, documents: Path, home: Path) -> dict[str, float]:
    """One job on a cluster of its own: chunks/s once it runs."""
    import ray
    from ray.cluster_utils import Cluster

    num_nodes = math.ceil(num_workers / WORKERS_PER_NODE)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for i in range(num_nodes):
        workers_here = num_workers // num_nodes + (i < num_workers % num_nodes)
        cluster.add_node(num_cpus=workers_here + SPARE_CPUS, object_store_memory=100 * 2**20)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    settings = load_settings(home=home, collection=f"workers-{num_workers}")
    store = Store(open_database(settings))
    try:
        generation = store.ensure_generation(settings.collection, {}, {"model": "fixed time"}, DIM)
        build.EmbedChunks = FixedTimeEmbedChunks  # type: ignore[assignment,misc]
        ray.data.DataContext.get_current().wait_for_min_actors_s = 600  # the clock starts when all can work
        refs = list(build.list_sources([str(documents)]).documents.values())
        plan = EmbedPlan(num_workers, 1, 0, 1)
        started, warm = time.monotonic(), len(refs) // 5
        times, cpu = list[float](), list[float]()
        for row in build._dataset(refs, BATCH, plan, settings, generation, store.url).iter_rows():
            assert not row["error"], row
            times.append(time.monotonic())
            if len(times) in (warm, len(refs)):
                cpu.append(cpu_seconds())
        assert store.counts(generation)["documents"] == len(refs)
    finally:
        store.close()
        ray.shutdown()
        cluster.shutdown()
    return {
        "workers": num_workers,
        "nodes": num_nodes,
        "chunks": len(refs),
        "start_s": times[0] - started,
        "chunks_per_s": (len(times) - warm) / (times[-1] - times[warm - 1]),
        "cpu_ms": 1000 * (cpu[1] - cpu[0]) / (len(times) - warm),
        "cores": (cpu[1] - cpu[0]) / (times[-1] - times[warm - 1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--batches", type=int, default=20, help="for each worker; a batch takes 1 s")
    parser.add_argument("--measure", nargs=2, metavar=("DOCUMENTS", "HOME"), type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.workers[0], *args.measure)))
        return
    print("workers  nodes  chunks  start s  chunks/s  of ideal  efficiency  CPU ms/chunk  cores used", flush=True)
    single = 0.0
    with tempfile.TemporaryDirectory(prefix="rag-") as work:
        home = Path(work) / "home"
        env = QUIET_RAY | os.environ | {"RAY_TMPDIR": work}  # the cluster's address file must not meet another Ray
        env.pop("RAY_BACKEND_LOG_LEVEL")  # Ray would announce it
        try:
            for num_workers in args.workers:
                documents = Path(work) / f"{num_workers}"
                write_documents(documents, num_workers * args.batches * BATCH, max_sections=1)
                command = [
                    sys.executable,
                    __file__,
                    "--workers",
                    str(num_workers),
                    "--measure",
                    str(documents),
                    str(home),
                ]
                done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                single = single or found["chunks_per_s"] / num_workers
                efficiency = found["chunks_per_s"] / (num_workers * single)
                missed = "  MISSED" if num_workers <= TARGET_WORKERS and efficiency < TARGET else ""
                print(
                    f"{num_workers:7} {found['nodes']:6} {found['chunks']:7} {found['start_s']:8.1f}"
                    f" {found['chunks_per_s']:9.1f} {found['chunks_per_s'] / BATCH / num_workers:9.2f}"
                    f" {efficiency:11.2f} {found['cpu_ms']:13.1f} {found['cores']:11.2f}{missed}",
                    flush=True,
                )
        finally:
            EmbeddedServer(home).stop()


if __name__ == "__main__":
    main()
