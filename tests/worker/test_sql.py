"""``current_task().connection()``: one transaction, cancelled with its task, and never used again after that."""

import sys
from pathlib import Path

import pytest

from helpers import execute, wait_until
from queuedtask import Queue

sys.path.insert(0, str(Path(__file__).parent))
import hostile_jobs
import worker_jobs as jobs
from inside import attempts, ended, fresh_event, working

__all__ = ["fresh_event"]  # a fixture


@pytest.fixture(autouse=True)
def table(database_url: str) -> None:
    execute(database_url, "CREATE TABLE written (value integer)")


def written(url: str) -> list[int]:
    return [value for (value,) in execute(url, "SELECT value FROM written ORDER BY 1")]


def test_it_commits_at_the_end_and_rolls_back_on_an_error(queue: Queue, database_url: str) -> None:
    with working(queue, max_retries=0):
        ended(queue.add_task(jobs.insert, "written", 1))
        ended(queue.add_task(jobs.insert, "written", 2, fail=True), "failed")
        ended(queue.add_task(jobs.insert, "written", 3))
    assert written(database_url) == [1, 3]


def test_its_sql_is_cancelled_by_the_timeout_and_the_slot_is_free(queue: Queue, database_url: str) -> None:
    with working(queue, max_workers=1, max_retries=0, timeout_grace=60) as manager:
        ref = ended(queue.options(timeout=0.3).add_task(hostile_jobs.select_on_ours), "failed", timeout=20)
        assert ref.row().error_type == "TaskTimeout"
        ended(queue.add_task(jobs.insert, "written", 1))
        assert not manager._pool.stuck
    assert attempts(queue, ref) == [(1, "timed_out", "TaskTimeout")]


def test_what_is_shielded_is_not_cancelled_and_the_timeout_comes_after_it(queue: Queue) -> None:
    with working(queue, max_retries=0, timeout_grace=30):
        ref = ended(queue.options(timeout=0.3).add_task(jobs.shielded_select, 1.5), "failed", timeout=20)
    assert ref.row().error_type == "TaskTimeout"
    assert ref.context == {"shielded": "slept"}


def test_an_attempt_that_was_given_up_commits_nothing(queue: Queue, database_url: str) -> None:
    with working(queue, max_retries=0, timeout_grace=0.2) as manager:
        ref = queue.options(timeout=0.2).add_task(jobs.insert, "written", 1, swallow_for=2.0)
        ended(ref, "failed")
        assert manager._pool.stuck
        wait_until(lambda: not manager._pool.stuck, 10)
        ended(queue.add_task(jobs.insert, "written", 2))
    assert written(database_url) == [2]


def test_the_connection_of_an_interrupted_attempt_is_closed_for_a_cancellation_may_still_come(
    queue: Queue, database_url: str
) -> None:
    with working(queue, max_workers=1, max_retries=0):
        ref = ended(queue.options(timeout=0.3).add_task(jobs.tell_backend_and_spin), "failed", timeout=20)
        backend = ref.context["backend"]
        wait_until(lambda: not execute(database_url, "SELECT 1 FROM pg_stat_activity WHERE pid = %s", (backend,)))


def test_no_connection_is_left_over(queue: Queue, database_url: str) -> None:
    caller = Queue(database_url)  # which keeps one to add tasks with
    with working(queue, max_retries=0):
        for fail in (False, True):
            ended(caller.add_task(jobs.insert, "written", 1, fail=fail), "failed" if fail else "done")
        ended(caller.options(timeout=0.2).add_task(hostile_jobs.select_on_ours), "failed", timeout=20)
        wait_until(lambda: queue.database.engine.pool.checkedout() == 0)  # type: ignore[attr-defined]
    caller.close()
