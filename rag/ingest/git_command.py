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
from subprocess import PIPE
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
SET = {
    "GIT_TERMINAL_PROMPT": "0",
    "SSH_ASKPASS_REQUIRE": "never",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "LC_ALL": "C",
}
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
    process = _start(_command(arguments, store, login), _environment(login, index), PIPE, PIPE)
    try:
        output, errors = process.communicate(stdin, timeout_s)
    except subprocess.TimeoutExpired:
        raise GitFailed(f"git {arguments[0]}: no end within {timeout_s:g} s") from None
    finally:
        _end(process)
    if process.returncode:
        raise GitFailed(_reason(arguments[0], errors, login))
    return output


@contextmanager
def stream_git(arguments: Sequence[str], store: Path, stdin: bytes) -> Iterator[IO[bytes]]:
    """The output as it comes, for what is too much to hold. GitFailed where git fails."""
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as errors:
        asked.write(stdin)
        asked.seek(0)
        process = _start(_command(arguments, store), _environment(), asked, errors)
        assert process.stdout is not None
        try:
            with process.stdout:
                yield process.stdout
            if process.wait():
                errors.seek(0)
                raise GitFailed(_reason(arguments[0], errors.read(), None))
        finally:
            _end(process)


def _start(
    command: list[str], environment: dict[str, str], stdin: int | IO[bytes], stderr: int | IO[bytes]
) -> subprocess.Popen[bytes]:
    """Without a terminal, so that neither git nor ssh can ask; and in a group of its own, to be ended as one."""
    try:
        return subprocess.Popen(
            command, env=environment, stdin=stdin, stdout=PIPE, stderr=stderr, start_new_session=True
        )
    except FileNotFoundError:
        raise GitFailed("no git on this machine; install it (apt-get install git)") from None
    except ValueError:  # %00 in an address or a login
        raise GitFailed("expected text without NUL, found one; write the address anew") from None


def _environment(login: tuple[str, str] | None = None, index: Path | None = None) -> dict[str, str]:
    """Ours, less what redirects git. The login is here because everybody may read the arguments of a process."""
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    place = {"GIT_INDEX_FILE": str(index)} if index else {}
    secrets = {"RAG_GIT_USER": login[0], "RAG_GIT_PASSWORD": login[1]} if login else {}
    return kept | SET | place | secrets


def _command(arguments: Sequence[str], store: Path | None, login: tuple[str, str] | None = None) -> list[str]:
    config = list(CONFIG)
    if login:
        config += ["credential.helper=", f"credential.helper={LOGIN_HELPER}"]  # the first forgets the user's own
        config += ["http.followRedirects=false"]  # the login is for this host only
    options = [option for setting in config for option in ("-c", setting)]
    where = [f"--git-dir={store}"] if store else []
    return ["git", *options, *where, *arguments]


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
