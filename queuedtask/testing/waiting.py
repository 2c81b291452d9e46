"""Waiting for what other threads and processes do, without sleeping and hoping."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], timeout: float = 10.0, interval: float = 0.01, message: str = "") -> T:
    """Return the first truthy value of the predicate; AssertionError with its last value after the timeout.

    An AssertionError of the predicate counts as "not yet", and is the cause of ours if it stays.
    """
    deadline = time.monotonic() + timeout
    while True:
        cause: AssertionError | None = None
        value: Any = None
        try:
            value = predicate()
        except AssertionError as error:
            cause = error
        if value:
            return value  # type: ignore[no-any-return]
        if time.monotonic() > deadline:
            what = message or getattr(predicate, "__name__", repr(predicate))
            raise AssertionError(f"not within {timeout:g} s: {what} (last: {cause or value!r})") from cause
        time.sleep(interval)
