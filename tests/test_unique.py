"""Unique keys: one task that has not ended for each, whoever adds it at the same time, on whatever connection."""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, make_url

from helpers import execute, raw_connection, somebody_waits_for_a_lock, wait_until
from queuedtask import DuplicateTask, InvalidTask, IsolationError, NotAllowed, ParentNotFound, Queue, TaskRef
from queuedtask.cli.main import main
from queuedtask.db import store, unique
from queuedtask.db.store import Ending
from queuedtask.model import functions, states
from queuedtask.model.outcome import RAISED, Outcome, decide
from queuedtask.model.task import new_id
from queuedtask.run.hooks import NewTask
from test_adding import CALLERS, Caller, django_connections, psycopg2_connection, psycopg_connection

ROUNDS = 200
LEVELS = ["REPEATABLE READ", "SERIALIZABLE"]


def job(*values: object, **named: object) -> None:
    pass


def count(url: str, where: str = "true") -> int:
    return int(execute(url, f"SELECT count(*) FROM queued_tasks WHERE {where}")[0][0])


def move(url: str, ref: TaskRef, state: str) -> None:
    """Put a task into a state as if it had come there on the usual way."""
    date_done = "now()" if state in states.FINAL else "NULL"
    execute(
        url,
        f"UPDATE queued_tasks SET state = %s, date_done = {date_done}, claimed_by = 1 WHERE id = %s RETURNING 1",
        (state, ref.id),
    )


def claim(url: str) -> list[str]:
    with contextlib.closing(raw_connection(url)) as connection, connection.cursor() as cursor:
        return [task.id for task in store.claim(cursor, worker=1, limit=100)]


def add_batch(queue: Queue, connection: object, *keys: str, **options: Any) -> list[TaskRef]:
    """Add one plain task and one for each key."""
    with queue.batch(connection=connection) as batch:
        batch.add_task(job)
        return [batch.options(unique_key=key, **options).add_task(job) for key in keys]


def race(*calls: Callable[[], object]) -> list[Any]:
    """Let the calls begin at the same moment; return what each returned or raised."""
    barrier, results = threading.Barrier(len(calls)), [None] * len(calls)

    def run(number: int, call: Callable[[], object]) -> None:
        barrier.wait(10)
        try:
            results[number] = call()  # type: ignore[call-overload]
        except Exception as error:
            results[number] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a deadlock, or a wait without end"
    return results


# ------------------------------------------------------------------------------------------------------------- policies


def test_the_ref_of_the_holder_is_returned_by_default(queue: Queue, database_url: str) -> None:
    adder = queue.options(unique_key="report")
    first, second = adder.add_task(job, 1), adder.add_task(job, 2)
    assert first == second
    assert (first.created, second.created) == (True, False)
    assert (first.row().args, first.row().unique_key) == ("[1]", "report")
    assert count(database_url) == 1
    assert queue.options(unique_key="another").add_task(job).created
    assert queue.add_task(job).created


@pytest.mark.parametrize("state", states.STATES)
@pytest.mark.parametrize("on_conflict", ["return", "raise"])
def test_a_key_is_held_until_its_task_has_ended(queue: Queue, database_url: str, state: str, on_conflict: str) -> None:
    adder = queue.options(unique_key="k", on_conflict=on_conflict)
    first = adder.add_task(job)
    move(database_url, first, state)
    if state in states.FINAL:
        assert adder.add_task(job).created
    elif on_conflict == "return":
        assert adder.add_task(job) == first
    else:
        with pytest.raises(DuplicateTask, match=f"'k' is held by task {first.id}, which is {state}") as caught:
            adder.add_task(job)
        assert caught.value.task_id == first.id
        assert count(database_url) == 1


def test_a_key_of_return_outlasts_its_claim_and_a_retry(queue: Queue, database_url: str) -> None:
    first = queue.options(unique_key="k").add_task(job)
    assert claim(database_url) == [first.id]
    assert first.row().unique_key == "k"
    move(database_url, first, "waiting")
    assert queue.options(unique_key="k").add_task(job) == first


def test_replacing_keeps_the_id_and_changes_all_else(queue: Queue, database_url: str) -> None:
    adder = queue.options(unique_key="k", on_conflict="replace")
    first = adder.options(priority=1, channel="a", context={"a": 1}, meta={"m": 1}, timeout=5).add_task(job, 1)
    enqueued = first.row().date_enqueued
    second = adder.options(priority=2, name="n", max_retries=7, backoff="linear").add_task("other:job", 2, x=3)
    assert (second.id, second.created, count(database_url)) == (first.id, False, 1)
    row = second.row()
    assert (row.function, row.args, row.kwargs, row.name) == ("other:job", "[2]", '{"x": 3}', "n")
    assert (row.priority, row.channel, row.context, row.timeout, row.max_retries) == (2, "default", None, None, 7)
    assert row.meta == '{"backoff": "linear", "on_conflict": "replace"}'
    # Without a time it keeps its place in the queue.
    assert (row.state, row.date_scheduled, row.date_enqueued) == ("enqueued", None, enqueued)


