"""Kills an ingestion in every way and holds what it leaves against what it promised.

    python benchmarks/faults.py --runs 20 --documents 2000

A run ingests the same documents into a collection of its own. Every few seconds a random Ray worker of the job is
killed with probability 0.3. At a random point the driver is killed; the command is given again, in half of the runs
while what the dead driver left still ends. At a random point of the rest PostgreSQL is killed. Then the command is
repeated until it ends with status 0. The table must then be what extraction, chunking and embedding give in one plain
process, chunk by chunk: 0 lost, 0 duplicated, 0 half-indexed documents. Vectors may differ by rounding, since they
depend on what they are batched with.

Redone work: chunks whose embedding had begun when the driver was killed and begins again afterwards, of all chunks.
Counted before the work (counted.py), so a batch that was lost half-way counts whole: an upper bound.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg
from corpus import build_model, write_documents
from counted import begun

from rag.config import EmbedConfig, load_settings
from rag.index.embed import load_embedder
from rag.index.job import MIN_BATCH_BYTES
from rag.index.server import EmbeddedServer
from rag.ingest.chunks import chunk_section
from rag.ingest.extract import extract
from rag.ingest.sources import list_documents, read_document
from rag.records import Chunk

KILL_PROBABILITY = 0.3
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
SECONDS_PER_CHUNK = 0.005  # a model of 200 chunks/s: a kill lands in work and not in start-up
MAX_REDONE = 0.05
IN_FLIGHT = 4  # batches that a kill may cost, at most; more than 5 % of a job of a few hundred documents
MAX_DIFFERENCE = 1e-5  # of a component; fp32 in another batch differs by about 1e-7
MAX_ATTEMPTS = 6
ATTEMPT_TIMEOUT_S = 900.0
ORPHANS_S = 60.0  # until the workers of a killed driver are gone; Ray's agents, which write nothing, may take longer


@dataclass(frozen=True)
class Trial:
    """What all runs share."""

    home: Path
    documents: Path
    model: Path
    expected: dict[str, tuple[Chunk, np.ndarray]]  # chunk_id -> chunk, embedding
    kill_every_s: float
    max_redone: float  # share of all chunks


@dataclass
class Outcome:
    """One run. `failures` is empty where every promise held."""

    name: str
    workers_killed: int = 0
    driver_killed_at: float = 0.0  # share of all chunks whose embedding had begun
    orphans_ended_s: float | None = None  # None: the next attempt did not wait for them
    redone: float = 0.0  # share of all chunks
    database_killed_at: float = 0.0
    after_database_kill: str = ""  # exit status and last line on standard error
    attempts: int = 0
    begun: float = 0.0  # embeddings begun in all attempts, of all chunks
    largest_difference: float = 0.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


class Attempt:
    """One `rag ingest` in a process of its own, and the Ray it starts."""

    def __init__(self, trial: Trial, collection: str, ids: Path) -> None:
        ids.mkdir(parents=True, exist_ok=True)
        self.ids = ids
        self.log = ids.with_suffix(".log")
        command = [sys.executable, str(Path(__file__).with_name("counted.py")), str(ids), str(SECONDS_PER_CHUNK)]
        command += ["ingest", str(trial.documents), "--collection", collection, "--model", str(trial.model), "--json"]
        with self.log.open("w") as log:
            self.driver = psutil.Popen(command, env=environment(trial.home), stdout=log, stderr=subprocess.STDOUT)

    def workers(self) -> list[psutil.Process]:
        """Ray's worker processes: they name themselves after what they run. With an agent, its whole node would die."""
        found = []
        for process in self.tree():
            try:
                name = process.cmdline()[0]
                if name.startswith("ray::") and not name.startswith(AGENTS):
                    found.append(process)
            except (psutil.Error, IndexError):
                continue
        return found

    def tree(self) -> list[psutil.Process]:
        try:
            return list(self.driver.children(recursive=True))
        except psutil.Error:
            return []

    def last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAG_") and k != "DATABASE_URL"}
    here = {"RAG_HOME": str(home), "RAG_RAY__NUM_CPUS": "2", "RAG_EMBED__PRECISION": "fp32", "HF_HUB_OFFLINE": "1"}
    return kept | here


