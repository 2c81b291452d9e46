"""When a failed task is tried again, by what its function and its row say; here and in a process of its own."""

import logging
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from helpers import execute, wait_until
from queuedtask import Queue, Retry, TaskRef

sys.path.insert(0, str(Path(__file__).parent))
import retry_jobs as jobs
from inside import ended, fresh_event, working

__all__ = ["fresh_event"]  # a fixture


@pytest.fixture(params=["thread", "process"])
def isolation(request: pytest.FixtureRequest) -> Iterator[str]:
    return request.param


def delay_after_failing(queue: Queue, ref: TaskRef) -> float:
    """Return the seconds that a task waits for its next attempt."""
    wait_until(lambda: ref.row().failures == 1, 30)
    assert queue.config.database_url
    read = "SELECT extract(epoch FROM date_scheduled - d.date_done)::float FROM queued_tasks t JOIN "
    read += "queued_task_attempts d ON d.queued_task_id = t.id WHERE t.id = %s AND t.state = 'waiting'"
    return float(execute(queue.config.database_url, read, (ref.id,))[0][0])


@pytest.mark.parametrize(
    ("function", "error", "state"),
    [
        (jobs.retries_on_key_errors, "KeyError", "waiting"),
        (jobs.retries_on_key_errors, "ValueError", "failed"),
        (jobs.retries_on_lookup_errors, "KeyError", "waiting"),
        (jobs.gives_up_on_lookup_errors, "KeyError", "failed"),
        (jobs.gives_up_on_lookup_errors, "ValueError", "waiting"),
        (jobs.gives_up_on_some_lookup_errors, "KeyError", "failed"),
        (jobs.gives_up_on_some_lookup_errors, "IndexError", "waiting"),
        (jobs.gives_up_on_some_lookup_errors, "ValueError", "failed"),
        (jobs.gives_up_on_everything, "Retry", "waiting"),
        (jobs.gives_up_on_everything, "Cancel", "cancelled"),
        (jobs.gives_up_on_everything, "SystemExit", "failed"),
    ],
)
def test_exceptions_decide_where_the_function_says_so(
    queue: Queue, isolation: str, function: Callable[..., object], error: str, state: str
) -> None:
    with working(queue, max_retries=1):
        ref = queue.options(isolation=isolation).add_task(function, error)
        wait_until(lambda: ref.state == state, 30)
    assert ref.row().failures == (state != "cancelled")


def test_they_hold_for_tasks_that_were_added_by_path(queue: Queue) -> None:
    with working(queue, max_retries=1):
        ended(queue.add_task("retry_jobs:retries_on_key_errors", "ValueError"), "failed")


def test_a_timeout_is_tried_again_whatever_they_say(queue: Queue) -> None:
    with working(queue, max_retries=3):
        ref = queue.options(timeout=0.2).add_task(jobs.gives_up_on_everything, "spin")
        assert delay_after_failing(queue, ref) == pytest.approx(5, rel=0.25)
        assert ref.row().error_type == "TaskTimeout"


@pytest.mark.parametrize(
    ("backoff", "delay"), [("exponential", 5), ("linear", 5), ([77, 88], 77), ([50, 0.5], 50), (None, 5)]
)
def test_a_task_s_own_back_off(queue: Queue, isolation: str, backoff: Any, delay: float) -> None:
    with working(queue, max_retries=3):
        ref = queue.options(backoff=backoff, isolation=isolation).add_task(jobs.fail, "KeyError")
        tolerance = 0.25 if delay == 5 else 0.02
        assert delay_after_failing(queue, ref) == pytest.approx(delay, rel=tolerance, abs=0.1)


@pytest.mark.parametrize("error", ["KeyError", "Retry"])
def test_a_function_s_own_back_off_is_asked_with_the_number_of_failures(
    queue: Queue, isolation: str, error: str
) -> None:
    with working(queue, max_retries=3):
        ref = queue.options(isolation=isolation).add_task(jobs.waits_a_hundred_per_failure, error)
        assert delay_after_failing(queue, ref) == pytest.approx(100, abs=1)
        later = queue.options(isolation=isolation).add_task(jobs.waits_a_hundred_per_failure, error)
        wait_until(lambda: later.row().failures == 1, 30)
        execute(
            str(queue.config.database_url),
            "UPDATE queued_tasks SET date_scheduled = NULL WHERE id = %s RETURNING pg_notify('queue_new_task', '')",
            (later.id,),
        )
        wait_until(lambda: later.row().failures == 2, 30)
        row = later.row()
        assert row.date_scheduled is not None
        assert (row.date_scheduled - row.date_enqueued).total_seconds() == pytest.approx(200, abs=3)


