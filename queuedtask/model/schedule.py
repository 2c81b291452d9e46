"""Schedules: what ``@queue.cron`` declares, and which ticks are due under a policy for missed ones."""

import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any, Final, NamedTuple

from queuedtask.errors import InvalidTask
from queuedtask.model import options
from queuedtask.model.cron import Cron
from queuedtask.model.task import TaskSpec, new_id

SKIP: Final = "skip"
LAST: Final = "last"
ALL: Final = "all"
ALLOW: Final = "allow"
MISFIRE: Final = (SKIP, LAST, ALL)
"""What becomes of ticks that no worker was there for."""
OVERLAP: Final = (ALLOW, SKIP)
"""What becomes of a tick while the task of the one before has not ended."""

GRACE: Final = timedelta(seconds=10)
"""A tick that is no later than this was not missed."""

# A schedule's own columns, and what each of its tasks gets anew. Nor the unique key: ``overlap`` says what happens
# while a task of it has not ended, and whoever adds a key may have to wait for other people's transactions.
_NOT_OPTIONS: Final = {
    *("id", "function", "args", "kwargs", "parents", "delay", "run_at"),
    *("unique_key", "on_conflict"),
}


class Schedule(NamedTuple):
    """What a schedule's row gets from the code. JSON is text."""

    name: str
    function: str
    args: str
    kwargs: str
    cron: str
    timezone: str
    misfire: str
    overlap: str
    options: str
    """An object with the fields of the tasks' TaskSpec that differ from its defaults."""

    @property
    def definition(self) -> str:
        """A digest of all of it: whether a deploy has changed anything."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()


class Declaration(NamedTuple):
    """One ``@queue.cron``. The function's path can be told only when its module has been imported."""

    name: str
    function: Callable[..., object]
    cron: Cron
    misfire: str
    overlap: str
    spec: Callable[[], TaskSpec]
    """Makes the task that a tick would add."""

    def schedule(self) -> Schedule:
        """Return what is to stand in the row. Raises InvalidTask."""
        spec = self.spec()
        given = {
            name: value
            for name, value in spec._asdict().items()
            if name not in _NOT_OPTIONS and value != TaskSpec._field_defaults.get(name)
        }
        try:
            options_text = json.dumps(given, sort_keys=True)
        except TypeError as error:
            raise InvalidTask(f"schedule {self.name}: its options cannot stand in a row: {error}") from None
        return Schedule(
            name=self.name,
            function=spec.function,
            args=spec.args,
            kwargs=spec.kwargs,
            cron=self.cron.line,
            timezone=self.cron.timezone,
            misfire=self.misfire,
            overlap=self.overlap,
            options=options_text,
        )


class Declarations(dict[str, Declaration]):
    """All that are declared for one queue, by name."""

    def declare(self, declaration: Declaration) -> None:
        """Add one. Raises InvalidTask when another one has its name; a module that is loaded again may repeat it."""
        name, function = declaration.name, declaration.function
        known = self.get(name)
        if known is not None and (known.function is function or _place(known.function) != _place(function)):
            raise InvalidTask(f"@queue.cron: there is a schedule {name!r} already; give this one a name= of its own")
        self[name] = declaration


def _place(function: Callable[..., object]) -> tuple[object, object]:
    return getattr(function, "__module__", None), getattr(function, "__qualname__", None)


def checked_policy(option: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return a policy that exists. Raises InvalidTask."""
    if value not in allowed:
        raise InvalidTask(f"{option}={value!r}: must be one of {', '.join(allowed)}")
    return value


def checked_name(name: str) -> str:
    """Return a schedule's name. Raises InvalidTask."""
    return str(options.checked({"name": name}, max_payload=0)["name"])


class Due(NamedTuple):
    """What is to be done about a schedule now."""

    ticks: list[datetime]
    """Those that become tasks."""
    date_next: datetime
    """The first one that has not been dealt with."""


def due(cron: Cron, misfire: str, date_next: datetime, now: datetime, *, limit: int) -> Due:
    """Tell which ticks to fire now, at most ``limit`` of them, and which is next after them. Pure.

    ``date_next`` is a tick that may have come by now, or, when the line was changed by hand, the time from which it
    counts. Under ``all`` every tick comes; else the latest alone, under ``skip`` only when it is in time.
    """
    first = cron.next(date_next - timedelta(seconds=1))
    if first > now:
        return Due([], first)
    if misfire == ALL:
        ticks = [first]
        for tick in takewhile(lambda tick: tick <= now and len(ticks) < limit, cron.after(first)):
            ticks.append(tick)
        return Due(ticks, cron.next(ticks[-1]))
    latest = cron.latest(first, now)
    is_fired = misfire != SKIP or now - latest <= GRACE
    return Due([latest] if is_fired else [], cron.next(latest))


def task_of(name: str, function: str, args: str, kwargs: str, given: dict[str, Any], tick: datetime | None) -> TaskSpec:
    """Return the task that a schedule adds for a tick, or for a run beside its ticks. Raises InvalidTask.

    ``given`` are the options of its row; one that this release does not know is left out.
    """
    known = {key: value for key, value in given.items() if key in TaskSpec._fields and key not in _NOT_OPTIONS}
    return TaskSpec(
        **{"name": name, **known, "id": new_id(), "function": function, "args": args, "kwargs": kwargs, "run_at": tick}
    )
