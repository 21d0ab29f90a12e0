"""What holds for every kind of source; the kinds have tests of their own."""

import json
import subprocess

import fsspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rag.config import load_settings
from rag.errors import ExtractionError, SourceError
from rag.ingest.sources import canonical_source, is_within, list_documents, read_document
from rag.records import Document, DocumentRef


@pytest.fixture
def settings(tmp_path):
    return load_settings(home=tmp_path / "home")


@pytest.fixture
def sources(tmp_path):
    """One small source of each kind that needs no network."""
    folder = tmp_path / "some docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.md").write_text("# A\n\nText.")
    (folder / "sub/b%20c?.txt").write_text("Text.")
    (folder / "out").symlink_to(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"_id": "a/b?#%", "text": "one"}\n{"text": "two"}\nbroken\n{"url": "u", "text": "three"}\n')
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(folder)]
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/docs/a b.md", b"text")
    memory.pipe("/bucket/docs/sub/c#1.txt", b"text")
    memory.pipe("/bucket/rows.jsonl", b'{"id": 1, "text": "one"}')
    yield [
        str(folder),
        f"{folder}/../some docs/a.md",
        folder.as_uri(),
        str(rows),
        f"git+file://{str(folder).replace(' ', '%20')}",
        f"git+file://{str(folder).replace(' ', '%20')}@main#subdirectory=sub",
        "memory://bucket/docs",
        "memory:///bucket/docs/a%20b.md",
        "memory://bucket/rows.jsonl",
        "python:rag.errors",
    ]
    memory.rm("/bucket", recursive=True)


def test_every_source_lists_documents_of_its_own_each_once_under_names_that_do_not_change(sources, settings):
    for source in sources:
        origin = canonical_source(source)
        refs = list(list_documents(source, settings))
        names = [ref.source for ref in refs]
        assert names and len(set(names)) == len(names)
        assert [name for name in names if not is_within(name, origin)] == []
        assert canonical_source(origin) == origin
        assert [ref.source for ref in list_documents(origin, settings)] == names  # so it can be remembered


def test_every_listed_document_is_read_or_has_a_reason(sources, settings):
    for source in sources:
        for ref in list_documents(source, settings):
            try:
                document = read_document(ref)
            except ExtractionError as reason:
                assert ref.error == str(reason)
            else:
                assert document.content and isinstance(json.loads(document.meta), dict)


@given(st.text() | st.builds("{}{}".format, st.sampled_from(["git+https://h/", "s3://", "hf:", "file://"]), st.text()))
def test_a_canonical_name_is_its_own_canonical_name(source):
    try:
        origin = canonical_source(source)
    except SourceError:
        assume(False)
    assert canonical_source(origin) == origin


@pytest.mark.parametrize(
    ("source", "origin", "expected"),
    [
        ("file:///docs/a.md", "file:///docs", True),
        ("file:///docs/a.md", "file:///docs/a.md", True),
        ("file:///docs2/a.md", "file:///docs", False),
        ("file:///docs/a.md", "file:///", True),
        ("file:///docs/x.jsonl?id=1", "file:///docs/x.jsonl", True),
        ("file:///docs/x.jsonl?id=1", "file:///docs", False),  # a folder does not list the rows of its files
        ("git+https://h/o/r/docs/a.md", "git+https://h/o/r@v2#subdirectory=docs", True),
        ("git+https://h/o/r/a.md", "git+https://h/o/r@v2#subdirectory=docs", False),
        ("s3://b/docs/a.md", "s3://b", True),
        ("s3://b2/a.md", "s3://b", False),
        ("hf:o/n:train?id=1", "hf:o/n", True),
        ("hf:o/n:train?id=1", "hf:o/n:train", True),
        ("hf:o/n:test?id=1", "hf:o/n:train", False),
        ("hf:o/n2:train?id=1", "hf:o/n", False),
        ("stdin:input?id=1", "stdin:input", True),
        ("python:ray.data.Dataset", "python:ray.data", True),
        ("python:ray.database", "python:ray.data", False),
    ],
)
def test_what_lies_within_what(source, origin, expected):
    assert is_within(source, origin) is expected


def test_a_document_that_its_listing_knows_to_be_unreadable_says_why():
    with pytest.raises(ExtractionError, match="404 Not Found"):
        read_document(DocumentRef("https://example.org/gone", "text/html", error="404 Not Found"))


def test_a_document_that_carries_its_content_is_that_content():
    ref = DocumentRef("python:a", "text/x-python-doc", content=b"text", meta='{"a": 1}')
    assert read_document(ref) == Document("python:a", "text/x-python-doc", b"text", '{"a": 1}')


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("missing", "expected a folder or a file, found nothing; check the path"),
        ("git@host:org/repo", "write a repository as git+ssh://git@host/org/repo"),
        ("data.bin", "found '.bin', which is not supported yet; convert the file first"),
        ("empty", "none found; point at another folder"),
        ("", "found an empty name"),
        ("file://elsewhere/a.md", "expected a file of this machine"),
        ("unknown://x", "expected one of abfs://"),
        ("git+ext://sh", "expected one of git+https"),
        ("python:no_such_package.x", "package no_such_package.x is not installed in this environment"),
        ("python:", "is not installed"),
    ],
)
def test_a_source_without_documents_is_refused_in_one_line(tmp_path, monkeypatch, settings, source, reason):
    (tmp_path / "data.bin").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/x.png").write_text("image")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        list(list_documents(source, settings))
    assert reason in str(caught.value).replace("found none", "none found") and "\n" not in str(caught.value)
