"""Log records that a task emits, caught on their way through the root logger.

Only records of threads that run or have joined an attempt are taken, whatever logger they came from; our own loggers'
and the database drivers' are not, because writing the rows would make more of them.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from queuedtask.model.codec import clean_text
from queuedtask.run.timeouts import Guard

MAX_BYTES: Final = 1024 * 1024
"""What one attempt may log into rows."""
_OURS_AND_DRIVERS: Final = ("queuedtask", "sqlalchemy", "psycopg", "psycopg2", "asyncpg")
_formatter = logging.Formatter()


class Line(NamedTuple):
    """One record, as it goes into a row."""

    type: str
    name: str
    message: str
    at: float
    """When, on the monotonic clock."""


class LogBuffer:
    """The lines of one attempt that are not written yet. Appending and taking are safe from any thread."""

    __slots__ = ("_bytes", "_dropped", "_lines")

    def __init__(self) -> None:
        self._lines: deque[Line] = deque()
        self._bytes = 0
        self._dropped = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    def append(self, line: Line) -> None:
        """Keep a line, or count it as dropped when the attempt has logged its share."""
        self._bytes += len(line.message.encode()) + len(line.name)
        if self._bytes > MAX_BYTES:
            self._dropped += 1
        else:
            self._lines.append(line)

    def take(self) -> list[Line]:
        """Return the lines that are there and forget them."""
        return [self._lines.popleft() for _ in range(len(self._lines))]

    def put_back(self, lines: list[Line]) -> None:
        """Take back that lines were taken: they could not be written."""
        self._lines.extendleft(reversed(lines))

    def close(self) -> None:
        """Say in a last line how many were dropped, if any."""
        if self._dropped:
            text = f"{self._dropped} more records were dropped: an attempt logs at most {MAX_BYTES:,} bytes"
            self._lines.append(Line("warning", "queuedtask", text, time.monotonic()))
            self._dropped = 0


class Capturing(Protocol):
    """What the handler needs of an attempt."""

    @property
    def guard(self) -> Guard: ...
    @property
    def log(self) -> LogBuffer: ...


class TaskLogHandler(logging.Handler):
    """Put the records of task threads into their attempt's buffer."""

    def __init__(self, level: int, current: Callable[[], Capturing | None]) -> None:
        super().__init__(level)
        self._current = current

    def handle(self, record: logging.LogRecord) -> bool:
        """Filter and emit without the handler's lock.

        An interrupt could land while it is held, and every thread that logs would wait for it for ever.
        """
        passed = bool(self.filter(record))
        if passed:
            self.emit(record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """Format the record and keep it, in the thread that logged it."""
        attempt = self._current()
        if attempt is None or record.name.partition(".")[0] in _OURS_AND_DRIVERS:
            return
        with attempt.guard.hold():
            attempt.log.append(
                Line(
                    record.levelname.lower()[:50],
                    clean_text(record.name, 1000),
                    _message(record),
                    time.monotonic(),
                )
            )


def _message(record: logging.LogRecord) -> str:
    try:
        text = _formatter.format(record)
    except Exception as error:
        # Wrong arguments for the format, or a __str__ that raises: logging itself would print and go on.
        text = f"{record.msg!r} (could not be formatted: {type(error).__name__})"
    return clean_text(text, MAX_BYTES // 4)


class capture_logs:  # noqa: N801 (a context manager reads as a verb)
    """Catch the records of task threads from a level up while the block runs.

    The root logger lets them pass whatever its level was; its other handlers go on seeing what they saw before.
    """

    def __init__(self, level: int, current: Callable[[], Capturing | None]) -> None:
        self._handler = TaskLogHandler(level, current)
        self._levels: list[tuple[logging.Handler, int]] = []
        self._root_level = logging.NOTSET

    def __enter__(self) -> None:
        root = logging.getLogger()
        self._root_level = root.level
        if root.level > self._handler.level:
            for handler in root.handlers:
                self._levels.append((handler, handler.level))
                handler.setLevel(max(handler.level, root.level))
            root.setLevel(self._handler.level)
        root.addHandler(self._handler)

    def __exit__(self, *exception: object) -> None:
        root = logging.getLogger()
        root.removeHandler(self._handler)
        root.setLevel(self._root_level)
        for handler, level in self._levels:
            handler.setLevel(level)


def getLogger(name: str | None = None) -> logging.Logger:  # noqa: N802 (the name that people know)
    """Return an ordinary ``logging`` logger. Inside a task its records become rows of ``queued_task_logs``."""
    return logging.getLogger(name)
