"""What has ended and is on its way into the database: kept until it is there, or refused.

An ending that was refused belongs to an attempt that is no longer this worker's. It is counted and logged once, and
never tried again. While the database is away endings pile up here and are written when it is back.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import psycopg2

from queuedtask.config import Config
from queuedtask.db import moves, store
from queuedtask.db.connections import is_transient
from queuedtask.db.statement import Cursor
from queuedtask.db.store import Ending, LogLine
from queuedtask.model import outcome, states
from queuedtask.model.outcome import Decision, Outcome, decide
from queuedtask.model.task import Task
from queuedtask.run.attempt import Attempt
from queuedtask.run.hooks import Hooks, Settled
from queuedtask.run.logs import Line
from queuedtask.worker.link import Link

logger = logging.getLogger("queuedtask.worker")

NEVER = float("inf")


class Settling(NamedTuple):
    """What becomes of one task."""

    task: Task
    decision: Decision
    attempt: Attempt | None = None
    """None for a task that was handed back before a slot took it."""
    context: str | None = None
    lines: Sequence[Line] = ()
    at: float | None = None
    """When the slot had done with it, on the monotonic clock; None when it was not the slot that ended it."""

    @classmethod
    def of(cls, attempt: Attempt, decision: Decision, *more_lines: Line, at: float | None = None) -> "Settling":
        """Take the last changes of an attempt's context and log along."""
        return cls(
            attempt.task,
            decision,
            attempt,
            attempt.context.take_changes(also_deferred=True),
            [*attempt.log.take(), *more_lines] if attempt.log or more_lines else (),
            at,
        )

    @property
    def is_plain(self) -> bool:
        """Tell whether a single statement writes all of it."""
        return not self.lines and self.decision.edge is states.FINISH

    def settled(self) -> Settled:
        """Return what hooks are told of it."""
        attempt = self.attempt
        if attempt is None:
            return Settled(self.task, self.decision, None, None, is_unattended=False)
        began, eligible_at = attempt.began, self.task.eligible_at
        waited = None if began is None or eligible_at is None else max(0.0, began - eligible_at)
        seconds = None if began is None else (self.at or time.monotonic()) - began
        return Settled(self.task, self.decision, waited, seconds, attempt.is_unattended)

    def ending(self) -> Ending:
        """Return what goes into the row."""
        return Ending(self.task, self.decision, self.attempt.seconds() if self.attempt else None, self.context)


class Settlements:
    """The endings of one worker that are not in the database yet."""

    def __init__(self, config: Config, hooks: Hooks) -> None:
        self._config = config
        self._hooks = hooks
        self.pending: list[Settling] = []
        self.due_at = NEVER
        """When they are to be written at the latest, on the monotonic clock."""
        self.refused = 0
        """How many writes came too late: their rows were no longer this worker's."""
        self.has_freed = False
        """Whether endings may have made tasks eligible since this was last reset."""
        self.handed_back: list[str] = []
        """The ids of the tasks that were given back unfinished after they had begun."""

    def add(self, *settlings: Settling, due_at: float) -> None:
        """Keep endings until they are written."""
        self.pending.extend(settlings)
        self.due_at = min(self.due_at, due_at)

    def write(self, cursor: Cursor, *, worker: int) -> list[Settling]:
        """Write all of them, in the caller's transaction; return those that were refused."""
        return self._write(cursor, self.pending, worker)

    def _write(self, cursor: Cursor, settlings: Sequence[Settling], worker: int) -> list[Settling]:
        lines = [line for s in settlings if s.lines for line in log_lines(s.task, s.lines)]
        if lines:
            # First: an attempt that is settled takes no more lines.
            store.add_logs(cursor, lines, worker=worker)
        unwritten = [s for s in settlings if s.decision.outcome.kind != outcome.FINISHED]
        if not unwritten:
            return []
        settled = store.settle(cursor, [s.ending() for s in unwritten], worker=worker)
        if settled.frees_tasks:
            moves.notify(cursor, self._config.wake_channel)
        self.has_freed |= settled.frees_tasks
        if len(settled.accepted) == len(unwritten):
            return []
        return [s for s in unwritten if s.task.key not in settled.accepted]

    def written(self, refused: Sequence[Settling]) -> list[Decision]:
        """Take note that what :meth:`write` wrote is committed; return the decisions that tasks do not end with."""
        settled, self.pending, self.due_at = self.pending, [], NEVER
        return self._written(settled, refused)

    def _written(self, settlings: Sequence[Settling], refused: Sequence[Settling]) -> list[Decision]:
        for s in settlings:
            if s.attempt is not None:
                s.attempt.context.confirm(is_last=True)
                if s.decision.edge is states.HAND_BACK:
                    self.handed_back.append(s.task.id)
        if self._hooks.settle:
            self._hooks.settled([s.settled() for s in settlings if s not in refused])
        for s in refused:
            if s.attempt is None or not s.attempt.is_disowned:
                self.refuse(s.task, f"ended as {s.decision.edge.target}")
        if logger.isEnabledFor(logging.DEBUG):
            for s in settlings:
                logger.debug("%s %s: %s", s.task.name, s.task.id, s.decision.edge.target)
        return [s.decision for s in settlings if s.decision.edge is not states.FINISH]

    def refuse(self, task: Task, what: str) -> None:
        """Count and log a write that came too late."""
        self.refused += 1
        logger.warning(
            "task %s: attempt %s %s, but the row was no longer this worker's; nothing was written",
            *(task.id, task.attempt, what),
        )

    def write_one_by_one(self, link: Link, *, worker: int, on_written: Callable[[list[Decision]], None]) -> None:
        """Find the ending that the database does not take, and let that attempt fail instead of all of them."""
        while self.pending:
            settling = self.pending[0]
            try:
                with link.transaction() as cursor:
                    refused = self._write(cursor, [settling], worker)
            except (psycopg2.Error, ValueError) as error:
                if is_transient(error) or settling.decision.outcome.error_type == "NotStorable":
                    raise
                logger.exception("task %s: how it ended could not be stored", settling.task.id)
                failed = Outcome(
                    outcome.RAISED,
                    error_type="NotStorable",
                    error_message=f"the database refused how the attempt ended: {type(error).__name__}",
                )
                task = settling.task._replace(max_retries=0)
                decision = decide(task, failed, max_retries=0, max_lost=1)
                self.pending[0] = Settling(settling.task, decision, settling.attempt)
                continue
            self.pending.pop(0)
            on_written(self._written([settling], refused))
        self.due_at = NEVER


def log_lines(task: Task, lines: Sequence[Line]) -> list[LogLine]:
    """Return an attempt's lines as they go into rows."""
    now = time.monotonic()
    return [LogLine(task.id, task.attempt, line.type, line.name, line.message, now - line.at) for line in lines]