def test_a_replaced_task_starts_anew(queue: Queue, database_url: str) -> None:
    first = queue.options(unique_key="k").add_task(job)
    execute(
        database_url,
        "UPDATE queued_tasks SET state = 'waiting', failures = 2, lost_count = 1, error_type = 'E', attempt = 3, "
        "date_scheduled = now() + interval '1 h' RETURNING 1",
    )
    assert queue.options(unique_key="k", on_conflict="replace").add_task(job, 2) == first
    row = first.row()
    assert (row.failures, row.lost_count, row.error_type, row.attempt, row.date_scheduled) == (0, 0, None, 3, None)


def test_the_delay_of_replace_counts_from_the_first_call_and_that_of_debounce_from_the_last(
    queue: Queue, database_url: str
) -> None:
    replace = queue.options(unique_key="r", on_conflict="replace", delay=600)
    debounce = queue.options(unique_key="d", on_conflict="debounce", delay=600)
    refs = [replace.add_task(job), debounce.add_task(job)]
    execute(database_url, "UPDATE queued_tasks SET date_created = date_created - interval '5 min' RETURNING 1")
    for adder in (replace, debounce):
        assert not adder.add_task(job).created
    (now,) = execute(database_url, "SELECT clock_timestamp()")[0]
    left = [(ref.row().date_scheduled - now).total_seconds() for ref in refs]  # type: ignore[operator]
    assert left == [pytest.approx(300, abs=5), pytest.approx(600, abs=5)]
    assert [ref.state for ref in refs] == ["waiting", "waiting"]


def test_a_time_replaces_the_time_and_a_call_without_one_ends_the_waiting(queue: Queue) -> None:
    adder = queue.options(unique_key="k", on_conflict="replace")
    ref = adder.add_task(job)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    adder.options(run_at=tomorrow).add_task(job)
    assert (ref.state, ref.row().date_scheduled) == ("waiting", tomorrow)
    adder.add_task(job)
    assert (ref.state, ref.row().date_scheduled) == ("waiting", None)
    with queue.database.transaction() as cursor:
        assert store.release_due(cursor, limit=9) == 1
    assert ref.state == "enqueued"


@pytest.mark.parametrize("on_conflict", ["replace", "debounce"])
def test_a_replaceable_task_gives_its_key_up_when_claimed_so_that_a_call_makes_one_more(
    queue: Queue, database_url: str, on_conflict: str
) -> None:
    adder = queue.options(unique_key="k", on_conflict=on_conflict, delay=0)
    first = adder.add_task(job)
    assert claim(database_url) == [first.id]
    assert first.row().unique_key is None
    trailing = [adder.add_task(job, n) for n in range(5)]
    assert [ref.created for ref in trailing] == [True, False, False, False, False]
    assert len({ref.id for ref in trailing}) == 1
    assert trailing[0].row().args == "[4]"
    assert count(database_url) == 2


def test_a_running_task_that_was_not_added_to_be_replaced_is_not_and_the_caller_hears_of_it(
    queue: Queue, database_url: str
) -> None:
    first = queue.options(unique_key="k").add_task(job)
    claim(database_url)
    with pytest.raises(DuplicateTask, match=rf"{first.id}, which is doing and was not added to be replaced"):
        queue.options(unique_key="k", on_conflict="replace").add_task(job)


def test_a_claim_leaves_the_keys_of_others_and_the_meta_of_a_user(queue: Queue, database_url: str) -> None:
    kept = queue.options(unique_key="k", meta={"x": "replace"}).add_task(job)
    none = queue.options(meta={"y": {"on_conflict": "replace"}}).add_task(job)
    inner = queue.options(unique_key="i", meta={"y": {"on_conflict": "replace"}}).add_task(job)
    claim(database_url)
    assert [ref.row().unique_key for ref in (kept, none, inner)] == ["k", None, "i"]


def test_a_function_declares_its_key(queue: Queue) -> None:
    @queue.task(unique_key="only one", on_conflict="raise")
    def declared() -> None: ...

    for function in (declared,):
        function.__qualname__ = "job_declared"
        globals()["job_declared"] = function
    try:
        ref = declared.delay()
        with pytest.raises(DuplicateTask):
            declared.delay()
        assert queue.options(on_conflict="return").add_task(declared) == ref
        assert queue.options(unique_key="two").add_task(declared).created
    finally:
        del globals()["job_declared"]


