"""Deleting what has ended: successes that nobody wants to keep, and what was kept for long enough.

Every worker does it, at times of its own. Both duties go by small steps, each a look and a short transaction, and
between two steps the manager does everything else first: a step takes some hundredths of a second of its time, and
three times as long passes until the next one.
"""

import logging
import random
import time
from typing import Final

from queuedtask.config import Config
from queuedtask.db import purge, workers
from queuedtask.db.purge import Unwanted
from queuedtask.model.task import first_id
from queuedtask.worker.link import Link

logger = logging.getLogger("queuedtask.worker")

NEVER: Final = float("inf")
LOOK: Final = 1000
"""Rows that one step of the retention looks at."""
BATCH: Final = 150
"""Rows that one step deletes at most."""
SHARE: Final = 3.0
"""So many times as long as a step took it is left alone before the next one."""
REMOVAL_INTERVAL: Final = 3.0
"""Seconds between two looks for successes of ``auto_remove``, while tasks end."""
ANEW_INTERVAL: Final = 60.0
"""Seconds after which those are looked at again that were kept, because of a child perhaps."""
LEAST_PAUSE: Final = 0.05
"""Seconds at least between two steps: another worker may be removing just now."""
LONGEST_INTERVAL: Final = 3600.0
"""Seconds between two walks of the retention, at most."""


class AutoRemoval:
    """Removes successes of ``auto_remove`` some seconds after their end."""

    def __init__(self) -> None:
        self.due_at = 0.0
        self._after: Unwanted | None = None
        self._anew_at = 0.0
        self._has_kept = False

    def heed(self) -> None:
        """Tasks may have ended."""
        self.due_at = min(self.due_at, time.monotonic() + REMOVAL_INTERVAL)

    def perform(self, link: Link) -> bool:
        """Remove a batch; those that are kept are passed over for a minute."""
        began = time.monotonic()
        if began >= self._anew_at:
            self._after, self._anew_at, self._has_kept = None, began + ANEW_INTERVAL, False
        found = purge.look_for_unwanted(link.cursor, after=self._after, limit=BATCH)
        is_all, removed = True, 0
        if found:
            with link.transaction() as cursor:
                removed, is_all = purge.remove_unwanted(cursor, [each.id for each in found])
            self._has_kept = self._has_kept or (is_all and removed < len(found))
            if removed:
                logger.debug("removed %s tasks that were done", removed)
        if is_all and found:
            self._after = found[-1]
        now = time.monotonic()
        if len(found) == BATCH or not is_all:
            self.due_at = now + max(LEAST_PAUSE, SHARE * (now - began))
        else:
            self.due_at = self._anew_at if self._has_kept else NEVER
        return False


class Retention:
    """Walks through the ended tasks about once an hour and deletes those that were kept for long enough.

    The walk goes by the ids, so it needs no index of its own, which each task would pay for. Ids of ours grow with
    time: one that is older than its end by less than the retention cannot be due, so those are left out. What lies
    above all of ours are random ids, of rows that somebody has inserted by hand. It goes downwards: children come
    before their parents.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.due_at = time.monotonic() + random.uniform(0.0, self._interval)
        self._stretches: list[tuple[str, str]] = []
        """What is left of the walk: before which id, and down to which one."""
        self._spent = 0.0
        self._removed = 0

    @property
    def _interval(self) -> float:
        return max(1.0, min(LONGEST_INTERVAL, min(self._config.retention.values()) / 24))

    def heed(self) -> None:
        """Nothing becomes due by what has just happened."""

    def perform(self, link: Link) -> bool:
        """Take one step of the walk, or begin one."""
        began = time.monotonic()
        keep = self._config.retention
        if not self._stretches:
            # By this server's clock. One that is wrong makes the walk longer, or leaves something to the next one.
            now = time.time()
            oldest_kept = first_id(now - min(keep.values()))
            self._stretches = [(oldest_kept, purge.BOTTOM), (purge.TOP, first_id(now))]
            self._spent, self._removed = 0.0, 0
        self._step(link, keep)
        now = time.monotonic()
        self._spent += now - began
        if self._stretches:
            self.due_at = now + max(LEAST_PAUSE, SHARE * (now - began))
            return False
        workers.remove_ended(link.cursor, seconds=max(keep.values()), limit=LOOK)
        if self._removed:
            logger.info("deleted %s tasks that ended long ago", self._removed)
        # At different times on different workers; and where tasks are inserted by hand, so many that looking at all of
        # them takes long, less often.
        self.due_at = now + random.uniform(0.75, 1.25) * max(self._interval, 100 * self._spent)
        return False

    def _step(self, link: Link, keep: purge.Keep) -> None:
        before, least = self._stretches[-1]
        due, last = purge.look(link.cursor, keep, before=before, least=least, limit=LOOK)
        if last is None:
            self._stretches.pop()
            return
        is_all = True
        if batch := due[:BATCH]:
            with link.transaction() as cursor:
                removed, is_all = purge.remove(cursor, keep, batch)
            self._removed += removed
            if len(due) > BATCH:
                last = batch[-1]
        if is_all:
            self._stretches[-1] = last, least
