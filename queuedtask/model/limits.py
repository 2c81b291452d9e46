"""The limits of channels: how the setting spells them, and how many starts a rate leaves."""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

DEFAULT_CHANNEL: Final = "default"
EVERYTHING: Final = "*"
"""The name of the row that pauses every channel; no channel can be called so."""
MOST_EXACT: Final = 1000
"""Up to so many starts are remembered one by one; beyond, those of a thousandth of the period together."""

_UNITS: Final = {"sec": 1.0, "min": 60.0, "hour": 3600.0, "day": 86400.0}
_ITEM: Final = re.compile(r"([^\s,:@]+)(?::(\d+))?(?:@(\d+)/(\w+))?")


class Limit(NamedTuple):
    """What a channel is limited to; None does not limit."""

    max_running: int | None = None
    """How many at a time over all servers; 0 pauses."""
    max_starts: int | None = None
    """How many starts within ``per_seconds``."""
    per_seconds: float | None = None

    def __str__(self) -> str:
        running = "" if self.max_running is None else f":{self.max_running}"
        if self.max_starts is None or self.per_seconds is None:
            return running
        unit = next((unit for unit, seconds in _UNITS.items() if seconds == self.per_seconds), f"{self.per_seconds:g}s")
        return f"{running}@{self.max_starts}/{unit}"


def parse(setting: str) -> dict[str, Limit]:
    """Return the limits by channel that a setting, already checked, spells: ``mail:2,api:4@10/min``."""
    found = {}
    for name, running, starts, unit in _ITEM.findall(setting):
        found[name] = Limit(
            int(running) if running else None,
            int(starts) if starts else None,
            _UNITS[unit] if unit else None,
        )
    return found


class Window:
    """The starts within the last ``per_seconds``, a sliding window; ``now`` is the database's clock, in seconds."""

    def __init__(self, starts: str, max_starts: int, per_seconds: float, now: float) -> None:
        self._max_starts = max_starts
        self._per_seconds = per_seconds
        self._now = now
        # A clock that was set back may leave starts in the future: they count for one period at most.
        self._starts = [(at, count) for at, count in _decoded(starts) if abs(now - at) < per_seconds]

    @property
    def room(self) -> int:
        """How many may start now."""
        return self._max_starts - sum(count for _, count in self._starts)

    @property
    def seconds_to_room(self) -> float:
        """How long until the first of them leaves the window, and makes room for one more."""
        return max(0.0, self._starts[0][0] + self._per_seconds - self._now) if self._starts else self._per_seconds

    def before(self, count: int) -> tuple[str, int]:
        """Return what to remember besides ``count`` starts of now, and with how many earlier ones they go together."""
        kept = list(self._starts)
        if self._max_starts > MOST_EXACT and kept and self._now - kept[-1][0] < self._per_seconds / MOST_EXACT:
            # They count from the last one of them, so that there are never too many starts, rather a few too few.
            count += kept.pop()[1]
        return json.dumps(kept), count


def _decoded(starts: str) -> Sequence[tuple[float, int]]:
    try:
        found: Any = json.loads(starts)
        return sorted((float(at), int(count)) for at, count in found)
    except (ValueError, TypeError, OverflowError):
        return ()  # somebody has written it by hand