def expectation(documents: Path, model: Path) -> dict[str, tuple[Chunk, np.ndarray]]:
    """What has to be in the table, made in this process: no Ray, no database."""
    settings = load_settings()
    config = settings.chunk
    sections = [section for ref in list_documents(str(documents), settings) for section in extract(read_document(ref))]
    chunks = [chunk for section in sections for chunk in chunk_section(section, config)]
    embedder = load_embedder(EmbedConfig(model=str(model), precision="fp32"))
    embeddings = embedder.embed([chunk.context for chunk in chunks], "passage")
    return {chunk.chunk_id: (chunk, row) for chunk, row in zip(chunks, embeddings, strict=True)}


def watch(attempt: Attempt, kill_every_s: float, draw: random.Random, until: Callable[[], bool]) -> int:
    """Kills workers now and then until the driver ends or `until` says so; how many."""
    num_killed, next_kill = 0, time.monotonic() + kill_every_s
    deadline = time.monotonic() + ATTEMPT_TIMEOUT_S
    while attempt.driver.poll() is None and not until():
        if time.monotonic() > deadline:
            attempt.driver.kill()
            raise TimeoutError(f"an attempt took more than {ATTEMPT_TIMEOUT_S:.0f} s; see {attempt.log}")
        if time.monotonic() >= next_kill:
            next_kill += kill_every_s
            workers = attempt.workers()
            if workers and draw.random() < KILL_PROBABILITY:
                kill(draw.choice(workers))
                num_killed += 1
        time.sleep(0.05)
    return num_killed


def kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def is_alive(process: psutil.Process) -> bool:
    """Where nobody waits for orphans, they stay as zombies."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def kill_database(home: Path) -> None:
    pid = int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])
    process = psutil.Process(pid)
    assert "postgres" in process.name(), f"{pid} is {process.name()}"
    kill(process)


def run_with_faults(trial: Trial, name: str, seed: int) -> Outcome:
    """One run; see the module's docstring."""
    draw, started = random.Random(seed), time.monotonic()
    outcome, ids = Outcome(name), trial.home / "begun" / name
    _kill_driver(trial, outcome, draw, ids / "1")
    _kill_database(trial, outcome, draw, ids / "2")
    before, after = set(begun(ids / "1")), begun(ids / "2")
    outcome.attempts = 2
    while outcome.after_database_kill != "ended before it" and outcome.attempts < MAX_ATTEMPTS:
        outcome.attempts += 1
        attempt = Attempt(trial, name, ids / str(outcome.attempts))
        outcome.workers_killed += watch(attempt, trial.kill_every_s, draw, lambda: False)
        after += begun(attempt.ids)
        if attempt.driver.wait() == 0:
            break
    else:
        if outcome.attempts == MAX_ATTEMPTS:
            outcome.failures.append(f"no attempt of {MAX_ATTEMPTS} ended with 0: {attempt.last_line()}")
    num_chunks = len(trial.expected)
    outcome.redone = len(before & set(after)) / num_chunks
    outcome.begun = (len(begun(ids / "1")) + len(after)) / num_chunks
    if outcome.redone > trial.max_redone:
        outcome.failures.append(
            f"{outcome.redone:.1%} redone after the driver's kill, expected {trial.max_redone:.1%} at most"
        )
    verify(trial, outcome)
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


