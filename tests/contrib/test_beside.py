"""Worker slots in a process that does something else: begins, ends, forks, dies."""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers import execute, has_begun, wait_until
from queuedtask import NotAllowed, Queue
from queuedtask.worker import beside
from queuedtask.worker.beside import WorkerBeside

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
from inside import ended, fresh_event, working
from servers import gunicorn, program
from trees import tree

__all__ = ["fresh_event"]  # a fixture


def rows(url: str) -> list[tuple[object, ...]]:
    return execute(url, "SELECT pid, is_running, max_workers, supervisor_pid FROM queued_task_workers ORDER BY id")


def running(url: str) -> set[object]:
    return {pid for pid, is_running, *_ in rows(url) if is_running}


@pytest.fixture
def worker(queue: Queue) -> Iterator[WorkerBeside]:
    worker = queue.start_worker(slots=2)
    yield worker
    worker.stop(0.0)


def test_it_runs_tasks_and_ends_in_order(queue: Queue, database_url: str, worker: WorkerBeside) -> None:
    assert (worker.is_alive, worker.id) == (True, 0)
    ref = queue.add_task("beside_app:nap", 0.0)
    assert ended(ref).result == "slept"
    assert rows(database_url) == [(os.getpid(), True, 2, None)]
    assert worker.id
    unfinished = queue.add_task("beside_app:nap", 60)
    wait_until(lambda: has_begun(unfinished))
    worker.stop(0.0)
    assert (worker.is_alive, rows(database_url)) == (False, [(os.getpid(), False, 2, None)])
    row = unfinished.row()
    assert (row.state, row.failures) == ("enqueued", 0)
    worker.stop()


def test_there_is_one_for_a_queue(queue: Queue, worker: WorkerBeside) -> None:
    assert queue.start_worker(2) is worker
    with pytest.raises(NotAllowed, match="one with 2 slots runs already"):
        queue.start_worker(3)
    worker.stop()
    other = queue.start_worker(3)
    assert other is not worker
    other.stop()


@pytest.mark.parametrize("slots", [0, -1, 1.5, True, "2"])
def test_a_number_of_slots_that_cannot_be_is_refused(queue: Queue, slots: object) -> None:
    with pytest.raises(ValueError, match="must be a whole number from 1 up"):
        queue.start_worker(slots)  # type: ignore[arg-type]


def test_two_threads_that_start_it_at_once_get_the_same_one(queue: Queue) -> None:
    barrier = threading.Barrier(16)

    def start(_: int) -> WorkerBeside:
        barrier.wait()
        return queue.start_worker(1)

    with ThreadPoolExecutor(16) as threads:
        found = set(threads.map(start, range(16)))
    (worker,) = found
    worker.stop()


