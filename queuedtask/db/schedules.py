"""Every statement about schedules and their ticks. The tasks of ticks are added by ``store``, in the same transaction.

A schedule's row is locked by whoever fires it, so that the others pass it by; what makes a tick happen once is its own
row, (schedule, tick), whatever becomes of the schedule's.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Double,
    Integer,
    Text,
    Uuid,
    all_,
    and_,
    case,
    cast,
    column,
    delete,
    false,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as upsert

from queuedtask.db import adding, moves
from queuedtask.db.moves import CLOCK, SECOND, literal, seconds
from queuedtask.db.schema import Timestamp, schedules, tasks, ticks
from queuedtask.db.statement import Cursor, Statement, parameter, rows
from queuedtask.errors import ScheduleNotFound
from queuedtask.model import states
from queuedtask.model.cron import Cron
from queuedtask.model.schedule import Schedule
from queuedtask.model.task import TaskSpec


class ScheduleRow(NamedTuple):
    """A schedule as it stands in its row. JSON is text."""

    name: str
    function: str
    args: str
    kwargs: str
    cron: str
    timezone: str
    misfire: str
    overlap: str
    options: str
    is_paused: bool
    date_last_tick: datetime | None
    """The last tick that became a task."""
    date_next: datetime | None
    """The next tick; None when it was written by hand and no worker has seen it yet."""
    last_task: str | None
    """The task of the last tick; its row may be gone."""
    definition: str | None
    now: datetime
    """When it was read, on the database's clock."""


_AS_TEXT = {"args", "kwargs", "options", "last_task"}
_row = [
    CLOCK.label(name)
    if name == "now"
    else cast(schedules.c[name], Text).label(name)
    if name in _AS_TEXT
    else schedules.c[name]
    for name in ScheduleRow._fields
]
_name = schedules.c.name == parameter("name", Text)


# -------------------------------------------------------------------------------------------------------------- reading

LIST_SCHEDULES = Statement("list_schedules", select(*_row).order_by(schedules.c.name))
READ_CLOCK = Statement("read_clock", select(CLOCK))
LOCK_SCHEDULE = Statement("lock_schedule", select(*_row).where(_name).with_for_update(key_share=True))


def list_schedules(cursor: Cursor) -> list[ScheduleRow]:
    """Return all schedules by name."""
    return [ScheduleRow._make(row) for row in LIST_SCHEDULES(cursor).fetchall()]


def clock(cursor: Cursor) -> datetime:
    """Return the time on the database's clock."""
    now: datetime = READ_CLOCK(cursor).fetchone()[0]
    return now


def lock(cursor: Cursor, name: str) -> ScheduleRow:
    """Return a schedule, locked until the transaction ends. Raises ScheduleNotFound."""
    found = LOCK_SCHEDULE(cursor, name=name).fetchone()
    if found is None:
        raise ScheduleNotFound(f"there is no schedule {name!r}; a worker writes it when it starts")
    return ScheduleRow._make(found)


# -------------------------------------------------------------------------------------------------------------- writing

_DECLARED = {name: JSONB if name in ("args", "kwargs", "options") else Text for name in Schedule._fields}
_declare = upsert(schedules).values(
    {name: parameter(name, type_) for name, type_ in _DECLARED.items()}
    | {"definition": parameter("definition", Text), "date_next": parameter("date_next", Timestamp)}
)
_new = _declare.excluded

DECLARE_SCHEDULE = Statement(
    "declare_schedule",
    _declare.on_conflict_do_update(
        index_elements=["name"],
        set_={
            **{name: _new[name] for name in Schedule._fields if name != "name"},
            "definition": _new.definition,
            # What was missed while the new code was brought out is still due.
            "date_next": case(
                (
                    and_(schedules.c.cron == _new.cron, schedules.c.timezone == _new.timezone),
                    schedules.c.date_next,
                ),
                else_=_new.date_next,
            ),
            "date_updated": CLOCK,
        },
        where=schedules.c.definition.is_distinct_from(_new.definition),
    ).returning(schedules.c.name),
)

