"""The ladder: attempts that outlive their timeout, each defying the steps before the one that ends it."""

import logging
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from helpers import execute, wait_until
from queuedtask import Queue, TaskRef

sys.path.insert(0, str(Path(__file__).parent))
import hostile_jobs as jobs
import worker_jobs
from inside import ended, working
from trees import tree

pytestmark = pytest.mark.slow

FINAL = ("done", "failed", "cancelled", "stopped")


def libpq(url: str) -> str:
    """Return a database's URL as libpq takes it."""
    return url.replace("postgresql+psycopg2://", "postgresql://")


def all_ended(queue: Queue, refs: list[TaskRef], timeout: float) -> None:
    wait_until(lambda: len([r for r in refs if r.state in FINAL]) == len(refs), timeout, interval=0.05)


def test_nine_bodies_that_defy_their_timeout_end_as_timed_out_and_the_slots_go_on(
    queue: Queue, database_url: str
) -> None:
    overdue = queue.options(timeout=1, max_retries=0)
    with tree(database_url, "-w", "4", timeout_grace=1, max_retries=0) as worker:
        wait_until(queue.workers, 20)
        refs = {
            name: overdue.add_task(body, *([libpq(database_url)] if name == "select_on_its_own" else []))
            for name, body in jobs.NINE.items()
        }
        beside = [queue.add_task(jobs.sleep, 0.05) for _ in range(40)]
        all_ended(queue, [*refs.values(), *beside], 60)
        after = [queue.add_task(jobs.sleep, 0.2) for _ in range(8)]
        all_ended(queue, after, 30)
        assert worker.stop() == 0
    for name, ref in refs.items():
        row = ref.row()
        assert (row.state, row.error_type) == ("failed", "TaskTimeout"), (name, row.error_type, row.error_message)
        assert row.date_started is not None, name
        assert row.date_done is not None
        span = row.date_done - row.date_started
        assert span < timedelta(seconds=8 if name == "backtrack" else 4), (name, span)
    for ref in [*beside, *after]:
        row = ref.row()
        assert (row.state, row.failures, row.lost_count) == ("done", 0, 0), row
    stacks = {
        name: execute(
            database_url,
            "SELECT error_traceback FROM queued_task_attempts WHERE queued_task_id = %s",
            (ref.id,),
        )
        for name, ref in refs.items()
    }
    assert {name: len(rows) for name, rows in stacks.items()} == dict.fromkeys(refs, 1)
    for name in ("sleep", "receive", "acquire", "select_on_its_own", "swallow"):
        assert f"in {name}" in str(stacks[name]), name
        assert any("did not end" in line.message for line in refs[name].logs()), name


@pytest.mark.parametrize("body", [jobs.loop_async, jobs.swallow_and_wait])
def test_a_coroutine_that_cancelling_does_not_end_ends_by_the_exception(
    queue: Queue, body: Callable[..., object]
) -> None:
    with working(queue, max_retries=0, timeout_grace=2) as manager:
        ref = ended(queue.options(timeout=0.3).add_task(body), "failed")
        assert not manager._pool.stuck
    assert ref.row().error_type == "TaskTimeout"
    assert not [line for line in ref.logs() if "did not end" in line.message]


def test_two_thousand_tasks_that_end_within_a_millisecond_of_their_deadline_have_one_ending_each(
    queue: Queue, database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    escaped: list[object] = []
    monkeypatch.setattr(threading, "excepthook", escaped.append)
    number, timeout = 2000, 0.02
    # The time from the beginning of the attempt to that of the loop differs; so the ends lie on both sides.
    execute(
        database_url,
        "INSERT INTO queued_tasks (function, args, timeout, max_retries) SELECT 'worker_jobs:ends_about', "
        "jsonb_build_array(%s + (n %% 21 - 10) * 0.0001), %s, 0 FROM generate_series(1, %s) AS n RETURNING 1",
        (timeout, timeout, number),
    )
    with caplog.at_level(logging.WARNING, "queuedtask"), working(queue, max_workers=4, timeout_grace=30) as manager:
        wait_until(lambda: not queue.find(state="enqueued", limit=1) and not manager._outstanding, 120, interval=0.2)
        threads = manager._pool.threads
        after = [queue.add_task(worker_jobs.add, n, n) for n in range(20)]
        for ref in after:
            ended(ref)
    assert threads == 4
    assert not escaped
    assert [record.getMessage() for record in caplog.records] == []
    states = dict(execute(database_url, "SELECT state, count(*) FROM queued_tasks GROUP BY state"))
    assert sum(states.values()) == number + len(after)
    assert set(states) == {"done", "failed"}, states
    # The trial has tried something: some ended in time, some did not.
    assert states["failed"] > number // 100, states
    assert states["done"] > number // 100, states
    rows = execute(
        database_url,
        "SELECT t.state, t.error_type, t.result IS NULL, t.attempt, count(a.id) FROM queued_tasks t "
        "LEFT JOIN queued_task_attempts a ON a.queued_task_id = t.id WHERE function LIKE '%%ends_about' "
        "GROUP BY t.id, t.state, t.error_type, t.result, t.attempt",
    )
    assert set(rows) <= {("done", None, False, 1, 0), ("failed", "TaskTimeout", True, 1, 1)}
