"""The attempt that a thread is running: its one shared object, and what a task sees of it.

The slot's thread runs it, threads of the task's own may join it, the manager reads it from outside: its deadline, its
context, its log lines.
"""

import contextvars
import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, Protocol, TypeVar

from queuedtask.errors import Interrupted, LeaseLost, NotAllowed, NotInTask
from queuedtask.model import codec, orders
from queuedtask.model.options import INHERITED, TaskOptions
from queuedtask.model.orders import Order
from queuedtask.model.outcome import Decision, Outcome
from queuedtask.model.task import Task
from queuedtask.run.context import Context
from queuedtask.run.logs import LogBuffer
from queuedtask.run.timeouts import Guard, Hold

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from queuedtask import TaskRef

NEVER: Final = float("inf")
MAX_RESULT_BYTES: Final = 64 * 1024 * 1024
REQUEST_ID: Final = "request_id"
"""Where in a context the id of the request stands during which a task was added."""

P = ParamSpec("P")
R = TypeVar("R")


class Connections(Protocol):
    """Joins tasks to the database: the worker has it, this floor not."""

    def open(self, attempt: "Attempt") -> AbstractContextManager["Connection"]:
        """Give a connection in a transaction: committed at the end of the block, rolled back on an error.

        Its statements can be cancelled from outside.
        """

    def finish_in(self, attempt: "Attempt", connection: object) -> AbstractContextManager[Any]:
        """Give a connection in a transaction at whose end the attempt is settled as done and all is committed."""

    def ref(self, task_id: str) -> Any:
        """Return the TaskRef of a task."""

    def worker_id(self) -> int:
        """Return the id of the worker that runs the tasks."""

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
    order: Order | None = None
    """That somebody has cancelled or stopped it."""
    ordered_at = NEVER
    """When its worker heard of that."""
    is_given_up = False
    """Its slot was taken from it; whatever it still does is of no account."""
    is_disowned = False
    """Its row is no longer this worker's."""
    is_start_unwritten = True
    """The row does not say yet when the task's own code began."""
    start_written: threading.Event | None = None
    """Set when the row says so, for those who wait for that."""
    is_guest = False
    """It runs in a thread that is not a worker's, in the midst of somebody's test."""
    runs_alone = False
    """It runs in a process that it has for itself."""
    process: "IsolatedProcess | None" = None
    """That process, once it is there."""
    result: str | None = None
    """JSON text; what the task has set for the transaction that it finishes in."""
    is_finishing = False
    """It is inside such a transaction."""
    finished: Outcome | None = None
    """How it has settled itself, once that is committed or about to be."""
    tracks: dict[str, object] | None = None
    """The keys of the loops that it tracks, with the place of each in the loops around it; None without any."""
    open_connections: tuple[Any, ...] = ()
    """What :attr:`connections` has given out and not got back."""
    is_after = False
    """Its own code has ended; hooks may still be running."""
    on_error: Callable[[BaseException], None] | None = None
    """Is told the exception that it ended with, where anybody wants to know more than its text."""
    is_unattended = False
    """No hook round it has seen its end: it was given up, its own process died, or its function was not found."""
    decision: Decision | None = None
    """What becomes of its task, as far as is known when its own code has ended; only for those that have hooks."""
    _inherited: str | None = None
    _request_id: str | None = None

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

    @property
    def inherited(self) -> str | None:
        """What its task has inherited as context and hands down, as JSON text; None for nothing."""
        meta = self.task.meta
        if meta is None or INHERITED not in meta:
            return None
        if self._inherited is None:
            document = json.loads(meta)
            # Only an object of ours; a row may have been written by hand.
            inherited = document.get(INHERITED) if isinstance(document, dict) else None
            self._inherited = codec.dumps(inherited) if isinstance(inherited, dict) and inherited else ""
        return self._inherited or None

    @property
    def request_id(self) -> str | None:
        """The id of the request during which its task was added, for its log records; None without one."""
        text = self.task.context
        if text is None or REQUEST_ID not in text:
            return None
        if self._request_id is None:
            self._request_id = _request_id_in(text) or ""
        return self._request_id or None

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

    def obey(self, order: Order) -> None:
        """Take note that somebody has cancelled or stopped it; a second call can only make it more urgent.

        To be cancelled is a request at first: ``should_abort()``, and cancellation of a coroutine.
        """
        if self.order is None:
            self.ordered_at = time.monotonic()
        elif order is not orders.STOP:
            return
        self.order = order
        if self.process is not None:
            self.process.obey(order, self.task)
        if order is orders.STOP:
            self.interrupt(Interrupted)
        else:
            self.should_abort = True
            self.guard.cancel()

    def give_up(self) -> None:
        """Take the slot from it. Who waits for a write of its context is let go."""
        self.should_abort = self.is_given_up = self.is_unattended = True
        self.context.confirm(is_last=True)

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

    def obey(self, order: Order, task: Task) -> None:
        """Tell the attempt in there that somebody has cancelled or stopped it, unless it is another by now."""

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

    So are the context variables that the task had when this was made, such as the span that a tracer goes by. To be
    used with ``with`` inside such a thread, or as ``joined.run(function, …)``. Several threads may use one.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._variables = contextvars.copy_context()
        self._before = threading.local()

    def __enter__(self) -> None:
        missing = object()
        changed = [(variable, value) for variable, value in self._variables.items() if variable.get(missing) != value]
        self._before.tokens = [(variable, variable.set(value)) for variable, value in changed]
        self._before.attempt = enter(self._attempt)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        enter(self._before.attempt)
        for variable, token in self._before.tokens:
            variable.reset(token)

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

    @property
    def ending(self) -> str | None:
        """How the attempt ends, for hooks after it; None before.

        ``done``, ``failed``, ``cancelled`` and ``stopped`` are the task's end; after ``retried`` and ``interrupted``
        another attempt follows. One whose hooks take too long may end otherwise after all.
        """
        return None if self._attempt.decision is None else self._attempt.decision.ending

    @property
    def ref(self) -> "TaskRef":
        """The task's ref: ``queue.add_task(…, parent=current_task().ref)`` adds a child that waits for its end."""
        ref: TaskRef = self._connections.ref(self._attempt.task.id)
        return ref

    @property
    def parents(self) -> "list[TaskRef]":
        """The refs of the tasks that it was waiting for, in the order given; ``.result`` asks the database."""
        return [self._connections.ref(parent) for parent in self._attempt.task.parents or ()]

    @property
    def _connections(self) -> Connections:
        if self._attempt.connections is None:
            raise NotInTask("this attempt runs without a worker: there is no database to connect to")
        return self._attempt.connections

    def should_abort(self) -> bool:
        """Tell whether the task is asked to end.

        It has timed out, somebody has cancelled or stopped it, or its worker must stop or has lost its lease.
        """
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
        return self._connections.open(self._attempt)

    def transaction(self, connection: object = None) -> AbstractContextManager[Any]:
        """Return a context manager for a transaction in which the task's own writes and its completion commit together.

        It gives a SQLAlchemy Connection to the queue's database, like :meth:`connection`, or takes one of yours: a
        SQLAlchemy Connection or Session, a psycopg2 or psycopg Connection, or a Django connection or its alias, none of
        which may commit by itself. At the end of the block the row is moved to *done* with what :meth:`set_result`
        has set, and all of it is committed; the row is not locked before. An error in the block rolls back.

        Raises LeaseLost at the end of the block, and nothing commits, when the attempt is no longer this worker's.
        Afterwards the task is done: what its code does then is of no account, an error is logged. Raises NotAllowed for
        a second such transaction, and InvalidTask for a connection that will not do.
        """
        return self._connections.finish_in(self._attempt, connection)

    def set_result(self, value: object) -> None:
        """Set the task's result inside ``with current_task().transaction()``; elsewhere return it.

        Raises NotAllowed outside such a block.
        """
        attempt = self._attempt
        with attempt.guard.hold():
            if not attempt.is_finishing:
                raise NotAllowed("set_result() belongs inside `with current_task().transaction()`; elsewhere return it")
            attempt.result = codec.encode_result(value, MAX_RESULT_BYTES)

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

    Outside a task it is kept in memory, for this thread, and copied into the context of the tasks that the thread adds;
    those hand it down to the tasks that they add. See :func:`clear_context`.

    Raises ValueError for an empty path and where something on the way is no mapping.
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


