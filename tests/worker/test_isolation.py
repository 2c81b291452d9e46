"""Tasks that have lost a process before: alone in one, and yet like any other to those who look at their rows."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import execute, wait_until
from queuedtask import Queue, TaskRef

sys.path.insert(0, str(Path(__file__).parent))
import hostile_jobs
import worker_jobs as jobs
from inside import attempts, ended, fresh_event, working

__all__ = ["fresh_event"]  # a fixture


@pytest.fixture
def add_suspect(queue: Queue, database_url: str) -> Callable[..., TaskRef]:
    """Return what adds a task that has lost a process already."""

    def add(*call: object, **options: object) -> TaskRef:
        ref = queue.options(delay=3600, **options).add_task(*call)  # type: ignore[arg-type]
        execute(
            database_url,
            "UPDATE queued_tasks SET lost_count = 1, state = 'enqueued', date_scheduled = NULL WHERE id = %s "
            "RETURNING pg_notify('queue_new_task', '')",
            (ref.id,),
        )
        return ref

    return add


def test_it_runs_in_another_process_and_its_context_logs_and_result_come_as_ever(
    queue: Queue, add_suspect: Callable[..., TaskRef]
) -> None:
    with working(queue):
        ref = ended(add_suspect(jobs.tell, 3), timeout=30)
    assert ref.result["process"] != os.getpid()
    assert ref.result["attempt"] == 1
    assert ref.context == {"step": 2, "flushed": True}
    assert [line.message for line in ref.logs()] == ["step 0", "step 1", "step 2"]
    assert ref.row().date_started is not None


@pytest.mark.parametrize(("result", "context"), [(300_000, 0), (2_000_000, 0), (10, 20_000_000)])
def test_what_is_large_comes_at_once(
    queue: Queue, add_suspect: Callable[..., TaskRef], result: int, context: int
) -> None:
    with working(queue, task_timeout=3600):
        ref = ended(add_suspect(hostile_jobs.give, result, context), timeout=30)
    assert len(ref.result) == result
    assert len(ref.context.get("large", "")) == context


def test_a_process_is_kept_for_the_next_one_and_never_has_two_at_a_time(
    queue: Queue, add_suspect: Callable[..., TaskRef]
) -> None:
    with working(queue, max_workers=2):
        one = ended(add_suspect(jobs.tell, 1), timeout=30).result["process"]
        assert ended(add_suspect(jobs.tell, 1), timeout=30).result["process"] == one
        pair = [add_suspect(jobs.sleep_and_tell, 1.0) for _ in range(2)]
        assert len({ended(ref, timeout=30).result for ref in pair}) == 2


def test_processes_end_with_their_worker(queue: Queue, add_suspect: Callable[..., TaskRef]) -> None:
    with working(queue):
        process = ended(add_suspect(jobs.tell, 1), timeout=30).result["process"]
        assert Path(f"/proc/{process}").exists()
    wait_until(lambda: not Path(f"/proc/{process}").exists())


def test_a_failure_in_there_is_a_failure_and_no_loss(
    queue: Queue, database_url: str, add_suspect: Callable[..., TaskRef]
) -> None:
    with working(queue):
        row = ended(add_suspect(jobs.fail, "in there", max_retries=0), "failed", timeout=30).row()
    assert (row.error_type, row.error_message, row.failures, row.lost_count) == ("ValueError", "in there", 1, 1)
    assert "raise ValueError(message)" in (row.error_traceback or "")


@pytest.mark.parametrize("function", [jobs.spin, jobs.sleep_for_long, jobs.sleep_async_for_long])
def test_a_timeout_in_there_is_a_timeout_whatever_blocks(
    queue: Queue, function: Callable[[], object], add_suspect: Callable[..., TaskRef]
) -> None:
    with working(queue, timeout_grace=0.5):
        row = ended(add_suspect(function, timeout=0.5, max_retries=0), "failed", timeout=30).row()
        assert (row.error_type, row.failures, row.lost_count) == ("TaskTimeout", 1, 1)
        ended(queue.add_task(jobs.add, 1, 1))


def test_the_third_loss_is_the_last_and_what_was_set_before_is_there(
    queue: Queue, database_url: str, add_suspect: Callable[..., TaskRef]
) -> None:
    with working(queue):
        ref = ended(add_suspect(jobs.tell_and_die), "failed", timeout=30)
    row = ref.row()
    assert (row.error_type, row.lost_count, row.failures) == ("WorkerLost", 3, 0)
    assert attempts(queue, ref) == [(n, "lost", "WorkerLost") for n in (1, 2)]
    assert ref.context == {"before": "death"}


def test_a_death_is_seen_although_a_forked_child_keeps_the_wire_open(
    queue: Queue, add_suspect: Callable[..., TaskRef]
) -> None:
    with working(queue, max_lost=2):
        row = ended(add_suspect(hostile_jobs.fork_and_die), "failed", timeout=15).row()
    assert (row.error_type, row.lost_count) == ("WorkerLost", 2)


def test_it_is_handed_back_at_a_shutdown(queue: Queue, add_suspect: Callable[..., TaskRef]) -> None:
    with working(queue) as manager:
        ref = add_suspect(jobs.sleep_for_long)
        wait_until(lambda: any(attempt.process for attempt in manager._running()), 30)
        manager.stop(0.0)
        wait_until(lambda: ref.state == "enqueued")
    row = ref.row()
    assert (row.state, row.failures, row.lost_count) == ("enqueued", 0, 1)


def test_it_does_not_begin_before_its_row_says_so(queue: Queue, add_suspect: Callable[..., TaskRef]) -> None:
    with working(queue):
        ended(add_suspect(jobs.tell, 1), timeout=30)  # so that its process is there already
        assert ended(add_suspect(jobs.is_start_in_row), timeout=30).result is True


def test_it_gets_connections_too(queue: Queue, database_url: str, add_suspect: Callable[..., TaskRef]) -> None:
    execute(database_url, "CREATE TABLE written (value integer)")
    with working(queue):
        ended(add_suspect(jobs.insert, "written", 7), timeout=30)
    assert execute(database_url, "SELECT value FROM written") == [(7,)]
