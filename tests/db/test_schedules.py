"""The rows of schedules and their ticks: written once, locked by one, changed by people, cleaned up."""

import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest

from helpers import execute, raw_connection, wait_until
from queuedtask.db import schedules
from queuedtask.db.connections import is_transient
from queuedtask.errors import InvalidTask, ScheduleNotFound
from queuedtask.model.schedule import Schedule, task_of
from queuedtask.model.task import TaskSpec

NINE = datetime(2026, 5, 4, 9, tzinfo=UTC)
REPORT = Schedule("report", "shop:report", "[]", "{}", "0 9 * * *", "UTC", "last", "skip", '{"priority": 5}')


@pytest.fixture
def connection(database_url: str) -> Iterator[Any]:
    with contextlib.closing(raw_connection(database_url)) as connection:
        yield connection


@pytest.fixture
def cursor(connection: Any) -> Iterator[Any]:
    with connection.cursor() as cursor:
        yield cursor


def row(cursor: Any, name: str = "report") -> schedules.ScheduleRow:
    (found,) = (row for row in schedules.list_schedules(cursor) if row.name == name)
    return found


def specs(*moments: datetime) -> list[TaskSpec]:
    return [task_of("report", "shop:report", "[]", "{}", {}, moment) for moment in moments]


# -------------------------------------------------------------------------------------------------------- declaring


def test_what_the_code_declares_is_written_when_it_is_new_or_changed(cursor: Any) -> None:
    assert schedules.declare(cursor, REPORT, date_next=NINE)
    assert not schedules.declare(cursor, REPORT, date_next=NINE + timedelta(days=1))
    found = row(cursor)
    assert Schedule(*found[:9]) == REPORT
    assert (found.date_next, found.is_paused, found.date_last_tick, found.last_task) == (NINE, False, None, None)
    assert schedules.declare(cursor, REPORT._replace(options="{}"), date_next=NINE)
    assert row(cursor).options == "{}"


def test_what_a_person_changed_survives_a_deploy_that_changes_nothing(cursor: Any) -> None:
    schedules.declare(cursor, REPORT, date_next=NINE)
    schedules.change(cursor, "report", cron="30 9 * * *", timezone="Europe/Paris", notify_channel=None)
    schedules.change(cursor, "report", is_paused=True, notify_channel=None)
    before = row(cursor)
    assert not schedules.declare(cursor, REPORT, date_next=NINE)
    assert row(cursor)._replace(now=before.now) == before
    # A new definition is what counts from then on; only the pause stays.
    assert schedules.declare(cursor, REPORT._replace(misfire="all"), date_next=NINE)
    found = row(cursor)
    assert (found.cron, found.timezone, found.is_paused, found.date_next) == ("0 9 * * *", "UTC", True, NINE)


def test_what_was_missed_during_a_deploy_stays_due_unless_the_line_has_changed(cursor: Any) -> None:
    schedules.declare(cursor, REPORT, date_next=NINE)
    later = NINE + timedelta(days=1)
    schedules.declare(cursor, REPORT._replace(options="{}"), date_next=later)
    assert row(cursor).date_next == NINE
    schedules.declare(cursor, REPORT._replace(cron="0 9 * * 1"), date_next=later)
    assert row(cursor).date_next == later


def test_an_insert_by_hand_needs_name_function_and_line_only(database_url: str, cursor: Any) -> None:
    execute(
        database_url,
        "INSERT INTO queued_task_schedules (name, function, cron) VALUES ('n', 'shop:buy', '@daily') RETURNING 1",
    )
    found = row(cursor, "n")
    assert (found.misfire, found.overlap, found.timezone, found.date_next) == ("last", "skip", "UTC", None)
    assert schedules.seconds_to_next_tick(cursor) <= 0.0  # type: ignore[operator]


# ----------------------------------------------------------------------------------------------------------- changing


