"""``current_task().transaction()``: the task's writes and its completion commit together, or neither does."""

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from djangos import django_connections
from helpers import execute, raw_connection, wait_until
from queuedtask import Queue

sys.path.insert(0, str(Path(__file__).parent))
import family_jobs
import transaction_jobs as jobs
from inside import attempts, ended, working
from trees import tree

ROUNDS = int(os.environ.get("QUEUEDTASK_TEST_ROUNDS", "2"))


@pytest.fixture(autouse=True)
def table(database_url: str) -> None:
    execute(database_url, "CREATE TABLE written (value integer)")
    jobs.inside.clear()
    jobs.go_on.clear()


def written(url: str) -> list[int]:
    return [value for (value,) in execute(url, "SELECT value FROM written ORDER BY 1")]


def test_the_writes_the_result_and_the_end_commit_together(queue: Queue, database_url: str) -> None:
    ref = queue.add_task(jobs.finish, 1)
    child = queue.add_task(family_jobs.results_of_parents, parent=ref)
    with working(queue, fallback_polling_interval=3600.0):
        ended(child)
        wait_until(lambda: len(ref.logs()) == 2)
    assert (ref.state, ref.result, child.result) == ("done", {"written": 1}, [{"written": 1}])
    assert ref.context["seen"] == 1
    assert [line.message for line in ref.logs()] == ["inside", "after"]
    assert written(database_url) == [1]


def test_an_error_inside_rolls_back_and_one_after_it_changes_nothing(
    queue: Queue, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with working(queue, max_retries=0) as manager:
        failed = ended(queue.add_task(jobs.finish, 1, fail_inside=True), "failed")
        done = ended(queue.add_task(jobs.finish, 2, fail_after=True))
        wait_until(lambda: "stays done" in caplog.text)
    assert (failed.error, failed.result) == ("ValueError: inside", None)
    assert (done.error, done.result, attempts(queue, done)) == (None, {"written": 2}, [])
    assert written(database_url) == [2]
    assert manager.refused == 0


def test_a_task_finishes_once(queue: Queue, database_url: str) -> None:
    with working(queue):
        ref = ended(queue.add_task(jobs.finish_twice))
    assert (ref.result, written(database_url)) == (None, [])


def test_an_attempt_that_was_lost_meanwhile_commits_nothing(queue: Queue, database_url: str) -> None:
    with working(queue, max_retries=0) as manager:
        ref = queue.add_task(jobs.note_loss, 1)
        assert jobs.inside.wait(10)
        execute(
            database_url, "UPDATE queued_tasks SET attempt = attempt + 1, claimed_by = 999 WHERE id = %s", (ref.id,)
        )
        jobs.go_on.set()
        wait_until(lambda: manager.refused)
    assert (ref.state, ref.result, written(database_url)) == ("doing", None, [])


def test_its_row_is_not_locked_while_its_code_runs(queue: Queue, database_url: str) -> None:
    with working(queue):
        ref = queue.add_task(jobs.finish, 1, wait=True)
        assert jobs.inside.wait(10)
        connection = raw_connection(database_url)
        connection.cursor().execute("SET lock_timeout = '1s'")
        connection.cursor().execute("SELECT 1 FROM queued_tasks WHERE id = %s FOR UPDATE", (ref.id,))
        connection.close()
        jobs.go_on.set()
        ended(ref)


def test_a_connection_of_the_task_s_own(queue: Queue, database_url: str) -> None:
    dsn = raw_connection(database_url)
    parameters = " ".join(
        f"{key}={value}"
        for key, value in dsn.get_dsn_parameters().items()
        if value and key in ("host", "port", "user", "dbname")
    )
    dsn.close()
    with working(queue, max_retries=0):
        refs = [
            queue.add_task(jobs.finish_with_session, database_url, 1),
            queue.add_task(jobs.finish_with_connection, database_url, 2),
            queue.add_task(jobs.finish_with_driver, "psycopg2", parameters, 3),
            queue.add_task(jobs.finish_with_driver, "psycopg", parameters, 4),
        ]
        assert [ended(ref).result for ref in refs] == [1, 2, 3, 4]
        for driver in ("psycopg2", "psycopg"):
            ref = ended(queue.add_task(jobs.finish_with_driver, driver, parameters, 5, autocommit=True), "failed")
            assert "it commits every statement by itself" in (ref.error or "")
    assert written(database_url) == [1, 2, 3, 4]


def test_a_connection_of_django_s(queue: Queue, database_url: str) -> None:
    django_connections(database_url)
    with working(queue, max_retries=0):
        assert ended(queue.add_task(jobs.finish_with_django, 1)).result == 1
        ref = ended(queue.add_task(jobs.finish_with_django, 2, atomic=True), "failed")
        assert "inside atomic()" in (ref.error or "")
        ended(queue.add_task(jobs.finish_with_django, 3, fail=True), "failed")
    assert written(database_url) == [1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_every_row_is_written_once_although_the_worker_is_killed_at_random(
    queue: Queue, database_url: str, seed: int
) -> None:
    kills, number = 5, 0
    chance = random.Random(seed)
    settings: dict[str, Any] = {"lease": 1, "heartbeat_interval": 0.3, "max_lost": 1000, "timeout_grace": 1}
    begun = "SELECT count(*)::int FROM queued_tasks WHERE state = 'done'"
    for _ in range(kills):
        with queue.batch() as batch:
            for _ in range(100):
                batch.add_task(jobs.finish_slowly, number)
                number += 1
        before = execute(database_url, begun)
        with tree(database_url, "-w", "4", "-p", "2", **settings) as victim:
            wait_until(lambda: execute(database_url, begun) != before, 30)  # noqa: B023 (waited for here)
            # What is random is the moment of the death, among 100 tasks of 20 ms in 8 slots.
            time.sleep(chance.uniform(0.0, 0.2))
            victim.signal(signal.SIGKILL, all_of_them=True)
    with tree(database_url, "-w", "4", **settings):
        left = "SELECT count(*)::int FROM queued_tasks WHERE state <> 'done'"
        wait_until(lambda: execute(database_url, left) == [(0,)], 300, interval=0.2)
    assert written(database_url) == list(range(number))
    (lost,) = execute(database_url, "SELECT sum(lost_count)::int FROM queued_tasks")[0]
    assert lost > kills, "the kills have hit too few"
