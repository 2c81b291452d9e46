"""Log records that a task emits, caught on their way through the root logger.

Only records of threads that run or have joined an attempt are taken, whatever logger they came from; our own loggers'
and the database drivers' are not, because writing the rows would make more of them. Nor is what Django's tasks log of
themselves.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from queuedtask.model.codec import clean_text
from queuedtask.run.timeouts import Guard

MAX_BYTES: Final = 1024 * 1024
"""What one attempt may log into rows."""
_OURS_AND_DRIVERS: Final = ("queuedtask", "sqlalchemy", "psycopg", "psycopg2", "asyncpg")
_TAKEN: Final = "queuedtask_taken"
_ABOUT_TASKS: Final = ("django.tasks", "django_tasks")
"""Loggers that say of each attempt that it has begun and ended, which its row says too."""
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
    @property
    def request_id(self) -> str | None: ...


class TaskLogHandler(logging.Handler):
    """Put the records of task threads into their attempt's buffer."""

    def __init__(self, level: int, current: Callable[[], Capturing | None]) -> None:
        super().__init__(level)
        self.current = current

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
        attempt = self.current()
        if attempt is None or record.name.partition(".")[0] in _OURS_AND_DRIVERS or record.name in _ABOUT_TASKS:
            return
        # Where several capture (a worker in this process, and a test that runs tasks itself), the first one takes it.
        if record.__dict__.setdefault(_TAKEN, self) is not self:
            return
        with attempt.guard.hold():
            of_request = "" if (request := attempt.request_id) is None else f"[{request}] "
            attempt.log.append(
                Line(
                    clean_text(record.levelname.lower(), 50),
                    clean_text(record.name, 1000),
                    f"{of_request}{_message(record)}",
                    time.monotonic(),
                )
            )


def described(message: object) -> str:
    """Return what is known of what somebody has logged and cannot be written."""
    try:
        return repr(message)
    except Exception:
        return f"<{type(message).__qualname__}>"


def _message(record: logging.LogRecord) -> str:
    try:
        text = _formatter.format(record)
    except Exception as error:
        # Wrong arguments for the format, or a __str__ that raises: logging itself would print and go on.
        text = f"{described(record.msg)} (could not be formatted: {type(error).__name__})"
    return clean_text(text, MAX_BYTES // 4)


class capture_logs:  # noqa: N801 (a context manager reads as a verb)
    """Catch the records of task threads from a level up while the block runs.

    The root logger lets them pass whatever its level was; its other handlers go on seeing what they saw before. Blocks
    may overlap in any order, in any thread: the levels go back when the last one ends, but for one that somebody else
    has changed meanwhile.
    """

    def __init__(self, level: int, current: Callable[[], Capturing | None]) -> None:
        self._handler = TaskLogHandler(level, current)

    def __enter__(self) -> None:
        _shield_handlers()
        _capturing.append(self._handler)
        with _levels.lock:
            _levels.lower(self._handler.level)
            _levels.open += 1
        logging.getLogger().addHandler(self._handler)

    def __exit__(self, *exception: object) -> None:
        if self._handler in _capturing:
            _capturing.remove(self._handler)
        logging.getLogger().removeHandler(self._handler)
        with _levels.lock:
            _levels.open = max(0, _levels.open - 1)
            if not _levels.open:
                _levels.put_back()


def forget_captures() -> None:
    """Catch nothing any more, in a process that was forked off while blocks of ``capture_logs`` ran in threads."""
    global _levels
    _capturing.clear()
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, TaskLogHandler)]:
        root.removeHandler(handler)
    _levels.put_back()
    _levels = _Levels()  # with a lock that no thread of the parent holds


_capturing: Final[list[TaskLogHandler]] = []
_call_handlers: Callable[[logging.Logger, logging.LogRecord], None] | None = None
"""What ours has taken the place of, once it has."""


def _shield_handlers() -> None:
    """Have all handlers called with the interrupts of the attempt held back, once and for good.

    An interrupt that lands between the taking of a handler's lock and the ``try`` after it leaves the lock held, and
    every thread that logs waits for it for ever. A handler takes its lock in its own code or in logging's, so only
    what calls them all can hold it back.
    """
    global _call_handlers
    # Never a second time: what stands there then may be somebody else's that calls ours, such as Sentry's.
    if _call_handlers is None:
        _call_handlers = logging.Logger.callHandlers
        logging.Logger.callHandlers = _call_shielded  # type: ignore[method-assign, assignment]


def _call_shielded(logger: logging.Logger, record: logging.LogRecord) -> None:
    assert _call_handlers is not None
    for handler in _capturing.copy():
        if (attempt := handler.current()) is not None:
            root = logging.getLogger()
            if handler not in root.handlers:
                root.addHandler(handler)  # somebody has configured logging anew, as modules do when they are imported
            with attempt.guard.hold():
                _call_handlers(logger, record)
            return
    _call_handlers(logger, record)


class _Levels:
    """The levels that ``capture_logs`` has changed, each with what it was and what we made of it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open = 0
        self._changed: dict[logging.Handler | logging.Logger, tuple[int, int]] = {}

    def lower(self, level: int) -> None:
        """Let the root logger pass records from the level up, and its present handlers not more than until now."""
        root = logging.getLogger()
        if root.level > level:
            for handler in root.handlers:
                if not isinstance(handler, TaskLogHandler):
                    self._change(handler, max(handler.level, root.level))
            self._change(root, level)

    def put_back(self) -> None:
        """Undo the changes, but for those that somebody has changed again."""
        for changed, (before, made) in self._changed.items():
            if changed.level == made:
                changed.setLevel(before)
        self._changed.clear()

    def _change(self, it: logging.Handler | logging.Logger, level: int) -> None:
        before, made = self._changed.get(it, (it.level, it.level))
        if it.level != made:
            before = it.level
        self._changed[it] = before, level
        it.setLevel(level)


_levels = _Levels()


def getLogger(name: str | None = None) -> logging.Logger:  # noqa: N802 (the name that people know)
    """Return an ordinary ``logging`` logger. Inside a task its records become rows of ``queued_task_logs``."""
    return logging.getLogger(name)
