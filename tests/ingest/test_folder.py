import gzip
import os

import pytest

from rag.config import load_settings
from rag.errors import ExtractionError, SourceError
from rag.ingest.sources import canonical_source, is_within, list_documents, read_document
from rag.records import Document, DocumentRef


def write(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")


def listed(source, home):
    return list(list_documents(str(source), load_settings(home=home)))


def test_a_folder_lists_supported_files_in_order(tmp_path):
    write(tmp_path, "b.md", "a.HTML", "c.png", ".hidden.md", ".git/x.md", "node_modules/y.md", "sub dir/d.rst", "e.txt")
    base = tmp_path.as_uri()
    assert [(ref.source, ref.mime) for ref in listed(tmp_path, tmp_path)] == [
        (f"{base}/a.HTML", "text/html"),
        (f"{base}/b.md", "text/markdown"),
        (f"{base}/e.txt", "text/plain"),
        (f"{base}/sub%20dir/d.rst", "text/x-rst"),
    ]


def test_the_copies_that_sphinx_keeps_of_its_pages_are_skipped(tmp_path):
    write(tmp_path, "built/a.html", "built/objects.inv", "built/_sources/a.rst.txt", "notes/_sources/b.txt")
    assert [ref.source.rsplit("/", 1)[-1] for ref in listed(tmp_path, tmp_path)] == ["a.html", "b.txt"]


def test_a_file_is_read_as_its_bytes_however_it_is_named(tmp_path, monkeypatch):
    write(tmp_path, "a.md")
    monkeypatch.chdir(tmp_path)
    uri = (tmp_path / "a.md").as_uri()
    for name in ("./a.md", str(tmp_path / "a.md"), uri, f"{tmp_path.as_uri()}/%61.md"):
        (ref,) = listed(name, tmp_path)
        assert ref == DocumentRef(uri, "text/markdown", path=str(tmp_path / "a.md"))
        assert read_document(ref) == Document(uri, "text/markdown", b"text")
        assert canonical_source(name) == uri


def test_links_inside_the_folder_are_followed_and_those_that_leave_it_go_to_the_ledger(tmp_path):
    write(tmp_path, "docs/sub/a.md", "docs2/secret.md", "secret.md")
    docs = tmp_path / "docs"
    (docs / "latest.md").symlink_to("sub/a.md")
    (docs / "loop").symlink_to(docs)
    (docs / "out").symlink_to(tmp_path / "docs2")  # begins with the folder's name
    (docs / "out.md").symlink_to("../secret.md")
    (docs / "host.md").symlink_to("/etc/hostname")
    base = docs.as_uri()
    reason = f"a link that leaves {docs}; ingest what it points at by its own name"
    found = {ref.source.removeprefix(base): (ref.path, ref.error) for ref in listed(docs, tmp_path)}
    assert found == {
        "/out": (None, reason),
        "/host.md": (None, reason),
        "/latest.md": (f"{docs}/sub/a.md", ""),
        "/out.md": (None, reason),
        "/sub/a.md": (f"{docs}/sub/a.md", ""),
    }


def test_a_folder_may_itself_be_a_link_and_keeps_the_name_the_user_gave(tmp_path):
    write(tmp_path, "real/a.md")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert [ref.source for ref in listed(tmp_path / "link", tmp_path)] == [(tmp_path / "link/a.md").as_uri()]


def test_a_listed_file_that_cannot_be_read_has_a_reason(tmp_path):
    (tmp_path / "dangling.md").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "round.md").symlink_to(tmp_path / "round.md")
    with open(tmp_path / "vast.md", "wb") as vast:
        vast.truncate(64 * 2**20 + 1)
    reasons = []
    for ref in listed(tmp_path, tmp_path):
        with pytest.raises(ExtractionError) as caught:
            read_document(ref)
        reasons.append(str(caught.value))
    assert reasons == [
        "cannot be read: No such file or directory",
        f"expected a regular file, found something else at {tmp_path}/pipe.md",
        "cannot be read: Too many levels of symbolic links",
        "expected at most 67108864 bytes, found 67108865; split the file",
    ]


def test_a_folder_that_cannot_be_read_stops_the_run_since_its_documents_would_seem_gone(tmp_path, monkeypatch):
    write(tmp_path, "a.md")
    monkeypatch.chdir(tmp_path)
    for _ in range(20):  # a path longer than the system takes: not even root reads it
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    with pytest.raises(SourceError, match="expected a readable folder, found File name too long; fix its permissions"):
        listed(tmp_path, tmp_path)


