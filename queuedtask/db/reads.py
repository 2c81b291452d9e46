"""Every statement that only reads, as functions that take a cursor. JSON comes as text, times as aware datetimes."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Integer,
    Text,
    Uuid,
    any_,
    cast,
    column,
    func,
    literal_column,
    or_,
    select,
    table,
    text,
)

from queuedtask.db.control import ORDERABLE_FITS, Orderable, Requeue, requeueable
from queuedtask.db.moves import CLOCK, in_state, literal, seconds
from queuedtask.db.schema import attempts, logs, tasks, workers
from queuedtask.db.statement import Cursor, Statement, parameter, rows
from queuedtask.db.store import is_enqueued
from queuedtask.model import states
from queuedtask.model.progress import share_of

# -------------------------------------------------------------------------------------------------------------- tasks


class TaskRow(NamedTuple):
    """A task as it stands in its row."""

    id: str
    name: str
    state: str
    function: str
    args: str
    kwargs: str
    channel: str
    priority: int
    parents: list[str]
    date_created: datetime
    date_enqueued: datetime
    date_scheduled: datetime | None
    date_started: datetime | None
    date_done: datetime | None
    attempt: int
    failures: int
    max_retries: int | None
    lost_count: int
    requeues: int
    timeout: float | None
    claimed_by: int | None
    cancel_requested: datetime | None
    """Since when it is told to end, if it runs; the same of the next one."""
    stop_requested: datetime | None
    context: str | None
    result: str | None
    error_type: str | None
    error_message: str | None
    error_traceback: str | None
    meta: str | None
    unique_key: str | None


_AS_TEXT = {"id", "args", "kwargs", "context", "result", "meta"}
_task_columns = [
    cast(tasks.c[name], ARRAY(Text)).label(name)
    if name == "parents"
    else cast(tasks.c[name], Text).label(name)
    if name in _AS_TEXT
    else tasks.c[name]
    for name in TaskRow._fields
]

TASK = Statement("task", select(*_task_columns).where(tasks.c.id == parameter("id", Uuid)))

# By id, newest first: our own ids grow with time, and no other full index is kept.
FIND = Statement(
    "find",
    select(*_task_columns)
    .where(
        or_(parameter("states", ARRAY(Text)).is_(None), tasks.c.state == any_(parameter("states", ARRAY(Text)))),
        or_(parameter("name", Text).is_(None), tasks.c.name == parameter("name", Text)),
        or_(parameter("channel", Text).is_(None), tasks.c.channel == parameter("channel", Text)),
    )
    .order_by(tasks.c.id.desc())
    .limit(parameter("limit", Integer)),
)


def get_task(cursor: Cursor, task_id: str) -> TaskRow | None:
    """Return one task, None where there is none."""
    row = TASK(cursor, id=task_id).fetchone()
    return None if row is None else TaskRow._make(row)


def find_tasks(
    cursor: Cursor,
    *,
    states: Sequence[str] | None = None,
    name: str | None = None,
    channel: str | None = None,
    limit: int | None = None,
) -> list[TaskRow]:
    """Return tasks, the newest first; None does not restrict."""
    found = FIND(cursor, states=None if states is None else list(states), name=name, channel=channel, limit=limit)
    return [TaskRow._make(row) for row in found.fetchall()]


ESTIMATED_TASKS = Statement(
    "estimated_tasks",
    select(cast(column("reltuples"), BigInteger))
    .select_from(table("pg_class", column("oid"), column("reltuples")))
    .where(column("oid") == func.to_regclass(literal(tasks.name))),
)


def estimated_tasks(cursor: Cursor) -> int:
    """Return about how many tasks there are, as the server noted it at its last look; -1 before the first one."""
    row = ESTIMATED_TASKS(cursor).fetchone()
    return -1 if row is None else int(row[0])


REQUEUEABLE = Statement(
    "requeueable",
    select(*_task_columns).where(tasks.c.id == any_(requeueable(lock=False))).order_by(tasks.c.date_done),
)


def requeueable_tasks(cursor: Cursor, which: Requeue) -> list[TaskRow]:
    """Return what a requeue would send round again now, in its order."""
    found = REQUEUEABLE(cursor, **which._asdict() | {"states": list(which.states)})
    return [TaskRow._make(row) for row in found.fetchall()]


ORDERABLE = Statement(
    "orderable",
    select(*_task_columns).where(*ORDERABLE_FITS).order_by(tasks.c.id).limit(parameter("limit", Integer)),
)


def orderable_tasks(cursor: Cursor, which: Orderable) -> list[TaskRow]:
    """Return what could be cancelled or stopped now, the oldest first."""
    found = ORDERABLE(cursor, **which._asdict() | {"states": list(which.states)})
    return [TaskRow._make(row) for row in found.fetchall()]


class TaskEnd(NamedTuple):
    """What somebody who waits for the end of a task has to know of it."""

    state: str
    is_awaited: bool
    """Its end will be made known."""
    result: str | None
    error_type: str | None
    error_message: str | None
    error_traceback: str | None


END = Statement(
    "end",
    select(
        *(cast(tasks.c[name], Text) if name in _AS_TEXT else tasks.c[name] for name in TaskEnd._fields),
    ).where(tasks.c.id == parameter("id", Uuid)),
)


def task_end(cursor: Cursor, task_id: str) -> TaskEnd | None:
    """Return how a task has ended, or that it has not; None where there is none."""
    row = END(cursor, id=task_id).fetchone()
    return None if row is None else TaskEnd._make(row)


COUNT_STATES = Statement("count_states", select(tasks.c.state, func.count().label("count")).group_by(tasks.c.state))


def count_states(cursor: Cursor) -> dict[str, int]:
    """Return how many tasks are in each state, in the order of the life cycle. Reads the whole table."""
    counts = dict.fromkeys(states.STATES, 0)
    counts.update((row[0], int(row[1])) for row in COUNT_STATES(cursor).fetchall())
    return counts


class Oldest(NamedTuple):
    """The task that has been waiting longest for a free slot."""

    id: str
    name: str
    date_enqueued: datetime
    seconds: float


OLDEST_ENQUEUED = Statement(
    "oldest_enqueued",
    select(
        cast(tasks.c.id, Text),
        tasks.c.name,
        tasks.c.date_enqueued,
        seconds(CLOCK - tasks.c.date_enqueued).label("age"),
    )
    .where(is_enqueued)
    .order_by(tasks.c.date_enqueued)
    .limit(literal_column("1")),
)


def oldest_enqueued(cursor: Cursor) -> Oldest | None:
    """Return the task that has been waiting longest for a free slot, None when none waits."""
    row = OLDEST_ENQUEUED(cursor).fetchone()
    return None if row is None else Oldest._make(row)


class NameStats(NamedTuple):
    """What a sample of the newest tasks says about one name."""

    name: str
    waiting: int
    enqueued: int
    doing: int
    done: int
    failed: int
    cancelled: int
    stopped: int
    failures: int
    """Failed attempts since each task was added or sent round again."""
    seconds_average: float | None
    seconds_p95: float | None
    ended_last_hour: int


# The newest by id: the primary key's index bounds what is read, however large the table is.
_sample = (
    select(tasks.c.name, tasks.c.state, tasks.c.failures, tasks.c.date_started, tasks.c.date_done)
    .order_by(tasks.c.id.desc())
    .limit(parameter("sample", Integer))
    .subquery("sample")
)
_run_time = seconds(_sample.c.date_done - _sample.c.date_started)

STATS = Statement(
    "stats",
    select(
        _sample.c.name,
        *(func.count().filter(_sample.c.state == literal(state)).label(state) for state in states.STATES),
        func.sum(_sample.c.failures).label("failures"),
        func.avg(_run_time).label("seconds_average"),
        func.percentile_cont(literal_column("0.95")).within_group(_run_time).label("seconds_p95"),
        func.count().filter(_sample.c.date_done > CLOCK - text("interval '1 hour'")).label("ended_last_hour"),
    )
    .group_by(_sample.c.name)
    .order_by(func.count().desc(), _sample.c.name),
)


def name_stats(cursor: Cursor, *, sample: int) -> list[NameStats]:
    """Return what the newest tasks say about each name, the most frequent one first."""
    return [NameStats._make(row) for row in STATS(cursor, sample=sample).fetchall()]


# ---------------------------------------------------------------------------------------------------- logs and attempts


class LogRow(NamedTuple):
    """A line that was logged inside a task."""

    id: int
    date_created: datetime
    type: str
    message: str
    name: str | None
    attempt: int | None


LOGS = Statement(
    "logs",
    select(*(logs.c[name] for name in LogRow._fields))
    .where(logs.c.queued_task_id == parameter("id", Uuid), logs.c.id > parameter("after", BigInteger))
    .order_by(logs.c.id),
)


def task_logs(cursor: Cursor, task_id: str, *, after: int = 0) -> list[LogRow]:
    """Return a task's log lines in their order, those behind the line with the id ``after``."""
    return [LogRow._make(row) for row in LOGS(cursor, id=task_id, after=after).fetchall()]


