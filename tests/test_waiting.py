"""Waiting for the end of a task: what comes of it, who wakes, and that nobody polls for it."""

import contextlib
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from helpers import execute, raw_connection, wait_until
from queuedtask import (
    NotCommitted,
    Queue,
    TaskCancelled,
    TaskEnded,
    TaskFailed,
    TaskGone,
    TaskNotFound,
    TaskRef,
    TaskStopped,
)
from queuedtask.db import store
from queuedtask.db.store import Ending
from queuedtask.model import outcome
from queuedtask.model.outcome import Outcome
from queuedtask.model.task import Task, new_id

sys.path.insert(0, str(Path(__file__).parent / "worker"))
import worker_jobs as jobs
from inside import fresh_event, working

__all__ = ["fresh_event"]  # a fixture

FAR = 3600.0
ME = 7


@pytest.fixture(autouse=True)
def no_polling(queue: Queue) -> None:
    """Put off the looks that nobody has announced beyond the end of every test."""
    queue.config.polling_interval = queue.config.fallback_polling_interval = FAR


def end(url: str, ref: TaskRef, kind: str = outcome.RETURNED, **more: Any) -> None:
    """End a task as a worker would."""
    execute(url, "UPDATE queued_tasks SET state = 'doing', claimed_by = %s, attempt = 1 WHERE id = %s", (ME, ref.id))
    task = Task(ref.id, "", "a:b", "[]", "{}", None, 1, 0, 0, None)
    decision = outcome.decide(task, Outcome(kind, **more), max_retries=0, max_lost=1)
    with contextlib.closing(raw_connection(url)) as connection:
        store.settle(connection.cursor(), [Ending(task, decision, 1.0, None)], worker=ME)


class Waiting(threading.Thread):
    """A thread that waits for a task, and what came of it."""

    def __init__(self, ref: TaskRef, timeout: float | None = 20.0) -> None:
        super().__init__(daemon=True)
        self._ref = ref
        self._timeout = timeout
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended_at = 0.0
        self.start()

    def run(self) -> None:
        try:
            self.result = self._ref.wait(self._timeout)
        except BaseException as error:
            self.error = error
        self.ended_at = time.monotonic()

    def over(self, timeout: float = 10.0) -> "Waiting":
        self.join(timeout)
        assert not self.is_alive(), "still waiting"
        return self


def is_awaited(url: str, ref: TaskRef) -> Callable[[], bool]:
    return lambda: execute(url, "SELECT is_awaited FROM queued_tasks WHERE id = %s", (ref.id,)) == [(True,)]


@pytest.fixture
def waiting(queue: Queue, database_url: str) -> Callable[..., Waiting]:
    def begin(ref: TaskRef) -> Waiting:
        started = Waiting(ref)
        wait_until(is_awaited(database_url, ref), message="the wait stands in the row")
        return started

    return begin


def listeners(url: str) -> list[int]:
    found = execute(url, "SELECT pid FROM pg_stat_activity WHERE query = 'LISTEN \"queuedtask_done\"'")
    return [row[0] for row in found]


# -------------------------------------------------------------------------------------------------------- what comes


def test_the_result_comes_as_the_function_returned_it(
    queue: Queue, database_url: str, waiting: Callable[..., Waiting]
) -> None:
    ref = queue.add_task("a:b")
    one = waiting(ref)
    end(database_url, ref, result='{"sum": [1, 2]}')
    assert one.over().result == {"sum": [1, 2]}
    # What has ended is not waited for.
    assert ref.wait(0) == {"sum": [1, 2]}
    assert not is_awaited(database_url, ref)()


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (outcome.RAISED, TaskFailed),
        (outcome.TIMED_OUT, TaskFailed),
        (outcome.ASKED_FOR_CANCEL, TaskCancelled),
        (outcome.STOPPED, TaskStopped),
    ],
)
def test_any_other_end_is_an_error_with_what_is_stored(
    queue: Queue, database_url: str, waiting: Callable[..., Waiting], kind: str, error: type[TaskEnded]
) -> None:
    ref = queue.add_task("a:b")
    one = waiting(ref)
    end(database_url, ref, kind, error_type="shop.Busy", error_message="the line", error_traceback="Traceback …")
    raised = one.over().error
    assert type(raised) is error
    assert isinstance(raised, TaskEnded)
    stored = (ref.id, "shop.Busy", "the line", "Traceback …")
    assert (raised.task_id, raised.type, raised.message, raised.traceback) == stored
    assert str(raised).startswith(f"task {ref.id} ")
    assert str(raised).endswith(": shop.Busy: the line")
    # It travels, between processes for example.
    again = pickle.loads(pickle.dumps(raised))
    assert (type(again), again.traceback, str(again)) == (error, "Traceback …", str(raised))


def test_a_timeout_is_kept_and_changes_nothing(queue: Queue) -> None:
    ref = queue.add_task("a:b")
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"{ref.id} has not ended within 0\.3 s: it is enqueued"):
        ref.wait(0.3)
    assert 0.3 <= time.monotonic() - began < 3
    assert ref.state == "enqueued"
    with pytest.raises(TimeoutError):
        ref.wait(timeout=0)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_refused(queue: Queue, timeout: float) -> None:
    with pytest.raises(ValueError, match="wait"):
        queue.add_task("a:b").wait(timeout)