def _kill_driver(trial: Trial, outcome: Outcome, draw: random.Random, ids: Path) -> None:
    wanted = draw.uniform(0.05, 0.9) * len(trial.expected)
    attempt = Attempt(trial, outcome.name, ids)
    outcome.workers_killed += watch(attempt, trial.kill_every_s, draw, lambda: len(set(begun(ids))) >= wanted)
    time.sleep(draw.uniform(0, 0.3))  # not always at the beginning of a batch
    orphans = attempt.workers()
    killed_at = time.monotonic()
    kill(attempt.driver)
    if attempt.driver.wait() != -signal.SIGKILL:
        outcome.failures.append(f"attempt 1 ended with {attempt.driver.wait()}: {attempt.last_line()}")
    outcome.driver_killed_at = len(set(begun(ids))) / len(trial.expected)
    if draw.random() < 0.5:
        while any(map(is_alive, orphans)) and time.monotonic() - killed_at < ORPHANS_S:
            time.sleep(0.1)
        outcome.orphans_ended_s = round(time.monotonic() - killed_at, 1)
        outcome.failures += [f"{ORPHANS_S:.0f} s after the driver lives {one}" for one in orphans if is_alive(one)]


def _kill_database(trial: Trial, outcome: Outcome, draw: random.Random, ids: Path) -> None:
    num_left = len(trial.expected) - counts(trial, outcome.name)["chunks"]
    wanted = draw.uniform(0.05, 0.9) * num_left
    attempt = Attempt(trial, outcome.name, ids)
    outcome.workers_killed += watch(attempt, trial.kill_every_s, draw, lambda: len(begun(ids)) >= wanted)
    time.sleep(draw.uniform(0, 0.3))
    if attempt.driver.poll() is not None:
        outcome.after_database_kill = "ended before it"
        if attempt.driver.wait() != 0:
            outcome.failures.append(f"attempt 2 ended with {attempt.driver.wait()}: {attempt.last_line()}")
        return
    outcome.database_killed_at = 1 - (num_left - len(set(begun(ids)))) / len(trial.expected)
    kill_database(trial.home)
    killed_at = time.monotonic()
    outcome.workers_killed += watch(attempt, trial.kill_every_s, draw, lambda: False)
    seconds, status = time.monotonic() - killed_at, attempt.driver.wait()
    outcome.after_database_kill = f"exit {status} after {seconds:.0f} s: {attempt.last_line()}"
    if status != 1 or not attempt.last_line().startswith("error: "):
        outcome.failures.append(f"expected exit 1 and one line, found {outcome.after_database_kill}")


@contextmanager
def connection(trial: Trial) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(EmbeddedServer(trial.home).start()) as conn:
        yield conn


GENERATION = (
    "generation_id in (select generation_id from generations join collections using (collection_id) where name = %s)"
)


def counts(trial: Trial, collection: str) -> dict[str, int]:
    """What a collection holds now, and what should not be."""
    queries = {
        "chunks": f"select count(*) from chunks where {GENERATION}",
        "half-indexed documents": "select count(*) from (select doc_id from generation_documents m left join chunks c"
        f" using (generation_id, doc_id) where m.{GENERATION} group by doc_id, m.num_chunks"
        " having count(c.chunk_id) <> m.num_chunks) as half",
        "chunks without a document": f"select count(*) from chunks c where {GENERATION} and not exists (select 1 from"
        " generation_documents m where m.generation_id = c.generation_id and m.doc_id = c.doc_id)",
        "failures": f"select count(*) from failures where {GENERATION}",
    }
    with connection(trial) as conn:
        return {name: conn.execute(query, [collection]).fetchone()[0] for name, query in queries.items()}  # type: ignore[index]


