"""Every statement that writes, in the order of a task's life: add, claim, settle, requeue, clear.

``state`` is written here and nowhere else: by the column's default or :func:`add` when a task is added, and from then
on only by the statements that ``moves`` makes from an edge. All functions take a cursor; the transaction is the
caller's.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnClause,
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
    column,
    delete,
    exists,
    func,
    insert,
    literal_column,
    not_,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as upsert

from queuedtask.db import channels, families
from queuedtask.db.moves import (
    ANNOUNCED,
    CLOCK,
    HAS_NO_PARENTS_LEFT,
    IMPLIED,
    KEY_IS_TAKEN,
    SECOND,
    TIME_HAS_COME,
    ago,
    in_state,
    literal,
    move,
    picked,
)
from queuedtask.db.schema import Timestamp, attempts, dependencies, logs, tasks
from queuedtask.db.statement import Cursor, Statement, parameter, rows
from queuedtask.db.workers import RETIRE_ALL_WORKERS
from queuedtask.errors import ParentNotFound
from queuedtask.model import orders, states
from queuedtask.model.limits import DEFAULT_CHANNEL
from queuedtask.model.options import REPLACING
from queuedtask.model.orders import Order
from queuedtask.model.outcome import Decision
from queuedtask.model.rules import Claimable
from queuedtask.model.states import Edge
from queuedtask.model.task import Task, TaskSpec

# ------------------------------------------------------------------------------------------------------------------ add

# The columns that a TaskSpec fills as they stand, by the names of its fields.
_GIVEN: dict[str, Any] = {
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
_ENCODED: dict[str, Any] = {"pickled_function": Text}
# Those from which its time and state come.
_WHEN: dict[str, Any] = {"delay": Double, "run_at": Timestamp}
_FIELDS = _GIVEN | _ENCODED | _WHEN


def _scheduled(given: Callable[[str], ColumnElement[Any]]) -> ColumnElement[Any]:
    return func.coalesce(given("run_at"), CLOCK + given("delay") * SECOND)


def _first_state(given: Callable[[str], ColumnElement[Any]]) -> ColumnElement[Any]:
    """Return the state in which a task begins, with ``given`` to look up the fields of its TaskSpec."""
    return case((_scheduled(given) > CLOCK, literal(states.WAITING)), else_=literal(states.ENQUEUED))


def _first_values(given: Callable[[str], ColumnElement[Any]]) -> dict[str, ColumnElement[Any]]:
    """Return what else a new row gets."""
    return {
        **{name: given(name) for name in _GIVEN},
        **{name: func.decode(given(name), literal("base64")) for name in _ENCODED},
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
    has_time = bool(given & _WHEN.keys())
    is_written = {name: name in given for name in _GIVEN | _ENCODED} | {"date_scheduled": has_time}
    written = {name: value for name, value in _first_values(_of_one).items() if is_written[name]}
    state = _first_state(_of_one)
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


NOTIFY = Statement("notify", select(func.pg_notify(parameter("notify_channel", Text), literal(""))))


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


_many = _first_values(_of_many)
_added_many = (
    insert(tasks)
    .from_select([*_many, "state"], select(*_many.values(), _first_state(_of_many)))
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
    statement(cursor, notify_channel=notify_channel, **_columns_of(specs))


def _columns_of(specs: Sequence[TaskSpec]) -> dict[str, list[Any]]:
    columns = zip(TaskSpec._fields, zip(*specs, strict=True), strict=True)
    # A column in which nothing is given goes as an empty array: unnest() fills up with NULL.
    return {f"{name}s": list(values) if any(v is not None for v in values) else [] for name, values in columns}


# Parents are tasks that are there already, or others of the same statement. KEY SHARE keeps a parent from being deleted
# before the edge is there, and shows the newest state of its row, without waiting for a worker.
_wanted = rows("wanted", column("task", Uuid), column("parent", Uuid))
_wish = select(_wanted.c.task, _wanted.c.parent).cte("wish")
_known = (
    select(tasks.c.id, tasks.c.state)
    .where(tasks.c.id == any_(func.array(select(_wish.c.parent).distinct().scalar_subquery())))
    .order_by(tasks.c.id)
    .with_for_update(read=True, key_share=True)
    .cte("known")
)
_missing = (
    select(_wish.c.parent)
    .where(
        _wish.c.parent.not_in(select(_known.c.id)),
        _wish.c.parent != all_(parameter("ids", ARRAY(Uuid))),
    )
    .distinct()
    .cte("missing")
)
_is_complete = ~exists(select(_missing.c.parent))
_family_spec = rows("spec", *(column(name, type_) for name, type_ in (_GIVEN | _ENCODED | _OF_CHILD | _WHEN).items()))
# A parent that ended badly counts as well, unless the child is to run in any case: it will be cancelled for that.
_awaited = (
    select(_wish.c.task, func.count().label("parents"))
    .select_from(_wish.outerjoin(_known, _known.c.id == _wish.c.parent))
    .join(_family_spec, _family_spec.c.id == _wish.c.task)
    .where(
        or_(
            _known.c.state.is_(None),
            _known.c.state != literal(states.DONE),
        ),
        or_(
            _known.c.state.is_(None),
            _known.c.state.not_in([literal(state) for state in states.FINAL]),
            _family_spec.c.on_parent_failure == literal("cancel"),
        ),
    )
    .group_by(_wish.c.task)
    .cte("awaited")
)


def _of_family(name: str) -> ColumnElement[Any]:
    return _family_spec.c[name]


_pending = func.coalesce(_awaited.c.parents, literal_column("0"))
_parents = select(func.array_agg(_wish.c.parent)).where(_wish.c.task == _family_spec.c.id).scalar_subquery()
_first_parent = select(_wish.c.parent).where(_wish.c.task == _family_spec.c.id).limit(literal_column("1"))
_of_children = {
    **_first_values(_of_family),
    **{name: _family_spec.c[name] for name in _OF_CHILD},
    "parent_task": _first_parent.scalar_subquery(),
    "parents": func.coalesce(_parents, cast(literal("{}"), ARRAY(Uuid))),
    "pending_parents": _pending,
}
_state_in_family = case((_pending > literal_column("0"), literal(states.WAITING)), else_=_first_state(_of_family))
_family_added = (
    insert(tasks)
    .from_select(
        [*_of_children, "state"],
        select(*_of_children.values(), _state_in_family)
        .select_from(_family_spec.outerjoin(_awaited, _awaited.c.task == _family_spec.c.id))
        .where(_is_complete),
    )
    .cte("added")
)
_edges_added = (
    insert(dependencies)
    .from_select(["task", "parent"], select(_wish.c.task, _wish.c.parent).where(_is_complete))
    .cte("edges")
)

ADD_FAMILY = Statement("add_family", select(cast(_missing.c.parent, Text)).add_cte(_family_added, _edges_added))


def add_family(cursor: Cursor, specs: Sequence[TaskSpec], *, notify_channel: str | None) -> None:
    """Insert tasks of which some have parents. Raises ParentNotFound, with nothing inserted, when one is not there.

    Parents may be among the specs. The transaction stays usable in any case.
    """
    edges = [(spec.id, parent) for spec in specs for parent in spec.parents]
    missing = ADD_FAMILY(
        cursor,
        **_columns_of(specs),
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


def notify(cursor: Cursor, notify_channel: str | None) -> None:
    """Wake the workers when the transaction commits, with a channel given."""
    if notify_channel is not None:
        NOTIFY(cursor, notify_channel=notify_channel)


# ---------------------------------------------------------------------------------------------------------------- claim

# What a Task is made of. JSON comes as text: a row that cannot be read shall fail alone, in its slot.
_AS_TEXT = {"id", "args", "kwargs", "context", "meta"}
# A claim says what the time is on the worker's own clock, and the wait is counted back from there on the database's.
_waited = func.date_part(literal("epoch"), CLOCK - tasks.c.date_enqueued)
_task_columns = [
    (parameter("monotonic", Double) - _waited).label(name)
    if name == "eligible_at"
    else cast(func.nullif(tasks.c.parents, literal_column("'{}'")), ARRAY(Text)).label(name)
    if name == "parents"
    else cast(tasks.c[name], Text).label(name)
    if name in _AS_TEXT
    else func.encode(tasks.c[name], literal("base64")).label(name)
    if name in _ENCODED
    else tasks.c[name]
    for name in Task._fields
]

# What stands in the indexes that claims are made from; a task with a concurrency key stands in others (db/claims).
is_ready = and_(in_state(states.ENQUEUED), tasks.c.concurrency_key.is_(None))

# What is replaceable gives its key up, so that a call during its run makes one task more. Without a key that is all.
_on_conflict = tasks.c.meta.op("->>", return_type=Text())(literal("on_conflict"))
_key_of_a_run = case(
    (tasks.c.unique_key.is_(None) | _on_conflict.in_([literal(each) for each in REPLACING]), null()),
    else_=tasks.c.unique_key,
)


# All that is enqueued, said so that it is found in the three indexes which share it.
is_enqueued = or_(
    and_(is_ready, tasks.c.channel == literal(DEFAULT_CHANNEL)),
    and_(is_ready, tasks.c.channel != literal(DEFAULT_CHANNEL)),
    and_(in_state(states.ENQUEUED), tasks.c.concurrency_key.is_not(None)),
)


def _is_allowed(function: ColumnElement[Any]) -> ColumnElement[bool]:
    return or_(
        and_(
            func.replace(function, literal(":"), literal(".")).like(any_(parameter("like", ARRAY(Text)))),
            function != all_(parameter("old_refused", ARRAY(Text))),
        ),
        function == any_(parameter("old_allowed", ARRAY(Text))),
    )


def may_run(function: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition that a worker may claim tasks of a function.

    A worker with an allow-list does not claim what is outside: it stays where it is, for others. These are the terms of
    a Claimable; without one, nothing of this is left in the plan.
    """
    return or_(parameter("like", ARRAY(Text)).is_(None), _is_allowed(function))


