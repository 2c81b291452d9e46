"""Schedules in a worker: what it writes when it starts, what it fires, and what it leaves to others."""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from helpers import execute, wait_until
from queuedtask import InvalidTask, Queue, ScheduleNotFound
from queuedtask.db.schedules import ScheduleRow
from queuedtask.worker import ticking

sys.path.insert(0, str(Path(__file__).parent))
import worker_jobs as jobs
from inside import ended, fresh_event, working  # noqa: F401 (a fixture)

EVERY_SECOND = "* * * * * *"


def note() -> None: ...


def adopt(parent: int) -> None: ...


def limited(limit: int = 5, *, is_dry: bool = False) -> None: ...


@pytest.fixture
def other(database_url: str) -> Iterator[Queue]:
    """Give a Queue of another process on the same database, which declares nothing yet."""
    with contextlib.closing(Queue(database_url)) as queue:
        yield queue


def row(queue: Queue, name: str) -> ScheduleRow:
    (found,) = (row for row in queue.schedules() if row.name == name)
    return found


def runs(queue: Queue, name: str) -> list[Any]:
    """Return state and time of a schedule's tasks, the first one first."""
    assert queue.config.database_url
    return execute(
        queue.config.database_url,
        "SELECT state, date_scheduled FROM queued_tasks WHERE name = %s ORDER BY date_scheduled",
        (name,),
    )


def set_back(queue: Queue, name: str, seconds: float) -> None:
    assert queue.config.database_url
    execute(
        queue.config.database_url,
        "UPDATE queued_task_schedules SET date_next = date_trunc('second', now()) - %s * interval '1 second' "
        "WHERE name = %s RETURNING 1",
        (seconds, name),
    )


# ---------------------------------------------------------------------------------------------------------- declaring


def test_a_function_stays_what_it_is_and_may_have_several_schedules(queue: Queue) -> None:
    assert queue.cron("@daily")(note) is note
    assert queue.cron("@hourly", name="often")(note) is note
    assert sorted(queue.declarations) == ["often", f"{__name__}.note"]
    with pytest.raises(InvalidTask, match="name= of its own"):
        queue.cron("@weekly")(note)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"line": "soon"}, "cron='soon': Wrong number of fields"),
        ({"timezone": "Mars"}, "timezone='Mars'"),
        ({"misfire": "never"}, "misfire='never': must be one of skip, last, all"),
        ({"overlap": "last"}, "overlap='last': must be one of allow, skip"),
        ({"channel": ""}, "channel=''"),
        ({"name": "x" * 256}, "name="),
        ({"timeout": 0}, "timeout=0"),
        ({"kwargs": {"colour": "red"}}, "got an unexpected keyword argument 'colour'"),
        ({"args": (1, 2)}, "too many positional arguments"),
        ({"kwargs": {"limit": object()}}, "kwargs.limit"),
    ],
)
def test_what_cannot_be_is_refused_at_the_decorator(queue: Queue, given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidTask, match=complaint):
        queue.cron(given.pop("line", "@daily"), **given)(limited)
    assert not queue.declarations


def test_what_no_worker_can_reach_is_refused_at_the_decorator(queue: Queue) -> None:
    def local() -> None: ...

    for function in (local, lambda: None, Queue, "shop:buy"):
        with pytest.raises(InvalidTask):
            queue.cron("@daily")(function)  # type: ignore[type-var]


def test_a_worker_writes_what_its_application_declares(queue: Queue) -> None:
    queue.task(max_retries=7, channel="slow")(limited)
    queue.cron("0 8 * * *", timezone="Europe/Paris", misfire="all", overlap="allow", name="n", channel="mail")(limited)
    with working(queue):
        found = wait_until(queue.schedules)[0]
    assert (found.name, found.function) == ("n", f"{limited.__module__}:limited")
    assert (found.cron, found.timezone, found.misfire, found.overlap) == ("0 8 * * *", "Europe/Paris", "all", "allow")
    assert json.loads(found.options) == {"name": "n", "channel": "mail", "max_retries": 7}
    assert found.date_next is not None
    assert timedelta(0) < found.date_next - found.now <= timedelta(hours=25)


def test_a_parameter_named_parent_is_the_function_s_own(queue: Queue) -> None:
    queue.cron("@daily", kwargs={"parent": 7})(adopt)
    with working(queue):
        found = wait_until(queue.schedules)[0]
        assert found.kwargs == '{"parent": 7}'
        assert ended(queue.run_schedule(found.name)).row().parents == []


def test_what_a_person_has_changed_outlives_a_restart_and_a_new_definition_does_not(
    queue: Queue, database_url: str
) -> None:
    queue.cron("0 8 * * *", name="n")(note)
    with working(queue):
        wait_until(queue.schedules)
    queue.edit_schedule("n", cron="30 8 * * *", timezone="Asia/Tokyo")
    queue.pause_schedule("n")
    with working(queue):
        wait_until(queue.workers)
    found = row(queue, "n")
    assert (found.cron, found.timezone, found.is_paused) == ("30 8 * * *", "Asia/Tokyo", True)
    with contextlib.closing(Queue(database_url)) as deployed:
        deployed.cron("0 9 * * *", name="n")(note)
        with working(deployed):
            wait_until(lambda: row(queue, "n").cron == "0 9 * * *")
    assert row(queue, "n").is_paused


