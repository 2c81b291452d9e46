"""Tasks with a unique key: at most one of them that has not ended.

A partial unique index holds that. Whoever inserts a key that another transaction has just inserted waits for its end;
what he conflicts with is then not in the snapshot of the same statement, so the holder is looked up with a second one,
and where it has ended meanwhile all begins anew. So there is always an answer: a task of one's own, or the holder.

Keys are inserted and locked in their order, so that two that add the same ones do not wait for each other.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby, zip_longest
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    Text,
    Uuid,
    any_,
    case,
    cast,
    column,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert

from queuedtask.db import adding
from queuedtask.db.callers import sqlstate
from queuedtask.db.moves import CLOCK, SECOND, holds_key, in_state, literal, move
from queuedtask.db.schema import dependencies, tasks
from queuedtask.db.statement import Cursor, Statement, parameter, rows
from queuedtask.errors import DuplicateTask, IsolationError
from queuedtask.model import states
from queuedtask.model.options import DEBOUNCE, RAISE, REPLACING
from queuedtask.model.task import TaskSpec

CHUNK: Final = 1000
SAVEPOINT: Final = "queuedtask_unique"


class Held(NamedTuple):
    """The task that has a key."""

    id: str
    created: bool
    """Whether it was made for it."""


# ----------------------------------------------------------------------------------------------------------- statements

_spec = rows(
    "spec",
    *(
        column(name, type_)
        for name, type_ in (
            adding.GIVEN | adding.ENCODED | adding.WHEN | {"unique_key": Text, "on_conflict": Text}
        ).items()
    ),
)


def _of_spec(name: str) -> ColumnElement[Any]:
    return _spec.c[name]


def _notification(written: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return what wakes the workers, with a channel given, where something was written."""
    channel = parameter("notify_channel", Text)
    is_silent = or_(written.is_(None), channel.is_(None))
    return case((is_silent, null()), else_=cast(func.pg_notify(channel, literal("")), Text))


_level = func.current_setting(literal("transaction_isolation"))
# Above READ COMMITTED a conflict with what is not in the snapshot is an error, which would end the transaction.
_is_safe = or_(
    parameter("is_protected", Boolean),
    _level.in_([literal("read committed"), literal("read uncommitted")]),
)


def _adding(
    name: str,
    source: Callable[[Any], Any],
    values: dict[str, Any],
    state: ColumnElement[Any],
    *,
    missing: ColumnElement[Any] | None = None,
    edges_of: Callable[[CTE], CTE] | None = None,
) -> Statement:
    """Make the statement that inserts those of the given tasks whose keys nobody has, in the order of their keys."""
    added = (
        upsert(tasks)
        .from_select(
            [*values, "state"],
            source(select(*values.values(), state)).where(_is_safe).order_by(_in_order(values["unique_key"])),
        )
        .on_conflict_do_nothing(index_elements=[tasks.c.unique_key], index_where=holds_key(tasks))
        .returning(tasks.c.id)
        .cte("added")
    )
    answer = select(_is_safe.label("is_safe"), (null() if missing is None else missing).label("missing"))
    first = answer.subquery("answer")
    answered = select(first.c.is_safe, first.c.missing, cast(added.c.id, Text), _notification(added.c.id))
    answered = answered.select_from(first.outerjoin(added, true()))
    return Statement(name, answered if edges_of is None else answered.add_cte(edges_of(added)))


def _in_order(key: ColumnElement[str]) -> ColumnElement[str]:
    # That of Python, whatever the database's own is: chunks are sorted there.
    return key.collate("C")


ADD_UNIQUE = _adding(
    "add_unique",
    lambda query: query.select_from(_spec),
    adding.first_values(_of_spec) | {"unique_key": _spec.c.unique_key},
    adding.first_state(_of_spec),
)

_keyed = rows("keyed", column("id", Uuid), column("unique_key", Text))
_family = adding.family_spec.join(_keyed, _keyed.c.id == adding.family_spec.c.id).outerjoin(
    adding.awaited, adding.awaited.c.task == adding.family_spec.c.id
)


def _edges_of(added: CTE) -> CTE:
    wish = adding.wish
    new = select(wish.c.task, wish.c.parent).where(wish.c.task.in_(select(added.c.id)))
    return insert(dependencies).from_select(["task", "parent"], new).cte("edges")


ADD_UNIQUE_FAMILY = _adding(
    "add_unique_family",
    lambda query: query.select_from(_family).where(adding.is_complete),
    adding.of_children | {"unique_key": _keyed.c.unique_key},
    adding.state_in_family,
    missing=func.array(select(cast(adding.missing.c.parent, Text)).scalar_subquery()),
    edges_of=_edges_of,
)

_is_wanted = tasks.c.unique_key == any_(parameter("unique_keys", ARRAY(Text)))

HOLDERS = Statement(
    "holders",
    select(tasks.c.unique_key, cast(tasks.c.id, Text), tasks.c.state).where(_is_wanted, holds_key(tasks)),
)

