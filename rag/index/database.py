"""A database that is ready to use: reachable, with a good pgvector, migrated. Gives URLs and pools, runs no query."""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool

from rag.config import Settings
from rag.errors import DatabaseError
from rag.index.server import EmbeddedServer

MIN_PGVECTOR = (0, 8, 4)  # HNSW vacuum corruption and a parallel-build overflow were fixed on the way to it
MIGRATION_LOCK = 0x7261_6721  # "rag!": any number that all our processes agree on

Pool = ConnectionPool[psycopg.Connection[Any]]


def open_database(settings: Settings) -> str:
    """The URL of a migrated database: `database_url` where set, the embedded server's otherwise.

    Raises DatabaseError.
    """
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
    else:
        url = EmbeddedServer(settings.home).start()
    migrate(url)
    return url


def without_password(url: str) -> str:
    """`url`, or a `key=value` connection string, as a URL fit for a log or a screen."""
    try:
        params = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return "(unreadable URL)"
    host, database = str(params.get("host") or ""), str(params.get("dbname") or "")
    user = str(params.get("user") or "")
    if host.startswith("/") or not host:
        query = urlencode({k: v for k, v in (("host", host), ("user", user)) if v}, safe="/")
        return f"postgresql:///{database}" + (f"?{query}" if query else "")
    secret = ":***" if "password" in params else ""
    port = f":{params['port']}" if "port" in params else ""
    return f"postgresql://{user}{secret}{'@' if user or secret else ''}{host}{port}/{database}"


def connect(url: str) -> psycopg.Connection[Any]:
    """One connection. Raises DatabaseError that names the server, never the password."""
    try:
        return psycopg.connect(url, connect_timeout=10)
    except psycopg.Error as error:
        # Only a server's own answer is quoted: a parse error would quote the URL, password included.
        reason = str(error).strip().splitlines()[-1] if isinstance(error, psycopg.OperationalError) else "bad URL"
        raise DatabaseError(
            f"no PostgreSQL at {without_password(url)}: {reason}; start it, mend DATABASE_URL, or unset"
            " DATABASE_URL to use the embedded server"
        ) from None


def open_pool(url: str, max_size: int = 8) -> Pool:
    """Connections that know pgvector's types and do not outlive a restarted server."""
    from pgvector.psycopg import register_vector

    pool: Pool = ConnectionPool(
        url,
        min_size=0,
        max_size=max_size,
        open=True,
        timeout=10,
        configure=register_vector,
        check=_check,
    )
    return pool


def _check(conn: psycopg.Connection[Any]) -> None:
    """Raises OperationalError where the server closed the connection, as one that stops or dies does: without a round
    trip, which would cost every search a tenth of a millisecond a connection."""
    conn.pgconn.consume_input()


def migrate(url: str) -> list[str]:
    """Applies the migrations that are missing; returns their names. Safe when two processes start at once."""
    with connect(url) as conn:
        conn.execute("select pg_advisory_lock(%s)", [MIGRATION_LOCK])  # released with the connection
        try:
            _check_pgvector(conn)
            return [] if _applied_all(conn) else _apply(_yoyo_url(url))
        except psycopg.errors.InsufficientPrivilege as error:
            if error.diag.message_hint:  # a migration's own
                raise DatabaseError(
                    f"{without_password(url)}: {error.diag.message_primary}; {error.diag.message_hint}"
                ) from None
            raise DatabaseError(
                f"{without_password(url)}: {error.diag.message_primary}; as a superuser run `create extension if not"
                " exists vector; alter extension vector update;` in this database, and let the user create tables"
            ) from None


def _apply(yoyo_url: str) -> list[str]:
    from yoyo import get_backend, read_migrations

    backend = get_backend(yoyo_url)
    try:
        pending = backend.to_apply(read_migrations(str(_migrations_dir())))
        backend.apply_migrations(pending)
        return [migration.id for migration in pending]
    finally:
        backend.connection.close()


@cache
def _migrations_dir() -> Path:
    """`rag/migrations` in an installed wheel, `migrations/` in a checkout."""
    inside = Path(str(resources.files("rag"))) / "migrations"
    return inside if inside.is_dir() else inside.parent.parent / "migrations"


def _applied_all(conn: psycopg.Connection[Any]) -> bool:
    """A cheap look before yoyo's own, which takes 100 ms: every command passes here."""
    if conn.execute("select to_regclass('_yoyo_migration')").fetchone() == (None,):
        return False
    applied = {row[0] for row in conn.execute("select migration_id from _yoyo_migration")}
    return {path.stem for path in _migrations_dir().glob("*.sql")} <= applied


def _yoyo_url(url: str) -> str:
    """The same database in the spelling that makes yoyo use psycopg 3."""
    params = conninfo_to_dict(url)
    database = quote(str(params.pop("dbname", "")), safe="")
    return f"postgresql+psycopg:///{database}?{urlencode(params)}"


def _check_pgvector(conn: psycopg.Connection[Any]) -> None:
    row = conn.execute(
        "select default_version, installed_version from pg_available_extensions where name = 'vector'"
    ).fetchone()
    wanted = ".".join(map(str, MIN_PGVECTOR))
    if row is None:
        raise DatabaseError(
            f"PostgreSQL {conn.info.server_version // 10000} has no pgvector (expected {wanted} or newer);"
            " run ./setup-pgvector.sh on its machine, or unset DATABASE_URL to use the embedded server"
        )
    available, installed = row
    if installed is not None and _version(installed) < MIN_PGVECTOR <= _version(available):
        conn.execute("alter extension vector update")
        conn.commit()
    elif _version(installed or available) < MIN_PGVECTOR:
        raise DatabaseError(
            f"pgvector {installed or available} is too old (expected {wanted} or newer: older ones corrupt HNSW"
            " indexes); run ./setup-pgvector.sh on its machine, then `alter extension vector update;`"
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
