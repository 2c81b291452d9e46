"""Connections: one engine for adding and asking, and connections of their own for a worker.

The engine is made on first use and belongs to one process: a child that inherited it through a fork abandons it
instead of sharing a socket with its parent.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import psycopg2
import psycopg2.extensions
from sqlalchemy import Connection, Engine, create_engine, event, exc, func, make_url, select
from sqlalchemy.pool import PoolProxiedConnection

from queuedtask.config import Config
from queuedtask.db import embedded, migrate
from queuedtask.db.statement import Cursor, CursorContext
from queuedtask.errors import DatabaseUnavailable

logger = logging.getLogger("queuedtask.database")

# A cut network is noticed within about ten seconds; by default never.
_NETWORK: Final[Mapping[str, object]] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}
_IDLE_BEFORE_PING: Final = 5.0
_TRANSIENT_CODES: Final = frozenset({"40001", "40P01", "55P03", "53300", "53400", "25006", "57014"})

_making_an_engine = threading.RLock()


def _renew_lock() -> None:
    # A fork may have copied the lock while another thread held it.
    global _making_an_engine
    _making_an_engine = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def is_transient(error: BaseException) -> bool:
    """Tell whether the same statement may well succeed later: a lost connection, a deadlock, a server that starts."""
    if not isinstance(error, psycopg2.Error):
        return False
    code = error.pgcode
    if code is None:
        # A dead connection: OperationalError where it is noticed, InterfaceError from then on.
        return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    return code in _TRANSIENT_CODES or code[:2] in ("08", "57")


class Database:
    """Where the tasks are: an engine made from a configuration, or one that the caller brings.

    ``announce`` gets the line that says that an embedded server was started; by default it goes to the log.
    """

    def __init__(
        self, config: Config, engine: Engine | None = None, *, announce: Callable[[str], None] | None = None
    ) -> None:
        self.config = config
        self._given = engine
        self.announce = announce or logger.info
        self._engine: Engine | None = None
        self._pid = os.getpid()

    @property
    def engine(self) -> Engine:
        """Return this process's engine, made on first use; on the embedded server this starts and upgrades it."""
        if self._engine is not None and self._pid == os.getpid():
            return self._engine
        with _making_an_engine:
            if self._pid != os.getpid():
                for inherited in {self._engine, self._given} - {None}:
                    # The parent goes on using these sockets: forget them without a word to the server.
                    cast(Engine, inherited).dispose(close=False)
                self._pid = os.getpid()
            if self._engine is None:
                self._engine = self._given or self._make_engine()
            return self._engine

    def _make_engine(self) -> Engine:
        url = self.config.database_url
        if url is not None:
            return self._engine_for(url)
        directory = Path(self.config.embedded_dir) if self.config.embedded_dir else embedded.default_directory()
        engine = self._engine_for(embedded.EmbeddedServer(directory).ensure_running(self.announce))
        # Nobody administers an embedded database: it upgrades by itself.
        with _transaction(engine) as cursor:
            if migrate.pending(cursor):
                migrate.upgrade(cursor)
        return engine

    def _engine_for(self, url: str) -> Engine:
        parsed = make_url(url)
        network = {name: value for name, value in _NETWORK.items() if name not in parsed.query}
        if "application_name" not in parsed.query:
            network["application_name"] = "queuedtask"
        engine = create_engine(
            parsed,
            connect_args=network,
            pool_size=self.config.pool_size,
            pool_use_lifo=True,
        )
        event.listen(engine, "checkin", _remember_checkin)
        event.listen(engine, "checkout", _ping_after_idling)
        return engine

    def transaction(self) -> CursorContext:
        """Give a cursor in a transaction of its own: committed at the end, rolled back on an error."""
        return _transaction(self.engine)

    def autocommit(self) -> CursorContext:
        """Give a cursor on which every statement commits by itself: a round trip less for a single one."""
        return _autocommit(self.engine)

    def connect(self) -> psycopg2.extensions.connection:
        """Open a connection that belongs to the caller, outside the pool, in autocommit mode."""
        return _detached(self.engine)

    def connect_to_listen(self) -> psycopg2.extensions.connection:
        """Open a connection for LISTEN: direct, where a pooler stands before the database (QUEUE_LISTEN_URL)."""
        if self.config.listen_url is None:
            return self.connect()
        engine = self._engine_for(self.config.listen_url)
        try:
            return _detached(engine)
        finally:
            engine.dispose()

    def open_for_task(self) -> "TaskConnection":
        """Take a connection from the pool, in a transaction, for a task that may have to be cancelled.

        Raises DatabaseUnavailable.
        """
        try:
            connection = self.engine.connect()
        except (psycopg2.OperationalError, exc.OperationalError, exc.TimeoutError) as error:
            raise unavailable(error) from error
        # The transaction has begun with it: behind PgBouncer the backend stays the same until its end.
        return TaskConnection(connection, int(connection.execute(select(func.pg_backend_pid())).scalar_one()))

    def close(self) -> None:
        """Close the pooled connections; a later use opens new ones. An engine that the caller brought is left alone."""
        if self._engine is not None and self._engine is not self._given and self._pid == os.getpid():
            self._engine.dispose()


