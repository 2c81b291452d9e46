"""Cancelling, stopping and announcing on the real tables: nothing is lost, whoever comes first."""

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2.sql
import pytest

from helpers import wait_until
from queuedtask.db import control, reads, store
from queuedtask.db.control import Orderable, Ordered, Requeue
from queuedtask.db.moves import DONE_CHANNEL
from queuedtask.db.statement import all_statements
from queuedtask.db.store import Ending
from queuedtask.model import orders, outcome, states
from queuedtask.model.orders import Order
from queuedtask.model.outcome import Outcome
from queuedtask.model.task import Task, new_id

ME = 7
CHANNEL = "queue_new_task"
BOTH = [pytest.param(orders.CANCEL, id="cancel"), pytest.param(orders.STOP, id="stop")]
NOT_ENDED = (*states.PENDING, states.DOING)


@pytest.fixture
def lock_timeout() -> str:
    return "5s"


def put(cursor: Any, state: str = "enqueued", **columns: Any) -> str:
    values: dict[str, Any] = {"id": new_id(), "function": "a:b", "state": state}
    if state == "doing":
        values |= {"claimed_by": ME, "attempt": 1}
    values |= columns
    names = ", ".join([*values, *(["date_done"] if state in states.FINAL else [])])
    marks = ", ".join(["%s"] * len(values) + (["now()"] if state in states.FINAL else []))
    cursor.execute(f"INSERT INTO queued_tasks ({names}) VALUES ({marks})", list(values.values()))
    return str(values["id"])


def get(cursor: Any, task_id: str, *columns: str) -> Any:
    cursor.execute(f"SELECT {', '.join(columns)} FROM queued_tasks WHERE id = %s", (task_id,))
    row = cursor.fetchone()
    return row[0] if len(columns) == 1 else row


def claimed(cursor: Any, **columns: Any) -> Task:
    task_id = put(cursor, **columns)
    (task,) = store.claim(cursor, worker=ME, limit=1)
    assert task.id == task_id
    return task


def ending(task: Task, kind: str, *, retries: int = 9, max_lost: int = 9) -> Ending:
    ended = Outcome(kind, error_type="E", error_message="m", error_traceback="t")
    return Ending(task, outcome.decide(task, ended, max_retries=retries, max_lost=max_lost), 1.5, None)


def give(cursor: Any, order: Order, *ids: str, wait: bool = True, among: tuple[str, ...] = NOT_ENDED) -> Ordered:
    return control.give_order(cursor, order, ids, among=among, notify_channel=CHANNEL, wait=wait)


def heard(listener: Any) -> list[tuple[str, str]]:
    """Return what was announced up to now: notifications come in the order of the commits, so one of ours is last."""
    with listener.cursor() as cursor:
        cursor.execute("NOTIFY fence")
    found: list[tuple[str, str]] = []

    def is_complete() -> bool:
        listener.poll()
        found.extend((notify.channel, notify.payload) for notify in listener.notifies)
        listener.notifies.clear()
        return ("fence", "") in found

    wait_until(is_complete, interval=0.0005)
    return found[:-1]


@pytest.fixture
def listener(connect: Callable[..., Any]) -> Any:
    connection = connect()
    with connection.cursor() as cursor:
        for name in (CHANNEL, DONE_CHANNEL, "fence"):
            cursor.execute(psycopg2.sql.SQL("LISTEN {}").format(psycopg2.sql.Identifier(name)))
    return connection


# -------------------------------------------------------------------------------------------------------------- orders


@pytest.mark.parametrize("order", BOTH)
def test_an_order_ends_what_is_pending_marks_what_runs_and_leaves_alone_what_has_ended(
    cursor: Any, listener: Any, order: Order
) -> None:
    made = {state: put(cursor, state) for state in states.STATES}
    bystander = put(cursor)
    done = give(cursor, order, *made.values())
    assert set(done.ended) == {made["waiting"], made["enqueued"]}
    assert done.told == [made["doing"]]
    for state in states.PENDING:
        row = get(cursor, made[state], "state", "error_type", "error_message", "date_done IS NOT NULL")
        assert row == (order.pending.target, order.error_type, f"the task was {order.participle}", True)
    for state in (states.DOING, *states.FINAL, "bystander"):
        task_id = made.get(state, bystander)
        assert get(cursor, task_id, "state") == ("enqueued" if state == "bystander" else state)
        asked = get(cursor, task_id, "cancel_requested IS NOT NULL", "stop_requested IS NOT NULL")
        expected = (order is orders.CANCEL, order is orders.STOP)
        assert asked == (expected if state == "doing" else (False, False))
    # The workers are woken because one of them runs.
    assert heard(listener) == [(CHANNEL, "")]
    assert give(cursor, order, made["enqueued"]) == Ordered([], [])


