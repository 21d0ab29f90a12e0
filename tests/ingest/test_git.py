"""Real repositories, fetched by the real git: over file:// and over HTTP from git's own server program."""

import base64
import json
import os
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rag.config import load_settings
from rag.errors import ExtractionError, SourceError
from rag.ingest.git import list_repository
from rag.ingest.git_command import GitFailed, run_git
from rag.ingest.sources import is_within, list_documents, read_document

LOGIN = ("user", "p@ss/word")


def git(folder, *arguments, stdin=b""):
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(folder), *arguments]
    return subprocess.run(command, input=stdin, check=True, capture_output=True).stdout.decode().strip()


def write(folder, files):
    for name, content in files.items():
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)


def commit(folder, files):
    write(folder, files)
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "-qm", "change")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repo(tmp_path):
    """An empty repository and the source that names it."""
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    return folder


@pytest.fixture
def listed(tmp_path):
    settings = load_settings(home=tmp_path / "home")
    return lambda source: list(list_documents(source, settings))


def names(refs, folder):
    return [ref.source.removeprefix(f"git+file://{folder}/") for ref in refs]


def test_the_tracked_documents_of_the_default_branch_are_listed_with_their_commit(repo, listed):
    first = commit(repo, {"README.md": "# R", "docs/a b.html": "<p>a", "code.bin": "x", ".github/x.md": "x"})
    write(repo, {"untracked.md": "x"})
    refs = listed(f"git+file://{repo}")
    origin = f"git+file://{repo}"
    assert [(ref.source, ref.mime) for ref in refs] == [
        (f"{origin}/README.md", "text/markdown"),
        (f"{origin}/docs/a%20b.html", "text/html"),
    ]
    document = read_document(refs[0])
    assert document.content == b"# R"
    assert json.loads(document.meta) == {"commit": first, "path": "README.md", "repository": origin}


def test_a_new_commit_replaces_documents_and_does_not_duplicate_them(repo, listed):
    commit(repo, {"a.md": "old", "b.md": "same"})
    before = listed(f"git+file://{repo}")
    commit(repo, {"a.md": "new"})
    after = listed(f"git+file://{repo}")
    assert names(before, repo) == names(after, repo) == ["a.md", "b.md"]
    assert [read_document(ref).content for ref in before + after] == [b"old", b"same", b"new", b"same"]
    assert before[1].path == after[1].path


def test_a_branch_a_tag_and_a_commit_are_what_they_say(repo, listed):
    first = commit(repo, {"a.md": "first"})
    git(repo, "tag", "-a", "pkg@1.0", "-m", "annotated")
    git(repo, "checkout", "-qb", "feature/x")
    commit(repo, {"a.md": "second"})
    git(repo, "checkout", "-q", "main")
    commit(repo, {"a.md": "third"})
    contents = {
        ref: read_document(listed(f"git+file://{repo}@{ref}")[0]).content
        for ref in ("main", "feature/x", "pkg@1.0", first, "refs/heads/main")
    }
    assert contents == {
        "main": b"third",
        "feature/x": b"second",
        "pkg@1.0": b"first",
        first: b"first",
        "refs/heads/main": b"third",
    }


def test_a_subdirectory_lists_what_is_below_it(repo, listed):
    commit(repo, {"a.md": "a", "docs/b.md": "b", "docs2/c.md": "c", "vendor/x/d.md": "d", "docs/vendor/e.md": "e"})
    assert names(listed(f"git+file://{repo}#subdirectory=docs"), repo) == ["docs/b.md"]
    assert names(listed(f"git+file://{repo}@main#subdirectory=/vendor/x/"), repo) == ["vendor/x/d.md"]
    assert names(listed(f"git+file://{repo}#subdirectory=docs/b.md"), repo) == ["docs/b.md"]


def test_what_others_wrote_or_tools_made_is_left_out_and_counted(repo, listed, caplog):
    commit(
        repo,
        {
            "a.md": "a",
            "vendor/b.md": "b",
            "web/node_modules/c.md": "c",
            "x.md": b"binary\0",
            "y.txt": "zwölf".encode("utf-16"),
            "big.py": "x = 1\n" * 200_000,
            "big.md": "text\n" * 300_000,
            "gen/d.md": "d",
            "lib/e.md": "e",
            "site/objects.inv": "x",
            "site/p.html": "<p>p",
            "site/_sources/p.rst.txt": "p",
            ".gitattributes": "gen/** linguist-generated\nlib/e.md linguist-vendored=true\na.md -linguist-generated\n",
        },
    )
    assert names(listed(f"git+file://{repo}"), repo) == ["a.md", "big.md", "site/p.html", "y.txt"]
    left_out = "files left out: 1 binary, 2 generated, 1 large, 2 vendored"
    assert caplog.messages == [f"git+file://{repo}: {left_out}"]


