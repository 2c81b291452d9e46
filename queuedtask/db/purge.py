"""The end of a row: every statement that deletes tasks which have ended.

There are two ways to it: what was kept for long enough goes by the ids, which grow with time, and the successes of
``auto_remove`` by an index of their own. Both look first, without a lock, and then remove what they have found in a
transaction, which waits for nobody: what others have locked is passed over. A child that is being added in an open
transaction holds KEY SHARE on its parent, so that parent stays.

One such transaction runs at a time, in the whole database: a parent and its child take the edge between them along,
and two that removed them at once could wait for each other.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Double,
    Integer,
    Text,
    Uuid,
    all_,
    and_,
    any_,
    case,
    cast,
    delete,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.selectable import Select

from queuedtask.db.moves import SECOND, literal, picked
from queuedtask.db.schema import Timestamp, channels, dependencies, logs, schedules, tasks, ticks
from queuedtask.db.statement import Cursor, CursorContext, Statement, parameter
from queuedtask.model import states

MOST_CHILDREN: Final = 100
"""A task with more children is removed after them: removing it changes the row of each."""
MOST_LINES: Final = 10_000
"""A success of auto_remove with more log lines than this is kept like any other: nobody looks for an error in them."""
LOGS_BATCH: Final = 5000
LOOK: Final = 10_000
BATCH: Final = 1000
LOCK: Final = 0x71756575_70757267
"""The advisory lock of those who remove: "queupurg" in ASCII."""
TOP: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"
BOTTOM: Final = "00000000-0000-0000-0000-000000000000"

_IDS = parameter("ids", ARRAY(Uuid))
_LOCKED = parameter("locked", ARRAY(Uuid))
_is_named = tasks.c.id == any_(_IDS)


def _is_final(state: ColumnElement[Any]) -> ColumnElement[bool]:
    return state.in_([literal(each) for each in states.FINAL])


_lock = literal_column(str(LOCK), BigInteger)
TAKE_TURN = Statement("take_turn", select(func.pg_advisory_xact_lock(_lock)))
TRY_TURN = Statement("try_turn", select(func.pg_try_advisory_xact_lock(_lock)))


# --------------------------------------------------------------------------------------------- kept for long enough

Keep = Mapping[str, float]
"""For how many seconds tasks are kept after their end, by state; those of other states are kept for good."""


def _is_due(state: ColumnElement[Any], date_done: ColumnElement[Any]) -> ColumnElement[bool]:
    kept_for = case(*((state == literal(each), parameter(each, Double)) for each in states.FINAL))
    return and_(_is_final(state), date_done < func.now() - kept_for * SECOND)


IS_DUE = _is_due(tasks.c.state, tasks.c.date_done)

_looked_at = (
    select(tasks.c.id, tasks.c.state, tasks.c.date_done)
    .where(tasks.c.id < parameter("before", Uuid), tasks.c.id >= parameter("least", Uuid))
    .order_by(tasks.c.id.desc())
    .limit(parameter("look", Integer))
    .cte("looked_at")
)
_is_due_there = func.coalesce(_is_due(_looked_at.c.state, _looked_at.c.date_done), literal_column("false"))
_last_one = select(_looked_at.c.id).order_by(_looked_at.c.id).limit(literal_column("1")).scalar_subquery()

DUE = Statement(
    "due",
    select(cast(_looked_at.c.id, Text), _is_due_there.label("is_due"))
    .where(or_(_is_due_there, _looked_at.c.id == _last_one))
    .order_by(_looked_at.c.id.desc()),
)


def look(cursor: Cursor, keep: Keep, *, before: str, least: str, limit: int) -> tuple[list[str], str | None]:
    """Look at so many tasks in descending order of their ids; return those that are due, and the last one looked at.

    Only a look, which locks nothing and reads a bounded number of rows. None when there is nothing to look at.
    """
    found = DUE(cursor, before=before, least=least, look=limit, **keep).fetchall()
    return [row[0] for row in found if row[1]], found[-1][0] if found else None


def _locked(query: Select[Any]) -> Select[Any]:
    return query.order_by(tasks.c.id).with_for_update(skip_locked=True)


LOCK_DUE = Statement("lock_due", _locked(select(cast(tasks.c.id, Text)).where(_is_named, IS_DUE)))


def remove(cursor: Cursor, keep: Keep, ids: Sequence[str]) -> "Removed":
    """Remove those of these tasks that are due, in the caller's transaction. Waits for nobody."""
    if not _has_turn(cursor):
        return BUSY
    locked = [row[0] for row in LOCK_DUE(cursor, ids=list(ids), **keep).fetchall()]
    return _remove(cursor, REMOVABLE, locked)