def test_nobody_is_woken_for_what_was_pending(cursor: Any, listener: Any) -> None:
    give(cursor, orders.CANCEL, put(cursor))
    assert heard(listener) == []


def test_a_second_order_keeps_the_time_of_the_first(cursor: Any) -> None:
    task_id = put(cursor, "doing")
    give(cursor, orders.CANCEL, task_id)
    first = get(cursor, task_id, "cancel_requested")
    assert give(cursor, orders.CANCEL, task_id).told == [task_id]
    assert get(cursor, task_id, "cancel_requested") == first


def test_only_the_states_that_were_asked_for_are_touched(cursor: Any) -> None:
    made = {state: put(cursor, state) for state in states.STATES}
    assert give(cursor, orders.STOP, *made.values(), among=("waiting",)) == Ordered([made["waiting"]], [])
    assert get(cursor, made["doing"], "stop_requested") is None


def test_a_row_that_is_locked_is_waited_for_or_missed(connect: Callable[..., Any], cursor: Any) -> None:
    task_id, free = put(cursor), put(cursor)
    other = connect(autocommit=False)
    (task,) = store.claim(other.cursor(), worker=ME, limit=1)
    assert task.id == task_id
    assert give(cursor, orders.CANCEL, task_id, free, wait=False) == Ordered([free], [], [task_id])
    waiting = connect()
    found: list[Ordered] = []
    thread = threading.Thread(target=lambda: found.append(give(waiting.cursor(), orders.CANCEL, task_id)))
    thread.start()
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
    wait_until(lambda: _one(cursor, blocked, waiting.info.backend_pid), message="the order waits for the claim")
    other.commit()
    thread.join(10)
    # It was claimed first, and so it is told.
    assert found == [Ordered([], [task_id])]


def _one(cursor: Any, sql: str, *parameters: Any) -> Any:
    cursor.execute(sql, parameters)
    return cursor.fetchone()[0]


def test_claim_and_cancel_at_the_same_instant_200_times(connect: Callable[..., Any], cursor: Any) -> None:
    connection, canceller = connect(), connect(autocommit=False)
    head_start = 0.0  # of the claim, in seconds; led to where either may be first, whatever the machine
    seen = set()

    def claim(delay: float) -> bool:
        start.wait()
        time.sleep(delay)
        return bool(store.claim(connection.cursor(), worker=ME, limit=1))

    start = threading.Barrier(2, timeout=20)
    with ThreadPoolExecutor(1) as beside:
        for _ in range(200):
            task_id = put(cursor)
            claiming = beside.submit(claim, max(0.0, -head_start))
            start.wait()
            time.sleep(max(0.0, head_start))
            done = give(canceller.cursor(), orders.CANCEL, task_id)
            canceller.commit()
            was_claimed = claiming.result(20)
            state, claimed_by, asked = get(cursor, task_id, "state", "claimed_by", "cancel_requested IS NOT NULL")
            seen.add(was_claimed)
            head_start += -5e-5 if was_claimed else 5e-5
            if was_claimed:
                assert (state, claimed_by, asked, done.told) == ("doing", ME, True, [task_id])
            else:
                assert (state, claimed_by, asked, done.ended) == ("cancelled", None, False, [task_id])
            cursor.execute("DELETE FROM queued_tasks")
    assert seen == {True, False}, "the trial has tried nothing"


@pytest.mark.parametrize("kind", [outcome.RAISED, outcome.TIMED_OUT, outcome.INTERRUPTED, outcome.LOST])
@pytest.mark.parametrize("order", BOTH)
def test_what_is_ordered_does_not_run_again_however_its_attempt_ended(cursor: Any, kind: str, order: Order) -> None:
    ordered, free = claimed(cursor), claimed(cursor)
    give(cursor, order, ordered.id)
    endings = [ending(ordered, kind), ending(free, kind)]
    assert store.settle(cursor, endings, worker=ME).accepted == {ordered.key, free.key}
    row = get(cursor, ordered.id, "state", "error_type", "claimed_by", "extract(epoch FROM date_done - date_started)")
    assert row[:3] == (order.pending.target, order.error_type, ME)
    assert 1.4 < row[3] < 2.5
    assert get(cursor, free.id, "state") in states.PENDING
    # The error that the attempt ended with is not lost.
    cursor.execute("SELECT outcome FROM queued_task_attempts WHERE queued_task_id = %s", (ordered.id,))
    assert cursor.fetchall() == ([] if kind == outcome.INTERRUPTED else [(kind,)])


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        (outcome.RETURNED, "done"),
        (outcome.RAISED, "failed"),
        (outcome.ASKED_FOR_CANCEL, "cancelled"),
        (outcome.STOPPED, "stopped"),
    ],
)
def test_an_attempt_that_ends_the_task_ends_it_as_it_ended(cursor: Any, kind: str, state: str) -> None:
    task = claimed(cursor)
    give(cursor, orders.CANCEL, task.id)
    store.settle(cursor, [ending(task, kind, retries=0)], worker=ME)
    assert get(cursor, task.id, "state") == state


