"""A document in, its sections or links out, read in a child process that may crash, hang or run out of memory alone.

One child serves many documents and is replaced after a crash, a timeout or a very large one. Both sides speak
over pipes: a line of JSON and the document's bytes one way; the other way, each as its length and JSON, how it went
and the result.

Not a sandbox against a reader that is taken over: the child runs as the same user. Its memory is limited where the
system enforces RLIMIT_AS (Linux does, macOS does not); its time is limited everywhere.
"""

import atexit
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

from rag.errors import ExtractionError
from rag.records import Document, Section

Task = Literal["sections", "links"]
TIMEOUT_S: dict[Task, float] = {
    "sections": 60.0,  # for one document
    "links": 10.0,  # a page of 20 MB takes one; a crawl waits for each of its pages
}
MEMORY_BYTES = 2**30  # above what the child needs to start
BLOATED_BYTES = 256 * 2**20  # a child that keeps more than this ends after its document
ORPHAN_S = 5.0  # a busy child whose parent was killed ends so long after the timeout
OUT_OF_MEMORY = (b"MemoryError", b"memory allocation of", b"bad_alloc", b"out of memory", b"Out of memory")

# The parent's package, wherever it was imported from, and nothing from the current folder (-P).
BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); import rag; del sys.path[0];"
    "from rag.ingest.isolate import serve; serve(int(sys.argv[2]), float(sys.argv[3]))"
)
PACKAGE_FOLDER = str(Path(__file__).parents[2])


class IsolatedReader:
    """A child process, started when it is first needed. Threads take turns."""

    def __init__(self, timeout_s: float = TIMEOUT_S["sections"], memory_bytes: int = MEMORY_BYTES) -> None:
        self.timeout_s = timeout_s
        self.memory_bytes = memory_bytes
        self.child: subprocess.Popen[bytes] | None = None
        self.peak_bytes = 0  # of the child, when it last replied; 0 where the system does not tell
        self._owner = 0  # a fork of this process must not talk to the same child
        self._num_read = 0  # by this child
        self._lock = threading.Lock()

    def read(self, document: Document, kind: str) -> list[Section]:
        """What `split_document` gives; ExtractionError where it fails in any way. `kind` names the reader: PDF."""
        return [Section(**section) for section in self.ask("sections", document, kind)]

    def ask(self, task: Task, document: Document, kind: str) -> Any:
        """What the task gives, as JSON has it."""
        with self._lock:
            try:
                return self._ask(task, document, kind)
            except _Ended as ended:
                if ended.is_final:
                    raise ExtractionError(str(ended)) from None
            try:
                return self._ask(task, document, kind)
            except _Ended as ended:
                raise ExtractionError(str(ended)) from None

    def _ask(self, task: Task, document: Document, kind: str) -> Any:
        child = self._start()
        is_first = self._num_read == 0
        self._num_read += 1
        _said(child)  # what it said before is not about this document
        reply, is_late = _exchange(child, task, document, self.timeout_s)
        if is_late or reply is None:
            reason = self._end(child, kind, is_late)
            # what another document left behind in the child is not this one's fault: it gets a fresh child
            raise _Ended(reason, is_final=is_late or is_first)
        self.peak_bytes = reply["peak_bytes"]
        if reply["is_last"]:
            self.close()
        if reply["needs_memory"]:
            raise _Ended(_needs_memory(self.memory_bytes), is_final=is_first)
        if reply["error"]:
            raise ExtractionError(reply["error"])
        return reply["result"]

    def _start(self) -> subprocess.Popen[bytes]:
        if self.child is not None and self._owner == os.getpid() and self.child.poll() is None:
            return self.child
        if self._owner == os.getpid():
            self.close()
        limits = [str(self.memory_bytes), str(self.timeout_s)]
        command = [sys.executable, "-P", "-c", BOOT, PACKAGE_FOLDER, *limits]
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        os.set_blocking(_open(self.child.stderr).fileno(), False)
        self._owner, self._num_read = os.getpid(), 0
        return self.child

    def _end(self, child: subprocess.Popen[bytes], kind: str, is_late: bool) -> str:
        """Why the child gave no reply."""
        if not is_late:
            _wait(child)
        said = _said(child)
        self.close()
        if is_late:
            return f"took longer than {self.timeout_s:g} s"
        if any(words in said for words in OUT_OF_MEMORY):
            return _needs_memory(self.memory_bytes)
        status = child.returncode
        return f"crashed the {kind} reader ({f'signal {-status}' if status < 0 else f'exit status {status}'})"

    def close(self) -> None:
        """Ends the child, if there is one; the next document starts another."""
        child, self.child = self.child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            with suppress(OSError):  # what was left to write has no reader
                _open(pipe).close()


class _Ended(Exception):
    def __init__(self, reason: str, is_final: bool) -> None:
        super().__init__(reason)
        self.is_final = is_final


