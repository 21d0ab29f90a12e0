"""Arguments for `git` in, its output out. No prompt, no hook, no protocol but those named, a limit of time for each.

Git's own configuration still holds, so that proxies, certificates, ssh keys and credential helpers work as they do in
a shell. A login goes through the environment of the process: it is in no argument and in no file.
"""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# what a surrounding git (a hook that runs us) would redirect; and an answer for every question
UNSET = (
    "GIT_DIR",
    "GIT_COMMON_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_ALLOW_PROTOCOL",
    "GIT_ASKPASS",
    "SSH_ASKPASS",
)
SET = ("GIT_TERMINAL_PROMPT=0", "SSH_ASKPASS_REQUIRE=never", "GIT_NO_REPLACE_OBJECTS=1", "LC_ALL=C")
CONFIG = (
    "core.hooksPath=/dev/null",
    "core.symlinks=false",
    "core.fsmonitor=false",
    "core.askPass=",
    "protocol.allow=never",
    "protocol.https.allow=always",
    "protocol.http.allow=always",
    "protocol.ssh.allow=always",
    "protocol.file.allow=always",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "transfer.bundleURI=false",
    "gc.autoDetach=false",
    "maintenance.autoDetach=false",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=60",
)
LOGIN = 'printf "username=%s\\npassword=%s\\n" "$RAG_GIT_USER" "$RAG_GIT_PASSWORD"'
LOGIN_HELPER = '!f() { test "$1" = get && ' + LOGIN + "; }; f"
NOT_FOUND = 127  # env's exit status where there is no such program


class GitFailed(Exception):
    """What git said, in one line and without the login."""


def run_git(
    arguments: Sequence[str],
    timeout_s: float,
    store: Path | None = None,
    login: tuple[str, str] | None = None,
    stdin: bytes = b"",
    index: Path | None = None,
) -> bytes:
    """The standard output of `git arguments` in the bare repository `store`. GitFailed with the reason."""
    sets = [f"GIT_INDEX_FILE={index}"] if index else []
    if login:
        sets += [f"RAG_GIT_USER={login[0]}", f"RAG_GIT_PASSWORD={login[1]}"]
    process = subprocess.Popen(
        _command(arguments, store, sets),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # no terminal, so neither git nor ssh can ask; and one group to end
    )
    try:
        output, errors = process.communicate(stdin, timeout_s)
    except subprocess.TimeoutExpired:
        raise GitFailed(f"git {arguments[0]}: no end within {timeout_s:g} s") from None
    finally:
        _end(process)
    if process.returncode == NOT_FOUND:
        raise GitFailed("no git on this machine; install it (apt-get install git)")
    if process.returncode:
        raise GitFailed(_reason(arguments[0], errors, login))
    return output


@contextmanager
def stream_git(arguments: Sequence[str], store: Path, stdin: bytes) -> Iterator[IO[bytes]]:
    """The output as it comes, for what is too much to hold. GitFailed where git fails."""
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as errors:
        asked.write(stdin)
        asked.seek(0)
        command = _command(arguments, store, [])
        process = subprocess.Popen(command, stdin=asked, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
        assert process.stdout is not None
        try:
            with process.stdout:
                yield process.stdout
            if process.wait():
                errors.seek(0)
                raise GitFailed(_reason(arguments[0], errors.read(), None))
        finally:
            _end(process)


def _command(arguments: Sequence[str], store: Path | None, sets: Sequence[str]) -> list[str]:
    unset = [option for name in UNSET for option in ("-u", name)]
    config = list(CONFIG)
    if any(text.startswith("RAG_GIT_USER=") for text in sets):
        config += ["credential.helper=", f"credential.helper={LOGIN_HELPER}"]  # the first forgets the user's own
        config += ["http.followRedirects=false"]  # the login is for this host only
    options = [option for setting in config for option in ("-c", setting)]
    where = [f"--git-dir={store}"] if store else []
    return ["env", *unset, *SET, *sets, "git", *options, *where, *arguments]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends git and what it has started, where they still run."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _reason(name: str, errors: bytes, login: tuple[str, str] | None) -> str:
    lines = [line.strip() for line in errors.decode("utf-8", "replace").splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("fatal:", "error:", "remote:"))] or lines
    text = "; ".join(telling)[:300] or "no reason given"
    for secret in login or ():
        text = text.replace(secret, "...") if secret else text
    return f"git {name}: {text}"
