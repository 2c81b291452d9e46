"""Loops in real workers that are killed, shut down or time out: another attempt goes on where that one ended."""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from helpers import wait_until
from queuedtask import Queue

sys.path.insert(0, str(Path(__file__).parent))
import worker_jobs as jobs
from inside import ended, fresh_event, working
from trees import tree

__all__ = ["fresh_event"]


def noted(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.slow
def test_after_a_crash_the_items_of_the_last_two_seconds_come_again(
    queue: Queue, database_url: str, tmp_path: Path
) -> None:
    path, seconds, count = tmp_path / "items", 0.005, 1500
    with tree(database_url, "-w", "1") as running:
        ref = queue.add_task(jobs.loop_slowly, str(path), count, seconds)
        wait_until(lambda: ref.context.get("cursor", {}).get("done", 0) > 0, 30)
        wait_until(lambda: len(noted(path)) > 700, 30)
        (worker,) = running.children()
        os.kill(worker, signal.SIGKILL)
        ended(ref, timeout=60)
    times = Counter(noted(path))
    assert set(times) == set(range(count))
    assert set(times.values()) <= {1, 2}
    assert 0 < sum(times.values()) - count <= 2.5 / seconds
    assert ref.row().lost_count == 1
    assert ref.context["cursor"]["done"] == count


def test_a_shutdown_loses_no_item_and_repeats_the_one_it_interrupted(queue: Queue, tmp_path: Path) -> None:
    path = tmp_path / "items"
    with working(queue, shutdown_timeout=0.0) as manager:
        ref = queue.add_task(jobs.loop_slowly, str(path), 60, 0.01)
        wait_until(lambda: len(noted(path)) > 10, 10)
        manager.stop(0.0)
        wait_until(lambda: ref.state == "enqueued", 10)
        done = ref.context["cursor"]["done"]
        assert done in (len(noted(path)), len(noted(path)) - 1)
    with working(queue):
        ended(ref)
    assert sorted(set(noted(path))) == list(range(60))
    assert len(noted(path)) in (60, 61)


def test_an_item_that_gets_stuck_is_the_first_one_of_the_next_attempt(queue: Queue, tmp_path: Path) -> None:
    path = tmp_path / "items"
    with working(queue, timeout_grace=0.2):
        ref = queue.options(timeout=0.5, max_retries=1).add_task(jobs.loop_until_blocked, str(path), 7)
        wait_until(lambda: ref.state == "waiting", 20)
        assert ref.context["cursor"] == {"done": 7, "total": 20, "last": 6}
        assert noted(path) == list(range(7))
        jobs.released.set()
        ended(ref, timeout=30)
    # The old thread may still have noted what it was stuck at, but got no further.
    assert sorted(set(noted(path))) == list(range(20))
    assert len(noted(path)) in (20, 21)


def test_a_task_that_finished_in_its_transaction_begins_anew_and_one_that_failed_there_does_not(
    queue: Queue, tmp_path: Path
) -> None:
    with working(queue):
        for fail, expected in ((False, [0, 1, 2, 0, 1, 2]), (True, [0, 1, 2])):
            path = tmp_path / f"items-{fail}"
            ref = queue.options(max_retries=0).add_task(jobs.loop_and_finish, str(path), fail)
            ended(ref, "failed" if fail else "done")
            ref.retry()
            ended(ref)
            assert noted(path) == expected
