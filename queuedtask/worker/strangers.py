"""Strangers: tasks whose functions are outside this worker's allow-list.

The claim passes them over, so they stay enqueued, in their place, for workers that may run them; this worker cannot
claim one again and again. What is left to do is to say so, and to end what nobody has taken for a day.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from queuedtask.config import Config
from queuedtask.db import moves, store
from queuedtask.db.store import Ending
from queuedtask.errors import FunctionNotAllowed
from queuedtask.model import outcome, states
from queuedtask.model.outcome import Decision, Outcome
from queuedtask.model.rules import CurrentRules
from queuedtask.model.task import Task
from queuedtask.worker.link import Link

logger = logging.getLogger("queuedtask.worker")

STALE_AFTER: Final = 86400.0
"""Seconds for which a stranger may be enqueued; then it fails."""
LOOK_INTERVAL: Final = 60.0
"""Seconds between two looks for strangers."""
LOOK_AGAIN: Final = 2.0
"""Seconds at least between two looks, even if something has been added."""
EFFORT: Final = 0.01
"""The part of its time that a worker may spend on looking: a look reads all that is enqueued."""
WARN_INTERVAL: Final = 3600.0
"""Seconds between two warnings about the same function."""
MOST_WARNED_OF: Final = 20
"""Functions that one look warns of: their names are whatever stands in the rows."""
BATCH: Final = 500
NEVER: Final = float("inf")


class Strangers:
    """Warns of tasks that this worker leaves to others, and fails those that nobody takes."""

    def __init__(self, config: Config, rules: CurrentRules, *, worker: Callable[[], int]) -> None:
        self._config = config
        self._rules = rules
        self._worker = worker
        self._may_look_at = 0.0
        self._warned_at: dict[str, float] = {}
        self.due_at = 0.0

    def heed(self) -> None:
        """A stranger may have been added, or an allow-list been set."""
        self.due_at = min(self.due_at, self._may_look_at)

    def perform(self, link: Link) -> bool:
        """Look once. Without an allow-list there are no strangers, and the database is not asked."""
        now, config = time.monotonic(), self._config
        self._may_look_at = now + LOOK_AGAIN
        only = self._rules().claimable
        if only is None:
            self.due_at = NEVER
            return False
        with link.transaction() as cursor:
            stale = store.claim_strangers(cursor, worker=self._worker(), only=only, seconds=STALE_AFTER, limit=BATCH)
            if stale:
                settled = store.settle(cursor, [_refused(task) for task in stale], worker=self._worker())
                if settled.frees_tasks:
                    moves.notify(cursor, config.wake_channel)
        if stale:
            logger.warning("%s tasks failed: for a day, no worker was allowed to run %s", len(stale), _names(stale))
        self._warn(now, store.count_strangers(link.cursor, only=only, limit=MOST_WARNED_OF))
        took = time.monotonic() - now
        self._may_look_at = now + max(LOOK_AGAIN, took / EFFORT)
        self.due_at = now + (0.0 if len(stale) == BATCH else max(LOOK_INTERVAL, took / EFFORT))
        return bool(stale)

    def _warn(self, now: float, found: Sequence[tuple[str, int]]) -> None:
        self._warned_at = {name: at for name, at in self._warned_at.items() if now - at < WARN_INTERVAL}
        for function, count in found:
            if function not in self._warned_at:
                self._warned_at[function] = now
                logger.warning(
                    "%r is outside QUEUE_ALLOWED_FUNCTIONS: %s of its tasks are left to other workers, and fail when "
                    "none of them takes them within a day",
                    *(function, count),
                )


def _refused(task: Task) -> Ending:
    refused = Outcome(
        outcome.REFUSED,
        error_type=FunctionNotAllowed.__name__,
        error_message=f"{task.function} is outside QUEUE_ALLOWED_FUNCTIONS, and no worker that may run it took it for "
        "a day",
    )
    return Ending(task, Decision(states.FAIL, refused), seconds=None, context=None)


def _names(tasks: Sequence[Task]) -> str:
    names = sorted({task.function for task in tasks})
    return ", ".join(map(repr, names[:5])) + (" …" if len(names) > 5 else "")
