"""The long form is `make bench-faults`: 20 runs of 2,000 documents."""

import subprocess
import sys
from pathlib import Path

FAULTS = Path(__file__).parents[2] / "benchmarks" / "faults.py"


def test_killed_workers_a_killed_driver_and_a_killed_database_lose_and_double_nothing() -> None:
    command = [
        sys.executable,
        str(FAULTS),
        "--runs",
        "1",
        "--documents",
        "320",
        "--kill-every",
        "2",
        "--skip-fault-free",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
