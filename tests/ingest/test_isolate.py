"""The child process: what it survives, and what becomes of it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from samples import docx_parts, paragraph, pdf, zipped

from rag.errors import ExtractionError
from rag.ingest.isolate import IsolatedReader, read_isolated
from rag.ingest.mimes import DOCX
from rag.records import Document

SMALL = Document("file:///a.md", "text/markdown", b"# A\ntext")
SLOW = Document("file:///slow.md", "text/markdown", b"# " + b"[" * 300_000)  # minutes
SLOWER = Document("file:///slow.md", "text/markdown", b"# " + b"[" * 30_000)  # about a second


@pytest.fixture
def make_reader() -> Iterator[Callable[..., IsolatedReader]]:
    made: list[IsolatedReader] = []

    def make(**limits: float) -> IsolatedReader:
        made.append(IsolatedReader(**limits))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for reader in made:
        reader.close()


def pid(reader: IsolatedReader) -> int:
    """Waits until the reader has a child."""
    deadline = time.monotonic() + 30
    while reader.child is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reader.child is not None
    return reader.child.pid


def kill_soon(reader: IsolatedReader, number: int) -> threading.Thread:
    thread = threading.Thread(target=lambda: os.kill(pid(reader), number))
    thread.start()
    return thread


def test_one_child_reads_many_documents(make_reader):
    reader = make_reader()
    assert [section.source for section in reader.read(SMALL, "Markdown")] == ["file:///a.md#a"]
    first = pid(reader)
    with pytest.raises(ExtractionError, match="damaged PDF"):
        reader.read(Document("file:///a.pdf", "application/pdf", b"%PDF-"), "PDF")
    assert reader.read(SMALL, "Markdown") and pid(reader) == first


def test_a_document_that_takes_too_long_is_given_up_and_the_next_is_read(make_reader):
    reader = make_reader(timeout_s=1.5)
    with pytest.raises(ExtractionError, match=r"^took longer than 1\.5 s$"):
        reader.read(SLOW, "Markdown")
    assert reader.child is None
    reader.timeout_s = 60
    assert reader.read(SMALL, "Markdown")


def test_a_crash_is_a_reason_and_the_next_document_is_read(make_reader):
    reader = make_reader()
    thread = kill_soon(reader, signal.SIGSEGV)
    with pytest.raises(ExtractionError, match=r"^crashed the Markdown reader \(signal 11\)$"):
        reader.read(SLOW, "Markdown")
    thread.join()
    assert reader.read(SMALL, "Markdown")


def test_a_crash_that_another_document_may_have_caused_is_tried_again_in_a_fresh_child(make_reader):
    reader = make_reader()
    reader.read(SMALL, "Markdown")
    os.kill(pid(reader), signal.SIGKILL)  # while it is idle
    assert reader.read(SMALL, "Markdown")
    thread = kill_soon(reader, signal.SIGABRT)  # while it is busy, or a little before
    assert len(reader.read(SLOWER, "Markdown")) == 1
    thread.join()


def test_a_document_that_needs_too_much_memory_says_so(make_reader):
    reader = make_reader(memory_bytes=2**26)
    content = zipped(docx_parts("".join(paragraph(f"{n}") for n in range(200_000))))
    with pytest.raises(ExtractionError, match=r"^needs more than 0\.0625 GiB of memory$"):
        reader.read(Document("file:///a.docx", DOCX, content), "DOCX")
    assert 2**25 < reader.peak_bytes < 2**27
    assert reader.child is None  # it does not stay as large as it got
    assert reader.read(SMALL, "Markdown")


def test_a_document_whose_sections_need_too_much_memory_to_be_told_says_so(make_reader):
    reader = make_reader(memory_bytes=2**26)
    with pytest.raises(ExtractionError, match=r"^needs more than 0\.0625 GiB of memory$"):
        reader.read(Document("file:///a.txt", "text/plain", b'"' * 12_000_000), "text")  # each is told as two


def test_the_links_of_a_page_are_read_too(make_reader):
    page = Document("https://d.org/a/", "text/html", b"<a href=b rel=x>b</a><meta name=robots content=noindex>")
    assert make_reader().ask("links", page, "HTML") == {
        "links": ["https://d.org/a/b"],
        "canonical": None,
        "is_noindex": True,
        "is_nofollow": False,
    }


def test_threads_take_turns(make_reader):
    reader = make_reader()
    found: list[str] = []

    def read(number: int) -> None:
        document = Document(f"file:///{number}.pdf", "application/pdf", pdf([f"Page of {number}"]))
        found.extend(section.text for section in reader.read(document, "PDF"))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"Page of {number}" for number in range(8)]


def test_a_forked_process_has_a_child_of_its_own(make_reader):
    reader = make_reader()
    reader.read(SMALL, "Markdown")
    theirs = pid(reader)
    forked = os.fork()
    if forked == 0:
        is_good = bool(reader.read(SMALL, "Markdown")) and pid(reader) != theirs
        reader.close()
        os._exit(0 if is_good else 1)
    assert os.waitpid(forked, 0)[1] == 0
    assert reader.read(SMALL, "Markdown") and pid(reader) == theirs


PARENT = """
import time
from rag.ingest import isolate
from rag.records import Document
isolate.read_isolated(Document("file:///a.md", "text/markdown", b"text"), "Markdown")
print(isolate._reader("sections").child.pid, flush=True)
time.sleep(60)
"""


def test_the_child_ends_with_its_parent():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=os.getcwd()) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_the_child_loads_no_heavy_library_and_may_write_no_file():
    assert read_isolated(SMALL, "Markdown")
    code = "import sys, rag.ingest.extract; print({'torch', 'ray', 'numpy', 'pandas', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"set()\n"
    import resource

    from rag.ingest.isolate import _reader

    child = _reader("sections").child
    assert child is not None
    assert psutil.Process(child.pid).rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
    assert psutil.Process(child.pid).rlimit(psutil.RLIMIT_AS)[0] < 2**31
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0  # ours is untouched
