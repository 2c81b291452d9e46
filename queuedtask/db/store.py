"""What a worker does to tasks, in the order of an attempt's life: claim, write progress, settle, rescue, release.

All functions take a cursor; the transaction is the caller's. Adding stands in ``db/adding``, what people do to tasks in
``db/control``.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
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
from queuedtask.db.control import END_ALL_ORDERED, end_ordered, is_ordered
from queuedtask.db.moves import (
    CLOCK,
    HAS_NO_PARENTS_LEFT,
    IMPLIED,
    SECOND,
    TIME_HAS_COME,
    ago,
    in_state,
    literal,
    move,
    picked,
    seconds,
)
from queuedtask.db.schema import attempts, dependencies, logs, tasks
from queuedtask.db.statement import Cursor, Statement, parameter, rows
from queuedtask.db.workers import RETIRE_ALL_WORKERS
from queuedtask.model import states
from queuedtask.model.limits import DEFAULT_CHANNEL
from queuedtask.model.options import REPLACING
from queuedtask.model.outcome import Decision
from queuedtask.model.rules import Claimable
from queuedtask.model.states import Edge
from queuedtask.model.task import Task

# ---------------------------------------------------------------------------------------------------------------- claim

# What a Task is made of. JSON comes as text: a row that cannot be read shall fail alone, in its slot.
_AS_TEXT = {"id", "args", "kwargs", "context", "meta"}
# A claim says what the time is on the worker's own clock, and the wait is counted back from there on the database's.
_waited = seconds(CLOCK - tasks.c.date_enqueued)
_task_columns = [
    (parameter("monotonic", Double) - _waited).label(name)
    if name == "eligible_at"
    else cast(func.nullif(tasks.c.parents, literal_column("'{}'")), ARRAY(Text)).label(name)
    if name == "parents"
    else cast(tasks.c[name], Text).label(name)
    if name in _AS_TEXT
    else func.encode(tasks.c[name], literal("base64")).label(name)
    if name == "pickled_function"
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
    more_returned = () if edge.target in states.FINAL else (is_ordered.label("is_ordered"),)
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
        fallen += end_ordered(cursor, {task_id: spans[task_id] for task_id in ordered}, worker=worker)
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


# ---------------------------------------------------------------------------------------------- after a lost connection

DISOWN = Statement(
    "disown",
    move(
        states.DISOWN,
        tasks.c.claimed_by == parameter("worker", Integer),
        tasks.c.id != all_(parameter("ids", ARRAY(Uuid))),
    ).returning(cast(tasks.c.id, Text), is_ordered.label("is_ordered")),
)


def disown(cursor: Cursor, *, worker: int, known: Sequence[str]) -> int:
    """Give back what this worker has claimed without knowing it; return how many.

    A connection that breaks during COMMIT leaves it open whether the claim took place.
    """
    disowned = DISOWN(cursor, worker=worker, ids=list(known)).fetchall()
    if ordered := {row[0]: None for row in disowned if row[1]}:
        families.end_badly(cursor, end_ordered(cursor, ordered, worker=worker))
    return len(disowned)


# --------------------------------------------------------------------------------------------------------------- rescue

LOCK_CLAIMED = Statement(
    "lock_claimed",
    select(
        *_task_columns,
        seconds(CLOCK - tasks.c.date_started).label("age"),
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
    select(seconds(func.min(tasks.c.date_scheduled) - CLOCK)).where(in_state(states.WAITING), HAS_NO_PARENTS_LEFT),
)


def release_due(cursor: Cursor, *, limit: int) -> int:
    """Make waiting tasks eligible whose time has come and whose parents are done; return how many."""
    return len(RELEASE(cursor, limit=limit).fetchall())


def seconds_to_next_due(cursor: Cursor) -> float | None:
    """Return how long until the next waiting task is due (negative: overdue), None when none waits for a time."""
    row = SECONDS_TO_NEXT_DUE(cursor).fetchone()
    return None if row is None or row[0] is None else float(row[0])


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

ADOPT = (REBUILD_DEPENDENCIES, RECOUNT_PARENTS, DISOWN_ALL, *END_ALL_ORDERED, RETIRE_ALL_WORKERS)
"""What makes tables that came out of a dump go on; none of them has a parameter."""


def adopt(cursor: Cursor) -> None:
    """Make tables that came out of a dump go on: rebuild the edges, recount, and take back what was running.

    Whoever owned those rows works on another database, so nobody's attempt is overwritten here.
    """
    for statement in ADOPT:
        statement(cursor)