def clear_context() -> None:
    """Forget what this thread has set with :func:`set_context` outside a task, as at the end of a request.

    Threads are used again, and the next request must not inherit it. Inside a task it does nothing: that context is the
    row's.
    """
    if _thread.attempt is None:
        _thread.context = None


def captured_context() -> str | None:
    """Return the context that a task added now inherits, as JSON text; None for nothing.

    Outside a task it is what this thread has set. Inside a task it is what the task itself has inherited, and not what
    it has set.
    """
    attempt = _thread.attempt
    if attempt is not None:
        return attempt.inherited
    context = _thread.context
    return None if context is None else context.text()


def flush_context() -> None:
    """Write the running task's context to its row now, and return when it is there.

    Outside a task it does nothing. The write is the worker's: it is not part of a transaction of the task's own.
    Raises LeaseLost when the attempt has ended, or has outlived its timeout and was given up.
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
        if written.is_too_late:
            raise LeaseLost("the attempt has ended: its context is not written any more")


def swap_context(context: Context | None) -> Context | None:
    """Give this thread another context for outside any task; return the one that it had, to be given back."""
    before, _thread.context = _thread.context, context
    return before


def request_id() -> str | None:
    """Return the id of the request that this thread serves, or during which the task that it runs was added."""
    attempt, context = _thread.attempt, _thread.context
    if attempt is not None:
        return attempt.request_id
    found = None if context is None else context.get(REQUEST_ID)
    return found if isinstance(found, str) else None


class TaskFields(logging.Filter):
    """Give each record ``task_id``, ``task_name``, ``attempt``, ``channel`` and ``request_id``; lets all pass.

    Each is None where there is none.

    For handlers: ``handler.addFilter(TaskFields())``. It looks at the thread that logs.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Set the attributes."""
        task = None if _thread.attempt is None else _thread.attempt.task
        record.task_id = None if task is None else task.id
        record.task_name = None if task is None else task.name or task.function
        record.attempt = None if task is None else task.attempt
        record.channel = None if task is None else task.channel
        record.request_id = request_id()
        return True


def _request_id_in(text: str) -> str | None:
    document = json.loads(text)
    found = document.get(REQUEST_ID) if isinstance(document, dict) else None
    return found if isinstance(found, str) else None


def _context_outside() -> Context:
    if _thread.context is None:
        _thread.context = Context()
    return _thread.context
