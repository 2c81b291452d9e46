"""Draining: the tasks that can run are run here and now, in the thread and, if it is given, the transaction of a test.

The parts are those of a worker: claims, resolver, executor, judgement, settlement. What is missing is the manager with
its threads: nothing is run beside anything else, and nothing is interrupted.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import queuedtask
from queuedtask.db import families, migrate, reads, store, travel, workers
from queuedtask.db.callers import Mark, NestedTransaction, are_same, cursor_on, is_in_transaction
from queuedtask.db.statement import Cursor
from queuedtask.db.store import Progress
from queuedtask.errors import InvalidTask, NotAllowed, Retry
from queuedtask.model import codec, outcome, states
from queuedtask.model.outcome import Decision
from queuedtask.model.rules import CurrentRules
from queuedtask.model.task import Task
from queuedtask.refs import TaskRef
from queuedtask.run.attempt import Attempt, current_attempt
from queuedtask.run.executor import execute, judge
from queuedtask.run.logs import capture_logs
from queuedtask.run.resolver import Resolver
from queuedtask.taskqueue import Queue
from queuedtask.worker.claims import Claims
from queuedtask.worker.settling import Settlements, Settling, log_lines
from queuedtask.worker.sql import EndedByUs, TaskConnections

if TYPE_CHECKING:
    from sqlalchemy import Connection

LIMIT: Final = 1000
_RELEASED: Final = 1000
_LEASE: Final = 86400.0
"""Seconds for which no worker beside a drain takes it for dead: it may stand in a debugger."""


class Ran(NamedTuple):
    """One attempt that was run in a test."""

    ref: TaskRef
    """The task; reading it asks the database apart from any transaction of the test's."""
    name: str
    attempt: int
    state: str
    """What the task was after it: *waiting* for a retry, for example."""
    result: Any
    error: BaseException | None
    """What it raised."""
    context: dict[str, Any]
    """The task's context after it."""


def drain(
    queue: Queue,
    connection: object = None,
    *,
    with_retries: bool = False,
    raise_errors: bool = True,
    limit: int | None = LIMIT,
) -> list[Ran]:
    """Run all tasks that can run, in this thread, until none is left; return what has run, in its order.

    Those that they add and those that waited for them are run as well. Left are tasks whose time has not come (see
    :func:`travel`), that are paused or over a limit, or that ``QUEUE_ALLOWED_FUNCTIONS`` does not allow.

    ``connection``: the transaction of the test, as for :meth:`queuedtask.Queue.options`, by default that of a
    framework's queue. All that is read and written is part of it: tasks that are not committed are run, and all of it
    vanishes when it is rolled back. A connection that commits by itself is not used: what is on it is there for all.

    An error that a task raises is raised here, at once: the task is settled, and others have not run yet. ``Retry`` and
    ``Cancel`` are no errors. With ``raise_errors=False`` it stands in the list. ``with_retries``: what is to be tried
    again is tried at once, however long it should wait, and an error is raised when no retry is left.

    Timeouts do not interrupt anything, and ``isolation="process"`` makes no process. Raises RuntimeError after so many
    attempts as ``limit`` says: a task may be adding itself again; None is for no limit.
    """
    queue = queue._itself()
    if connection is None:
        connection = queue._default_connection()
    if connection is not None and not is_in_transaction(connection):
        connection = None
    return _Drain(queue, connection, with_retries=with_retries, raise_errors=raise_errors).run(limit)


