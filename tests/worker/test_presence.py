"""The lease: a worker that cannot renew it begins nothing; what it still writes is refused, counted and said once."""

import contextlib
import logging
import sys
import threading
from pathlib import Path

import pytest

from helpers import execute, raw_connection, wait_until
from queuedtask import Queue
from queuedtask.worker.board import Board
from queuedtask.worker.presence import Lease

sys.path.insert(0, str(Path(__file__).parent))
import worker_jobs as jobs
from inside import ended, fresh_event, working

__all__ = ["fresh_event"]  # a fixture


def test_it_lapses_when_neither_the_worker_nor_its_supervisor_renews_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("queuedtask.worker.presence.time.monotonic", lambda: now)
    board = Board()
    lease = Lease(board, lambda: 30.0)
    now = 1030.0
    assert not lease.is_lapsed
    now = 1030.1
    assert lease.is_lapsed
    board.renewed_at = 1029.0
    assert not lease.is_lapsed
    now = 1059.1
    assert lease.is_lapsed
    lease.renewed(1058.0)
    assert not lease.is_lapsed


def test_a_worker_that_cannot_renew_its_lease_claims_nothing_and_tells_its_tasks_until_it_can_again(
    queue: Queue, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, "queuedtask"),
        contextlib.closing(raw_connection(database_url, autocommit=False)) as locking,
    ):
        queue.config.heartbeat_interval, queue.config.lease = 0.2, 1.5
        with working(queue) as manager:
            ref = queue.add_task(jobs.wait_for_abort)
            wait_until(lambda: ref.state == "doing")
            # The heartbeat waits for this lock; the watchdog ends that wait, again and again.
            locking.cursor().execute("SELECT FROM queued_task_workers WHERE id = %s FOR UPDATE", (manager.id,))
            wait_until(lambda: manager._is_lapsed, 10)
            other = queue.add_task(jobs.add, 1, 2)
            # It ends because it is told to; its end is written when the database answers again.
            wait_until(lambda: not manager._pool.running, 10)
            assert other.state == "enqueued"
            locking.rollback()
            ended(other)
            assert ended(ref).result == "told to abort"
    lines = [record.getMessage() for record in caplog.records]
    assert sum("could not renew its lease" in line for line in lines) == 1


def test_a_task_that_ends_with_an_error_because_it_was_told_to_uses_no_retry(queue: Queue) -> None:
    with working(queue) as manager:
        ref = queue.add_task(jobs.raise_when_told)
        wait_until(lambda: manager._pool.running)
        for attempt in manager._running():
            attempt.ask_to_abort()
        wait_until(lambda: ref.row().attempt == 2 or ref.state == "enqueued")
        row = ref.row()
        assert (row.failures, row.error_type) == (0, None)
        wait_until(lambda: manager._pool.running)
        manager.stop(0.0)
        wait_until(lambda: not manager._outstanding)
    assert ref.state == "enqueued"


def test_an_attempt_that_is_no_longer_ours_and_does_not_end_gives_its_slot_up(queue: Queue, database_url: str) -> None:
    with working(queue, max_workers=2, timeout_grace=0.3) as manager:
        ref = queue.add_task(jobs.set_after_a_while_and_sleep, 1.5, 4.0)
        wait_until(lambda: ref.row().date_started is not None)
        execute(database_url, "DELETE FROM queued_tasks WHERE id = %s RETURNING 1", (ref.id,))
        wait_until(lambda: manager._pool.stuck)
        ended(queue.add_task(jobs.add, 1, 1))
        assert manager.refused == 1
        wait_until(lambda: not manager._pool.stuck)


def test_an_attempt_that_somebody_else_has_taken_is_told_to_end_and_refused_once(
    queue: Queue, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with working(queue) as manager, caplog.at_level(logging.WARNING, "queuedtask"):
        ref = queue.add_task(jobs.set_until_interrupted)
        wait_until(lambda: ref.context)
        execute(database_url, "UPDATE queued_tasks SET attempt = attempt + 1 WHERE id = %s RETURNING 1", (ref.id,))
        before = ref.context
        wait_until(lambda: not manager._outstanding)
        wait_until(lambda: manager.refused == 1)
        wait_until(lambda: not manager._settlements.pending)
        assert ref.context == before
        assert ref.logs() == []
        assert [worker.refused for worker in queue.workers()] == [1]
    assert manager.refused == 1
    assert sum("no longer this worker's" in record.getMessage() for record in caplog.records) == 1


def test_a_task_that_comes_back_while_its_old_attempt_still_runs_ends_with_the_new_one(
    queue: Queue, database_url: str
) -> None:
    with working(queue, max_workers=2) as manager:
        ref = queue.add_task(jobs.blocked)
        wait_until(lambda: manager._pool.running)
        execute(
            database_url,
            "UPDATE queued_tasks SET state = 'enqueued', claimed_by = NULL WHERE id = %s "
            "RETURNING pg_notify('queue_new_task', '')",
            (ref.id,),
        )
        wait_until(lambda: len(manager._pool.running) == 2)
        jobs.released.set()
        assert ended(ref).row().attempt == 2
        wait_until(lambda: manager.refused == 1)


def test_what_was_claimed_ahead_is_not_begun_after_the_lease_has_lapsed(queue: Queue) -> None:
    with working(queue, max_workers=1) as manager:
        manager._pace._mean = 1e-4
        refs = [queue.add_task(jobs.blocked), *(queue.add_task(jobs.add, 1, n) for n in range(5))]
        wait_until(lambda: len(manager._outstanding) == 6)
        manager._presence.lease._renewed_at -= 1000.0
        manager._presence.lease._sure_until = 0.0
        jobs.released.set()
        # The worker renews by itself at its next turn; who was handed back runs in a later attempt.
        for ref in refs:
            ended(ref)
        assert all(ref.row().failures == ref.row().lost_count == 0 for ref in refs)
        assert any(ref.row().attempt == 2 for ref in refs[1:])


def test_two_observers_that_find_a_worker_dead_at_once_take_its_tasks_back_once(
    queue: Queue, database_url: str
) -> None:
    before = threading.active_count()  # slots of earlier tests idle for a while
    for _ in range(2):
        execute(
            database_url,
            "INSERT INTO queued_tasks (function, state, claimed_by, attempt) "
            "SELECT 'worker_jobs:token', 'doing', 999, 1 FROM generate_series(1, 20) RETURNING 1",
        )
    queue.config.heartbeat_interval, queue.config.lease = 0.2, 0.8
    other = Queue(database_url)
    other.config.heartbeat_interval, other.config.lease = 0.2, 0.8
    with working(queue), working(other):
        wait_until(lambda: len(queue.find(state="done", limit=None)) == 40, 60)
    other.close()
    rows = execute(database_url, "SELECT DISTINCT lost_count, attempt FROM queued_tasks")
    assert rows == [(1, 2)]
    assert threading.active_count() < before + 30