def test_a_task_that_is_not_there_is_not_waited_for(queue: Queue) -> None:
    with pytest.raises(TaskNotFound):
        TaskRef(queue, new_id(), created=False).wait(FAR)


def test_a_task_that_is_cleared_is_gone_at_once(queue: Queue, waiting: Callable[..., Waiting]) -> None:
    one = waiting(queue.add_task("a:b"))
    assert queue.clear() == 1
    assert isinstance(one.over().error, TaskGone)


def test_a_task_in_an_open_transaction_is_refused_at_once_and_waited_for_after_the_commit(
    queue: Queue, database_url: str
) -> None:
    engine = create_engine(database_url)
    with Session(engine) as session:
        ref = queue.options(connection=session).add_task("a:b")
        with pytest.raises(NotCommitted, match="commit it first"):
            ref.wait(FAR)
        session.commit()
        with pytest.raises(TimeoutError):
            ref.wait(0)
        rolled_back = queue.options(connection=session).add_task("a:b")
        session.rollback()
        with pytest.raises(NotCommitted):
            rolled_back.wait(FAR)
    engine.dispose()
    with queue.batch() as batch:
        of_batch = batch.add_task("a:b")
        with pytest.raises(NotCommitted):
            of_batch.wait(FAR)
    with pytest.raises(TimeoutError):
        of_batch.wait(0)


# --------------------------------------------------------------------------------------------------------- who wakes


def test_settling_and_waiting_at_the_same_instant_300_times(queue: Queue) -> None:
    """No waiter hangs: the look that would save it comes in an hour."""
    longest = 0.0
    with working(queue, fallback_polling_interval=FAR):
        for n in range(300):
            ref = queue.add_task(jobs.add, n, 1)
            began = time.monotonic()
            assert ref.wait(20) == n + 1
            longest = max(longest, time.monotonic() - began)
    assert longest < 5


def test_many_threads_wait_for_many_tasks_on_one_connection(queue: Queue, database_url: str) -> None:
    refs = [queue.options(delay=FAR).add_task(jobs.add, n, n) for n in range(40)]
    threads = [Waiting(ref, 60) for ref in refs for _ in range(3)]
    count = "SELECT count(*) FROM queued_tasks WHERE is_awaited"
    wait_until(lambda: execute(database_url, count) == [(40,)], 30)
    assert len(listeners(database_url)) == 1
    with working(queue):
        execute(
            database_url,
            "WITH due AS (UPDATE queued_tasks SET state = 'enqueued', date_scheduled = NULL RETURNING 1)"
            " SELECT pg_notify('queue_new_task', '') FROM due",
        )
        found = [thread.over(30) for thread in threads]
    assert [thread.error for thread in found] == [None] * 120
    assert [thread.result for thread in found] == [2 * n for n in range(40) for _ in range(3)]


def test_it_does_not_poll(queue: Queue, database_url: str, waiting: Callable[..., Waiting]) -> None:
    ref = queue.add_task("a:b")
    one = waiting(ref)
    looks: list[object] = []
    original = queue.database.autocommit

    def counted() -> Any:
        looks.append(1)
        return original()

    queue.database.autocommit = counted  # type: ignore[method-assign]
    time.sleep(1.0)
    assert looks == []
    end(database_url, ref)
    one.over()
    assert len(looks) == 1


def test_without_notify_it_looks_again_and_again_ever_more_seldom(queue: Queue, database_url: str) -> None:
    queue.config.use_postgresql_notify = False
    queue.config.polling_interval = 0.2
    ref = queue.add_task("a:b")
    one = Waiting(ref)
    time.sleep(0.3)
    end(database_url, ref)
    one.over(2.0)
    assert one.error is None
    assert not listeners(database_url)


def test_a_listening_connection_that_is_killed_is_replaced_and_nothing_is_missed(
    queue: Queue, database_url: str, waiting: Callable[..., Waiting]
) -> None:
    first, second = queue.add_task("a:b"), queue.add_task("a:b")
    one, other = waiting(first), waiting(second)
    (pid,) = listeners(database_url)
    execute(database_url, "SELECT pg_terminate_backend(%s)", (pid,))
    end(database_url, first)
    assert one.over().error is None
    wait_until(lambda: [each for each in listeners(database_url) if each != pid])
    end(database_url, second)
    assert other.over().error is None


def test_the_connection_is_kept_for_the_next_wait_and_closed_with_the_queue(queue: Queue, database_url: str) -> None:
    pids = set()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            queue.add_task("a:b").wait(0.05)
        wait_until(lambda: listeners(database_url))
        pids.update(listeners(database_url))
    assert len(pids) == 1
    queue.close()
    wait_until(lambda: not listeners(database_url))
    # A queue that was closed opens what it needs again.
    ref = queue.add_task("a:b")
    one = Waiting(ref)
    wait_until(is_awaited(database_url, ref))
    end(database_url, ref)
    assert one.over().error is None


