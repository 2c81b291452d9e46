"""Each reason of ``queue.health()``, brought about by what it stands for: workers, servers and locks that are real."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import create_engine

from helpers import apply_migrations, execute, has_begun, raw_connection, send_all, wait_until
from queuedtask import Config, Queue
from queuedtask.db import migrate
from queuedtask.db.embedded import EmbeddedServer
from queuedtask.db.health import HealthCheck, _Asking
from queuedtask.model import measures

sys.path.insert(0, str(Path(__file__).parent / "worker"))
sys.path.insert(0, str(Path(__file__).parent / "cli"))
import hostile_jobs
import worker_jobs as jobs
from inside import ended, fresh_event, working
from terminals import insert_worker
from trees import tree

__all__ = ["fresh_event"]  # a fixture


def says(queue: Queue, reason: str | None, status: str, **more: object) -> dict[str, Any]:
    found = queue.health()
    assert set(found) == {"status", "reason", "error", "workers"}
    assert (found["reason"], found["status"]) == (reason, status), found
    assert (found["error"] is None) == (reason is None)
    assert found.items() >= more.items()
    return found


# ------------------------------------------------------------------------------------------------------------- workers


def test_without_a_worker_it_is_unhealthy_with_one_healthy_and_after_it_unhealthy_again(queue: Queue) -> None:
    says(queue, "no_active_workers", "unhealthy", workers=0)
    with working(queue):
        says(queue, None, "healthy", workers=1)
    says(queue, "no_active_workers", "unhealthy", workers=0)


def test_a_worker_counts_until_its_lease_is_over_its_own_if_that_is_longer(queue: Queue, database_url: str) -> None:
    insert_worker(database_url, 1, silence=31)
    says(queue, "no_active_workers", "unhealthy", workers=0)
    insert_worker(database_url, 2, silence=31, lease=60.0)
    says(queue, None, "healthy", workers=1)
    insert_worker(database_url, 3, silence=1, is_running=False)
    insert_worker(database_url, 4, silence=29, lease=10.0)
    says(queue, None, "healthy", workers=2)
    assert queue.metrics().active_workers == 2


def test_a_tree_that_was_killed_is_no_worker_and_its_tasks_are_stuck(queue: Queue, database_url: str) -> None:
    queue.config.heartbeat_interval = 0.5
    queue.config.lease = 2.0
    with tree(database_url, "-p", "2", "-w", "2", lease=2, heartbeat_interval=0.5) as victim:
        wait_until(lambda: queue.health()["workers"] == 2, 20)
        refs = [queue.add_task(hostile_jobs.sleep, 60) for _ in range(3)]
        wait_until(lambda: all(map(has_begun, refs)), 20)
        says(queue, None, "healthy", workers=2)
        assert queue.metrics().stuck_tasks == 0
        victim.signal(signal.SIGSTOP, all_of_them=True)  # so that none of them tidies up after another
        victim.signal(signal.SIGKILL, all_of_them=True)
        wait_until(lambda: queue.health()["reason"] == "no_active_workers", 20)
    found = queue.metrics()
    assert (found.running_tasks, found.stuck_tasks, found.active_workers) == (3, 3, 0)
    # Another one lives: then it is the tasks that are amiss.
    insert_worker(database_url, 1, lease=60.0)
    queue.config.health_max_stuck = 2
    says(queue, "tasks_stuck", "degraded", workers=1)


# --------------------------------------------------------------------------------------------------------------- stuck


def test_tasks_in_stuck_slots_are_counted(queue: Queue) -> None:
    queue.config.health_max_stuck = 1
    with working(queue, max_workers=1, timeout_grace=0.3, max_stuck_slots=9, max_retries=0):
        ended(queue.options(timeout=0.2).add_task(jobs.sleep, 10.0), "failed")
        wait_until(lambda: queue.metrics().stuck_tasks == 1, 5)
        says(queue, None, "healthy", workers=1)  # not above the limit
        ended(queue.options(timeout=0.2, channel="slow").add_task(jobs.sleep, 9.0), "failed")
        wait_until(lambda: queue.health()["reason"] == "tasks_stuck", 5)
        assert "2 tasks" in says(queue, "tasks_stuck", "degraded", workers=1)["error"]
        found = queue.metrics()
        assert (found.running_tasks, found.stuck_tasks) == (0, 2)
        assert {name: each.stuck_tasks for name, each in found.by_channel.items()} == {"default": 1, "slow": 1}
        assert {name: each.stuck_tasks for name, each in found.by_name.items()} == {"worker_jobs.sleep": 2}
        wait_until(lambda: queue.health()["reason"] is None, 25)


def test_a_stuck_slot_whose_task_was_deleted_is_counted_by_name_alone(queue: Queue, database_url: str) -> None:
    slot = '[{"task": "019a0000-0000-7000-8000-000000000000", "name": "shop.gone", "attempt": 1, "seconds": 9}]'
    insert_worker(database_url, 1, stuck=slot)
    insert_worker(database_url, 2, stuck=slot, silence=100)
    found = queue.metrics()
    assert found.stuck_tasks == 1
    assert (list(found.by_channel), list(found.by_name)) == ([], ["shop.gone"])


@pytest.mark.parametrize(
    ("timeout", "seconds", "is_stuck"),
    [
        (10.0, 9.0, False),
        (10.0, 18.0, False),  # grace, and what a worker needs to end it
        (10.0, 21.0, True),
        (None, 309.0, False),
        (None, 311.0, True),
        (1000.0, 500.0, False),
        (1e300, 1e6, False),
        (10.0, None, False),  # claimed, and not begun
    ],
)
def test_a_task_is_stuck_beyond_its_timeout_or_the_configured_one_and_the_grace(
    queue: Queue, database_url: str, timeout: float | None, seconds: float | None, is_stuck: bool
) -> None:
    queue.config.health_max_stuck = 0
    worker = insert_worker(database_url, 1)
    queue.add_task("shop:buy")
    execute(
        database_url,
        "UPDATE queued_tasks SET state = 'doing', attempt = 1, claimed_by = %s, timeout = %s, "
        "date_started = clock_timestamp() - %s * interval '1 second' RETURNING 1",
        (worker, timeout, seconds),
    )
    says(queue, *(("tasks_stuck", "degraded") if is_stuck else (None, "healthy")), workers=1)


@pytest.mark.parametrize("owner", [None, 4711, "silent", "ended"])
def test_what_a_worker_has_claimed_that_is_not_there_is_stuck(
    queue: Queue, database_url: str, owner: int | str | None
) -> None:
    queue.config.health_max_stuck = 0
    insert_worker(database_url, 1)
    if owner == "silent":
        owner = insert_worker(database_url, 2, silence=31)
    elif owner == "ended":
        owner = insert_worker(database_url, 2, is_running=False)
    queue.add_task("shop:buy")
    execute(database_url, "UPDATE queued_tasks SET state = 'doing', attempt = 1, claimed_by = %s RETURNING 1", (owner,))
    says(queue, "tasks_stuck", "degraded", workers=1)


# --------------------------------------------------------------------------------------------------------------- paused


def test_a_pause_of_everything_is_said_and_that_of_a_channel_is_not(queue: Queue) -> None:
    with working(queue):
        queue.pause("mail")
        says(queue, None, "healthy")
        queue.pause()
        says(queue, "paused", "degraded", workers=1)
        queue.resume()
        says(queue, None, "healthy")


# ------------------------------------------------------------------------------------------------------------ database


@pytest.fixture
def private_server(bin_dir: Path | None) -> Iterator[EmbeddedServer]:
    """Give a running server that a test may stop."""
    directory = Path(tempfile.mkdtemp(prefix="qt-"))
    server = EmbeddedServer(directory / "queuedtask", bin_dir=bin_dir, settings={"fsync": "off"})
    try:
        url = server.ensure_running(None)
        apply_migrations(url)
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def private_queue(private_server: EmbeddedServer) -> Iterator[Queue]:
    """Give a Queue on that server, beside a worker."""
    with contextlib.closing(Queue(private_server.url)) as queue:
        insert_worker(private_server.url, 1, lease=3600.0)
        yield queue


def processes_of(server: EmbeddedServer) -> list[int]:
    main = int((server.directory / "data" / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
    return [main, *map(int, children)]


def test_a_server_that_stops_and_comes_back(private_queue: Queue, private_server: EmbeddedServer) -> None:
    says(private_queue, None, "healthy", workers=1)
    private_server.stop()
    says(private_queue, "database_unreachable", "unhealthy", workers=None)
    private_server.ensure_running(None)
    says(private_queue, None, "healthy", workers=1)


def test_a_server_that_does_not_answer_is_found_out_in_time(
    private_queue: Queue, private_server: EmbeddedServer
) -> None:
    says(private_queue, None, "healthy", workers=1)
    pids = processes_of(private_server)
    send_all(pids, signal.SIGSTOP)
    try:
        threads = threading.active_count()
        for _ in range(3):
            began = time.monotonic()
            found = private_queue.health(timeout=0.5)
            assert 0.4 < time.monotonic() - began < 4
            assert (found["reason"], found["error"]) == ("database_unreachable", "no answer within 0.5 s")
        assert threading.active_count() <= threads + 1  # the later ones wait for the first one's answer
    finally:
        send_all(pids, signal.SIGCONT)
    wait_until(lambda: private_queue.health()["status"] == "healthy", 10)


def test_one_that_hangs_for_long_is_left_to_itself(
    private_queue: Queue, private_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection may never answer although others would."""
    private_queue.health()
    backend = execute(private_server.url, "SELECT pid FROM pg_stat_activity WHERE application_name = 'queuedtask'")[0][
        0
    ]
    os.kill(backend, signal.SIGSTOP)
    try:
        assert private_queue.health(timeout=0.2)["reason"] == "database_unreachable"
        monkeypatch.setattr("queuedtask.db.health.GIVEN_UP_AFTER", 0.0)
        assert private_queue.health()["status"] == "healthy"
    finally:
        os.kill(backend, signal.SIGCONT)