class TaskConnection(NamedTuple):
    """A connection that a task works with, and the server's process behind it."""

    connection: Connection
    backend: int

    def discard(self) -> None:
        """Close it for good; what it has not committed is rolled back by the server."""
        self.connection.invalidate()
        self.connection.close()


def _remember_checkin(dbapi_connection: Any, record: Any) -> None:
    record.info["idle_since"] = time.monotonic()


def _ping_after_idling(dbapi_connection: Any, record: Any, proxy: Any) -> None:
    """Replace a pooled connection that died while it idled (a restart, a firewall), without a ping at every use."""
    idle_since = record.info.get("idle_since")
    if idle_since is None or time.monotonic() - idle_since < _IDLE_BEFORE_PING:
        return
    try:
        with dbapi_connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        dbapi_connection.rollback()
    except Exception as error:
        raise exc.DisconnectionError(str(error)) from error


def _checkout(engine: Engine) -> PoolProxiedConnection:
    try:
        return engine.raw_connection()
    except (psycopg2.OperationalError, exc.OperationalError, exc.TimeoutError) as error:
        raise unavailable(error) from error


def _detached(engine: Engine) -> psycopg2.extensions.connection:
    proxied = _checkout(engine)
    proxied.detach()
    connection = cast(psycopg2.extensions.connection, proxied.dbapi_connection)
    connection.autocommit = True
    return connection


def unavailable(error: Exception) -> DatabaseUnavailable:
    """Return our own error for a server that cannot be reached, on one line."""
    return DatabaseUnavailable(" ".join(str(getattr(error, "orig", None) or error).split()))


@contextmanager
def _transaction(engine: Engine) -> Iterator[Cursor]:
    connection = _checkout(engine)
    try:
        yield cast(Cursor, connection.cursor())
        connection.commit()
    except BaseException as error:
        _abandon(engine, connection, error)
        raise
    finally:
        connection.close()


@contextmanager
def _autocommit(engine: Engine) -> Iterator[Cursor]:
    connection = _checkout(engine)
    driver_connection = cast(Any, connection.dbapi_connection)
    driver_connection.autocommit = True
    try:
        yield cast(Cursor, connection.cursor())
    except BaseException as error:
        _abandon(engine, connection, error)
        raise
    finally:
        if not driver_connection.closed:
            driver_connection.autocommit = False
        connection.close()


def _abandon(engine: Engine, connection: PoolProxiedConnection, error: BaseException) -> None:
    """Roll back. When the server is gone, give up this connection and the idle ones that died with it."""
    driver_connection = cast(Any, connection.dbapi_connection)
    if driver_connection.closed:
        connection.invalidate(error)
        engine.dispose()
        if isinstance(error, Exception):
            raise unavailable(error) from error
    elif not driver_connection.autocommit:
        connection.rollback()