CHANGE_SCHEDULE = Statement(
    "change_schedule",
    update(schedules)
    .where(_name)
    .values(
        cron=parameter("cron", Text),
        timezone=parameter("timezone", Text),
        is_paused=parameter("is_paused", Boolean),
        date_next=parameter("date_next", Timestamp),
        date_updated=CLOCK,
    ),
)

REMOVE_SCHEDULE = Statement("remove_schedule", delete(schedules).where(_name))


def declare(cursor: Cursor, schedule: Schedule, *, date_next: datetime) -> bool:
    """Write what the code declares, unless the code said the same the last time; tell whether it was written.

    A pause stays, and so does the next tick as long as line and time zone are the same.
    """
    statement = DECLARE_SCHEDULE(cursor, **schedule._asdict(), definition=schedule.definition, date_next=date_next)
    return statement.fetchone() is not None


def change(
    cursor: Cursor,
    name: str,
    *,
    cron: str | None = None,
    timezone: str | None = None,
    is_paused: bool | None = None,
    notify_channel: str | None,
) -> None:
    """Write what a person changes, None for what stays. Raises ScheduleNotFound and InvalidTask.

    With another line or time zone, or when it is resumed, it goes on with its next tick from now.
    """
    row = lock(cursor, name)
    changed = row._replace(
        cron=row.cron if cron is None else cron,
        timezone=row.timezone if timezone is None else timezone,
        is_paused=row.is_paused if is_paused is None else is_paused,
    )
    date_next, is_resumed = row.date_next, row.is_paused and not changed.is_paused
    if is_resumed or (row.cron, row.timezone) != (changed.cron, changed.timezone):
        ticks = Cron(changed.cron, changed.timezone)
        changed, date_next = changed._replace(cron=ticks.line), ticks.next(row.now)
    CHANGE_SCHEDULE(
        cursor,
        name=name,
        cron=changed.cron,
        timezone=changed.timezone,
        is_paused=changed.is_paused,
        date_next=date_next,
    )
    moves.notify(cursor, notify_channel)


def remove(cursor: Cursor, name: str) -> None:
    """Delete a schedule; its tasks stay, and for a while its ticks. Raises ScheduleNotFound."""
    lock(cursor, name)
    REMOVE_SCHEDULE(cursor, name=name)


# --------------------------------------------------------------------------------------------------------------- firing

_is_due = or_(schedules.c.date_next.is_(None), schedules.c.date_next <= CLOCK)
_is_firing = and_(schedules.c.is_paused == false(), schedules.c.name != all_(parameter("besides", ARRAY(Text))))

SECONDS_TO_NEXT_TICK = Statement(
    "seconds_to_next_tick",
    select(seconds(func.min(func.coalesce(schedules.c.date_next, func.now())) - CLOCK)).where(_is_firing),
)

# Whoever is stopped or cut off with a lock in hand must not stop the schedule for all.
LIMIT_IDLING = Statement(
    "limit_idling",
    select(func.set_config(literal("idle_in_transaction_session_timeout"), parameter("limit", Text), true())),
)

LOCK_DUE_SCHEDULE = Statement(
    "lock_due_schedule",
    select(*_row)
    .where(_is_firing, _is_due)
    .order_by(schedules.c.date_next)
    .limit(literal_column("1"))
    .with_for_update(skip_locked=True, key_share=True),
)

SECONDS_RUNNING = Statement(
    "seconds_running",
    select(seconds(CLOCK - tasks.c.date_enqueued)).where(
        tasks.c.id == parameter("id", Uuid),
        tasks.c.state.not_in([literal(state) for state in states.FINAL]),
    ),
)

_fired = rows("fired", column("tick", Timestamp), column("task", Uuid))

