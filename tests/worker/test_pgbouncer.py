"""Everything through PgBouncer in transaction mode, where each transaction may get another backend."""

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg2
import pytest

from helpers import execute, has_begun, wait_until
from poolers import SERVER_CONNECTIONS, pgbouncer
from queuedtask import Queue, TaskTimeout
from queuedtask.errors import DatabaseUnavailable

sys.path.insert(0, str(Path(__file__).parent))
import worker_jobs as jobs
from inside import ended, fresh_event, working

__all__ = ["fresh_event"]  # a fixture

FAR = 3600.0
TRACKED = {
    "application_name",
    "client_encoding",
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "standard_conforming_strings",
}
"""What PgBouncer sets for each client anew."""


@pytest.fixture
def pooled_url(database_url: str) -> Iterator[str]:
    with pgbouncer(database_url) as url:
        yield url


@pytest.fixture
def pooled(pooled_url: str, database_url: str) -> Iterator[Queue]:
    """Give a queue that talks through PgBouncer and listens past it."""
    with contextlib.closing(Queue(pooled_url)) as queue:
        queue.config.listen_url = database_url
        yield queue


def test_tasks_of_many_threads_run_once_each_and_leave_nothing_on_the_shared_connections(
    pooled: Queue, pooled_url: str, database_url: str
) -> None:
    with working(pooled), ThreadPoolExecutor(12) as threads:
        refs = list(threads.map(lambda number: pooled.add_task(jobs.add, number, 1), range(300)))
        with pooled.batch() as batch:
            refs += [batch.add_task(jobs.add, number, 1) for number in range(300, 600)]
        chained = pooled.options(concurrency_key="k")
        refs += [chained.add_task(jobs.add, number, 1) for number in range(600, 620)]
        keyed = list(threads.map(lambda _: pooled.options(unique_key="one").add_task(jobs.blocked), range(12)))
        # It is told of by NOTIFY: the fallback is an hour away.
        assert [ref.wait(60) for ref in refs] == [number + 1 for number in range(620)]
        assert {ref.id for ref in keyed} == {keyed[0].id}
        jobs.released.set()
        keyed[0].wait(10)
        assert execute(database_url, "SELECT count(*), sum(attempt) FROM queued_tasks") == [(621, 621)]
        # What a client has set would be the next one's, too; and so would its locks.
        for left in _of_each_connection(pooled_url, "SELECT name FROM pg_settings WHERE source = 'session'"):
            assert {row[0] for row in left} <= TRACKED
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        assert execute(database_url, held) == [(0,)]


def _of_each_connection(url: str, sql: str) -> list[list[tuple[object, ...]]]:
    """Ask all of PgBouncer's connections: one transaction holds each while the next one is asked."""
    answers = []
    with contextlib.ExitStack() as held:
        for _ in range(SERVER_CONNECTIONS):
            connection = held.enter_context(contextlib.closing(psycopg2.connect(url)))
            cursor = connection.cursor()
            cursor.execute(sql)
            answers.append(cursor.fetchall())
    return answers


def test_the_caller_s_transaction_is_one_through_it_as_well(pooled: Queue, pooled_url: str, database_url: str) -> None:
    with contextlib.closing(psycopg2.connect(pooled_url)) as mine:
        lost = pooled.options(connection=mine).add_task(jobs.add, 1, 1)
        mine.rollback()
        kept = pooled.options(connection=mine).add_task(jobs.add, 1, 1)
        mine.commit()
    assert execute(database_url, "SELECT id::text FROM queued_tasks") == [(kept.id,)]
    assert lost.id != kept.id


def test_the_sql_of_a_task_is_cancelled_at_its_timeout(pooled: Queue) -> None:
    with working(pooled, timeout_grace=5.0):
        ref = pooled.options(timeout=0.5, max_retries=0).add_task(jobs.sleep_in_sql, 60)
        ended(ref, "failed")
        assert ref.row().error_type == TaskTimeout.__name__


@pytest.mark.slow
def test_a_worker_tree_and_the_command_line(pooled_url: str, database_url: str, empty_database_url: str) -> None:
    environment = {**os.environ, "QUEUE_DATABASE_URL": pooled_url, "QUEUE_LISTEN_URL": database_url}

    def run(*arguments: str, **other: str) -> str:
        said = subprocess.run(
            [sys.executable, "-m", "queuedtask", *arguments],
            env=environment | other,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert said.returncode == 0, said.stderr
        return said.stdout + said.stderr

    with contextlib.closing(Queue(pooled_url)) as queue:
        refs = [queue.add_task("time:monotonic") for _ in range(100)]
        assert "cannot listen" not in run("worker", "-w", "4", "--burst")
        assert {ref.state for ref in refs} == {"done"}
        assert "100" in run("status")
    with pgbouncer(empty_database_url) as empty:
        assert "applied 0001 initial" in run("db", "upgrade", QUEUE_DATABASE_URL=empty)


def test_without_a_direct_connection_it_says_so_and_polls(pooled_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.closing(Queue(pooled_url)) as queue:
        with pytest.raises(DatabaseUnavailable, match=r"PgBouncer.*QUEUE_LISTEN_URL"):
            queue.database.connect_to_listen()
        with caplog.at_level(logging.WARNING), working(queue, polling_interval=0.1):
            assert queue.add_task(jobs.add, 1, 1).wait(20) == 2
            running = queue.add_task(jobs.blocked)
            wait_until(lambda: has_begun(running))
            jobs.released.set()
            running.wait(20)
        (said,) = [record.getMessage() for record in caplog.records if "cannot listen" in record.getMessage()]
        assert "polling every 0.1 s instead" in said
        assert "QUEUE_LISTEN_URL" in said


def test_a_pooler_that_keeps_sessions_may_be_listened_through_if_somebody_says_so(database_url: str) -> None:
    enough = 8  # each connection has one of its own for as long as it is open
    with (
        pgbouncer(database_url, "session", server_connections=enough) as url,
        contextlib.closing(Queue(url)) as queue,
    ):
        queue.config.listen_url = url
        with working(queue, polling_interval=FAR, fallback_polling_interval=FAR):
            assert queue.add_task(jobs.add, 1, 1).wait(20) == 2


def test_a_pooler_that_has_no_connection_left_to_listen_on_does_not_hold_the_worker_up(
    queue: Queue, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pgbouncer(database_url, "session", server_connections=1) as url,
        contextlib.closing(Queue(url)) as pooled,
        caplog.at_level(logging.WARNING),
    ):
        pooled.config.listen_url = url
        # A third of the lease is how long the server may take for an answer.
        with working(pooled, polling_interval=0.1, heartbeat_interval=1.0, lease=3.0):
            assert queue.add_task(jobs.add, 1, 1).wait(20) == 2
    assert any("cannot listen, polling every 0.1 s" in record.getMessage() for record in caplog.records)


def test_a_direct_connection_is_known_as_one(queue: Queue) -> None:
    queue.database.connect_to_listen().close()
