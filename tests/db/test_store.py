"""Every statement that writes, on the real tables: what it takes, what it leaves alone, and whom it waits for."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from helpers import wait_until
from queuedtask.db import adding, control, moves, reads, schema, store, workers
from queuedtask.db.control import Requeue
from queuedtask.db.store import Ending, LogLine, Progress
from queuedtask.model import outcome, states
from queuedtask.model.outcome import Outcome
from queuedtask.model.task import Task, TaskSpec, new_id

ME, OTHER = 7, 8
CHANNEL = "queue_new_task"


@pytest.fixture
def other(connect: Callable[..., Any]) -> Any:
    """Give somebody else's connection, with a transaction that the test ends."""
    return connect(autocommit=False)


def put(cursor: Any, state: str = "enqueued", **columns: Any) -> str:
    """Insert a row by hand and return its id; ``ago`` columns are given as seconds before now."""
    values: dict[str, Any] = {"function": "a:b", "state": state}
    if state in states.FINAL:
        values["date_done"] = datetime.now(UTC)
    if state == "doing":
        values |= {"claimed_by": ME, "attempt": 1}
    values |= columns
    names = ", ".join(values)
    cursor.execute(
        f"INSERT INTO queued_tasks ({names}) VALUES ({', '.join(['%s'] * len(values))}) RETURNING id::text",
        list(values.values()),
    )
    return str(cursor.fetchone()[0])


def get(cursor: Any, task_id: str, *columns: str) -> Any:
    cursor.execute(f"SELECT {', '.join(columns) or '*'} FROM queued_tasks WHERE id = %s", (task_id,))
    row = cursor.fetchone()
    return row[0] if len(columns) == 1 else row


def ids(tasks: Sequence[Task]) -> list[str]:
    return [task.id for task in tasks]


def claimed(cursor: Any, **columns: Any) -> Task:
    """Add one task and claim it."""
    task_id = put(cursor, **columns)
    (task,) = store.claim(cursor, worker=ME, limit=1)
    assert task.id == task_id
    return task


def ending(
    task: Task,
    kind: str = outcome.RETURNED,
    *,
    retries: int = 0,
    max_lost: int = 3,
    context: str | None = None,
    **more: Any,
) -> Ending:
    if kind == outcome.RETURNED:
        more = {"result": "1"} | more
    elif kind != outcome.INTERRUPTED:
        more = {"error_type": "E", "error_message": "m", "error_traceback": "t"} | more
    decision = outcome.decide(task, Outcome(kind, **more), max_retries=retries, max_lost=max_lost)
    return Ending(task, decision, 1.5, context)


# --------------------------------------------------------------------------------------------------------------- add


def test_an_added_task_is_the_row_that_was_asked_for(cursor: Any) -> None:
    spec = TaskSpec(
        id=new_id(),
        name="n",
        function="a:b",
        args='[1, "ü"]',
        kwargs='{"k": null}',
        channel="mail",
        priority=-3,
        timeout=2.5,
        max_retries=0,
        context='{"c": 1}',
        meta='{"m": 2}',
    )
    adding.add(cursor, spec, notify_channel=None)
    names = ("name", "state", "function", "args", "kwargs", "channel", "priority", "timeout", "max_retries")
    assert get(cursor, spec.id, *names, "context", "meta", "date_scheduled") == (
        "n",
        "enqueued",
        "a:b",
        [1, "ü"],
        {"k": None},
        "mail",
        -3,
        2.5,
        0,
        {"c": 1},
        {"m": 2},
        None,
    )


def test_a_task_that_is_added_without_its_defaults_is_the_one_that_is_added_with_all_of_them(cursor: Any) -> None:
    everything = [c.name for c in schema.tasks.c if not c.name.startswith("date_") and c.name != "id"]
    for given in {}, {"priority": 3, "args": "[1]"}, {"delay": 60.0, "channel": "mail"}, {"pickled_function": "AAA="}:
        short, long = (TaskSpec(new_id(), "n", "a:b", **given) for _ in range(2))
        adding.add(cursor, short, notify_channel=None)
        adding.ADD(cursor, **long._asdict())
        assert get(cursor, short.id, *everything) == get(cursor, long.id, *everything)


def test_a_task_with_a_time_to_come_waits_and_one_whose_time_has_passed_is_enqueued(cursor: Any) -> None:
    def added(**when: Any) -> Any:
        spec = TaskSpec(new_id(), "n", "a:b", **when)
        adding.add(cursor, spec, notify_channel=None)
        return get(cursor, spec.id, "state", "round(extract(epoch FROM date_scheduled - date_created))::int AS seconds")

    def at(seconds: int) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=seconds)

    assert added(delay=60.0) == ("waiting", 60)
    assert added(run_at=at(600)) == ("waiting", 600)
    assert added(run_at=at(-600)) == ("enqueued", -600)
    assert added(delay=0.0) == ("enqueued", 0)


