import gzip
import subprocess
import sys

import fsspec
import pytest

from rag.config import load_settings
from rag.errors import ExtractionError, SourceError
from rag.ingest.remote import canonical_remote, list_remote, read_remote
from rag.ingest.sources import list_documents, read_document
from rag.records import Document, DocumentRef


@pytest.fixture
def memory():
    """fsspec's file system in memory, empty."""
    files = fsspec.filesystem("memory")
    yield files
    for path in files.ls("/", detail=False):
        files.rm(path, recursive=True)


@pytest.fixture
def listed(tmp_path):
    settings = load_settings(home=tmp_path / "home")
    return lambda source: list(list_documents(source, settings))


def test_the_documents_below_a_url_are_listed_in_order_and_read(memory, listed):
    for name in ("b.md", "a b.html", "c.png", ".x.md", "sub/d.txt", ".git/e.md", "node_modules/f.md", "a/g#1?.md"):
        memory.pipe(f"/bucket/docs/{name}", name.encode())
    memory.pipe("/bucket/docs2/z.md", b"z")
    refs = listed("memory://bucket/docs/")
    assert [(ref.source, ref.mime) for ref in refs] == [
        ("memory://bucket/docs/a%20b.html", "text/html"),
        ("memory://bucket/docs/b.md", "text/markdown"),
        ("memory://bucket/docs/a/g%231%3F.md", "text/markdown"),
        ("memory://bucket/docs/sub/d.txt", "text/plain"),
    ]
    assert [read_document(ref).content for ref in refs] == [b"a b.html", b"b.md", b"a/g#1?.md", b"sub/d.txt"]


def test_one_object_is_a_document(memory, listed):
    memory.pipe("/bucket/a b.md", b"text")
    for source in ("memory://bucket/a b.md", "MEMORY:///bucket/a%20b.md"):
        (ref,) = listed(source)
        assert ref == DocumentRef("memory://bucket/a%20b.md", "text/markdown", path="memory://bucket/a b.md")
        assert read_document(ref) == Document("memory://bucket/a%20b.md", "text/markdown", b"text")


def test_a_later_run_sees_what_has_changed(memory, listed):
    memory.pipe("/bucket/a.md", b"old")
    assert len(listed("memory://bucket")) == 1
    memory.pipe({"/bucket/a.md": b"new", "/bucket/b.md": b"b"})
    assert [read_document(ref).content for ref in listed("memory://bucket")] == [b"new", b"b"]


def test_rows_of_a_remote_file_are_fetched_once_and_again_when_it_has_changed(memory, listed):
    row = b'{"id": 7, "text": "one"}'
    for name, content in (("rows.jsonl", row), ("rows.jsonl.gz", gzip.compress(row))):
        memory.pipe(f"/bucket/{name}", content)
        (ref,) = listed(f"memory://bucket/{name}")
        assert (ref.source, read_document(ref).content) == (f"memory://bucket/{name}?id=7", row)
        assert listed(f"memory://bucket/{name}") == [ref]
    memory.pipe("/bucket/rows.jsonl", b'{"id": 8, "text": "two"}')
    (ref,) = listed("memory://bucket/rows.jsonl")
    assert read_document(ref).content == b'{"id": 8, "text": "two"}'
    assert listed("memory://bucket/rows.jsonl.gz")[0].source.endswith("?id=7")


def test_a_file_url_is_the_local_file(tmp_path, listed):
    (tmp_path / "a.md").write_text("text")
    assert listed(tmp_path.as_uri()) == listed(str(tmp_path))


def test_an_object_that_is_too_large_or_gone_has_a_reason(memory):
    memory.pipe("/bucket/vast.md", bytes(64 * 2**20 + 1))
    with pytest.raises(ExtractionError, match="expected at most 67108864 bytes, found 67108865; split the file"):
        read_remote("memory://bucket/vast.md")
    with pytest.raises(ExtractionError, match="cannot be read: no longer there"):
        read_remote("memory://bucket/gone.md")