LOCK_HOLDERS = Statement(
    "lock_holders",
    select(tasks.c.id)
    .where(_is_wanted, holds_key(tasks), in_state(*states.PENDING))
    .order_by(_in_order(tasks.c.unique_key))
    .with_for_update(key_share=True),
)

_is_replaced = (
    _is_wanted,
    tasks.c.unique_key == _spec.c.unique_key,
    holds_key(tasks),
)
_replaced_values: dict[str, Any] = {
    **{name: value for name, value in adding.first_values(_of_spec).items() if name not in ("id", "date_scheduled")},
    **dict.fromkeys(("result", "error_type", "error_message", "error_traceback"), null()),
    **dict.fromkeys(("failures", "lost_count"), literal_column("0")),
}
_counts_from = case((_spec.c.on_conflict == literal(DEBOUNCE), CLOCK), else_=tasks.c.date_created)


def _replacing(name: str, update_: Any) -> Statement:
    replaced = update_.returning(tasks.c.unique_key, cast(tasks.c.id, Text)).cte("replaced")
    return Statement(name, select(*replaced.c, _notification(replaced.c.unique_key)))


# Without a time of its own the new call keeps the holder's place in the queue, if it has one already.
REPLACE = _replacing(
    "replace",
    update(tasks)
    .where(*_is_replaced, in_state(*states.PENDING))
    .values({**_replaced_values, "date_scheduled": null()}),
)

RESCHEDULE = _replacing(
    "reschedule",
    move(
        states.RESCHEDULE,
        *_is_replaced,
        **_replaced_values,
        date_scheduled=func.coalesce(_spec.c.run_at, _counts_from + _spec.c.delay * SECOND),
    ),
)


# ----------------------------------------------------------------------------------------------------------- protection


class _Unsafe(Exception):
    """The transaction's level of isolation makes an error of a conflict: it needs protection."""


@contextmanager
def atomically(cursor: Cursor, *, in_transaction: bool) -> Iterator[None]:
    """Let what is executed in the block take place as a whole or not at all, and leave a caller's transaction usable.

    In a transaction this is a savepoint; on a connection that commits by itself, a short transaction. Raises
    IsolationError where the transaction cannot see whom it conflicts with.
    """
    if in_transaction:
        begin, commit = f"SAVEPOINT {SAVEPOINT}", f"RELEASE SAVEPOINT {SAVEPOINT}"
        abandon = [f"ROLLBACK TO SAVEPOINT {SAVEPOINT}", commit]
    else:
        begin, commit, abandon = "BEGIN ISOLATION LEVEL READ COMMITTED", "COMMIT", ["ROLLBACK"]
    cursor.execute(begin)
    try:
        yield
        cursor.execute(commit)
    except BaseException as error:
        with suppress(Exception):  # the connection may be the trouble
            for statement in abandon:
                cursor.execute(statement)
        if in_transaction and sqlstate(error) == "40001":
            raise IsolationError(
                "another transaction has added or changed a task with the same unique_key since this one began, and at "
                "its level of isolation (REPEATABLE READ or SERIALIZABLE) this one cannot see that task: nothing was "
                "written; add it in a new transaction, or at READ COMMITTED"
            ) from error
        raise


# --------------------------------------------------------------------------------------------------------------- adding


def add(cursor: Cursor, spec: TaskSpec, *, notify_channel: str | None, in_transaction: bool) -> Held:
    """Add one task with a unique key, or return or replace the one that has it. Raises DuplicateTask, IsolationError.

    Whatever is raised, nothing was written, and a caller's transaction goes on. The workers are woken at the commit.
    """
    try:
        (held,) = _add(cursor, [spec], notify_channel=notify_channel, is_protected=False)
    except _Unsafe:
        with atomically(cursor, in_transaction=in_transaction):
            (held,) = _add(cursor, [spec], notify_channel=notify_channel, is_protected=True)
    return held


def add_many(cursor: Cursor, specs: Sequence[TaskSpec], *, notify_channel: str | None) -> list[Held]:
    """Add tasks with unique keys as if one after the other. To be used in :func:`atomically`."""
    return _add(cursor, specs, notify_channel=notify_channel, is_protected=True)


def _add(cursor: Cursor, specs: Sequence[TaskSpec], *, notify_channel: str | None, is_protected: bool) -> list[Held]:
    by_key: dict[str, list[int]] = {}
    for number, spec in enumerate(specs):
        by_key.setdefault(spec.unique_key or "", []).append(number)
    found: dict[int, Held] = {}
    holders: dict[str, str] = {}
    # Runs of calls that come down to one: the n-th runs of all keys go together, in the order of the keys.
    runs = [list(_runs(specs, by_key[key])) for key in sorted(by_key)]
    for together in zip_longest(*runs):
        asked = []
        for run in filter(None, together):
            first = specs[run[0]]
            holder = holders.get(first.unique_key or "")
            if first.on_conflict in REPLACING:
                asked.append((run, specs[run[-1]]._replace(id=first.id)))
            elif holder is None:
                asked.append((run, first))
            else:
                found.update((number, Held(holder, created=False)) for number in run)
        for n in range(0, len(asked), CHUNK):
            chunk = asked[n : n + CHUNK]
            settled = _settle(
                cursor, [spec for _, spec in chunk], notify_channel=notify_channel, is_protected=is_protected
            )
            for run, spec in chunk:
                held = settled[spec.unique_key or ""]
                holders[spec.unique_key or ""] = held.id
                found.update((number, Held(held.id, held.created and number == run[0])) for number in run)
        for run in filter(None, together):
            for number in run:
                if specs[number].on_conflict == RAISE and not found[number].created:
                    raise _duplicate(specs[number], found[number].id)
    return [found[number] for number in range(len(specs))]