def remove_all(transaction: Callable[[], CursorContext], keep: Keep) -> int:
    """Walk through the whole table and remove all that is due, in short transactions; return how many."""
    removed, before = 0, TOP
    while True:
        with transaction() as cursor:
            due, last = look(cursor, keep, before=before, least=BOTTOM, limit=LOOK)
        if last is None:
            return removed
        for start in range(0, len(due), BATCH):
            is_all = False
            while not is_all:
                with transaction() as cursor:
                    TAKE_TURN(cursor)  # after those who remove at this moment
                    count, is_all = remove(cursor, keep, due[start : start + BATCH])
                removed += count
        before = last


# One read of the whole table: for people who want to know before.
_unfinished = tasks.alias("unfinished")
_has_unfinished_child = or_(
    exists().where(_unfinished.c.parent_task == tasks.c.id, ~_is_final(_unfinished.c.state)),
    exists().where(
        dependencies.c.parent == tasks.c.id,
        _unfinished.c.id == dependencies.c.task,
        ~_is_final(_unfinished.c.state),
    ),
)
COUNT_DUE = Statement(
    "count_due",
    select(tasks.c.state, func.count().label("count")).where(IS_DUE, ~_has_unfinished_child).group_by(tasks.c.state),
)


def count_due(cursor: Cursor, keep: Keep) -> dict[str, int]:
    """Return how many tasks :func:`remove_all` would remove now, by state."""
    counts = dict.fromkeys(keep, 0)
    counts.update((row[0], int(row[1])) for row in COUNT_DUE(cursor, **keep).fetchall())
    return counts


# ------------------------------------------------------------------------------------------------------- auto_remove

_is_unwanted = and_(tasks.c.auto_remove, tasks.c.state == literal(states.DONE))

UNWANTED = Statement(
    "unwanted",
    select(cast(tasks.c.id, Text), tasks.c.date_done)
    .where(
        _is_unwanted,
        tuple_(tasks.c.date_done, tasks.c.id)
        > tuple_(
            func.coalesce(parameter("date_done", Timestamp), cast(literal("-infinity"), Timestamp)),
            func.coalesce(parameter("id", Uuid), cast(literal(BOTTOM), Uuid)),
        ),
    )
    .order_by(tasks.c.date_done, tasks.c.id)
    .limit(parameter("limit", Integer)),
)


class Unwanted(NamedTuple):
    """A success of auto_remove."""

    id: str
    date_done: datetime


def look_for_unwanted(cursor: Cursor, *, after: Unwanted | None, limit: int) -> list[Unwanted]:
    """Return successes of auto_remove, by when they were done, behind this one."""
    given = {} if after is None else after._asdict()
    return [Unwanted._make(row) for row in UNWANTED(cursor, limit=limit, **given).fetchall()]


LOCK_UNWANTED = Statement("lock_unwanted", _locked(select(cast(tasks.c.id, Text)).where(_is_named, _is_unwanted)))


def remove_unwanted(cursor: Cursor, ids: Sequence[str]) -> "Removed":
    """Remove those of these successes that have no error in their log, in the caller's transaction."""
    if not _has_turn(cursor):
        return BUSY
    locked = [row[0] for row in LOCK_UNWANTED(cursor, ids=list(ids)).fetchall()]
    return _remove(cursor, REMOVABLE_UNWANTED, locked)


# ------------------------------------------------------------------------------------------------------------ removing


class Removed(NamedTuple):
    """What a transaction removed."""

    tasks: int
    is_all: bool
    """False when it is to be called once more: it got so far as to their log lines, or somebody else is removing."""


BUSY: Final = Removed(0, is_all=False)


def _has_turn(cursor: Cursor) -> bool:
    return bool(TRY_TURN(cursor).fetchone()[0])


