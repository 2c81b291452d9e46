"""The rows of the workers: who lives, who has ended, and whom others may take for dead."""

import contextlib
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg2.errors
import pytest

from helpers import raw_connection
from queuedtask.db import workers
from queuedtask.db.workers import Owner


@pytest.fixture
def cursor(database_url: str) -> Iterator[Any]:
    """Give a cursor on which every statement commits by itself."""
    with contextlib.closing(raw_connection(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '3s'")
        yield cursor


@pytest.fixture
def other(database_url: str) -> Iterator[Any]:
    """Give somebody else's cursor, in a transaction that is rolled back."""
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as connection:
        yield connection.cursor()


def register(cursor: Any, **changed: Any) -> int:
    given: dict[str, Any] = {"server_name": "host", "slots": 4, "pid": 1, "supervisor_pid": None, "version": "1"}
    return workers.register(cursor, **{"lease": 30.0} | given | changed)


def worker_row(cursor: Any, worker: int) -> Any:
    cursor.execute(
        "SELECT is_running, max_workers, active_workers, idle_workers, stuck, refused FROM queued_task_workers"
        " WHERE id = %s",
        (worker,),
    )
    return cursor.fetchone()


def heartbeat_of(cursor: Any, worker: int) -> datetime:
    cursor.execute("SELECT last_heartbeat FROM queued_task_workers WHERE id = %s", (worker,))
    return cursor.fetchone()[0]  # type: ignore[no-any-return]


def test_a_worker_s_row_follows_it_from_its_start_to_its_end(cursor: Any) -> None:
    stuck = [{"task": "t", "seconds": 1.5}]
    worker = register(cursor)
    assert worker_row(cursor, worker) == (True, 4, 0, 4, [], 0)
    assert workers.heartbeat(cursor, worker=worker, slots=4, active=3, stuck=json.dumps(stuck), refused=2)
    assert worker_row(cursor, worker) == (True, 4, 3, 1, stuck, 2)
    assert workers.heartbeat(cursor, worker=worker, slots=8, active=0, refused=2)
    assert worker_row(cursor, worker) == (True, 8, 0, 8, [], 2)
    workers.heartbeat(cursor, worker=worker, slots=8, active=8, stuck=json.dumps(stuck), refused=3)
    workers.retire(cursor, worker=worker)
    assert worker_row(cursor, worker) == (False, 8, 0, 0, [], 3)


def test_a_worker_s_end_leaves_its_last_heartbeat_as_it_was(cursor: Any) -> None:
    worker = register(cursor)
    before = heartbeat_of(cursor, worker)
    workers.retire(cursor, worker=worker)
    assert heartbeat_of(cursor, worker) == before


def test_a_heartbeat_moves_the_time_of_this_worker_only(cursor: Any) -> None:
    worker, another = register(cursor), register(cursor)
    cursor.execute("UPDATE queued_task_workers SET last_heartbeat = now() - interval '1 hour'")
    workers.heartbeat(cursor, worker=worker, slots=4, active=0)
    cursor.execute("SELECT id FROM queued_task_workers WHERE last_heartbeat > now() - interval '1 minute'")
    assert cursor.fetchall() == [(worker,)]
    assert another != worker


def test_a_heartbeat_says_when_the_worker_s_row_is_gone(cursor: Any) -> None:
    worker = register(cursor)
    cursor.execute("DELETE FROM queued_task_workers")
    assert workers.heartbeat(cursor, worker=worker, slots=4, active=0) is False
    cursor.execute("SELECT count(*) FROM queued_task_workers")
    assert cursor.fetchone() == (0,)


def test_ids_of_workers_are_never_used_again(cursor: Any) -> None:
    first = register(cursor)
    cursor.execute("DELETE FROM queued_task_workers")
    assert register(cursor) > first


def test_the_name_of_a_server_is_cut_to_its_column(cursor: Any) -> None:
    worker = register(cursor, server_name="ü" * 300)
    cursor.execute("SELECT server_name FROM queued_task_workers WHERE id = %s", (worker,))
    assert cursor.fetchone() == ("ü" * 255,)


def test_the_supervisor_keeps_those_alive_that_it_names_and_that_have_not_ended(cursor: Any) -> None:
    mine, ended, others = register(cursor), register(cursor), register(cursor)
    workers.heartbeat(cursor, worker=mine, slots=4, active=3, stuck='[{"task": "t"}]', refused=1)
    workers.retire(cursor, worker=ended)
    cursor.execute("UPDATE queued_task_workers SET last_heartbeat = now() - interval '1 hour'")
    # As the supervisor executes it, which has only the text.
    cursor.execute(workers.KEEP_ALIVE.sql, {"workers": [mine, ended]})
    assert cursor.fetchall() == [(mine,)]
    assert worker_row(cursor, mine) == (True, 4, 3, 1, [{"task": "t"}], 1)
    assert worker_row(cursor, ended)[0] is False
    long_ago = heartbeat_of(cursor, mine) - timedelta(minutes=50)
    assert [heartbeat_of(cursor, worker) < long_ago for worker in (ended, others)] == [True, True]


# -------------------------------------------------------------------------------------------- whom others take for dead


def test_the_owners_are_those_that_say_that_they_run_and_those_that_tasks_are_claimed_by(cursor: Any) -> None:
    idle, busy, ended, ended_badly = (register(cursor, lease=10.0 + n) for n in range(4))
    for worker in (ended, ended_badly):
        workers.retire(cursor, worker=worker)
    cursor.execute(
        "INSERT INTO queued_tasks (function, state, claimed_by, date_done) VALUES ('a:b', 'doing', %s, NULL),"
        " ('a:b', 'doing', %s, NULL), ('a:b', 'doing', %s, NULL), ('a:b', 'doing', 99, NULL),"
        " ('a:b', 'doing', NULL, NULL), ('a:b', 'done', 98, now()), ('a:b', 'failed', %s, now())",
        (busy, busy, ended_badly, ended),
    )
    assert sorted(workers.owners(cursor)) == [
        Owner(idle, heartbeat_of(cursor, idle), 10.0),
        Owner(busy, heartbeat_of(cursor, busy), 11.0),
        Owner(ended_badly, heartbeat_of(cursor, ended_badly), 13.0),
        Owner(99, None, None),
    ]


def test_a_worker_that_has_reported_meanwhile_is_not_locked(cursor: Any) -> None:
    worker = register(cursor)
    seen = heartbeat_of(cursor, worker)
    assert workers.lock_silent(cursor, worker=worker, last_heartbeat=seen)
    assert workers.lock_silent(cursor, worker=worker, last_heartbeat=None)
    workers.heartbeat(cursor, worker=worker, slots=4, active=0)
    assert not workers.lock_silent(cursor, worker=worker, last_heartbeat=seen)
    assert workers.lock_silent(cursor, worker=worker, last_heartbeat=None)
    assert not workers.lock_silent(cursor, worker=worker + 1, last_heartbeat=None)


def test_a_worker_cannot_report_while_its_row_is_locked_and_a_second_rescuer_passes_it_over(
    cursor: Any, other: Any
) -> None:
    worker = register(cursor)
    seen = heartbeat_of(cursor, worker)
    assert workers.lock_silent(other, worker=worker, last_heartbeat=seen)
    assert not workers.lock_silent(cursor, worker=worker, last_heartbeat=seen)
    cursor.execute("SET lock_timeout = '50ms'")
    with pytest.raises(psycopg2.errors.LockNotAvailable):
        workers.heartbeat(cursor, worker=worker, slots=4, active=0)
    other.connection.rollback()
    assert workers.heartbeat(cursor, worker=worker, slots=4, active=0)
