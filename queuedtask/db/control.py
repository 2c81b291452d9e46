"""What people do to tasks: cancel and stop them, wait for their ends, send them round again, clear them away.

All functions take a cursor; the transaction is the caller's. ``queuedtask/control.py`` says when and how often.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Double,
    Integer,
    Text,
    Uuid,
    any_,
    case,
    cast,
    column,
    delete,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from queuedtask.db import families
from queuedtask.db.moves import (
    ANNOUNCED,
    CLOCK,
    KEY_IS_TAKEN,
    SECOND,
    ago,
    in_state,
    literal,
    move,
    notify,
    picked,
)
from queuedtask.db.schema import tasks
from queuedtask.db.statement import Cursor, Statement, parameter, rows
from queuedtask.model import orders, states
from queuedtask.model.orders import Order

# ------------------------------------------------------------------------------------------------ cancelled and stopped

_of_ids = tasks.c.id == any_(parameter("ids", ARRAY(Uuid)))
is_ordered = or_(tasks.c.cancel_requested.is_not(None), tasks.c.stop_requested.is_not(None))
"""The condition that somebody has cancelled or stopped a task that runs."""
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


def end_ordered(cursor: Cursor, spans: Mapping[str, float | None], *, worker: int) -> list[str]:
    """End tasks that an order stands against and that this transaction has made pending again; return their ids."""
    ids = sorted(spans)
    seconds = [spans[task_id] for task_id in ids]
    ended = [
        statement(cursor, worker=worker, ids=ids, seconds=seconds).fetchall() for statement in END_ORDERED.values()
    ]
    return [row[0] for found in ended for row in found]


END_ALL_ORDERED = tuple(
    Statement(f"end_all_{order.participle}", move(order.pending, *requested, **_why(order, f" {orders.WHILE_RUNNING}")))
    for order, requested in _REQUESTED.items()
)


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
        is_ordered,
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


# ------------------------------------------------------------------------------------------------- round again, or away

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