def terms(only: Claimable | None) -> dict[str, Any]:
    """Return the parameters of :func:`may_run`."""
    return only._asdict() if only else {}


def claiming(name: str, picked: ColumnElement[bool]) -> Statement:
    """Make the statement that claims the picked rows; it returns them as a Task has them, the most urgent first."""
    claimed = (
        move(states.CLAIM, picked, attempt=tasks.c.attempt + literal_column("1"), unique_key=_key_of_a_run)
        .returning(*_task_columns, tasks.c.priority, tasks.c.date_enqueued)
        .cte("claimed")
    )
    # An UPDATE returns its rows in no order; the first of the queue is to run first.
    columns = (claimed.c[field] for field in Task._fields)
    return Statement(name, select(*columns).order_by(claimed.c.priority.desc(), claimed.c.date_enqueued))


CLAIM = claiming(
    "claim",
    picked(
        select(tasks.c.id)
        .where(
            is_ready,
            tasks.c.channel == parameter("channel", Text),
            channels.is_unlimited(parameter("channel", Text)),
            may_run(tasks.c.function),
        )
        .order_by(tasks.c.priority.desc(), tasks.c.date_enqueued)
        .limit(parameter("limit", Integer))
    ),
)


def claim(
    cursor: Cursor, *, worker: int, limit: int, channel: str = DEFAULT_CHANNEL, only: Claimable | None = None
) -> list[Task]:
    """Take up to so many tasks of one channel for this worker, the most urgent first; ``only``: of certain functions.

    None of a channel that is paused or has a limit, and none with a concurrency key: see ``db/claims``.
    """
    claimed = CLAIM(cursor, worker=worker, limit=limit, channel=channel, monotonic=time.monotonic(), **terms(only))
    return [Task._make(row) for row in claimed.fetchall()]