def test_it_is_asked_after_a_timeout_too_and_the_task_s_own_comes_first(queue: Queue) -> None:
    with working(queue, max_retries=3):
        ref = queue.options(timeout=0.2).add_task(jobs.waits_a_hundred_per_failure, "spin")
        assert delay_after_failing(queue, ref) == pytest.approx(100, abs=1)
        ref = queue.options(backoff=[33]).add_task(jobs.waits_a_hundred_per_failure, "KeyError")
        assert delay_after_failing(queue, ref) == pytest.approx(33, abs=1)


@pytest.mark.parametrize("function", jobs.NONSENSE)
def test_a_back_off_that_says_nonsense_is_logged_and_the_usual_one_taken(
    queue: Queue, function: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "queuedtask.executor"), working(queue, max_retries=3):
        ref = queue.add_task(function)
        assert delay_after_failing(queue, ref) == pytest.approx(5, rel=0.25)
    assert "the usual back-off is taken" in caplog.text
    assert ref.id in caplog.text


def test_a_delay_of_retry_comes_before_any_back_off(queue: Queue) -> None:
    with working(queue, max_retries=3):
        ref = queue.options(backoff=[33]).add_task(jobs.retry_in, 44)
        assert delay_after_failing(queue, ref) == pytest.approx(44, abs=1)
    assert (Retry(delay=44).delay, Retry(delay=timedelta(minutes=1)).delay) == (44, 60)


@pytest.mark.parametrize("delay", [-1, 1e300, float("nan"), timedelta(days=-1), timedelta(days=99999)])
def test_a_delay_that_no_row_could_hold_is_refused(delay: float | timedelta) -> None:
    with pytest.raises(ValueError, match="at most 100 years"):
        Retry(delay=delay)


# ----------------------------------------------------------------------------------------------- a process of their own


def test_a_task_that_asks_for_it_runs_in_a_process_from_the_first_attempt(queue: Queue) -> None:
    with working(queue) as manager:
        ours = ended(queue.add_task(jobs.where)).result
        alone = ended(queue.options(isolation="process").add_task(jobs.where), timeout=30)
        assert alone.result["process"] != ours["process"]
        assert alone.row().meta == '{"isolation": "process"}'
        assert alone.row().lost_count == 0
        assert not manager._isolation._idle[0].has_ended


@pytest.mark.parametrize("target", [jobs.alone, "retry_jobs:alone"])
def test_a_function_declares_it(queue: Queue, target: Any) -> None:
    sys.modules.pop("retry_jobs_elsewhere", None)
    with working(queue):
        ours = ended(queue.add_task(jobs.where)).result["process"]
        for _ in range(2):  # the second time the function is known to the slot
            ref = ended(queue.add_task(target), timeout=30)
            assert ref.result["process"] != ours
        assert ref.row().meta == (None if isinstance(target, str) else '{"isolation": "process"}')
        other = ended(queue.options(isolation="thread").add_task(target), timeout=30)
        assert other.result["process"] == ours


def test_its_module_is_imported_in_the_slot_only_when_it_was_added_by_path(queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "heavy_jobs.py").write_text("import os\n\ndef run():\n    return os.getpid()\n")
    sys.path.insert(0, str(tmp_path))
    try:
        with working(queue):
            ended(queue.options(isolation="process").add_task("heavy_jobs:run"), timeout=30)
        assert "heavy_jobs" not in sys.modules
    finally:
        sys.path.remove(str(tmp_path))


def test_a_function_that_declares_it_dies_alone(queue: Queue) -> None:
    with working(queue, max_lost=2):
        neighbour = queue.add_task(jobs.sleep_and_return, 2)
        ended(queue.add_task("retry_jobs:dies_alone"), "failed", timeout=30)
        assert ended(neighbour, timeout=30).row().lost_count == 0


def test_its_timeout_begins_when_it_does(queue: Queue) -> None:
    with working(queue, timeout_grace=1.0):
        # Shorter than the start of a process takes.
        ref = ended(queue.options(timeout=0.2).add_task("retry_jobs:alone"), timeout=30)
        slow = queue.options(timeout=0.5, max_retries=0).add_task("retry_jobs:spins_alone")
        row = ended(slow, "failed", timeout=30).row()
    assert ref.row().attempt == 1
    assert (row.error_type, row.lost_count) == ("TaskTimeout", 0)