def test_without_tables_it_says_so_and_begins_when_they_are_there(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from helpers import apply_migrations

    monkeypatch.setattr(beside, "START_DELAY", 0.0)
    monkeypatch.setattr(beside, "RETRY_INTERVAL", 0.05)
    queue = Queue(empty_database_url)
    worker = queue.start_worker(1)
    with caplog.at_level(logging.ERROR):
        wait_until(lambda: "cannot begin, trying again" in caplog.text)
        apply_migrations(empty_database_url)
        wait_until(lambda: worker.id)
    worker.stop()
    queue.close()


def test_with_too_many_stuck_slots_it_ends_and_says_so(
    queue: Queue, worker: WorkerBeside, caplog: pytest.LogCaptureFixture
) -> None:
    queue.config.timeout_grace = 0.1
    queue.config.max_stuck_slots = 1
    refs = [queue.options(timeout=0.1, max_retries=0).add_task("time:sleep", 4)]
    with caplog.at_level(logging.ERROR):
        ended(refs[0], "failed")
        wait_until(lambda: "has ended by itself" in caplog.text)
    wait_until(lambda: not worker.is_alive)
    other = queue.start_worker(1)
    assert other is not worker
    assert ended(queue.add_task("beside_app:nap", 0.0)).result == "slept"
    other.stop(0.0)


def test_at_the_process_s_end_it_ends_in_order(queue: Queue, database_url: str) -> None:
    ref = queue.add_task("beside_app:nap", 60)
    with program(database_url, "beside_app.py", "ends", SLOTS=1) as process:
        wait_until(lambda: has_begun(ref), 30)
        process.say("end")
        assert process.process.wait(30) == 7
    assert [is_running for _, is_running, *_ in rows(database_url)] == [False]
    assert (ref.state, ref.row().failures, ref.row().lost_count) == ("enqueued", 0, 0)


def test_a_process_that_forks_leaves_it_to_its_children(queue: Queue, database_url: str) -> None:
    with program(database_url, "beside_app.py", "forks", SLOTS=1, TOUCH_DATABASE=1) as process:
        parent = int(process.said(r"parent (\d+)").group(1))
        found = wait_until(lambda: running(database_url) if len(running(database_url)) == 2 else None, 20)
        assert parent not in found
        refs = [queue.add_task("beside_app:nap", 0.0) for _ in range(20)]
        assert {ended(ref).state for ref in refs} == {"done"}
        assert running(database_url) == found


def test_what_multiprocessing_and_programs_fork_is_no_worker(queue: Queue, database_url: str) -> None:
    with program(database_url, "beside_app.py", "multiprocessing", SLOTS=1) as process:
        parent = int(process.said(r"parent (\d+)").group(1))
        assert ended(queue.add_task("beside_app:nap", 0.0), timeout=20).state == "done"
        ended(queue.options(delay=1.5).add_task("beside_app:nap", 0.0))  # longer than a child would need to begin
        assert [pid for pid, *_ in rows(database_url)] == [parent]


def test_a_fork_beside_a_running_one_makes_another_with_connections_of_its_own(queue: Queue, database_url: str) -> None:
    execute(database_url, "CREATE TABLE ran (number int, pid int)")
    with program(database_url, "beside_app.py", "forks-later", SLOTS=2) as process:
        (parent,) = wait_until(lambda: running(database_url), 20)
        process.say("go")
        both = wait_until(lambda: running(database_url) if len(running(database_url)) == 2 else None, 20)
        assert parent in both
        refs = [queue.add_task("beside_app:run", number) for number in range(200)]
        for ref in refs:
            ended(ref)
            assert len(ref.logs()) == 1
        ran = execute(database_url, "SELECT number, count(*) FROM ran GROUP BY number")
        assert sorted(ran) == [(number, 1) for number in range(200)]
        assert running(database_url) == both


@pytest.mark.slow
def test_the_tasks_of_a_killed_process_are_taken_back_within_the_lease(queue: Queue, database_url: str) -> None:
    short = {"QUEUE_LEASE": 1.5, "QUEUE_HEARTBEAT_INTERVAL": 0.3}
    ref = queue.add_task("beside_app:nap", 60)
    with program(database_url, "beside_app.py", "waits", SLOTS=1, **short) as process:
        wait_until(lambda: has_begun(ref), 20)
        process.stop(signal.SIGKILL)
    with working(queue, heartbeat_interval=0.3, lease=1.5) as manager:
        wait_until(lambda: ref.row().lost_count == 1, 15)
        wait_until(lambda: len(running(database_url)) == 1)
        manager.stop(0.0)
    row = ref.row()
    assert row.failures == 0


# ------------------------------------------------------------------------------------------------------------ gunicorn


def children(pid: int) -> set[object]:
    return {int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()}


@pytest.mark.slow
def test_under_gunicorn_each_process_that_serves_has_slots_and_a_row(queue: Queue, database_url: str) -> None:
    command = gunicorn("--preload", "--workers", "4", "beside_app:application")
    with program(database_url, *command, SLOTS=2, TOUCH_DATABASE=1) as server:
        assert server.url
        found = wait_until(lambda: running(database_url) if len(running(database_url)) == 4 else None, 30)
        assert found == children(server.pid)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(running(database_url) - found) == 4 and not running(database_url) & found, 40)
        wait_until(lambda: running(database_url) == children(server.pid))
        refs = [queue.add_task("beside_app:nap", 0.0) for _ in range(50)]
        assert {ended(ref).state for ref in refs} == {"done"}
        assert server.stop() == 0
    assert [is_running for _, is_running, *_ in rows(database_url)] == [False] * 8
    assert {row[2:] for row in rows(database_url)} == {(2, None)}


@pytest.mark.slow
def test_under_gunicorn_without_preload(queue: Queue, database_url: str) -> None:
    command = gunicorn("--workers", "2", "--threads", "2", "beside_app:application")
    with program(database_url, *command, SLOTS=1) as server:
        found = wait_until(lambda: running(database_url) if len(running(database_url)) == 2 else None, 30)
        assert found == children(server.pid)
        assert server.stop() == 0
    assert running(database_url) == set()


@pytest.mark.slow
def test_forked_servers_add_under_load_and_nothing_is_lost_doubled_or_shared(queue: Queue, database_url: str) -> None:
    execute(database_url, "CREATE TABLE ran (number int, pid int)")
    command = gunicorn("--preload", "--workers", "4", "--threads", "2", "beside_app:application")
    with (
        tree(database_url, "-w", "4") as workers,
        program(database_url, *command, TOUCH_DATABASE=1) as server,
        ThreadPoolExecutor(8) as clients,
    ):
        assert server.url
        answers = [json.loads(each) for each in clients.map(lambda n: server.get(f"/?{n * 10},10"), range(200))]
        pids = {answer["pid"] for answer in answers}
        backends = {(answer["backend"], answer["pid"]) for answer in answers}
        assert len(pids) == 4
        assert server.pid not in pids
        assert len({backend for backend, _ in backends}) == len(backends), "a connection in two processes"
        wait_until(lambda: not queue.find(state="enqueued", limit=1) and not queue.find(state="doing", limit=1), 60)
        assert workers.stop() == 0
        assert server.stop() == 0
    states = "SELECT state, attempt, count(*) FROM queued_tasks GROUP BY state, attempt"
    assert execute(database_url, states) == [("done", 1, 2000)]
    numbers = execute(database_url, "SELECT count(*), count(DISTINCT number), min(number), max(number) FROM ran")
    assert numbers == [(2000, 2000, 0, 1999)]