def test_workers_are_woken_by_what_is_added_or_replaced_and_not_by_what_is_returned(
    queue: Queue, database_url: str
) -> None:
    with contextlib.closing(raw_connection(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("LISTEN queue_new_task")

        def heard() -> int:
            cursor.execute("SELECT 1")
            connection.poll()
            number = len(connection.notifies)
            connection.notifies.clear()
            return number

        adder = queue.options(unique_key="k")
        adder.add_task(job)
        wait_until(heard)
        adder.add_task(job)
        queue.options(unique_key="k", on_conflict="replace").add_task(job)
        wait_until(heard)
        queue.config.use_postgresql_notify = False
        queue.options(unique_key="k", on_conflict="replace").add_task(job)
        queue.options(unique_key="l").add_task(job)
        queue.config.use_postgresql_notify = True
        queue.add_task(job)
        wait_until(heard)
        assert heard() == 0


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"unique_key": ""}, "1 to 255 characters"),
        ({"unique_key": 7}, "1 to 255 characters"),
        ({"unique_key": "k" * 256}, "1 to 255 characters"),
        ({"unique_key": "a\0b"}, "1 to 255 characters"),
        ({"unique_key": "k", "on_conflict": "ignore"}, "must be 'return' or 'raise' or"),
        ({"on_conflict": "replace"}, "needs a unique_key"),
        ({"unique_key": "k", "on_conflict": "debounce"}, "needs a delay"),
        ({"unique_key": "k", "on_conflict": "debounce", "run_at": datetime.now(UTC)}, "needs a delay"),
        ({"meta": {"on_conflict": "replace"}}, "'on_conflict' is reserved"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    queue: Queue, database_url: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidTask, match=message):
        queue.options(**given).add_task(job)
    with pytest.raises(InvalidTask, match=message), queue.batch() as batch:
        batch.options(**given).add_task(job)
    assert count(database_url) == 0


# ---------------------------------------------------------------------------------------------------------------- races


def test_of_callers_at_the_same_moment_one_makes_the_task_and_all_get_it(queue: Queue, database_url: str) -> None:
    for n in range(ROUNDS):
        adder = queue.options(unique_key=f"k{n}")
        refs = race(*[lambda adder=adder: adder.add_task(job)] * 4)  # type: ignore[misc]
        assert [type(ref) for ref in refs] == [TaskRef] * 4, refs
        assert len({ref.id for ref in refs}) == 1
        assert sum(ref.created for ref in refs) == 1
    assert count(database_url) == ROUNDS


def test_of_callers_at_the_same_moment_one_succeeds_and_the_others_raise(queue: Queue, database_url: str) -> None:
    for n in range(ROUNDS):
        adder = queue.options(unique_key=f"k{n}", on_conflict="raise")
        results = race(*[lambda adder=adder: adder.add_task(job)] * 3)  # type: ignore[misc]
        (made,) = [each for each in results if isinstance(each, TaskRef)]
        others = [each for each in results if each is not made]
        assert all(isinstance(each, DuplicateTask) and each.task_id == made.id for each in others), results
    assert count(database_url) == ROUNDS


def test_holders_that_end_at_the_same_moment_leave_no_caller_without_a_task(queue: Queue, database_url: str) -> None:
    with contextlib.closing(raw_connection(database_url)) as connection, connection.cursor() as cursor:
        for n in range(ROUNDS):
            adder = queue.options(unique_key=f"k{n}")
            first = adder.add_task(job)

            def end(first: TaskRef = first) -> None:
                cursor.execute(
                    "UPDATE queued_tasks SET state = 'done', date_done = now() WHERE id = %s RETURNING 1", (first.id,)
                )

            results = race(end, *[lambda adder=adder: adder.add_task(job)] * 2)[1:]  # type: ignore[misc]
            assert [type(each) for each in results] == [TaskRef] * 2, results
            made = {each.id for each in results if each.created}
            assert len(made) <= 1
            assert {each.id for each in results} <= made | {first.id}
    assert count(database_url, "state <> 'done'") <= ROUNDS


def test_a_claim_and_calls_at_the_same_moment_lose_no_call_and_make_one_trailing_task(
    queue: Queue, database_url: str
) -> None:
    with contextlib.closing(raw_connection(database_url)) as connection, connection.cursor() as cursor:
        for n in range(ROUNDS):
            adder = queue.options(unique_key="k", on_conflict="replace")
            adder.add_task(job, n, "first")
            calls = [lambda i=i, n=n, adder=adder: adder.add_task(job, n, i) for i in range(2)]  # type: ignore[misc]
            claimed, *refs = race(lambda: store.claim(cursor, worker=1, limit=9), *calls)
            assert [type(ref) for ref in refs] == [TaskRef] * 2, refs
            # Each call is either in the claimed task's arguments or in those of the one pending task.
            assert len(claimed) <= 1
            pending = execute(database_url, "SELECT id::text, args::text FROM queued_tasks WHERE state = 'enqueued'")
            assert len(pending) <= 1
            last = dict(pending) | {task.id: task.args for task in claimed}
            assert {ref.id for ref in refs} <= set(last)
            latest = pending[0][1] if pending else claimed[0].args
            assert any(latest == f"[{n}, {i}]" for i in range(2)), (latest, claimed)
            execute(database_url, "DELETE FROM queued_tasks RETURNING 1")