def test_a_lock_that_keeps_it_waiting_is_found_out_and_given_up_by_the_server(queue: Queue, database_url: str) -> None:
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE queued_tasks IN ACCESS EXCLUSIVE MODE")
        found = queue.health(timeout=0.3)
        assert (found["status"], found["reason"]) == ("unhealthy", "database_unreachable")
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        wait_until(lambda: not execute(database_url, waiting), 5)
    # The server has given up; its answer may still be on its way, and who asks meanwhile gets the same one.
    wait_until(lambda: queue.health()["reason"] != "database_unreachable", 5)
    says(queue, "no_active_workers", "unhealthy")
    with queue.database.transaction() as cursor:
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("0",)  # nothing of it stays on a pooled connection


def test_a_pool_that_is_exhausted_does_not_make_it_wait(queue: Queue) -> None:
    held = [queue.database.engine.connect() for _ in range(15)]
    try:
        began = time.monotonic()
        assert queue.health(timeout=0.3)["status"] == "unhealthy"
        assert time.monotonic() - began < 4
    finally:
        for connection in held:
            connection.close()
    wait_until(lambda: queue.health()["reason"] == "no_active_workers", 5)


def test_tables_that_are_missing(empty_database_url: str) -> None:
    with contextlib.closing(Queue(empty_database_url)) as queue:
        found = says(queue, "tables_missing", "unhealthy", workers=None)
        assert "db upgrade" in found["error"]