def listen(connection: Any, *channels: str) -> Callable[[], list[str]]:
    """Return a function that gives the channels of all that was heard up to a sentinel sent now."""
    numbers = itertools.count()
    with connection.cursor() as cursor:
        for channel in [*channels, "sentinel"]:
            cursor.execute(f"LISTEN {channel}")

    def heard() -> list[str]:
        mark = str(next(numbers))
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify('sentinel', %s)", (mark,))

        def has_arrived() -> bool:
            connection.poll()
            return any((n.channel, n.payload) == ("sentinel", mark) for n in connection.notifies)

        wait_until(has_arrived)
        found = [n for n in connection.notifies if n.channel != "sentinel"]
        connection.notifies.clear()
        assert all(n.payload == "" for n in found)
        return [n.channel for n in found]

    return heard


def test_a_notification_is_heard_once_for_a_transaction_and_only_after_its_commit(
    connect: Callable[..., Any], other: Any
) -> None:
    heard = listen(connect(), CHANNEL)
    with other.cursor() as cursor:
        for _ in range(3):
            adding.add(cursor, TaskSpec(new_id(), "n", "a:b"), notify_channel=CHANNEL)
        moves.notify(cursor, CHANNEL)
    assert heard() == []
    other.commit()
    assert heard() == [CHANNEL]


def test_nothing_is_heard_of_a_transaction_that_is_rolled_back(connect: Callable[..., Any], other: Any) -> None:
    heard = listen(connect(), CHANNEL)
    with other.cursor() as cursor:
        adding.add(cursor, TaskSpec(new_id(), "n", "a:b"), notify_channel=CHANNEL)
    other.rollback()
    assert heard() == []
    assert execute_in(other, "SELECT count(*) FROM queued_tasks") == [(0,)]


def test_nothing_is_heard_when_no_channel_is_given(connect: Callable[..., Any], cursor: Any) -> None:
    heard = listen(connect(), CHANNEL)
    adding.add(cursor, TaskSpec(new_id(), "n", "a:b"), notify_channel=None)
    assert heard() == []


def test_the_notification_goes_to_the_channel_that_is_named_whatever_is_in_the_name(
    connect: Callable[..., Any], cursor: Any
) -> None:
    heard = listen(connect(), CHANNEL, '"Odd ""name; --"')
    adding.add(cursor, TaskSpec(new_id(), "n", "a:b"), notify_channel='Odd "name; --')
    assert heard() == ['Odd "name; --']


def execute_in(connection: Any, sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


# ------------------------------------------------------------------------------------------------------------- claim


def test_the_larger_priority_is_claimed_first_and_then_what_was_enqueued_first(cursor: Any) -> None:
    def at(minute: int) -> datetime:
        return datetime(2024, 1, 1, 8, minute, tzinfo=UTC)

    late = put(cursor, priority=5, date_enqueued=at(9))
    low = put(cursor, priority=-1, date_enqueued=at(0))
    early = put(cursor, priority=5, date_enqueued=at(1))
    usual = put(cursor, priority=0, date_enqueued=at(5))
    high = put(cursor, priority=9, date_enqueued=at(30))

    assert ids(store.claim(cursor, worker=ME, limit=2)) == [high, early]
    assert ids(store.claim(cursor, worker=ME, limit=10)) == [late, usual, low]
    assert store.claim(cursor, worker=ME, limit=10) == []


def test_a_batch_comes_in_its_order_however_the_update_returns_it(cursor: Any) -> None:
    made = [
        put(cursor, priority=n % 7, date_enqueued=datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=n % 11))
        for n in range(200)
    ]
    got = ids(store.claim(cursor, worker=ME, limit=200))
    key = {each: (-(n % 7), n % 11) for n, each in enumerate(made)}
    assert [key[each] for each in got] == sorted(key.values())


def test_a_claim_brings_the_row_frozen_with_its_json_as_text(cursor: Any) -> None:
    task_id = put(
        cursor,
        name="n",
        args=json.dumps([1, "ü"]),
        kwargs=json.dumps({"k": 1}),
        context=json.dumps({"c": 2}),
        attempt=4,
        failures=2,
        max_retries=9,
        timeout=1.5,
        lost_count=1,
        date_started=datetime.now(UTC),
    )
    before = time.monotonic()
    (task,) = store.claim(cursor, worker=ME, limit=1)
    assert task.eligible_at is not None
    assert before - 60 < task.eligible_at <= time.monotonic()
    task = task._replace(eligible_at=None)
    assert task == Task(task_id, "n", "a:b", '[1, "ü"]', '{"k": 1}', '{"c": 2}', 5, 2, 9, 1.5, 1)
    assert get(cursor, task_id, "state", "claimed_by", "attempt", "date_started") == ("doing", ME, 5, None)


def test_a_limit_of_zero_claims_nothing(cursor: Any) -> None:
    put(cursor)
    assert store.claim(cursor, worker=ME, limit=0) == []


@pytest.mark.parametrize("state", [state for state in states.STATES if state != "enqueued"])
def test_nothing_but_the_enqueued_is_claimed(cursor: Any, state: str) -> None:
    put(cursor, state)
    assert store.claim(cursor, worker=ME, limit=9) == []


def test_a_function_alone_inserted_by_hand_is_a_task_that_is_claimed(cursor: Any) -> None:
    cursor.execute("INSERT INTO queued_tasks (function) VALUES ('shop:send')")
    (task,) = store.claim(cursor, worker=ME, limit=1)
    assert (task.function, task.args, task.kwargs, task.attempt) == ("shop:send", "[]", "{}", 1)
    assert (task.name, task.context, task.timeout, task.max_retries, task.lost_count) == ("", None, None, None, 0)