def test_no_link_or_name_in_a_repository_reads_or_writes_elsewhere(repo, listed, tmp_path):
    (tmp_path / "secret.md").write_text("secret")
    write(repo, {"caf\udce9\n.md": "odd", "x.git/a.md": "a"})
    (repo / "link.md").symlink_to(tmp_path / "secret.md")
    (repo / "linked").symlink_to(tmp_path)
    git(repo, "add", "--all")
    blob = git(repo, "hash-object", "-w", "--stdin", stdin=b"evil")
    inner = git(repo, "mktree", stdin=f"100644 blob {blob}\tevil.md\n".encode())
    tree = git(repo, "mktree", stdin=git(repo, "ls-tree", git(repo, "write-tree")).encode() + b"\n")
    tree = git(repo, "mktree", stdin=f"{git(repo, 'ls-tree', tree)}\n040000 tree {inner}\t..\n".encode())
    git(repo, "update-ref", "refs/heads/main", git(repo, "commit-tree", tree, "-m", "evil"))
    refs = listed(f"git+file://{repo}")
    assert names(refs, repo) == ["caf%E9%0A.md", "x%2Egit/a.md"]
    assert [read_document(ref).content for ref in refs] == [b"odd", b"a"]
    assert all(is_within(ref.source, f"git+file://{repo}") for ref in refs)
    assert not list(tmp_path.rglob("evil.md"))


def test_no_hook_and_no_filter_of_a_repository_runs(repo, listed, tmp_path):
    mark = tmp_path / "ran"
    commit(repo, {"a.md": "a", ".gitattributes": "*.md filter=evil\n"})
    git(repo, "config", "filter.evil.smudge", f"touch {mark}")
    for hook in ("post-checkout", "reference-transaction", "post-index-change"):
        path = repo / ".git/hooks" / hook
        path.write_text(f"#!/bin/sh\ntouch {mark}\n")
        path.chmod(0o755)
    assert len(listed(f"git+file://{repo}")) == 1 and not mark.exists()


def test_a_document_that_is_too_large_has_a_reason(repo, listed):
    with open(repo / "vast.md", "wb") as vast:
        vast.truncate(64 * 2**20 + 1)
    commit(repo, {"a.md": "a"})
    ref = listed(f"git+file://{repo}")[-1]
    with pytest.raises(ExtractionError, match="expected at most 67108864 bytes, found 67108865; split the file"):
        read_document(ref)


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("@nothing", "expected a branch, tag or full commit, found no nothing; check its name"),
        ("@" + "0" * 40, "expected a repository that can be fetched, found this: git fetch: "),
        ("@--upload-pack=touch", "expected a branch, a tag or a commit after @"),
        ("@a..b", "expected a branch, a tag or a commit after @"),
        ("#egg=x", "expected #subdirectory=FOLDER at the end"),
        ("#subdirectory=../..", "expected a path without . and .."),
        ("?token=x", "expected no query string"),
        ("-missing", "expected a repository that can be fetched, found this: git ls-remote: "),
        ("#subdirectory=empty", "#subdirectory=empty: expected files ending in"),
    ],
)
def test_what_cannot_be_fetched_is_refused_in_one_line(repo, listed, rest, reason):
    commit(repo, {"a.md": "a"})
    with pytest.raises(SourceError) as caught:
        listed(f"git+file://{repo}{rest}")
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_repository_without_a_commit_is_refused(repo, listed):
    with pytest.raises(SourceError, match="expected a default branch with a commit, found none; name a branch after @"):
        listed(f"git+file://{repo}")


def test_a_tree_that_stands_for_a_billion_files_or_folders_is_refused(repo, listed, monkeypatch):
    for leaf in (f"100644 blob {git(repo, 'hash-object', '-w', '--stdin', stdin=b'x')}\ta.md\0", ""):
        tree = git(repo, "mktree", "-z", stdin=leaf.encode())
        for _ in range(9):
            entries = "".join(f"040000 tree {tree}\t{n}{'x' * 200}\0" for n in range(10))
            tree = git(repo, "mktree", "-z", stdin=entries.encode())
        git(repo, "update-ref", "refs/heads/main", git(repo, "commit-tree", "-m", "bomb", tree))
        monkeypatch.setattr("rag.ingest.git.MAX_ENTRIES", 1000)
        with pytest.raises(SourceError, match="expected at most 1000 files and folders, .* found more"):
            listed(f"git+file://{repo}")