COUNT_STRANGERS = Statement(
    "count_strangers",
    select(tasks.c.function, func.count())
    .where(is_enqueued, not_(_is_allowed(tasks.c.function)))
    .group_by(tasks.c.function)
    .order_by(func.count().desc())
    .limit(parameter("limit", Integer)),
)


def count_strangers(cursor: Cursor, *, only: Claimable, limit: int) -> list[tuple[str, int]]:
    """Return the functions of enqueued tasks that a worker may not claim, and how many tasks each has."""
    return [(row[0], row[1]) for row in COUNT_STRANGERS(cursor, limit=limit, **only._asdict()).fetchall()]


_claimed_stranger = (
    move(
        states.CLAIM,
        picked(
            select(tasks.c.id)
            .where(
                is_enqueued,
                not_(_is_allowed(tasks.c.function)),
                tasks.c.date_enqueued < func.now() - parameter("second", Double) * SECOND,
            )
            .order_by(tasks.c.id)
            .limit(parameter("limit", Integer))
        ),
        attempt=tasks.c.attempt + literal_column("1"),
    )
    .returning(*_task_columns)
    .cte("claimed")
)

CLAIM_STRANGERS = Statement("claim_strangers", select(*(_claimed_stranger.c[field] for field in Task._fields)))


def claim_strangers(cursor: Cursor, *, worker: int, only: Claimable, seconds: float, limit: int) -> list[Task]:
    """Take tasks that this worker may not run and that nobody has taken for so long, to fail them."""
    found = CLAIM_STRANGERS(cursor, worker=worker, second=seconds, limit=limit, **only._asdict())
    return [Task._make(row) for row in found.fetchall()]


# --------------------------------------------------------------------------------------------------------------- settle


class Ending(NamedTuple):
    """An attempt that has ended and is to be settled: the decision, and what else of it goes into its row."""

    task: Task
    decision: Decision
    seconds: float | None
    """How long ago its own code began; None when it never did."""
    context: str | None
    """JSON text of the context when it changed since the last write."""


# What every settling statement needs of an ending, and what goes with each edge.
_ENDED = (column("id", Uuid), column("attempt", Integer), column("second", Double), column("context", JSONB))
_RESULT = (column("result", JSONB),)
_ERROR = (column("error_type", Text), column("error_message", Text), column("error_traceback", Text))
_DELAY = (column("delay", Double),)
_LOSS = (column("lost", Integer),)


_is_ordered = or_(tasks.c.cancel_requested.is_not(None), tasks.c.stop_requested.is_not(None)).label("is_ordered")


def _settle(edge: Edge, *more: ColumnClause[Any], **values: Any) -> Statement:
    """Make the statement that settles a whole batch of attempts along one edge and returns what was accepted.

    ``more`` are columns of the endings that are written besides context and start. The ids stand in it twice: the ANY
    keeps PostgreSQL on the primary key when a table has never been analysed. An edge that the task does not end with
    also returns whether somebody has cancelled or stopped it meanwhile.
    """
    ended = rows("ended", *_ENDED, *more)
    written = {
        "context": func.coalesce(ended.c.context, tasks.c.context),
        "date_started": func.coalesce(tasks.c.date_started, ago(ended.c.second)),
        **IMPLIED[edge.target],
    }
    for extra in more:
        if extra.name == "delay":
            written["date_scheduled"] = CLOCK + ended.c.delay * SECOND
        elif extra.name == "lost":
            written["lost_count"] = tasks.c.lost_count + ended.c.lost
        else:
            written[extra.name] = ended.c[extra.name]
    settled = move(
        edge,
        tasks.c.id == any_(parameter("ids", ARRAY(Uuid))),
        tasks.c.id == ended.c.id,
        ended=ended,
        **written,
        **values,
    )
    if edge is states.FINISH:
        # With its children in one statement, which commits by itself where a single task is settled.
        return Statement(edge.name, families.finish(settled))
    more_returned = () if edge.target in states.FINAL else (_is_ordered,)
    return Statement(edge.name, settled.returning(cast(tasks.c.id, Text), tasks.c.attempt, *more_returned))


