"""What workers delete by themselves."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import execute, raw_connection, wait_until
from queuedtask import Queue, TaskNotFound, TaskRef
from queuedtask.db import purge
from queuedtask.model.task import first_id
from queuedtask.worker import maintenance
from queuedtask.worker.link import Link
from queuedtask.worker.maintenance import AutoRemoval, Retention

sys.path.insert(0, str(Path(__file__).parent))
import worker_jobs as jobs
from inside import ended, fresh_event, working

__all__ = ["fresh_event"]


@pytest.fixture
def link(queue: Queue) -> Iterator[Link]:
    link = Link(queue.database, queue.config, on_return=lambda cursor: None)
    link.open()
    yield link
    link.close()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "REMOVAL_INTERVAL", 0.2)


def is_gone(ref: TaskRef) -> bool:
    try:
        ref.row()
    except TaskNotFound:
        return True
    return False


# Never one that looks as if it were ours and of the last 30 days, which is kept so long: one of 100,000 would.
RANDOM = "overlay(gen_random_uuid()::text placing 'f' from 1)::uuid"


def fill(url: str, count: int, *, days: float, state: str = "done", id_: str = RANDOM) -> None:
    execute(
        url,
        f"INSERT INTO queued_tasks (id, function, state, date_done) SELECT {id_}, 'a:b', %s, "
        "now() - %s * interval '1 day' FROM generate_series(1, %s) AS n",
        (state, days, count),
    )


def old_id(days: float) -> str:
    """Return SQL that makes ids of so many days ago."""
    return f"(left('{first_id(time.time() - days * 86400.0)}', 24) || lpad(to_hex(n), 12, '0'))::uuid"


def count(url: str) -> int:
    return int(execute(url, "SELECT count(*) FROM queued_tasks")[0][0])


def walk(duty: Retention, link: Link) -> int:
    """Take the steps of one walk; return how many."""
    steps = 0
    while True:
        duty.perform(link)
        steps += 1
        if not duty._stretches:
            return steps


# -------------------------------------------------------------------------------------------------------- auto_remove


@pytest.mark.usefixtures("soon")
def test_a_success_leaves_no_row_and_a_failure_does(queue: Queue) -> None:
    adder = queue.options(auto_remove=True, max_retries=0)
    with working(queue):
        kept = [queue.add_task(jobs.add, 1, 2), adder.add_task(jobs.fail)]
        gone = [adder.add_task(jobs.add, 1, 2), adder.add_task(jobs.add_async, 1, 2)]
        wait_until(lambda: all(map(is_gone, gone)), 10)
        ended(kept[0])
        ended(kept[1], "failed")
    with pytest.raises(TaskNotFound):
        _ = gone[0].result


@pytest.mark.usefixtures("soon")
def test_a_function_may_declare_it_and_an_option_may_take_it_back(queue: Queue) -> None:
    queue.task(auto_remove=True)(jobs.add)
    try:
        with working(queue):
            kept = queue.options(auto_remove=False).add_task(jobs.add, 1, 2)
            gone = queue.add_task(jobs.add, 1, 2)
            wait_until(lambda: is_gone(gone), 10)
            ended(kept)
    finally:
        del jobs.add.__queuedtask__  # type: ignore[attr-defined]


@pytest.mark.usefixtures("soon")
def test_a_parent_goes_after_its_child(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "ANEW_INTERVAL", 0.5)
    with working(queue):
        parent = queue.options(auto_remove=True).add_task(jobs.add, 1, 2)
        child = queue.add_task(jobs.blocked, parent=parent)
        wait_until(lambda: child.state == "doing", 10)
        other = queue.options(auto_remove=True).add_task(jobs.add, 1, 2)
        wait_until(lambda: is_gone(other), 10)
        assert parent.result == 3
        jobs.released.set()
        ended(child)
        wait_until(lambda: is_gone(parent), 10)


def test_what_is_kept_is_passed_over_and_looked_at_again_later(
    queue: Queue, database_url: str, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "BATCH", 10)
    fill(database_url, 25, days=1)
    execute(database_url, "UPDATE queued_tasks SET auto_remove = true")
    execute(
        database_url,
        "INSERT INTO queued_task_logs (queued_task_id, type) SELECT id, 'error' FROM queued_tasks LIMIT 15",
    )
    looked: list[Any] = []
    real = purge.look_for_unwanted

    def look(cursor: Any, **given: Any) -> Any:
        looked.append(given["after"])
        return real(cursor, **given)

    monkeypatch.setattr(purge, "look_for_unwanted", look)
    duty = AutoRemoval()
    for _ in range(3):
        assert duty.due_at < time.monotonic() + 5
        duty.perform(link)
    assert count(database_url) == 15
    # Nothing more to do for a minute; then those that were kept are looked at once more.
    assert time.monotonic() + 50 < duty.due_at < time.monotonic() + 61
    execute(database_url, "DELETE FROM queued_task_logs")
    duty.heed()
    assert duty.due_at < time.monotonic() + 4
    duty.perform(link)
    assert count(database_url) == 15
    assert looked[-1] is not None
    duty._anew_at = 0.0
    for _ in range(3):
        duty.perform(link)
    assert count(database_url) == 0
    assert duty.due_at == maintenance.NEVER


def test_an_idle_worker_does_not_look(queue: Queue, link: Link) -> None:
    duty = AutoRemoval()
    duty.perform(link)
    assert duty.due_at == maintenance.NEVER


# ---------------------------------------------------------------------------------------------------------- retention


def test_a_worker_deletes_what_was_kept_for_long_enough(queue: Queue) -> None:
    with working(queue, retention_days=1.0 / 86400):
        ref = queue.add_task(jobs.add, 1, 2)
        wait_until(lambda: is_gone(ref), 20)


@pytest.mark.parametrize("id_", [RANDOM, "ours"], ids=["random", "ours"])
def test_a_walk_deletes_all_that_is_due_in_small_steps(queue: Queue, database_url: str, link: Link, id_: str) -> None:
    fill(database_url, 1200, days=31, id_=old_id(31.5) if id_ == "ours" else id_)
    fill(database_url, 300, days=29, id_=old_id(29.5) if id_ == "ours" else id_)
    duty = Retention(queue.config)
    steps = walk(duty, link)
    assert count(database_url) == 300
    assert 8 <= steps <= 16
    assert duty.due_at > time.monotonic() + 0.7 * 3600
    assert walk(duty, link) <= 4


def test_a_walk_does_not_look_at_tasks_that_are_too_young_to_be_due(
    queue: Queue, database_url: str, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    for days in (35, 20, 1):
        fill(database_url, 100, days=days - 0.5, id_=old_id(days))
    seen: list[str | None] = []
    real = purge.look

    def look(*given: Any, **named: Any) -> Any:
        found = real(*given, **named)
        seen.append(found[1])
        return found

    monkeypatch.setattr(purge, "look", look)
    walk(Retention(queue.config), link)
    assert count(database_url) == 200
    assert [each for each in seen if each is not None] == [min(filter(None, seen))]
    assert min(filter(None, seen)) < first_id(time.time() - 30 * 86400)


def test_each_state_has_its_own_time(queue: Queue, database_url: str, link: Link) -> None:
    queue.config.retention_days = {"done": 7, "failed": 90}
    for state, days in (("done", 8), ("failed", 89), ("failed", 91), ("cancelled", 31), ("stopped", 29)):
        fill(database_url, 1, days=days, state=state)
    walk(Retention(queue.config), link)
    found = execute(database_url, "SELECT state FROM queued_tasks ORDER BY state")
    assert [row[0] for row in found] == ["failed", "stopped"]


def test_rows_of_workers_go_with_the_last_task_that_they_may_have_had(
    queue: Queue, database_url: str, link: Link
) -> None:
    for days in (29, 31):
        execute(
            database_url,
            "INSERT INTO queued_task_workers (is_running, last_heartbeat) "
            "VALUES (false, now() - %s * interval '1 day')",
            (days,),
        )
    walk(Retention(queue.config), link)
    assert execute(database_url, "SELECT count(*) FROM queued_task_workers") == [(1,)]


def test_many_workers_begin_at_different_times(queue: Queue) -> None:
    dues = sorted(Retention(queue.config).due_at - time.monotonic() for _ in range(200))
    assert 0 <= dues[0] < 300
    assert 3300 < dues[-1] <= 3600
    queue.config.retention_days = 0.001
    assert Retention(queue.config).due_at < time.monotonic() + 4


def test_two_walks_at_once_share_the_work(queue: Queue, database_url: str, link: Link) -> None:
    fill(database_url, 2000, days=31)
    with contextlib.closing(Queue(database_url)) as other:
        second = Link(other.database, other.config, on_return=lambda cursor: None)
        second.open()
        duties: list[tuple[Retention, Link]] = [(Retention(queue.config), link), (Retention(other.config), second)]
        for duty, its_link in duties * 4:
            duty.perform(its_link)
        for duty, its_link in duties:
            walk(duty, its_link)
        second.close()
    assert count(database_url) == 0
    assert sum(duty._removed for duty, _ in duties) >= 1000


@contextlib.contextmanager
def purging(queue: Queue) -> Iterator[None]:
    """Purge all that has ended again and again beside the block."""
    import threading

    stop = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            while not stop.is_set():
                queue.purge(older_than=0)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
        assert not raised, raised


def test_purging_beside_claims_children_and_requeues_strands_nothing(
    queue: Queue, database_url: str, tmp_path: Any
) -> None:
    """Families whose members are purged as soon as they have ended: each runs, whatever has gone before it."""
    path = tmp_path / "ran"
    with contextlib.closing(Queue(database_url)) as other, purging(other), working(queue):
        with queue.batch() as batch:
            for n in range(300):
                first = batch.add_task(jobs.note, str(path), f"first {n}")
                second = batch.add_task(jobs.note, str(path), f"second {n}", parent=first)
                batch.add_task(jobs.note, str(path), f"third {n}", parent=[first, second])
        wait_until(lambda: count(database_url) == 0, 60)
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"{which} {n}" for which in ("first", "second", "third") for n in range(300))


def test_an_open_transaction_of_a_user_holds_nothing_up(queue: Queue, database_url: str) -> None:
    fill(database_url, 50, days=1)
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as user, user.cursor() as cursor:
        cursor.execute("SELECT id FROM queued_tasks LIMIT 5 FOR KEY SHARE")
        with working(queue, retention_days=0.5 / 86400):
            refs = [queue.add_task(jobs.add, 1, 2) for _ in range(20)]
            wait_until(lambda: count(database_url) == 5, 20)
            assert all(map(is_gone, refs))
