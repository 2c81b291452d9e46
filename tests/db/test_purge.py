"""Deleting what has ended: what goes, what stays, and whom nobody waits for."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import psycopg2.errors
import pytest

from helpers import execute, raw_connection
from queuedtask import Queue, TaskRef
from queuedtask.db import purge, workers
from queuedtask.db.purge import Removed
from queuedtask.model.task import first_id, new_id

DAY = 86400.0
KEEP = dict.fromkeys(("done", "failed", "cancelled", "stopped"), DAY)


@pytest.fixture
def cursor(database_url: str) -> Iterator[Any]:
    with contextlib.closing(raw_connection(database_url)) as connection, connection.cursor() as cursor:
        yield cursor


@pytest.fixture
def transaction(database_url: str) -> Iterator[Callable[[], Any]]:
    """Give what opens transactions, on a connection that waits for nobody's lock."""
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '1ms'")
        connection.commit()

        @contextlib.contextmanager
        def open_() -> Iterator[Any]:
            try:
                with connection.cursor() as cursor:
                    yield cursor
                connection.commit()
            finally:
                connection.rollback()

        yield open_


def task(cursor: Any, state: str = "done", *, days: float = 2.0, **columns: Any) -> str:
    """Insert a task that ended so many days ago, or has not ended."""
    row = {"id": new_id(), "function": "shop:buy", "state": state, **columns}
    names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
    done = "clock_timestamp() - %s * interval '1 day'" if state in KEEP else "NULL"
    cursor.execute(
        f"INSERT INTO queued_tasks ({names}, date_done) VALUES ({marks}, {done}) RETURNING id::text",
        [*row.values(), *([days] if state in KEEP else [])],
    )
    return str(cursor.fetchone()[0])


def child(cursor: Any, parent: str, state: str, *, is_first: bool = True, days: float = 0.0) -> str:
    made = task(cursor, state, days=days, parent_task=parent if is_first else None)
    cursor.execute("INSERT INTO queued_task_dependencies (task, parent) VALUES (%s, %s)", (made, parent))
    return made


def log(cursor: Any, task_id: str, type_: str = "info", lines: int = 1) -> None:
    cursor.execute(
        "INSERT INTO queued_task_logs (queued_task_id, type) SELECT %s, %s FROM generate_series(1, %s)",
        (task_id, type_, lines),
    )


def left(cursor: Any) -> set[str]:
    cursor.execute("SELECT id::text FROM queued_tasks")
    return {row[0] for row in cursor.fetchall()}


# ---------------------------------------------------------------------------------------------------------- what goes


@pytest.mark.parametrize("state", KEEP)
def test_what_ended_long_enough_ago_goes(cursor: Any, transaction: Any, state: str) -> None:
    task(cursor, state, days=1.01)
    young = task(cursor, state, days=0.99)
    assert purge.count_due(cursor, KEEP) == dict.fromkeys(KEEP, 0) | {state: 1}
    assert purge.remove_all(transaction, KEEP) == 1
    assert left(cursor) == {young}
    assert purge.remove_all(transaction, KEEP) == 0


@pytest.mark.parametrize("state", ["waiting", "enqueued", "doing"])
def test_what_has_not_ended_stays(cursor: Any, transaction: Any, state: str) -> None:
    kept = task(cursor, state)
    assert purge.remove_all(transaction, dict.fromkeys(KEEP, 0.0)) == 0
    assert left(cursor) == {kept}


def test_each_state_has_its_time_and_one_without_any_is_kept(cursor: Any, transaction: Any) -> None:
    kept = {task(cursor, "failed", days=89), task(cursor, "cancelled", days=10**4)}
    task(cursor, "failed", days=91)
    task(cursor, "done", days=8)
    keep = {"done": 7 * DAY, "failed": 90 * DAY}
    assert purge.count_due(cursor, keep) == {"done": 1, "failed": 1}
    assert purge.remove_all(transaction, keep) == 2
    assert left(cursor) == kept