def test_a_schedule_that_a_process_does_not_know_goes_on_and_is_named(
    queue: Queue, other: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.cron(EVERY_SECOND, name="gone")(note)
    with working(queue):
        wait_until(queue.schedules)
    set_back(queue, "gone", 5)
    assert row(queue, "gone").date_last_tick is None
    other.cron("@daily", name="here")(note)
    caplog.set_level(logging.INFO)
    with working(other):
        wait_until(lambda: row(other, "gone").date_last_tick)
    assert "does not declare them: gone" in caplog.text
    other.remove_schedule("gone")
    assert [each.name for each in other.schedules()] == ["here"]


def test_a_function_that_cannot_be_reached_is_named_and_does_not_stop_the_worker(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    def replaced() -> None: ...

    replaced.__qualname__ = "nowhere"
    queue.cron("@daily", name="lost")(replaced)
    queue.cron("@daily", name="here")(note)
    with working(queue):
        wait_until(queue.schedules)
        ended(queue.add_task(jobs.add, 1, 2))
    assert [each.name for each in queue.schedules()] == ["here"]
    assert "schedule lost cannot be written" in caplog.text


# ------------------------------------------------------------------------------------------------------------- firing


def test_every_tick_becomes_a_task_that_begins_soon_after_it(queue: Queue) -> None:
    queue.cron(EVERY_SECOND, name="n", overlap="allow", misfire="all")(note)
    with working(queue):
        wait_until(lambda: len([1 for state, _ in runs(queue, "n") if state == "done"]) >= 3)
    assert queue.config.database_url
    found = execute(
        queue.config.database_url,
        "SELECT date_scheduled, extract(epoch FROM date_enqueued - date_scheduled)::float8, "
        "extract(epoch FROM date_started - date_scheduled)::float8 FROM queued_tasks WHERE state = 'done' ORDER BY 1",
    )
    times = [when for when, *_ in found]
    assert times == [times[0] + timedelta(seconds=n) for n in range(len(times))]
    # Generous, for a machine that is busy; docs/schedules.rst tells what was measured.
    assert min(claimable for _, claimable, _ in found) < 0.1, found
    assert all(claimable >= 0 for _, claimable, _ in found)


@pytest.mark.parametrize(("misfire", "expected"), [("skip", 0), ("last", 1), ("all", 5)])
def test_what_becomes_of_ticks_that_no_worker_was_there_for(queue: Queue, misfire: str, expected: int) -> None:
    queue.cron("@hourly", name="n", misfire=misfire, overlap="allow")(note)
    with working(queue):
        wait_until(queue.schedules)
    assert queue.config.database_url
    # So that the last tick is long over whenever this runs.
    execute(
        queue.config.database_url,
        "UPDATE queued_task_schedules SET cron = to_char(now() AT TIME ZONE 'UTC' - interval '5 minutes', "
        "'FMMI * * * *'), date_next = now() - interval '4 hours 6 minutes' RETURNING 1",
    )
    with working(queue):
        wait_until(lambda: (row(queue, "n").date_next or row(queue, "n").now) > row(queue, "n").now)
        wait_until(lambda: [state for state, _ in runs(queue, "n")] == ["done"] * expected)
    assert len(runs(queue, "n")) == expected


def test_two_weeks_of_a_schedule_for_each_second_come_in_batches_and_leave_the_worker_alive(queue: Queue) -> None:
    queue.cron("@yearly", name="n", misfire="all", overlap="allow", channel="nobody")(note)
    with working(queue):
        wait_until(queue.schedules)
    assert queue.config.database_url
    execute(
        queue.config.database_url,
        "UPDATE queued_task_schedules SET cron = '* * * * * *', date_next = now() - interval '14 days' RETURNING 1",
    )

    def count() -> int:
        (found,) = execute(queue.config.database_url or "", "SELECT count(*) FROM queued_task_ticks")
        return int(found[0])

    with working(queue):
        wait_until(lambda: count() >= 2 * ticking.BATCH, 20)
        # What people add meanwhile is done meanwhile.
        ended(queue.options(priority=9).add_task(jobs.add, 1, 2))
        queue.pause_schedule("n")
        # The pause waited for the lock: nothing comes after it.
        kept = count()
        ended(queue.add_task(jobs.add, 1, 2))
    assert count() == kept < 14 * 86400
    assert kept % ticking.BATCH == 0


@pytest.mark.parametrize("overlap", ["skip", "allow"])
def test_a_tick_while_the_last_task_runs(queue: Queue, overlap: str) -> None:
    queue.cron(EVERY_SECOND, name="n", overlap=overlap)(jobs.blocked)
    with working(queue):
        first = wait_until(lambda: runs(queue, "n"))[0][1]
        wait_until(lambda: (row(queue, "n").date_next or first) > first + timedelta(seconds=3))
        assert (len(runs(queue, "n")) == 1) == (overlap == "skip")
        jobs.released.set()
        wait_until(lambda: len(runs(queue, "n")) >= 3)


def test_with_all_and_skip_ticks_wait_for_one_another_and_none_is_missed(queue: Queue) -> None:
    queue.cron(EVERY_SECOND, name="n", misfire="all")(jobs.blocked)
    with working(queue):
        first = wait_until(lambda: runs(queue, "n"))[0][1]
        wait_until(lambda: row(queue, "n").now > first + timedelta(seconds=3))
        assert len(runs(queue, "n")) == 1
        jobs.released.set()
        wait_until(lambda: len(runs(queue, "n")) >= 4)
    times = [when for _, when in runs(queue, "n")]
    assert times == [times[0] + timedelta(seconds=n) for n in range(len(times))]
    assert queue.config.database_url
    (overlaps,) = execute(
        queue.config.database_url,
        "SELECT count(*) FROM queued_tasks a JOIN queued_tasks b ON b.date_scheduled > a.date_scheduled "
        "AND b.date_created < a.date_done",
    )
    assert overlaps == (0,)


def test_ticking_does_not_have_to_find_the_function(queue: Queue, database_url: str) -> None:
    execute(
        database_url,
        "INSERT INTO queued_task_schedules (name, function, args, kwargs, cron, options) VALUES "
        """('n', 'nowhere:at_all', '[7]', '{"a": 1}', '* * * * * *', '{"priority": 3, "max_retries": 0}') """
        "RETURNING 1",
    )
    with working(queue):
        wait_until(lambda: runs(queue, "n"))
        wait_until(lambda: runs(queue, "n")[0][0] == "failed")
    found = execute(database_url, "SELECT function, args, kwargs, priority, error_type FROM queued_tasks LIMIT 1")
    assert found == [("nowhere:at_all", [7], {"a": 1}, 3, "UnknownFunction")]


def test_a_row_that_cannot_be_fired_is_named_and_keeps_nobody_waiting(
    queue: Queue, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    insert = (
        "INSERT INTO queued_task_schedules (name, function, cron, timezone, options, date_next) "
        "VALUES (%s, 'worker_jobs:leave_', %s, %s, %s, now() - interval '1 minute') RETURNING 1"
    )
    for name, cron, zone, options in (
        ("line", "soon", "UTC", "{}"),
        ("zone", "@daily", "Mars", "{}"),
        ("option", "* * * * *", "UTC", '{"priority": "high"}'),
        ("list", "* * * * *", "UTC", "[]"),
    ):
        execute(database_url, insert, (name, cron, zone, options))
    queue.cron(EVERY_SECOND, name="good")(note)
    with working(queue):
        wait_until(lambda: len(runs(queue, "good")) >= 2)
    for name in ("line", "zone", "option", "list"):
        assert caplog.text.count(f"schedule {name} cannot be fired here") == 1
        assert runs(queue, name) == []


# ----------------------------------------------------------------------------------------------------------- by people


def test_a_schedule_that_others_add_or_change_is_noticed_when_they_say_so(queue: Queue, other: Queue) -> None:
    queue.cron("@yearly", name="n")(note)
    with working(queue):  # it polls once an hour
        wait_until(queue.schedules)
        other.edit_schedule("n", cron=EVERY_SECOND)
        wait_until(lambda: len(runs(queue, "n")) >= 2)
        other.pause_schedule("n")
        paused = len(runs(queue, "n"))
        assert row(queue, "n").is_paused
        other.resume_schedule("n")
        wait_until(lambda: len(runs(queue, "n")) > paused)


def test_a_pause_lets_ticks_pass_for_good(queue: Queue, database_url: str) -> None:
    queue.cron("@daily", name="n", misfire="all")(note)
    with working(queue):
        wait_until(queue.schedules)
    queue.pause_schedule("n")
    set_back(queue, "n", 5 * 86400)
    with working(queue):
        queue.resume_schedule("n")
        ended(queue.add_task(jobs.add, 1, 2))
    assert runs(queue, "n") == []


def test_run_schedule_adds_a_task_beside_the_ticks(queue: Queue, database_url: str) -> None:
    queue.cron("@yearly", name="n", args=(3,), kwargs={"is_dry": True}, channel="mail", timeout=9)(limited)
    with working(queue):
        before = wait_until(queue.schedules)[0]
    queue.pause_schedule("n")
    ref = queue.run_schedule("n", is_dry=False)
    task = ref.row()
    assert (task.name, task.channel, task.timeout, task.args, task.kwargs) == (
        "n",
        "mail",
        9,
        "[3]",
        '{"is_dry": false}',
    )
    assert (task.state, task.date_scheduled) == ("enqueued", None)
    after = row(queue, "n")
    assert (after.date_next, after.last_task, after.date_last_tick) == (before.date_next, None, None)


def test_a_schedule_that_does_not_exist_is_refused_by_name(queue: Queue) -> None:
    acts = (queue.run_schedule, queue.pause_schedule, queue.resume_schedule, queue.edit_schedule, queue.remove_schedule)
    for act in acts:
        with pytest.raises(ScheduleNotFound, match="no schedule 'absent'"):
            act("absent")
