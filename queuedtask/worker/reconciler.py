"""The reconciler: finds children that were added while a parent of theirs ended, and which neither of the two counted.

Such a child is younger than a transaction that was still open not long ago, and so only young edges are looked at,
for a while after something was added. Every worker does this; what one has put right the others do not find.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from queuedtask.db import families
from queuedtask.worker.link import Link

logger = logging.getLogger("queuedtask.worker")

INTERVAL: Final = 1.0
"""Seconds between two looks while somebody may be adding children."""
HORIZON: Final = 15.0
"""Seconds that a parent's end may take to be committed; a manager's statement has less time than that."""
FULL_INTERVAL: Final = 300.0
"""Seconds between two looks at all waiting children."""
NEVER: Final = float("inf")


class Reconciler:
    """The duty. ``on_freed`` is called with 0 when children may be eligible now."""

    def __init__(self, *, on_freed: Callable[[float], None]) -> None:
        self._on_freed = on_freed
        self.due_at = 0.0
        self._look_until = 0.0
        self._full_at = 0.0
        # When we looked, and the oldest transaction that was open then; the first one is the horizon.
        self._looks: deque[tuple[float, int]] = deque()

    def heed(self) -> None:
        """A child may have been added."""
        now = time.monotonic()
        self._look_until = now + HORIZON
        last = self._looks[-1][0] if self._looks else 0.0
        self.due_at = min(self.due_at, max(now + INTERVAL / 4, last + INTERVAL))

    def perform(self, link: Link) -> bool:
        """Look once, and put right what is found."""
        now = time.monotonic()
        cursor = link.cursor
        oldest = families.oldest_transaction(cursor)
        is_full = now >= self._full_at
        while len(self._looks) > 1 and self._looks[1][0] < now - HORIZON:
            self._looks.popleft()
        since = None if is_full or not self._looks else self._looks[0][1]
        strays = families.strays(cursor, since=since)
        if strays:
            with link.transaction() as cursor:
                families.settle_strays(cursor, strays)
            logger.debug("%s children were added while a parent ended", len(strays))
            self._on_freed(0.0)
        is_all = len(strays) < families.BATCH
        if is_all:
            self._looks.append((now, oldest))
            if is_full:
                self._full_at = now + FULL_INTERVAL
        took = time.monotonic() - now
        if not is_all:
            self.due_at = 0.0
        else:
            self.due_at = now + max(INTERVAL, 10 * took) if now < self._look_until else self._full_at
        return bool(strays)
