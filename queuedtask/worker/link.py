"""A worker's link to the database: the connection of its conversation, and the one that listens.

Both are the worker's own. When the server is gone the link says so once, tries again with a growing, jittered delay,
and says once that it is back.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, cast

import psycopg2
import psycopg2.extensions

from queuedtask.config import Config
from queuedtask.db.connections import Database, is_transient
from queuedtask.db.listening import Listener
from queuedtask.db.statement import Cursor
from queuedtask.errors import DatabaseUnavailable
from queuedtask.worker.watchdog import Watchdog

logger = logging.getLogger("queuedtask.worker")

FIRST_DELAY: Final = 0.2
LONGEST_DELAY: Final = 15.0
LONGEST_DEADLINE: Final = 10.0
"""Seconds that the server has to answer a statement, unless the lease is so short that it has less."""

Connection = psycopg2.extensions.connection


class Backoff:
    """When to try again: at once, then after delays that double, each shortened by up to a half by chance."""

    def __init__(self) -> None:
        self._failures = 0
        self.retry_at = 0.0

    def failed(self) -> None:
        """Put off the next try."""
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(self._failures, 10))
        self._failures += 1
        # Workers that lost the same server together shall not come back together.
        self.retry_at = time.monotonic() + delay * random.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """Start anew."""
        self._failures = 0
        self.retry_at = 0.0


class Link:
    """The two connections. ``on_return`` runs after the conversation's connection has come back."""

    def __init__(self, database: Database, config: Config, *, on_return: Callable[[Cursor], None]) -> None:
        self._database = database
        self._config = config
        self._on_return = on_return
        self._connection: Connection | None = None
        self._listener: Listener | None = None
        self._backoff = Backoff()
        self._listen_backoff = Backoff()
        self._is_read_committed = True
        self._was_lost = False
        self._was_deaf = False
        self._watchdog = Watchdog(lambda: max(1.0, min(LONGEST_DEADLINE, config.lease / 3)))

    # ---------------------------------------------------------------------------------------------------- conversation

    def open(self) -> None:
        """Open both connections for the first time. Raises what the driver raises."""
        self._connection = self._connect()
        self._listen()

    def _connect(self) -> Connection:
        connection = self._database.connect()
        with connection.cursor() as cursor:
            cursor.execute("SHOW default_transaction_isolation")
            self._is_read_committed = cursor.fetchone() == ("read committed",)
        return connection

    @property
    def cursor(self) -> Cursor:
        """Return a cursor on which every statement commits by itself."""
        assert self._connection is not None
        self._watchdog.watch(self._connection)
        return cast(Cursor, self._connection.cursor())

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """Give a cursor whose statements commit together at the end of the block."""
        connection = self._connection
        assert connection is not None
        self._watchdog.watch(connection)
        connection.autocommit = False
        try:
            cursor = cast(Cursor, connection.cursor())
            if not self._is_read_committed:
                # Limits are counted after a lock: what was committed meanwhile has to be seen.
                cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            yield cursor
            connection.commit()
        except BaseException:
            if not connection.closed:
                connection.rollback()
            raise
        finally:
            if not connection.closed:
                connection.autocommit = True

    def rest(self) -> None:
        """Say that nothing is awaited from the server now. What is asked of it has a deadline until this is said."""
        self._watchdog.rest()

    @property
    def is_up(self) -> bool:
        """Tell whether there is a connection to talk on."""
        return self._connection is not None

    def lost(self, error: Exception) -> None:
        """Take note that the conversation failed in a way that may pass; say so the first time."""
        if not self._was_lost:
            logger.warning("the database cannot be reached, trying again until it can: %s", _line(error))
        self._was_lost = True
        _close(self._connection)
        self._connection = None
        self._drop_listener()
        self._backoff.failed()

    def restore(self) -> bool:
        """Try to open the connections again when it is time; tell whether the conversation can go on."""
        if self._connection is not None:
            return True
        if time.monotonic() < self._backoff.retry_at:
            return False
        try:
            self._connection = self._connect()
            self._on_return(self.cursor)
        except DatabaseUnavailable as error:
            self.lost(error)
            return False
        except psycopg2.Error as error:
            if not is_transient(error):
                raise
            self.lost(error)
            return False
        self._backoff.succeeded()
        self._listen()
        logger.warning("the database is back")
        self._was_lost = False
        return True

    # ------------------------------------------------------------------------------------------------------- listening

    @property
    def is_listening(self) -> bool:
        """Tell whether notifications arrive; without them the worker polls more often."""
        return self._listener is not None

    def fileno(self) -> int | None:
        """Return the descriptor of the listening connection, to wait for."""
        return None if self._listener is None else self._listener.fileno()

    def heard(self) -> bool:
        """Tell whether a notification has arrived since the last call; never waits."""
        listener = self._listener
        if listener is None:
            if self._is_wanted and self.is_up and time.monotonic() >= self._listen_backoff.retry_at:
                self._listen()
                return self.is_listening
            return False
        try:
            # What it says is never looked at: it is a reason to look for work.
            return bool(listener.received())
        except psycopg2.Error as error:
            logger.debug("LISTEN was lost: %s", _line(error))
            self._drop_listener()
            # What was sent meanwhile is gone: look for work.
            return True

    @property
    def retry_at(self) -> float:
        """Return when the next try to come back is due, on the monotonic clock; infinite when nothing is amiss."""
        if not self.is_up:
            return self._backoff.retry_at
        if self._listener is None and self._is_wanted:
            return self._listen_backoff.retry_at
        return float("inf")

    @property
    def _is_wanted(self) -> bool:
        return self._config.use_postgresql_notify

    def _listen(self) -> None:
        """Listen, or fall back to polling until that works."""
        if not self._is_wanted:
            return
        try:
            connection = self._database.connect_to_listen()
            self._listener = Listener(connection, self._config.notify_channel, watch=self._watchdog.watch)
        except (DatabaseUnavailable, psycopg2.Error) as error:
            self._listen_backoff.failed()
            if not self._was_deaf:
                logger.warning(
                    "cannot listen, polling every %g s instead: %s",
                    self._config.polling_interval,
                    _line(error),
                )
            self._was_deaf = True
            return
        self._listen_backoff.succeeded()
        if self._was_deaf:
            logger.warning("listening again")
            self._was_deaf = False

    def _drop_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
        self._listener = None

    def close(self) -> None:
        """Close both connections, for good."""
        self._watchdog.end()
        self._drop_listener()
        _close(self._connection)
        self._connection = None


def _close(connection: Connection | None) -> None:
    if connection is not None and not connection.closed:
        try:
            connection.close()
        except psycopg2.Error:
            pass  # It is dead already.


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