@pytest.mark.parametrize(
    ("source", "canonical"),
    [
        ("S3://bucket/a//b/", "s3://bucket/a//b"),
        ("s3a://bucket/100% sure", "s3://bucket/100%25%20sure"),
        ("gcs://bucket/%C3%BC", "gs://bucket/%C3%BC"),
        ("gs://bucket/ü", "gs://bucket/%C3%BC"),
        ("sftp://user:secret@host/docs", "sftp://host/docs"),
        ("s3://arn:aws:s3:eu-west-1:1:accesspoint/x/docs", "s3://arn:aws:s3:eu-west-1:1:accesspoint/x/docs"),
        ("abfs://container@account.dfs.core.windows.net/docs", "abfs://container@account.dfs.core.windows.net/docs"),
        ("memory:///a", "memory://a"),
    ],
)
def test_a_place_has_one_name_without_a_login(source, canonical):
    assert canonical_remote(source) == canonical_remote(canonical) == canonical


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("memory://bucket/none", "memory://bucket/none: expected files, found nothing; check the address"),
        ("memory://bucket/images", "memory://bucket/images: expected files ending in"),
        ("memory://bucket/images/a.png", "found '.png', which is not supported yet; convert the file first"),
        ("memory://bucket/a.md?token=s3cret", "memory://bucket/a.md: expected no ? or #, found one"),
        ("memory://bucket/a.md::file://x", "expected a plain address, found :: or control characters"),
        ("zip://a.md", "zip://: expected one of abfs://"),
        ("s3://key:s3/s3cret@bucket", "s3://: expected a bucket, found a login before it"),
        (
            "sftp://user:s3cret@host/docs",
            "sftp://host/docs: expected a client for it, found none; pip install 'paramiko'",
        ),
    ],
)
def test_what_cannot_be_listed_is_refused_in_one_line(memory, tmp_path, source, reason):
    memory.pipe("/bucket/images/a.png", b"image")
    with pytest.raises(SourceError) as caught:
        list_remote(source, tmp_path)
    assert reason in str(caught.value)
    assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("source", "extra"), [("s3://bucket", "s3fs"), ("gs://bucket", "gcsfs")])
def test_a_client_that_is_missing_is_named(tmp_path, source, extra):
    program = (
        "import sys; sys.modules['s3fs'] = sys.modules['gcsfs'] = None\n"
        "from pathlib import Path; from rag.ingest.remote import list_remote\n"
        "try: list_remote(sys.argv[1], Path(sys.argv[2]))\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program, source, str(tmp_path)], capture_output=True, check=True)
    assert done.stdout.decode() == f"{source}: expected a client for it, found none; pip install '{extra}'\n"


class FailsBelow(fsspec.get_filesystem_class("memory")):
    """A store one folder of which cannot be listed; fsspec's own `walk` would leave that out in silence."""

    protocol = "memory"

    def ls(self, path, detail=True, **kwargs):
        if path.endswith("/closed"):
            raise PermissionError("403 for //user:s3cret@host/closed")
        return super().ls(path, detail, **kwargs)


def test_a_folder_that_cannot_be_listed_stops_the_run(memory, tmp_path):
    memory.pipe({"/bucket/a.md": b"a", "/bucket/closed/b.md": b"b"})
    fsspec.register_implementation("memory", FailsBelow, clobber=True)
    try:
        with pytest.raises(SourceError) as caught:
            list(list_remote("memory://bucket", tmp_path))
    finally:
        fsspec.register_implementation("memory", FailsBelow.__mro__[1], clobber=True)
    assert str(caught.value) == (
        "memory://bucket: expected files that can be read,"
        " found this: PermissionError: 403 for //...@host/closed; check address and credentials"
    )


class Refuses(fsspec.get_filesystem_class("memory")):
    """A server that repeats the login, as FTP servers do."""

    protocol = "memory"

    def info(self, path, **kwargs):
        raise PermissionError("530 Login bob with password hunter 2\nrefused: hunter%202")


def test_a_login_that_the_server_repeats_is_not_in_the_message(tmp_path):
    fsspec.register_implementation("memory", Refuses, clobber=True)
    try:
        with pytest.raises(SourceError) as caught:
            list_remote("memory://bob:hunter%202@host/docs", tmp_path)
    finally:
        fsspec.register_implementation("memory", Refuses.__mro__[1], clobber=True)
    assert str(caught.value) == (
        "memory://host/docs: expected files that can be read, found this:"
        " PermissionError: 530 Login ... with password ...; check address and credentials"
    )


def test_remote_rows_packed_too_small_to_be_rows_are_refused(memory, listed, monkeypatch):
    monkeypatch.setattr("rag.ingest.files.MANY_BYTES", 0)
    memory.pipe("/bucket/rows.jsonl.gz", gzip.compress(b"\n" * 5_000_000))
    with pytest.raises(SourceError, match="^memory://bucket/rows.jsonl.gz: expected at most .* bytes, unpacked from"):
        listed("memory://bucket/rows.jsonl.gz")