def test_a_name_that_is_not_utf_8_is_listed_read_and_can_be_stored(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/caf\xe9.md", "wb") as file:
        file.write(b"text")
    (ref,) = listed(folder, tmp_path)
    assert ref.source == f"{folder.as_uri()}/caf%E9.md"
    assert is_within(ref.source, canonical_source(str(folder)))
    assert (ref.path or "").encode()
    assert read_document(ref).content == b"text"
    assert listed(ref.source, tmp_path) == [ref]


def test_a_jsonl_file_lists_its_rows_where_it_is_named_but_not_in_its_folder(tmp_path):
    write(tmp_path, "docs/a.md")
    rows = tmp_path / "docs/rows.jsonl"
    rows.write_text('{"id": 7, "text": "one"}\n')
    assert [ref.source for ref in listed(rows, tmp_path)] == [f"{rows.as_uri()}?id=7"]
    assert [ref.source for ref in listed(rows.parent, tmp_path)] == [f"{rows.parent.as_uri()}/a.md"]


def test_a_compressed_jsonl_file_is_unpacked_once_and_again_when_it_has_changed(tmp_path):
    packed, home = tmp_path / "rows.jsonl.gz", tmp_path / "home"
    packed.write_bytes(gzip.compress(b'{"id": 7, "text": "one"}\n'))
    (first,) = listed(packed, home)
    assert (first.source, read_document(first).content) == (f"{packed.as_uri()}?id=7", b'{"id": 7, "text": "one"}')
    made = os.stat(first.path).st_ino
    assert listed(packed, home) == [first] and os.stat(first.path).st_ino == made
    packed.write_bytes(gzip.compress(b'{"id": 8, "text": "two or more"}\n'))
    (second,) = listed(packed, home)
    assert read_document(second).content == b'{"id": 8, "text": "two or more"}'
    packed.write_bytes(gzip.compress(b'{"id": 8, "text": "three"}\n')[:-9])
    with pytest.raises(SourceError, match=r"rows.jsonl.gz: expected gzip, found .*; compress it again"):
        listed(packed, home)


def test_a_file_that_a_link_replaces_after_it_was_listed_is_not_read(tmp_path):
    write(tmp_path, "out/a.md", "docs/a.md", "docs/sub/a.md")
    docs = tmp_path / "docs"
    refs = listed(docs, tmp_path)
    (docs / "a.md").unlink()
    (docs / "a.md").symlink_to(tmp_path / "out/a.md")
    (docs / "sub").rename(tmp_path / "was")
    (docs / "sub").symlink_to(tmp_path / "out")
    for ref, reason in zip(refs, ("Too many levels of symbolic links", "Not a directory"), strict=True):
        with pytest.raises(ExtractionError, match=f"cannot be read: {reason}"):
            read_document(ref)


def test_a_link_is_read_where_it_led_when_it_was_listed(tmp_path):
    write(tmp_path, "docs/sub/a.txt", "secret.md")
    link = tmp_path / "docs/latest.md"
    link.symlink_to("sub/a.txt")
    latest, _ = listed(tmp_path / "docs", tmp_path)
    link.unlink()
    link.symlink_to(tmp_path / "secret.md")
    (tmp_path / "secret.md").write_text("secret")
    assert latest.source == link.as_uri()
    assert read_document(latest).content == b"text"


def test_a_link_that_a_file_replaces_while_it_is_resolved_is_that_file(tmp_path, monkeypatch):
    write(tmp_path, "docs/a.md")
    (tmp_path / "docs/b.md").symlink_to("a.md")

    def replaced(path):
        path.unlink()
        path.write_text("new")
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("rag.ingest.folder.resolved", lambda path: replaced(path) if path.name == "b.md" else path)
    assert [read_document(ref).content for ref in listed(tmp_path / "docs", tmp_path)] == [b"text", b"new"]


def test_a_home_behind_a_link_is_read(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "real")
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"text": "one"}'))
    assert [read_document(ref).content for ref in listed(packed, tmp_path / "home")] == [b'{"text": "one"}']


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.md"])
def test_a_pipe_or_a_device_that_is_named_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    (tmp_path / f"zero-{name}").symlink_to("/dev/zero")
    for path in (tmp_path / name, tmp_path / f"zero-{name}"):
        with pytest.raises(SourceError, match="expected a folder or a file, found something else"):
            listed(path, tmp_path)


def test_rows_packed_too_small_to_be_rows_are_refused_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("rag.ingest.files.MANY_BYTES", 0)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"text": "one"}\n' + b"\n" * 5_000_000))
    limit = 200 * os.path.getsize(packed)
    with pytest.raises(SourceError, match=f"rows.jsonl.gz: expected at most {limit} bytes, unpacked from"):
        listed(packed, tmp_path / "home")
    assert [path.name for path in (tmp_path / "home").rglob("*") if path.is_file()] == ["lock"]