def test_one_table_that_is_missing(queue: Queue, database_url: str) -> None:
    execute(database_url, "DROP TABLE queued_task_workers")
    says(queue, "tables_missing", "unhealthy")


@pytest.mark.parametrize("step", [-1, 2])
def test_a_schema_of_another_version(queue: Queue, database_url: str, step: int) -> None:
    latest = migrate.latest_version()
    execute(database_url, "DELETE FROM queued_task_migrations WHERE version = %s RETURNING 1", (latest,))
    execute(
        database_url,
        "INSERT INTO queued_task_migrations (version, name) VALUES (%s, 'other') ON CONFLICT DO NOTHING RETURNING 1",
        (latest + step,),
    )
    says(queue, "schema_outdated", "unhealthy")


def test_a_role_that_may_not_read(database_url: str) -> None:
    with contextlib.suppress(psycopg2.Error):
        execute(database_url, "CREATE ROLE queuedtask_nobody LOGIN")
    with contextlib.closing(Queue(database_url.replace("postgres@", "queuedtask_nobody@"))) as queue:
        found = says(queue, "database_error", "unhealthy")
        assert "permission denied" in found["error"]


@pytest.mark.parametrize(
    "url",
    ["postgresql://nobody@127.0.0.1:1/nothing", "postgresql://nobody@name.invalid/x", "postgresql://a@/b?host=/c"],
)
def test_a_server_that_is_not_there(url: str) -> None:
    found = says(Queue(url), "database_unreachable", "unhealthy", workers=None)
    assert "\n" not in found["error"]
    assert says(Queue(engine=create_engine(url.replace(":", "+psycopg2:", 1))), "database_unreachable", "unhealthy")


def test_many_may_ask_at_once(queue: Queue) -> None:
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.extend(queue.health() for _ in range(20))) for _ in range(8)]
    with working(queue):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [{"status": "healthy", "reason": None, "error": None, "workers": 1}] * 160


def test_a_fork_asks_for_itself(queue: Queue) -> None:
    check = HealthCheck(queue.database)
    check.ask(5.0)
    check._asking = asking = _Asking(queue.database, 5.0)
    asking.answered.wait(5)
    asking.answered.clear()  # as if it were still being asked when the process forks
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(theirs, str(check.ask(5.0)["reason"]).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    assert os.read(ours, 100) == b"no_active_workers"
    os.waitpid(child, 0)
    os.close(ours)


def test_each_reason_has_a_status_and_is_documented() -> None:
    text = (Path(__file__).parents[1] / "docs" / "monitoring.rst").read_text()
    table = {line.split()[0].strip("`"): line.split()[1] for line in text.splitlines() if line.startswith("``")}
    assert {name: status for name, status in table.items() if status in ("degraded", "unhealthy")} == measures.STATUS
    assert Config().health_max_stuck == 10
