"""A whole worker against a real database: what becomes of tasks, and what stands in the rows."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import execute, has_begun, raw_connection, wait_until
from queuedtask import Queue
from queuedtask.db import store
from queuedtask.worker.manager import Manager

sys.path.insert(0, str(Path(__file__).parent))
import worker_jobs as jobs
from inside import attempts, ended, fresh_event, working

__all__ = ["fresh_event"]  # a fixture


def test_functions_and_coroutines_run_and_their_results_are_stored(queue: Queue) -> None:
    with working(queue):
        assert ended(queue.add_task(jobs.add, 1, b=2)).result == 3
        assert ended(queue.add_task(jobs.add_async, 1, b=2)).result == 3
        assert ended(queue.add_task("worker_jobs:add", 2, 3)).result == 5


def test_a_failing_task_is_tried_again_up_to_its_retries_and_every_attempt_leaves_a_row(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("queuedtask.model.backoff.LIMIT", 0.05)
    with working(queue, max_retries=2):
        ref = ended(queue.add_task(jobs.fail, "broken"), "failed")
    row = ref.row()
    assert (row.error_type, row.error_message, row.failures, row.attempt) == ("ValueError", "broken", 3, 3)
    assert row.error_traceback is not None
    assert "raise ValueError(message)" in row.error_traceback
    assert "queuedtask/run" not in row.error_traceback
    assert attempts(queue, ref) == [(n, "raised", "ValueError") for n in (1, 2, 3)]


def test_retries_of_the_task_beat_those_of_the_setting(queue: Queue) -> None:
    with working(queue, max_retries=5):
        ref = ended(queue.options(max_retries=0).add_task(jobs.fail), "failed")
    assert ref.row().failures == 1


def test_retry_waits_for_its_delay_and_uses_one_retry(queue: Queue) -> None:
    with working(queue):
        ref = ended(queue.add_task(jobs.retry_once, 0.1))
    row = ref.row()
    assert (ref.result, row.failures, row.error_type) == (2, 1, None)
    assert attempts(queue, ref) == [(1, "asked_for_retry", "Retry")]


def test_cancel_ends_the_task_as_cancelled_with_its_reason(queue: Queue) -> None:
    with working(queue):
        ref = ended(queue.add_task(jobs.cancel), "cancelled")
    assert ref.row().error_message == "customer left"
    assert attempts(queue, ref) == []


@pytest.mark.parametrize("function", [jobs.leave, jobs.interrupt_keyboard])
def test_an_exit_in_a_task_fails_that_task_alone(queue: Queue, function: Callable[[], None]) -> None:
    with working(queue, max_workers=1):
        ended(queue.options(max_retries=0).add_task(function), "failed")
        ended(queue.add_task(jobs.add, 1, 1))


@pytest.mark.parametrize(("function", "args"), [(jobs.spin, ()), (jobs.sleep_async, (30,))])
def test_a_loop_and_a_coroutine_end_as_timeout(queue: Queue, function: Callable[..., object], args: tuple[int]) -> None:
    with working(queue):
        ref = queue.options(timeout=0.3, max_retries=0).add_task(function, *args)
        row = ended(ref, "failed").row()
    assert row.error_type == "TaskTimeout"
    assert row.date_started is not None
    assert row.date_done is not None
    assert 0.3 <= (row.date_done - row.date_started).total_seconds() < 2
    assert attempts(queue, ref) == [(1, "timed_out", "TaskTimeout")]


def test_a_timeout_of_the_function_holds_for_a_task_that_was_added_by_path(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "spin", queue.task(timeout=0.2, max_retries=0)(lambda: jobs.sleep_async(30)))
    with working(queue):
        assert ended(queue.add_task("worker_jobs:spin"), "failed").row().error_type == "TaskTimeout"


def test_context_is_in_the_row_within_a_second_and_the_last_value_at_the_end(queue: Queue) -> None:
    with working(queue):
        ref = queue.add_task(jobs.set_and_wait)
        wait_until(lambda: ref.context == {"progress": {"rows": 500}}, 5)
        assert ref.row().date_started is not None
        jobs.released.set()
        assert ended(ref).context == {"progress": {"rows": 1000}}


def test_a_timed_out_attempt_leaves_its_context(queue: Queue) -> None:
    with working(queue):
        ref = ended(queue.options(timeout=0.2, max_retries=0).add_task(jobs.set_and_spin), "failed")
    assert ref.context == {"progress": {"rows": 500}}


def test_a_retried_attempt_starts_from_the_stored_context(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("queuedtask.model.backoff.LIMIT", 0.05)
    with working(queue):
        ref = ended(queue.options(max_retries=2).add_task(jobs.count_up_to_failure), "failed")
    assert ref.context == {"count": 3}


def test_many_changes_of_the_context_are_few_writes(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    write = store.write_progress
    monkeypatch.setattr(store, "write_progress", lambda *args, **more: (writes.append(1), write(*args, **more)))
    with working(queue):
        assert ended(queue.add_task(jobs.set_often, 20_000)).context == {"n": 19_999}
    assert len(writes) < 20


def test_flushing_writes_at_once_what_was_deferred(queue: Queue) -> None:
    with working(queue):
        ref = queue.add_task(jobs.flush_deferred)
        wait_until(lambda: ref.context == {"deferred": 1}, 5)


def test_log_records_of_a_task_and_of_threads_that_joined_it_become_rows(queue: Queue) -> None:
    with working(queue):
        ref = ended(queue.add_task(jobs.log_from_everywhere))
    assert [(line.type, line.name, line.message, line.attempt) for line in ref.logs()] == [
        ("info", "shop", "from the task, formatted", 1),
        ("warning", "shop.thread", "from a thread\\x00 of it", 1),
    ]
    assert ref.context == {"thread": True}


def test_a_result_that_cannot_be_stored_is_replaced_by_a_marker(queue: Queue) -> None:
    with working(queue):
        result = ended(queue.add_task(jobs.odd_result)).result
    assert result["when"]["type"] == "object"
    assert "a" in result["text"]


def test_id_and_attempt_are_the_task_s_own(queue: Queue) -> None:
    with working(queue):
        ref = ended(queue.add_task(jobs.token))
    assert ref.result == [ref.id, 1]


def test_a_notification_wakes_the_worker(queue: Queue) -> None:
    with working(queue, polling_interval=3600.0):
        for n in range(5):
            assert ended(queue.add_task(jobs.add, n, n), timeout=5).result == 2 * n


def test_without_notifications_it_polls(queue: Queue) -> None:
    with working(queue, use_postgresql_notify=False, polling_interval=0.1):
        ended(queue.add_task(jobs.add, 1, 1))


def test_a_delayed_task_runs_on_time_although_polling_is_rare(queue: Queue) -> None:
    with working(queue):
        ref = queue.options(delay=0.5).add_task(jobs.add, 1, 1)
        assert ref.state == "waiting"
        row = ended(ref).row()
    assert row.date_started is not None
    assert 0.5 <= (row.date_started - row.date_created).total_seconds() < 2


def test_higher_priority_runs_first(queue: Queue, tmp_path: Path) -> None:
    path = str(tmp_path / "order")
    for priority in (0, 5, -5, 10):
        queue.options(priority=priority).add_task(jobs.note, path, str(priority))
    with working(queue, max_workers=1):
        wait_until(lambda: len(queue.find(state="done")) == 4)
    assert Path(path).read_text().split() == ["10", "5", "0", "-5"]


def test_all_connections_lost_under_load_are_one_line_each_and_lose_nothing(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    with working(queue), caplog.at_level(logging.INFO, "queuedtask"):
        refs = [queue.add_task(jobs.sleep, 0.005) for _ in range(100)]
        wait_until(lambda: queue.find(state="done", limit=5))
        terminate_all(queue)
        refs += [queue.add_task(jobs.sleep, 0.001) for _ in range(50)]
        wait_until(lambda: len(queue.find(state="done", limit=None)) == len(refs), 20)
    lines = [record.getMessage() for record in caplog.records if record.name == "queuedtask.worker"]
    assert sum("cannot be reached" in line for line in lines) == 1
    assert sum("is back" in line for line in lines) == 1


def test_a_lost_listener_is_replaced(queue: Queue) -> None:
    url = queue.config.database_url
    assert url
    with working(queue, polling_interval=3600.0):
        ended(queue.add_task(jobs.add, 1, 1))
        gone = execute(
            url,
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE query LIKE 'LISTEN%%' AND datname = current_database()",
        )
        assert len(gone) == 1
        ended(queue.add_task(jobs.add, 1, 1))


def terminate_all(queue: Queue) -> None:
    assert queue.config.database_url
    execute(
        queue.config.database_url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    # What the test itself goes on with are new connections.
    queue.close()


def test_a_late_end_does_not_touch_an_attempt_that_is_no_longer_this_worker_s(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    url = queue.config.database_url
    assert url
    with working(queue) as manager, caplog.at_level(logging.WARNING, "queuedtask"):
        ref = queue.add_task(jobs.blocked)
        wait_until(lambda: ref.state == "doing")
        execute(url, "UPDATE queued_tasks SET attempt = attempt + 1 WHERE id = %s RETURNING 1", (ref.id,))
        jobs.released.set()
        wait_until(lambda: manager.refused == 1)
        assert ref.state == "doing"
    assert sum("no longer this worker's" in record.getMessage() for record in caplog.records) == 1


def test_a_task_whose_row_is_deleted_during_its_run_does_no_harm(queue: Queue) -> None:
    url = queue.config.database_url
    assert url
    with working(queue) as manager:
        ref = queue.add_task(jobs.blocked)
        wait_until(lambda: ref.state == "doing")
        execute(url, "DELETE FROM queued_tasks WHERE id = %s RETURNING 1", (ref.id,))
        jobs.released.set()
        wait_until(lambda: manager.refused == 1)
        ended(queue.add_task(jobs.add, 1, 1))


def test_an_end_that_the_database_refuses_does_not_take_its_neighbours_down(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("queuedtask.model.codec.encode_result", lambda value, most: "{" if value == 13 else "1")
    with working(queue, max_retries=0):
        bad = queue.add_task(jobs.add, 6, 7)
        good = [queue.add_task(jobs.add, n, n) for n in range(20)]
        assert ended(bad, "failed").row().error_type == "NotStorable"
        for ref in good:
            ended(ref)


def test_the_encoding_of_the_environment_is_of_no_account(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with contextlib.closing(Queue(queue.config.database_url)) as latin, working(latin, max_retries=0):
        ref = latin.add_task(jobs.fail, "price 5 \N{EURO SIGN}")
        assert ended(ref, "failed").error == "ValueError: price 5 \N{EURO SIGN}"


def test_an_end_that_the_driver_cannot_send_does_not_take_its_neighbours_down(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("queuedtask.run.executor._text", lambda text: text)
    with working(queue, max_retries=0):
        bad = queue.add_task(jobs.fail_with_nul)
        good = [queue.add_task(jobs.add, n, n) for n in range(20)]
        assert ended(bad, "failed").row().error_type == "NotStorable"
        for ref in good:
            ended(ref)


def test_whoever_flushes_the_context_of_a_task_that_has_ended_is_let_go(queue: Queue) -> None:
    with working(queue):
        ref = ended(queue.add_task(jobs.leave_a_thread_that_flushes))
        jobs.released.set()
        wait_until(lambda: jobs.flushed)
    assert "LeaseLost" in jobs.flushed.pop()
    assert ref.context == {}


def test_a_context_that_is_too_deep_and_a_reason_that_cannot_be_read_are_the_task_s_own(queue: Queue) -> None:
    with working(queue, max_retries=0):
        deep = queue.add_task(jobs.set_far_down)
        assert ended(deep, "failed").error == "ValueError: a path of 3000 names: at most 100"
        ended(queue.add_task(jobs.cancel_unreadably), "cancelled")


def test_idle_slots_end_and_come_back(queue: Queue) -> None:
    with working(queue, worker_idle_timeout=0.1) as manager:
        ended(queue.add_task(jobs.add, 1, 1))
        wait_until(lambda: manager._pool.threads == 0)
        ended(queue.add_task(jobs.add, 1, 1))


def test_the_slots_end_with_their_worker(queue: Queue) -> None:
    with working(queue, worker_idle_timeout=3600.0) as manager:
        ended(queue.add_task(jobs.add, 1, 1))
        assert manager._pool.threads == 1
    wait_until(lambda: manager._pool.threads == 0)


def test_the_number_of_slots_follows_the_setting_both_ways(queue: Queue) -> None:
    with working(queue, max_workers=1) as manager:
        for _ in range(3):
            queue.add_task(jobs.blocked)
        wait_until(lambda: len(queue.find(state="doing")) == 1)
        queue.config.max_workers = 3
        queue.add_task(jobs.blocked)
        wait_until(lambda: len(queue.find(state="doing")) == 3)
        queue.config.max_workers = 1
        jobs.released.set()
        wait_until(lambda: len(queue.find(state="done")) == 4)
        wait_until(lambda: manager._pool.threads <= 1)


def test_long_tasks_that_were_claimed_ahead_go_to_a_worker_that_is_free(queue: Queue, database_url: str) -> None:
    with working(queue, max_workers=1) as first:
        # A thousand quick ones make the first worker claim ahead; what it then holds turns out to be long.
        first._pace._mean = 1e-4
        refs = [queue.add_task(jobs.blocked) for _ in range(4)]
        wait_until(lambda: any(ref.state == "doing" for ref in refs))
        other = Queue(database_url)
        with working(other, max_workers=3) as second:
            wait_until(lambda: sorted(ref.row().claimed_by or 0 for ref in refs) == [first.id, *[second.id] * 3])
            jobs.released.set()
            for ref in refs:
                assert ended(ref).row().failures == 0
        other.close()


def test_a_stop_finishes_what_ends_in_time_and_hands_the_rest_back_without_using_a_retry(queue: Queue) -> None:
    with working(queue, max_workers=2) as manager:
        quick = queue.add_task(jobs.sleep, 1.5)
        endless = queue.add_task(jobs.spin)
        waiting = queue.add_task(jobs.add, 1, 1)
        wait_until(lambda: has_begun(quick) and has_begun(endless))
        manager.stop(2.5)
        wait_until(lambda: not queue.workers(), 10)
    assert quick.state == "done"
    row = endless.row()
    assert (row.state, row.failures, row.claimed_by, row.attempt) == ("enqueued", 0, None, 1)
    assert attempts(queue, endless) == []
    assert waiting.state == "enqueued"


def test_what_cannot_be_interrupted_is_handed_back_all_the_same(queue: Queue) -> None:
    with working(queue) as manager:
        ref = queue.add_task(jobs.blocked)
        wait_until(lambda: has_begun(ref))
        manager.stop(0.0)
        wait_until(lambda: ref.state == "enqueued")
        assert manager.is_abandoning
        jobs.released.set()
        wait_until(lambda: not manager.is_abandoning)
    assert ref.state == "enqueued"


def test_a_burst_ends_at_once_when_nothing_is_left(queue: Queue) -> None:
    for n in range(50):
        queue.add_task(jobs.add, n, 1)
    later = queue.options(delay=3600).add_task(jobs.add, 1, 1)
    queue.config.fallback_polling_interval = queue.config.polling_interval = 3600.0
    queue.config.heartbeat_interval, queue.config.worker_idle_timeout = 20.0, 1.0
    manager = Manager(queue, burst=True)
    manager.start()
    began = time.monotonic()
    manager.run()
    # Not a measurement: a burst that waits for its next duty takes the heartbeat's 20 seconds.
    assert time.monotonic() - began < 15
    assert len(queue.find(state="done", limit=None)) == 50
    assert later.state == "waiting"


def test_the_worker_s_row_shows_its_slots_and_its_end(queue: Queue) -> None:
    with working(queue, max_workers=3) as manager:
        (row,) = queue.workers()
        assert (row.id, row.max_workers, row.active_workers, row.idle_workers) == (manager.id, 3, 0, 3)
        queue.add_task(jobs.blocked)
        wait_until(lambda: [(w.active_workers, w.idle_workers) for w in queue.workers()] == [(1, 2)])
        jobs.released.set()
        wait_until(lambda: [w.active_workers for w in queue.workers()] == [0])
    assert queue.workers() == []


def test_two_workers_run_every_task_once(queue: Queue, database_url: str, tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    refs = [queue.add_task(jobs.note, path, str(n)) for n in range(300)]
    other = Queue(database_url)
    with working(queue), working(other):
        wait_until(lambda: len(queue.find(state="done", limit=None)) == len(refs), 20)
    other.close()
    assert sorted(map(int, Path(path).read_text().split())) == list(range(300))


def test_a_claim_that_was_committed_without_our_hearing_of_it_is_given_back(queue: Queue) -> None:
    url = queue.config.database_url
    assert url
    with working(queue) as manager:
        ref = queue.options(delay=3600).add_task(jobs.add, 1, 1)
        execute(
            url,
            "UPDATE queued_tasks SET state = 'doing', claimed_by = %s, attempt = 1 WHERE id = %s RETURNING 1",
            (manager.id, ref.id),
        )
        terminate_all(queue)
        assert ended(ref).result == 2


def test_an_insert_of_the_function_alone_is_a_task(queue: Queue) -> None:
    url = queue.config.database_url
    assert url
    connection = raw_connection(url)
    with working(queue, fallback_polling_interval=0.1):
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO queued_tasks (function) VALUES ('worker_jobs:token') RETURNING id::text")
            (task_id,) = cursor.fetchone()
        assert ended(queue.get(task_id)).result == [task_id, 1]
    connection.close()
