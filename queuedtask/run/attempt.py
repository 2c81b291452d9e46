"""The attempt that a thread is running: its one shared object, and what a task sees of it.

The slot's thread runs it, threads of the task's own may join it, the manager reads it from outside: its deadline, its
context, its log lines.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from queuedtask.errors import NotInTask
from queuedtask.model.task import Task, TaskOptions
from queuedtask.run.context import Context
from queuedtask.run.logs import LogBuffer
from queuedtask.run.timeouts import Guard

P = ParamSpec("P")
R = TypeVar("R")


class Attempt:
    """One attempt of a task, from its claim until it is settled."""

    __slots__ = (
        "began",
        "context",
        "deadline",
        "guard",
        "is_start_unwritten",
        "log",
        "options",
        "should_abort",
        "task",
        "timeout",
        "wake_manager",
    )

    def __init__(self, task: Task, wake_manager: Callable[[], None]) -> None:
        self.task = task
        self.wake_manager = wake_manager
        """Tells who writes the rows that somebody waits for it."""
        self.context = Context(task.context)
        self.guard = Guard()
        self.log = LogBuffer()
        self.options = TaskOptions()
        """What the function itself declares; known once it has been imported."""
        self.should_abort = False
        self.timeout: float | None = None
        """Seconds; the row's own, else the function's, else the configuration's."""
        self.began: float | None = None
        """When the task's own code began, on the monotonic clock; None before."""
        self.deadline: float | None = None
        self.is_start_unwritten = True
        """The row does not say yet when the task's own code began."""

    def begin(self, options: TaskOptions, default_timeout: float) -> None:
        """Start the clock: the task's own code is about to run."""
        self.options = options
        self.timeout = self.task.timeout or options.timeout or default_timeout
        self.began = time.monotonic()
        self.deadline = self.began + self.timeout

    def interrupt(self, interrupt: type[BaseException]) -> None:
        """Ask the running code to end, and make it."""
        self.should_abort = True
        self.guard.fire(interrupt)

    def seconds(self) -> float | None:
        """Return for how long the task's own code has been running; None when it has not begun."""
        return None if self.began is None else time.monotonic() - self.began


class _Thread(threading.local):
    attempt: Attempt | None = None
    context: Context | None = None


_thread = _Thread()


def current_attempt() -> Attempt | None:
    """Return the attempt that this thread runs or has joined."""
    return _thread.attempt


def enter(attempt: Attempt | None) -> Attempt | None:
    """Make an attempt this thread's own; return the one before, to be entered again at the end."""
    before, _thread.attempt = _thread.attempt, attempt
    return before


class JoinedContext:
    """A task's context for threads that the task starts: context, logs and ``current_task()`` are the task's there.

    To be used with ``with`` inside such a thread, or as ``joined.run(function, …)``. Several threads may use one.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._before = threading.local()

    def __enter__(self) -> None:
        self._before.attempt = enter(self._attempt)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        enter(self._before.attempt)

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function in the task's context and return what it returns."""
        with self:
            return function(*args, **kwargs)


class CurrentTask:
    """The running task, seen from inside."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def __repr__(self) -> str:
        return f"<CurrentTask {self.name} {self.id} attempt {self.attempt}>"

    @property
    def id(self) -> str:
        """The task's id. With :attr:`attempt` it is the token that makes an outside effect idempotent."""
        return self._attempt.task.id

    @property
    def attempt(self) -> int:
        """The number of this attempt: 1 at first, one more each time the task is claimed. Never used twice."""
        return self._attempt.task.attempt

    @property
    def name(self) -> str:
        """The task's name."""
        return self._attempt.task.name or self._attempt.task.function

    def should_abort(self) -> bool:
        """Tell whether the task is asked to end: it has timed out or its worker must stop."""
        return self._attempt.should_abort

    def copy_context(self) -> JoinedContext:
        """Return what lets a thread of the task's own set context, log and ask as the task itself does."""
        return JoinedContext(self._attempt)


def current_task() -> CurrentTask:
    """Return the task that runs in this thread. Raises NotInTask (a RuntimeError) outside any."""
    attempt = _thread.attempt
    if attempt is None:
        raise NotInTask("current_task() was called in a thread that runs no task and has joined none")
    return CurrentTask(attempt)


def set_context(path: str, value: object, *, auto_commit: bool = True) -> None:
    """Set a value in the running task's context at a dotted path, such as ``"progress.rows"``.

    The row's ``context`` has it within a second, and at the end of the attempt however it ends; many calls between
    two writes are one write. With ``auto_commit=False`` the call causes no write of its own: the value goes along with
    the next one, at the end or with :func:`flush_context`. What JSON cannot hold is replaced by a marker.

    Outside a task it works in memory, for this thread. Raises ValueError for an empty path and where something on the
    way is no mapping.
    """
    attempt = _thread.attempt
    if attempt is None:
        _context_outside().set(path, value, auto_commit=auto_commit)
        return
    with attempt.guard.hold():
        attempt.context.set(path, value, auto_commit=auto_commit)


def get_context(path: str | None = None, default: object = None) -> Any:
    """Return a copy of the value at a dotted path of the context (without a path: of all of it), or the default."""
    attempt = _thread.attempt
    if attempt is None:
        return _context_outside().get(path, default)
    with attempt.guard.hold():
        return attempt.context.get(path, default)


def flush_context() -> None:
    """Write the running task's context to its row now, and return when it is there.

    Outside a task it does nothing. The write is the worker's: it is not part of a transaction of the task's own.
    """
    attempt = _thread.attempt
    if attempt is not None:
        # The manager takes the locks in here as well, so no interrupt may land while one is held. It lands between the
        # waits, which are short for that.
        with attempt.guard.hold():
            written = attempt.context.request_write()
            attempt.wake_manager()
        is_written = False
        while not is_written:
            with attempt.guard.hold():
                is_written = written.wait(timeout=0.1)


def _context_outside() -> Context:
    if _thread.context is None:
        _thread.context = Context()
    return _thread.context