def test_stopped_is_stronger_than_cancelled(cursor: Any) -> None:
    task = claimed(cursor)
    for order in (orders.CANCEL, orders.STOP, orders.CANCEL):
        give(cursor, order, task.id)
    assert [each.order for each in control.standing_orders(cursor, worker=ME)] == [orders.STOP]
    store.settle(cursor, [ending(task, outcome.INTERRUPTED)], worker=ME)
    assert get(cursor, task.id, "state") == "stopped"


def test_what_a_worker_disowns_or_a_dump_brings_does_not_run_again_either(cursor: Any) -> None:
    cancelled, stopped, free = (put(cursor, "doing") for _ in range(3))
    give(cursor, orders.CANCEL, cancelled)
    give(cursor, orders.STOP, stopped)
    assert store.disown(cursor, worker=ME, known=[]) == 3
    assert [get(cursor, each, "state") for each in (cancelled, stopped, free)] == ["cancelled", "stopped", "enqueued"]

    cancelled, stopped, free = (put(cursor, "doing") for _ in range(3))
    give(cursor, orders.CANCEL, cancelled)
    give(cursor, orders.STOP, stopped)
    store.adopt(cursor)
    assert [get(cursor, each, "state") for each in (cancelled, stopped, free)] == ["cancelled", "stopped", "enqueued"]


def test_a_requeue_forgets_the_orders(cursor: Any) -> None:
    task = claimed(cursor)
    give(cursor, orders.STOP, task.id)
    give(cursor, orders.CANCEL, task.id)
    store.settle(cursor, [ending(task, outcome.INTERRUPTED)], worker=ME)
    control.requeue(cursor, Requeue(states=states.FINAL, ids=[task.id]))
    (again,) = store.claim(cursor, worker=ME, limit=1)
    assert control.standing_orders(cursor, worker=ME) == []
    store.settle(cursor, [ending(again, outcome.INTERRUPTED)], worker=ME)
    assert get(cursor, task.id, "state") == "enqueued"


def test_a_worker_sees_the_orders_for_its_own_tasks(cursor: Any) -> None:
    mine, theirs, unordered = put(cursor, "doing", attempt=3), put(cursor, "doing", claimed_by=8), put(cursor, "doing")
    give(cursor, orders.CANCEL, mine, theirs)
    assert control.standing_orders(cursor, worker=ME) == [(mine, 3, orders.CANCEL)]
    assert get(cursor, unordered, "cancel_requested") is None


@pytest.mark.parametrize("is_analysed", [False, True], ids=["never analysed", "analysed"])
def test_looking_for_orders_reads_an_index_of_its_own(cursor: Any, is_analysed: bool) -> None:
    cursor.execute(
        "INSERT INTO queued_tasks (function, state, claimed_by, attempt, cancel_requested)"
        " SELECT 'a:b', 'doing', n % 7, 1, CASE WHEN n = 1 THEN now() END FROM generate_series(1, 20000) AS n"
    )
    if is_analysed:
        cursor.execute("ANALYZE queued_tasks")
    cursor.execute(f"EXPLAIN {control.STANDING_ORDERS.sql}", {"worker": 3})
    assert "queued_tasks_ordered" in str(cursor.fetchall())


@pytest.mark.parametrize(
    ("which", "fit"),
    [
        ({}, "a b c d"),
        ({"name": "one"}, "a"),
        ({"channel": "mail"}, "b"),
        ({"since": 60.0}, "a b c"),
        ({"states": ("doing",)}, "d"),
        ({"states": ("waiting", "doing")}, "c d"),
        ({"limit": 2}, "a b"),
        ({"name": "one", "channel": "mail"}, ""),
        ({"ids": []}, ""),
    ],
)
def test_what_fits_is_found_by_every_condition_in_the_order_in_which_it_was_added(
    cursor: Any, which: dict[str, Any], fit: str
) -> None:
    made = {
        "a": put(cursor, name="one"),
        "b": put(cursor, channel="mail"),
        "c": put(cursor, "waiting"),
        "d": put(cursor, "doing"),
    }
    put(cursor, "done", name="one", channel="mail")
    cursor.execute("UPDATE queued_tasks SET date_created = now() - interval '1 hour' WHERE id = %s", (made["d"],))
    wanted = Orderable(**which)
    expected = [made[name] for name in fit.split()]
    assert control.orderable_ids(cursor, wanted) == expected
    assert [row.id for row in reads.orderable_tasks(cursor, wanted)] == expected


