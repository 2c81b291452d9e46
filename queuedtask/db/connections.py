"""Connections: one engine for adding and asking, and connections of their own for a worker.

The engine is made on first use and belongs to one process: a child that inherited it through a fork abandons it
instead of sharing a socket with its parent.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, cast

import psycopg2
import psycopg2.extensions
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, exc, func, make_url, select
from sqlalchemy.pool import Pool, PoolProxiedConnection, QueuePool

from queuedtask.config import Config
from queuedtask.db import embedded, migrate
from queuedtask.db.callers import sqlstate
from queuedtask.db.statement import Cursor, CursorContext
from queuedtask.errors import DatabaseUnavailable

logger = logging.getLogger("queuedtask.database")

# A cut network is noticed within about ten seconds; by default never. What the URL says comes first.
_DEFAULTS: Final[Mapping[str, Any]] = {
    "application_name": "queuedtask",
    # Whatever the environment, the role or the database says: what cannot be sent would stop a worker.
    "client_encoding": "utf8",
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}
_IDLE_BEFORE_PING: Final = 5.0
MOST_ATTEMPTS: Final = 10
"""How often a transaction is tried that the server rolls back because of a conflict with another one."""
T = TypeVar("T")
_CONFLICT_CODES: Final = frozenset({"40001", "40P01"})
_UNIQUE_VIOLATION: Final = "23505"
_TRANSIENT_CODES: Final = frozenset({*_CONFLICT_CODES, "25P03", "55P03", "53300", "53400", "25006", "57014"})

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


def is_conflict(error: BaseException) -> bool:
    """Tell whether the server rolled a transaction back for another one's sake, whatever driver or library says so.

    That is a deadlock, a serialization failure, or a unique key that somebody took while a task went round again.
    """
    code = sqlstate(error)
    if code == _UNIQUE_VIOLATION:
        diagnostics = getattr(error, "diag", None) or getattr(error.__cause__, "diag", None)
        return getattr(diagnostics, "constraint_name", None) == "queued_tasks_unique"
    return code in _CONFLICT_CODES


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
        self._kept: deque[_Kept] = deque()
        self._pid = os.getpid()

    @property
    def is_passing(self) -> bool:
        """Whether it is about to be dropped, as a test's is: then nobody may stay connected to it unasked."""
        return False

    @property
    def apart(self) -> "Database":
        """The same database, on connections that are never in a transaction of the caller's."""
        return self

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
                self._kept.clear()
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

    def _engine_for(self, url: str, *, keeps_idle: bool = True) -> Engine:
        parsed = make_url(url)
        pool: dict[str, Any] = {"pool_size": self.config.pool_size, "pool_use_lifo": True}
        if not keeps_idle:
            pool = {"poolclass": NullPool}
        # Whoever takes a connection ends its transaction; to make sure of it again is a tenth of adding a task.
        engine = create_engine(parsed, connect_args=_defaults_for(parsed), pool_reset_on_return=None, **pool)
        event.listen(engine, "checkin", _remember_checkin)
        event.listen(engine, "checkout", _make_ready)
        return engine

    def transaction(self) -> CursorContext:
        """Give a cursor in a transaction of its own: committed at the end, rolled back on an error."""
        return _transaction(self.engine)

    def in_transaction(self, work: Callable[[Cursor], T]) -> T:
        """Do some work in a transaction of its own; once more when the server rolls it back for another one's sake."""
        for attempts_left in reversed(range(MOST_ATTEMPTS)):
            try:
                with self.transaction() as cursor:
                    return work(cursor)
            except psycopg2.Error as error:
                if not is_conflict(error) or not attempts_left:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def autocommit(self) -> CursorContext:
        """Give a cursor on which every statement commits by itself: a round trip less for a single one."""
        return self._autocommit()

    @contextmanager
    def _autocommit(self) -> Iterator[Cursor]:
        engine = self.engine
        connection = self._take_kept(engine) or _checkout(engine)
        driver_connection = cast(Any, connection.dbapi_connection)
        as_found = engine is self._given and driver_connection.autocommit
        driver_connection.autocommit = True
        try:
            yield cast(Cursor, connection.cursor())
        except BaseException as error:
            try:
                _abandon(engine, connection, error)
            finally:
                _give_back(connection, autocommit=as_found)
            raise
        # Last, and one or the other: an interrupt in between must not leave it in the pool and at hand.
        if self._may_keep(engine):
            self._kept.append(_Kept(connection, engine.pool, time.monotonic()))
        else:
            _give_back(connection, autocommit=as_found)

    def _may_keep(self, engine: Engine) -> bool:
        # Giving a connection back and taking it again is a tenth of adding a task.
        is_ours = engine is self._engine and engine is not self._given
        return is_ours and not self._kept and isinstance(engine.pool, QueuePool)

    def _take_kept(self, engine: Engine) -> PoolProxiedConnection | None:
        kept = self._pop_kept()
        if kept is None:
            return None
        connection, pool, idle_since = kept
        # An engine that was disposed of, because the server was gone or its URL is another one, has a new pool.
        if pool is engine.pool and _is_usable(connection.dbapi_connection, idle_since):
            return connection
        connection.invalidate()
        connection.close()
        return None

    def _pop_kept(self) -> "_Kept | None":
        try:
            return self._kept.pop()
        except IndexError:  # also because another thread was quicker
            return None

    def connect(self) -> psycopg2.extensions.connection:
        """Open a connection that belongs to the caller, outside the pool, in autocommit mode."""
        return _detached(self.engine)

    def connect_to_listen(self) -> psycopg2.extensions.connection:
        """Open a connection for LISTEN: direct, where a pooler stands before the database (QUEUE_LISTEN_URL).

        Raises DatabaseUnavailable for a connection that nothing may be heard on, too: one through a pooler, unless it
        is named in that setting.
        """
        if self.config.listen_url is None:
            connection = self.connect()
            if _is_pooled(connection):
                connection.close()
                raise DatabaseUnavailable(
                    "there is a pooler between here and the server, such as PgBouncer, which passes on no "
                    "notifications: give QUEUE_LISTEN_URL a direct connection"
                )
            return connection
        return _bare(make_url(self.config.listen_url))

    def open_for_task(self) -> "TaskConnection":
        """Take a connection from the pool, in a transaction, for a task that may have to be cancelled.

        Raises DatabaseUnavailable.
        """
        try:
            connection = self.engine.connect()
        except (psycopg2.OperationalError, exc.OperationalError, exc.TimeoutError) as error:
            raise unavailable(error) from error
        if cast(Any, connection.connection.dbapi_connection).autocommit:
            connection = connection.execution_options(isolation_level="READ COMMITTED")
        # The transaction has begun with it: behind PgBouncer the backend stays the same until its end.
        return TaskConnection(connection, int(connection.execute(select(func.pg_backend_pid())).scalar_one()))

    def close(self) -> None:
        """Close the pooled connections; a later use opens new ones. An engine that the caller brought is left alone."""
        if self._engine is not None and self._engine is not self._given and self._pid == os.getpid():
            while (kept := self._pop_kept()) is not None:
                _give_back(kept.connection, autocommit=False)
            self._engine.dispose()


