"""Every statement that only reads, as functions that take a cursor. JSON comes as text, times as aware datetimes."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ARRAY, BigInteger, Integer, Text, Uuid, any_, cast, or_, select

from queuedtask.db.schema import attempts, logs, tasks, workers
from queuedtask.db.statement import Cursor, Statement, parameter


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
    context: str | None
    result: str | None
    error_type: str | None
    error_message: str | None
    error_traceback: str | None
    meta: str | None


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


ATTEMPTS = Statement(
    "attempts",
    select(*(attempts.c[name] for name in AttemptRow._fields))
    .where(attempts.c.queued_task_id == parameter("id", Uuid))
    .order_by(attempts.c.attempt, attempts.c.id),
)


def task_attempts(cursor: Cursor, task_id: str) -> list[AttemptRow]:
    """Return a task's failed attempts, the first one first."""
    return [AttemptRow._make(row) for row in ATTEMPTS(cursor, id=task_id).fetchall()]


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


WORKERS = Statement(
    "workers",
    select(*(workers.c[name] for name in WorkerRow._fields))
    .where(or_(workers.c.is_running, parameter("all", Integer) == 1))
    .order_by(workers.c.id),
)


def list_workers(cursor: Cursor, *, also_ended: bool = False) -> list[WorkerRow]:
    """Return the workers whose rows say that they run, or all that ever did."""
    return [WorkerRow._make(row) for row in WORKERS(cursor, all=int(also_ended)).fetchall()]
