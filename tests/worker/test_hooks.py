"""Hooks in real workers: in slots, in supervised processes, in isolated ones; and context that travels down."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import execute, raw_connection, wait_until
from queuedtask import NotAllowed, Queue, TaskRef, clear_context, current_task, set_context
from queuedtask.run.hooks import TaskView

sys.path.insert(0, str(Path(__file__).parent))
import worker_jobs as jobs
from inside import attempts, ended, fresh_event, working
from trees import tree

__all__ = ["fresh_event"]  # a fixture

APPLICATION = ("-a", "hooked_app:queue")


def make_suspect(url: str, ref: TaskRef) -> None:
    execute(
        url,
        "UPDATE queued_tasks SET lost_count = 1, state = 'enqueued', date_scheduled = NULL WHERE id = %s "
        "RETURNING pg_notify('queue_new_task', '')",
        (ref.id,),
    )


# ------------------------------------------------------------------------------------------------------------- in slots


def test_a_hook_before_that_raises_makes_the_attempt_fail_and_be_retried(queue: Queue) -> None:
    @queue.on_pre_run
    def refuse(task: TaskView) -> None:
        if task.attempt == 1:
            raise ValueError("not the first time")

    with working(queue):
        ref = queue.options(max_retries=1).add_task(jobs.token)
        wait_until(lambda: ref.state == "waiting")
        row = ref.row()
        assert (row.failures, row.error_type, row.error_message) == (1, "ValueError", "not the first time")
        assert "in refuse" in (row.error_traceback or "")
        execute(str(queue.config.database_url), "UPDATE queued_tasks SET date_scheduled = now() RETURNING 1")
        assert ended(ref).result == [ref.id, 2]
    assert attempts(queue, ref) == [(1, "raised", "ValueError")]


def test_the_hook_behind_is_told_of_a_task_that_is_refused(queue: Queue, database_url: str) -> None:
    told: list[str] = []

    @queue.on_post_run
    def note(task: TaskView, result: object, error: BaseException | None) -> None:
        told.append(type(error).__name__)

    ref = queue.add_task(jobs.token)
    execute(database_url, "UPDATE queued_tasks SET pickled_function = 'forged' WHERE id = %s RETURNING 1", (ref.id,))
    with working(queue):
        ended(ref, "failed")
    assert told == ["InvalidSignature"]


@pytest.mark.parametrize("function", [jobs.spin, jobs.sleep_async_for_long])
def test_the_hook_behind_is_told_of_a_timeout_and_what_it_sets_and_logs_is_kept(queue: Queue, function: Any) -> None:
    left: list[object] = []

    @queue.around_run
    async def around(task: TaskView) -> AsyncIterator[None]:
        try:
            yield
        finally:
            left.append(task.id)

    @queue.on_post_run
    def behind(task: TaskView, result: object, error: BaseException | None) -> None:
        set_context("error", type(error).__name__)
        raise LookupError("the hook's own")

    with working(queue):
        ref = ended(queue.options(timeout=0.3, max_retries=0).add_task(function), "failed")
    row = ref.row()
    assert (row.error_type, ref.context, left) == ("TaskTimeout", {"error": "TaskTimeout"}, [ref.id])
    (line,) = ref.logs()
    assert (line.type, line.name) == ("error", "queuedtask.hooks")
    assert "behind failed" in line.message
    assert "LookupError: the hook's own" in line.message


@pytest.mark.parametrize("where", ["around", "before"])
def test_a_hook_that_hangs_before_the_task_times_out(queue: Queue, where: str) -> None:
    def before(task: TaskView) -> None:
        jobs.spin()

    async def around(task: TaskView) -> AsyncIterator[None]:
        await asyncio.sleep(60)
        yield

    if where == "before":
        queue.on_pre_run(before)
    else:
        queue.around_run(around)
    with working(queue, max_workers=1):
        row = ended(queue.options(timeout=0.3, max_retries=0).add_task(jobs.add, 1, 1), "failed").row()
        assert (row.error_type, row.failures) == ("TaskTimeout", 1)


@pytest.mark.parametrize("where", ["before", "behind", "around"])
def test_a_hook_that_blocks_for_ever_does_not_keep_the_slot(queue: Queue, where: str) -> None:
    held = threading.Event()
    is_first = iter([True])

    def block(*args: object) -> None:
        if next(is_first, False):
            held.wait(30)

    def around(task: TaskView) -> Iterator[None]:
        yield
        block()

    if where == "around":
        queue.around_run(around)
    elif where == "before":
        queue.on_pre_run(block)
    else:
        queue.on_post_run(block)
    with working(queue, max_workers=1, max_stuck_slots=9, timeout_grace=0.3) as manager:
        ref = queue.options(timeout=0.3, max_retries=0).add_task(jobs.add, 1, 1)
        row = ended(ref, "failed").row()
        assert (row.error_type, ended(queue.add_task(jobs.add, 1, 1)).result) == ("TaskTimeout", 2)
        held.set()
        wait_until(lambda: not manager.is_abandoning)


def test_a_slow_hook_behind_that_ends_in_the_grace_leaves_a_success_a_success(queue: Queue) -> None:
    @queue.on_post_run
    def behind(task: TaskView, result: object, error: BaseException | None) -> None:
        assert error is None
        while not current_task().should_abort():  # the deadline has passed
            time.sleep(0.01)
        time.sleep(0.1)
        set_context("behind", "ended")

    with working(queue):
        ref = ended(queue.options(timeout=0.3).add_task(jobs.add, 1, 1))
    assert (ref.result, ref.context, ref.row().attempt) == (2, {"behind": "ended"}, 1)


def test_a_hook_behind_may_write_with_a_connection_after_a_timeout_in_sql(queue: Queue, database_url: str) -> None:
    execute(database_url, "CREATE TABLE ends (task text, error text)")

    @queue.on_post_run
    def behind(task: TaskView, result: object, error: BaseException | None) -> None:
        with current_task().connection() as connection:
            # Longer than it takes to cancel a task's SQL a second time.
            connection.exec_driver_sql("SELECT pg_sleep(1.2)")
            connection.exec_driver_sql("INSERT INTO ends VALUES (%s, %s)", (task.id, type(error).__name__))

    with working(queue):
        ref = ended(queue.options(timeout=0.3, max_retries=0).add_task(jobs.sleep_in_sql, 60.0), "failed")
    assert [line.message for line in ref.logs()] == []
    assert execute(database_url, "SELECT * FROM ends") == [(ref.id, "TaskTimeout")]


def test_a_task_that_finishes_in_its_transaction_tells_the_hook_behind_its_result(queue: Queue) -> None:
    told: list[object] = []

    @queue.on_post_run
    def behind(task: TaskView, result: object, error: BaseException | None) -> None:
        told.append((result, error))
        with pytest.raises(NotAllowed), current_task().transaction():
            pass

    @queue.on_post_run
    def finish(task: TaskView, result: object, error: BaseException | None) -> None:
        if task.name.endswith("add"):
            with current_task().transaction():
                raise AssertionError("a hook has finished the task")

    with working(queue):
        ref = ended(queue.add_task(jobs.finish_and_fail, 7))
        other = ended(queue.add_task(jobs.add, 1, 1))
    assert (ref.result, other.result, told) == (7, 2, [(7, None), (2, None)])
    assert "NotAllowed: a hook cannot finish the task" in other.logs()[0].message


# ------------------------------------------------------------------------------------------------------ other processes


def test_supervised_and_isolated_processes_have_the_hooks_of_the_application(queue: Queue, database_url: str) -> None:
    with tree(database_url, "-w", "2", *APPLICATION):
        plain = ended(queue.add_task("hooked_app:tell"), timeout=30)
        suspect = queue.options(delay=3600).add_task("hooked_app:tell")
        failing = queue.options(delay=3600, max_retries=0).add_task("hooked_app:tell", fail=True)
        make_suspect(database_url, suspect)
        make_suspect(database_url, failing)
        ended(suspect, timeout=30)
        ended(failing, "failed", timeout=30)
    for ref in (plain, suspect):
        pid = ref.result["process"]
        assert ref.result == {"process": pid, "variable": f"{ref.id} 1", "before": [ref.id, pid], "attempt": 1}
        assert ref.context == {"before": [ref.id, pid], "behind": [ref.result, "None"], "around": {"left": pid}}
    assert plain.result["process"] not in (suspect.result["process"], os.getpid())
    assert failing.context["behind"] == [None, "ValueError('boom')"]
    assert failing.context["around"]["left"] != plain.result["process"]


# ---------------------------------------------------------------------------------------------------------- inheritance


def test_context_from_outside_travels_down_and_what_a_task_sets_stays_its_own(queue: Queue, database_url: str) -> None:
    set_context("tenant", 7)
    try:
        root = queue.add_task("hooked_app:hand_down", 2)
    finally:
        clear_context()
    with tree(database_url, "-w", "1", *APPLICATION):
        wait_until(lambda: len(queue.find(state="done")) == 3, 30)
    generations = sorted(queue.find(), key=lambda ref: ref.id)
    assert generations[0] == root
    assert [ref.context["own"] for ref in generations] == [2, 1, 0]
    assert [ref.context["tenant"] for ref in generations] == ["changed by 2", "changed by 1", "changed by 0"]
    for ref in generations:
        assert ref.row().meta == '{"inherited": {"tenant": 7}}'


def test_a_retry_inherits_and_hands_down_the_same(queue: Queue, database_url: str) -> None:
    queue_of_jobs = queue
    children: list[TaskRef] = []

    @queue.on_post_run
    def add_child(task: TaskView, result: object, error: BaseException | None) -> None:
        if task.function.endswith("set_tenant_and_fail"):
            children.append(queue_of_jobs.add_task(jobs.add, 1, 1))

    set_context("tenant", 7)
    try:
        ref = queue.options(max_retries=1).add_task(jobs.set_tenant_and_fail)
    finally:
        clear_context()
    with working(queue):
        wait_until(lambda: ref.state == "waiting")
        execute(database_url, "UPDATE queued_tasks SET date_scheduled = now() WHERE id = %s RETURNING 1", (ref.id,))
        ended(ref, "failed")
        for child in children:
            ended(child)
    assert ref.context == {"tenant": 99}  # the first attempt's, which the second one found
    assert [child.context for child in children] == [{"tenant": 7}] * 2


def test_nothing_of_it_is_there_without_any(queue: Queue, database_url: str) -> None:
    with working(queue):
        ended(queue.add_task(jobs.set_often, 3))
    connection = raw_connection(database_url)
    with connection.cursor() as cursor:
        cursor.execute("SELECT meta FROM queued_tasks")
        assert cursor.fetchall() == [(None,)]
    connection.close()
