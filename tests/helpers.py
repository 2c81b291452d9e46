"""What the tests of every floor use: waiting without sleeping, and asking a database without our own code.

``tests/`` is on the import path (``conftest.py`` puts it there): ``from helpers import wait_until``.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import psycopg2

from queuedtask.db.databases import EMPTY, Databases
from queuedtask.db.embedded import EmbeddedServer
from queuedtask.testing import wait_until

__all__ = [
    "apply_migrations",
    "execute",
    "fresh_database",
    "has_begun",
    "raw_connection",
    "send_all",
    "somebody_waits_for_a_lock",
    "wait_until",
]


def has_begun(ref: Any) -> bool:
    """Tell whether a task's own code runs, as its row shows half a second later; *doing* is also what is claimed."""
    row = ref.row()
    return row.state == "doing" and row.date_started is not None


def send_all(pids: Iterable[int], number: int) -> None:
    """Send a signal to processes; those that have ended meanwhile, as a closed connection's does, are passed over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


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


def somebody_waits_for_a_lock(url: str) -> bool:
    """Tell whether a statement in this database waits for somebody else's lock."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return bool(execute(url, waiting))


def apply_migrations(url: str) -> None:
    """Bring the database to our current schema."""
    from queuedtask.db import migrate

    with contextlib.closing(raw_connection(url, autocommit=False)) as connection:
        with connection.cursor() as cursor:
            migrate.upgrade(cursor)
        connection.commit()


@contextlib.contextmanager
def fresh_database(server: EmbeddedServer, template: str = EMPTY) -> Iterator[str]:
    """Make a database and give its URL; it is dropped afterwards whoever is still connected."""
    with Databases(server.url).fresh(template) as url:
        yield url
