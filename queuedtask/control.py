"""A person's hand on tasks: waiting for an end, cancelling and stopping; what Queue and TaskRef offer of it."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final

from queuedtask.config import Config
from queuedtask.db import control, moves, reads
from queuedtask.db.announcements import Announcements
from queuedtask.db.connections import Database
from queuedtask.db.control import Orderable, Ordered, Requeue
from queuedtask.db.reads import TaskEnd
from queuedtask.db.statement import Cursor
from queuedtask.errors import (
    DatabaseUnavailable,
    NotCommitted,
    TaskCancelled,
    TaskEnded,
    TaskFailed,
    TaskGone,
    TaskNotFound,
    TaskStopped,
)
from queuedtask.model import states
from queuedtask.model.orders import Order
from queuedtask.run.attempt import current_attempt
from queuedtask.run.logs import Line

logger = logging.getLogger("queuedtask.queue")

BATCH: Final = 500
"""Tasks that are cancelled or stopped in one transaction."""
STEP: Final = 0.25
"""Seconds that a wait inside a task goes on for before it lets an interrupt in."""
LONGEST_STEP: Final = 3600.0
WARN_AFTER: Final = 1.0
"""Seconds after which a wait inside a task asks whether anybody is free to run what it waits for."""
LISTEN_PATIENCE: Final = 1.0
"""Seconds that a connection to listen on may take before the row is looked at all the same."""
FIRST_LOOK: Final = 0.05
"""Seconds to the second look where nothing is heard."""
NEVER: Final = float("inf")

_ENDS: Final[dict[str, type[TaskEnded]]] = {
    states.FAILED: TaskFailed,
    states.CANCELLED: TaskCancelled,
    states.STOPPED: TaskStopped,
}


class Control:
    """The hand; one for each Queue."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._announcements = Announcements(database.connect_to_listen)

    @property
    def _config(self) -> Config:
        return self._database.config

    def close(self) -> None:
        """Close the connection on which ends of tasks are heard of."""
        self._announcements.close()

    # --------------------------------------------------------------------------------------------- cancelling, stopping

    def give(self, order: Order, task_id: str) -> bool:
        """Cancel or stop one task; False when it has ended or is not there."""
        done = self._database.in_transaction(
            lambda cursor: self._give(cursor, order, [task_id], Orderable(), wait=True)
        )
        return bool(done.ended or done.told)

    def give_all(self, order: Order, which: Orderable) -> list[str]:
        """Cancel or stop all that fit now, in bounded transactions; return the ids of those that could be."""
        ids = self._database.in_transaction(lambda cursor: control.orderable_ids(cursor, which))
        found: list[str] = []
        for begin in range(0, len(ids), BATCH):
            batch = ids[begin : begin + BATCH]
            done = self._give_batch(order, batch, which)
            # What is being claimed or settled at this moment: one by one, so that nobody waits for us meanwhile.
            single = [self._give_batch(order, [task_id], which, wait=True) for task_id in done.missed]
            for each in (done, *single):
                found += [*each.ended, *each.told]
        return found

    def _give_batch(self, order: Order, ids: Sequence[str], which: Orderable, *, wait: bool = False) -> Ordered:
        return self._database.in_transaction(lambda cursor: self._give(cursor, order, ids, which, wait=wait))

    def _give(self, cursor: Cursor, order: Order, ids: Sequence[str], which: Orderable, *, wait: bool) -> Ordered:
        channel = self._config.wake_channel
        return control.give_order(cursor, order, ids, among=which.states, notify_channel=channel, wait=wait)

    def requeue(self, which: Requeue) -> tuple[list[str], int]:
        """Return what was sent round again, and how many were not because others have their unique keys."""

        def requeue(cursor: Cursor) -> tuple[list[str], int]:
            requeued = control.requeue(cursor, which)
            if requeued:
                moves.notify(cursor, self._config.wake_channel)
            return requeued, control.count_blocked(cursor, which)

        return self._database.in_transaction(requeue)

    # ---------------------------------------------------------------------------------------------------------- waiting

    def wait(self, task_id: str, timeout: float | None, *, may_be_uncommitted: bool) -> TaskEnd:
        """Return how a task has ended, once it is *done*. Raises what :meth:`queuedtask.TaskRef.wait` says."""
        given: object = timeout
        if timeout is not None and not (isinstance(given, int | float) and 0 <= timeout < float("inf")):
            raise ValueError(f"wait(timeout={timeout!r}): a number of seconds, 0 or more, or None")
        # On connections of ours: what is asked for in a transaction that stays open would be in the settler's way.
        return _Wait(self._database.apart, self._announcements, task_id, timeout).run(may_be_uncommitted)


