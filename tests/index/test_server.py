"""The embedded PostgreSQL: shared, private, and there again after a kill."""

import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from rag.config import load_settings
from rag.errors import DatabaseError
from rag.index.database import connect, migrate, open_database, without_password
from rag.index.server import EmbeddedServer


def test_a_server_killed_in_the_middle_of_writes_is_back_with_every_acknowledged_row(fresh_home: Path) -> None:
    server = EmbeddedServer(fresh_home)
    url = server.start()
    acknowledged = 0
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("create table t (n int primary key)")
        for n in range(200):
            conn.execute("insert into t values (%s)", [n])
            acknowledged += 1
        os.kill(int((fresh_home / "postgres/postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    with psycopg.connect(EmbeddedServer(fresh_home).start()) as conn:
        assert conn.execute("select count(*) from t").fetchone() == (acknowledged,)
    assert server.stop()
    assert not server.is_running()


def test_a_pid_file_left_by_another_program_does_not_keep_the_server_down(fresh_home: Path) -> None:
    server = EmbeddedServer(fresh_home)
    server.start()
    server.stop()
    (fresh_home / "postgres/postmaster.pid").write_text(f"{os.getpid()}\n{fresh_home}/postgres\n")
    server.start()
    assert server.is_running()
    server.stop()


def test_two_processes_that_start_at_once_share_one_migrated_server(fresh_home: Path) -> None:
    code = (
        "from rag.index.database import open_database; from rag.config import load_settings;"
        f"print(open_database(load_settings(home='{fresh_home}')))"
    )
    run = [sys.executable, "-W", "ignore", "-c", code]
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: subprocess.run(run, capture_output=True, text=True, check=False), range(3)))
    try:
        assert [d.returncode for d in done] == [0, 0, 0], [d.stderr for d in done]
        assert len({d.stdout for d in done}) == 1
        assert migrate(EmbeddedServer(fresh_home).url) == []
    finally:
        EmbeddedServer(fresh_home).stop()


def test_only_the_owner_may_enter_the_socket_folder_and_no_port_is_open(home: Path, database_url: str) -> None:
    server = EmbeddedServer(home)
    assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
    with psycopg.connect(database_url) as conn:
        assert conn.execute("show listen_addresses").fetchone() == ("",)


def test_a_home_too_deep_for_a_socket_gets_one_elsewhere(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / ("deep" * 25))
    assert len(str(server.socket_dir)) < 100
    assert server.socket_dir == EmbeddedServer(tmp_path / ("deep" * 25)).socket_dir


def test_a_database_that_is_not_there_is_one_line_without_its_password() -> None:
    with pytest.raises(DatabaseError) as error:
        connect("postgresql://me:hunter2@127.0.0.1:1/rag")
    assert str(error.value).startswith("no PostgreSQL at postgresql://me:***@127.0.0.1:1/rag: ")
    assert "hunter2" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:secret@h:5/db", "postgresql://u:***@h:5/db"),
        ("postgresql://u@h/db?password=secret", "postgresql://u:***@h/db"),
        ("postgresql:///rag?host=/run/x&user=postgres", "postgresql:///rag?host=/run/x&user=postgres"),
        ("host=h user=u password=secret dbname=db", "postgresql://u:***@h/db"),
        ("nothing like a URL, secret", "(unreadable URL)"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    ("version", "message"),
    [((99, 0, 0), "is too old (expected 99.0.0 or newer"), (None, "has no pgvector (expected 0.8.4 or newer)")],
)
def test_a_server_without_a_good_pgvector_is_refused_with_what_mends_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...] | None, message: str
) -> None:
    from rag.index import database

    if version is not None:
        monkeypatch.setattr(database, "MIN_PGVECTOR", version)
        with pytest.raises(DatabaseError) as error:
            migrate(database_url)
    else:
        with psycopg.connect(database_url) as conn, pytest.raises(DatabaseError) as error:
            # A view of the session's own hides the real catalogue, as on a server without the extension.
            conn.execute(
                "create temp view pg_available_extensions as select * from pg_catalog.pg_available_extensions"
                " where name <> 'vector'"
            )
            conn.execute("set search_path = pg_temp, public, pg_catalog")
            database._check_pgvector(conn)
    assert message in str(error.value)
    assert "setup-pgvector.sh" in str(error.value)


def test_an_unwritable_home_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseError, match="set RAG_HOME to a folder you own"):
        open_database(load_settings(home=tmp_path / "file" / "home"))


def test_a_server_that_does_not_stop_is_an_error(
    home: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = EmbeddedServer(home)
    run = server._run

    def refuse(program: str, *args: str) -> subprocess.CompletedProcess[str]:
        failed = subprocess.CompletedProcess([program], 1, "", "pg_ctl: server does not shut down\n")
        return failed if args[-1] == "stop" else run(program, *args)

    monkeypatch.setattr(server, "_run", refuse)
    with pytest.raises(DatabaseError, match="did not stop: pg_ctl: server does not shut down; "):
        server.stop()
    assert server.is_running()