class FollowingDatabase(Database):
    """A database that somebody else names, and may name anew: the engine is made again where the URL has changed."""

    def __init__(self, config: Config, url: Callable[[], str], is_passing: Callable[[], bool]) -> None:
        super().__init__(config)
        self._url_now = url
        self._is_passing_now = is_passing
        self._made_for: str | None = None

    @property
    def is_passing(self) -> bool:
        """Whether it is about to be dropped."""
        return self._is_passing_now()

    @property
    def engine(self) -> Engine:
        """Return this process's engine for what the URL is now."""
        if self._engine is not None and self._made_for != self._url_now():
            with _making_an_engine:
                self.close()
                self._engine = None
        return super().engine

    def _make_engine(self) -> Engine:
        self._made_for = self._url_now()
        return self._engine_for(self._made_for, keeps_idle=not self.is_passing)


def url_of(parameters: Mapping[str, object]) -> str:
    """Return the URL for what libpq calls the parameters of a connection; user, password and dbname among them."""
    query = {name: str(value) for name, value in parameters.items() if name not in ("user", "password", "dbname")}
    user, password, name = (
        None if parameters.get(key) is None else str(parameters[key]) for key in ("user", "password", "dbname")
    )
    url = URL.create("postgresql+psycopg2", username=user, password=password, database=name, query=query)
    return url.render_as_string(hide_password=False)