def test_a_change_moves_the_next_tick_only_when_it_has_to(cursor: Any) -> None:
    schedules.declare(cursor, REPORT, date_next=NINE)
    schedules.change(cursor, "report", is_paused=True, notify_channel=None)
    assert row(cursor).date_next == NINE
    schedules.change(cursor, "report", is_paused=False, notify_channel=None)
    resumed = row(cursor)
    assert resumed.date_next is not None
    assert resumed.now < resumed.date_next
    schedules.change(cursor, "report", cron="@hourly", notify_channel=None)
    edited = row(cursor)
    assert edited.date_next is not None
    assert edited.date_next - edited.now <= timedelta(hours=1)


def test_a_change_that_cannot_be_changes_nothing(cursor: Any) -> None:
    schedules.declare(cursor, REPORT, date_next=NINE)
    for change in ({"cron": "soon"}, {"timezone": "Mars"}):
        with pytest.raises(InvalidTask):
            schedules.change(cursor, "report", **change, notify_channel=None)
    assert row(cursor).cron == "0 9 * * *"
    for act in (schedules.remove, lambda cursor, name: schedules.change(cursor, name, notify_channel=None)):
        with pytest.raises(ScheduleNotFound, match="no schedule 'absent'"):
            act(cursor, "absent")


# ------------------------------------------------------------------------------------------------------------- firing


def test_a_tick_s_task_is_enqueued_at_once_with_the_tick_as_its_time(cursor: Any) -> None:
    schedules.declare(cursor, REPORT, date_next=NINE - timedelta(days=300))
    tick = NINE - timedelta(days=300)
    (spec,) = specs(tick)
    assert schedules.fire(cursor, "report", [spec], date_next=NINE, notify_channel="c") == 1
    cursor.execute("SELECT id::text, state, date_scheduled, name, function FROM queued_tasks")
    assert cursor.fetchall() == [(spec.id, "enqueued", tick, "report", "shop:report")]
    cursor.execute("SELECT schedule, tick, task::text FROM queued_task_ticks")
    assert cursor.fetchall() == [("report", tick, spec.id)]
    found = row(cursor)
    assert (found.date_last_tick, found.last_task, found.date_next) == (tick, spec.id, NINE)


def test_a_tick_is_not_fired_again_when_its_task_s_row_is_gone_and_the_schedule_set_back(cursor: Any) -> None:
    schedules.declare(cursor, REPORT, date_next=NINE)
    tick = NINE - timedelta(days=300)
    schedules.fire(cursor, "report", specs(tick), date_next=NINE, notify_channel=None)
    cursor.execute("DELETE FROM queued_tasks")
    cursor.execute("UPDATE queued_task_schedules SET date_next = %s, date_last_tick = NULL", (tick,))
    again = specs(tick, tick + timedelta(days=1))
    assert schedules.fire(cursor, "report", again, date_next=NINE, notify_channel=None) == 1
    cursor.execute("SELECT date_scheduled FROM queued_tasks")
    assert cursor.fetchall() == [(tick + timedelta(days=1),)]


def test_a_removed_schedule_that_comes_back_does_not_repeat_its_ticks(cursor: Any) -> None:
    schedules.declare(cursor, REPORT, date_next=NINE)
    tick = NINE - timedelta(days=300)
    schedules.fire(cursor, "report", specs(tick), date_next=NINE, notify_channel=None)
    schedules.remove(cursor, "report")
    assert schedules.list_schedules(cursor) == []
    assert schedules.declare(cursor, REPORT, date_next=tick)
    assert schedules.fire(cursor, "report", specs(tick), date_next=NINE, notify_channel=None) == 0


def test_what_one_has_locked_the_others_pass_by(database_url: str, cursor: Any) -> None:
    for name in ("one", "two"):
        schedules.declare(cursor, REPORT._replace(name=name), date_next=NINE - timedelta(days=300))
    with (
        contextlib.closing(raw_connection(database_url, autocommit=False)) as first,
        contextlib.closing(raw_connection(database_url, autocommit=False)) as second,
    ):
        taken = {schedules.lock_due(each.cursor()).name for each in (first, second)}  # type: ignore[union-attr]
        assert taken == {"one", "two"}
        assert schedules.lock_due(cursor) is None
    assert schedules.lock_due(cursor, besides=["one", "two"]) is None


