"""What a second `rag ingest` costs: of the first, nothing changed, and 1 % of the documents changed.

    python benchmarks/unchanged.py --documents 2000 --rounds 3

The documents are docstrings of the installed `ray` package, each a file. The times are those of the whole command.
The machine's precision has been measured and the database been made before the first run, which both would prolong it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rag.config import load_settings
from rag.index.server import EmbeddedServer
from rag.ingest.sources import list_documents

UNCHANGED, CHANGED = 0.03, 0.06  # of the first run's time, at most


def write_docstrings(folder: Path, num_documents: int) -> list[Path]:
    folder.mkdir()
    refs = [ref for ref in list_documents("python:ray", load_settings()) if ref.content]
    every = max(1, len(refs) // num_documents)
    paths = []
    for ref in refs[::every][:num_documents]:
        path = folder / f"{ref.source.removeprefix('python:')}.txt"
        path.write_bytes(ref.content or b"")
        paths.append(path)
    return paths


def ingest(source: Path, home: Path, collection: str = "default") -> tuple[float, dict[str, int], int]:
    """(seconds of the command, its counts of documents, chunks embedded)."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "rag.cli", "ingest", str(source), "--collection", collection, "--json"],
        env=os.environ | {"RAG_HOME": str(home)},
        stdout=subprocess.PIPE,
        check=True,
    )
    report = json.loads(done.stdout)
    return time.perf_counter() - started, report["documents"], report["chunks_embedded"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3, help="of both kinds of second run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as work:
        folder, home = Path(work) / "docstrings", Path(work) / "home"
        paths = write_docstrings(folder, args.documents)
        try:
            ingest(paths[0], home, "warm-up")
            first, documents, num_chunks = ingest(folder, home)
            print(f"first run     {first:7.1f} s  {documents['new']} documents, {num_chunks} chunks", flush=True)
            num_changed = max(1, len(paths) // 100)
            unchanged, changed = [], []
            for i in range(args.rounds):
                seconds, documents, num_embedded = ingest(folder, home)
                assert (documents["unchanged"], num_embedded) == (len(paths), 0), documents
                unchanged.append(seconds)
                print(f"unchanged     {seconds:7.1f} s  {seconds / first:.1%} of the first", flush=True)
                for path in paths[i :: len(paths) // num_changed][:num_changed]:
                    path.write_text(f"{path.read_text()}\n\nEdition {i + 2}.\n")
                seconds, documents, num_embedded = ingest(folder, home)
                assert documents["changed"] == num_changed, documents
                changed.append(seconds)
                print(f"1 % changed   {seconds:7.1f} s  {seconds / first:.1%} of the first", flush=True)
        finally:
            EmbeddedServer(home).stop()
    for what, times, target in (("unchanged", unchanged, UNCHANGED), ("1 % changed", changed, CHANGED)):
        ratio = statistics.median(times) / first
        verdict = "ok" if ratio <= target else "MISSED"
        print(f"{what}: median {ratio:.1%} of the first run, expected {target:.0%} at most: {verdict}")


if __name__ == "__main__":
    main()