# ------------------------------------------------------------------------------------------------------- announcements


@pytest.mark.parametrize("kind", [kind for kind in outcome.KINDS if kind != outcome.FINISHED])
@pytest.mark.parametrize("is_last", [True, False])
def test_an_end_is_announced_once_at_the_commit_to_whom_waits_and_to_nobody_else(
    connect: Callable[..., Any], cursor: Any, listener: Any, kind: str, is_last: bool
) -> None:
    awaited, other = claimed(cursor), claimed(cursor)
    assert control.await_end(cursor, awaited.id, notify_channel=CHANNEL)
    chances = 0 if is_last else 9
    settling = connect(autocommit=False)
    endings = [ending(task, kind, retries=chances, max_lost=chances) for task in (awaited, other)]
    store.settle(settling.cursor(), endings, worker=ME)
    assert heard(listener) == []
    settling.commit()
    is_final = get(cursor, awaited.id, "state") in states.FINAL
    assert heard(listener) == ([(DONE_CHANNEL, awaited.id)] if is_final else [])
    assert get(cursor, awaited.id, "is_awaited") is not is_final


@pytest.mark.parametrize("order", BOTH)
def test_the_end_by_an_order_is_announced(cursor: Any, listener: Any, order: Order) -> None:
    pending, running = put(cursor), put(cursor)
    (task, *_) = [each for each in store.claim(cursor, worker=ME, limit=2) if each.id == running]
    cursor.execute("UPDATE queued_tasks SET state = 'enqueued', claimed_by = NULL WHERE id = %s", (pending,))
    for each in (pending, running):
        control.await_end(cursor, each, notify_channel=None)
    give(cursor, order, pending, running)
    assert (DONE_CHANNEL, pending) in heard(listener)
    store.settle(cursor, [ending(task, outcome.RAISED)], worker=ME)
    assert heard(listener) == [(DONE_CHANNEL, running)]


def test_a_cleared_task_is_announced(cursor: Any, listener: Any) -> None:
    task_id = put(cursor)
    control.await_end(cursor, task_id, notify_channel=None)
    control.clear_pending(cursor, limit=10)
    assert heard(listener) == [(DONE_CHANNEL, task_id)]


def test_every_statement_that_ends_a_task_announces_it() -> None:
    ends = [
        statement
        for statement in all_statements()
        if re.search(rf"UPDATE queued_tasks SET state='({'|'.join(states.FINAL)})'", statement.sql)
    ]
    assert len(ends) >= 10
    assert [each.name for each in ends if DONE_CHANNEL not in each.sql] == []


@pytest.mark.parametrize("state", states.STATES)
def test_only_what_has_not_ended_can_be_awaited_and_workers_that_passed_over_it_are_woken(
    cursor: Any, listener: Any, state: str
) -> None:
    task_id = put(cursor, state)
    assert control.await_end(cursor, task_id, notify_channel=CHANNEL) is (state not in states.FINAL)
    assert get(cursor, task_id, "is_awaited") is (state not in states.FINAL)
    # Its row was locked for a moment, and a claim passes over what is locked.
    assert heard(listener) == ([(CHANNEL, "")] if state == "enqueued" else [])


def test_settling_and_beginning_to_wait_at_the_same_instant_300_times(
    connect: Callable[..., Any], cursor: Any, listener: Any
) -> None:
    connection, waiter = connect(), connect()
    head_start = 0.0  # of the settling, in seconds; led to where either may be first, however long a settling takes
    seen = set()

    def settle(task: Task) -> None:
        start.wait()
        store.settle(connection.cursor(), [ending(task, outcome.RETURNED)], worker=ME)

    start = threading.Barrier(2, timeout=20)
    with ThreadPoolExecutor(1) as beside:
        for _ in range(300):
            task = claimed(cursor)
            settling = beside.submit(settle, task)
            start.wait()
            time.sleep(head_start)
            is_to_be_announced = control.await_end(waiter.cursor(), task.id, notify_channel=CHANNEL)
            settling.result(20)
            seen.add(is_to_be_announced)
            head_start = max(0.0, head_start + (5e-5 if is_to_be_announced else -5e-5))
            assert heard(listener) == ([(DONE_CHANNEL, task.id)] if is_to_be_announced else [])
    assert seen == {True, False}, "the trial has tried nothing"
