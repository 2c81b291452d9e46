"""The rest of the kit: inline, perform, what is enqueued, time travel, the application's own Queue."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import ANY

import pytest

from helpers import execute, raw_connection
from queuedtask import (
    Cancel,
    DuplicateTask,
    InvalidTask,
    NotAllowed,
    NotInTask,
    NotSerializable,
    ParentNotFound,
    Queue,
    Retry,
    TaskCancelled,
    TaskFailed,
    UnknownFunction,
    clear_context,
    current_task,
    get_context,
    set_context,
)
from queuedtask.testing import assert_enqueued, drain, inline, perform, queue_on, refute_enqueued, travel, wait_until
from queuedtask.worker.manager import Manager

sys.path.insert(0, str(Path(__file__).parent))
import kit_jobs as jobs


@pytest.fixture(autouse=True)
def fresh_jobs() -> Iterator[None]:
    jobs.queue = jobs.connection = None
    jobs.failures = 0
    jobs.seen.clear()
    yield
    jobs.queue = jobs.connection = None


@pytest.fixture
def nowhere() -> Queue:
    """Return a queue without a database."""
    jobs.queue = Queue("postgresql://nowhere/at-all")
    return jobs.queue


def asks(*args: object, **kwargs: object) -> tuple[object, ...]:
    return (args, kwargs, current_task().name, current_task().attempt, get_context())


def adds_teller() -> str:
    return str(jobs.queue.add_task(jobs.tell).id)


def adds_two() -> None:
    with jobs.queue.batch() as batch:
        first = batch.add_task(jobs.note, "first")
        batch.add_task(jobs.note, "second", parent=[first, current_task().ref])
    jobs.seen.append("adds_two")


# -------------------------------------------------------------------------------------------------------------- inline


def test_inline_runs_a_task_in_the_call_that_adds_it(nowhere: Queue) -> None:
    with inline(nowhere) as ran:
        ref = nowhere.options(delay=60, name="asking").add_task(asks, (1, 2), when=datetime(2026, 1, 1, tzinfo=UTC))
    assert ref.state == "done"
    assert ref.result == ref.wait() == [[[1, 2]], {"when": datetime(2026, 1, 1, tzinfo=UTC)}, "asking", 1, {}]
    assert [(each.name, each.state, each.attempt) for each in ran] == [("asking", "done", 1)]
    assert (ref.error, ref.created, nowhere._detour) == (None, True, None)


def test_inline_goes_through_the_serialiser_and_the_path(nowhere: Queue) -> None:
    with inline(nowhere):
        with pytest.raises(NotSerializable):
            nowhere.add_task(jobs.note, object())
        with pytest.raises(UnknownFunction):
            nowhere.add_task(lambda: None)
        with pytest.raises(UnknownFunction):
            nowhere.add_task("kit_jobs:nothing")
        assert nowhere.add_task("kit_jobs:greet", "you").result == "hello you"


def test_inline_raises_what_a_task_raises(nowhere: Queue) -> None:
    with inline(nowhere) as ran, pytest.raises(ValueError, match="oh no"):
        nowhere.add_task(jobs.fail, "oh no")
    assert [(each.state, str(each.error)) for each in ran] == [("failed", "oh no")]


def test_inline_can_keep_errors_and_tries_again(nowhere: Queue) -> None:
    with inline(nowhere, raise_errors=False) as ran:
        failed = nowhere.options(max_retries=1).add_task(jobs.fail, "oh no")
        assert nowhere.add_task(jobs.fail_at_first, 2).result == 3
    assert (failed.state, failed.error, failed.row().failures) == ("failed", "ValueError: oh no", 1)
    assert len(ran) == 5
    with pytest.raises(TaskFailed, match="oh no"):
        failed.wait()
    for change in (failed.retry, failed.cancel, failed.stop):
        with pytest.raises(NotAllowed, match="in no database"):
            change()


def test_inline_heeds_retry_and_cancel(nowhere: Queue) -> None:
    with inline(nowhere):
        assert nowhere.add_task(jobs.retry_at_first, 2).result == 3
        off = nowhere.add_task(jobs.call_off)
        with pytest.raises(Retry):
            nowhere.options(max_retries=0).add_task(jobs.retry_at_first, 99)
    assert (off.state, off.error) == ("cancelled", "Cancel: no need")
    with pytest.raises(TaskCancelled):
        off.wait()


def test_inline_runs_children_after_their_parents(nowhere: Queue) -> None:
    with inline(nowhere) as ran:
        parent = nowhere.add_task(jobs.add_child, "a")
        assert nowhere.add_task(jobs.sum_parents, parent=parent).result == 1
        nowhere.add_task(adds_two)
        with pytest.raises(ParentNotFound):
            nowhere.add_task(jobs.note, 1, parent="0190d3f0-0000-7000-8000-000000000000")
    assert jobs.seen == ["a's friend", "a", "a's child", "first", "adds_two", "second"]
    assert {each.state for each in ran} == {"done"}


def test_inline_lets_children_fall_with_their_parents(nowhere: Queue) -> None:
    with inline(nowhere, raise_errors=False), nowhere.batch() as batch:
        parent = batch.options(max_retries=0).add_task(jobs.fail)
        child = batch.add_task(jobs.note, "child", parent=parent)
        grandchild = batch.add_task(jobs.note, "grandchild", parent=child)
        batch.options(on_parent_failure="run").add_task(jobs.note, "cleared up", parent=parent)
    assert [ref.state for ref in (parent, child, grandchild)] == ["failed", "cancelled", "cancelled"]
    assert child.error == f"ParentFailed: kit_jobs.fail ({parent.id}) ended as failed"
    assert jobs.seen == ["cleared up"]


def test_a_batch_that_raises_runs_nothing(nowhere: Queue) -> None:
    def add() -> None:
        with nowhere.batch() as batch:
            batch.add_task(jobs.note, 1)
            raise ZeroDivisionError

    with inline(nowhere), pytest.raises(ZeroDivisionError):
        add()
    assert jobs.seen == []


def test_inline_calls_hooks_and_hands_context_down(nowhere: Queue) -> None:
    called: list[str] = []
    nowhere.on_pre_create(lambda spec: called.append("pre_create"))
    nowhere.on_post_create(lambda ref: called.append(f"post_create {ref.state}"))
    nowhere.on_post_run(lambda task, result, error: called.append("post_run"))
    set_context("request_id", 7)
    with inline(nowhere):
        ref = nowhere.add_task(jobs.tell)
    clear_context()
    assert called == ["pre_create", "post_create enqueued", "post_run"]
    assert ref.context == {"request_id": 7, "progress": {"rows": 3}, "later": 1}
    assert [(line.type, line.message, line.attempt) for line in ref.logs()] == [("warning", "half way", 1)]


def test_a_line_is_kept_once_however_many_capture(nowhere: Queue) -> None:
    with inline(nowhere) as ran:
        nowhere.add_task(adds_teller)
    assert [[line.message for line in each.ref.logs()] for each in ran] == [["half way"], []]


def test_inline_replaces_what_has_not_begun(nowhere: Queue) -> None:
    with inline(nowhere) as ran, nowhere.batch() as batch:
        keyed = batch.options(unique_key="a", on_conflict="replace")
        first = keyed.options(context={"by": "first"}).add_task(jobs.note, 1)
        second = keyed.options(context={"by": "second"}).add_task(jobs.note, 2)
        assert (first.id, second.created) == (second.id, False)
    assert [(one.ref.id, one.result, one.context["by"]) for one in ran] == [(first.id, 2, "second")]


def replaces_its_like() -> None:
    jobs.queue.options(unique_key="a", on_conflict="replace").add_task(jobs.note, 2)


def test_inline_replaces_what_runs_only_if_it_was_added_to_be_replaced(nowhere: Queue) -> None:
    with inline(nowhere):
        with pytest.raises(DuplicateTask, match="which is doing"):
            nowhere.options(unique_key="a").add_task(replaces_its_like)
        nowhere.options(unique_key="a", on_conflict="replace").add_task(replaces_its_like)
    assert jobs.seen == [2]


def test_inline_holds_unique_keys_while_a_task_runs(nowhere: Queue) -> None:
    with inline(nowhere):
        first = nowhere.options(unique_key="a").add_task(jobs.note, 1)
        assert nowhere.options(unique_key="a").add_task(jobs.note, 2).created
        with nowhere.batch() as batch:
            third = batch.options(unique_key="b").add_task(jobs.note, 3)
            fourth = batch.options(unique_key="b").add_task(jobs.note, 4)
            with pytest.raises(DuplicateTask):
                batch.options(unique_key="b", on_conflict="raise").add_task(jobs.note, 5)
    assert (first.created, fourth.created, fourth == third) == (True, False, True)
    assert jobs.seen == [1, 2, 3]


def test_inside_inline_a_task_has_the_queue_s_database(queue: Queue, database_url: str) -> None:
    execute(database_url, "CREATE TABLE orders (number integer)")
    with inline(queue):
        assert queue.add_task(jobs.insert_with_own_connection).result == 1
        connection = jobs.connection = raw_connection(database_url, autocommit=False)
        ref = queue.add_task(jobs.finish_with, "given")
        connection.close()
    assert (ref.state, ref.result) == ("done", "finished")
    assert execute(database_url, "SELECT number FROM orders ORDER BY 1") == [(2,), (4,)]
    assert queue.find() == []
    assert queue.add_task(jobs.note, 1).state == "enqueued"


# ------------------------------------------------------------------------------------------------------------- perform


def test_perform_runs_a_function_as_a_task() -> None:
    result = perform(asks, (1, 2), parent="mine")
    assert result == [[[1, 2]], {"parent": "mine"}, f"{__name__}.asks", 1, {}]
    assert perform(jobs.wait_a_little) == 7
    assert perform(jobs.greet, "you") == "hello you"
    assert perform(jobs.tell) == "kit_jobs.tell 1"


def test_perform_raises_what_is_raised() -> None:
    with pytest.raises(ValueError, match="oh no"):
        perform(jobs.fail, "oh no")
    with pytest.raises(Cancel):
        perform(jobs.call_off)
    with pytest.raises(Retry):
        perform(jobs.retry_at_first, 3)
    with pytest.raises(NotSerializable):
        perform(jobs.note, object())
    with pytest.raises(InvalidTask):
        perform(lambda: None)
    with pytest.raises(NotInTask):
        current_task()


# ------------------------------------------------------------------------------------------------------------ enqueued


def test_a_task_is_found_by_its_function_and_arguments(queue: Queue) -> None:
    ref = queue.options(channel="mail", priority=5, delay=60).add_task(jobs.note, (1, 2))
    assert assert_enqueued(queue, jobs.note, (1, 2)) == [ref]
    assert assert_enqueued(queue, jobs.note) == assert_enqueued(queue, "kit_jobs:note", ANY) == [ref]
    having = {"channel": "mail", "priority": 5, "delay": timedelta(minutes=1), "state": "waiting", "args": [ANY]}
    assert_enqueued(queue, jobs.note, having=having)
    refute_enqueued(queue, jobs.note, [1, 2])
    refute_enqueued(queue, jobs.note, (1, 2), having={"channel": "default"})
    refute_enqueued(queue, jobs.greet)
    child = queue.options(context={"a": 1, "b": 2}).add_task(jobs.greet, name="you", parent=ref)
    assert assert_enqueued(queue, jobs.greet, name="you", having={"parent": ref, "context": {"a": 1}}) == [child]
    with pytest.raises(TypeError, match="there is no 'chanel'; there are args, backoff, channel"):
        assert_enqueued(queue, jobs.note, having={"chanel": "mail"})


def test_what_is_not_there_is_answered_with_what_is(queue: Queue) -> None:
    with pytest.raises(AssertionError, match=r"no task kit_jobs:note\(…\) is enqueued; there is no task that has not"):
        assert_enqueued(queue, "kit_jobs:note")
    queue.add_task(jobs.greet, "you")
    queue.options(channel="mail").add_task(jobs.note, 8)
    queue.add_task(jobs.note, 7, more=1)
    with pytest.raises(AssertionError) as caught:
        assert_enqueued(queue, jobs.note, 7, having={"priority": 5})
    assert str(caught.value).splitlines() == [
        "no task kit_jobs:note(7) having priority=5 is enqueued; there are:",
        "  kit_jobs:note(7, more=1)  enqueued, channel default, priority=0",
        "  kit_jobs:note(8)  enqueued, channel mail, priority=0",
        "  kit_jobs:greet('you')  enqueued, channel default, priority=0",
    ]
    with pytest.raises(AssertionError, match=r"1 × kit_jobs:greet\(…\) enqueued"):
        refute_enqueued(queue, jobs.greet)


def test_what_is_not_committed_is_found_on_its_connection(queue: Queue, database_url: str) -> None:
    connection = raw_connection(database_url, autocommit=False)
    queue.options(connection=connection).add_task(jobs.note, 1)
    refute_enqueued(queue, jobs.note)
    assert_enqueued(queue, jobs.note, 1, connection=connection)
    connection.close()


def test_what_has_ended_is_not_enqueued(queue: Queue) -> None:
    queue.add_task(jobs.note, 1)
    drain(queue)
    refute_enqueued(queue, jobs.note)


# --------------------------------------------------------------------------------------------------------- time travel


def test_travelling_lets_delays_and_schedules_come(queue: Queue, database_url: str) -> None:
    ref = queue.options(delay=timedelta(days=2)).add_task(jobs.note, 1)
    execute(
        database_url,
        "INSERT INTO queued_task_schedules (name, function, cron, date_next) VALUES ('s', 'kit_jobs:note', "
        "'0 0 1 1 *', '2100-01-01 00:00+00')",
    )
    before = ref.row()
    travel(queue, timedelta(days=1))
    assert drain(queue) == []
    travel(queue, 86400)
    after = ref.row()
    assert after.date_created == before.date_created - timedelta(days=2)
    assert len(drain(queue)) == 1
    (row,) = queue.schedules()
    assert row.date_next == datetime(2099, 12, 30, tzinfo=UTC)
    assert queue.purge(older_than=60) == 0
    travel(queue, 61)
    assert queue.purge(older_than=60) == 1
    with pytest.raises(InvalidTask, match="seconds"):
        travel(queue, -1)


def test_travelling_renews_a_channel_s_rate(queue: Queue, database_url: str) -> None:
    execute(
        database_url, "INSERT INTO queued_task_channels (name, max_starts, per_seconds) VALUES ('default', 1, 3600)"
    )
    for number in range(2):
        queue.add_task(jobs.note, number)
    assert len(drain(queue)) == 1
    travel(queue, 60)
    assert drain(queue) == []
    travel(queue, 3600)
    assert len(drain(queue)) == 1


# ---------------------------------------------------------------------------------------- the application's own queue


def test_a_queue_of_the_application_works_on_the_test_s_database(database_url: str) -> None:
    url, config, database = jobs.own_queue.config.database_url, jobs.own_queue.config, jobs.own_queue.database
    adder = jobs.own_queue.options(priority=3)
    with queue_on(jobs.own_queue, database_url) as queue:
        assert queue is jobs.own_queue
        queue.config.max_workers = 1
        ref = jobs.greet.delay("you")
        other = adder.add_task(jobs.greet, "me")
        assert [each.result for each in drain(queue)] == ["hello me", "hello you"]
        assert ref.result == "hello you"
        assert (other.row().priority, ref.wait(1)) == (3, "hello you")
    assert (jobs.own_queue.config, jobs.own_queue.database) == (config, database)
    assert jobs.own_queue.config.database_url == url
    assert execute(database_url, "SELECT count(*) FROM queued_tasks") == [(2,)]


def test_a_worker_of_the_application_s_queue_works_there(database_url: str) -> None:
    with queue_on(jobs.own_queue, database_url) as queue:
        ref = jobs.greet.delay("you")
        manager = Manager(queue, burst=True)
        manager.start()
        manager.run()
        wait_until(lambda: ref.state == "done")