class _Drain:
    def __init__(self, queue: Queue, connection: object, *, with_retries: bool, raise_errors: bool) -> None:
        self._queue = queue
        self._config = queue.config
        self._given = connection
        self._with_retries = with_retries
        self._raise_errors = raise_errors
        self._rules = CurrentRules(queue.config)
        self._resolve = Resolver(queue.config)
        self._worker = 0
        if connection is None:
            self._connections = TaskConnections(queue, worker=lambda: self._worker)
        else:
            self._connections = _ConnectionsInTransaction(queue, connection, worker=lambda: self._worker)

    def run(self, limit: int | None) -> list[Ran]:
        ran: list[Ran] = []
        with self._registered(), capture_logs(self._config.log_level, current_attempt):
            while (task := self._claim()) is not None:
                if len(ran) == limit:
                    with self._transaction() as cursor:
                        store.disown(cursor, worker=self._worker, known=[])
                    raise RuntimeError(
                        f"drain() has run {limit:,} attempts, and more can run, {task.name} next: does a task add "
                        "itself again? If they are so many, say limit=…"
                    )
                ran.append(self._run(task))
        return ran

    @contextmanager
    def _transaction(self) -> Iterator[Cursor]:
        if self._given is None:
            with self._queue.database.transaction() as cursor:
                yield cursor
        else:
            yield cursor_on(self._given)

    @contextmanager
    def _registered(self) -> Iterator[None]:
        with self._transaction() as cursor:
            migrate.require_usable(cursor)
            self._worker = workers.register(
                cursor,
                server_name=socket.gethostname(),
                slots=1,
                pid=os.getpid(),
                supervisor_pid=None,
                version=queuedtask.__version__,
                lease=_LEASE,
            )
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the transaction may be broken
                self._retire()
            raise
        self._retire()

    def _retire(self) -> None:
        with self._transaction() as cursor:
            workers.retire(cursor, worker=self._worker)

    def _claim(self) -> Task | None:
        while True:
            with self._transaction() as cursor:
                store.release_due(cursor, limit=_RELEASED)
                # A new one each time looks what there is before it claims.
                claims = Claims(self._config)
                claims.prepare(cursor)
                only = self._rules().claimable
                if tasks := claims.take(cursor, worker=self._worker, wanted=1, slots=1, only=only).tasks:
                    return tasks[0]
                if not (strays := families.strays(cursor, since=None)):
                    return None
                families.settle_strays(cursor, strays)

    def _run(self, task: Task) -> Ran:
        attempt = Attempt(
            task, lambda: self._write_progress(attempt), None, self._config.task_timeout, self._connections
        )
        attempt.is_guest = True
        errors: list[BaseException] = []
        attempt.on_error = errors.append
        mark = None if self._given is None else Mark(self._given)
        ended = execute(
            attempt,
            self._resolve,
            default_timeout=self._config.task_timeout,
            on_begin=lambda attempt: None,
            hooks=self._queue.hooks,
            judge=partial(judge, self._config),
        )
        error = errors[-1] if errors else None
        try:
            if mark is not None:
                mark.mend()
            ran = self._settle(attempt, judge(self._config, attempt, ended), error)
        except Exception as fault:
            if error is not None:
                raise fault from error
            raise
        if error is not None and self._is_to_be_raised(error, ended.kind, ran.state):
            error.add_note(f"raised by {ran.name} {task.id}, attempt {task.attempt}, which is {ran.state} after it")
            raise error
        return ran

    def _settle(self, attempt: Attempt, decision: Decision, error: BaseException | None) -> Ran:
        task, settlements = attempt.task, Settlements(self._config, self._queue.hooks)
        settlements.add(Settling.of(attempt, decision), due_at=0.0)
        with self._transaction() as cursor:
            refused = settlements.write(cursor, worker=self._worker)
            if self._with_retries and decision.edge is states.RETRY:
                travel.hasten(cursor, [task.id])
            row = reads.get_task(cursor, task.id)
        settlements.written(refused)
        if self._given is not None and (row is None or row.attempt < task.attempt):
            raise RuntimeError(
                f"{task.name} {task.id} has rolled back the transaction that drain(connection=…) works in, and that it "
                "was claimed with it; see the documentation, Testing, for Sessions that join a test's transaction"
            )
        ref = TaskRef(self._queue, task.id, created=False)
        if row is None:
            return Ran(ref, task.name, task.attempt, decision.edge.target, None, error, {})
        context = codec.decode(row.context)
        return Ran(
            ref,
            task.name or task.function,
            task.attempt,
            row.state,
            codec.decode(row.result),
            error,
            context if isinstance(context, dict) else {},
        )

    def _is_to_be_raised(self, error: BaseException, kind: str, state: str) -> bool:
        # Ctrl-C, and what a test framework ends or skips a test with, are for the test whatever becomes of the task.
        if not isinstance(error, Exception | SystemExit):
            return True
        is_open = state == states.WAITING and (self._with_retries or isinstance(error, Retry))
        return self._raise_errors and kind in (outcome.RAISED, outcome.REFUSED, outcome.ASKED_FOR_RETRY) and not is_open

    def _write_progress(self, attempt: Attempt) -> None:
        """Write what an attempt has set and logged: it waits for that."""
        task, lines = attempt.task, attempt.log.take()
        context = attempt.context.take_changes(also_deferred=False)
        with self._transaction() as cursor:
            store.write_progress(cursor, [Progress(task, attempt.seconds() or 0.0, context)], worker=self._worker)
            if lines:
                store.add_logs(cursor, log_lines(task, lines), worker=self._worker)
        attempt.context.confirm()


class _ConnectionsInTransaction(TaskConnections):
    """What tasks get that run in a test's transaction: savepoints in it, and nothing beside it.

    Another connection would not see what the test has written, nor the task's own row.
    """

    def __init__(self, queue: Queue, connection: object, *, worker: Any) -> None:
        super().__init__(queue, worker=worker)
        self._given = connection

    def open(self, attempt: Attempt) -> Any:
        """Give the test's connection, inside a savepoint."""
        return _NestedBlock(attempt, self._given)

    def begin(self, attempt: Attempt, given: object) -> EndedByUs:
        """Begin a savepoint: on no connection, or on the test's."""
        if given is None:
            return _Nested(self._given)
        if not are_same(given, self._given):
            raise InvalidTask(
                "connection: inside drain(connection=…) it must be the same one: this one's transaction does not see "
                "the task"
            )
        return NestedTransaction(given)

    def cancel(self, attempt: Attempt) -> None:
        """Do nothing: nobody interrupts it."""

    def finish(self, attempt: Attempt) -> None:
        """Do nothing: the connection is the test's."""


class _Nested(NestedTransaction):
    """A savepoint for a task that expects a Connection of SQLAlchemy's."""

    def __init__(self, given: object) -> None:
        super().__init__(given)
        if self.of_sqlalchemy is None:
            self.roll_back()
            raise NotAllowed(
                "inside drain(connection=…) current_task().connection() and .transaction() give a SQLAlchemy "
                "Connection only where that connection is one or a Session; .transaction(connection) takes yours"
            )

    @property
    def value(self) -> "Connection":
        """The test's connection."""
        assert self.of_sqlalchemy is not None
        return self.of_sqlalchemy


class _NestedBlock:
    def __init__(self, attempt: Attempt, given: object) -> None:
        self._attempt = attempt
        self._given = given

    def __enter__(self) -> "Connection":
        with self._attempt.guard.hold():
            self._nested = _Nested(self._given)
        return self._nested.value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._attempt.guard.hold():
            if kind is None:
                self._nested.commit()
            else:
                self._nested.roll_back()
