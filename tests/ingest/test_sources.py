import os

import pytest

from rag.errors import ExtractionError, SourceError
from rag.ingest.sources import canonical_source, list_documents, read_document
from rag.records import Document, DocumentRef


def write(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")


def test_a_folder_lists_supported_files_in_order(tmp_path):
    write(tmp_path, "b.md", "a.HTML", "c.png", ".hidden.md", ".git/x.md", "node_modules/y.md", "sub dir/d.rst", "e.txt")
    base = tmp_path.as_uri()
    assert [(ref.source, ref.mime) for ref in list_documents(str(tmp_path))] == [
        (f"{base}/a.HTML", "text/html"),
        (f"{base}/b.md", "text/markdown"),
        (f"{base}/e.txt", "text/plain"),
        (f"{base}/sub%20dir/d.rst", "text/x-rst"),
    ]


def test_the_copies_that_sphinx_keeps_of_its_pages_are_skipped(tmp_path):
    write(tmp_path, "built/a.html", "built/objects.inv", "built/_sources/a.rst.txt", "notes/_sources/b.txt")
    names = [ref.source.rsplit("/", 1)[-1] for ref in list_documents(str(tmp_path))]
    assert names == ["a.html", "b.txt"]


def test_a_document_that_its_listing_knows_to_be_unreadable_says_why():
    with pytest.raises(ExtractionError, match="404 Not Found"):
        read_document(DocumentRef("https://example.org/gone", "text/html", error="404 Not Found"))


def test_a_symlink_loop_is_walked_once_and_links_are_not_resolved(tmp_path):
    write(tmp_path, "real/a.md")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert [ref.source for ref in list_documents(str(tmp_path / "link"))] == [(tmp_path / "link/a.md").as_uri()]


def test_a_file_is_read_as_its_bytes(tmp_path, monkeypatch):
    write(tmp_path, "a.md")
    monkeypatch.chdir(tmp_path)
    (ref,) = list_documents("./a.md")
    uri = (tmp_path / "a.md").as_uri()
    assert ref == DocumentRef(uri, "text/markdown", path=str(tmp_path / "a.md"))
    assert read_document(ref) == Document(uri, "text/markdown", b"text")
    assert canonical_source("a.md") == canonical_source("./a.md") == uri


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("missing", "expected a folder or a file, found nothing; check the path"),
        ("data.jsonl", "found '.jsonl', which is not supported yet"),
        ("empty", "expected files ending in .html"),
        ("https://example.com/a.html", "not supported yet"),
        ("git+ssh://host/repo", "not supported yet"),
        ("", "found an empty name"),
        ("python:no_such_package.x", "package no_such_package.x is not installed in this environment"),
        ("python:", "is not installed"),
    ],
)
def test_a_source_without_documents_is_refused_in_one_line(tmp_path, monkeypatch, source, reason):
    write(tmp_path, "data.jsonl", "empty/x.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        list_documents(source)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_listed_file_that_cannot_be_read_has_a_reason(tmp_path):
    (tmp_path / "dangling.md").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.md")
    with open(tmp_path / "vast.md", "wb") as vast:
        vast.truncate(64 * 2**20 + 1)
    reasons = []
    for ref in list_documents(str(tmp_path)):
        with pytest.raises(ExtractionError) as caught:
            read_document(ref)
        reasons.append(str(caught.value))
    assert [reason.split(" at ")[0] for reason in reasons] == [
        "cannot be read: No such file or directory",
        "expected a regular file, found something else",
        "expected",
    ]
    assert reasons[2] == "expected at most 67108864 bytes, found 67108865; split the file"