def test_a_pack_that_holds_more_than_a_disk_is_for_is_refused_before_it_is_copied(repo, listed, tmp_path, monkeypatch):
    commit(repo, {"a.md": "x" * 1000, "copy.md": "x" * 1000, "b.md": "y" * 1000})
    monkeypatch.setattr("rag.ingest.git.MAX_KEPT_BYTES", 2000)
    assert len(listed(f"git+file://{repo}")) == 3
    commit(repo, {"c.md": "z"})
    with pytest.raises(SourceError, match="expected at most 2000 bytes of documents, found 2001; name one of its"):
        listed(f"git+file://{repo}")


def test_a_login_is_in_no_argument_of_a_process(monkeypatch):
    started = []
    monkeypatch.setattr("rag.ingest.git_command.subprocess.Popen", lambda command, **_: started.append(command))
    with pytest.raises(AttributeError):  # nothing was started
        run_git(["ls-remote"], 1.0, login=LOGIN)
    assert "ls-remote" in started[0] and "p@ss/word" not in repr(started)


def test_a_login_that_no_process_can_be_given_is_refused():
    with pytest.raises(GitFailed, match="expected text without NUL, found one"):
        run_git(["ls-remote"], 1.0, login=("user", "p\0ss"))


def test_git_that_takes_too_long_is_ended_with_all_it_has_started(tmp_path):
    run_git(["init", "-q", "--bare", str(tmp_path)], 60)
    slow = ["-c", f"alias.slow=!sleep 60 & echo $! > {tmp_path}/pid; wait", "slow"]
    with pytest.raises(GitFailed, match="no end within 1 s"):
        run_git(slow, 1, tmp_path)
    state = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    for _ in range(100):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("what git had started still runs")


@pytest.fixture
def server(tmp_path):
    """git's own HTTP server program for the repositories below tmp_path, behind a login; and what it was asked."""
    backend = os.path.join(git(tmp_path, "--exec-path"), "git-http-backend")
    expected = "Basic " + base64.b64encode(":".join(LOGIN).encode()).decode()
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            asked.append(self.path)
            if self.headers.get("Authorization") != expected:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="x"')
                self.end_headers()
                return
            path, _, query = self.path.partition("?")
            variables = {
                "GIT_PROJECT_ROOT": str(tmp_path),
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "PATH": os.defpath,
            }
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            output = subprocess.run([backend], input=body, env=variables, stdout=subprocess.PIPE, check=True).stdout
            head, _, content = output.partition(b"\r\n\r\n")
            headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
            self.send_response(int(headers.pop("Status", "200 OK").split()[0]))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield httpd.server_address[1], asked
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_a_login_reaches_the_server_and_nothing_else(repo, server, tmp_path):
    port, asked = server
    commit(repo, {"a.md": "a"})
    refs = list(list_repository(f"git+http://user:p%40ss%2Fword@127.0.0.1:{port}/repo/.git", tmp_path / "cache"))
    origin = f"git+http://127.0.0.1:{port}/repo"
    assert [ref.source for ref in refs] == [f"{origin}/a.md"]
    assert "user" not in repr(refs) and "p@ss" not in repr(refs)
    kept = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert b"p@ss" not in kept and b"p%40ss" not in kept and base64.b64encode(b"user:p@ss/word") not in kept

    asked.clear()  # the same commit again: a question for it, no fetch
    list(list_repository(f"git+http://user:p%40ss%2Fword@127.0.0.1:{port}/repo/.git", tmp_path / "cache"))
    assert {path.partition("?")[0] for path in asked} <= {"/repo/.git/info/refs", "/repo/.git/git-upload-pack"}
    assert sum(path.endswith("git-upload-pack") for path in asked if "?" not in path) == 1  # ls-refs


def test_a_wrong_login_is_refused_without_being_repeated_and_without_a_question(repo, server, tmp_path):
    port, _ = server
    for login in ("", "user@", "user:hunter2@"):
        with pytest.raises(SourceError) as caught:
            list(list_repository(f"git+http://{login}127.0.0.1:{port}/repo/.git", tmp_path / "cache"))
        assert f"git+http://127.0.0.1:{port}/repo: expected a repository that can be fetched" in str(caught.value)
        assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)
