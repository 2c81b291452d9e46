"""The tasks of the benchmarks. Files are appended to with one write each, so that runs are counted from outside."""

import os
import time

_sinks: dict[str, int] = {}


def _append(path: str, data: bytes) -> None:
    sink = _sinks.get(path)
    if sink is None:
        sink = _sinks[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(sink, data)


def noop(path: str) -> None:
    """Leave one byte: about a microsecond."""
    _append(path, b"x")


def stamp(path: str, called_at: float) -> None:
    """Leave the milliseconds from the call of ``add_task`` to this line."""
    _append(path, b"%.3f\n" % ((time.time() - called_at) * 1000))


def begin(path: str, seconds: float) -> None:
    """Leave the time at which it begins, then take so long."""
    _append(path, b"%.3f\n" % time.time())
    time.sleep(seconds)