class _Wait:
    """One thread that waits for one task.

    Inside a task all of it but the pauses between the steps is shielded: an interrupt must not land in a lock of ours
    or in the pool of connections.
    """

    def __init__(self, database: Database, announcements: Announcements, task_id: str, timeout: float | None) -> None:
        self._database = database
        self._config = database.config
        self._announcements = announcements
        self._id = task_id
        self._timeout = timeout
        self._until = None if timeout is None else time.monotonic() + timeout
        self._attempt = current_attempt()
        self._warn_at = NEVER if self._attempt is None else time.monotonic() + WARN_AFTER
        self._warn_after = WARN_AFTER / 2
        self._signal = threading.Event()
        self._is_lost = False

    def run(self, may_be_uncommitted: bool) -> TaskEnd:
        with self._shielded():
            end = self._look()
        if end is None:
            if may_be_uncommitted:
                raise NotCommitted(
                    f"task {self._id} cannot be waited for: the transaction that adds it is still open, or was rolled "
                    "back; commit it first"
                )
            raise TaskNotFound(f"there is no task {self._id}")
        if end.state in states.FINAL:
            return self._judged(end)
        if not self._config.use_postgresql_notify or self._database.is_passing:
            return self._judged(self._watch(end))
        try:
            with self._shielded():
                self._announcements.expect(self._id, self._signal)
            self._pause_until(self._announcements.has_tried, LISTEN_PATIENCE)
            return self._judged(self._watch(end))
        finally:
            with self._shielded():
                self._announcements.forget(self._id, self._signal)

    def _watch(self, end: TaskEnd) -> TaskEnd:
        """Look again and again, whenever there may be something to see, until the task has ended."""
        pauses = self._pauses()
        while True:
            self._signal.clear()
            with self._shielded():
                end = self._look_again(end)
            if end.state in states.FINAL:
                return end
            self._pause_until(self._signal, next(pauses))
            if self._until is not None and time.monotonic() >= self._until:
                with self._shielded():
                    end = self._look_again(end)
                if end.state in states.FINAL:
                    return end
                raise TimeoutError(f"task {self._id} has not ended within {self._timeout:g} s: it is {end.state}")

    def _look_again(self, before: TaskEnd) -> TaskEnd:
        """Return what the row says; ask that its end be announced, once somebody listens."""
        try:
            while True:
                end = self._look()
                if end is None:
                    raise TaskGone(
                        f"task {self._id} has vanished while it was waited for: {before.state} when last seen"
                    )
                self._is_lost = False
                is_heard = end.is_awaited or not self._announcements.is_listening
                if end.state in states.FINAL or is_heard or self._ask_for_announcement():
                    return end
        except DatabaseUnavailable as error:
            if not self._is_lost:
                logger.warning("waiting for task %s although the database cannot be reached: %s", self._id, error)
            self._is_lost = True
            return before

    def _look(self) -> TaskEnd | None:
        with self._database.autocommit() as cursor:
            return reads.task_end(cursor, self._id)

    def _ask_for_announcement(self) -> bool:
        with self._database.autocommit() as cursor:
            return control.await_end(cursor, self._id, notify_channel=self._config.notify_channel)

    def _judged(self, end: TaskEnd) -> TaskEnd:
        if end.state == states.DONE:
            return end
        raise _ENDS[end.state](self._id, end.error_type, end.error_message, end.error_traceback)

    # ---------------------------------------------------------------------------------------------------------- pausing

    def _pauses(self) -> Iterator[float]:
        """Yield how long to wait for a signal before looking without one: short where none will come."""
        quiet, deaf = self._config.polling_interval, FIRST_LOOK
        while True:
            if self._announcements.is_listening:
                yield min(quiet, self._config.fallback_polling_interval)
                quiet *= 2
            else:
                yield min(deaf, self._config.polling_interval)
                deaf *= 1.5

    def _pause_until(self, signal: threading.Event, seconds: float | None) -> None:
        """Wait for the signal, at most so long, and not beyond the timeout."""
        end = NEVER if seconds is None else time.monotonic() + seconds
        if self._until is not None:
            end = min(end, self._until)
        step = LONGEST_STEP if self._attempt is None else STEP
        while (left := end - time.monotonic()) > 0:
            with self._shielded():
                if signal.wait(min(left, step)):
                    return
            self._warn_if_nobody_is_free()

    def _shielded(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if self._attempt is None else self._attempt.guard.hold()

    def _warn_if_nobody_is_free(self) -> None:
        """Say once in the logs that the task waits for one for which there is no slot: its own may be the last one."""
        if time.monotonic() < self._warn_at:
            return
        self._warn_at = NEVER
        self._warn_after *= 2
        with self._shielded(), contextlib.suppress(DatabaseUnavailable):
            with self._database.transaction() as cursor:
                end = reads.task_end(cursor, self._id)
                if end is None or end.state not in states.PENDING:
                    return
                workers = reads.list_workers(cursor)
            if any(worker.idle_workers > 0 and worker.is_live(self._config.lease) for worker in workers):
                # So say their rows, which may be as old as a heartbeat.
                self._warn_at = time.monotonic() + self._warn_after
                return
            text = (
                f"waits for task {self._id}, which is {end.state}, and no worker has a slot free for it: "
                "if all slots wait like this, nothing goes on"
            )
            assert self._attempt is not None
            logger.warning("task %s %s", self._attempt.task.id, text)
            self._attempt.log.append(Line("warning", "queuedtask", text, time.monotonic()))