def test_paused_and_future_ones_are_not_due(cursor: Any) -> None:
    schedules.declare(cursor, REPORT, date_next=NINE - timedelta(days=300))
    schedules.change(cursor, "report", is_paused=True, notify_channel=None)
    assert (schedules.lock_due(cursor), schedules.seconds_to_next_tick(cursor)) == (None, None)
    in_an_hour = schedules.clock(cursor) + timedelta(hours=1)
    schedules.declare(cursor, REPORT._replace(name="later"), date_next=in_an_hour)
    assert schedules.lock_due(cursor) is None
    seconds = schedules.seconds_to_next_tick(cursor)
    assert seconds is not None
    assert 3590 < seconds <= 3600


def test_two_hundred_ticks_that_four_race_for_come_once_each(database_url: str, cursor: Any) -> None:
    # Without the lock on the schedule: the tick's own row alone has to hold.
    schedules.declare(cursor, REPORT, date_next=NINE)
    start, made = threading.Barrier(4), list[int]()

    def race() -> None:
        with contextlib.closing(raw_connection(database_url)) as own:
            for n in range(200):
                if n % 20 == 0:
                    start.wait(20)
                spec = specs(NINE + timedelta(seconds=n))
                made.append(schedules.fire(own.cursor(), "report", spec, date_next=NINE, notify_channel=None))

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 800
    assert sum(made) == 200
    cursor.execute("SELECT count(*), count(DISTINCT date_scheduled) FROM queued_tasks")
    assert cursor.fetchone() == (200, 200)


def test_the_server_frees_a_schedule_whose_holder_says_nothing(database_url: str, cursor: Any) -> None:
    schedules.declare(cursor, REPORT, date_next=NINE - timedelta(days=300))
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as stopped:
        assert schedules.lock_due(stopped.cursor(), idle_limit=0.2) is not None
        wait_until(lambda: schedules.lock_due(cursor) is not None, message="the lock is free")
        with pytest.raises(psycopg2.Error) as raised:
            stopped.cursor().execute("SELECT 1")
        assert is_transient(raised.value)


def test_a_task_counts_as_running_until_its_row_is_final_or_gone(cursor: Any) -> None:
    schedules.declare(cursor, REPORT, date_next=NINE)
    (spec,) = specs(NINE - timedelta(days=300))
    schedules.fire(cursor, "report", [spec], date_next=NINE, notify_channel=None)
    for state in ("enqueued", "waiting", "doing"):
        cursor.execute("UPDATE queued_tasks SET state = %s", (state,))
        assert schedules.seconds_running(cursor, spec.id) is not None
    cursor.execute("UPDATE queued_tasks SET state = 'failed', date_done = now()")
    assert schedules.seconds_running(cursor, spec.id) is None
    cursor.execute("DELETE FROM queued_tasks")
    assert schedules.seconds_running(cursor, spec.id) is None


# ----------------------------------------------------------------------------------------------------------- cleaning


def test_old_ticks_are_cleaned_in_batches_but_never_one_that_could_come_again(cursor: Any) -> None:
    now = schedules.clock(cursor)
    long_ago = [now - timedelta(days=10, seconds=n) for n in range(25)]
    schedules.declare(cursor, REPORT, date_next=now)
    schedules.fire(cursor, "report", specs(*long_ago, now - timedelta(hours=1)), date_next=now, notify_channel=None)
    cursor.execute("INSERT INTO queued_task_ticks SELECT 'removed', tick, task FROM queued_task_ticks")
    # Somebody has set the schedule back: from here on its ticks are looked at once more.
    cursor.execute("UPDATE queued_task_schedules SET date_next = %s", (long_ago[4],))
    cleaned = [schedules.clean_ticks(cursor, kept=86400, limit=10) for _ in range(6)]
    assert cleaned == [10, 10, 10, 10, 5, 0]
    cursor.execute("SELECT schedule, tick FROM queued_task_ticks ORDER BY 1, 2")
    kept = [("removed", now - timedelta(hours=1)), *(("report", t) for t in sorted(long_ago[:5]))]
    assert sorted(cursor.fetchall()) == sorted([*kept, ("report", now - timedelta(hours=1))])