def verify(trial: Trial, outcome: Outcome) -> None:
    """Puts every difference between the table and what is expected into `outcome.failures`."""
    with connection(trial) as conn:
        rows = conn.execute(
            "select chunk_id, source, start_char, end_char, title, text, embedding::text from chunks"
            f" where {GENERATION} order by source, start_char",
            [outcome.name],
        ).fetchall()
    found = {row[0]: row[1:] for row in rows}
    places = Counter((row[1], row[2]) for row in rows)
    differences = {
        "lost": sorted(set(trial.expected) - set(found)),
        "unexpected": sorted(set(found) - set(trial.expected)),
        "duplicated": [f"{source}@{start}" for (source, start), count in places.items() if count > 1],
        "altered": [
            chunk_id
            for chunk_id, (c, _) in trial.expected.items()
            if chunk_id in found and found[chunk_id][:5] != (c.source, c.start_char, c.end_char, c.title, c.text)
        ],
    }
    outcome.failures += [
        f"{len(ids)} chunks {what}: {', '.join(ids[:5])} …" for what, ids in differences.items() if ids
    ]
    both = [chunk_id for chunk_id in trial.expected if chunk_id in found]
    if both:
        stored = np.array([json.loads(found[chunk_id][5]) for chunk_id in both], np.float32)
        wanted = np.array([trial.expected[chunk_id][1] for chunk_id in both])
        outcome.largest_difference = float(np.abs(stored - wanted).max())
        if outcome.largest_difference > MAX_DIFFERENCE:
            outcome.failures.append(f"embeddings differ by {outcome.largest_difference:.1e}")
    wrong = {what: count for what, count in counts(trial, outcome.name).items() if what != "chunks" and count}
    outcome.failures += [f"{count} {what}" for what, count in wrong.items()]


def run_without_faults(trial: Trial) -> Outcome:
    started = time.monotonic()
    outcome = Outcome("no-faults", attempts=1)
    attempt = Attempt(trial, outcome.name, trial.home / "begun" / outcome.name)
    if attempt.driver.wait() != 0:
        outcome.failures.append(attempt.last_line())
    outcome.begun = len(begun(attempt.ids)) / len(trial.expected)
    verify(trial, outcome)
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


def describe(outcome: Outcome) -> str:
    orphans = "overlapped" if outcome.orphans_ended_s is None else f"{outcome.orphans_ended_s:.0f} s"
    told = (
        f"{outcome.name:>9}: {outcome.seconds:5.0f} s, {outcome.attempts} attempts,"
        f" {outcome.workers_killed} workers killed, driver at {outcome.driver_killed_at:.0%}"
        f" (rest of it: {orphans}), redone {outcome.redone:.1%},"
        f" database at {outcome.database_killed_at:.0%} ({outcome.after_database_kill}),"
        f" begun {outcome.begun:.2f} times, vectors differ by {outcome.largest_difference:.0e}: "
    )
    return told + ("ok" if not outcome.failures else "FAILED\n" + "\n".join(f"    {f}" for f in outcome.failures))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill-every", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--model", type=Path, help="an embedder's folder; a tiny one is made by default")
    parser.add_argument("--skip-fault-free", action="store_true", help="no run without faults first")
    parser.add_argument("--json", action="store_true", help="one JSON object per run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rag-faults-") as folder:
        home, documents = Path(folder) / "home", Path(folder) / "documents"
        home.mkdir()
        write_documents(documents, args.documents)
        model = args.model or build_model(Path(folder) / "model")
        num_bytes = sum(path.stat().st_size for path in documents.iterdir())
        max_redone = max(MAX_REDONE, IN_FLIGHT * MIN_BATCH_BYTES / num_bytes)
        trial = Trial(home, documents, model, expectation(documents, model), args.kill_every, max_redone)
        print(f"{args.documents} documents, {len(trial.expected)} chunks, {args.runs} runs", flush=True)
        outcomes = []
        try:
            if not args.skip_fault_free:
                outcomes.append(run_without_faults(trial))
                print(json.dumps(asdict(outcomes[-1])) if args.json else describe(outcomes[-1]), flush=True)
            for i in range(args.runs):
                outcomes.append(run_with_faults(trial, f"run-{i + 1}", args.seed + i))
                print(json.dumps(asdict(outcomes[-1])) if args.json else describe(outcomes[-1]), flush=True)
        finally:
            EmbeddedServer(home).stop()
    failed = [outcome.name for outcome in outcomes if outcome.failures]
    faulty = [outcome.redone for outcome in outcomes if outcome.name != "no-faults"]
    redone = f"; redone after the driver's kill: mean {np.mean(faulty):.1%}, most {max(faulty):.1%}" if faulty else ""
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} runs kept every promise{redone}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