_one_more_failure = tasks.c.failures + literal_column("1")

SETTLE = {
    states.FINISH: _settle(states.FINISH, *_RESULT, **dict.fromkeys((c.name for c in _ERROR), null())),
    states.FAIL: _settle(states.FAIL, *_ERROR, *_LOSS, failures=_one_more_failure),
    states.RETRY: _settle(states.RETRY, *_ERROR, *_DELAY, *_LOSS, failures=_one_more_failure),
    states.CALL_OFF: _settle(states.CALL_OFF, *_ERROR),
    states.HALT: _settle(states.HALT, *_ERROR),
    states.HAND_BACK: _settle(states.HAND_BACK),
    states.RESCUE: _settle(states.RESCUE, *_LOSS),
    states.LOSE: _settle(states.LOSE, *_ERROR, *_LOSS),
}


class Settled(NamedTuple):
    """What became of a batch of endings."""

    accepted: set[tuple[str, int]]
    """Ids and attempts. An ending that is not among them was refused: its row is no longer this worker's attempt."""
    frees_tasks: bool
    """Whether any task may have become eligible for others."""


def settle(cursor: Cursor, endings: Sequence[Ending], *, worker: int) -> Settled:
    """Record how a batch of attempts ended, with a row for each failed one, and what that means for their children.

    In the caller's transaction; where all of them are done it is one statement. What is refused must not be tried
    again. A task that somebody has cancelled or stopped while it ran does not run again: whatever its attempt ended
    with, it ends in the same transaction.
    """
    by_edge: dict[Edge, list[Ending]] = {}
    for ending in endings:
        by_edge.setdefault(ending.decision.edge, []).append(ending)
    accepted: set[tuple[str, int]] = set()
    fallen: list[str] = []
    ordered: list[str] = []
    freed = 0
    # In the order of SETTLE, and sorted by id within: two workers never lock the same rows in opposite orders.
    for edge, statement in SETTLE.items():
        if batch := by_edge.get(edge):
            batch.sort(key=lambda ending: ending.task.id)
            settled = statement(cursor, worker=worker, **_columns(batch)).fetchall()
            accepted.update((row[0], row[1]) for row in settled)
            if edge is states.FINISH:
                freed += settled[0][2] if settled else 0
            elif edge.target in states.FINAL:
                fallen += [row[0] for row in settled]
            else:
                ordered += [row[0] for row in settled if row[2]]
                if edge.target == states.ENQUEUED:
                    freed += len(settled)
    if ordered:
        spans = {ending.task.id: ending.seconds for ending in endings}
        fallen += _end_ordered(cursor, {task_id: spans[task_id] for task_id in ordered}, worker=worker)
    if fallen:
        freed += families.end_badly(cursor, fallen)
    failed = [e for e in endings if e.decision.leaves_row and e.task.key in accepted]
    if failed:
        ADD_ATTEMPTS(cursor, worker=worker, outcomes=[e.decision.outcome.kind for e in failed], **_columns(failed))
    return Settled(accepted, freed > 0)


def _columns(endings: Sequence[Ending]) -> dict[str, list[Any]]:
    """Return endings column by column; each statement takes those that it names."""
    columns: dict[str, list[Any]] = {
        "ids": [ending.task.id for ending in endings],
        "attempts": [ending.task.attempt for ending in endings],
        "seconds": [ending.seconds for ending in endings],
        "contexts": [ending.context for ending in endings],
    }
    outcomes = [ending.decision.outcome for ending in endings]
    if endings[0].decision.edge is states.FINISH:
        return columns | {"results": [outcome.result for outcome in outcomes]}
    return columns | {
        "error_types": [outcome.error_type for outcome in outcomes],
        "error_messages": [outcome.error_message for outcome in outcomes],
        "error_tracebacks": [outcome.error_traceback for outcome in outcomes],
        "delays": [ending.decision.delay for ending in endings],
        "losts": [int(outcome.is_loss) for outcome in outcomes],
        "exit_signals": [outcome.exit_signal for outcome in outcomes],
        "memory_bytes": [outcome.memory_bytes for outcome in outcomes],
    }


_failed_attempt = rows(
    "failed",
    column("id", Uuid),
    column("attempt", Integer),
    column("second", Double),
    column("outcome", Text),
    column("error_type", Text),
    column("error_message", Text),
    column("error_traceback", Text),
    column("exit_signal", Text),
    column("memory_byte", BigInteger),
)

ADD_ATTEMPTS = Statement(
    "add_attempts",
    insert(attempts).from_select(
        [
            "queued_task_id",
            "attempt",
            "outcome",
            "error_type",
            "error_message",
            "error_traceback",
            "exit_signal",
            "memory_bytes",
            "worker",
            "date_started",
        ],
        select(
            _failed_attempt.c.id,
            _failed_attempt.c.attempt,
            _failed_attempt.c.outcome,
            _failed_attempt.c.error_type,
            _failed_attempt.c.error_message,
            _failed_attempt.c.error_traceback,
            _failed_attempt.c.exit_signal,
            _failed_attempt.c.memory_byte,
            parameter("worker", Integer),
            ago(_failed_attempt.c.second),
        ),
    ),
)

