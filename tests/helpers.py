"""What the tests of every floor use: waiting without sleeping, and making databases.

``tests/`` is on the import path (``conftest.py`` puts it there): ``from helpers import wait_until``.
"""

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import psycopg2
import psycopg2.sql

from queuedtask.db.embedded import EmbeddedServer

T = TypeVar("T")

TEMPLATE = "queuedtask_template"


def wait_until(predicate: Callable[[], T], timeout: float = 10.0, interval: float = 0.01, message: str = "") -> T:
    """Return the first truthy value of the predicate; AssertionError with its last value after the timeout.

    An AssertionError of the predicate counts as "not yet", and is the cause of ours if it stays.
    """
    deadline = time.monotonic() + timeout
    while True:
        cause: AssertionError | None = None
        value: Any = None
        try:
            value = predicate()
        except AssertionError as error:
            cause = error
        if value:
            return value  # type: ignore[no-any-return]
        if time.monotonic() > deadline:
            what = message or getattr(predicate, "__name__", repr(predicate))
            raise AssertionError(f"not within {timeout:g} s: {what} (last: {cause or value!r})") from cause
        time.sleep(interval)


def has_begun(ref: Any) -> bool:
    """Tell whether a task's own code runs, as its row shows half a second later; *doing* is also what is claimed."""
    row = ref.row()
    return row.state == "doing" and row.date_started is not None


def raw_connection(url: str, *, autocommit: bool = True) -> Any:
    """Return a psycopg2 connection to the database of a SQLAlchemy URL; the caller closes it."""
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    connection = psycopg2.connect(
        dbname=unquote(parts.path[1:]),
        user=parts.username,
        password=unquote(parts.password) if parts.password else None,
        host=parts.hostname or query.get("host"),
        port=parts.port or query.get("port"),
    )
    connection.autocommit = autocommit
    return connection


def execute(url: str, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    """Run one statement in autocommit on a connection of its own and return its rows."""
    with contextlib.closing(raw_connection(url)) as connection, connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchall() if cursor.description else []


def apply_migrations(url: str) -> None:
    """Bring the database to our current schema."""
    from queuedtask.db import migrate

    with contextlib.closing(raw_connection(url, autocommit=False)) as connection:
        with connection.cursor() as cursor:
            migrate.upgrade(cursor)
        connection.commit()


def database_url_of(server: EmbeddedServer, name: str) -> str:
    """Return the URL of another database of the server."""
    return server.url.replace(f"@/{server.database}?", f"@/{name}?")


@contextlib.contextmanager
def fresh_database(server: EmbeddedServer, template: str = "template0") -> Iterator[str]:
    """Make a database and give its URL; it is dropped afterwards whoever is still connected."""
    name = f"test_{uuid.uuid4().hex[:16]}"
    _execute_ddl(server, "CREATE DATABASE {} TEMPLATE {}", name, template)
    try:
        yield database_url_of(server, name)
    finally:
        _execute_ddl(server, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


def ensure_template(server: EmbeddedServer) -> str:
    """Return the name of the database with our schema that tests clone; the first process makes it."""
    with locked(server.directory / "template.lock"):
        known = "SELECT 1 FROM pg_database WHERE datname = %s"
        if not execute(server.url, known, (TEMPLATE,)):
            unfinished = f"{TEMPLATE}_unfinished"
            _execute_ddl(server, "DROP DATABASE IF EXISTS {} WITH (FORCE)", unfinished)
            _execute_ddl(server, "CREATE DATABASE {} TEMPLATE template0", unfinished)
            apply_migrations(database_url_of(server, unfinished))
            # Nobody may be connected to a database while it is cloned.
            _execute_ddl(server, "ALTER DATABASE {} ALLOW_CONNECTIONS false", unfinished)
            _execute_ddl(server, "ALTER DATABASE {} RENAME TO {}", unfinished, TEMPLATE)
    return TEMPLATE


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file against the other processes of the test run."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _execute_ddl(server: EmbeddedServer, sql: str, *names: str) -> None:
    statement = psycopg2.sql.SQL(sql).format(*map(psycopg2.sql.Identifier, names))
    with contextlib.closing(raw_connection(server.url)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