@cache
def _reader(task: Task) -> IsolatedReader:
    reader = IsolatedReader(TIMEOUT_S[task])
    atexit.register(reader.close)
    return reader


def read_isolated(document: Document, kind: str) -> list[Section]:
    """As `IsolatedReader.read`, by the one child that this process has for it."""
    return _reader("sections").read(document, kind)


def ask_isolated(task: Task, document: Document, kind: str) -> Any:
    """As `IsolatedReader.ask`, by the one child that this process has for such tasks."""
    return _reader(task).ask(task, document, kind)


def _exchange(child: subprocess.Popen[bytes], task: Task, document: Document, timeout_s: float) -> tuple[Any, bool]:
    """(the reply or None, whether the time was up)."""
    is_late = threading.Event()

    def give_up() -> None:
        is_late.set()
        child.kill()

    timer = threading.Timer(timeout_s, give_up)
    timer.daemon = True
    timer.start()
    try:
        header = {"task": task, "source": document.source, "mime": document.mime, "num_bytes": len(document.content)}
        requests, replies = _open(child.stdin), _open(child.stdout)
        requests.write(json.dumps(header).encode() + b"\n")
        requests.write(document.content)
        requests.flush()
        reply, result = (json.loads(_read_message(replies)) for _ in range(2))
        return reply | {"result": result}, is_late.is_set()
    except (OSError, EOFError):
        return None, is_late.is_set()
    finally:
        timer.cancel()
        timer.join()  # so that it cannot kill the child in the middle of the next document


def _read_message(pipe: IO[bytes]) -> bytes:
    return _read_exactly(pipe, struct.unpack("!Q", _read_exactly(pipe, 8))[0])


def _read_exactly(pipe: IO[bytes], num_bytes: int) -> bytes:
    content = pipe.read(num_bytes)
    if len(content) < num_bytes:
        raise EOFError
    return content


def _wait(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(ORPHAN_S)
    except subprocess.TimeoutExpired:  # it has closed its pipes and lives on
        child.kill()
    child.wait()


def _said(child: subprocess.Popen[bytes]) -> bytes:
    """What the child wrote to standard error and nobody has read yet."""
    return _open(child.stderr).read() or b""


def _open(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # each is a PIPE
    return pipe


def _needs_memory(memory_bytes: int) -> str:
    return f"needs more than {memory_bytes / 2**30:g} GiB of memory"


# The child


def serve(memory_bytes: int, timeout_s: float) -> None:
    """Reads documents from standard input until it ends."""
    import warnings

    # both import this module
    from rag.ingest.extract import split_document
    from rag.ingest.web_page import page_links

    tasks: dict[Task, Callable[[Document], Any]] = {"sections": split_document, "links": page_links}
    warnings.simplefilter("ignore")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    os.set_blocking(2, False)  # nobody reads along: when the pipe is full, the rest is dropped
    _limit(memory_bytes)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; its end closes standard input
    requests = sys.stdin.buffer
    while line := requests.readline():
        signal.setitimer(signal.ITIMER_REAL, timeout_s + ORPHAN_S)
        header = json.loads(line)
        document = Document(header["source"], header["mime"], requests.read(header["num_bytes"]))
        reply, result = _reply(document, tasks[header["task"]])
        del document
        signal.setitimer(signal.ITIMER_REAL, 0)
        for body in (json.dumps(reply).encode(), result):
            replies.write(struct.pack("!Q", len(body)))
            replies.write(body)
        replies.flush()
        if reply["is_last"]:
            break


def _reply(document: Document, task: Callable[[Document], Any]) -> tuple[dict[str, Any], bytes]:
    """(how it went, the result as JSON)."""
    result, error, needs_memory = b"null", "", False
    try:
        result = json.dumps(task(document), ensure_ascii=False, default=asdict).encode("utf-8", "replace")
    except ExtractionError as reason:
        error = str(reason)
    except MemoryError:
        needs_memory = True
    except RecursionError:
        error = "nested too deep"
    except BaseException as bug:  # a panic of Rust code is no Exception
        error = f"{type(bug).__name__}: {bug}"
    reply = {
        "error": error,
        "needs_memory": needs_memory,
        "peak_bytes": _memory("VmHWM"),
        "is_last": needs_memory or _memory("VmRSS") > BLOATED_BYTES,
    }
    return reply, result


def _limit(memory_bytes: int) -> None:
    import resource

    wanted = {
        resource.RLIMIT_AS: _memory("VmSize") + memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,  # nothing is ever written to disk
    }
    for limit, most in wanted.items():
        with suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS; a lower limit may be in force
            resource.setrlimit(limit, (most, most))


def _memory(name: str) -> int:
    """Bytes, from /proc; 0 where there is none."""
    with suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0
