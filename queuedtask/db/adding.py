"""Adding tasks: one, many in a statement, and families of parents and children.

All functions take a cursor; the transaction is the caller's, and so is a NOTIFY, which is sent when it commits.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Double,
    Integer,
    Text,
    Uuid,
    all_,
    any_,
    case,
    cast,
    column,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from queuedtask.db.moves import (
    CLOCK,
    SECOND,
    literal,
    notify,
)
from queuedtask.db.schema import Timestamp, dependencies, tasks
from queuedtask.db.statement import Cursor, Statement, parameter, rows
from queuedtask.errors import ParentNotFound
from queuedtask.model import states
from queuedtask.model.task import TaskSpec

# The columns that a TaskSpec fills as they stand, by the names of its fields.
GIVEN: dict[str, Any] = {
    "id": Uuid,
    "name": Text,
    "function": Text,
    "args": JSONB,
    "kwargs": JSONB,
    "channel": Text,
    "priority": Integer,
    "timeout": Double,
    "max_retries": Integer,
    "context": JSONB,
    "meta": JSONB,
    "concurrency_key": Text,
    "auto_remove": Boolean,
}
# Those that only a task with parents has.
_OF_CHILD: dict[str, Any] = {"on_parent_failure": Text}
# Those that do not: bytes travel as base64, which every driver and JSON can carry.
ENCODED: dict[str, Any] = {"pickled_function": Text}
# Those from which its time and state come.
WHEN: dict[str, Any] = {"delay": Double, "run_at": Timestamp}
_FIELDS = GIVEN | ENCODED | WHEN


def _scheduled(given: Callable[[str], ColumnElement[Any]]) -> ColumnElement[Any]:
    return func.coalesce(given("run_at"), CLOCK + given("delay") * SECOND)


def first_state(given: Callable[[str], ColumnElement[Any]]) -> ColumnElement[Any]:
    """Return the state in which a task begins, with ``given`` to look up the fields of its TaskSpec."""
    return case((_scheduled(given) > CLOCK, literal(states.WAITING)), else_=literal(states.ENQUEUED))


def first_values(given: Callable[[str], ColumnElement[Any]]) -> dict[str, ColumnElement[Any]]:
    """Return what else a new row gets."""
    return {
        **{name: given(name) for name in GIVEN},
        **{name: func.decode(given(name), literal("base64")) for name in ENCODED},
        "date_scheduled": _scheduled(given),
    }


def _of_one(name: str) -> ColumnElement[Any]:
    return parameter(name, _FIELDS[name])


# A column that is left out has its default, which is that of the TaskSpec: parsing and planning for those that are not
# needed takes as long as all the rest of adding a task.
_NEEDED: Final = frozenset(name for name in TaskSpec._fields if name not in TaskSpec._field_defaults)
_OPTIONAL: Final = tuple((name, TaskSpec._field_defaults[name]) for name in _FIELDS if name not in _NEEDED)


def _inserting(called: str, given: frozenset[str], *, notifies: bool, is_listed: bool = True) -> Statement:
    """Make the statement that inserts a task with these fields."""
    has_time = bool(given & WHEN.keys())
    is_written = {name: name in given for name in GIVEN | ENCODED} | {"date_scheduled": has_time}
    written = {name: value for name, value in first_values(_of_one).items() if is_written[name]}
    state = first_state(_of_one)
    added = insert(tasks).values({**written, "state": state} if has_time else written).inline()
    if notifies:
        added = added.returning(func.pg_notify(parameter("notify_channel", Text), literal("")))
    return Statement(called, added, is_listed=is_listed)


ADD = _inserting("add", frozenset(_FIELDS), notifies=False)
ADD_AND_NOTIFY = _inserting("add_and_notify", frozenset(_FIELDS), notifies=True)


@cache
def _adding(given: frozenset[str], *, notifies: bool) -> Statement:
    """Return the form of :data:`ADD` for tasks of which these fields are not the default ones."""
    return _inserting("add", _NEEDED | given, notifies=notifies, is_listed=False)


def add(cursor: Cursor, spec: TaskSpec, *, notify_channel: str | None) -> None:
    """Insert one task and, with a channel given, wake the workers when the transaction commits.

    One statement, so that it is right on an autocommit connection as well. The payload of the NOTIFY is empty:
    a thousand of them in one transaction arrive as one, and nobody has to trust what it says.
    """
    fields = spec._asdict()
    given = frozenset([name for name, default in _OPTIONAL if fields[name] != default])
    _adding(given, notifies=notify_channel is not None)(cursor, notify_channel=notify_channel, **fields)


_spec = rows("spec", *(column(name, type_) for name, type_ in _FIELDS.items()))


def _of_many(name: str) -> ColumnElement[Any]:
    return _spec.c[name]


_many = first_values(_of_many)
_added_many = (
    insert(tasks)
    .from_select([*_many, "state"], select(*_many.values(), first_state(_of_many)))
    .returning(tasks.c.id)
    .cte("added")
)
_count_added = select(func.count()).select_from(_added_many).scalar_subquery()

ADD_MANY = Statement("add_many", select(_count_added))
ADD_MANY_AND_NOTIFY = Statement(
    "add_many_and_notify", select(_count_added, func.pg_notify(parameter("notify_channel", Text), literal("")))
)


def add_many(cursor: Cursor, specs: Sequence[TaskSpec], *, notify_channel: str | None) -> None:
    """Insert tasks and, with a channel given, wake the workers when the transaction commits; in one statement."""
    statement = ADD_MANY if notify_channel is None else ADD_MANY_AND_NOTIFY
    statement(cursor, notify_channel=notify_channel, **columns_of(specs))


def columns_of(specs: Sequence[TaskSpec]) -> dict[str, list[Any]]:
    columns = zip(TaskSpec._fields, zip(*specs, strict=True), strict=True)
    # A column in which nothing is given goes as an empty array: unnest() fills up with NULL.
    return {f"{name}s": list(values) if any(v is not None for v in values) else [] for name, values in columns}


# Parents are tasks that are there already, or others of the same statement. KEY SHARE keeps a parent from being deleted
# before the edge is there, and shows the newest state of its row, without waiting for a worker.
_wanted = rows("wanted", column("task", Uuid), column("parent", Uuid))
wish = select(_wanted.c.task, _wanted.c.parent).cte("wish")
_known = (
    select(tasks.c.id, tasks.c.state)
    .where(tasks.c.id == any_(func.array(select(wish.c.parent).distinct().scalar_subquery())))
    .order_by(tasks.c.id)
    .with_for_update(read=True, key_share=True)
    .cte("known")
)
missing = (
    select(wish.c.parent)
    .where(
        wish.c.parent.not_in(select(_known.c.id)),
        wish.c.parent != all_(parameter("ids", ARRAY(Uuid))),
    )
    .distinct()
    .cte("missing")
)
is_complete = ~exists(select(missing.c.parent))
family_spec = rows("spec", *(column(name, type_) for name, type_ in (GIVEN | ENCODED | _OF_CHILD | WHEN).items()))
# A parent that ended badly counts as well, unless the child is to run in any case: it will be cancelled for that.
awaited = (
    select(wish.c.task, func.count().label("parents"))
    .select_from(wish.outerjoin(_known, _known.c.id == wish.c.parent))
    .join(family_spec, family_spec.c.id == wish.c.task)
    .where(
        or_(
            _known.c.state.is_(None),
            _known.c.state != literal(states.DONE),
        ),
        or_(
            _known.c.state.is_(None),
            _known.c.state.not_in([literal(state) for state in states.FINAL]),
            family_spec.c.on_parent_failure == literal("cancel"),
        ),
    )
    .group_by(wish.c.task)
    .cte("awaited")
)


def _of_family(name: str) -> ColumnElement[Any]:
    return family_spec.c[name]


_pending = func.coalesce(awaited.c.parents, literal_column("0"))
_parents = select(func.array_agg(wish.c.parent)).where(wish.c.task == family_spec.c.id).scalar_subquery()
_first_parent = select(wish.c.parent).where(wish.c.task == family_spec.c.id).limit(literal_column("1"))
of_children = {
    **first_values(_of_family),
    **{name: family_spec.c[name] for name in _OF_CHILD},
    "parent_task": _first_parent.scalar_subquery(),
    "parents": func.coalesce(_parents, cast(literal("{}"), ARRAY(Uuid))),
    "pending_parents": _pending,
}
state_in_family = case((_pending > literal_column("0"), literal(states.WAITING)), else_=first_state(_of_family))
_family_added = (
    insert(tasks)
    .from_select(
        [*of_children, "state"],
        select(*of_children.values(), state_in_family)
        .select_from(family_spec.outerjoin(awaited, awaited.c.task == family_spec.c.id))
        .where(is_complete),
    )
    .cte("added")
)
_edges_added = (
    insert(dependencies)
    .from_select(["task", "parent"], select(wish.c.task, wish.c.parent).where(is_complete))
    .cte("edges")
)

ADD_FAMILY = Statement("add_family", select(cast(missing.c.parent, Text)).add_cte(_family_added, _edges_added))


def add_family(cursor: Cursor, specs: Sequence[TaskSpec], *, notify_channel: str | None) -> None:
    """Insert tasks of which some have parents. Raises ParentNotFound, with nothing inserted, when one is not there.

    Parents may be among the specs. The transaction stays usable in any case.
    """
    edges = [(spec.id, parent) for spec in specs for parent in spec.parents]
    missing = ADD_FAMILY(
        cursor,
        **columns_of(specs),
        tasks=[task for task, _ in edges],
        parents=[parent for _, parent in edges],
    ).fetchall()
    if missing:
        raise no_such_parents(row[0] for row in missing)
    notify(cursor, notify_channel)


def no_such_parents(missing: Iterable[str]) -> ParentNotFound:
    """Return the error that says which parents do not exist."""
    shown = ", ".join(sorted(missing))
    return ParentNotFound(f"parent={shown}: there is no such task (any more), or its transaction is not committed")