def test_a_connection_to_listen_on_that_does_not_come_holds_nobody_up(queue: Queue, database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        queue.config.listen_url = f"postgresql://test@127.0.0.1:{silent.getsockname()[1]}/test"
        ref = queue.add_task("a:b")
        one = Waiting(ref)
        connection, _ = silent.accept()
        with connection:
            end(database_url, ref)
            assert one.over().error is None
            connection.setblocking(False)
            connection.recv(1024)  # what is said first
            with pytest.raises(BlockingIOError):
                connection.recv(1024)  # else it has been given up


def test_the_connection_is_closed_some_time_after_the_last_wait(
    queue: Queue, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("announcements.LINGER", "listening.CHECK_INTERVAL"):
        monkeypatch.setattr(f"queuedtask.db.{name}", 0.2)
    with pytest.raises(TimeoutError):
        queue.add_task("a:b").wait(0.3)
    wait_until(lambda: not listeners(database_url))
    wait_until(lambda: "queuedtask-announcements" not in [thread.name for thread in threading.enumerate()])


@pytest.mark.parametrize("timeout", [-1, float("inf"), "1", timedelta(seconds=1)])
def test_a_timeout_is_a_number_of_seconds(queue: Queue, timeout: Any) -> None:
    with pytest.raises(ValueError, match="a number of seconds, 0 or more, or None"):
        queue.add_task("a:b").wait(timeout=timeout)


@pytest.fixture
def interrupt_soon() -> Iterator[None]:
    timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    yield
    timer.cancel()


@pytest.mark.usefixtures("interrupt_soon")
def test_a_keyboard_interrupt_ends_the_wait(queue: Queue) -> None:
    ref = queue.add_task("a:b")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ref.wait()
    assert time.monotonic() - began < 5


def test_a_process_that_was_forked_waits_on_a_connection_of_its_own(queue: Queue, database_url: str) -> None:
    with pytest.raises(TimeoutError):
        queue.add_task("a:b").wait(0.05)
    ref = queue.add_task("a:b")
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if ref.wait(20) == 7 else 1)
        finally:
            os._exit(2)
    wait_until(is_awaited(database_url, ref))
    end(database_url, ref, result="7")
    assert os.waitpid(child, 0)[1] == 0


def test_a_task_that_goes_round_again_while_it_is_waited_for_is_waited_for_again(
    queue: Queue, database_url: str, waiting: Callable[..., Waiting]
) -> None:
    ref = queue.add_task("a:b")
    one = waiting(ref)
    # Ended and requeued before the waiter could look.
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as connection:
        cursor = connection.cursor()
        for sql in (
            "UPDATE queued_tasks SET state = 'failed', date_done = now(), is_awaited = false WHERE id = %s",
            "UPDATE queued_tasks SET state = 'enqueued', date_done = NULL WHERE id = %s",
            "SELECT pg_notify('queuedtask_done', %s)",
        ):
            cursor.execute(sql, (ref.id,))
        connection.commit()
    wait_until(is_awaited(database_url, ref))
    end(database_url, ref)
    assert one.over().error is None


# ------------------------------------------------------------------------------------------------------- inside a task


@pytest.fixture
def known_queue(queue: Queue) -> Iterator[Queue]:
    jobs.queues[:] = [queue]
    yield queue
    jobs.queues.clear()


def test_tasks_may_wait_for_tasks_as_long_as_there_are_slots(known_queue: Queue) -> None:
    with working(known_queue, max_workers=4, fallback_polling_interval=FAR):
        refs = [known_queue.add_task(jobs.add_and_wait, n) for n in range(3)]
        assert [ref.wait(20) for ref in refs] == [0, 2, 4]


def test_a_wait_for_what_has_no_slot_is_warned_of_once(known_queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    with known_queue.batch() as batch:
        hidden = batch.options(priority=-1).add_task(jobs.add, 1, 1)
        ref = batch.options(max_retries=0).add_task(jobs.wait_for, hidden.id, 3.0)
    # What the worker says of its slots is as old as its last heartbeat.
    with working(known_queue, max_workers=1, heartbeat_interval=0.3), pytest.raises(TaskFailed, match="TimeoutError"):
        ref.wait(20)
    warnings = [r.getMessage() for r in caplog.records if "no worker has a slot free" in r.getMessage()]
    assert len(warnings) == 1
    assert hidden.id in warnings[0]
    assert [line.type for line in ref.logs() if "no worker has a slot free" in line.message] == ["warning"]


def test_a_wait_is_interrupted_by_the_timeout_of_its_own_task(known_queue: Queue) -> None:
    pending = known_queue.options(delay=FAR).add_task(jobs.add, 1, 1)
    with working(known_queue, timeout_grace=20):
        ref = known_queue.options(timeout=0.5, max_retries=0).add_task(jobs.wait_for, pending.id)
        with pytest.raises(TaskFailed) as raised:
            ref.wait(10)
        assert raised.value.type == "TaskTimeout"
        assert "wait_for" in (raised.value.traceback or "")
        # Nothing is left locked: the same slots wait for others.
        assert known_queue.add_task(jobs.add_and_wait, 4).wait(20) == 8
