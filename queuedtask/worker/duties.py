"""What every worker does for all of them from time to time, besides running tasks.

Any number of workers may do the same at once: each duty is written so that they share the work or pass each other by.
"""

import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from queuedtask.config import Config
from queuedtask.db import moves, store
from queuedtask.worker.link import Link

logger = logging.getLogger("queuedtask.worker")

RELEASE_INTERVAL: Final = 0.05
"""Seconds at least between two looks for waiting tasks that are due."""
RELEASE_BATCH: Final = 1000
NEVER: Final = float("inf")


class Duty(Protocol):
    """Something that the manager does in its own thread whenever it is due."""

    @property
    def due_at(self) -> float:
        """When it is to be done next, on the monotonic clock."""

    def heed(self) -> None:
        """Take note that something may have been added or changed: a notification has come, or it is time to poll."""

    def perform(self, link: Link) -> bool:
        """Do it, in bounded time; tell whether tasks may have become claimable. Raises the driver's errors."""


class Release:
    """Makes waiting tasks eligible when their time has come and their parents are done."""

    def __init__(self, config: Config, *, polling_interval: Callable[[], float]) -> None:
        self._config = config
        self._polling_interval = polling_interval
        self.due_at = 0.0

    def heed(self) -> None:
        """A task may have been added that waits for a time."""
        self.due_at = min(self.due_at, time.monotonic() + RELEASE_INTERVAL)

    def expect(self, seconds: float) -> None:
        """Take note that a task is due in so many seconds."""
        self.due_at = min(self.due_at, time.monotonic() + seconds)

    def perform(self, link: Link) -> bool:
        """Release a batch of what is due."""
        cursor = link.cursor
        released = store.release_due(cursor, limit=RELEASE_BATCH)
        if released:
            logger.debug("%s waiting tasks are due", released)
            if released > self._config.max_workers:
                moves.notify(cursor, self._config.wake_channel)
        seconds = 0.0 if released == RELEASE_BATCH else store.seconds_to_next_due(cursor)
        # Tasks added by others without a notification are found when polling.
        self.due_at = time.monotonic() + min(
            self._polling_interval(), NEVER if seconds is None else max(RELEASE_INTERVAL, seconds)
        )
        return released > 0