# Sub-selects with a limit are never turned into joins: a look into an index for each task, on a table without
# statistics as well. Children that are locked with their parents have ended, and hold nothing up.
_child, _of_edge = tasks.alias("child"), tasks.alias("of_edge")
_children = union_all(
    select(_child.c.state).where(_child.c.parent_task == tasks.c.id, _child.c.id != all_(_LOCKED)).correlate(tasks),
    select(
        select(_of_edge.c.state).where(_of_edge.c.id == dependencies.c.task).correlate(dependencies).scalar_subquery()
    )
    .where(dependencies.c.parent == tasks.c.id, dependencies.c.task != all_(_LOCKED))
    .correlate(tasks),
)
_most_edges: ColumnElement[int] = literal_column(str(2 * MOST_CHILDREN))  # most stand there twice
_some_children = _children.limit(literal_column(str(2 * MOST_CHILDREN + 1))).subquery("children")
_has_few_children_and_all_have_ended = (
    select(
        and_(
            func.count() <= _most_edges,
            func.coalesce(func.bool_and(_is_final(_some_children.c.state)), literal_column("true")),
        )
    )
    .select_from(_some_children)
    .correlate(tasks)
    .scalar_subquery()
)

_some_lines = (
    select(logs.c.type)
    .where(logs.c.queued_task_id == tasks.c.id)
    .limit(literal_column(str(MOST_LINES + 1)))
    .correlate(tasks)
    .subquery("lines")
)
_is_error = _some_lines.c.type.in_([literal("error"), literal("critical")])
_has_no_error_in_its_log = (
    select(
        and_(
            func.count() <= literal_column(str(MOST_LINES)),
            func.count().filter(_is_error) == literal_column("0"),
        )
    )
    .select_from(_some_lines)
    .correlate(tasks)
    .scalar_subquery()
)


def _is_parent() -> ColumnElement[bool]:
    others: Select[Any] = select(literal_column("1")).where(
        _child.c.parent_task == tasks.c.id, _child.c.id != all_(_LOCKED)
    )
    one = others.limit(literal_column("1"))
    return func.cardinality(func.array(one.correlate(tasks).scalar_subquery())) > literal_column("0")


_removable = select(cast(tasks.c.id, Text), _is_parent().label("is_parent")).where(
    _is_named, cast(_has_few_children_and_all_have_ended, Boolean)
)

REMOVABLE = Statement("removable", _removable)
REMOVABLE_UNWANTED = Statement("removable_unwanted", _removable.where(cast(_has_no_error_in_its_log, Boolean)))

DELETE_LOGS = Statement(
    "delete_logs",
    delete(logs).where(
        logs.c.id
        == any_(
            func.array(
                select(logs.c.id)
                .where(logs.c.queued_task_id == any_(_IDS))
                .limit(parameter("limit", BigInteger))
                .scalar_subquery()
            )
        )
    ),
)

# What the foreign key would do, but without waiting for those who have locked a child.
DETACH = Statement(
    "detach",
    update(tasks)
    .where(picked(select(tasks.c.id).where(tasks.c.parent_task == any_(_IDS)).order_by(tasks.c.id)))
    .values(parent_task=null()),
)

REMOVE = Statement("remove", delete(tasks).where(_is_named, ~_is_parent()))


def _remove(cursor: Cursor, removable: Statement, locked: Sequence[str]) -> Removed:
    """Remove what may go of tasks that are locked FOR UPDATE.

    Whether children have ended is asked only now, with a look of its own: a child that was added before the lock is
    seen, and none can be added after it.
    """
    if not locked:
        return Removed(0, is_all=True)
    found = removable(cursor, ids=list(locked), locked=list(locked)).fetchall()
    ids = [row[0] for row in found]
    if not ids:
        return Removed(0, is_all=True)
    # A task may have logged millions of lines; the foreign key would delete them in one go.
    if DELETE_LOGS(cursor, ids=ids, limit=LOGS_BATCH).rowcount == LOGS_BATCH:
        return Removed(0, is_all=False)
    if parents := [row[0] for row in found if row[1]]:
        DETACH(cursor, ids=parents)
    return Removed(REMOVE(cursor, ids=ids, locked=list(locked)).rowcount, is_all=True)


# What hangs on a task goes with it; log lines may belong to none.
_EMPTY = tuple(
    Statement(f"empty_{table.name.removeprefix('queued_task').strip('_')}", delete(table))
    for table in (ticks, schedules, channels, logs, tasks)
)


def empty(cursor: Cursor) -> None:
    """Delete everything but the workers and the schema's version; for tests, and for who empties a whole database."""
    for statement in _EMPTY:
        statement(cursor)