def test_a_locked_row_is_passed_over_and_claimed_when_it_is_free(cursor: Any, other: Any) -> None:
    locked, free = put(cursor, priority=1), put(cursor)
    execute_in(other, f"SELECT 1 FROM queued_tasks WHERE id = '{locked}' FOR NO KEY UPDATE")
    assert ids(store.claim(cursor, worker=ME, limit=2)) == [free]
    other.rollback()
    assert ids(store.claim(cursor, worker=ME, limit=2)) == [locked]


def test_a_child_in_an_open_transaction_neither_hides_nor_blocks_its_parent(cursor: Any, other: Any) -> None:
    parent = put(cursor)
    with other.cursor() as theirs:
        child = put(theirs, "waiting", parent_task=parent, pending_parents=1)
    (task,) = store.claim(cursor, worker=ME, limit=2)
    assert task.id == parent
    store.write_progress(cursor, [Progress(task, 1.0, '{"a": 1}')], worker=ME)
    assert store.settle(cursor, [ending(task)], worker=ME).accepted == {task.key}
    other.commit()
    assert get(cursor, child, "parent_task") == parent


def test_claimers_at_the_same_time_never_share_a_row_and_leave_none(connect: Callable[..., Any], cursor: Any) -> None:
    cursor.execute("INSERT INTO queued_tasks (function) SELECT 'a:b' FROM generate_series(1, 600)")
    found: list[str] = []
    begin = threading.Barrier(4)

    def work(worker: int, connection: Any) -> None:
        begin.wait()
        with connection.cursor() as mine:
            while got := store.claim(mine, worker=worker, limit=7):
                assert len(got) <= 7
                found.extend(ids(got))

    threads = [threading.Thread(target=work, args=(n, connect())) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(set(found)) == 600
    cursor.execute("SELECT state, attempt, count(*), count(DISTINCT claimed_by) FROM queued_tasks GROUP BY 1, 2")
    ((state, attempt, count, claimers),) = cursor.fetchall()
    assert (state, attempt, count) == ("doing", 1, 600)
    assert claimers >= 2


# ------------------------------------------------------------------------------------------------------------ settle


def test_a_mixed_batch_is_settled_at_once_each_as_its_decision_says(cursor: Any) -> None:
    kinds = {
        "done": ending(claimed(cursor), result='{"rows": 3}', context='{"p": 100}'),
        "failed": ending(claimed(cursor, failures=2), outcome.RAISED),
        "waiting": ending(claimed(cursor), outcome.RAISED, retries=1),
        "cancelled": ending(claimed(cursor), outcome.ASKED_FOR_CANCEL),
        "enqueued": ending(claimed(cursor, failures=1), outcome.INTERRUPTED, context='{"half": 1}'),
        "rescued": ending(claimed(cursor, failures=1, lost_count=1), outcome.LOST, context='{"half": 2}'),
        "lost": ending(claimed(cursor, failures=1, lost_count=2), outcome.LOST),
    }
    assert store.settle(cursor, list(kinds.values()), worker=ME).accepted == {each.task.key for each in kinds.values()}

    def row(end: str) -> Any:
        names = ("state", "claimed_by", "failures", "lost_count", "result")
        names += ("error_type", "error_message", "error_traceback")
        return get(cursor, kinds[end].task.id, *names, "context", "attempt")

    assert row("done") == ("done", ME, 0, 0, {"rows": 3}, None, None, None, {"p": 100}, 1)
    assert row("failed") == ("failed", ME, 3, 0, None, "E", "m", "t", None, 1)
    assert row("waiting") == ("waiting", None, 1, 0, None, "E", "m", "t", None, 1)
    assert row("cancelled") == ("cancelled", ME, 0, 0, None, "E", "m", "t", None, 1)
    assert row("enqueued") == ("enqueued", None, 1, 0, None, None, None, None, {"half": 1}, 1)
    assert row("rescued") == ("enqueued", None, 1, 2, None, None, None, None, {"half": 2}, 1)
    assert row("lost") == ("failed", ME, 1, 3, None, "E", "m", "t", None, 1)
    for end in ("done", "failed", "cancelled", "lost"):
        started, done = get(cursor, kinds[end].task.id, "date_started", "date_done")
        assert 1.4 < (done - started).total_seconds() < 1.6
    for end in ("waiting", "enqueued", "rescued"):
        assert get(cursor, kinds[end].task.id, "date_started", "date_done") == (None, None)


def test_a_retried_task_is_due_after_its_delay(cursor: Any) -> None:
    task = claimed(cursor)
    store.settle(cursor, [ending(task, outcome.ASKED_FOR_RETRY, retries=3, delay=90.0)], worker=ME)
    left = get(cursor, task.id, "extract(epoch FROM date_scheduled - clock_timestamp())::float")
    assert 85 < left <= 90


def test_a_task_that_is_done_after_a_failure_has_no_error_any_more(cursor: Any) -> None:
    task = claimed(cursor, error_type="Old", error_message="old", error_traceback="old", failures=1)
    store.settle(cursor, [ending(task)], worker=ME)
    assert get(cursor, task.id, "error_type", "error_message", "error_traceback", "failures") == (None, None, None, 1)


def test_a_context_that_did_not_change_is_left_as_it_is(cursor: Any) -> None:
    task = claimed(cursor, context='{"kept": true}')
    store.settle(cursor, [ending(task, context=None)], worker=ME)
    assert get(cursor, task.id, "context") == {"kept": True}


def test_an_end_whose_start_is_not_known_keeps_the_start_that_is_in_the_row(cursor: Any) -> None:
    task = claimed(cursor)
    store.write_progress(cursor, [Progress(task, 60.0, None)], worker=ME)
    started = get(cursor, task.id, "date_started")
    store.settle(cursor, [ending(task, outcome.LOST, max_lost=1)._replace(seconds=None)], worker=ME)
    assert get(cursor, task.id, "state", "date_started") == ("failed", started)


@pytest.mark.parametrize(("retries", "state"), [(0, "failed"), (9, "waiting")])
def test_a_timeout_that_took_its_process_along_counts_as_a_failure_and_as_a_loss(
    cursor: Any, retries: int, state: str
) -> None:
    killed, not_killed = claimed(cursor, lost_count=4), claimed(cursor, lost_count=4)
    endings = [
        ending(killed, outcome.TIMED_OUT, retries=retries, exit_signal="SIGKILL"),
        ending(not_killed, outcome.TIMED_OUT, retries=retries),
    ]
    store.settle(cursor, endings, worker=ME)
    assert get(cursor, killed.id, "state", "failures", "lost_count") == (state, 1, 5)
    assert get(cursor, not_killed.id, "state", "failures", "lost_count") == (state, 1, 4)


def test_an_attempt_whose_code_never_began_has_no_start(cursor: Any) -> None:
    task = claimed(cursor)
    store.settle(cursor, [ending(task, outcome.RAISED)._replace(seconds=None)], worker=ME)
    assert get(cursor, task.id, "state", "date_started") == ("failed", None)
    cursor.execute("SELECT date_started FROM queued_task_attempts")
    assert cursor.fetchall() == [(None,)]


REFUSED = {
    "a stale attempt": "UPDATE queued_tasks SET attempt = attempt + 1 WHERE id = %s",
    "another owner": "UPDATE queued_tasks SET claimed_by = 8 WHERE id = %s",
    "nobody's any more": "UPDATE queued_tasks SET state = 'enqueued', claimed_by = NULL WHERE id = %s",
    "ended meanwhile": "UPDATE queued_tasks SET state = 'stopped', date_done = now() WHERE id = %s",
}
# edge: how an attempt ends that takes it, whether that leaves a row
ENDS: dict[str, tuple[dict[str, Any], bool]] = {
    "finish": ({"kind": outcome.RETURNED}, False),
    "fail": ({"kind": outcome.RAISED}, True),
    "retry": ({"kind": outcome.RAISED, "retries": 9}, True),
    "call_off": ({"kind": outcome.ASKED_FOR_CANCEL}, False),
    "hand_back": ({"kind": outcome.INTERRUPTED}, False),
    "rescue": ({"kind": outcome.LOST}, True),
    "lose": ({"kind": outcome.LOST, "max_lost": 1}, True),
}


@pytest.mark.parametrize("meanwhile", REFUSED)
@pytest.mark.parametrize("end", ENDS)
def test_a_late_or_stale_ending_is_refused_and_changes_nothing(cursor: Any, meanwhile: str, end: str) -> None:
    how, leaves_a_row = ENDS[end]
    stale, good = claimed(cursor), claimed(cursor)
    cursor.execute(REFUSED[meanwhile], (stale.id,))
    before = get(cursor, stale.id)

    endings = [ending(task, **how, context='{"x": 1}') for task in (stale, good)]
    assert [each.decision.edge.name for each in endings] == [end] * 2
    assert store.settle(cursor, endings, worker=ME).accepted == {good.key}

    assert get(cursor, stale.id) == before
    assert get(cursor, good.id, "state") == endings[1].decision.edge.target
    cursor.execute("SELECT queued_task_id::text FROM queued_task_attempts")
    assert cursor.fetchall() == ([(good.id,)] if leaves_a_row else [])


@pytest.mark.parametrize("end", ENDS)
def test_settling_twice_is_refused_the_second_time(cursor: Any, end: str) -> None:
    how, leaves_a_row = ENDS[end]
    task = claimed(cursor)
    once = ending(task, **how)
    assert store.settle(cursor, [once], worker=ME).accepted == {task.key}
    before = get(cursor, task.id)
    assert store.settle(cursor, [once, ending(task, outcome.RAISED)], worker=ME).accepted == set()
    assert get(cursor, task.id) == before
    cursor.execute("SELECT count(*) FROM queued_task_attempts")
    assert cursor.fetchone() == (int(leaves_a_row),)


def test_a_deleted_task_s_ending_is_refused(cursor: Any) -> None:
    task = claimed(cursor)
    cursor.execute("DELETE FROM queued_tasks")
    assert store.settle(cursor, [ending(task, outcome.RAISED)], worker=ME).accepted == set()


def test_settling_nothing_is_nothing(cursor: Any) -> None:
    assert store.settle(cursor, [], worker=ME).accepted == set()


@pytest.mark.parametrize(
    ("kind", "leaves_a_row"),
    [
        (outcome.RETURNED, False),
        (outcome.RAISED, True),
        (outcome.TIMED_OUT, True),
        (outcome.ASKED_FOR_RETRY, True),
        (outcome.ASKED_FOR_CANCEL, False),
        (outcome.INTERRUPTED, False),
        (outcome.CANCELLED, False),
        (outcome.STOPPED, False),
        (outcome.LOST, True),
    ],
)
@pytest.mark.parametrize("chances", [0, 3])
def test_a_failed_attempt_leaves_a_row_of_its_own(cursor: Any, kind: str, leaves_a_row: bool, chances: int) -> None:
    task = claimed(cursor, attempt=4)
    store.settle(cursor, [ending(task, kind, retries=chances, max_lost=chances)], worker=ME)
    cursor.execute(
        "SELECT queued_task_id::text, attempt, outcome, error_type, error_message, error_traceback, worker,"
        " exit_signal, memory_bytes,"
        " round(extract(epoch FROM date_done - date_started), 1)::float FROM queued_task_attempts"
    )
    assert cursor.fetchall() == ([(task.id, 5, kind, "E", "m", "t", ME, None, None, 1.5)] if leaves_a_row else [])


@pytest.mark.parametrize("kind", [outcome.LOST, outcome.TIMED_OUT])
@pytest.mark.parametrize("chances", [0, 3])
def test_how_its_process_ended_stands_in_an_attempt_s_row(cursor: Any, kind: str, chances: int) -> None:
    dead, alive = claimed(cursor), claimed(cursor)
    known = {"exit_signal": "SIGSEGV", "memory_bytes": 5 * 2**32}
    endings = [
        ending(dead, kind, retries=chances, max_lost=chances, **known),
        ending(alive, outcome.RAISED, retries=chances),
    ]
    store.settle(cursor, endings, worker=ME)
    cursor.execute("SELECT queued_task_id::text, outcome, exit_signal, memory_bytes FROM queued_task_attempts")
    assert set(cursor.fetchall()) == {(dead.id, kind, "SIGSEGV", 5 * 2**32), (alive.id, "raised", None, None)}


def test_every_edge_of_an_outcome_has_its_statement() -> None:
    task = Task(new_id(), "", "a:b", "[]", "{}", None, 1, 0, None, None)
    edges = {
        outcome.decide(task, Outcome(kind), max_retries=n, max_lost=n).edge for kind in outcome.KINDS for n in (0, 9)
    }
    assert edges == set(store.SETTLE)


# ----------------------------------------------------------------------------------------- while an attempt is running


def test_progress_writes_the_context_and_the_start_once(cursor: Any) -> None:
    task = claimed(cursor, context='{"old": 1}')
    store.write_progress(cursor, [Progress(task, 10.0, None)], worker=ME)
    context, started = get(cursor, task.id, "context", "date_started")
    assert context == {"old": 1}
    assert 9 < (datetime.now(UTC) - started).total_seconds() < 15

    store.write_progress(cursor, [Progress(task, 1.0, '{"new": 2}')], worker=ME)
    assert get(cursor, task.id, "context", "date_started", "state") == ({"new": 2}, started, "doing")


@pytest.mark.parametrize("meanwhile", REFUSED)
def test_progress_of_an_attempt_that_is_over_is_not_written(cursor: Any, meanwhile: str) -> None:
    stale, good = claimed(cursor), claimed(cursor)
    cursor.execute(REFUSED[meanwhile], (stale.id,))
    before = get(cursor, stale.id)
    running = [Progress(task, 1.0, '{"x": 1}') for task in (stale, good)]
    assert store.write_progress(cursor, running, worker=ME) == {good.key}
    assert get(cursor, stale.id) == before
    assert get(cursor, good.id, "context") == {"x": 1}


def messages(cursor: Any) -> list[str]:
    cursor.execute("SELECT message FROM queued_task_logs ORDER BY id")
    return [row[0] for row in cursor.fetchall()]


def test_log_lines_are_written_in_their_order_and_those_of_deleted_tasks_are_left_out(cursor: Any) -> None:
    here, there, gone = claimed(cursor, attempt=1), claimed(cursor), new_id()
    store.add_logs(
        cursor,
        [
            LogLine(here.id, 2, "info", "shop", "first", 20.0),
            LogLine(gone, 1, "info", "shop", "nobody's", 10.0),
            LogLine(there.id, 1, "error", "shop.mail", "second % %s", 10.0),
            LogLine(here.id, 2, "debug", "shop", "", 0.0),
        ],
        worker=ME,
    )
    cursor.execute(
        "SELECT queued_task_id::text, attempt, type, name, message,"
        " round(extract(epoch FROM clock_timestamp() - date_created) / 10)::int FROM queued_task_logs ORDER BY id"
    )
    assert cursor.fetchall() == [
        (here.id, 2, "info", "shop", "first", 2),
        (there.id, 1, "error", "shop.mail", "second % %s", 1),
        (here.id, 2, "debug", "shop", "", 0),
    ]


@pytest.mark.parametrize("meanwhile", REFUSED)
def test_log_lines_of_an_attempt_that_is_over_are_not_written(cursor: Any, meanwhile: str) -> None:
    stale, good = claimed(cursor), claimed(cursor)
    cursor.execute(REFUSED[meanwhile], (stale.id,))
    lines = [LogLine(task.id, 1, "info", "n", name, 0.0) for task, name in ((stale, "late"), (good, "in time"))]
    store.add_logs(cursor, lines, worker=ME)
    assert messages(cursor) == ["in time"]


def test_log_lines_of_another_attempt_than_the_one_that_runs_are_not_written(cursor: Any) -> None:
    task = claimed(cursor, attempt=4)
    store.add_logs(cursor, [LogLine(task.id, n, "info", "n", f"attempt {n}", 0.0) for n in (4, 5, 6)], worker=ME)
    assert messages(cursor) == ["attempt 5"]


def test_an_attempt_that_failed_takes_no_more_log_lines_one_that_finished_itself_may(cursor: Any) -> None:
    failed, done = claimed(cursor), claimed(cursor)
    store.settle(cursor, [ending(failed, outcome.RAISED), ending(done)], worker=ME)
    store.add_logs(cursor, [LogLine(failed.id, 1, "info", "n", "too late", 0.0)], worker=ME)
    store.add_logs(cursor, [LogLine(done.id, 1, "info", "n", "another's", 0.0)], worker=OTHER)
    store.add_logs(cursor, [LogLine(done.id, 1, "info", "n", "after its transaction", 0.0)], worker=ME)
    assert messages(cursor) == ["after its transaction"]


def test_a_task_s_logs_and_attempts_go_with_it(cursor: Any) -> None:
    task = claimed(cursor)
    store.add_logs(cursor, [LogLine(task.id, 1, "info", "n", "m", 0.0)], worker=ME)
    store.settle(cursor, [ending(task, outcome.RAISED)], worker=ME)
    cursor.execute("DELETE FROM queued_tasks")
    cursor.execute("SELECT (SELECT count(*) FROM queued_task_logs), (SELECT count(*) FROM queued_task_attempts)")
    assert cursor.fetchone() == (0, 0)


# ----------------------------------------------------------------------------------------------------- lost connection


def test_disowning_gives_back_what_this_worker_does_not_know(cursor: Any) -> None:
    known, unknown = put(cursor, "doing"), put(cursor, "doing", failures=1)
    others, done = put(cursor, "doing", claimed_by=OTHER), put(cursor, "done", claimed_by=ME)
    assert store.disown(cursor, worker=ME, known=[known]) == 1
    assert get(cursor, unknown, "state", "claimed_by", "failures", "attempt") == ("enqueued", None, 1, 1)
    assert [get(cursor, each, "state") for each in (known, others, done)] == ["doing", "doing", "done"]


def test_a_worker_that_knows_nothing_gives_everything_back(cursor: Any) -> None:
    put(cursor, "doing")
    put(cursor, "doing")
    assert store.disown(cursor, worker=ME, known=[]) == 2
    assert store.disown(cursor, worker=ME, known=[]) == 0


# ------------------------------------------------------------------------------------------------------------ rescue


def test_what_a_worker_has_claimed_is_locked_in_the_order_of_the_ids(cursor: Any) -> None:
    made = sorted(
        put(cursor, "doing", id=new_id(), args='[1, "ü"]', context='{"c": 2}', failures=1, lost_count=2)
        for _ in range(5)
    )
    for state in states.STATES:
        put(cursor, state, claimed_by=OTHER)
        if state != "doing":
            put(cursor, state, claimed_by=ME)
    cursor.execute("UPDATE queued_tasks SET date_started = now() - interval '1 hour' WHERE id = %s", (made[1],))

    found = store.lock_claimed(cursor, worker=ME, limit=9)

    task = Task("", "", "a:b", '[1, "ü"]', "{}", '{"c": 2}', 1, 1, None, None, 2)
    assert [locked for locked, _ in found] == [task._replace(id=each) for each in made]
    assert [age is not None and 3600 <= age < 3700 for _, age in found] == [each == made[1] for each in made]
    assert [each.id for each, _ in store.lock_claimed(cursor, worker=ME, limit=3)] == made[:3]
    assert store.lock_claimed(cursor, worker=99, limit=9) == []


def test_who_rescues_locks_what_he_takes_back_and_passes_over_what_others_have_locked(cursor: Any, other: Any) -> None:
    made = sorted(put(cursor, "doing") for _ in range(3))
    with other.cursor() as theirs:
        assert [task.id for task, _ in store.lock_claimed(theirs, worker=ME, limit=2)] == made[:2]
        # Somebody who adds a child meanwhile does not wait: he locks the parent's key, and no more.
        put(cursor, "waiting", parent_task=made[0])
        assert [task.id for task, _ in store.lock_claimed(cursor, worker=ME, limit=9)] == made[2:]
    other.rollback()
    assert [task.id for task, _ in store.lock_claimed(cursor, worker=ME, limit=9)] == made


# ----------------------------------------------------------------------------------------------------------- release


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def test_what_is_due_and_has_no_parent_left_is_released(cursor: Any) -> None:
    old = datetime(2024, 1, 1, tzinfo=UTC)
    due = put(cursor, "waiting", date_scheduled=soon(-5), date_enqueued=old)
    undated = put(cursor, "waiting")
    early = put(cursor, "waiting", date_scheduled=soon(60))
    child = put(cursor, "waiting", date_scheduled=soon(-5), pending_parents=1)
    undated_child = put(cursor, "waiting", pending_parents=2)

    assert store.release_due(cursor, limit=100) == 2

    assert [get(cursor, each, "state") for each in (due, undated)] == ["enqueued", "enqueued"]
    assert [get(cursor, each, "state") for each in (early, child, undated_child)] == ["waiting"] * 3
    assert get(cursor, due, "date_enqueued") > datetime.now(UTC) - timedelta(minutes=1)
    assert store.release_due(cursor, limit=100) == 0


def test_a_release_is_bounded_and_takes_the_longest_due_first(cursor: Any) -> None:
    made = [put(cursor, "waiting", date_scheduled=soon(-n)) for n in (1, 3, 2)]
    assert store.release_due(cursor, limit=2) == 2
    assert [get(cursor, each, "state") for each in made] == ["waiting", "enqueued", "enqueued"]


def test_a_locked_row_is_not_waited_for_when_releasing(cursor: Any, other: Any) -> None:
    locked, free = put(cursor, "waiting"), put(cursor, "waiting")
    execute_in(other, f"SELECT 1 FROM queued_tasks WHERE id = '{locked}' FOR UPDATE")
    assert store.release_due(cursor, limit=9) == 1
    assert get(cursor, free, "state") == "enqueued"


def test_the_next_due_time_is_that_of_the_first_task_that_waits_for_nothing_else(cursor: Any) -> None:
    assert store.seconds_to_next_due(cursor) is None
    put(cursor, "waiting", date_scheduled=soon(5), pending_parents=1)
    put(cursor, "enqueued", date_scheduled=soon(5))
    assert store.seconds_to_next_due(cursor) is None
    put(cursor, "waiting", date_scheduled=soon(300))
    put(cursor, "waiting", date_scheduled=soon(100))
    left = store.seconds_to_next_due(cursor)
    assert left is not None
    assert 90 < left <= 100
    put(cursor, "waiting", date_scheduled=soon(-50))
    left = store.seconds_to_next_due(cursor)
    assert left is not None
    assert -60 < left <= -50


# ----------------------------------------------------------------------------------------------------------- requeue


def test_a_requeue_starts_a_task_anew_and_keeps_what_it_was(cursor: Any) -> None:
    task_id = put(
        cursor,
        "failed",
        claimed_by=ME,
        attempt=4,
        failures=4,
        lost_count=2,
        requeues=1,
        args="[1]",
        context='{"cursor": 9}',
        error_type="E",
        error_message="m",
        error_traceback="t",
        result="1",
        date_started=soon(-9),
        date_scheduled=soon(-9),
        cancel_requested=soon(-9),
        stop_requested=soon(-9),
    )
    assert control.requeue(cursor, Requeue(ids=[task_id])) == [task_id]
    assert get(cursor, task_id, "state", "attempt", "args", "context", "requeues") == (
        "enqueued",
        4,
        [1],
        {"cursor": 9},
        2,
    )
    assert get(cursor, task_id, "failures", "lost_count", "claimed_by") == (0, 0, None)
    cleared = ("result", "error_type", "error_message", "error_traceback", "date_started", "date_done")
    assert set(get(cursor, task_id, *cleared, "date_scheduled", "cancel_requested", "stop_requested")) == {None}


def test_a_requeue_takes_the_failed_ones_and_no_others(cursor: Any) -> None:
    made = {state: put(cursor, state) for state in states.STATES}
    assert control.requeue(cursor, Requeue()) == [made["failed"]]
    assert get(cursor, made["done"], "requeues") == 0


def test_a_requeue_by_id_takes_any_final_state_and_only_these(cursor: Any) -> None:
    made = {state: put(cursor, state) for state in states.STATES}
    which = Requeue(states=states.FINAL, ids=list(made.values()))
    assert set(control.requeue(cursor, which)) == {made[state] for state in states.FINAL}
    assert control.requeue(cursor, Requeue(ids=[])) == []


def test_a_requeue_is_filtered_by_name_time_and_how_often_it_was_done(cursor: Any) -> None:
    old = put(cursor, "failed", name="mail", date_done=soon(-7200))
    new = put(cursor, "failed", name="mail", date_done=soon(-60))
    often = put(cursor, "failed", name="mail", date_done=soon(-50), requeues=3)
    named = put(cursor, "failed", name="print", date_done=soon(-40))

    def would(**which: Any) -> list[str]:
        cursor.execute("BEGIN")
        found = control.requeue(cursor, Requeue(**which))
        cursor.execute("ROLLBACK")
        return found

    assert sorted(would()) == sorted([old, new, often, named])
    assert sorted(would(name="mail")) == sorted([old, new, often])
    assert sorted(would(since=3600.0)) == sorted([new, often, named])
    assert sorted(would(max_requeues=3)) == sorted([old, new, named])
    assert sorted(would(max_requeues=0)) == []
    assert would(limit=1) == [old]
    assert would(name="mail", since=3600.0, max_requeues=3) == [new]
    assert would(name="mail", ids=[named]) == []


def test_two_requeues_at_once_share_the_work(cursor: Any, other: Any) -> None:
    made = [put(cursor, "failed", date_done=soon(-100 + n)) for n in range(10)]
    with other.cursor() as theirs:
        first = control.requeue(theirs, Requeue(limit=4, max_requeues=3))
    second = control.requeue(cursor, Requeue(max_requeues=3))
    other.commit()
    assert sorted(first) == sorted(made[:4])
    assert sorted(second) == sorted(made[4:])
    assert {get(cursor, each, "requeues") for each in made} == {1}


# ------------------------------------------------------------------------------------------------------------- clear


def test_clearing_deletes_what_is_pending_with_its_descendants(cursor: Any) -> None:
    kept = {state: put(cursor, state) for state in states.STATES if state not in states.PENDING}
    parent = put(cursor)
    child = put(cursor, "waiting", parent_task=parent, pending_parents=1)
    put(cursor, "waiting", parent_task=child, pending_parents=1)
    put(cursor, "waiting", parent_task=kept["doing"], pending_parents=1)
    assert control.clear_pending(cursor, limit=100) == 4
    cursor.execute("SELECT id::text FROM queued_tasks")
    assert {row[0] for row in cursor.fetchall()} == set(kept.values())


def test_clearing_is_bounded(cursor: Any) -> None:
    for _ in range(5):
        put(cursor)
    assert [control.clear_pending(cursor, limit=2) for _ in range(4)] == [2, 2, 1, 0]


def test_clearing_leaves_alone_what_is_being_claimed(cursor: Any, other: Any) -> None:
    put(cursor)
    with other.cursor() as theirs:
        (task,) = store.claim(theirs, worker=ME, limit=1)
    assert control.clear_pending(cursor, limit=9) == 0
    other.commit()
    assert get(cursor, task.id, "state") == "doing"


# ------------------------------------------------------------------------------------------------------------- plans


def plan(cursor: Any, statement: Any, **parameters: Any) -> str:
    class Explain:
        def execute(self, sql: str, given: Any) -> None:
            cursor.execute("EXPLAIN " + sql, given)

    statement(Explain(), **parameters)
    found = "\n".join(row[0] for row in cursor.fetchall())
    assert "Seq Scan on queued_tasks" not in found, found
    return found


@pytest.mark.parametrize("is_analysed", [False, True], ids=["never analysed", "analysed"])
@pytest.mark.parametrize("state", ["enqueued", "waiting", "doing", "done"])
def test_the_worker_s_statements_use_their_indexes(cursor: Any, is_analysed: bool, state: str) -> None:
    cursor.execute(
        "INSERT INTO queued_tasks (function, state, date_scheduled, date_done, priority, claimed_by, attempt)"
        " SELECT 'a:b', %s, now() + n * interval '1 s', CASE WHEN %s = 'done' THEN now() END, n %% 3, n %% 5, 1"
        # Of half as many PostgreSQL 15 would rather read all, and would be right.
        " FROM generate_series(1, 40000) AS n",
        (state, state),
    )
    if is_analysed:
        cursor.execute("ANALYZE queued_tasks")
    batch = [new_id() for _ in range(100)]
    names = (
        "attempts",
        "seconds",
        "contexts",
        "results",
        "delays",
        "error_types",
        "error_messages",
        "error_tracebacks",
        "losts",
    )
    ended = dict.fromkeys(names, [None] * len(batch)) | {"worker": 3, "ids": batch}

    if state == "done":  # nothing of what they look for is in the table
        for statement in (store.COUNT_STRANGERS, store.CLAIM_STRANGERS, reads.OLDEST_ENQUEUED):
            plan(cursor, statement, limit=1, second=9.0, worker=3, like=["a"], old_refused=[], old_allowed=[])
    assert "queued_tasks_claim" in plan(cursor, store.CLAIM, worker=3, limit=50, channel="default")
    assert "queued_tasks_releasable" in plan(cursor, store.RELEASE, limit=50)
    assert "queued_tasks_releasable" in plan(cursor, store.SECONDS_TO_NEXT_DUE)
    for statement in (*store.SETTLE.values(), store.WRITE_PROGRESS, store.ADD_LOGS):
        found = plan(cursor, statement, **ended, task_ids=batch)
        # Of its own tasks or of the ids: never the whole table.
        assert "queued_tasks_doing" in found or "queued_tasks_pkey" in found, found
    assert "queued_tasks_doing" in plan(cursor, store.DISOWN, worker=3, ids=batch)


@pytest.mark.parametrize("is_analysed", [False, True], ids=["never analysed", "analysed"])
def test_looking_for_the_dead_reads_what_runs_and_not_what_has_ended(cursor: Any, is_analysed: bool) -> None:
    cursor.execute(
        "INSERT INTO queued_tasks (function, state, date_done, claimed_by, attempt)"
        " SELECT 'a:b', CASE WHEN n % 100 = 0 THEN 'doing' ELSE 'done' END,"
        " CASE WHEN n % 100 > 0 THEN now() END, n % 7, 1 FROM generate_series(1, 20000) AS n"
    )
    if is_analysed:
        cursor.execute("ANALYZE queued_tasks")
    assert "queued_tasks_doing" in plan(cursor, store.LOCK_CLAIMED, worker=3, limit=500)
    assert "queued_tasks_doing" in plan(cursor, workers.OWNERS)
