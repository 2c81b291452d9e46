"""What happens in a slot's thread: make an attempt, run it here or in a process of its own, judge how it ended.

All of it happens while the manager talks to the database. Nothing here touches a connection of the manager's.
"""

import logging
import random
import time
from collections.abc import Callable
from typing import Final

from queuedtask.config import Config
from queuedtask.model import outcome
from queuedtask.model.outcome import Decision, Outcome, decide
from queuedtask.model.task import Task
from queuedtask.run.attempt import Attempt, Connections, ThreadNumbers
from queuedtask.run.executor import Resolver, execute
from queuedtask.worker.board import Board
from queuedtask.worker.isolation import Isolation
from queuedtask.worker.ladder import Ladder
from queuedtask.worker.presence import Lease

logger = logging.getLogger("queuedtask.worker")

IMPORT_LIMIT: Final = 30.0
"""Seconds that the import of a task's module may take beyond its timeout; it is not interrupted, only given up."""


class Slots:
    """The work of the slots of one process; :class:`~queuedtask.worker.pool.Pool` has their threads.

    ``note`` writes on the board what has changed about an attempt that runs. ``wake_by`` makes sure that the manager
    is awake at a time; ``wake_manager`` is what an attempt calls when its task waits for the manager.
    """

    def __init__(
        self,
        config: Config,
        board: Board,
        lease: Lease,
        ladder: Ladder,
        isolation: Isolation,
        connections: Connections,
        *,
        note: Callable[[Attempt], None],
        wake_by: Callable[[float], None],
        wake_manager: Callable[[], None],
    ) -> None:
        self._config = config
        self._board = board
        self._lease = lease
        self._ladder = ladder
        self._isolation = isolation
        self._connections = connections
        self._note = note
        self._wake_by = wake_by
        self._wake_manager = wake_manager
        self._resolve = Resolver(lambda: config.function_aliases)

    def begin(self, task: Task, slot: int, thread: ThreadNumbers) -> Attempt:
        """Make the attempt of a task and write it on the board, before anything of the task's can happen."""
        attempt = Attempt(task, self._wake_manager, thread, self._config.task_timeout, self._connections)
        now = time.monotonic()
        if task.is_suspect:
            attempt.deadline = None  # its clock starts when its process is there
        elif self._resolve.knows(task.function):
            attempt.deadline = now + attempt.timeout
        else:
            attempt.is_importing = True
            attempt.deadline = now + attempt.timeout + IMPORT_LIMIT
        self._board.write(slot, task.id, task.attempt, thread.native, 0, None, now, self._ladder.kill_at(attempt))
        if attempt.deadline is not None:
            self._wake_by(attempt.deadline)
        return attempt

    def run(self, attempt: Attempt) -> Decision:
        """Run an attempt and say what becomes of its task. Whatever happens, this returns."""
        try:
            ended = self._outcome(attempt)
        except BaseException as error:
            # A fault of ours, or no memory left: the slot survives, and the attempt still ends.
            logger.exception("task %s could not be run", attempt.task.id)
            ended = Outcome(outcome.RAISED, error_type=type(error).__qualname__, error_message="the worker failed")
        return self.judge(attempt, ended)

    def judge(self, attempt: Attempt, ended: Outcome) -> Decision:
        """Say what an outcome means for the attempt's task."""
        if ended.kind == outcome.RETURNED:
            return decide(attempt.task, ended, max_retries=0, max_lost=1)
        task, declared = attempt.task, attempt.options.max_retries
        if task.max_retries is None and declared is not None:
            task = task._replace(max_retries=declared)
        return decide(
            task,
            ended,
            max_retries=self._config.max_retries,
            max_lost=self._config.max_lost,
            jitter=random.uniform(-1.0, 1.0),
        )

    def _outcome(self, attempt: Attempt) -> Outcome:
        if self._lease.is_lapsed:
            # Claimed ahead, and perhaps somebody else's by now.
            return Outcome(outcome.INTERRUPTED)
        timeout = self._config.task_timeout
        if attempt.task.is_suspect:
            return self._isolation.execute(attempt, default_timeout=timeout, on_begin=self._began)
        return execute(attempt, self._resolve, default_timeout=timeout, on_begin=self._began)

    def _began(self, attempt: Attempt) -> None:
        declared = attempt.options
        is_other = declared.timeout is not None or declared.max_retries is not None or attempt.process is not None
        if is_other or attempt.is_importing:
            attempt.is_importing = False
            self._note(attempt)
        if attempt.deadline is not None:
            self._wake_by(attempt.deadline)
