"""Running tasks in the call that adds them, without a database, and functions as if they were tasks.

Both go through all that a task goes through before and in its slot: what cannot be stored is refused, the function is
found by its path, the arguments are what the serialiser makes of them. What a database would do is not there.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from queuedtask.adding import TaskAdder
from queuedtask.db.callers import NestedTransaction, is_inside_atomic
from queuedtask.db.reads import LogRow, TaskRow
from queuedtask.db.statement import Cursor
from queuedtask.db.store import Ending
from queuedtask.errors import (
    Cancel,
    DuplicateTask,
    NotAllowed,
    ParentNotFound,
    Retry,
    TaskCancelled,
    TaskFailed,
    TaskStopped,
)
from queuedtask.model import codec, options, outcome, states
from queuedtask.model.outcome import Decision, Outcome
from queuedtask.model.task import Task, TaskSpec
from queuedtask.refs import TaskRef
from queuedtask.run.attempt import Attempt, current_attempt
from queuedtask.run.executor import execute, judge
from queuedtask.run.logs import Line, capture_logs
from queuedtask.run.resolver import Resolver
from queuedtask.taskqueue import Queue
from queuedtask.testing.draining import Ran
from queuedtask.worker.sql import EndedByUs, TaskConnections

_NONE: Final = "none"
_ERRORS: Final = "errors"
_ALL: Final = "all"


@contextmanager
def inline(queue: Queue, *, raise_errors: bool = True) -> Iterator[list[Ran]]:
    """Run each task that is added to the Queue in the block at once, in the call that adds it, without a database.

    It gives the list of what has run. A delay counts as over, and so does that of a retry. A task with parents runs
    after the last of them, those that a batch adds run at its end; one that a task adds runs inside it. The refs can be
    read, in the block and after it; asking the Queue for tasks asks its database, in which there are none.

    An error that a task raises is raised by ``add_task``, at its first attempt; ``Retry`` and ``Cancel`` are no errors.
    With ``raise_errors=False`` it is tried again as often as it may, and then its ref says *failed*.

    ``current_task().connection()`` is one to the Queue's database; so is ``.transaction()``, which commits what the
    task has written. Inside Django's ``atomic()`` a given connection's is part of that.
    """
    before, detour = queue._detour, _Inline(queue, raised=_ERRORS if raise_errors else _NONE)
    queue._detour = detour
    try:
        yield detour.ran
    finally:
        queue._detour = before


def perform(function: Callable[..., object], /, *args: Any, **kwargs: Any) -> Any:
    """Run a function as a task, in this thread and without a database, and return its result.

    Arguments and result go through the serialiser, ``current_task()``, the context and the logs are there, a coroutine
    is run. What it raises is raised, ``Retry`` and ``Cancel`` too. Raises InvalidTask for what could not be added.
    """
    queue = Queue("postgresql://nowhere")  # nothing connects to it
    record = _Record(TaskAdder(queue).spec_of(function, args, kwargs), ())
    return codec.decode(_Inline(queue, raised=_ALL).perform(record).result)


class _Record:
    """A task in memory: what its row would hold."""

    def __init__(self, spec: TaskSpec, parents: "Sequence[_Record]") -> None:
        self.parents = parents
        self.state = states.ENQUEUED
        self.attempt = 0
        self.become(spec)
        self.outcome = Outcome(outcome.RETURNED)
        self.lines: list[tuple[int, Line, datetime]] = []
        self.created = datetime.now(UTC)
        self.started: datetime | None = None
        self.done: datetime | None = None

    def become(self, spec: TaskSpec) -> None:
        """Take what is to be run, or what replaces it."""
        self.spec = spec
        self.failures = 0
        self.context = spec.context

    @property
    def result(self) -> str | None:
        return self.outcome.result if self.state == states.DONE else None

    @property
    def has_ended(self) -> bool:
        return self.state in states.FINAL

    def end(self, state: str, ended: Outcome) -> None:
        self.state, self.outcome, self.done = state, ended, datetime.now(UTC)

    def task(self) -> Task:
        """Return it as a claim brings it."""
        spec = self.spec
        return Task(
            id=spec.id,
            name=spec.name,
            function=spec.function,
            args=spec.args,
            kwargs=spec.kwargs,
            context=self.context,
            attempt=self.attempt,
            failures=self.failures,
            max_retries=spec.max_retries,
            timeout=spec.timeout,
            channel=spec.channel,
            parents=list(spec.parents) or None,
            meta=spec.meta,
            pickled_function=spec.pickled_function,
            concurrency_key=spec.concurrency_key,
        )

    def row(self) -> TaskRow:
        spec = self.spec
        values: dict[str, Any] = dict.fromkeys(TaskRow._fields)
        values |= {name: value for name, value in spec._asdict().items() if name in values}
        values |= {
            "state": self.state,
            "parents": list(spec.parents),
            "date_created": self.created,
            "date_enqueued": self.created,
            "date_scheduled": spec.run_at,
            "date_started": self.started,
            "date_done": self.done,
            "attempt": self.attempt,
            "failures": self.failures,
            "lost_count": 0,
            "requeues": 0,
            "context": self.context,
            "result": self.result,
            "error_type": self.outcome.error_type,
            "error_message": self.outcome.error_message,
            "error_traceback": self.outcome.error_traceback,
        }
        return TaskRow(**values)


class _Ref(TaskRef):
    """The ref of a task in memory."""

    def __init__(self, queue: Queue, record: _Record, *, created: bool) -> None:
        super().__init__(queue, record.spec.id, created=created)
        self.record = record

    def row(self) -> TaskRow:
        return self.record.row()

    def logs(self) -> list[LogRow]:
        return [
            LogRow(number, date, line.type, line.message, line.name, attempt)
            for number, (attempt, line, date) in enumerate(self.record.lines, 1)
        ]

    def wait(self, timeout: float | None = None) -> Any:
        row = self.row()
        if row.state == states.DONE:
            return codec.decode(row.result)
        if row.state not in states.FINAL:
            raise TimeoutError(f"task {self.id} is {row.state}, and inside inline() nobody else runs it")
        how = {states.FAILED: TaskFailed, states.STOPPED: TaskStopped}.get(row.state, TaskCancelled)
        raise how(self.id, row.error_type, row.error_message, row.error_traceback)

    def cancel(self) -> None:
        self._refuse("cancelled")

    def stop(self) -> None:
        self._refuse("stopped")

    def retry(self) -> None:
        self._refuse("sent round again")

    def _refuse(self, what: str) -> None:
        raise NotAllowed(f"task {self.id} was run by inline(): it is in no database, and cannot be {what}")


class _Inline:
    """Runs what is added to one Queue. ``raised``: which exceptions go to the caller."""

    def __init__(self, queue: Queue, *, raised: str) -> None:
        self._given = queue
        self._raised = raised
        self._records: dict[str, _Record] = {}
        self.ran: list[Ran] = []

    @property
    def _queue(self) -> Queue:
        return self._given._itself()

    # --------------------------------------------------------------------------------------------------- as the detour

    def ref(self, spec: TaskSpec) -> TaskRef:
        """Take a task; it runs later."""
        if unknown := [parent for parent in spec.parents if parent not in self._records]:
            raise ParentNotFound(f"parent={unknown[0]}: there is no such task among those added inside inline()")
        if (holder := self._holder_of(spec)) is not None:
            is_replacing = spec.on_conflict in options.REPLACING
            if spec.on_conflict == options.RAISE or (is_replacing and holder.state not in states.PENDING):
                said = f"unique_key={spec.unique_key!r} is held by task {holder.spec.id}, which is {holder.state}"
                raise DuplicateTask(said, task_id=holder.spec.id)
            if is_replacing:
                holder.become(spec._replace(id=holder.spec.id))
            return _Ref(self._queue, holder, created=False)
        record = _Record(spec, [self._records[parent] for parent in spec.parents])
        self._records[spec.id] = record
        return _Ref(self._queue, record, created=True)

    def run(self, refs: Sequence[TaskRef]) -> None:
        """Run what was taken, and what waited for that."""
        created = [ref for ref in refs if ref.created]
        if self._queue.hooks.post_create:
            self._queue.hooks.added(created)
        for ref in created:
            self._go_on(self._records[ref.id])

    def _holder_of(self, spec: TaskSpec) -> _Record | None:
        if spec.unique_key is None:
            return None
        for record in self._records.values():
            # One that is replaceable gives its key up when it runs.
            is_replaceable = record.spec.on_conflict in options.REPLACING
            is_free = record.has_ended or (record.state == states.DOING and is_replaceable)
            if record.spec.unique_key == spec.unique_key and not is_free:
                return record
        return None

    def _go_on(self, record: _Record) -> None:
        """Run a task whose parents have ended, or let it fall with them; otherwise it waits for them."""
        if record.state != states.ENQUEUED and record.state != states.WAITING:
            return
        record.state = states.WAITING
        is_picky = record.spec.on_parent_failure == "cancel"
        for parent in record.parents:
            if is_picky and parent.has_ended and parent.state != states.DONE:
                said = f"{parent.spec.name} ({parent.spec.id}) ended as {parent.state}"
                record.end(states.CANCELLED, Outcome(outcome.CANCELLED, None, "ParentFailed", said))
                self._go_on_with_children(record)
                return
        if all(parent.has_ended for parent in record.parents):
            record.state = states.ENQUEUED
            try:
                self.perform(record)
            finally:
                self._go_on_with_children(record)

    def _go_on_with_children(self, record: _Record) -> None:
        for child in list(self._records.values()):
            if record in child.parents:
                self._go_on(child)

    # --------------------------------------------------------------------------------------------------- one of them

    def perform(self, record: _Record) -> _Record:
        """Run a task to its end; raise what it raises, if that is wanted."""
        while True:
            decision, error = self._attempt(record)
            is_fatal = error is not None and not isinstance(error, Exception | SystemExit)
            if decision.edge is states.RETRY:
                is_wanted = self._raised == _NONE or (self._raised == _ERRORS and isinstance(error, Retry))
                if is_wanted and not is_fatal:
                    record.failures += 1
                    continue
                record.end(states.FAILED, decision.outcome)
                self.ran[-1] = self.ran[-1]._replace(state=record.state)
            is_raised = self._raised == _ALL or (self._raised == _ERRORS and not isinstance(error, Cancel))
            if error is not None and (is_fatal or is_raised):
                raise error
            return record

    def _attempt(self, record: _Record) -> tuple[Decision, BaseException | None]:
        record.state = states.DOING
        record.attempt += 1
        task = record.task()
        queue, config = self._queue, self._queue.config
        connections = _ConnectionsBesideNoTask(queue, self._records)
        attempt = Attempt(task, lambda: self._keep(record, attempt), None, config.task_timeout, connections)
        attempt.is_guest = True
        errors: list[BaseException] = []
        attempt.on_error = errors.append
        record.started = datetime.now(UTC)
        with capture_logs(config.log_level, current_attempt):
            ended = execute(
                attempt,
                Resolver(config),
                default_timeout=config.task_timeout,
                on_begin=lambda attempt: None,
                hooks=queue.hooks,
                judge=partial(judge, config),
            )
        self._keep(record, attempt, also_deferred=True)
        decision = judge(config, attempt, ended)
        record.outcome = ended
        if decision.edge.target in states.FINAL:
            record.end(decision.edge.target, ended)
        else:
            record.state = decision.edge.target
        error = errors[-1] if errors else None
        context = codec.decode(record.context)
        ref = _Ref(queue, record, created=True)
        result = codec.decode(ended.result)
        self.ran.append(
            Ran(ref, task.name, task.attempt, record.state, result, error, context if isinstance(context, dict) else {})
        )
        return decision, error

    def _keep(self, record: _Record, attempt: Attempt, *, also_deferred: bool = False) -> None:
        context = attempt.context.take_changes(also_deferred=also_deferred)
        record.context = record.context if context is None else context
        now, wall = time.monotonic(), datetime.now(UTC).timestamp()
        for line in attempt.log.take():
            record.lines.append((attempt.task.attempt, line, datetime.fromtimestamp(wall - now + line.at, UTC)))
        attempt.context.confirm()


class _ConnectionsBesideNoTask(TaskConnections):
    """What tasks get that have no row: connections to the Queue's database, in which nothing is settled."""

    def __init__(self, queue: Queue, records: dict[str, _Record]) -> None:
        super().__init__(queue, worker=lambda: 0)
        self._records = records

    def ref(self, task_id: str) -> TaskRef:
        """Return the ref of a task."""
        record = self._records.get(task_id)
        return super().ref(task_id) if record is None else _Ref(self._queue, record, created=False)

    def begin(self, attempt: Attempt, given: object) -> EndedByUs:
        """Begin the transaction that an attempt finishes in."""
        if given is not None and is_inside_atomic(given):
            return NestedTransaction(given)
        return super().begin(attempt, given)

    def settle(self, cursor: Cursor, ending: Ending) -> None:
        """Keep the context alone: there is no row."""
        record = self._records.get(ending.task.id)
        if record is not None and ending.context is not None:
            record.context = ending.context
