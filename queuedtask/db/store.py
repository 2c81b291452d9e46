"""Every statement that writes, in the order of a task's life: add, claim, settle, requeue, clear.

``state`` is written here and nowhere else: by the column's default or :data:`ADD` when a task is added, and from then
on only by the statements that :func:`_move` makes from an edge. All functions take a cursor; the transaction is the
caller's.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnClause,
    ColumnElement,
    Double,
    Integer,
    TableValuedAlias,
    Text,
    Update,
    Uuid,
    all_,
    any_,
    case,
    cast,
    column,
    delete,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql.selectable import Select

from queuedtask.db.schema import Timestamp, attempts, dependencies, logs, tasks
from queuedtask.db.statement import Cursor, Statement, parameter, rows
from queuedtask.db.workers import RETIRE_ALL_WORKERS
from queuedtask.model import states
from queuedtask.model.outcome import Decision
from queuedtask.model.states import Edge
from queuedtask.model.task import Task, TaskSpec

CLOCK = func.clock_timestamp()
SECOND = text("interval '1 second'")


def _literal(value: str) -> ColumnElement[Any]:
    # Constants of ours stand in the SQL itself: PostgreSQL can then prove that a partial index fits.
    return literal_column(f"'{value}'")


def _in_state(*allowed: str) -> ColumnElement[bool]:
    return tasks.c.state.in_([_literal(state) for state in allowed])


def _ago(seconds: ColumnElement[Any]) -> ColumnElement[Any]:
    return CLOCK - seconds * SECOND


# What every move to a state writes besides the state: the dates and owners that the state itself implies.
_IMPLIED: dict[str, dict[str, Any]] = {
    states.WAITING: {"claimed_by": null(), "date_started": null(), "date_done": null()},
    states.ENQUEUED: {
        "claimed_by": null(),
        "date_started": null(),
        "date_done": null(),
        "date_enqueued": CLOCK,
    },
    states.DOING: {"claimed_by": parameter("worker", Integer), "date_started": null()},
    **{state: {"date_done": CLOCK} for state in states.FINAL},
}


def _move(edge: Edge, *where: ColumnElement[bool], ended: TableValuedAlias | None = None, **values: Any) -> Update:
    """Turn an edge into a guarded UPDATE: the one place that writes ``state``.

    A row that is no longer in one of the edge's source states is not touched; for a fenced edge, nor is one that is
    not this worker's, or that is its own but in a later attempt than the one that ``ended`` names.
    """
    guards = [*where, _in_state(*edge.sources)]
    if edge.fenced:
        assert ended is not None, f"{edge.name} belongs to an attempt"
        guards += [tasks.c.claimed_by == parameter("worker", Integer), tasks.c.attempt == ended.c.attempt]
    return update(tasks).where(*guards).values({"state": _literal(edge.target), **_IMPLIED[edge.target], **values})


def _picked(query: Select[Any]) -> ColumnElement[bool]:
    """Restrict a move to the rows that a locking sub-select picks, passing over those that others have locked.

    ``= ANY(ARRAY(SELECT …))`` is planned the same way on a table without statistics, where joins and IN collapse.
    NO KEY UPDATE, because somebody's open transaction that adds a child holds KEY SHARE on its parent.
    """
    locked = query.with_for_update(skip_locked=True, key_share=True)
    return tasks.c.id == any_(func.array(locked.scalar_subquery()))


# ------------------------------------------------------------------------------------------------------------------ add

_scheduled = func.coalesce(parameter("run_at", Timestamp), CLOCK + parameter("delay", Double) * SECOND)

_added = (
    insert(tasks)
    .values(
        id=parameter("id", Uuid),
        name=parameter("name", Text),
        state=case((_scheduled > CLOCK, _literal(states.WAITING)), else_=_literal(states.ENQUEUED)),
        function=parameter("function", Text),
        args=parameter("args", JSONB),
        kwargs=parameter("kwargs", JSONB),
        channel=parameter("channel", Text),
        priority=parameter("priority", Integer),
        date_scheduled=_scheduled,
        timeout=parameter("timeout", Double),
        max_retries=parameter("max_retries", Integer),
        context=parameter("context", JSONB),
        meta=parameter("meta", JSONB),
    )
    .returning(tasks.c.id)
    .cte("added")
)

ADD = Statement("add", select(_added.c.id))
ADD_AND_NOTIFY = Statement(
    "add_and_notify", select(_added.c.id, func.pg_notify(parameter("notify_channel", Text), _literal("")))
)
NOTIFY = Statement("notify", select(func.pg_notify(parameter("notify_channel", Text), _literal(""))))


def add(cursor: Cursor, spec: TaskSpec, *, notify_channel: str | None) -> None:
    """Insert one task and, with a channel given, wake the workers when the transaction commits.

    One statement, so that it is right on an autocommit connection as well. The payload of the NOTIFY is empty:
    a thousand of them in one transaction arrive as one, and nobody has to trust what it says.
    """
    statement = ADD if notify_channel is None else ADD_AND_NOTIFY
    statement(cursor, notify_channel=notify_channel, **spec._asdict())


# The columns of a TaskSpec, by what becomes of them in the row.
_spec = rows(
    "spec",
    column("id", Uuid),
    column("name", Text),
    column("function", Text),
    column("arg", JSONB),
    column("kwarg", JSONB),
    column("channel", Text),
    column("priority", Integer),
    column("delay", Double),
    column("run_at", Timestamp),
    column("timeout", Double),
    column("max_retrie", Integer),
    column("context", JSONB),
    column("meta", JSONB),
)
_spec_scheduled = func.coalesce(_spec.c.run_at, CLOCK + _spec.c.delay * SECOND)
_added_many = (
    insert(tasks)
    .from_select(
        [
            *("id", "name", "state", "function", "args", "kwargs", "channel", "priority"),
            *("date_scheduled", "timeout", "max_retries", "context", "meta"),
        ],
        select(
            _spec.c.id,
            _spec.c.name,
            case((_spec_scheduled > CLOCK, _literal(states.WAITING)), else_=_literal(states.ENQUEUED)),
            _spec.c.function,
            _spec.c.arg,
            _spec.c.kwarg,
            _spec.c.channel,
            _spec.c.priority,
            _spec_scheduled,
            _spec.c.timeout,
            _spec.c.max_retrie,
            _spec.c.context,
            _spec.c.meta,
        ),
    )
    .returning(tasks.c.id)
    .cte("added")
)
_count_added = select(func.count()).select_from(_added_many).scalar_subquery()

ADD_MANY = Statement("add_many", select(_count_added))
ADD_MANY_AND_NOTIFY = Statement(
    "add_many_and_notify", select(_count_added, func.pg_notify(parameter("notify_channel", Text), _literal("")))
)


def add_many(cursor: Cursor, specs: Sequence[TaskSpec], *, notify_channel: str | None) -> None:
    """Insert tasks and, with a channel given, wake the workers when the transaction commits; in one statement."""
    columns = dict(zip(TaskSpec._fields, map(list, zip(*specs, strict=True)), strict=True))
    # A column in which nothing is given goes as an empty array: unnest() fills up with NULL.
    given = {name: values if any(v is not None for v in values) else [] for name, values in columns.items()}
    statement = ADD_MANY if notify_channel is None else ADD_MANY_AND_NOTIFY
    statement(
        cursor,
        notify_channel=notify_channel,
        ids=given["id"],
        names=given["name"],
        functions=given["function"],
        args=given["args"],
        kwargs=given["kwargs"],
        channels=given["channel"],
        prioritys=given["priority"],
        delays=given["delay"],
        run_ats=given["run_at"],
        timeouts=given["timeout"],
        max_retries=given["max_retries"],
        contexts=given["context"],
        metas=given["meta"],
    )


def notify(cursor: Cursor, notify_channel: str) -> None:
    """Wake the workers when the transaction commits."""
    NOTIFY(cursor, notify_channel=notify_channel)


# ---------------------------------------------------------------------------------------------------------------- claim

_claimed = (
    _move(
        states.CLAIM,
        _picked(
            select(tasks.c.id)
            .where(_in_state(states.ENQUEUED))
            .order_by(tasks.c.priority.desc(), tasks.c.date_enqueued)
            .limit(parameter("limit", Integer))
        ),
        attempt=tasks.c.attempt + literal_column("1"),
    )
    .returning(
        cast(tasks.c.id, Text).label("id"),
        tasks.c.name,
        tasks.c.function,
        cast(tasks.c.args, Text).label("args"),
        cast(tasks.c.kwargs, Text).label("kwargs"),
        cast(tasks.c.context, Text).label("context"),
        tasks.c.attempt,
        tasks.c.failures,
        tasks.c.max_retries,
        tasks.c.timeout,
        tasks.c.lost_count,
        tasks.c.priority,
        tasks.c.date_enqueued,
    )
    .cte("claimed")
)

# An UPDATE returns its rows in no order; the first of the queue is to run first.
CLAIM = Statement(
    "claim",
    select(*(_claimed.c[field] for field in Task._fields)).order_by(
        _claimed.c.priority.desc(), _claimed.c.date_enqueued
    ),
)


def claim(cursor: Cursor, *, worker: int, limit: int) -> list[Task]:
    """Take up to so many tasks for this worker, the most urgent first."""
    return [Task._make(row) for row in CLAIM(cursor, worker=worker, limit=limit).fetchall()]


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
    keeps PostgreSQL on the primary key when a table has never been analysed.
    """
    ended = rows("ended", *_ENDED, *more)
    written = {
        "context": func.coalesce(ended.c.context, tasks.c.context),
        "date_started": func.coalesce(tasks.c.date_started, _ago(ended.c.second)),
        **_IMPLIED[edge.target],
    }
    for extra in more:
        if extra.name == "delay":
            written["date_scheduled"] = CLOCK + ended.c.delay * SECOND
        elif extra.name == "lost":
            written["lost_count"] = tasks.c.lost_count + ended.c.lost
        else:
            written[extra.name] = ended.c[extra.name]
    return Statement(
        edge.name,
        _move(
            edge,
            tasks.c.id == any_(parameter("ids", ARRAY(Uuid))),
            tasks.c.id == ended.c.id,
            ended=ended,
            **written,
            **values,
        ).returning(cast(tasks.c.id, Text), tasks.c.attempt),
    )


