"""Connections that callers bring, to add tasks in their own transactions.

Nothing here begins, commits or rolls back: what is executed belongs to the transaction that the caller has open, or
commits by itself where the caller's connection does. Libraries that are not imported yet cannot have made the
connection, so none is imported here.
"""

import sys
from collections.abc import Sequence
from typing import Any, Final, cast

import psycopg2.extensions
from sqlalchemy import Connection, Engine

from queuedtask.db.statement import Cursor, Statement
from queuedtask.errors import InvalidTask

ALLOWED: Final = (
    "a SQLAlchemy Connection or Session, a psycopg2 or psycopg Connection, or a Django connection or its alias"
)


def cursor_on(connection: object) -> Cursor:
    """Return a cursor on a caller's connection. Raises InvalidTask for what is none, is closed or is not PostgreSQL's.

    Nothing is sent to the server for that.
    """
    if isinstance(connection, str):
        connection = _of_alias(connection)
    if _is_a(connection, "sqlalchemy.orm", "Session", "scoped_session"):
        connection = cast(Any, connection).connection()
    if isinstance(connection, Connection):
        _require(connection.dialect.name == "postgresql", f"its database is {connection.dialect.name}")
        _require(not connection.closed, "it is closed")
        return _SQLAlchemyCursor(connection)
    if isinstance(connection, psycopg2.extensions.connection) or _is_a(connection, "psycopg", "Connection"):
        driver_connection = cast(Any, connection)
        _require(not driver_connection.closed, "it is closed")
        return cast(Cursor, driver_connection.cursor())
    if _is_a(connection, "django.db.backends.base.base", "BaseDatabaseWrapper"):
        wrapper = cast(Any, connection)
        _require(wrapper.vendor == "postgresql", f"its database is {wrapper.vendor}")
        return cast(Cursor, wrapper.cursor())
    hint = "; an Engine is no transaction" if isinstance(connection, Engine) else ""
    raise InvalidTask(
        f"connection={type(connection).__module__}.{type(connection).__qualname__}: must be {ALLOWED}{hint}"
    )


def _is_a(value: object, module: str, *names: str) -> bool:
    found = sys.modules.get(module)
    return found is not None and isinstance(value, tuple(getattr(found, name) for name in names))


def _of_alias(alias: str) -> object:
    django = sys.modules.get("django.db")
    _require(django is not None, f"{alias!r} is an alias of Django's, which is not in use here")
    try:
        return cast(Any, django).connections[alias]
    except Exception as error:  # ConnectionDoesNotExist, ImproperlyConfigured
        raise InvalidTask(f"connection={alias!r}: {error}") from None


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise InvalidTask(f"connection: {problem}; it must be {ALLOWED}")


class _SQLAlchemyCursor:
    """Executes our statements on a Connection of SQLAlchemy's, whatever its driver, and so in its transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._result: Any = None

    @property
    def rowcount(self) -> int:
        return int(self._result.rowcount)

    def execute_statement(self, statement: Statement, parameters: dict[str, Any]) -> None:
        self._result = self._connection.execute(statement.core, parameters)

    def execute(self, query: Any, params: Any = None, /) -> Any:
        self._result = self._connection.exec_driver_sql(query, params)

    def fetchone(self) -> Any:
        return self._result.fetchone()

    def fetchall(self) -> Sequence[Any]:
        return cast(Sequence[Any], self._result.fetchall())