class AttemptRow(NamedTuple):
    """An attempt that failed, timed out or was lost."""

    attempt: int
    outcome: str
    error_type: str | None
    error_message: str | None
    error_traceback: str | None
    worker: int | None
    date_started: datetime | None
    date_done: datetime
    exit_signal: str | None
    """How its process ended, if that is why it is lost."""
    memory_bytes: int | None
    """The most memory that this process had."""


ATTEMPTS = Statement(
    "attempts",
    select(*(attempts.c[name] for name in AttemptRow._fields))
    .where(attempts.c.queued_task_id == parameter("id", Uuid))
    .order_by(attempts.c.attempt, attempts.c.id),
)


def task_attempts(cursor: Cursor, task_id: str) -> list[AttemptRow]:
    """Return a task's failed attempts, the first one first."""
    return [AttemptRow._make(row) for row in ATTEMPTS(cursor, id=task_id).fetchall()]


# ------------------------------------------------------------------------------------------------------------- workers


class WorkerRow(NamedTuple):
    """A worker process as it last reported."""

    id: int
    server_name: str
    max_workers: int
    active_workers: int
    idle_workers: int
    is_running: bool
    last_heartbeat: datetime
    pid: int | None
    supervisor_pid: int | None
    date_started: datetime
    version: str | None
    lease: float | None
    """How long it may be silent by its own configuration."""
    stuck: list[dict[str, Any]]
    """Its stuck slots: task, name and attempt of each, and for how many seconds it has been given up by now."""
    refused: int
    """How many of its writes came too late: the attempt was no longer its own."""
    silence: float
    """Seconds since its last heartbeat, by the database's clock."""

    def is_live(self, lease: float) -> bool:
        """Tell whether it runs, as far as anybody can know: its own lease counts where it is longer than this one."""
        return self.is_running and self.silence < max(lease, self.lease or 0.0)


