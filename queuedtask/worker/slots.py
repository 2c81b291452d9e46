"""What happens in a slot's thread: make an attempt, run it here or in a process of its own, judge how it ended.

All of it happens while the manager talks to the database. Nothing here touches a connection of the manager's.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from queuedtask.config import Config
from queuedtask.model import outcome
from queuedtask.model.options import PROCESS
from queuedtask.model.outcome import Decision, Outcome
from queuedtask.model.task import Task
from queuedtask.run.attempt import Attempt, Connections, ThreadNumbers
from queuedtask.run.executor import execute, judge
from queuedtask.run.hooks import Hooks
from queuedtask.run.resolver import Resolver
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
        hooks: Hooks,
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
        self._hooks = hooks
        self._note = note
        self._wake_by = wake_by
        self._wake_manager = wake_manager
        self._resolve = Resolver(config)

    def begin(self, task: Task, slot: int, thread: ThreadNumbers) -> Attempt:
        """Make the attempt of a task and write it on the board, before anything of the task's can happen."""
        attempt = Attempt(task, self._wake_manager, thread, self._config.task_timeout, self._connections)
        now = time.monotonic()
        isolation = task.isolation
        if isolation == PROCESS or (isolation is None and task.function in self._resolve.isolated):
            attempt.runs_alone = True
            attempt.deadline = None  # its clock starts when its process is there
        elif self._resolve.knows(task):
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
        return judge(self._config, attempt, ended)

    def _outcome(self, attempt: Attempt) -> Outcome:
        if self._lease.is_lapsed:
            # Claimed ahead, and perhaps somebody else's by now.
            return Outcome(outcome.INTERRUPTED)
        if attempt.runs_alone:
            return self._execute_alone(attempt)
        return execute(
            attempt,
            self._resolve,
            default_timeout=self._config.task_timeout,
            on_begin=self._began,
            hooks=self._hooks,
            judge=partial(judge, self._config),
            elsewhere=self._move_out,
        )

    def _execute_alone(self, attempt: Attempt) -> Outcome:
        return self._isolation.execute(attempt, default_timeout=self._config.task_timeout, on_begin=self._began)

    def _move_out(self, attempt: Attempt) -> Outcome:
        """Run an attempt in a process although it was begun here: its function had to be imported to know that."""
        attempt.runs_alone = True
        attempt.is_importing = False
        attempt.deadline = None
        self._note(attempt)
        return self._execute_alone(attempt)

    def _began(self, attempt: Attempt) -> None:
        declared = attempt.options
        is_other = declared.timeout is not None or declared.max_retries is not None or attempt.process is not None
        if is_other or attempt.is_importing:
            attempt.is_importing = False
            self._note(attempt)
        if attempt.deadline is not None:
            self._wake_by(attempt.deadline)