def test_logs_attempts_and_edges_go_with_it_and_its_children_stay(cursor: Any, transaction: Any) -> None:
    parent = task(cursor)
    ended = child(cursor, parent, "failed")
    log(cursor, parent, "error", 3)
    cursor.execute(
        "INSERT INTO queued_task_attempts (queued_task_id, attempt, outcome) VALUES (%s, 1, 'raised')", (parent,)
    )
    assert purge.remove_all(transaction, KEEP) == 1
    assert left(cursor) == {ended}
    for table in ("logs", "attempts", "dependencies"):
        cursor.execute(f"SELECT count(*) FROM queued_task_{table}")
        assert cursor.fetchone() == (0,)
    cursor.execute("SELECT parent_task FROM queued_tasks")
    assert cursor.fetchall() == [(None,)]


@pytest.mark.parametrize("state", ["waiting", "enqueued", "doing"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_task_with_an_unfinished_child_stays(cursor: Any, transaction: Any, state: str, is_first: bool) -> None:
    parent = task(cursor, "failed")
    child(cursor, parent, "done", days=2)
    unfinished = child(cursor, parent, state, is_first=is_first)
    assert purge.count_due(cursor, KEEP) == {"done": 1, "failed": 0, "cancelled": 0, "stopped": 0}
    assert purge.remove_all(transaction, KEEP) == 1
    assert left(cursor) == {parent, unfinished}


def test_a_child_that_was_inserted_by_hand_keeps_its_parent_too(cursor: Any, transaction: Any) -> None:
    parent = task(cursor)
    by_hand = task(cursor, "enqueued", parent_task=parent)
    assert purge.remove_all(transaction, KEEP) == 0
    assert left(cursor) == {parent, by_hand}


def test_a_task_with_very_many_children_goes_after_them(cursor: Any, transaction: Any) -> None:
    parent = task(cursor)
    count = purge.MOST_CHILDREN + 1
    children = [child(cursor, parent, "done", days=0.5) for _ in range(count)]
    assert purge.remove_all(transaction, KEEP) == 0
    cursor.execute("UPDATE queued_tasks SET date_done = now() - interval '3 days' WHERE id = %s", (children[0],))
    assert purge.remove_all(transaction, KEEP) == 2
    assert left(cursor) == set(children[1:])
    # Those that are due together go together: children are younger, and younger ids come first.
    other = task(cursor)
    for _ in range(count):
        child(cursor, other, "done", days=2)
    assert purge.remove_all(transaction, KEEP) == count + 1


def test_log_lines_are_deleted_in_batches(cursor: Any, transaction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "LOGS_BATCH", 10)
    noisy = task(cursor)
    log(cursor, noisy, lines=25)
    counts = []
    for _ in range(3):
        with transaction() as inner:
            assert purge.remove(inner, KEEP, [noisy]) == Removed(int(len(counts) == 2), is_all=len(counts) == 2)
        cursor.execute("SELECT count(*) FROM queued_task_logs")
        counts.append(cursor.fetchone()[0])
    assert counts == [15, 5, 0]
    noisy = task(cursor)
    log(cursor, noisy, lines=25)
    assert purge.remove_all(transaction, KEEP) == 1


def test_a_walk_comes_past_every_row_whatever_its_id(
    cursor: Any, transaction: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "LOOK", 7)
    monkeypatch.setattr(purge, "BATCH", 3)
    kept = {task(cursor, "enqueued") for _ in range(20)}
    ids = [purge.BOTTOM, str(UUID(int=2**128 - 2)), *(new_id() for _ in range(30))]
    for each in ids:
        task(cursor, id=each)
    cursor.execute(
        "INSERT INTO queued_tasks (function, state, date_done) "
        "SELECT 'shop:buy', 'done', now() - interval '2 days' FROM generate_series(1, 30)"
    )
    assert purge.remove_all(transaction, KEEP) == len(ids) + 30
    assert left(cursor) == kept


def test_a_look_is_bounded_and_says_where_it_ended(cursor: Any) -> None:
    ids = sorted((task(cursor, state) for state in ("done", "enqueued", "done", "enqueued")), reverse=True)
    assert purge.look(cursor, KEEP, before=purge.TOP, least=purge.BOTTOM, limit=3) == ([ids[1]], ids[2])
    assert purge.look(cursor, KEEP, before=ids[2], least=purge.BOTTOM, limit=3) == ([ids[3]], ids[3])
    assert purge.look(cursor, KEEP, before=ids[3], least=purge.BOTTOM, limit=3) == ([], None)
    assert purge.look(cursor, KEEP, before=purge.TOP, least=ids[0], limit=3) == ([], ids[0])


def test_the_first_id_of_a_time_lies_between_the_ids_made_before_and_after() -> None:
    before = new_id()
    time.sleep(0.002)
    between = first_id(time.time())
    assert before < between < new_id()
    assert first_id(-1.0) == purge.BOTTOM


def test_a_whole_line_goes_but_for_the_parents_of_what_has_not_ended(cursor: Any, transaction: Any) -> None:
    line = [task(cursor)]
    for _ in range(5):
        line.append(child(cursor, line[-1], "done", days=2))
    leaf = child(cursor, line[-1], "waiting")
    assert purge.remove_all(transaction, KEEP) == 5
    assert left(cursor) == {line[-1], leaf}


# -------------------------------------------------------------------------------------------------------- auto_remove


def unwanted(cursor: Any, transaction: Any) -> int:
    found = purge.look_for_unwanted(cursor, after=None, limit=100)
    with transaction() as inner:
        return purge.remove_unwanted(inner, [each.id for each in found]).tasks


def test_a_success_of_auto_remove_goes_at_once(cursor: Any, transaction: Any) -> None:
    task(cursor, auto_remove=True, days=0)
    kept = {task(cursor, days=0)}
    kept |= {task(cursor, state, auto_remove=True) for state in ("failed", "cancelled", "stopped", "enqueued")}
    assert unwanted(cursor, transaction) == 1
    assert left(cursor) == kept


@pytest.mark.parametrize(("type_", "goes"), [("debug", True), ("warning", True), ("error", False), ("critical", False)])
def test_errors_in_its_log_keep_it(cursor: Any, transaction: Any, type_: str, goes: bool) -> None:
    logged = task(cursor, auto_remove=True)
    log(cursor, logged, "info")
    log(cursor, logged, type_)
    assert unwanted(cursor, transaction) == goes
    assert purge.remove_all(transaction, KEEP) == (not goes)


def test_too_many_lines_to_be_looked_through_keep_it(
    cursor: Any, transaction: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = task(cursor, auto_remove=True)
    log(cursor, logged, lines=purge.MOST_LINES + 1)
    assert unwanted(cursor, transaction) == 0


def test_an_unfinished_child_keeps_it_until_it_has_ended(cursor: Any, transaction: Any) -> None:
    parent = task(cursor, auto_remove=True)
    made = child(cursor, parent, "enqueued")
    assert unwanted(cursor, transaction) == 0
    cursor.execute("UPDATE queued_tasks SET state = 'failed', date_done = now() WHERE id = %s", (made,))
    assert unwanted(cursor, transaction) == 1


def test_those_behind_one_are_found_in_the_order_of_their_ends(cursor: Any) -> None:
    ids = [task(cursor, auto_remove=True, days=days) for days in (1, 3, 2)]
    cursor.execute("UPDATE queued_tasks SET date_done = '2026-01-01' WHERE id = ANY(%s::uuid[])", (ids[:2],))
    found = purge.look_for_unwanted(cursor, after=None, limit=2)
    assert [each.id for each in found] == ids[:2]
    assert [each.id for each in purge.look_for_unwanted(cursor, after=found[0], limit=5)] == ids[1:]
    assert [each.id for each in purge.look_for_unwanted(cursor, after=found[1], limit=5)] == ids[2:]


def test_the_index_for_it_is_used_and_only_for_it(cursor: Any) -> None:
    cursor.execute(
        "INSERT INTO queued_tasks (function, state, date_done) "
        "SELECT 'shop:buy', 'done', now() FROM generate_series(1, 2000)"
    )
    cursor.execute("SELECT pg_relation_size('queued_tasks_auto_remove')")
    assert cursor.fetchone()[0] <= 8192
    cursor.execute("ANALYZE queued_tasks")
    given = {"date_done": None, "id": None, "limit": 250}
    cursor.execute("EXPLAIN " + purge.UNWANTED.sql, given)
    assert "queued_tasks_auto_remove" in "\n".join(row[0] for row in cursor.fetchall())


# -------------------------------------------------------------------------------------------------------------- others


def test_what_others_have_locked_is_passed_over(cursor: Any, transaction: Any, database_url: str) -> None:
    locked, free = task(cursor, auto_remove=True), task(cursor, auto_remove=True)
    for lock in ("UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"):
        with contextlib.closing(raw_connection(database_url, autocommit=False)) as other, other.cursor() as theirs:
            theirs.execute(f"SELECT FROM queued_tasks WHERE id = %s FOR {lock}", (locked,))
            unwanted(cursor, transaction)
            purge.remove_all(transaction, KEEP)
            assert left(cursor) == {locked}
            other.rollback()  # closing alone lets go of the lock some time later
    assert free not in left(cursor)
    assert purge.remove_all(transaction, KEEP) == 1


def test_a_child_that_is_being_added_in_an_open_transaction_keeps_its_parent(
    queue: Queue, cursor: Any, transaction: Any, database_url: str
) -> None:
    parent = task(cursor)
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as connection:
        ref = queue.options(connection=connection).add_task("shop:buy", parent=parent)
        assert purge.remove_all(transaction, KEEP) == 0
        connection.commit()
    assert purge.remove_all(transaction, KEEP) == 0
    assert left(cursor) == {parent, ref.id}
    execute(database_url, "UPDATE queued_tasks SET state = 'done', date_done = now() WHERE id = %s", (ref.id,))
    assert purge.remove_all(transaction, KEEP) == 1


def test_a_locked_child_that_has_ended_keeps_its_parent(cursor: Any, transaction: Any, database_url: str) -> None:
    parent = task(cursor)
    ended = child(cursor, parent, "done")
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as other, other.cursor() as theirs:
        theirs.execute("UPDATE queued_tasks SET meta = '{}' WHERE id = %s", (ended,))
        assert purge.remove_all(transaction, KEEP) == 0
        other.rollback()  # closing it does not wait for the server to let go of its locks
    assert left(cursor) == {parent, ended}
    assert purge.remove_all(transaction, KEEP) == 1


def test_children_are_looked_for_when_the_lock_is_held_not_before(
    cursor: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The moment at which it could go wrong: after the look, before the lock.
    parent = task(cursor)
    real = purge.LOCK_DUE

    def add_a_child_first(locking: Any, **given: Any) -> Any:
        child(cursor, parent, "enqueued")
        return real(locking, **given)

    monkeypatch.setattr(purge, "LOCK_DUE", add_a_child_first)
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as connection:
        with connection.cursor() as locking:
            locking.execute("SELECT 1")
            assert purge.remove(locking, KEEP, [parent]) == Removed(0, is_all=True)
        connection.commit()


def test_children_that_are_added_while_their_parents_are_purged_are_never_left_without(
    queue: Queue, database_url: str
) -> None:
    """300 parents, each of which somebody gives a child while others purge: either it is there, or it is refused."""
    with contextlib.closing(raw_connection(database_url)) as connection, connection.cursor() as cursor:
        parents = [task(cursor, "failed") for _ in range(300)]
    start = threading.Barrier(3)
    added: list[str] = []
    refused = 0
    raised: list[BaseException] = []

    def add() -> None:
        nonlocal refused
        with contextlib.closing(raw_connection(database_url)) as connection, connection.cursor() as cursor:
            start.wait()
            for parent in reversed(parents):
                made = new_id()
                try:
                    cursor.execute(
                        "WITH made AS (INSERT INTO queued_tasks (id, function, parent_task) VALUES (%s, 'a:b', %s)) "
                        "INSERT INTO queued_task_dependencies (task, parent) VALUES (%s, %s)",
                        (made, parent, made, parent),
                    )
                    added.append(parent)
                except psycopg2.errors.ForeignKeyViolation:
                    refused += 1

    def purge_() -> None:
        start.wait()
        while len(added) + refused < 300:
            queue.purge(older_than=0)

    def guarded(function: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                function()
            except BaseException as error:
                raised.append(error)

        return run

    threads = [threading.Thread(target=guarded(each)) for each in (add, purge_, purge_)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not raised, raised
    found = {row[0] for row in execute(database_url, "SELECT id::text FROM queued_tasks WHERE state = 'failed'")}
    assert found == set(added)
    assert len(added) + refused == 300
    orphans = "SELECT count(*) FROM queued_tasks WHERE state = 'enqueued' AND parent_task IS NULL"
    assert execute(database_url, orphans) == [(0,)]


def test_one_removes_at_a_time(cursor: Any, transaction: Any, database_url: str) -> None:
    ids = [task(cursor), task(cursor, auto_remove=True)]
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as other, other.cursor() as theirs:
        purge.TAKE_TURN(theirs)
        with transaction() as inner:
            assert purge.remove(inner, KEEP, ids) == Removed(0, is_all=False)
            assert purge.remove_unwanted(inner, ids) == Removed(0, is_all=False)
        other.rollback()
    assert purge.remove_all(transaction, KEEP) == 2


def test_two_purges_share_the_work_and_count_each_task_once(queue: Queue, database_url: str) -> None:
    execute(
        database_url,
        "INSERT INTO queued_tasks (function, state, date_done) "
        "SELECT 'a:b', 'done', now() - interval '40 days' FROM generate_series(1, 20000)",
    )
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(queue.purge())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(counts) == 20000
    assert execute(database_url, "SELECT count(*) FROM queued_tasks") == [(0,)]


# -------------------------------------------------------------------------------------------------------------- queue


def test_the_queue_s_purge(queue: Queue, cursor: Any) -> None:
    kept = task(cursor, "failed", days=29)
    task(cursor, "failed", days=31)
    assert queue.purge() == 1
    assert queue.purge(older_than=30 * DAY) == 0
    assert queue.purge(states="done", older_than=0) == 0
    assert left(cursor) == {kept}
    queue.config.retention_days = {"failed": 28}
    assert queue.purge(states=["done", "failed"]) == 1


def test_a_purged_task_is_not_found(queue: Queue, cursor: Any) -> None:
    from queuedtask import TaskNotFound

    ref = TaskRef(queue, task(cursor), created=False)
    queue.purge(older_than=3600)
    with pytest.raises(TaskNotFound):
        _ = ref.state


@pytest.mark.parametrize("states", ["enqueued", ["done", "lost"], ""])
def test_only_ended_states_can_be_purged(queue: Queue, states: Any) -> None:
    with pytest.raises(ValueError, match="only ended tasks are deleted"):
        queue.purge(states=states)


@pytest.mark.parametrize("older_than", [-1, "30d", float("nan")])
def test_an_age_is_a_number_of_seconds(queue: Queue, older_than: Any) -> None:
    with pytest.raises(ValueError, match="older_than"):
        queue.purge(older_than=older_than)


# ------------------------------------------------------------------------------------------------------------- workers


def worker(cursor: Any, *, days: float, is_running: bool = False) -> int:
    cursor.execute(
        "INSERT INTO queued_task_workers (is_running, last_heartbeat) "
        "VALUES (%s, now() - %s * interval '1 day') RETURNING id",
        (is_running, days),
    )
    return int(cursor.fetchone()[0])


def test_rows_of_workers_that_ended_long_ago_go(cursor: Any) -> None:
    kept = [worker(cursor, days=0.5), worker(cursor, days=9, is_running=True), worker(cursor, days=9)]
    task(cursor, "doing", claimed_by=kept[-1])
    gone = worker(cursor, days=2)
    task(cursor, "done", claimed_by=gone)
    assert workers.remove_ended(cursor, seconds=DAY, limit=10) == 1
    cursor.execute("SELECT id FROM queued_task_workers ORDER BY id")
    assert [row[0] for row in cursor.fetchall()] == kept
