"""How the pipeline scales from 1 to 32 embedding workers, on nodes that are simulated on this machine.

    python benchmarks/scaling.py                         # 1 2 4 8 16 32 workers, four on a node
    python benchmarks/scaling.py --workers 1 16 --batches 10

Extraction, chunking, scheduling, transport and writing are the product's (`rag.index.job.run_job`), on a real Ray of
several nodes (`ray.cluster_utils.Cluster`: one raylet and one object store each, logical CPUs). Two things are
replaced. The embedding: an actor waits a fixed time per chunk, as if a GPU computed. And the plan: n actors of 1 CPU,
for the nodes have no more. So what is measured is whether the pipeline keeps n workers busy. What it cannot show is the
network, and the disks and CPUs of separate machines.

A batch is 16 chunks. It has to take so long that this machine's cores feed all workers: n workers ask for
16 n / SECONDS chunks/s, and each chunk costs `CPU ms/chunk` of real work. Where `cores used` comes near the number of
cores, it is the machine that is measured and not the pipeline; then repeat with more --seconds.

Work grows with the workers, `--batches` for each. The clock runs from the first fifth of the documents to the last
one, by the manifest's own times: start-up is excluded (it is sequential here, and parallel on real nodes), the idle
end included. efficiency(n) = throughput(n) / (n * throughput(1)); `of ideal` is throughput(n) / (16 n / SECONDS).
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from corpus import write_documents

from rag.config import load_settings
from rag.index import job, stages
from rag.index.cluster import QUIET_RAY, TASK_CPUS, EmbedPlan
from rag.index.database import open_database
from rag.index.fingerprint import Fingerprint
from rag.index.generations import ensure_generation
from rag.index.server import EmbeddedServer
from rag.index.store import Store
from rag.records import DocumentRef

BATCH = 16  # documents of one chunk each
DIM = 384
WORKERS_PER_NODE = 4
SPARE_CPUS = 4 * TASK_CPUS  # of a node, for extraction and writing
TARGET, TARGET_WORKERS = 0.9, 16
WAIT = "RAG_BENCH_SECONDS_PER_CHUNK"


class FixedTimeEmbedChunks:
    """In the place of `rag.index.job.EmbedChunks`: same rows out, after a fixed time for each chunk."""

    def __init__(self, *_: Any) -> None:
        self.row = np.full((1, DIM), DIM**-0.5, np.float32)

    def __call__(self, batch: Any) -> Any:
        started = time.time()
        numbers = [len(json.loads(text)) for text in batch.column("chunks").to_pylist()]
        time.sleep(float(os.environ[WAIT]) * sum(numbers))
        return stages.with_embeddings(batch, [self.row.repeat(n, axis=0) for n in numbers], started, [0] * len(numbers))


class CpuClock:
    """CPU seconds of this process and its descendants (raylets, workers) over time; PostgreSQL is not among them."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        used: dict[int, float] = {}  # by pid, of processes that ended too
        while True:
            for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    used[process.pid] = sum(process.cpu_times()[:2])
            self.samples.append((time.time(), sum(used.values())))
            time.sleep(0.5)

    def between(self, start: float, end: float) -> float:
        times, used = zip(*self.samples, strict=True)
        return float(np.interp(end, times, used) - np.interp(start, times, used))


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
    ray.data.DataContext.get_current().wait_for_min_actors_s = 600  # all of them, before work begins
    job.plan_embedding = lambda *_: EmbedPlan(num_workers, 1, 0, 1)
    job.EmbedChunks = FixedTimeEmbedChunks  # type: ignore[misc,assignment]
    settings, clock, started = load_settings(home=home, collection=f"workers-{num_workers}"), CpuClock(), time.time()
    store = Store(open_database(settings))
    try:
        fingerprint = Fingerprint("fixed time", "", "", True, "", "", DIM, 256)
        generation = ensure_generation(store, settings.collection, {}, asdict(fingerprint), DIM)
        refs = [DocumentRef(p.as_uri(), "text/markdown", str(p)) for p in sorted(documents.iterdir())]
        as_if_bytes = len(refs) * job.MIN_BATCH_BYTES // BATCH  # so that the job makes batches of BATCH
        result = job.run_job(refs, as_if_bytes, settings, generation, store)
        assert (result.num_chunks, result.failures) == (len(refs), [])
        with store.pool.connection() as conn:
            query = "select extract(epoch from indexed_at)::float8 from generation_documents where generation_id = %s"
            times = sorted(row[0] for row in conn.execute(query, [generation.generation_id]))
    finally:
        store.close()
        ray.shutdown()
        cluster.shutdown()
    first, last = times[len(times) // 5], times[-1]
    num_timed = sum(at > first for at in times)
    cpu_s = clock.between(first, last)
    return {
        "nodes": num_nodes,
        "chunks": len(refs),
        "start_s": times[0] - started,
        "chunks_per_s": num_timed / (last - first),
        "busy": result.embed_busy,
        "cpu_ms": 1000 * cpu_s / num_timed,
        "cores": cpu_s / (last - first),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--batches", type=int, default=12, help="for each worker")
    parser.add_argument("--seconds", type=float, default=8.0, help="that a batch of 16 chunks takes")
    parser.add_argument("--measure", nargs=2, metavar=("DOCUMENTS", "HOME"), type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.workers[0], *args.measure)))
        return
    print(f"{os.cpu_count()} cores, {args.seconds:g} s for a batch of {BATCH} chunks")
    print("workers nodes chunks start_s chunks/s of_ideal busy efficiency CPU_ms/chunk cores_used", flush=True)
    single = 0.0
    with tempfile.TemporaryDirectory(prefix="rag-") as work:
        home = Path(work) / "home"
        # The cluster's address file must not meet another Ray's.
        env = QUIET_RAY | os.environ | {"RAY_TMPDIR": work, WAIT: str(args.seconds / BATCH)}
        env.pop("RAY_BACKEND_LOG_LEVEL")  # Ray would announce it
        try:
            for n in args.workers:
                documents = Path(work) / f"{n}"
                write_documents(documents, n * args.batches * BATCH, max_sections=1)
                command = [sys.executable, __file__, "--workers", str(n), "--measure", str(documents), str(home)]
                done = subprocess.run(command, env=env, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(done.stderr)
                found = json.loads(done.stdout.splitlines()[-1])
                rate = found["chunks_per_s"]
                single = single or rate / n
                missed = "  MISSED" if n <= TARGET_WORKERS and rate / (n * single) < TARGET else ""
                print(
                    f"{n:7} {found['nodes']:5} {found['chunks']:6} {found['start_s']:7.1f} {rate:8.1f}"
                    f" {rate * args.seconds / BATCH / n:8.2f} {found['busy']:4.2f} {rate / (n * single):10.2f}"
                    f" {found['cpu_ms']:12.1f} {found['cores']:10.2f}{missed}",
                    flush=True,
                )
        finally:
            EmbeddedServer(home).stop()


if __name__ == "__main__":
    main()