def _runs(specs: Sequence[TaskSpec], numbers: Iterable[int]) -> Iterator[list[int]]:
    for _, run in groupby(numbers, lambda number: specs[number].on_conflict in REPLACING):
        yield list(run)


def _settle(
    cursor: Cursor, specs: Sequence[TaskSpec], *, notify_channel: str | None, is_protected: bool
) -> dict[str, Held]:
    """Find or make the holder of each key; the specs are sorted by their keys, which are all different."""
    found: dict[str, Held] = {}
    left = {spec.unique_key or "": spec for spec in specs}
    while left:
        made = _insert(cursor, list(left.values()), notify_channel=notify_channel, is_protected=is_protected)
        found |= {key: Held(spec.id, created=True) for key, spec in left.items() if spec.id in made}
        left = {key: spec for key, spec in left.items() if spec.id not in made}
        replaceable = [spec for spec in left.values() if spec.on_conflict in REPLACING]
        replaced = _replace(cursor, replaceable, notify_channel=notify_channel)
        found |= replaced
        left = {key: spec for key, spec in left.items() if key not in replaced}
        if left:
            for key, holder, state in HOLDERS(cursor, unique_keys=list(left)).fetchall():
                if _may_keep(left[key], holder, state):
                    found[key] = Held(holder, created=False)
                    del left[key]
    return found


def _insert(cursor: Cursor, specs: Sequence[TaskSpec], *, notify_channel: str | None, is_protected: bool) -> set[str]:
    """Insert those whose keys nobody has; return their ids."""
    edges = [(spec.id, parent) for spec in specs for parent in spec.parents]
    answer = (ADD_UNIQUE_FAMILY if edges else ADD_UNIQUE)(
        cursor,
        notify_channel=notify_channel,
        is_protected=is_protected,
        **adding.columns_of(specs),
        tasks=[task for task, _ in edges],
        parents=[parent for _, parent in edges],
    ).fetchall()
    if not answer[0][0]:
        raise _Unsafe
    if answer[0][1]:
        raise adding.no_such_parents(answer[0][1])
    return {row[2] for row in answer if row[2] is not None}


def _may_keep(spec: TaskSpec, holder: str, state: str) -> bool:
    """Tell whether a holder may stay as it is; False when it can be replaced after all."""
    if spec.on_conflict == RAISE:
        raise _duplicate(spec, holder, state)
    if spec.on_conflict not in REPLACING:
        return True
    if state == states.DOING:
        raise _duplicate(spec, holder, f"{state} and was not added to be replaced, so it cannot be now")
    return False


def _replace(cursor: Cursor, specs: Sequence[TaskSpec], *, notify_channel: str | None) -> dict[str, Held]:
    if len(specs) > 1:
        LOCK_HOLDERS(cursor, unique_keys=[spec.unique_key for spec in specs])
    found: dict[str, Held] = {}
    for statement, has_time in ((REPLACE, False), (RESCHEDULE, True)):
        these = [spec for spec in specs if (spec.delay is not None or spec.run_at is not None) == has_time]
        if these:
            answer = statement(cursor, notify_channel=notify_channel, **adding.columns_of(these)).fetchall()
            found |= {row[0]: Held(row[1], created=False) for row in answer}
    return found


def _duplicate(spec: TaskSpec, holder: str, state: str = "new in the same batch, or older") -> DuplicateTask:
    return DuplicateTask(f"unique_key={spec.unique_key!r} is held by task {holder}, which is {state}", task_id=holder)


# ----------------------------------------------------------------------------------------------------------- requeueing

_ended = tasks.alias("ended")

RIVAL = Statement(
    "rival",
    select(tasks.c.unique_key, cast(tasks.c.id, Text), tasks.c.state)
    .join_from(tasks, _ended, _ended.c.unique_key == tasks.c.unique_key)
    .where(_ended.c.id == parameter("id", adding.GIVEN["id"]), holds_key(tasks), tasks.c.id != _ended.c.id),
)


def rival_of(cursor: Cursor, task_id: str) -> str | None:
    """Return what keeps an ended task from going round again, in words: who has its key. None when nobody has."""
    row = RIVAL(cursor, id=task_id).fetchone()
    return None if row is None else f"its unique_key={row[0]!r} is held by task {row[1]}, which is {row[2]}"
