"""How many tasks to claim at a time.

A claim costs a commit, so no-op tasks must come in hundreds; but a task that was claimed ahead waits behind a busy
slot while another worker may be free, so long tasks must come one by one. The pace follows how long tasks have been
taking.
"""

from typing import Final

HORIZON: Final = 0.1
"""Seconds of work to have in the inbox."""
MOST_AHEAD: Final = 800
"""Beyond this many rows a larger claim gains little."""
PATIENCE: Final = 0.25
"""Seconds after which what waits in the inbox while no slot gets free is handed back."""
_WEIGHT: Final = 0.1


class Pace:
    """A moving average of how long a slot is busy with one task; unknown at first, which means: long."""

    def __init__(self) -> None:
        self._mean = HORIZON

    def observe(self, seconds: float, count: int = 1) -> None:
        """Take note that so many tasks took so many seconds each, on average."""
        weight = 1.0 - (1.0 - _WEIGHT) ** min(count, 50)
        self._mean += (seconds - self._mean) * weight

    def slow_down(self, seconds: float) -> None:
        """Take note that tasks now take at least so long."""
        self._mean = max(self._mean, seconds)

    def ahead(self, slots: int) -> int:
        """Return how many tasks to hold besides those that are running."""
        return min(MOST_AHEAD, int(slots * HORIZON / max(self._mean, 1e-6)) - slots) if self._mean < HORIZON else 0

    def appetite(self, slots: int, outstanding: int) -> int:
        """Return how many tasks to claim now: 0 while the slots are busy and the inbox is at least half full."""
        ahead = max(0, self.ahead(slots))
        wanted = slots + ahead - outstanding
        return wanted if wanted > ahead // 2 else 0
