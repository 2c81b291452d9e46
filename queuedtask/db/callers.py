"""Connections that callers bring, to add tasks in their own transactions.

Nothing here begins, commits or rolls back: what is executed belongs to the transaction that the caller has open, or
commits by itself where the caller's connection does. Libraries that are not imported yet cannot have made the
connection, so none is imported here.
"""

import sys
from collections.abc import Sequence
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

import psycopg2.extensions
from sqlalchemy import Connection, Dialect, Engine

from queuedtask.db.statement import Cursor, Statement
from queuedtask.errors import InvalidTask

ALLOWED: Final = (
    "a SQLAlchemy Connection or Session, a psycopg2 or psycopg Connection, or a Django connection or its alias"
)

SAVEPOINT: Final = "queuedtask"


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


class CallersTransaction:
    """A transaction on a caller's connection, of which he leaves us the end."""

    def __init__(self, connection: object) -> None:
        """Take a connection. Raises InvalidTask where it could not be committed together with ours."""
        self._given = connection = _of_alias(connection) if isinstance(connection, str) else connection
        self._atomic: Any = None
        if _is_a(connection, "django.db.backends.base.base", "BaseDatabaseWrapper"):
            wrapper = cast(Any, connection)
            _require(not wrapper.in_atomic_block, "it is inside atomic() already, whose end is not ours")
            self._atomic = sys.modules["django.db.transaction"].atomic(using=wrapper.alias)
            self._atomic.__enter__()
        try:
            self.cursor = cursor_on(connection)
            _require(not _commits_by_itself(connection), "it commits every statement by itself")
        except BaseException:
            self.roll_back()
            raise

    @property
    def value(self) -> Any:
        """The caller's connection."""
        return self._given

    def flush(self) -> None:
        """Send what a Session still keeps back."""
        if _is_a(self._given, "sqlalchemy.orm", "Session", "scoped_session"):
            cast(Any, self._given).flush()

    def commit(self) -> None:
        """End it well."""
        if self._atomic is not None:
            self._atomic.__exit__(None, None, None)
        else:
            cast(Any, self._given).commit()

    def roll_back(self) -> None:
        """End it badly."""
        if self._atomic is not None:
            error = InvalidTask("rolled back")
            self._atomic.__exit__(type(error), error, None)
        else:
            cast(Any, self._given).rollback()


class NestedTransaction:
    """A savepoint in the transaction that a caller has open, whose end is ours: that of the transaction is not."""

    def __init__(self, connection: object) -> None:
        """Begin it, by the means of the caller's library where it has some: it keeps a record of its own."""
        self._given = connection = _of_alias(connection) if isinstance(connection, str) else connection
        self._library: Any = None
        if _is_a(connection, "django.db.backends.base.base", "BaseDatabaseWrapper"):
            self._library = sys.modules["django.db.transaction"].atomic(using=cast(Any, connection).alias)
            self._library.__enter__()
        elif isinstance(connection, Connection) or _is_a(connection, "sqlalchemy.orm", "Session", "scoped_session"):
            self._library = cast(Any, connection).begin_nested()
        self.cursor = cursor_on(connection)
        if self._library is None:
            self.cursor.execute(f"SAVEPOINT {SAVEPOINT}")

    @property
    def value(self) -> Any:
        """The caller's connection."""
        return self._given

    @property
    def of_sqlalchemy(self) -> Connection | None:
        """The caller's connection as SQLAlchemy's, where it is one or a Session's."""
        if _is_a(self._given, "sqlalchemy.orm", "Session", "scoped_session"):
            return cast(Connection, cast(Any, self._given).connection())
        return self._given if isinstance(self._given, Connection) else None

    def flush(self) -> None:
        """Send what a Session still keeps back."""
        if _is_a(self._given, "sqlalchemy.orm", "Session", "scoped_session"):
            cast(Any, self._given).flush()

    def commit(self) -> None:
        """Release the savepoint."""
        if self._library is None:
            self.cursor.execute(f"RELEASE SAVEPOINT {SAVEPOINT}")
        elif hasattr(self._library, "commit"):
            self._library.commit()
        else:
            self._library.__exit__(None, None, None)

    def roll_back(self) -> None:
        """Go back to the savepoint."""
        if self._library is None:
            _go_back(self.cursor)
        elif hasattr(self._library, "rollback"):
            self._library.rollback()
        else:
            error = InvalidTask("rolled back")
            self._library.__exit__(type(error), error, None)