def test_a_caller_waits_for_an_uncommitted_holder_and_gets_it_or_the_task(queue: Queue, database_url: str) -> None:
    for n in range(ROUNDS):
        adder = queue.options(unique_key=f"k{n}")
        with psycopg2_connection(database_url) as caller:
            first = adder.options(connection=caller.connection).add_task(job)
            end = caller.commit if n % 2 else caller.rollback
            _, second = race(end, lambda adder=adder: adder.add_task(job))  # type: ignore[misc]
            assert isinstance(second, TaskRef), second
            assert (second.id == first.id, second.created) == ((True, False) if n % 2 else (False, True))
    assert count(database_url) == ROUNDS


def test_a_caller_does_wait(queue: Queue, database_url: str) -> None:
    adder = queue.options(unique_key="k")
    with psycopg2_connection(database_url) as caller:
        first = adder.options(connection=caller.connection).add_task(job)
        found: list[TaskRef] = []
        thread = threading.Thread(target=lambda: found.append(adder.add_task(job)))
        thread.start()
        wait_until(lambda: somebody_waits_for_a_lock(database_url))
        assert not found
        caller.commit()
        thread.join(10)
    assert (found, found[0].created) == ([first], False)


def test_batches_with_the_same_keys_in_opposite_orders_do_not_deadlock(queue: Queue, database_url: str) -> None:
    def add(keys: list[str], on_conflict: str, timed: int = 0) -> list[TaskRef]:
        """Add them; every second one with a time, for which another statement replaces."""
        with queue.batch() as batch:
            return [
                batch.options(
                    unique_key=key,
                    on_conflict=on_conflict,
                    delay=5 if on_conflict == "debounce" or len(key) % 2 == timed else None,
                ).add_task(job)
                for key in keys
            ]

    for n in range(ROUNDS):
        keys = [f"{n:03}-{i * 'k'}" for i in range(12)]
        policy = ("return", "replace", "debounce")[n % 3]
        one, two = race(partial(add, keys, policy), partial(add, keys[::-1], policy))
        assert isinstance(one, list), one
        assert isinstance(two, list), two
        assert [ref.id for ref in one] == [ref.id for ref in two[::-1]]
        assert [a.created + b.created for a, b in zip(one, two[::-1], strict=True)] == [1] * len(keys)
        if policy == "replace":  # once more, now that all are there, and each needs the other statement first
            replaced = race(partial(add, keys, policy, 0), partial(add, keys[::-1], policy, 1))
            assert all(isinstance(refs, list) for refs in replaced), replaced
    assert count(database_url) == ROUNDS * 12


# ------------------------------------------------------------------------------------------------- callers' connections


@pytest.fixture(params=CALLERS)
def caller(request: pytest.FixtureRequest, database_url: str) -> Iterator[Caller]:
    execute(database_url, "CREATE TABLE orders (number integer)")
    with CALLERS[request.param](database_url) as caller:
        yield caller


@pytest.mark.parametrize("on_conflict", ["return", "replace"])
def test_in_a_caller_s_transaction_it_finds_holders_and_commits_or_vanishes(
    queue: Queue, database_url: str, caller: Caller, on_conflict: str
) -> None:
    held = queue.options(unique_key="held").add_task(job, 1)
    mine = queue.options(connection=caller.connection, on_conflict=on_conflict)
    assert mine.options(unique_key="held").add_task(job, 2) == held
    new = mine.options(unique_key="new").add_task(job, 1)
    assert new.created
    assert mine.options(unique_key="new").add_task(job, 2) == new
    caller.rollback()
    assert (count(database_url), held.row().args) == (1, "[1]")
    mine.options(unique_key="held").add_task(job, 2)
    mine.options(unique_key="new").add_task(job, 2)
    caller.commit()
    assert (count(database_url), held.row().args) == (2, "[2]" if on_conflict == "replace" else "[1]")


def test_a_duplicate_leaves_the_caller_s_transaction_as_it_was(queue: Queue, database_url: str, caller: Caller) -> None:
    queue.options(unique_key="held").add_task(job)
    caller.execute("INSERT INTO orders VALUES (1)")
    with pytest.raises(DuplicateTask):
        queue.options(connection=caller.connection, unique_key="held", on_conflict="raise").add_task(job)
    with pytest.raises(DuplicateTask):
        add_batch(queue, caller.connection, "a", "held", "z", on_conflict="raise")
    caller.execute("INSERT INTO orders VALUES (2)")
    caller.commit()
    assert execute(database_url, "SELECT number FROM orders") == [(1,), (2,)]
    assert count(database_url) == 1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("on_conflict", ["return", "raise", "replace"])
