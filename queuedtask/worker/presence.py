"""A worker's presence: its row, which says that it lives and what it does, and the lease that this renews.

Until when a worker may be silent before others take it for dead is the lease. It is renewed by the supervisor, which
goes on when a call in the worker holds the interpreter's lock, and by the worker itself where the supervisor does not.
Those who watch wait for a whole lease from the moment at which they first saw the last heartbeat, so a worker that
keeps to this clock has stopped claiming before anybody takes its tasks.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from queuedtask import __version__
from queuedtask.config import Config
from queuedtask.db import workers
from queuedtask.db.statement import Cursor
from queuedtask.worker.board import Board

logger = logging.getLogger("queuedtask.worker")


class Lease:
    """One worker's lease, on the monotonic clock. Reading is safe from any thread."""

    def __init__(self, board: Board, seconds: Callable[[], float]) -> None:
        self._board = board
        self._seconds = seconds
        self._renewed_at = time.monotonic()
        self._sure_until = 0.0

    @property
    def renewed_at(self) -> float:
        """When it was last renewed, by whomever."""
        return max(self._renewed_at, self._board.renewed_at)

    @property
    def is_lapsed(self) -> bool:
        """Tell whether others may take this worker for dead: nothing may be claimed or begun."""
        now = time.monotonic()
        if now <= self._sure_until:
            return False
        self._sure_until = self.renewed_at + self._seconds()
        return now > self._sure_until

    def renewed(self, at: float) -> None:
        """Take note that the worker itself renewed it with a statement that was sent at this time."""
        self._renewed_at = at


class Report(NamedTuple):
    """What a worker's row says besides the time."""

    slots: int
    active: int
    stuck: tuple[tuple[str, str, int, float], ...]
    """Of each stuck slot the task's id and name, the attempt, and since when."""
    refused: int


class Presence:
    """Keeps the row. ``describe`` says what is to stand in it."""

    def __init__(
        self, config: Config, board: Board, *, supervisor_pid: int | None, describe: Callable[[], Report]
    ) -> None:
        self._config = config
        self._board = board
        self._supervisor_pid = supervisor_pid
        self._describe = describe
        self._reported: Report | None = None
        self.lease = Lease(board, lambda: self._config.lease)
        self.id = 0
        """The row's id, once there is one: the owner token of everything that this worker claims."""
        self.due_at = 0.0
        """When the next heartbeat is due, on the monotonic clock."""

    def register(self, cursor: Cursor) -> None:
        """Insert the row."""
        sent_at, report = time.monotonic(), self._describe()
        self.id = workers.register(
            cursor,
            server_name=socket.gethostname(),
            slots=report.slots,
            pid=os.getpid(),
            supervisor_pid=self._supervisor_pid,
            version=__version__,
            lease=self._config.lease,
        )
        self._noted(sent_at, report)

    def beat(self, cursor: Cursor) -> None:
        """Say that the worker lives and what it does."""
        sent_at, report = time.monotonic(), self._describe()
        is_there = workers.heartbeat(
            cursor,
            worker=self.id,
            slots=report.slots,
            active=report.active,
            stuck=json.dumps(
                [
                    {"task": task_id, "name": name, "attempt": attempt, "seconds": sent_at - since}
                    for task_id, name, attempt, since in report.stuck
                ]
            ),
            refused=report.refused,
        )
        if not is_there:
            logger.warning("the row of worker %s is gone from queued_task_workers", self.id)
        self._noted(sent_at, report)

    def beat_if_changed(self, cursor: Cursor) -> None:
        """Say what the worker does, if that has changed."""
        if self._describe() != self._reported:
            self.beat(cursor)

    def beat_if_due(self, cursor: Cursor) -> None:
        """Say that the worker lives, unless its supervisor does so already and there is nothing else to say."""
        interval, now = self._config.heartbeat_interval, time.monotonic()
        if now < self.due_at:
            return
        self.due_at = now + interval
        report = self._describe()
        # How long slots have been stuck is counted on by whoever reads the row only as far as it is kept up.
        if self._board.renewed_at <= now - 1.5 * interval or report.stuck or report != self._reported:
            self.beat(cursor)

    def retire(self, cursor: Cursor) -> None:
        """Say that the worker has ended."""
        workers.retire(cursor, worker=self.id)

    def _noted(self, sent_at: float, report: Report) -> None:
        self.lease.renewed(sent_at)
        self._reported = report
        self.due_at = sent_at + self._config.heartbeat_interval