WORKERS = Statement(
    "workers",
    select(
        *(
            cast(workers.c.stuck, Text).label("stuck") if name == "stuck" else workers.c[name]
            for name in WorkerRow._fields
            if name in workers.c
        ),
        seconds(CLOCK - workers.c.last_heartbeat).label("silence"),
    )
    .where(or_(workers.c.is_running, parameter("all", Integer) == 1))
    .order_by(workers.c.id),
)


def list_workers(cursor: Cursor, *, also_ended: bool = False) -> list[WorkerRow]:
    """Return the workers whose rows say that they run, or all that ever did."""
    found = [WorkerRow._make(row) for row in WORKERS(cursor, all=int(also_ended)).fetchall()]
    return [worker._replace(stuck=_until_now(str(worker.stuck), worker.silence)) for worker in found]


def _until_now(stuck: str, silence: float) -> list[dict[str, Any]]:
    # A worker writes the seconds as of its heartbeat.
    return [slot | {"seconds": slot["seconds"] + silence} for slot in json.loads(stuck)]


class RunningRow(NamedTuple):
    """A task whose own code is running, with its worker."""

    id: str
    name: str
    claimed_by: int
    attempt: int
    date_started: datetime
    timeout: float | None
    """The task's own; None where its function or the worker's configuration says it, which the row does not know."""
    seconds: float
    progress: float | None
    """Its share of the whole, as far as its context says that."""

    @property
    def is_overdue(self) -> bool:
        """Tell whether it is known to have outlived its timeout."""
        return self.timeout is not None and self.seconds > self.timeout


# A worker claims ahead: what it has claimed and not begun has no start. It writes a start half a second late.
RUNNING = Statement(
    "running",
    select(
        cast(tasks.c.id, Text),
        tasks.c.name,
        tasks.c.claimed_by,
        tasks.c.attempt,
        tasks.c.date_started,
        tasks.c.timeout,
        seconds(CLOCK - tasks.c.date_started).label("age"),
        cast(tasks.c.context["progress"], Text).label("progress"),
    )
    .where(in_state(states.DOING), tasks.c.date_started.is_not(None))
    .order_by(tasks.c.claimed_by, tasks.c.date_started),
)


def running_tasks(cursor: Cursor) -> list[RunningRow]:
    """Return what the slots of all workers have been running for half a second or more, by worker."""
    found = [(*row[:-1], share_of(json.loads(row[-1] or "null"))) for row in RUNNING(cursor).fetchall()]
    return [RunningRow._make(row) for row in found]


SERVER_VERSION = Statement(
    "server_version", select(func.current_setting(literal("server_version")), func.clock_timestamp())
)


def server_version(cursor: Cursor) -> tuple[str, datetime]:
    """Return PostgreSQL's version and the time by its clock."""
    row = SERVER_VERSION(cursor).fetchone()
    return row[0], row[1]