# ------------------------------------------------------------------------------------------ while an attempt is running


class Progress(NamedTuple):
    """What a running attempt has to show before it ends."""

    task: Task
    seconds: float
    context: str | None


_running = rows(
    "running",
    column("id", Uuid),
    column("attempt", Integer),
    column("second", Double),
    column("context", JSONB),
)

# Done as well: a task that has finished in its own transaction may go on for a while.
WRITE_PROGRESS = Statement(
    "write_progress",
    update(tasks)
    .where(
        tasks.c.id == any_(parameter("ids", ARRAY(Uuid))),
        tasks.c.id == _running.c.id,
        in_state(states.DOING, states.DONE),
        tasks.c.claimed_by == parameter("worker", Integer),
        tasks.c.attempt == _running.c.attempt,
    )
    .values(
        context=func.coalesce(_running.c.context, tasks.c.context),
        date_started=func.coalesce(tasks.c.date_started, ago(_running.c.second)),
    )
    .returning(cast(tasks.c.id, Text), tasks.c.attempt),
)


def write_progress(cursor: Cursor, running: Sequence[Progress], *, worker: int) -> set[tuple[str, int]]:
    """Write the start and the changed context of attempts that are still running; return those that were accepted.

    Fenced like every worker's write: one that is not among them is no longer this worker's attempt.
    """
    ordered = sorted(running, key=lambda progress: progress.task.id)
    accepted = WRITE_PROGRESS(
        cursor,
        worker=worker,
        ids=[progress.task.id for progress in ordered],
        attempts=[progress.task.attempt for progress in ordered],
        seconds=[progress.seconds for progress in ordered],
        contexts=[progress.context for progress in ordered],
    )
    return {(row[0], row[1]) for row in accepted.fetchall()}


class LogLine(NamedTuple):
    """One record that was logged inside a task."""

    task_id: str
    attempt: int
    type: str
    name: str
    message: str
    seconds: float
    """How long ago it was logged."""


_line = rows(
    "line",
    column("task_id", Uuid),
    column("attempt", Integer),
    column("type", Text),
    column("name", Text),
    column("message", Text),
    column("second", Double),
    position="position",
)

ADD_LOGS = Statement(
    "add_logs",
    insert(logs).from_select(
        ["queued_task_id", "attempt", "type", "name", "message", "date_created"],
        # The join is the fence: it leaves out lines of attempts that are no longer this worker's.
        select(
            _line.c.task_id,
            _line.c.attempt,
            _line.c.type,
            _line.c.name,
            _line.c.message,
            ago(_line.c.second),
        )
        .join_from(_line, tasks, tasks.c.id == _line.c.task_id)
        .where(
            tasks.c.id == any_(parameter("task_ids", ARRAY(Uuid))),
            in_state(states.DOING, states.DONE),
            tasks.c.claimed_by == parameter("worker", Integer),
            tasks.c.attempt == _line.c.attempt,
        )
        .order_by(_line.c.position),
    ),
)


def add_logs(cursor: Cursor, lines: Sequence[LogLine], *, worker: int) -> None:
    """Write log lines, in their order, of attempts that are still this worker's; so before they are settled."""
    ADD_LOGS(
        cursor,
        worker=worker,
        task_ids=[line.task_id for line in lines],
        attempts=[line.attempt for line in lines],
        types=[line.type for line in lines],
        names=[line.name for line in lines],
        messages=[line.message for line in lines],
        seconds=[line.seconds for line in lines],
    )


# ---------------------------------------------------------------------------------------------- after a lost connection

DISOWN = Statement(
    "disown",
    move(
        states.DISOWN,
        tasks.c.claimed_by == parameter("worker", Integer),
        tasks.c.id != all_(parameter("ids", ARRAY(Uuid))),
    ).returning(cast(tasks.c.id, Text), _is_ordered),
)


def disown(cursor: Cursor, *, worker: int, known: Sequence[str]) -> int:
    """Give back what this worker has claimed without knowing it; return how many.

    A connection that breaks during COMMIT leaves it open whether the claim took place.
    """
    disowned = DISOWN(cursor, worker=worker, ids=list(known)).fetchall()
    if ordered := {row[0]: None for row in disowned if row[1]}:
        families.end_badly(cursor, _end_ordered(cursor, ordered, worker=worker))
    return len(disowned)


# --------------------------------------------------------------------------------------------- cancelled and stopped

_of_ids = tasks.c.id == any_(parameter("ids", ARRAY(Uuid)))
_REQUESTED = {
    orders.CANCEL: (tasks.c.cancel_requested.is_not(None), tasks.c.stop_requested.is_(None)),
    orders.STOP: (tasks.c.stop_requested.is_not(None),),
}


def _why(order: Order, more: str = "") -> dict[str, Any]:
    """Return what stands in the row of a task that ended by an order."""
    return {
        "error_type": literal(order.error_type),
        "error_message": literal(f"{order.message}{more}"),
        "error_traceback": null(),
    }


