"""Reads as a caller: a transaction in which the database gives only what the caller may see. SQL, no search.

    with store.pool.connection() as conn, reading_as(conn, access):
        ...

The owner of the tables passes every policy, so the transaction takes the role `rag_reader`, and says by settings whose
it is (migrations/0004-access.sql). Role and settings end with the transaction, however it ends: the next user of a
pooled connection inherits nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from rag.errors import ConfigError, DatabaseError
from rag.records import Access

Condition = tuple[sql.Composable, dict[str, Any]]  # SQL with named placeholders, and what they stand for

_BECOME = (
    "select set_config('role', 'rag_reader', true), set_config('rag.access', %s, true),"
    " set_config('rag.tenant', %s, true), set_config('rag.labels', %s::text[]::text, true)"
)


@contextmanager
def reading_as(conn: psycopg.Connection[Any], access: Access | None) -> Iterator[None]:
    """A transaction that sees what `access` may see; None is the operator, who sees everything.

    Its statements are sent without waiting for what the last one gave; a fetch waits, and raises what any of them
    raises. Raises ConfigError for a tenant or label that no document can have.
    """
    if conn.info.transaction_status != TransactionStatus.IDLE:
        # Within another transaction role and settings would outlive this one.
        raise DatabaseError("expected a connection without a transaction, found one in use; read as the caller first")
    who = ["all", "", []] if access is None else ["tenant", access.tenant, list(access.labels)]
    if access is not None:
        check_names(access.tenant, *access.labels)
    autocommit, conn.autocommit = conn.autocommit, True
    try:
        with conn.pipeline():
            # Not `conn.transaction()`, which waits for the server three times more.
            conn.execute("begin")
            conn.execute(_BECOME, who)
            yield
            conn.execute("commit")
    except psycopg.errors.InsufficientPrivilege as error:
        if "rag_reader" not in (error.diag.message_primary or ""):  # the role was had, and may not do this
            raise
        raise DatabaseError(
            f"{error.diag.message_primary}: readers take the role rag_reader; as a superuser run"
            f" `grant rag_reader to {conn.info.user}`"
        ) from None
    finally:
        if not conn.closed:
            if conn.info.transaction_status != TransactionStatus.IDLE:
                conn.rollback()
            conn.autocommit = autocommit


def access_condition(access: Access | None, alias: str) -> Condition:
    """The same rule as an ordinary condition on `alias`: a second lock, and one that an index can serve."""
    if access is None:
        return sql.SQL("true"), {}
    check_names(access.tenant, *access.labels)
    return sql.SQL("{0}.tenant = %(tenant)s and ({0}.labels = '{{}}' or {0}.labels && %(labels)s::text[])").format(
        sql.Identifier(alias)
    ), {"tenant": access.tenant, "labels": list(access.labels)}


def protect(conn: psycopg.Connection[Any], table: sql.Composable) -> None:
    """Closes a new table of chunks to readers, but for what they may see."""
    conn.execute(sql.SQL("select protect({}::regclass)").format(sql.Literal(table.as_string(conn))))


def check_names(*names: str) -> None:
    """Raises ConfigError for what PostgreSQL cannot hold: it could not be a document's either."""
    for name in names:
        if not is_storable(name):
            raise ConfigError(f"expected a tenant or label without NUL and lone surrogates, found {name!r:.100}")


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can hold it: it takes no NUL, and UTF-8 no lone surrogates."""
    return not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text)