_backend = rows("backend", column("pid", Integer))

CANCEL_BACKENDS = Statement("cancel_backends", select(func.pg_cancel_backend(_backend.c.pid)))


def cancel_backends(cursor: Cursor, backends: Sequence[int]) -> None:
    """Cancel what these processes of the server are executing; one that executes nothing takes no notice."""
    CANCEL_BACKENDS(cursor, pids=list(backends))


# ------------------------------------------------------------------------------------------------- one run of the demo

# Ids of one process grow: the two ends bound what is read, meta tells the tasks of two that run at once apart.
_of_run = (
    tasks.c.id.between(parameter("first", Uuid), parameter("last", Uuid)),
    tasks.c.meta["demo"].as_string() == parameter("run", Text),
)


class Run(NamedTuple):
    """Where the tasks of one run are: the first and the last id, and the mark in their ``meta``."""

    first: str
    last: str
    run: str


RUN_STATES = Statement(
    "demo_states", select(tasks.c.state, func.count().label("count")).where(*_of_run).group_by(tasks.c.state)
)

RUN_CURRENT = Statement(
    "demo_current",
    select(cast(tasks.c.args, Text), seconds(CLOCK - tasks.c.date_started).label("age"))
    .where(*_of_run, in_state(states.DOING))
    .order_by(tasks.c.date_started, tasks.c.date_enqueued)
    .limit(parameter("limit", Integer)),
)

_result = tasks.c.result


def _sum(key: str) -> ColumnElement[Any]:
    return func.coalesce(func.sum(cast(_result[key].as_string(), BigInteger)), literal_column("0"))


RUN_TOTALS = Statement(
    "demo_totals",
    select(
        _sum("size").label("bytes"),
        _sum("lines").label("lines"),
        _sum("definitions").label("definitions"),
        func.count().filter(func.jsonb_exists(_result, literal("syntax_error"))).label("unparsed"),
        func.count(tasks.c.claimed_by.distinct()).label("workers"),
        seconds(func.max(tasks.c.date_done) - func.min(tasks.c.date_started)).label("seconds"),
    ).where(*_of_run),
)

RUN_SLOWEST = Statement(
    "demo_slowest",
    select(cast(tasks.c.args, Text), seconds(tasks.c.date_done - tasks.c.date_started).label("seconds"))
    .where(*_of_run, tasks.c.date_started.is_not(None), in_state(states.DONE))
    .order_by((tasks.c.date_done - tasks.c.date_started).desc())
    .limit(parameter("limit", Integer)),
)

RUN_FAILED = Statement(
    "demo_failed",
    select(cast(tasks.c.args, Text), tasks.c.error_type, tasks.c.error_message)
    .where(*_of_run, in_state(states.FAILED))
    .order_by(tasks.c.id)
    .limit(parameter("limit", Integer)),
)


class RunTotals(NamedTuple):
    """What all results of a run add up to."""

    bytes: int
    lines: int
    definitions: int
    unparsed: int
    workers: int
    seconds: float | None
    """From the first start to the last end."""


def run_states(cursor: Cursor, run: Run) -> dict[str, int]:
    """Return how many tasks of a run are in each state."""
    return {row[0]: int(row[1]) for row in RUN_STATES(cursor, **run._asdict()).fetchall()}


def run_current(cursor: Cursor, run: Run, *, limit: int) -> list[tuple[str, float | None]]:
    """Return the arguments of tasks of a run that are claimed, and for how long they have been running.

    Those that run come first, then those that were claimed first: what is too short for its start to be written yet.
    """
    return [(row[0], row[1]) for row in RUN_CURRENT(cursor, **run._asdict(), limit=limit).fetchall()]


def run_totals(cursor: Cursor, run: Run) -> RunTotals:
    """Return what the results of a run add up to."""
    row = RUN_TOTALS(cursor, **run._asdict()).fetchone()
    return RunTotals._make([*map(int, row[:5]), row[5]])


def run_slowest(cursor: Cursor, run: Run, *, limit: int) -> list[tuple[str, float]]:
    """Return the arguments and run times of the slowest tasks of a run that were done."""
    return [(row[0], row[1]) for row in RUN_SLOWEST(cursor, **run._asdict(), limit=limit).fetchall()]


def run_failed(cursor: Cursor, run: Run, *, limit: int) -> list[tuple[str, str, str]]:
    """Return the arguments of failed tasks of a run, with the errors' types and messages, in the order added."""
    return [(row[0], row[1], row[2]) for row in RUN_FAILED(cursor, **run._asdict(), limit=limit).fetchall()]
