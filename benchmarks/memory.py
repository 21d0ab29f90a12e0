"""Peak memory of `rag ingest` as the collection grows: a job must not hold what it has not got to yet.

    python benchmarks/memory.py --documents 1000 10000 --rounds 2

Every half second the PSS of the driver and of all that it started (Ray's daemons and workers) is summed. PSS divides
a shared page between those who map it, so the object store counts once. PostgreSQL is a server of its own and is shown
beside. The embedder is a tiny one: it is the pipeline that is measured. The first size is the yardstick.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil
from corpus import build_model, write_documents

from rag.index.server import EmbeddedServer

EVERY_S = 0.5
TOLERANCE = 0.10


def pss_mib(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss) / 2**20
    except psutil.Error:
        return 0.0


def kind(process: psutil.Process) -> str:
    try:
        name = process.name()
    except psutil.Error:
        return "gone"
    if name in ("raylet", "gcs_server"):
        return name
    is_worker = name.startswith("ray::") and not name.startswith(("ray::Dash", "ray::Runtime"))
    return "workers" if is_worker else "agents"


def sample(driver: psutil.Process) -> dict[str, float]:
    """MiB by kind of process."""
    memory: dict[str, float] = defaultdict(float)
    try:
        children = driver.children(recursive=True)
    except psutil.NoSuchProcess:
        return memory
    memory["driver"] = pss_mib(driver)
    for child in children:
        memory[kind(child)] += pss_mib(child)
    return memory


def server_mib(home: Path) -> float:
    try:
        pid = int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        server = psutil.Process(pid)
        return sum(pss_mib(one) for one in (server, *server.children()))
    except (OSError, ValueError, psutil.Error):
        return 0.0


def peak(documents: Path, home: Path, model: Path) -> tuple[dict[str, float], float, float]:
    """(MiB by kind at the moment of the largest sum, the server's peak, seconds)."""
    started = time.monotonic()
    command = [sys.executable, "-m", "rag.cli", "ingest", str(documents), "--model", str(model), "--json"]
    env = os.environ | {"RAG_HOME": str(home), "RAG_EMBED__PRECISION": "fp32"}
    driver = psutil.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    largest: dict[str, float] = {}
    server = 0.0
    while driver.poll() is None:
        now = sample(driver)
        largest = now if sum(now.values()) > sum(largest.values()) else largest
        server = max(server, server_mib(home))
        time.sleep(EVERY_S)
    if driver.wait() != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {driver.wait()}")
    return largest, server, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    peaks: dict[int, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as work:
        model = build_model(Path(work) / "model")
        for number in args.documents:
            write_documents(Path(work) / str(number), number)
        for i in range(args.rounds):
            for number in args.documents if i % 2 == 0 else args.documents[::-1]:
                home = Path(work) / f"home-{number}-{i}"
                try:
                    memory, server, seconds = peak(Path(work) / str(number), home, model)
                finally:
                    EmbeddedServer(home).stop()
                peaks[number].append(sum(memory.values()))
                parts = ", ".join(f"{name} {mib:.0f}" for name, mib in sorted(memory.items()) if mib)
                print(
                    f"{number:>6} documents: {peaks[number][-1]:6.0f} MiB ({parts}),"
                    f" PostgreSQL {server:.0f}, {seconds:.0f} s",
                    flush=True,
                )
    yardstick = statistics.median(peaks[args.documents[0]])
    for number in args.documents[1:]:
        ratio = statistics.median(peaks[number]) / yardstick
        verdict = "ok" if abs(ratio - 1) <= TOLERANCE else "MISSED"
        print(f"{number} / {args.documents[0]} documents: {ratio:.2f}, expected 1 ± {TOLERANCE:.2f}: {verdict}")


if __name__ == "__main__":
    main()