def test_a_holder_that_the_transaction_cannot_see_is_an_isolation_error_and_leaves_it_usable(
    queue: Queue, database_url: str, caller: Caller, level: str, on_conflict: str
) -> None:
    begun = queue.options(unique_key="begun").add_task(job)
    caller.rollback()
    caller.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
    caller.execute("INSERT INTO orders VALUES (1)")
    mine = queue.options(connection=caller.connection, on_conflict=on_conflict)
    unseen = queue.options(unique_key="unseen").add_task(job)
    move(database_url, begun, "doing")
    with pytest.raises(IsolationError, match="READ COMMITTED"):
        mine.options(unique_key="unseen").add_task(job)
    with pytest.raises(IsolationError):
        add_batch(queue, caller.connection, "unseen")
    with pytest.raises(IsolationError):
        mine.options(unique_key="begun").add_task(job)
    assert mine.options(unique_key="mine").add_task(job).created
    caller.execute("INSERT INTO orders VALUES (2)")
    caller.commit()
    assert execute(database_url, "SELECT number FROM orders") == [(1,), (2,)]
    assert count(database_url) == 3
    assert unseen.row().args == "[]"


@contextlib.contextmanager
def autocommit(url: str, kind: str) -> Iterator[Any]:
    if kind == "psycopg2":
        with contextlib.closing(raw_connection(url)) as connection:
            yield connection
    elif kind == "psycopg":
        with psycopg_connection(url) as caller:
            caller.connection.autocommit = True  # type: ignore[attr-defined]
            yield caller.connection
    elif kind == "Django":
        wrapper = django_connections(url)["default"]
        yield wrapper
        wrapper.close()
    else:
        engine = create_engine(make_url(url), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            yield connection
        engine.dispose()


@pytest.mark.parametrize("kind", ["psycopg2", "psycopg", "Django", "SQLAlchemy"])
@pytest.mark.parametrize("level", ["READ COMMITTED", *LEVELS])
def test_on_a_connection_that_commits_by_itself(queue: Queue, database_url: str, kind: str, level: str) -> None:
    (name,) = execute(database_url, "SELECT current_database()")[0]
    execute(database_url, f"ALTER DATABASE {name} SET default_transaction_isolation = '{level.lower()}'")
    with autocommit(database_url, kind) as connection:
        mine = queue.options(connection=connection)
        ref = mine.options(unique_key="k").add_task(job, 1)
        assert ref.state == "enqueued"
        assert mine.options(unique_key="k").add_task(job, 2) == ref
        assert mine.options(unique_key="k", on_conflict="replace").add_task(job, 3) == ref
        assert ref.row().args == "[3]"
        with pytest.raises(DuplicateTask):
            mine.options(unique_key="k", on_conflict="raise").add_task(job)
        with pytest.raises(DuplicateTask):
            add_batch(queue, connection, "a", "k", "l", on_conflict="raise")
        assert count(database_url) == 1
        with queue.batch(connection=connection) as batch:
            plain = batch.add_task(job)
            refs = [batch.options(unique_key=key).add_task(job) for key in ("k", "b", "b")]
        assert [each.created for each in refs] == [False, True, False]
        assert (plain.state, refs[0], count(database_url)) == ("enqueued", ref, 3)
        # No transaction of ours is left open.
        assert (
            execute(
                database_url,
                "SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in%' AND datname = current_database()",
            )
            == []
        )


def test_in_a_transaction_that_the_caller_began_on_an_autocommit_connection(queue: Queue, database_url: str) -> None:
    with psycopg_connection(database_url) as caller:
        connection: psycopg.Connection = caller.connection  # type: ignore[assignment]
        connection.autocommit = True
        queue.options(unique_key="held").add_task(job)
        with connection.transaction():
            with pytest.raises(DuplicateTask):
                add_batch(queue, connection, "a", "held", on_conflict="raise")
            with queue.batch(connection=connection) as batch:
                batch.options(unique_key="b").add_task(job)
            assert count(database_url) == 1
    assert count(database_url) == 2
    with contextlib.closing(raw_connection(database_url)) as by_hand:
        by_hand.cursor().execute("BEGIN")
        with queue.batch(connection=by_hand) as batch:
            batch.options(unique_key="c").add_task(job)
        by_hand.cursor().execute("ROLLBACK")
    assert count(database_url) == 2


def test_an_engine_at_repeatable_read_adds_and_returns_alone_and_in_batches(database_url: str) -> None:
    engine = create_engine(make_url(database_url), isolation_level="REPEATABLE READ")
    queue = Queue(engine=engine)
    ref = queue.options(unique_key="k").add_task(job)
    assert queue.options(unique_key="k").add_task(job) == ref
    with queue.batch() as batch:
        again, other = (batch.options(unique_key=key).add_task(job) for key in ("k", "l"))
    assert (again, other.created) == (ref, True)
    engine.dispose()


# -------------------------------------------------------------------------------------------------------------- batches


def test_a_batch_is_as_if_its_tasks_were_added_one_after_the_other(queue: Queue, database_url: str) -> None:
    old = queue.options(unique_key="old").add_task(job, "old")
    with queue.batch() as batch:

        def add(key: str, value: int, on_conflict: str = "return") -> TaskRef:
            return batch.options(unique_key=key, on_conflict=on_conflict).add_task(job, value)

        returned = [add("a", 1), add("a", 2)]
        replaced = [add("b", n, "replace") for n in range(3)]
        mixed = [add("c", 1), add("c", 2, "replace"), add("c", 3), add("c", 4, "replace"), add("c", 5, "replace")]
        held = [add("old", 1), add("old", 2, "replace"), add("old", 3)]
        plain = batch.add_task(job, "plain")
    for group in (returned, replaced, mixed):
        assert len({ref.id for ref in group}) == 1
        assert [ref.created for ref in group] == [True] + [False] * (len(group) - 1)
    assert [group[0].row().args for group in (returned, replaced, mixed, held)] == ["[1]", "[2]", "[5]", "[2]"]
    assert held == [old] * 3
    assert plain.state == "enqueued"
    assert count(database_url) == 5


@pytest.mark.parametrize("first", ["return", "raise"])
def test_a_duplicate_within_a_batch_raises_and_nothing_is_written(queue: Queue, database_url: str, first: str) -> None:
    def add() -> None:
        with queue.batch() as batch:
            for n in range(1500):
                batch.add_task(job, n)
            batch.options(unique_key="k", on_conflict=first).add_task(job)
            batch.options(unique_key="k", on_conflict="raise").add_task(job)

    with pytest.raises(DuplicateTask, match="'k' is held by task"):
        add()
    assert count(database_url) == 0


def test_asking_for_an_id_in_the_block_writes_and_asking_on_a_caller_s_connection_is_refused(
    queue: Queue, database_url: str
) -> None:
    old = queue.options(unique_key="k").add_task(job)
    with queue.batch() as batch:
        batch.add_task(job)
        ref = batch.options(unique_key="k").add_task(job)
        assert "batch" in repr(ref)
        assert {ref: 1} == {old: 1}
        assert repr(ref) == repr(old)
        batch.options(unique_key="l").add_task(job)
    assert count(database_url) == 3
    with psycopg2_connection(database_url) as caller, queue.batch(connection=caller.connection) as batch:
        ref = batch.options(unique_key="k").add_task(job)
        with pytest.raises(InvalidTask, match="known when its batch has been written"):
            _ = ref.id
    assert ref == old


def test_a_batch_whose_block_raises_leaves_refs_without_a_task(queue: Queue, database_url: str) -> None:
    refs = []
    with contextlib.suppress(ZeroDivisionError), queue.batch() as batch:
        refs.append(batch.options(unique_key="k").add_task(job))
        raise ZeroDivisionError
    with pytest.raises(InvalidTask):
        _ = refs[0].id
    assert count(database_url) == 0


def test_thousands_of_keys_in_a_batch(queue: Queue, database_url: str) -> None:
    def add() -> list[TaskRef]:
        with queue.batch() as batch:
            return [batch.options(unique_key=f"{n % 2500}").add_task(job, n) for n in range(5000)]

    refs = add()
    assert sum(ref.created for ref in refs) == count(database_url) == 2500
    assert not any(ref.created for ref in add())
    assert [ref.id for ref in refs[:2500]] == [ref.id for ref in refs[2500:]]
    assert execute(database_url, "SELECT args::text FROM queued_tasks WHERE unique_key = '7'") == [("[7]",)]


# ----------------------------------------------------------------------------------------------------------- requeueing


def failed(queue: Queue, url: str, key: str) -> TaskRef:
    ref = queue.options(unique_key=key).add_task(job)
    move(url, ref, "failed")
    return ref


def test_a_task_whose_key_another_one_has_does_not_go_round_again(queue: Queue, database_url: str) -> None:
    ended = failed(queue, database_url, "k")
    holder = queue.options(unique_key="k").add_task(job)
    free = failed(queue, database_url, "free")
    plain = queue.add_task(job)
    move(database_url, plain, "failed")
    with pytest.raises(NotAllowed, match=rf"'k' is held by task {holder.id}, which is enqueued"):
        ended.retry()
    requeued = queue.retry_failed()
    assert {ref.id for ref in requeued} == {free.id, plain.id}
    assert (requeued.skipped, ended.state) == (1, "failed")
    move(database_url, holder, "done")
    ended.retry()
    assert ended.state == "enqueued"


def test_of_several_with_one_key_the_one_that_ended_last_goes_round_again(queue: Queue, database_url: str) -> None:
    refs = [failed(queue, database_url, "k") for _ in range(3)]
    others = [failed(queue, database_url, f"{n}") for n in range(3)]
    requeued = queue.retry_failed()
    assert {ref.id for ref in requeued} == {refs[2].id, *(ref.id for ref in others)}
    assert requeued.skipped == 2
    move(database_url, refs[2], "done")
    refs[0].retry()
    assert [ref.state for ref in refs] == ["enqueued", "failed", "done"]


def test_a_replaceable_task_goes_round_again_without_its_key(queue: Queue, database_url: str) -> None:
    adder = queue.options(unique_key="k", on_conflict="replace")
    first = adder.add_task(job)
    claim(database_url)
    move(database_url, first, "failed")
    second = adder.add_task(job)
    assert queue.retry_failed() == [first]
    assert (first.row().unique_key, second.row().unique_key) == (None, "k")


def test_a_requeue_and_a_call_at_the_same_moment_leave_one_task_with_the_key(queue: Queue, database_url: str) -> None:
    for n in range(ROUNDS):
        ended = failed(queue, database_url, f"k{n}")
        adder = queue.options(unique_key=f"k{n}")
        requeued, ref = race(queue.retry_failed, lambda adder=adder: adder.add_task(job))  # type: ignore[misc]
        assert isinstance(ref, TaskRef), ref
        assert isinstance(requeued, list), requeued
        assert (requeued == [ended]) == (ref == ended)
        assert count(database_url, f"unique_key = 'k{n}' AND state = 'enqueued'") == 1
        execute(database_url, "DELETE FROM queued_tasks RETURNING 1")


def test_a_descendant_whose_key_another_one_has_is_not_revived_and_the_rest_is(queue: Queue, database_url: str) -> None:
    parent = queue.add_task(job)
    child = queue.options(unique_key="k").add_task(job, parent=parent)
    grandchild = queue.add_task(job, parent=child)
    sibling = queue.options(unique_key="l").add_task(job, parent=parent)
    fail(queue, parent)
    assert [ref.state for ref in (child, grandchild, sibling)] == ["cancelled"] * 3
    holder = queue.options(unique_key="k").add_task(job)
    parent.retry()
    assert [ref.state for ref in (parent, sibling, holder)] == ["enqueued", "waiting", "enqueued"]
    assert [ref.state for ref in (child, grandchild)] == ["cancelled"] * 2
    assert child.id in str(grandchild.error)


def test_of_descendants_with_one_key_the_newest_is_revived(queue: Queue, database_url: str) -> None:
    parent = queue.add_task(job)
    older = queue.options(unique_key="k").add_task(job, parent=parent)
    other = queue.add_task(job, parent=parent)
    fail(queue, parent)
    # As if it had been added while the parent failed.
    newer = queue.options(unique_key="k").add_task(job, parent=other)
    execute(
        database_url,
        "UPDATE queued_tasks SET state = 'cancelled', date_done = now(), meta = jsonb_build_object('failed_ancestor', "
        "%s::text) WHERE id = %s RETURNING 1",
        (parent.id, newer.id),
    )
    parent.retry()
    assert [ref.state for ref in (parent, older, other, newer)] == ["enqueued", "cancelled", "waiting", "waiting"]


# -------------------------------------------------------------------------------------------------------------- parents


def fail(queue: Queue, ref: TaskRef) -> None:
    """Let a task run and fail, with what that means for those that wait for it."""
    with queue.database.transaction() as cursor:
        (task,) = store.claim(cursor, worker=1, limit=1)
        assert task.id == ref.id
        failed = decide(task, Outcome(RAISED, error_type="E"), max_retries=0, max_lost=1)
        store.settle(cursor, [Ending(task, failed, 0.0, None)], worker=1)


def test_a_task_with_a_key_may_have_parents(queue: Queue, database_url: str) -> None:
    parents = [queue.add_task(job) for _ in range(2)]
    child = queue.options(unique_key="k").add_task(job, parent=parents)
    again = queue.options(unique_key="k").add_task(job, parent=parents[0])
    assert (child.state, child.created, again, again.created) == ("waiting", True, child, False)
    assert set(child.row().parents) == {ref.id for ref in parents}
    assert execute(database_url, "SELECT count(*) FROM queued_task_dependencies") == [(2,)]
    assert execute(database_url, "SELECT pending_parents FROM queued_tasks WHERE unique_key = 'k'") == [(2,)]


def test_a_parent_that_does_not_exist_leaves_nothing_and_the_transaction_usable(
    queue: Queue, database_url: str
) -> None:
    with psycopg2_connection(database_url) as caller:
        mine = queue.options(connection=caller.connection, unique_key="k")
        with pytest.raises(ParentNotFound, match=new_id()[:8]):
            mine.add_task(job, parent=new_id())
        assert mine.add_task(job).created
        caller.commit()
    assert count(database_url) == 1


# ----------------------------------------------------------------------------- hooks, schedules, local functions


def test_hooks_hear_of_tasks_that_were_made_and_may_give_the_key(queue: Queue, database_url: str) -> None:
    made: list[str] = []

    @queue.on_pre_create
    def give(spec: NewTask) -> None:
        spec.unique_key = f"{spec.args}"
        spec.on_conflict = "replace"

    @queue.on_post_create
    def hear(ref: TaskRef) -> None:
        made.append(ref.id)

    one, again, other = queue.add_task(job, 1), queue.add_task(job, 1), queue.add_task(job, 2)
    assert (one, made) == (again, [one.id, other.id])
    with queue.batch() as batch:
        refs = [batch.add_task(job, n) for n in (1, 3, 3)]
    assert refs[0] == one
    assert made == [one.id, other.id, refs[1].id]
    assert count(database_url) == 3


def test_the_tasks_of_a_schedule_have_no_key(queue: Queue) -> None:
    for function in (scheduled, debounced):
        declared = queue.task(unique_key="k", on_conflict="return" if function is scheduled else "debounce")(function)
        queue.cron("@daily", name=function.__name__)(declared)
    refs = [queue.run_schedule(name) for name in ("scheduled", "scheduled", "debounced")]
    assert all(ref.created for ref in refs)
    assert {(ref.row().unique_key, ref.row().meta) for ref in refs} == {(None, None)}


def scheduled() -> None: ...


def debounced() -> None: ...


def test_a_local_function_has_a_key_and_replaces_nothing(queue: Queue) -> None:
    pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")
    queue.config.secret_key = "s"
    adder = queue.options(unique_key="k")
    ref = adder.add_task(lambda: 1)
    assert adder.add_task(lambda: 2) == ref
    with pytest.raises(InvalidTask, match="signed for the id"):
        adder.options(on_conflict="replace").add_task(lambda: 3)
    # What replaces it leaves nothing of the pickle.
    assert adder.options(on_conflict="replace").add_task(job) == ref
    with queue.database.transaction() as cursor:
        (task,) = store.claim(cursor, worker=1, limit=1)
    assert (task.pickled_function, task.function) == (None, functions.path_of(job))


@pytest.mark.parametrize("on_conflict", ["replace", "debounce"])
def test_what_replaces_has_no_parents(queue: Queue, on_conflict: str) -> None:
    parent = queue.add_task(job)
    with pytest.raises(InvalidTask, match="not for a task with parents"):
        queue.options(unique_key="k", on_conflict=on_conflict, delay=1).add_task(job, parent=parent)


def test_replacing_leaves_the_holder_its_parents_and_its_children(queue: Queue) -> None:
    parent = queue.add_task(job)
    holder = queue.options(unique_key="k").add_task(job, parent=parent)
    child = queue.add_task(job, parent=holder)
    for delay in (None, 0):
        assert queue.options(unique_key="k", on_conflict="replace", delay=delay).add_task(job, delay) == holder
        assert (holder.state, holder.row().parents, child.state) == ("waiting", [parent.id], "waiting")
        with queue.database.transaction() as cursor:
            assert store.release_due(cursor, limit=9) == 0


def test_families_and_keys_in_one_batch(queue: Queue, database_url: str) -> None:
    old = queue.options(unique_key="old").add_task(job)
    with queue.batch() as batch:
        plain = batch.add_task(job)
        keyed = batch.options(unique_key="k").add_task(job, parent=plain)
        held = batch.options(unique_key="old").add_task(job)
        child = batch.add_task(job, parent=[keyed, held, plain])
    assert (held, keyed.created) == (old, True)
    assert keyed.row().parents == [plain.id]
    assert set(child.row().parents) == {keyed.id, old.id, plain.id}
    assert (child.state, keyed.state, count(database_url)) == ("waiting", "waiting", 4)


def test_the_index_finds_holders_without_statistics(queue: Queue, database_url: str) -> None:
    execute(
        database_url, "INSERT INTO queued_tasks (unique_key) SELECT n::text FROM generate_series(1, 5000) n RETURNING 1"
    )
    with queue.database.transaction() as cursor:
        for statement in (unique.HOLDERS, unique.LOCK_HOLDERS, unique.REPLACE, unique.RESCHEDULE):
            given = dict.fromkeys(re.findall(r"%\((\w+)\)s", statement.sql)) | {"unique_keys": "{7}"}
            cursor.execute(f"EXPLAIN {statement.sql}", given)
            plan = "\n".join(row[0] for row in cursor.fetchall())
            assert "queued_tasks_unique" in plan, plan


def test_the_command_says_what_it_left_alone(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUEUE_DATABASE_URL", database_url)
    ended = failed(queue, database_url, "k")
    queue.options(unique_key="k").add_task(job)
    twins = [failed(queue, database_url, "l") for _ in range(2)]
    assert main(["retry", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert twins[1].id in said
    assert ended.id not in said
    assert twins[0].id not in said
    assert main(["retry", ended.id]) == 1
    assert "unique_key='k' is held by" in capsys.readouterr().err
    assert main(["retry", "-v"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "1 task sent round again",
        "2 tasks left alone: others have the same unique keys",
    ]
    assert main(["retry"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["show", ended.id]) == 0
    assert "unique key" in capsys.readouterr().out
