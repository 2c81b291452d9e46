"""Connections for tasks: a transaction each, and statements that can be cancelled while the task waits for them.

A thread that waits for the database cannot be interrupted by an exception; its backend can, from another connection.
A connection whose attempt was interrupted is closed and never used again: a cancellation may still be on its way to
its backend, and must not hit somebody else's statement.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol

import psycopg2

from queuedtask.db import families, moves, reads, store
from queuedtask.db.callers import CallersTransaction, cursor_on
from queuedtask.db.connections import Database, TaskConnection
from queuedtask.db.statement import Cursor
from queuedtask.db.store import Ending
from queuedtask.errors import DatabaseUnavailable, LeaseLost, NotAllowed
from queuedtask.model import outcome, states
from queuedtask.model.outcome import Decision, Outcome
from queuedtask.refs import TaskRef
from queuedtask.run import track
from queuedtask.run.attempt import Attempt
from queuedtask.taskqueue import Queue

if TYPE_CHECKING:
    from sqlalchemy import Connection

logger = logging.getLogger("queuedtask.worker")

CANCEL_INTERVAL: Final = 0.5
"""Seconds until a task's SQL is cancelled once more: it may catch the error and go on with the next statement."""


class TaskConnections:
    """What ``current_task().connection()`` draws from: the pool of the queue's own engine."""

    def __init__(self, queue: Queue, *, worker: Callable[[], int]) -> None:
        self._queue = queue
        self._worker = worker
        self._database = queue.database

    def finish_in(self, attempt: Attempt, connection: object) -> "_FinishingBlock":
        """Return a context manager for a transaction at whose end the attempt is settled as done."""
        return _FinishingBlock(self, attempt, connection)

    def begin(self, attempt: Attempt, given: object) -> "EndedByUs":
        """Begin the transaction that an attempt finishes in: one of ours, or on a connection that is given."""
        return _OwnTransaction(_Block(self._database, attempt)) if given is None else CallersTransaction(given)

    def settle(self, cursor: Cursor, ending: Ending) -> None:
        """Settle an attempt as done, in the transaction that it finishes in. Raises LeaseLost."""
        task = ending.task
        settled = store.settle(cursor, [ending], worker=self._worker())
        if not settled.accepted:
            raise LeaseLost(f"attempt {task.attempt} is no longer this worker's: nothing was committed")
        if settled.frees_tasks:
            families.release_children(cursor, [task.id])
            moves.notify(cursor, self._queue.config.wake_channel)

    def ref(self, task_id: str) -> TaskRef:
        """Return the ref of a task."""
        return TaskRef(self._queue, task_id, created=False)

    def worker_id(self) -> int:
        """Return the id of the worker that runs the tasks."""
        return self._worker()

    def open(self, attempt: Attempt) -> "_Block":
        """Return a context manager that gives a connection to an attempt."""
        return _Block(self._database, attempt)

    def cancel(self, attempt: Attempt) -> None:
        """Cancel an attempt's SQL from a thread and a connection of their own: both may wait."""
        thread = threading.Thread(target=self._cancel, args=(attempt,), name=f"cancel-{attempt.task.id}", daemon=True)
        thread.start()

    def _cancel(self, attempt: Attempt) -> None:
        # What hooks do after the attempt may be there to tell of its end.
        was_after = attempt.is_after
        while attempt.open_connections and not attempt.is_given_up and attempt.is_after is was_after:
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


class EndedByUs(Protocol):
    """A transaction whose end is ours."""

    @property
    def value(self) -> Any:
        """What the task gets."""

    @property
    def cursor(self) -> Cursor: ...
    def flush(self) -> None:
        """Send what is still kept back."""

    def commit(self) -> None:
        """End it well."""

    def roll_back(self) -> None:
        """End it badly."""


class _FinishingBlock:
    """One ``with current_task().transaction()``.

    Fence, release of the children and commit come together at its end, so that nobody waits for a slow task's locks.
    """

    def __init__(self, connections: TaskConnections, attempt: Attempt, given: object) -> None:
        self._connections = connections
        self._attempt = attempt
        self._given = given
        self._transaction: EndedByUs | None = None

    def __enter__(self) -> Any:
        attempt = self._attempt
        if attempt.is_finishing or attempt.finished is not None:
            raise NotAllowed("a task finishes in one transaction: this one has begun or ended it already")
        if attempt.is_after:
            raise NotAllowed("a hook cannot finish the task in a transaction: its own code has ended already")
        with attempt.guard.hold():
            self._transaction = self._connections.begin(attempt, self._given)
        attempt.is_finishing = True
        return self._transaction.value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        attempt, transaction = self._attempt, self._transaction
        assert transaction is not None
        with attempt.guard.hold():
            attempt.is_finishing = False
            if kind is not None:
                transaction.roll_back()
                return
            try:
                self._finish(transaction)
            except BaseException:
                self._take_back()
                transaction.roll_back()
                raise
            try:
                transaction.commit()
            except BaseException:
                # If it was committed after all, what this attempt now ends with is refused.
                self._take_back()
                raise
            attempt.context.confirm()

    def _finish(self, transaction: EndedByUs) -> None:
        attempt = self._attempt
        if attempt.is_given_up:
            raise LeaseLost("the attempt outlived its timeout and was given up: nothing was committed")
        transaction.flush()
        done = Outcome(outcome.FINISHED, attempt.result)
        # Before the row is locked: the manager may be about to write it, and shall not mistake this for a loss.
        attempt.finished = done
        track.complete(attempt)
        ending = Ending(
            attempt.task,
            Decision(states.FINISH, done),
            attempt.seconds(),
            attempt.context.take_changes(also_deferred=True),
        )
        self._connections.settle(transaction.cursor, ending)

    def _take_back(self) -> None:
        self._attempt.finished = None
        track.complete(self._attempt, is_complete=False)
        self._attempt.context.put_back()


class _OwnTransaction:
    """A block of ours, to be ended like a caller's transaction."""

    def __init__(self, block: "_Block") -> None:
        self._block = block
        self.value = block.__enter__()
        self.cursor = cursor_on(self.value)

    def flush(self) -> None: ...

    def commit(self) -> None:
        self._block.__exit__(None, None, None)

    def roll_back(self) -> None:
        self._block.__exit__(RuntimeError, None, None)


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
