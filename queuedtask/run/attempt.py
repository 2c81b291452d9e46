"""The attempt that a thread is running: its one shared object, and what a task sees of it.

The slot's thread runs it, threads of the task's own may join it, the manager reads it from outside: its deadline, its
context, its log lines.
"""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, Protocol, TypeVar

from queuedtask.errors import LeaseLost, NotInTask
from queuedtask.model.task import Task, TaskOptions
from queuedtask.run.context import Context
from queuedtask.run.logs import LogBuffer
from queuedtask.run.timeouts import Guard, Hold

if TYPE_CHECKING:
    from sqlalchemy import Connection

NEVER: Final = float("inf")

P = ParamSpec("P")
R = TypeVar("R")


class Connections(Protocol):
    """Gives tasks connections whose statements can be cancelled from outside; the worker has it, this floor not."""

    def open(self, attempt: "Attempt") -> AbstractContextManager["Connection"]:
        """Give a connection in a transaction: committed at the end of the block, rolled back on an error."""

    def cancel(self, attempt: "Attempt") -> None:
        """Cancel what runs on an attempt's connections, until the attempt has ended; returns at once."""

    def finish(self, attempt: "Attempt") -> None:
        """Give up the connections that an attempt has left open."""


class ThreadNumbers(NamedTuple):
    """A thread as Python and as the system numbers it."""

    ident: int
    native: int

    @classmethod
    def of_this_one(cls) -> "ThreadNumbers":
        """Return those of the calling thread."""
        return cls(threading.get_ident(), threading.get_native_id())


class Attempt:
    """One attempt of a task, from its claim until it is settled."""

    # Tens of thousands are made in a second: what most attempts never set stands here.
    options = TaskOptions()
    """What the function itself declares; known once it has been imported."""
    should_abort = False
    began: float | None = None
    """When the task's own code began, on the monotonic clock; None before."""
    is_importing = False
    """Its module is imported first, for which its deadline leaves more time."""
    interrupted_at: float | None = None
    """When it was told to end."""
    is_given_up = False
    """Its slot was taken from it; whatever it still does is of no account."""
    is_disowned = False
    """Its row is no longer this worker's."""
    is_start_unwritten = True
    """The row does not say yet when the task's own code began."""
    start_written: threading.Event | None = None
    """Set when the row says so, for those who wait for that."""
    process: "IsolatedProcess | None" = None
    """The process that it has for itself, if it does not run in this one."""
    open_connections: tuple[Any, ...] = ()
    """What :attr:`connections` has given out and not got back."""

    def __init__(
        self,
        task: Task,
        wake_manager: Callable[[], None],
        thread: "ThreadNumbers | None" = None,
        default_timeout: float = NEVER,
        connections: Connections | None = None,
    ) -> None:
        self.task = task
        self.wake_manager = wake_manager
        """Tells who writes the rows that somebody waits for it."""
        self.thread = thread or ThreadNumbers.of_this_one()
        """The thread that runs it."""
        self.connections = connections
        self.context = Context(task.context)
        self.guard = Guard()
        self.log = LogBuffer()
        self.timeout = task.timeout or default_timeout
        """Seconds; the row's own, else the function's, else the configuration's."""
        self.deadline: float | None = None
        """On the monotonic clock; None while none is set."""

    def begin(self, options: TaskOptions, default_timeout: float) -> None:
        """Start the clock: the task's own code is about to run."""
        self.options = options
        self.timeout = self.task.timeout or options.timeout or default_timeout
        self.began = time.monotonic()
        self.deadline = self.began + self.timeout

    def ask_to_abort(self) -> None:
        """Ask the running code to end, and leave it at that."""
        self.should_abort = True
        if self.process is not None:
            self.process.ask_to_abort()

    def interrupt(self, interrupt: type[BaseException]) -> None:
        """Ask the running code to end, and make it: its asyncio task, its thread, its SQL, or its process."""
        self.should_abort = True
        if self.interrupted_at is None:
            self.interrupted_at = time.monotonic()
        self.guard.fire(interrupt)
        if self.process is not None:
            self.process.interrupt(interrupt)
        if self.open_connections and self.connections is not None:
            self.connections.cancel(self)

    def give_up(self) -> None:
        """Take the slot from it. Who waits for a write of its context is let go."""
        self.should_abort = self.is_given_up = True
        self.context.confirm(also_waiting=True)

    def seconds(self) -> float | None:
        """Return for how long the task's own code has been running; None when it has not begun."""
        return None if self.began is None else time.monotonic() - self.began


class IsolatedProcess(Protocol):
    """The process that an attempt has for itself, as far as an attempt knows it."""

    @property
    def pid(self) -> int: ...
    @property
    def is_killed(self) -> bool: ...
    def ask_to_abort(self) -> None:
        """Ask the attempt in there to end."""

    def interrupt(self, interrupt: type[BaseException]) -> None:
        """Interrupt the attempt in there."""

    def kill(self) -> None:
        """End the process, whatever it does; its last stack is kept first, if it still answers. Acts once."""


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
        """Tell whether the task is asked to end: it has timed out, its worker must stop or has lost its lease."""
        return self._attempt.should_abort

    def shield(self) -> Hold:
        """Return a context manager in which the task is not interrupted: what is due comes at its end.

        For steps that must not be cut in two. It holds back the exception, the cancellation of a coroutine and that of
        SQL, and not for longer than ``QUEUE_TIMEOUT_GRACE``: then the attempt counts as timed out, whatever it does.
        """
        return self._attempt.guard.hold()

    def connection(self) -> AbstractContextManager["Connection"]:
        """Return a context manager that gives a SQLAlchemy Connection to the queue's database.

        What is executed on it is one transaction, committed at the end of the block and rolled back on an error. Its
        statements are cancelled when the task is interrupted, which no other connection's are. Raises LeaseLost when
        the attempt's slot has been taken from it, and DatabaseUnavailable.
        """
        if self._attempt.connections is None:
            raise NotInTask("this attempt runs without a worker: there is no database to connect to")
        return self._attempt.connections.open(self._attempt)

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
    Raises LeaseLost when the attempt has outlived its timeout and was given up.
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
        if attempt.is_given_up:
            raise LeaseLost("the attempt outlived its timeout and was given up: its context is not written any more")


def _context_outside() -> Context:
    if _thread.context is None:
        _thread.context = Context()
    return _thread.context
