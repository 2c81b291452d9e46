"""How long a failed task waits for its next attempt. Pure; the jitter is handed in."""

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from queuedtask.errors import InvalidTask

EXPONENTIAL: Final = "exponential"
LINEAR: Final = "linear"

Backoff = str | Sequence[float]
"""Either of the two names, or the seconds to wait after each failure, of which the last repeats."""

BASE: Final = 5.0
LIMIT: Final = 3600.0
JITTER: Final = 0.2
LONGEST: Final = 100
"""Entries in a list."""
MAX_DELAY: Final = 100 * 366 * 86400


def delay_after(failures: int, backoff: Backoff | None = None, jitter: float = 0.0) -> float:
    """Return the seconds to wait after so many earlier failures.

    *exponential*, also for None: 5, 25, 125 …; *linear*: 5, 10, 15 …; both at most an hour, and spread by up to 20 %
    with a ``jitter`` in [-1, 1]. A list is taken as it stands.
    """
    if backoff is not None and not isinstance(backoff, str):
        return float(backoff[min(failures, len(backoff) - 1)])
    # The exponent is bounded first: a task with thousands of retries must not overflow a float.
    base = BASE * (failures + 1) if backoff == LINEAR else BASE ** min(failures + 1, 10)
    return min(LIMIT, min(LIMIT, base) * (1.0 + JITTER * jitter))


def checked(option: str, value: object) -> Backoff:
    """Return a back-off as it is stored. Raises InvalidTask for what is none."""
    if isinstance(value, str) and value in (EXPONENTIAL, LINEAR):
        return value
    if isinstance(value, list | tuple) and 1 <= len(value) <= LONGEST:
        delays = [seconds(each) for each in value]
        if None not in delays:
            return [delay for delay in delays if delay is not None]
    raise InvalidTask(
        f"{option}={value!r}: must be {EXPONENTIAL!r}, {LINEAR!r} or a list of 1 to {LONGEST} delays, each a number of "
        "seconds or a timedelta, 0 or more, at most 100 years"
    )


def stored(value: Any) -> Backoff | None:
    """Return a back-off that was read from a row, where anybody may have written anything: None if it is none."""
    try:
        return None if value is None else checked("backoff", value)
    except InvalidTask:
        return None


def seconds(value: object) -> float | None:
    """Return a delay in seconds, None for what is none."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if not isinstance(number, int | float) or isinstance(number, bool) or math.isnan(number):
        return None
    return float(number) if 0 <= number <= MAX_DELAY else None
