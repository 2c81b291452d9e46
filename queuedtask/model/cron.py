"""Lines of cron in a time zone: checked, put into words, and asked for their ticks.

cronsim knows the fields. What is ours: the names such as ``@daily``, and what happens on the two nights on which the
clocks change.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from queuedtask.errors import InvalidTask

ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
LONGEST: Final = 500
"""Characters of a line."""

_SOME_DAY: Final = datetime(2000, 1, 1, tzinfo=UTC)


class Cron:
    """A line of cron in a time zone. Raises InvalidTask for one that cannot be. Its ticks are whole seconds, in UTC.

    A line that names hours goes by the clock on the wall: what the missing hour would have had comes once, at its end,
    and what is in the doubled hour comes once, in its first pass. A line for every hour goes by the time that passes,
    so it has nothing in the missing hour and comes in both passes of the doubled one.
    """

    def __init__(self, line: str, timezone: str = "UTC") -> None:
        self.line = _checked_line(line)
        self.timezone = timezone
        self.zone = _zone(timezone)
        fields = ALIASES.get(self.line, self.line)
        self._fields = fields if len(fields.split()) == 6 else f"0 {fields}"
        try:
            simulated = CronSim(self._fields, _SOME_DAY)
            next(simulated)
        except (CronSimError, ValueError, StopIteration) as error:
            reason = str(error) or "there is no such day"
            raise InvalidTask(
                f"cron={line!r}: {reason}; write five fields (minute, hour, day of month, month, day of week), "
                f"six with the seconds first, or one of {', '.join(ALIASES)}"
            ) from None
        self._is_for_every_hour = len(simulated.hours) == 24

    def __repr__(self) -> str:
        return f"<Cron {self.line!r} {self.timezone}>"

    @cached_property
    def words(self) -> str:
        """The line in English: ``At 08:00 on Monday through Friday``."""
        return CronSim(self._fields, _SOME_DAY).explain()

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Yield the ticks that come after an aware time, in their order."""
        moment = moment.astimezone(UTC)
        for tick in self._by_the_time(moment) if self._is_for_every_hour else self._by_the_wall(moment):
            # The first pass of a doubled hour is over when the second one begins.
            if tick > moment:
                moment = tick
                yield tick

    def next(self, moment: datetime) -> datetime:
        """Return the first tick after an aware time."""
        for tick in self.after(moment):
            return tick
        raise InvalidTask(f"cron={self.line!r}: has no tick within 50 years after {moment}")

    def latest(self, first: datetime, until: datetime) -> datetime:
        """Return the last tick up to some time, given one before; takes no longer when there are millions between."""
        free = until
        """There is no tick from here to the end."""
        while (following := self.next(first)) <= until:
            middle = first + (free - first) / 2
            tick = self.next(middle)
            if tick <= until:
                first = tick
            else:
                free, first = middle, following
        return first

    def _by_the_time(self, moment: datetime) -> Iterator[datetime]:
        for tick in CronSim(self._fields, moment.astimezone(self.zone)):
            yield tick.astimezone(UTC)

    def _by_the_wall(self, moment: datetime) -> Iterator[datetime]:
        simulated = CronSim(self._fields, moment.astimezone(self.zone).replace(tzinfo=None))
        for _ in simulated:
            while (tick := self._at(simulated.dt)) is None:
                simulated.dt = simulated.dt.replace(second=0) + timedelta(minutes=1)
            yield tick

    def _at(self, wall: datetime) -> datetime | None:
        """Return when a clock on the wall shows this, for the first time; None when it never does."""
        tick = wall.replace(tzinfo=self.zone).astimezone(UTC)
        return tick if tick.astimezone(self.zone).replace(tzinfo=None) == wall else None


def _checked_line(line: object) -> str:
    if not isinstance(line, str) or not line.strip() or len(line) > LONGEST or "\0" in line:
        raise InvalidTask(f"cron={line!r}: must be a text such as '0 8 * * *', at most {LONGEST} characters")
    line = " ".join(line.split())
    if not line.startswith("@"):
        return line
    if line.lower() not in ALIASES:
        raise InvalidTask(f"cron={line!r}: is none of {', '.join(ALIASES)}")
    return line.lower()


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, TypeError, OSError):
        raise InvalidTask(
            f"timezone={name!r}: no time zone of this name is known here; write one like 'Europe/Paris' or 'UTC' "
            "(where the system knows none at all, pip install tzdata brings them)"
        ) from None
