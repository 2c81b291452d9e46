"""Moves: an edge of the life cycle as a guarded UPDATE, and the words that all statements about tasks are made of.

:func:`move` is the one place that writes ``state`` once a task is there.
"""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Double,
    Integer,
    TableValuedAlias,
    Text,
    Update,
    and_,
    any_,
    case,
    cast,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.sql.selectable import Select

from queuedtask.db.schema import tasks
from queuedtask.db.statement import Cursor, Statement, parameter
from queuedtask.model import states
from queuedtask.model.states import Edge

CLOCK = func.clock_timestamp()
SECOND = text("interval '1 second'")


def literal(value: str) -> ColumnElement[Any]:
    """Return a constant of ours that stands in the SQL itself: PostgreSQL can then prove that a partial index fits."""
    return literal_column(f"'{value}'")


def seconds(interval: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return an interval, or the time since 1970, as a number; EXTRACT would take the way over numeric."""
    return func.date_part(literal("epoch"), interval, type_=Double)


def in_state(*allowed: str) -> ColumnElement[bool]:
    """Return the condition that a task is in one of these states."""
    return tasks.c.state.in_([literal(state) for state in allowed])


def holds_key(table: Any) -> ColumnElement[bool]:
    """Return the condition for having a unique key to oneself: that of the index."""
    live = [literal(state) for state in (*states.PENDING, states.DOING)]
    return and_(table.c.unique_key.is_not(None), table.c.state.in_(live))


_holder = tasks.alias("holder")
KEY_IS_TAKEN = and_(
    tasks.c.unique_key.is_not(None),
    select(literal_column("1")).where(_holder.c.unique_key == tasks.c.unique_key, holds_key(_holder)).exists(),
)
"""The condition under which an ended task cannot go round again: another one has its unique key."""


# Not clock_timestamp(): a volatile function could not bound the index scan. Nor now(), which stands still in a long
# transaction, such as that of a test.
TIME_HAS_COME = or_(tasks.c.date_scheduled.is_(None), tasks.c.date_scheduled <= func.statement_timestamp())
HAS_NO_PARENTS_LEFT = tasks.c.pending_parents <= literal_column("0")
"""What a waiting task waits for: both."""


def ago(seconds: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the time so many seconds before now, on the database's clock."""
    return CLOCK - seconds * SECOND


DONE_CHANNEL = "queuedtask_done"
"""Where the ends of tasks that somebody waits for are made known, by their ids."""

# Somebody is told at the commit if he waits; nobody has to ask for it, nor to know a setting, in order to end a task.
ANNOUNCED = case(
    (tasks.c.is_awaited, func.pg_notify(literal(DONE_CHANNEL), cast(tasks.c.id, Text)).is_(None)), else_=false()
)

# What every move to a state writes besides the state: the dates and owners that the state itself implies.
IMPLIED: dict[str, dict[str, Any]] = {
    states.WAITING: {"claimed_by": null(), "date_started": null(), "date_done": null()},
    states.ENQUEUED: {
        "claimed_by": null(),
        "date_started": null(),
        "date_done": null(),
        "date_enqueued": CLOCK,
    },
    states.DOING: {"claimed_by": parameter("worker", Integer), "date_started": null()},
    **{state: {"date_done": CLOCK, "is_awaited": ANNOUNCED} for state in states.FINAL},
}


def move(edge: Edge, *where: ColumnElement[bool], ended: TableValuedAlias | None = None, **values: Any) -> Update:
    """Turn an edge into a guarded UPDATE: the one place that writes ``state``.

    A row that is no longer in one of the edge's source states is not touched; for a fenced edge, nor is one that is
    not this worker's, or that is its own but in a later attempt than the one that ``ended`` names.
    """
    guards = [*where, in_state(*edge.sources)]
    if edge.fenced:
        assert ended is not None, f"{edge.name} belongs to an attempt"
        guards += [tasks.c.claimed_by == parameter("worker", Integer), tasks.c.attempt == ended.c.attempt]
    return update(tasks).where(*guards).values({"state": literal(edge.target), **IMPLIED[edge.target], **values})


def picked(query: Select[Any]) -> ColumnElement[bool]:
    """Restrict a move to the rows that a locking sub-select picks, passing over those that others have locked.

    ``= ANY(ARRAY(SELECT …))`` is planned the same way on a table without statistics, where joins and IN collapse.
    NO KEY UPDATE, because somebody's open transaction that adds a child holds KEY SHARE on its parent.
    """
    locked = query.with_for_update(skip_locked=True, key_share=True)
    return tasks.c.id == any_(func.array(locked.scalar_subquery()))


NOTIFY = Statement("notify", select(func.pg_notify(parameter("notify_channel", Text), literal(""))))


def notify(cursor: Cursor, notify_channel: str | None) -> None:
    """Wake the workers when the transaction commits, with a channel given."""
    if notify_channel is not None:
        NOTIFY(cursor, notify_channel=notify_channel)