class Mark:
    """A place in a caller's transaction to go back to, should what comes after it break the transaction."""

    def __init__(self, connection: object) -> None:
        self._given = _of_alias(connection) if isinstance(connection, str) else connection
        self._callbacks = len(getattr(self._given, "run_on_commit", ()))
        cursor_on(self._given).execute(f"SAVEPOINT {SAVEPOINT}")

    def mend(self) -> bool:
        """Go back to it if the transaction takes no more statements; tell whether it was so."""
        try:
            cursor_on(self._given).execute("SELECT 1")
        except Exception:
            if _is_a(self._given, "django.db.backends.base.base", "BaseDatabaseWrapper"):
                wrapper = cast(Any, self._given)
                wrapper.needs_rollback = False  # as transaction.set_rollback() does
                del wrapper.run_on_commit[self._callbacks :]  # what was to follow on what is undone
            _go_back(cursor_on(self._given))
            return True
        # It is not released: whoever has ended the transaction that it was in has taken it along.
        return False


def _go_back(cursor: Cursor) -> None:
    cursor.execute(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
    cursor.execute(f"RELEASE SAVEPOINT {SAVEPOINT}")


def are_same(one: object, other: object) -> bool:
    """Tell whether two callers' connections are one and the same to the database."""
    return _of_driver(one) is _of_driver(other)


def is_inside_atomic(connection: object) -> bool:
    """Tell whether a connection is Django's, inside a block of ``atomic()``."""
    connection = _of_alias(connection) if isinstance(connection, str) else connection
    is_django = _is_a(connection, "django.db.backends.base.base", "BaseDatabaseWrapper")
    return is_django and bool(cast(Any, connection).in_atomic_block)


def _commits_by_itself(connection: object) -> bool:
    if _is_a(connection, "django.db.backends.base.base", "BaseDatabaseWrapper"):
        return False  # it is inside an atomic block of ours
    return bool(getattr(_of_driver(connection), "autocommit", False))


def is_in_transaction(connection: object) -> bool:
    """Tell whether what is executed on a caller's connection is part of a transaction that goes on after it."""
    connection = _of_driver(connection)
    if not getattr(connection, "autocommit", False):
        return True  # it begins with our statement at the latest
    # Somebody may have begun one by hand.
    if isinstance(connection, psycopg2.extensions.connection):
        return connection.get_transaction_status() != psycopg2.extensions.TRANSACTION_STATUS_IDLE
    if _is_a(connection, "psycopg", "Connection"):
        return int(cast(Any, connection).info.transaction_status) != psycopg2.extensions.TRANSACTION_STATUS_IDLE
    return False


def _of_driver(connection: object) -> object:
    if isinstance(connection, str):
        connection = _of_alias(connection)
    if _is_a(connection, "sqlalchemy.orm", "Session", "scoped_session"):
        connection = cast(Any, connection).connection()
    if isinstance(connection, Connection):
        return connection.connection.driver_connection
    if _is_a(connection, "django.db.backends.base.base", "BaseDatabaseWrapper"):
        wrapper = cast(Any, connection)
        wrapper.ensure_connection()
        return cast(object, wrapper.connection)
    return connection


def sqlstate(error: BaseException) -> str | None:
    """Return the five characters by which PostgreSQL calls an error, whatever library raises it; None without them."""
    # SQLAlchemy has the driver's own error as orig, Django as its cause.
    for each in (error, getattr(error, "orig", None), error.__cause__):
        for name in ("sqlstate", "pgcode"):
            if isinstance(code := getattr(each, name, None), str):
                return code
        details = each.args[0] if isinstance(each, BaseException) and each.args else None
        if isinstance(details, dict) and "C" in details:  # pg8000
            return str(details["C"])
    return None


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


_known_texts: WeakKeyDictionary[Dialect, dict[Statement, tuple[str, list[str] | None]]] = WeakKeyDictionary()


def _texts(dialect: Dialect, statement: Statement) -> tuple[str, list[str] | None]:
    """Return a statement's text for a driver, and the names of its parameters where it numbers them."""
    known = _known_texts.setdefault(dialect, {})
    if statement not in known:
        if dialect.paramstyle == "pyformat":
            known[statement] = statement.sql, None
        else:
            compiled = cast(Any, statement.core).compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
            known[statement] = str(compiled), list(compiled.positiontup)
    return known[statement]


class _SQLAlchemyCursor:
    """Executes our statements on a Connection of SQLAlchemy's, whatever its driver, and so in its transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._result: Any = None

    @property
    def rowcount(self) -> int:
        return int(self._result.rowcount)

    def execute_statement(self, statement: Statement, parameters: dict[str, Any]) -> None:
        # As text: execute() would take every parameter that is named like a column for one that is to be set.
        sql, names = _texts(self._connection.dialect, statement)
        given = parameters if names is None else tuple(parameters[name] for name in names)
        self._result = self._connection.exec_driver_sql(sql, given)

    def execute(self, query: Any, params: Any = None, /) -> Any:
        self._result = self._connection.exec_driver_sql(query, params)

    def fetchone(self) -> Any:
        return self._result.fetchone()

    def fetchall(self) -> Sequence[Any]:
        return cast(Sequence[Any], self._result.fetchall())
