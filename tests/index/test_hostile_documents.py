"""Documents made to hurt, through the whole job: each ends in the ledger with its reason, the good one gets in."""

import io
import os
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from rag.config import Settings
from rag.index.build import ingest

pytestmark = pytest.mark.usefixtures("ray_here")

GIB = 2**30
LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
BILLION_LAUGHS = f'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY l0 "ha">{LAUGHS}]><d>&l9;</d>'
TYPES = (
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Override'
    ' PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.'
    'wordprocessingml.document.main+xml"/></Types>'
)
RELATIONS = (
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r"'
    ' Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"'
    ' Target="word/document.xml"/></Relationships>'
)


def docx(document: bytes, *others: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", TYPES)
        archive.writestr("_rels/.rels", RELATIONS)
        archive.writestr("word/document.xml", document)
        for name, content in others:
            archive.writestr(name, content)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "inner" / "docs"
    folder.mkdir(parents=True)
    (folder / "good.md").write_text("# Penguins\n\nPenguins live in the Antarctic.\n")
    (folder / "bomb.docx").write_bytes(docx(b"0" * 200_000_000))
    (folder / "climber.docx").write_bytes(docx(b"<broken", ("../../climbed.txt", b"up"), ("/climbed.txt", b"up")))
    (folder / "laughs.docx").write_bytes(docx(BILLION_LAUGHS.encode()))
    (folder / "deep.html").write_text("<div>" * 100_000 + "deep")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\n1 0 obj\n<</Type/Catalog/Pages 1 0 R>>\ntrailer<</Root 1 0 R>>")
    (folder / "nul.txt").write_bytes(b"\0" * 1000)
    (folder / "picture.md").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    with (folder / "line.txt").open("wb") as line:  # sparse: a gigabyte without a line end
        line.truncate(GIB)
    (folder / "loop").symlink_to(folder)
    (folder / "out.md").symlink_to("/etc/hostname")
    return folder


@contextmanager
def peak_rss() -> Iterator[list[int]]:
    """The largest resident size of any process that this one started, in bytes."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                try:
                    peak[0] = max(peak[0], process.memory_info().rss)
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def test_hostile_documents_end_in_the_ledger_and_stop_nothing(folder: Path, settings: Settings) -> None:
    before = {path for path in folder.parent.parent.rglob("*") if not path.is_symlink()}
    started = time.monotonic()
    with peak_rss() as peak:
        report = ingest([str(folder)], settings)
    assert time.monotonic() - started < 120
    reasons = {Path(f["source"]).name: f["reason"] for f in report.failures}
    assert report.documents["new"] == 1
    assert set(reasons) == {
        "bomb.docx",
        "broken.pdf",
        "climber.docx",
        "deep.html",
        "laughs.docx",
        "line.txt",
        "nul.txt",
        "out.md",
        "picture.md",
    }
    assert all(reasons.values()), reasons
    assert "at most 67108864 bytes" in reasons["line.txt"]
    assert "a link that leaves" in reasons["out.md"]
    assert {path for path in folder.parent.parent.rglob("*") if not path.is_symlink()} == before
    assert not os.path.exists("/climbed.txt")
    assert peak[0] < 2.5 * GIB
    assert ingest([str(folder)], settings).documents["unchanged"] == 1  # nothing is tried twice
    for name, reason in sorted(reasons.items()):
        print(f"{name}: {reason}")