_one_more_failure = tasks.c.failures + literal_column("1")

SETTLE = {
    states.FINISH: _settle(states.FINISH, *_RESULT, **dict.fromkeys((c.name for c in _ERROR), null())),
    states.FAIL: _settle(states.FAIL, *_ERROR, *_LOSS, failures=_one_more_failure),
    states.RETRY: _settle(states.RETRY, *_ERROR, *_DELAY, *_LOSS, failures=_one_more_failure),
    states.CALL_OFF: _settle(states.CALL_OFF, *_ERROR),
    states.HAND_BACK: _settle(states.HAND_BACK),
    states.RESCUE: _settle(states.RESCUE, *_LOSS),
    states.LOSE: _settle(states.LOSE, *_ERROR, *_LOSS),
}


def settle(cursor: Cursor, endings: Sequence[Ending], *, worker: int) -> set[tuple[str, int]]:
    """Record how a batch of attempts ended, with a row for each failed one; return the ids and attempts accepted.

    An ending that is not among them was refused: its row is no longer this worker's attempt. It must not be tried
    again.
    """
    by_edge: dict[Edge, list[Ending]] = {}
    for ending in endings:
        by_edge.setdefault(ending.decision.edge, []).append(ending)
    accepted: set[tuple[str, int]] = set()
    # In the order of SETTLE, and sorted by id within: two workers never lock the same rows in opposite orders.
    for edge, statement in SETTLE.items():
        if batch := by_edge.get(edge):
            batch.sort(key=lambda ending: ending.task.id)
            accepted.update(map(tuple, statement(cursor, worker=worker, **_columns(batch)).fetchall()))
    failed = [e for e in endings if e.decision.leaves_row and e.task.key in accepted]
    if failed:
        ADD_ATTEMPTS(cursor, worker=worker, outcomes=[e.decision.outcome.kind for e in failed], **_columns(failed))
    return accepted


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
            _ago(_failed_attempt.c.second),
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