class _Kept(NamedTuple):
    """A connection in autocommit mode that stays taken from its pool, and since when nobody uses it."""

    connection: PoolProxiedConnection
    pool: Pool
    idle_since: float


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


def _make_ready(dbapi_connection: Any, record: Any, proxy: Any) -> None:
    """Replace a pooled connection that died while it idled (a restart, a firewall), without a ping at every use.

    And clear up after a block that was cut off before it could do so itself: an interrupt may land anywhere.
    """
    if not _is_usable(dbapi_connection, record.info.get("idle_since")):
        raise exc.DisconnectionError("it does not answer any more")
    if dbapi_connection.autocommit:
        dbapi_connection.autocommit = False


def _is_usable(dbapi_connection: Any, idle_since: float | None) -> bool:
    """Ask a connection that has idled for a sign of life, and end a transaction that was left open on it."""
    is_recent = idle_since is None or time.monotonic() - idle_since < _IDLE_BEFORE_PING
    if is_recent and dbapi_connection.get_transaction_status() == psycopg2.extensions.TRANSACTION_STATUS_IDLE:
        return True
    try:
        with dbapi_connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        dbapi_connection.rollback()
    except psycopg2.Error:
        return False
    return True


def _checkout(engine: Engine) -> PoolProxiedConnection:
    try:
        return engine.raw_connection()
    # ProgrammingError: libpq does not know what the URL says.
    except (psycopg2.OperationalError, psycopg2.ProgrammingError, exc.OperationalError, exc.TimeoutError) as error:
        raise unavailable(error) from error


def _detached(engine: Engine) -> psycopg2.extensions.connection:
    proxied = _checkout(engine)
    proxied.detach()
    connection = cast(psycopg2.extensions.connection, proxied.dbapi_connection)
    connection.autocommit = True
    return connection


def _defaults_for(url: URL) -> dict[str, Any]:
    return {name: value for name, value in _DEFAULTS.items() if name not in url.query}


def _bare(url: URL) -> psycopg2.extensions.connection:
    """Open a connection on which nothing has been asked yet: a pooler with none to spare might not answer for long."""
    _, parameters = url.get_dialect()().create_connect_args(url)
    connection: psycopg2.extensions.connection
    try:
        connection = psycopg2.connect(**_defaults_for(url), **parameters)
    except (psycopg2.OperationalError, psycopg2.ProgrammingError) as error:
        raise unavailable(error) from error
    connection.autocommit = True
    return connection


def _is_pooled(connection: psycopg2.extensions.connection) -> bool:
    """Tell whether somebody else answers in the server's place: he makes up what clients cancel statements with."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone() != (connection.info.backend_pid,)


def unavailable(error: Exception) -> DatabaseUnavailable:
    """Return our own error for a server that cannot be reached, on one line."""
    return DatabaseUnavailable(" ".join(str(getattr(error, "orig", None) or error).split()))


@contextmanager
def _transaction(engine: Engine) -> Iterator[Cursor]:
    connection = _checkout(engine)
    driver_connection = cast(Any, connection.dbapi_connection)
    # An engine of the caller's may have been made to commit by itself.
    as_found = driver_connection.autocommit
    if as_found:
        driver_connection.autocommit = False
    try:
        yield cast(Cursor, connection.cursor())
        connection.commit()
    except BaseException as error:
        _abandon(engine, connection, error)
        raise
    finally:
        if as_found and not driver_connection.closed:
            driver_connection.autocommit = True
        connection.close()


def _give_back(connection: PoolProxiedConnection, *, autocommit: bool) -> None:
    driver_connection = cast(Any, connection.dbapi_connection)
    if driver_connection is not None and not driver_connection.closed:
        driver_connection.autocommit = autocommit
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
