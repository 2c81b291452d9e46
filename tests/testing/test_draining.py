"""drain(): the tasks of a test in its own thread, with connections of the queue's and in the test's transaction."""

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import execute, raw_connection
from queuedtask import InvalidTask, NotAllowed, Queue, Retry, SchemaOutdated, UnknownFunction
from queuedtask.testing import drain, travel
from test_adding import CALLERS, Caller

sys.path.insert(0, str(Path(__file__).parent))
import kit_jobs as jobs


@pytest.fixture(autouse=True)
def fresh_jobs(queue: Queue) -> Iterator[None]:
    jobs.queue, jobs.connection, jobs.failures = queue, None, 0
    jobs.seen.clear()
    yield
    jobs.queue = jobs.connection = None


@pytest.fixture(params=CALLERS)
def caller(request: pytest.FixtureRequest, database_url: str) -> Iterator[Caller]:
    execute(database_url, "CREATE TABLE orders (number integer)")
    with CALLERS[request.param](database_url) as caller:
        caller.execute("INSERT INTO orders VALUES (1)")
        jobs.connection = caller.connection
        yield caller
        caller.rollback()


# ------------------------------------------------------------------------------------- with connections of the queue's


def test_what_can_run_is_run_in_this_thread_in_its_order(queue: Queue) -> None:
    queue.add_task(jobs.note, "usual")
    first = queue.options(priority=5).add_task(jobs.note, "urgent")
    queue.options(delay=60).add_task(jobs.note, "later")
    queue.options(channel="mail").add_task(jobs.note, "mail")
    queue.options(concurrency_key="a").add_task(jobs.note, "keyed")
    ran = drain(queue)
    assert jobs.seen == ["urgent", "usual", "mail", "keyed"]
    assert [(each.result, each.state, each.attempt, each.error) for each in ran[:1]] == [("urgent", "done", 1, None)]
    assert ran[0].ref == first
    assert first.row().date_started is not None
    assert drain(queue) == []


def test_tasks_that_are_added_and_those_that_waited_are_run(queue: Queue) -> None:
    parent = queue.add_task(jobs.add_child, "a")
    queue.add_task(jobs.sum_parents, parent=[parent, queue.add_task(jobs.note, "b")])
    ran = drain(queue)
    assert sorted(jobs.seen) == ["a", "a's child", "a's friend", "b"]
    assert [each.result for each in ran if each.name == "kit_jobs.sum_parents"] == [2]
    assert {each.state for each in ran} == {"done"}


def test_children_of_what_fails_fall_and_clear_up(queue: Queue) -> None:
    parent = queue.options(max_retries=0).add_task(jobs.fail)
    child = queue.add_task(jobs.note, "child", parent=parent)
    queue.options(on_parent_failure="run").add_task(jobs.note, "cleared up", parent=parent)
    drain(queue, raise_errors=False)
    assert child.state == "cancelled"
    assert jobs.seen == ["cleared up"]


def test_an_error_is_the_test_s_at_once(queue: Queue) -> None:
    ref = queue.add_task(jobs.fail, "oh no")
    queue.add_task(jobs.note, "next")
    with pytest.raises(ValueError, match="oh no") as caught:
        drain(queue)
    (note,) = caught.value.__notes__
    assert note == f"raised by kit_jobs.fail {ref.id}, attempt 1, which is waiting after it"
    assert (ref.state, ref.row().failures, jobs.seen) == ("waiting", 1, [])
    drain(queue)
    assert jobs.seen == ["next"]


def test_an_error_that_is_not_raised_stands_in_the_list(queue: Queue) -> None:
    queue.options(max_retries=0).add_task(jobs.fail, "oh no")
    queue.add_task("kit_jobs:nothing")
    first, second = drain(queue, raise_errors=False)
    assert (first.state, repr(first.error)) == ("failed", "ValueError('oh no')")
    assert (second.state, type(second.error)) == ("waiting", UnknownFunction)


def test_retries_wait_or_are_over(queue: Queue) -> None:
    ref = queue.add_task(jobs.fail_at_first, 2)
    assert [each.state for each in drain(queue, raise_errors=False)] == ["waiting"]
    assert drain(queue) == []
    assert [(each.state, each.attempt) for each in drain(queue, with_retries=True)] == []
    travel(queue, 60)
    assert [(each.state, each.attempt) for each in drain(queue, with_retries=True)] == [("waiting", 2), ("done", 3)]
    assert ref.result == 3
    queue.options(max_retries=2).add_task(jobs.fail, "for good")
    with pytest.raises(ValueError, match="for good"):
        drain(queue, with_retries=True)
    assert queue.find(name="kit_jobs.fail")[0].row().failures == 3