WRITE_PROGRESS = Statement(
    "write_progress",
    update(tasks)
    .where(
        tasks.c.id == any_(parameter("ids", ARRAY(Uuid))),
        tasks.c.id == _running.c.id,
        _in_state(states.DOING),
        tasks.c.claimed_by == parameter("worker", Integer),
        tasks.c.attempt == _running.c.attempt,
    )
    .values(
        context=func.coalesce(_running.c.context, tasks.c.context),
        date_started=func.coalesce(tasks.c.date_started, _ago(_running.c.second)),
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
            _ago(_line.c.second),
        )
        .join_from(_line, tasks, tasks.c.id == _line.c.task_id)
        .where(
            _in_state(states.DOING),
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
    _move(
        states.DISOWN,
        tasks.c.claimed_by == parameter("worker", Integer),
        tasks.c.id != all_(parameter("ids", ARRAY(Uuid))),
    ).returning(cast(tasks.c.id, Text)),
)


def disown(cursor: Cursor, *, worker: int, known: Sequence[str]) -> int:
    """Give back what this worker has claimed without knowing it; return how many.

    A connection that breaks during COMMIT leaves it open whether the claim took place.
    """
    return len(DISOWN(cursor, worker=worker, ids=list(known)).fetchall())


# --------------------------------------------------------------------------------------------------------------- rescue

LOCK_CLAIMED = Statement(
    "lock_claimed",
    select(
        *(
            cast(tasks.c[field], Text).label(field) if field in ("id", "args", "kwargs", "context") else tasks.c[field]
            for field in Task._fields
        ),
        cast(func.extract("epoch", CLOCK - tasks.c.date_started), Double).label("age"),
    )
    .where(_in_state(states.DOING), tasks.c.claimed_by == parameter("worker", Integer))
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

# now(), not clock_timestamp(): a volatile function could not bound the index scan.
_is_due = or_(tasks.c.date_scheduled.is_(None), tasks.c.date_scheduled <= func.now())
_has_no_parents_left = tasks.c.pending_parents <= literal_column("0")

RELEASE = Statement(
    "release",
    _move(
        states.RELEASE,
        _picked(
            select(tasks.c.id)
            .where(_in_state(states.WAITING), _has_no_parents_left, _is_due)
            .order_by(tasks.c.date_scheduled)
            .limit(parameter("limit", Integer))
        ),
    ).returning(cast(tasks.c.id, Text)),
)

SECONDS_TO_NEXT_DUE = Statement(
    "seconds_to_next_due",
    select(cast(func.extract("epoch", func.min(tasks.c.date_scheduled) - CLOCK), Double)).where(
        _in_state(states.WAITING), _has_no_parents_left
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
    tasks.c.state == any_(parameter("states", ARRAY(Text))),
    or_(parameter("ids", ARRAY(Uuid)).is_(None), tasks.c.id == any_(parameter("ids", ARRAY(Uuid)))),
    or_(parameter("name", Text).is_(None), tasks.c.name == parameter("name", Text)),
    or_(
        parameter("since", Double).is_(None),
        tasks.c.date_done >= func.now() - parameter("since", Double) * SECOND,
    ),
    or_(
        parameter("max_requeues", Integer).is_(None),
        tasks.c.requeues < parameter("max_requeues", Integer),
    ),
)
"""The conditions of a :class:`Requeue`: also those of the read that lists what would go round again."""

REQUEUE = Statement(
    "requeue",
    _move(
        states.REQUEUE,
        _picked(select(tasks.c.id).where(*REQUEUE_FITS).order_by(tasks.c.date_done).limit(parameter("limit", Integer))),
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
    ).returning(cast(tasks.c.id, Text)),
)


class Requeue(NamedTuple):
    """Which ended tasks go round again; None does not restrict."""

    states: tuple[str, ...] = (states.FAILED,)
    ids: list[str] | None = None
    name: str | None = None
    since: float | None = None
    """Ended at most so many seconds ago."""
    max_requeues: int | None = None
    """Leave alone what was already requeued so often."""
    limit: int | None = None


def requeue(cursor: Cursor, which: Requeue) -> list[str]:
    """Send ended tasks round again, the longest ended first; return their ids.

    Rows that somebody else is changing at this moment are passed over, so two that run at once share the work.
    """
    found = REQUEUE(
        cursor, **which._replace(limit=None)._asdict() | {"states": list(which.states), "limit": which.limit}
    )
    return [row[0] for row in found.fetchall()]


CLEAR = Statement(
    "clear",
    delete(tasks)
    .where(
        _picked(
            select(tasks.c.id).where(_in_state(*states.PENDING)).order_by(tasks.c.id).limit(parameter("limit", Integer))
        )
    )
    .returning(cast(tasks.c.id, Text)),
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
    .where(_in_state(states.WAITING))
    .values(
        pending_parents=select(func.count())
        .select_from(dependencies.join(_parent, _parent.c.id == dependencies.c.parent))
        .where(dependencies.c.task == tasks.c.id, _parent.c.state.not_in([_literal(s) for s in states.FINAL]))
        .scalar_subquery()
    ),
)

DISOWN_ALL = Statement("disown_all", _move(states.DISOWN))


ADOPT = (REBUILD_DEPENDENCIES, RECOUNT_PARENTS, DISOWN_ALL, RETIRE_ALL_WORKERS)
"""What makes tables that came out of a dump go on; none of them has a parameter."""


def adopt(cursor: Cursor) -> None:
    """Make tables that came out of a dump go on: rebuild the edges, recount, and take back what was running.

    Whoever owned those rows works on another database, so nobody's attempt is overwritten here.
    """
    for statement in ADOPT:
        statement(cursor)