ADD_TICKS = Statement(
    "add_ticks",
    upsert(ticks)
    .from_select(["schedule", "tick", "task"], select(parameter("name", Text), _fired.c.tick, _fired.c.task))
    .on_conflict_do_nothing()
    .returning(cast(ticks.c.task, Text)),
)

MOVE_SCHEDULE = Statement(
    "move_schedule",
    update(schedules)
    .where(_name)
    .values(
        date_next=parameter("date_next", Timestamp),
        date_last_tick=func.coalesce(parameter("date_last_tick", Timestamp), schedules.c.date_last_tick),
        last_task=func.coalesce(parameter("last_task", Uuid), schedules.c.last_task),
    ),
)


def seconds_to_next_tick(cursor: Cursor, *, besides: Sequence[str] = ()) -> float | None:
    """Return how long until the next tick of any schedule (negative: overdue), None when none is to come."""
    row = SECONDS_TO_NEXT_TICK(cursor, besides=list(besides)).fetchone()
    return None if row is None or row[0] is None else float(row[0])


def lock_due(cursor: Cursor, *, besides: Sequence[str] = (), idle_limit: float = 10.0) -> ScheduleRow | None:
    """Lock the schedule that is overdue for the longest time; None when none is, or others have locked them.

    The server ends the session when this transaction says nothing for so many seconds.
    """
    LIMIT_IDLING(cursor, limit=f"{round(idle_limit * 1000)}ms")
    found = LOCK_DUE_SCHEDULE(cursor, besides=list(besides)).fetchone()
    return None if found is None else ScheduleRow._make(found)


def seconds_running(cursor: Cursor, task_id: str) -> float | None:
    """Return for how long a task has been enqueued or run; None when it has ended or its row is gone."""
    row = SECONDS_RUNNING(cursor, id=task_id).fetchone()
    return None if row is None else float(row[0])


def fire(
    cursor: Cursor, name: str, specs: Sequence[TaskSpec], *, date_next: datetime, notify_channel: str | None
) -> int:
    """Add the tasks of ticks (their ``run_at``) that have none yet, and move the schedule on; return how many.

    For a transaction that holds the schedule's lock.
    """
    fresh: list[TaskSpec] = []
    if specs:
        found = ADD_TICKS(cursor, name=name, ticks=[spec.run_at for spec in specs], tasks=[spec.id for spec in specs])
        won = {row[0] for row in found.fetchall()}
        fresh = [spec for spec in specs if spec.id in won]
    if fresh:
        adding.add_many(cursor, fresh, notify_channel=notify_channel)
    last = fresh[-1] if fresh else None
    MOVE_SCHEDULE(
        cursor,
        name=name,
        date_next=date_next,
        date_last_tick=None if last is None else last.run_at,
        last_task=None if last is None else last.id,
    )
    return len(fresh)


# ------------------------------------------------------------------------------------------------------------- cleaning


def _is_settled() -> ColumnElement[bool]:
    """A tick that no schedule could come to again: firing begins with ``date_next``."""
    again = select(schedules.c.name).where(schedules.c.name == ticks.c.schedule, schedules.c.date_next <= ticks.c.tick)
    return ~again.exists()


_old = (
    select(ticks.c.schedule, ticks.c.tick)
    .where(ticks.c.tick < func.now() - parameter("kept", Double) * SECOND, _is_settled())
    .order_by(ticks.c.tick)
    .limit(parameter("limit", Integer))
    .with_for_update(skip_locked=True)
    .cte("old")
)

CLEAN_TICKS = Statement(
    "clean_ticks",
    delete(ticks)
    .where(tuple_(ticks.c.schedule, ticks.c.tick).in_(select(_old.c.schedule, _old.c.tick)))
    .returning(ticks.c.tick),
)


def clean_ticks(cursor: Cursor, *, kept: float, limit: int) -> int:
    """Delete ticks older than so many seconds that cannot fire again; return how many."""
    return len(CLEAN_TICKS(cursor, kept=kept, limit=limit).fetchall())
