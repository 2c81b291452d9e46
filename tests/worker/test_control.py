"""Cancelling and stopping what runs: how soon it is told, what ends it, and that it does not run again."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import execute, has_begun, wait_until
from queuedtask import NotAllowed, Queue, TaskCancelled, TaskNotFound, TaskRef
from queuedtask.model import states
from queuedtask.model.task import new_id

sys.path.insert(0, str(Path(__file__).parent))
import hostile_jobs
import worker_jobs as jobs
from inside import attempts, ended, fresh_event, working
from test_isolation import add_suspect
from trees import tree

__all__ = ["add_suspect", "fresh_event"]  # fixtures

FAR = 3600.0


def running(manager: Any, ref: TaskRef) -> Any:
    """Return the attempt of a task, once its own code runs."""

    def found() -> Any:
        return next((a for a in manager._running() if a.task.id == ref.id and a.began is not None), None)

    return wait_until(found, message=f"{ref} runs")


def error(ref: TaskRef) -> tuple[str | None, str | None]:
    row = ref.row()
    return row.error_type, row.error_message


def order_unheard(url: str, ref: TaskRef, name: str) -> None:
    """Give an order of which the worker does not hear: no notification goes with it."""
    execute(url, f"UPDATE queued_tasks SET {name}_requested = now() WHERE id = %s AND state = 'doing'", (ref.id,))


# ------------------------------------------------------------------------------------------------------------ pending


@pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("stop", "stopped")])
def test_a_pending_task_ends_at_once(queue: Queue, verb: str, state: str) -> None:
    for ref in (queue.add_task("a:b"), queue.options(delay=60).add_task("a:b")):
        getattr(ref, verb)()
        assert ref.state == state
        with pytest.raises(NotAllowed, match=f"is {state}: only one that is waiting, enqueued, doing can be {state}"):
            getattr(ref, verb)()
        ref.retry()
        assert ref.state == "enqueued"


def test_a_task_that_is_not_there_cannot_be_cancelled(queue: Queue) -> None:
    with pytest.raises(TaskNotFound):
        TaskRef(queue, new_id(), created=False).cancel()


def test_many_are_cancelled_by_what_they_have_in_common(queue: Queue) -> None:
    mail = [queue.options(channel="mail").add_task("a:b") for _ in range(3)]
    named = queue.options(name="report", delay=60).add_task("a:b")
    other = queue.add_task("a:b")
    assert queue.cancel(channel="mail", limit=2) == mail[:2]
    assert queue.cancel(name="report", state="enqueued") == []
    assert queue.cancel(name="report", state=("waiting", "enqueued")) == [named]
    assert queue.stop(since=3600) == [mail[2], other]
    assert [ref.state for ref in (*mail, named, other)] == ["cancelled", "cancelled", "stopped", "cancelled", "stopped"]


@pytest.mark.parametrize("verb", ["cancel", "stop"])
def test_a_bulk_order_wants_a_condition_that_can_be(queue: Queue, verb: str) -> None:
    ref = queue.add_task("a:b")
    with pytest.raises(ValueError, match=rf"queue\.{verb}\(\): give a condition"):
        getattr(queue, verb)()
    for state in ("done", "running", ()):
        with pytest.raises(ValueError, match="waiting, enqueued, doing"):
            getattr(queue, verb)(state=state)
    assert ref.state == "enqueued"


def test_thousands_are_cancelled_while_workers_claim_and_settle_them(queue: Queue, database_url: str) -> None:
    with queue.batch() as batch:
        for _ in range(3000):
            batch.add_task(jobs.sleep, 0.002)  # long enough for the order to come before the last of them
    with working(queue):
        wait_until(lambda: queue.find(state="done", limit=1))
        cancelled = queue.cancel(state=("waiting", "enqueued", "doing"))
        wait_until(lambda: not queue.find(state="doing", limit=1) and not queue.find(state="enqueued", limit=1))
    counts = dict(execute(database_url, "SELECT state, count(*) FROM queued_tasks GROUP BY state"))
    assert sum(counts.values()) == 3000
    assert set(counts) == {"done", "cancelled"}
    assert 0 < counts["cancelled"] <= len(cancelled)


# ------------------------------------------------------------------------------------------------------------ running


def test_a_running_task_is_asked_to_end_and_ends_as_cancelled(queue: Queue) -> None:
    with working(queue) as manager:
        ref = queue.add_task(jobs.raise_when_told)
        attempt = running(manager, ref)
        began = time.monotonic()
        ref.cancel()
        wait_until(lambda: attempt.should_abort, interval=0.001)
        assert time.monotonic() - began < 1.0
        ended(ref, "cancelled")
    assert error(ref) == ("TaskCancelled", "the task was cancelled while it was running")
    assert "told to abort" in (ref.row().error_traceback or "")
    assert (ref.row().failures, attempts(queue, ref)) == (0, [])


def test_the_worker_hears_of_it_within_a_tenth_of_a_second(queue: Queue) -> None:
    spans = []
    with working(queue) as manager:
        for _ in range(10):
            ref = queue.add_task(jobs.wait_for_abort)
            attempt = running(manager, ref)
            began = time.monotonic()
            ref.cancel()
            wait_until(lambda a=attempt: a.should_abort, interval=0.001)  # type: ignore[misc]
            spans.append(time.monotonic() - began)
            ended(ref)
    assert sorted(spans)[5] < 0.1, spans


def test_without_notify_it_hears_of_it_by_polling(queue: Queue) -> None:
    with working(queue, use_postgresql_notify=False, polling_interval=0.1):
        ref = queue.add_task(jobs.raise_when_told)
        wait_until(lambda: has_begun(ref))
        ref.cancel()
        ended(ref, "cancelled")


def test_a_task_that_returns_before_it_has_to_end_is_done(queue: Queue) -> None:
    with working(queue) as manager:
        ref, coroutine = queue.add_task(jobs.wait_for_abort), queue.add_task(jobs.clean_up_and_return)
        for each in (ref, coroutine):
            running(manager, each)
            each.cancel()
        assert ended(ref).result == "told to abort"
        assert ended(coroutine).result == "returned"
        assert coroutine.context == {"cleaned": True}


@pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("stop", "stopped")])
def test_a_coroutine_is_cancelled_at_once(queue: Queue, verb: str, state: str) -> None:
    with working(queue, timeout_grace=60) as manager:
        ref = queue.add_task(jobs.sleep_async, 60)
        running(manager, ref)
        getattr(ref, verb)()
        ended(ref, state, 5)


def test_a_loop_is_cancelled_after_the_grace_and_stopped_at_once(queue: Queue) -> None:
    with working(queue, timeout_grace=0.7) as manager:
        cancelled, stopped = queue.add_task(jobs.spin), queue.add_task(jobs.spin)
        began = {}
        for ref, verb in ((cancelled, cancelled.cancel), (stopped, stopped.stop)):
            running(manager, ref)
            verb()
            began[ref] = time.monotonic()
        ended(stopped, "stopped")
        assert time.monotonic() - began[stopped] < 0.7
        ended(cancelled, "cancelled")
        assert time.monotonic() - began[cancelled] > 0.6
        assert not manager._pool.stuck
    assert error(stopped) == ("TaskStopped", "the task was stopped while it was running")
    assert "in spin" in (stopped.row().error_traceback or "")


def test_a_cancelled_task_can_be_stopped_when_that_takes_too_long(queue: Queue) -> None:
    with working(queue, timeout_grace=60) as manager:
        ref = queue.add_task(jobs.spin)
        running(manager, ref)
        ref.cancel()
        wait_until(lambda: running(manager, ref).should_abort)
        ref.stop()
        ended(ref, "stopped", 5)


@pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("stop", "stopped")])
def test_what_is_stuck_in_a_call_is_given_up_and_its_slot_goes_on(queue: Queue, verb: str, state: str) -> None:
    with working(queue, max_workers=1, timeout_grace=0.3, max_stuck_slots=9) as manager:
        ref = queue.add_task(jobs.sleep, 4.0)
        running(manager, ref)
        getattr(ref, verb)()
        ended(ref, state, 3)
        assert len(manager._pool.stuck) == 1
        assert ended(queue.add_task(jobs.add, 1, 1), timeout=3).result == 2
        assert error(ref)[1] == f"the task was {state} while it was running and did not end; its slot was replaced"
        assert "in sleep" in (ref.row().error_traceback or "")
        assert any("did not end" in line.message for line in ref.logs())


@pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("stop", "stopped")])
@pytest.mark.parametrize("job", [jobs.sleep_for_long, jobs.spin, jobs.sleep_async_for_long], ids=lambda j: j.__name__)
def test_what_runs_in_a_process_of_its_own_ends_too(
    queue: Queue, add_suspect: Callable[..., TaskRef], job: Callable[[], object], verb: str, state: str
) -> None:
    with working(queue, timeout_grace=0.5) as manager:
        ref = add_suspect(job)
        wait_until(lambda: any(a.process and a.began for a in manager._running()), 30)
        getattr(ref, verb)()
        ended(ref, state, 10)
        assert ref.row().lost_count == 1
        assert ended(queue.add_task(jobs.add, 1, 1)).result == 2


def test_what_was_claimed_and_not_begun_ends_at_once_and_the_others_wait_on(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("queuedtask.worker.manager.PATIENCE", FAR)
    with working(queue, max_workers=1) as manager:
        # Short tasks are claimed ahead.
        for _ in range(3):
            [ended(ref) for ref in [queue.add_task(jobs.add, 1, 1) for _ in range(20)]]
        with queue.batch() as batch:
            blocked = batch.add_task(jobs.blocked)
            others = [batch.add_task(jobs.add, n, n) for n in range(4)]
        running(manager, blocked)
        wait_until(lambda: manager._pool.waiting == 4)
        others[1].cancel()
        others[2].stop()
        ended(others[1], "cancelled")
        ended(others[2], "stopped")
        assert error(others[1]) == ("TaskCancelled", "the task was cancelled")
        assert (blocked.state, manager._pool.waiting) == ("doing", 2)
        jobs.released.set()
        assert [ended(ref).result for ref in (blocked, others[0], others[3])] == ["released", 0, 6]


def test_claims_and_cancels_race_200_times_and_nothing_runs_on(queue: Queue) -> None:
    with working(queue):
        refs = []
        for _ in range(200):
            ref = queue.add_task(jobs.raise_when_told)
            ref.cancel()
            refs.append(ref)
        for ref in refs:
            ended(ref, "cancelled", 20)


def test_a_worker_that_is_told_to_end_still_hears_of_orders(queue: Queue) -> None:
    with working(queue) as manager:
        ref = queue.add_task(jobs.spin)
        running(manager, ref)
        manager.stop(60)
        ref.stop()
        ended(ref, "stopped", 5)


# ------------------------------------------------------------------------------------------- orders that are not heard


@pytest.mark.parametrize(("name", "state"), [("cancel", "cancelled"), ("stop", "stopped")])
def test_an_attempt_that_fails_before_its_worker_has_heard_is_not_retried(
    queue: Queue, database_url: str, name: str, state: str
) -> None:
    with working(queue) as manager:
        ref = queue.add_task(jobs.fail_when_released)
        running(manager, ref)
        order_unheard(database_url, ref, name)
        jobs.released.set()
        ended(ref, state)
    assert (ref.row().attempt, attempts(queue, ref)) == (1, [(1, "raised", "ValueError")])


def test_what_a_shutdown_gives_back_does_not_run_again(queue: Queue, database_url: str) -> None:
    with working(queue) as manager:
        cancelled, free = queue.add_task(jobs.spin), queue.add_task(jobs.spin)
        for ref in (cancelled, free):
            running(manager, ref)
        order_unheard(database_url, cancelled, "cancel")
        manager.stop(0)
        wait_until(lambda: free.state == "enqueued")
        ended(cancelled, "cancelled")


@pytest.mark.parametrize("lost", ["LIKE 'LISTEN%%'", "NOT LIKE 'LISTEN%%'"], ids=["listening", "talking"])
def test_an_order_is_found_after_an_outage(queue: Queue, database_url: str, lost: str) -> None:
    with working(queue, heartbeat_interval=0.2) as manager:
        ref = queue.add_task(jobs.raise_when_told)
        running(manager, ref)
        order_unheard(database_url, ref, "cancel")
        execute(
            database_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            f" AND pid <> pg_backend_pid() AND query {lost}",
            (),
        )
        queue.close()  # the pool's connections may be dead as well
        ended(ref, "cancelled", 20)


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("stop", "stopped")])
def test_what_its_process_takes_along_does_not_run_again(
    queue: Queue, database_url: str, verb: str, state: str
) -> None:
    with tree(database_url, "-w", "2", timeout_grace=60) as worker:
        wait_until(queue.workers, 20)
        ordered, free = queue.add_task(hostile_jobs.swallow), queue.add_task(hostile_jobs.sleep, 60)
        for ref in (ordered, free):
            wait_until(lambda r=ref: has_begun(r), 20)  # type: ignore[misc]
        getattr(ordered, verb)()
        os.kill(worker.children()[0], signal.SIGKILL)
        ended(ordered, state, 30)
        wait_until(lambda: free.row().lost_count == 1, 30)
        assert ordered.row().attempt == 1
        assert attempts(queue, ordered) == [(1, "lost", "WorkerLost")]


@pytest.mark.slow
def test_a_tree_ends_what_is_stuck_and_what_swallows_everything(queue: Queue, database_url: str) -> None:
    with tree(database_url, "-w", "4", timeout_grace=1) as worker:
        wait_until(queue.workers, 20)
        bodies = [hostile_jobs.swallow, hostile_jobs.acquire, hostile_jobs.loop_async, hostile_jobs.swallow_and_wait]
        refs = [queue.add_task(body) for body in bodies]
        for ref in refs:
            wait_until(lambda r=ref: has_begun(r), 20)  # type: ignore[misc]
        for ref, verb in zip(refs, ("cancel", "stop", "cancel", "stop"), strict=True):
            getattr(ref, verb)()
        for ref, state in zip(refs, ("cancelled", "stopped", "cancelled", "stopped"), strict=True):
            ended(ref, state, 15)
        assert ended(queue.add_task(hostile_jobs.noop), timeout=20)
        assert worker.stop() == 0
    assert not queue.find(state=states.DOING)


# ------------------------------------------------------------------------------------------------------------- families


@pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("stop", "stopped")])
def test_what_waits_for_a_pending_task_falls_with_it(queue: Queue, verb: str, state: str) -> None:
    parent = queue.options(delay=FAR).add_task(jobs.add, 1, 1)
    child = queue.add_task(jobs.add, 1, 1, parent=parent)
    grandchild = queue.add_task(jobs.add, 1, 1, parent=child)
    clean_up = queue.options(on_parent_failure="run").add_task(jobs.add, 2, 2, parent=grandchild)
    with working(queue):
        getattr(parent, verb)()
        assert parent.state == state
        for each in (child, grandchild):
            with pytest.raises(TaskCancelled) as raised:
                each.wait(10)
            assert raised.value.type == "ParentFailed"
            assert parent.id in str(raised.value.message)
        # Nobody waits for the worker to poll.
        assert clean_up.wait(10) == 4


def test_whole_families_are_called_off_by_what_they_have_in_common(queue: Queue) -> None:
    parents = [queue.options(channel="mail").add_task(jobs.add, 1, 1) for _ in range(3)]
    children = [queue.add_task(jobs.add, 1, 1, parent=parent) for parent in parents]
    related = [queue.options(channel="mail").add_task(jobs.add, 1, 1, parent=parents) for _ in range(3)]
    assert set(queue.cancel(channel="mail")) == {*parents, *related}
    assert {ref.state for ref in (*parents, *children, *related)} == {"cancelled"}
    assert {ref.row().error_type for ref in children} == {"ParentFailed"}


@pytest.mark.parametrize("is_heard", [True, False])
def test_what_waits_for_a_running_task_falls_when_it_has_ended(queue: Queue, database_url: str, is_heard: bool) -> None:
    with working(queue) as manager:
        parent = queue.add_task(jobs.raise_when_told if is_heard else jobs.fail_when_released)
        child = queue.add_task(jobs.add, 1, 1, parent=parent)
        running(manager, parent)
        if is_heard:
            parent.cancel()
        else:
            order_unheard(database_url, parent, "cancel")
            jobs.released.set()
        with pytest.raises(TaskCancelled, match="ParentFailed"):
            child.wait(10)
        assert parent.state == "cancelled"


def test_families_are_called_off_while_workers_settle_them_and_nobody_notices_a_deadlock(
    queue: Queue, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with queue.batch() as batch:
        parents = [batch.options(channel="old").add_task(jobs.add, n, n) for n in range(300)]
        for n in range(600):
            around = [parents[(n * 7 + step) % 300] for step in range(5)]
            batch.options(channel="old" if n % 2 else "new").add_task(jobs.add, n, n, parent=around)
    raised: list[BaseException] = []

    def call_off() -> None:
        try:
            for _ in range(5):
                queue.cancel(channel="old", limit=100)
                queue.stop(channel="new", limit=10)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=call_off) for _ in range(3)]
    with caplog.at_level(logging.WARNING, "queuedtask"), working(queue):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        left = "SELECT count(*) FROM queued_tasks WHERE state IN ('waiting', 'enqueued', 'doing')"
        wait_until(lambda: execute(database_url, left) == [(0,)], 60)
    assert not raised
    assert [record.getMessage() for record in caplog.records] == []
