"""Connections for tasks: a transaction each, and statements that can be cancelled while the task waits for them.

A thread that waits for the database cannot be interrupted by an exception; its backend can, from another connection.
A connection whose attempt was interrupted is closed and never used again: a cancellation may still be on its way to
its backend, and must not hit somebody else's statement.
"""

import logging
import threading
import time
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Final

import psycopg2

from queuedtask.db import reads
from queuedtask.db.connections import Database, TaskConnection
from queuedtask.errors import DatabaseUnavailable, LeaseLost
from queuedtask.run.attempt import Attempt

if TYPE_CHECKING:
    from sqlalchemy import Connection

logger = logging.getLogger("queuedtask.worker")

CANCEL_INTERVAL: Final = 0.5
"""Seconds until a task's SQL is cancelled once more: it may catch the error and go on with the next statement."""


class TaskConnections:
    """What ``current_task().connection()`` draws from: the pool of the queue's own engine."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self, attempt: Attempt) -> "_Block":
        """Return a context manager that gives a connection to an attempt."""
        return _Block(self._database, attempt)

    def cancel(self, attempt: Attempt) -> None:
        """Cancel an attempt's SQL from a thread and a connection of their own: both may wait."""
        thread = threading.Thread(target=self._cancel, args=(attempt,), name=f"cancel-{attempt.task.id}", daemon=True)
        thread.start()

    def _cancel(self, attempt: Attempt) -> None:
        while attempt.open_connections and not attempt.is_given_up:
            # What the task shields is held back, like the exception in its thread.
            if not attempt.guard.is_held:
                backends = [opened.backend for opened in attempt.open_connections]
                try:
                    with closing(self._database.connect()) as connection, connection.cursor() as cursor:
                        reads.cancel_backends(cursor, backends)
                except (psycopg2.Error, DatabaseUnavailable) as error:
                    logger.warning("task %s: its SQL could not be cancelled: %s", attempt.task.id, error)
            time.sleep(CANCEL_INTERVAL)

    def finish(self, attempt: Attempt) -> None:
        """Close what an attempt has left open: an interrupt may have ended it before its block could."""
        left, attempt.open_connections = attempt.open_connections, ()
        for opened in left:
            opened.discard()


class _Block:
    """One ``with current_task().connection()``. Nothing of it is interrupted, only what the task does inside."""

    def __init__(self, database: Database, attempt: Attempt) -> None:
        self._database = database
        self._attempt = attempt
        self._opened: TaskConnection | None = None

    def __enter__(self) -> "Connection":
        attempt = self._attempt
        with attempt.guard.hold():
            if attempt.is_given_up:
                raise LeaseLost("the attempt outlived its timeout and was given up: it gets no connection any more")
            self._opened = self._database.open_for_task()
            attempt.open_connections += (self._opened,)
        return self._opened.connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        opened, attempt = self._opened, self._attempt
        assert opened is not None
        with attempt.guard.hold():
            try:
                if kind is None:
                    if attempt.is_given_up:
                        raise LeaseLost("the attempt outlived its timeout and was given up: nothing was committed")
                    opened.connection.commit()
            finally:
                attempt.open_connections = tuple(o for o in attempt.open_connections if o is not opened)
                if attempt.interrupted_at is None:
                    opened.connection.close()  # rolls back what was not committed
                else:
                    opened.discard()