def _chosen(date: ColumnElement[Any]) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions by which people choose tasks; ``date`` is what lies within ``since``. NULL takes all."""
    return (
        tasks.c.state == any_(parameter("states", ARRAY(Text))),
        or_(parameter("ids", ARRAY(Uuid)).is_(None), tasks.c.id == any_(parameter("ids", ARRAY(Uuid)))),
        or_(parameter("name", Text).is_(None), tasks.c.name == parameter("name", Text)),
        or_(parameter("channel", Text).is_(None), tasks.c.channel == parameter("channel", Text)),
        or_(parameter("since", Double).is_(None), date >= func.now() - parameter("since", Double) * SECOND),
    )


ORDERABLE_FITS: tuple[ColumnElement[bool], ...] = (
    in_state(*states.PENDING, states.DOING),
    *_chosen(tasks.c.date_created),
)
"""The conditions of :class:`Orderable`: also those of the read that lists what would be cancelled or stopped."""

ORDERABLE_IDS = Statement(
    "orderable_ids",
    select(cast(tasks.c.id, Text)).where(*ORDERABLE_FITS).order_by(tasks.c.id).limit(parameter("limit", Integer)),
)

_to_order = select(cast(tasks.c.id, Text), tasks.c.state).where(_of_ids).order_by(tasks.c.id)

LOCK_TO_ORDER = Statement("lock_to_order", _to_order.with_for_update(key_share=True))
LOCK_TO_ORDER_IF_FREE = Statement("lock_to_order_if_free", _to_order.with_for_update(key_share=True, skip_locked=True))

# A pending task ends at once; one that runs gets a mark, which its worker looks for.
END_PENDING = {
    order: Statement(
        f"{order.name}_pending", move(order.pending, _of_ids, **_why(order)).returning(cast(tasks.c.id, Text))
    )
    for order in orders.ORDERS.values()
}
REQUEST = {
    order: Statement(
        f"request_{order.name}",
        update(tasks)
        .where(_of_ids, in_state(states.DOING))
        .values({f"{order.name}_requested": func.coalesce(tasks.c[f"{order.name}_requested"], CLOCK)})
        .returning(cast(tasks.c.id, Text)),
    )
    for order in orders.ORDERS.values()
}


class Orderable(NamedTuple):
    """Which tasks that have not ended are cancelled or stopped; None does not restrict."""

    states: tuple[str, ...] = (*states.PENDING, states.DOING)
    ids: list[str] | None = None
    name: str | None = None
    channel: str | None = None
    since: float | None = None
    """Added at most so many seconds ago."""
    limit: int | None = None


def orderable_ids(cursor: Cursor, which: Orderable) -> list[str]:
    """Return the ids of tasks that could be cancelled or stopped now, in their order: the oldest first."""
    found = ORDERABLE_IDS(cursor, **which._asdict() | {"states": list(which.states)})
    return [row[0] for row in found.fetchall()]


class Ordered(NamedTuple):
    """What an order has done."""

    ended: list[str]
    """The ids of those that were pending, and have ended."""
    told: list[str]
    """The ids of those that run, and will be told to end by their workers."""
    missed: list[str] = []
    """The ids of those that somebody else was changing: nothing is known of them."""


def give_order(
    cursor: Cursor, order: Order, ids: Sequence[str], *, among: Sequence[str], notify_channel: str | None, wait: bool
) -> Ordered:
    """Cancel or stop those tasks that are in one of the states ``among``, and wake the workers of those that run.

    Their rows are locked before it is decided what they are, so a claim comes before or after, not between. Without
    ``wait`` those that are locked are missed. Whoever does wait should wait for one row in a transaction: workers lock
    many, in orders of their own.
    """
    lock = LOCK_TO_ORDER if wait else LOCK_TO_ORDER_IF_FREE
    locked = {row[0]: row[1] for row in lock(cursor, ids=list(ids)).fetchall()}
    pending = [task_id for task_id, state in locked.items() if state in states.PENDING and state in among]
    running = [task_id for task_id, state in locked.items() if state == states.DOING and state in among]
    missed = [] if wait else [task_id for task_id in ids if task_id not in locked]
    ended = [row[0] for row in END_PENDING[order](cursor, ids=pending).fetchall()] if pending else []
    told = [row[0] for row in REQUEST[order](cursor, ids=running).fetchall()] if running else []
    freed = families.end_badly(cursor, ended) if ended else 0
    if told or freed:
        notify(cursor, notify_channel)
    return Ordered(ended, told, missed)


# What an order stands against and an attempt has given back: it is not to run again.
_given_back = rows("ended", column("id", Uuid), column("second", Double))

END_ORDERED = {
    order: Statement(
        f"end_{order.participle}",
        move(
            order.pending,
            _of_ids,
            tasks.c.id == _given_back.c.id,
            *requested,
            **_why(order, f" {orders.WHILE_RUNNING}"),
            # Its attempt was its last one, after all.
            claimed_by=parameter("worker", Integer),
            date_started=ago(_given_back.c.second),
        ).returning(cast(tasks.c.id, Text)),
    )
    for order, requested in _REQUESTED.items()
}


def _end_ordered(cursor: Cursor, spans: Mapping[str, float | None], *, worker: int) -> list[str]:
    """End tasks that an order stands against and that this transaction has made pending again; return their ids."""
    ids = sorted(spans)
    seconds = [spans[task_id] for task_id in ids]
    ended = [
        statement(cursor, worker=worker, ids=ids, seconds=seconds).fetchall() for statement in END_ORDERED.values()
    ]
    return [row[0] for found in ended for row in found]


class StandingOrder(NamedTuple):
    """What is ordered of a running task."""

    task_id: str
    attempt: int
    order: Order


STANDING_ORDERS = Statement(
    "standing_orders",
    select(
        cast(tasks.c.id, Text),
        tasks.c.attempt,
        case((_REQUESTED[orders.STOP][0], literal(orders.STOP.name)), else_=literal(orders.CANCEL.name)),
    ).where(
        in_state(states.DOING),
        or_(tasks.c.cancel_requested.is_not(None), tasks.c.stop_requested.is_not(None)),
        tasks.c.claimed_by == parameter("worker", Integer),
    ),
)


def standing_orders(cursor: Cursor, *, worker: int) -> list[StandingOrder]:
    """Return what somebody has ordered of the tasks that a worker has claimed."""
    found = STANDING_ORDERS(cursor, worker=worker).fetchall()
    return [StandingOrder(row[0], row[1], orders.ORDERS[row[2]]) for row in found]


# --------------------------------------------------------------------------------------------------- waiting for an end

AWAIT = Statement(
    "await",
    update(tasks)
    .where(tasks.c.id == parameter("id", Uuid), tasks.c.state.not_in([literal(state) for state in states.FINAL]))
    .values(is_awaited=true())
    .returning(
        cast(tasks.c.id, Text),
        case(
            (
                (tasks.c.state == literal(states.ENQUEUED)) & parameter("notify_channel", Text).is_not(None),
                func.pg_notify(parameter("notify_channel", Text), literal("")),
            ),
        ),
    ),
)


def await_end(cursor: Cursor, task_id: str, *, notify_channel: str | None) -> bool:
    """Ask that a task's end be made known on DONE_CHANNEL; False when there is no such task, or it has ended.

    The workers are woken if it could be claimed: who looked at this moment has passed over it, for it was locked.
    """
    return bool(AWAIT(cursor, id=task_id, notify_channel=notify_channel).fetchall())


# --------------------------------------------------------------------------------------------------------------- rescue

LOCK_CLAIMED = Statement(
    "lock_claimed",
    select(
        *_task_columns,
        cast(func.extract("epoch", CLOCK - tasks.c.date_started), Double).label("age"),
    )
    .where(in_state(states.DOING), tasks.c.claimed_by == parameter("worker", Integer))
    .order_by(tasks.c.id)
    .limit(parameter("limit", Integer))
    .with_for_update(skip_locked=True, key_share=True),
)


def lock_claimed(cursor: Cursor, *, worker: int, limit: int) -> list[tuple[Task, float | None]]:
    """Lock tasks that a worker has claimed, in the order of their ids; tell of each how long ago its code began.

    None where no start is known. What somebody else has locked is passed over.
    """
    return [(Task._make(row[:-1]), row[-1]) for row in LOCK_CLAIMED(cursor, worker=worker, limit=limit).fetchall()]


# -------------------------------------------------------------------------------------------------------------- release

RELEASE = Statement(
    "release",
    move(
        states.RELEASE,
        picked(
            select(tasks.c.id)
            .where(in_state(states.WAITING), HAS_NO_PARENTS_LEFT, TIME_HAS_COME)
            .order_by(tasks.c.date_scheduled)
            .limit(parameter("limit", Integer))
        ),
    ).returning(cast(tasks.c.id, Text)),
)

SECONDS_TO_NEXT_DUE = Statement(
    "seconds_to_next_due",
    select(cast(func.extract("epoch", func.min(tasks.c.date_scheduled) - CLOCK), Double)).where(
        in_state(states.WAITING), HAS_NO_PARENTS_LEFT
    ),
)


def release_due(cursor: Cursor, *, limit: int) -> int:
    """Make waiting tasks eligible whose time has come and whose parents are done; return how many."""
    return len(RELEASE(cursor, limit=limit).fetchall())


def seconds_to_next_due(cursor: Cursor) -> float | None:
    """Return how long until the next waiting task is due (negative: overdue), None when none waits for a time."""
    row = SECONDS_TO_NEXT_DUE(cursor).fetchone()
    return None if row is None or row[0] is None else float(row[0])


# -------------------------------------------------------------------------------------------------- by a person or cron

REQUEUE_FITS: tuple[ColumnElement[bool], ...] = (
    *_chosen(tasks.c.date_done),
    or_(
        parameter("max_requeues", Integer).is_(None),
        tasks.c.requeues < parameter("max_requeues", Integer),
    ),
)
"""The conditions of a :class:`Requeue`: also those of the read that lists what would go round again."""


def requeueable(*, lock: bool) -> ColumnElement[Any]:
    """Return the ids of what a :class:`Requeue` takes: of several with one unique key the one that ended last."""
    fitting = (
        select(tasks.c.id, tasks.c.date_done, func.coalesce(tasks.c.unique_key, cast(tasks.c.id, Text)).label("key"))
        .where(*REQUEUE_FITS, ~KEY_IS_TAKEN)
        .order_by(tasks.c.date_done)
        .limit(parameter("limit", Integer))
    )
    if lock:
        fitting = fitting.with_for_update(skip_locked=True)
    each = fitting.subquery("fitting").c
    place = func.row_number().over(partition_by=each.key, order_by=each.date_done.desc()).label("place")
    ranked = select(each.id, place).subquery("ranked").c
    return func.array(select(ranked.id).where(ranked.place == literal_column("1")).scalar_subquery())


REQUEUE = Statement(
    "requeue",
    move(
        states.REQUEUE,
        # FOR UPDATE, so that no child of it is being added, which would take it for ended.
        tasks.c.id == any_(requeueable(lock=True)),
        requeues=tasks.c.requeues + literal_column("1"),
        failures=literal_column("0"),
        lost_count=literal_column("0"),
        result=null(),
        error_type=null(),
        error_message=null(),
        error_traceback=null(),
        date_scheduled=null(),
        cancel_requested=null(),
        stop_requested=null(),
        # Those of its parents that have not ended are counted anew, if it has any.
        pending_parents=literal_column("0"),
        meta=families.without_ancestor(),
    ).returning(cast(tasks.c.id, Text)),
)


class Requeue(NamedTuple):
    """Which ended tasks go round again; None does not restrict."""

    states: tuple[str, ...] = (states.FAILED,)
    ids: list[str] | None = None
    name: str | None = None
    channel: str | None = None
    since: float | None = None
    """Ended at most so many seconds ago."""
    max_requeues: int | None = None
    """Leave alone what was already requeued so often."""
    limit: int | None = None


def requeue(cursor: Cursor, which: Requeue) -> list[str]:
    """Send ended tasks round again, the longest ended first; return their ids.

    Rows that somebody else is changing at this moment are passed over, so two that run at once share the work; so are
    those to which somebody is adding a child.
    """
    found = REQUEUE(
        cursor, **which._replace(limit=None)._asdict() | {"states": list(which.states), "limit": which.limit}
    )
    requeued = [row[0] for row in found.fetchall()]
    if requeued:
        families.go_round_again(cursor, requeued)
    return requeued


COUNT_BLOCKED = Statement("count_blocked", select(func.count()).select_from(tasks).where(*REQUEUE_FITS, KEY_IS_TAKEN))


def count_blocked(cursor: Cursor, which: Requeue) -> int:
    """Return how many ended tasks fit but cannot go round again, because another one has their unique key."""
    found = COUNT_BLOCKED(cursor, **which._asdict() | {"states": list(which.states)})
    return int(found.fetchone()[0])


CLEAR = Statement(
    "clear",
    delete(tasks)
    .where(
        picked(
            select(tasks.c.id).where(in_state(*states.PENDING)).order_by(tasks.c.id).limit(parameter("limit", Integer))
        )
    )
    .returning(cast(tasks.c.id, Text), ANNOUNCED),
)


def clear_pending(cursor: Cursor, *, limit: int) -> int:
    """Delete pending tasks; return how many. What waits for a pending task is pending itself, so no child is left."""
    return len(CLEAR(cursor, limit=limit).fetchall())


# --------------------------------------------------------------------------------------------- adopting restored tables

_of_child = func.unnest(tasks.c.parents).table_valued("parent").render_derived(name="edge")
_parent = tasks.alias("parent")

REBUILD_DEPENDENCIES = Statement(
    "rebuild_dependencies",
    upsert(dependencies)
    .from_select(
        ["task", "parent"],
        select(tasks.c.id, _parent.c.id)
        .select_from(tasks)
        .join(_of_child, true())
        .join(_parent, _parent.c.id == _of_child.c.parent),
    )
    .on_conflict_do_nothing(),
)

RECOUNT_PARENTS = Statement(
    "recount_parents",
    update(tasks)
    .where(in_state(states.WAITING))
    .values(
        pending_parents=select(func.count())
        .select_from(dependencies.join(_parent, _parent.c.id == dependencies.c.parent))
        .where(dependencies.c.task == tasks.c.id, _parent.c.state.not_in([literal(s) for s in states.FINAL]))
        .scalar_subquery()
    ),
)

DISOWN_ALL = Statement("disown_all", move(states.DISOWN))

END_ALL_ORDERED = tuple(
    Statement(f"end_all_{order.participle}", move(order.pending, *requested, **_why(order, f" {orders.WHILE_RUNNING}")))
    for order, requested in _REQUESTED.items()
)

ADOPT = (REBUILD_DEPENDENCIES, RECOUNT_PARENTS, DISOWN_ALL, *END_ALL_ORDERED, RETIRE_ALL_WORKERS)
"""What makes tables that came out of a dump go on; none of them has a parameter."""


def adopt(cursor: Cursor) -> None:
    """Make tables that came out of a dump go on: rebuild the edges, recount, and take back what was running.

    Whoever owned those rows works on another database, so nobody's attempt is overwritten here.
    """
    for statement in ADOPT:
        statement(cursor)