def test_asking_for_a_retry_or_an_end_is_no_error(queue: Queue) -> None:
    ref = queue.add_task(jobs.retry_at_first, 1)
    off = queue.add_task(jobs.call_off)
    drain(queue)
    assert (ref.state, off.state) == ("waiting", "cancelled")
    travel(queue, 3600)
    drain(queue)
    assert ref.result == 2
    last = queue.options(max_retries=0).add_task(jobs.retry_at_first, 99)
    with pytest.raises(Retry):
        drain(queue)
    assert last.state == "failed"


def test_what_ends_a_test_ends_it_inside_a_task_too(queue: Queue) -> None:
    ref = queue.add_task(jobs.leave)
    with pytest.raises(KeyboardInterrupt):
        drain(queue, raise_errors=False)
    assert ref.state == "waiting"
    queue.add_task(jobs.exit_)
    (ran,) = drain(queue, raise_errors=False)
    assert isinstance(ran.error, SystemExit)


def test_the_context_the_logs_and_the_current_task_are_there(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ref = queue.add_task(jobs.tell)
        thread = queue.add_task(jobs.log_in_thread)
        (ran, _) = drain(queue)
    assert ran.result == "kit_jobs.tell 1"
    assert ran.context == ref.context == {"progress": {"rows": 3}, "later": 1}
    assert [line.message for line in ref.logs()] == ["half way"]
    assert [record.message for record in caplog.records if record.name == "kit_jobs"] == ["half way"]
    assert thread.context == {"thread": 1}


def test_hooks_and_coroutines_are_run(queue: Queue) -> None:
    ended: list[object] = []
    queue.on_post_run(lambda task, result, error: ended.append(result))
    queue.add_task(jobs.wait_a_little)
    assert drain(queue)[0].result == 7
    assert ended == [7]


def test_what_adds_itself_is_stopped(queue: Queue) -> None:
    queue.add_task(jobs.nothing_but_itself)
    with pytest.raises(RuntimeError, match="has run 5 attempts, and more can run"):
        drain(queue, limit=5)
    assert [ref.state for ref in queue.find(limit=1)] == ["enqueued"]


def test_what_is_paused_or_not_allowed_is_left(queue: Queue) -> None:
    queue.add_task(jobs.note, 1)
    queue.pause()
    assert drain(queue) == []
    queue.resume()
    queue.config.allowed_functions = ["elsewhere.*"]
    assert drain(queue) == []
    queue.config.allowed_functions = ["*"]
    assert len(drain(queue)) == 1


def test_its_row_among_the_workers_has_ended(queue: Queue) -> None:
    queue.add_task(jobs.fail)
    with pytest.raises(ValueError, match="no"):
        drain(queue)
    assert queue.workers() == []


def test_a_database_without_tables_is_named(empty_database_url: str) -> None:
    with pytest.raises(SchemaOutdated):
        drain(Queue(empty_database_url))


def test_a_task_finishes_in_its_own_transaction(queue: Queue, database_url: str) -> None:
    execute(database_url, "CREATE TABLE orders (number integer)")
    queue.add_task(jobs.insert_with_own_connection)
    assert drain(queue)[0].result == 1
    assert execute(database_url, "SELECT number FROM orders") == [(4,)]


def test_many_keys_and_channels_come_in_turn(queue: Queue) -> None:
    with queue.batch() as batch:
        for number in range(30):
            batch.options(channel=f"c{number % 3}", concurrency_key=f"k{number % 4}", fifo=True).add_task(
                jobs.note, number
            )
    assert len(drain(queue)) == 30
    for key in range(4):
        ours = [number for number in jobs.seen if number % 4 == key]
        assert ours == sorted(ours)


def test_two_drains_beside_each_other_run_each_task_once(queue: Queue) -> None:
    with queue.batch() as batch:
        for number in range(60):
            batch.add_task(jobs.note, number)
    ran: list[Any] = []
    threads = [threading.Thread(target=lambda: ran.extend(drain(queue))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    drain(queue)
    assert sorted(jobs.seen) == list(range(60))


# -------------------------------------------------------------------------------------------- in the test's transaction


def test_what_is_not_committed_is_run_and_vanishes_with_the_transaction(
    queue: Queue, database_url: str, caller: Caller
) -> None:
    adder = queue.options(connection=caller.connection)
    parent = adder.add_task(jobs.add_child, "a")
    adder.options(parent=parent).add_task(jobs.note, "b")
    adder.options(delay=60).add_task(jobs.note, "later")
    ran = drain(queue, caller.connection)
    assert sorted(jobs.seen) == ["a", "a's child", "a's friend", "b"]
    assert {each.state for each in ran} == {"done"}
    travel(queue, 60, caller.connection)  # after the transaction's now(), before the clock's
    assert [each.result for each in drain(queue, caller.connection)] == ["later"]
    assert execute(database_url, "SELECT 1 FROM queued_tasks UNION ALL SELECT 1 FROM queued_task_workers") == []
    caller.rollback()
    assert execute(database_url, "SELECT 1 FROM queued_tasks UNION ALL SELECT number FROM orders") == []


def test_limits_keys_and_uniqueness_hold_in_the_transaction(queue: Queue, caller: Caller) -> None:
    adder = queue.options(connection=caller.connection)
    for number in range(3):
        adder.options(channel="mail", concurrency_key="k", fifo=True).add_task(jobs.note, number)
    adder.options(unique_key="u").add_task(jobs.note, 3)
    adder.options(unique_key="u").add_task(jobs.note, 4)
    assert [each.result for each in drain(queue, caller.connection) if each.result != 3] == [0, 1, 2]


def test_retries_context_and_logs_stand_in_the_transaction(queue: Queue, caller: Caller) -> None:
    adder = queue.options(connection=caller.connection)
    adder.add_task(jobs.fail_at_first, 2)
    adder.add_task(jobs.tell)
    ran = drain(queue, caller.connection, with_retries=True)
    assert [each.result for each in ran if each.state == "done"].count(3) == 1
    (told,) = [each for each in ran if each.name == "kit_jobs.tell"]
    assert told.context == {"progress": {"rows": 3}, "later": 1}


def test_a_task_that_breaks_the_transaction_fails_and_the_others_go_on(queue: Queue, caller: Caller) -> None:
    adder = queue.options(connection=caller.connection)
    adder.options(max_retries=0).add_task(jobs.break_transaction)
    adder.add_task(jobs.note, "next")
    broken, following = drain(queue, caller.connection, raise_errors=False)
    assert (broken.state, "division by zero" in str(broken.error)) == ("failed", True)
    assert following.result == "next"
    caller.execute("SELECT number FROM orders")


def test_a_task_finishes_on_the_test_s_connection(queue: Queue, database_url: str, caller: Caller) -> None:
    adder = queue.options(connection=caller.connection)
    ref = adder.add_task(jobs.finish_with, "given")
    adder.options(parent=ref).add_task(jobs.note, "child")
    adder.options(max_retries=0).add_task(jobs.fail_in_transaction)
    ran = drain(queue, caller.connection, raise_errors=False)
    assert {(each.state, each.result) for each in ran} == {("done", "child"), ("done", "finished"), ("failed", None)}
    assert execute(database_url, "SELECT number FROM orders") == []
    caller.commit()
    assert execute(database_url, "SELECT number FROM orders ORDER BY 1") == [(1,), (2,)]


def test_a_task_gets_the_test_s_connection_where_it_is_sqlalchemy_s(
    queue: Queue, request: pytest.FixtureRequest, caller: Caller
) -> None:
    queue.options(connection=caller.connection).add_task(jobs.insert_with_own_connection)
    if "SQLAlchemy" in request.node.name:
        assert drain(queue, caller.connection)[0].result == 2
    else:
        with pytest.raises(NotAllowed, match=r"\.transaction\(connection\) takes yours"):
            drain(queue, caller.connection)
    caller.execute("SELECT 1")


@pytest.mark.parametrize("caller", ["psycopg2"], indirect=True)
def test_another_connection_is_refused(queue: Queue, database_url: str, caller: Caller) -> None:
    queue.options(connection=caller.connection).add_task(jobs.finish_with_another, database_url)
    with pytest.raises(InvalidTask, match="must be the same one"):
        drain(queue, caller.connection)


@pytest.mark.parametrize("caller", ["psycopg2", "SQLAlchemy Session"], indirect=True)
def test_a_task_that_rolls_the_test_back_is_named(queue: Queue, caller: Caller) -> None:
    queue.options(connection=caller.connection).add_task(jobs.roll_back)
    with pytest.raises(RuntimeError, match="has rolled back the transaction"):
        drain(queue, caller.connection)


def test_a_connection_that_commits_by_itself_is_not_used(queue: Queue, database_url: str) -> None:
    connection = raw_connection(database_url)
    queue.options(connection=connection).add_task(jobs.note, 1)
    assert len(drain(queue, connection)) == 1
    connection.close()
    assert queue.find()[0].state == "done"
