"""Which ticks are due under each policy, and what makes two declarations the same."""

from datetime import UTC, datetime, timedelta

import pytest

from queuedtask.errors import InvalidTask
from queuedtask.model.cron import Cron
from queuedtask.model.schedule import Declaration, Declarations, Schedule, due, task_of
from queuedtask.model.task import TaskSpec

NINE = datetime(2026, 5, 4, 9, tzinfo=UTC)
MINUTELY = Cron("* * * * *")


def minutes(*numbers: float) -> list[datetime]:
    return [NINE + timedelta(minutes=number) for number in numbers]


@pytest.mark.parametrize("misfire", ["skip", "last", "all"])
def test_a_tick_that_is_in_time_fires_under_every_policy(misfire: str) -> None:
    assert due(MINUTELY, misfire, NINE, NINE, limit=9) == (minutes(0), NINE + timedelta(minutes=1))
    late = NINE + timedelta(seconds=9)
    assert due(MINUTELY, misfire, NINE, late, limit=9) == (minutes(0), NINE + timedelta(minutes=1))


@pytest.mark.parametrize("misfire", ["skip", "last", "all"])
def test_nothing_is_due_before_its_time(misfire: str) -> None:
    assert due(MINUTELY, misfire, NINE, NINE - timedelta(microseconds=1), limit=9) == ([], NINE)


@pytest.mark.parametrize(
    ("misfire", "expected"), [("skip", []), ("last", minutes(5)), ("all", minutes(0, 1, 2, 3, 4, 5))]
)
def test_what_becomes_of_missed_ticks(misfire: str, expected: list[datetime]) -> None:
    now = NINE + timedelta(minutes=5, seconds=30)
    assert due(MINUTELY, misfire, NINE, now, limit=9) == (expected, NINE + timedelta(minutes=6))


def test_skip_fires_the_latest_one_if_that_is_in_time() -> None:
    now = NINE + timedelta(minutes=5, seconds=3)
    assert due(MINUTELY, "skip", NINE, now, limit=9) == (minutes(5), NINE + timedelta(minutes=6))


def test_all_comes_in_batches_that_leave_nothing_out() -> None:
    line, now = Cron("* * * * * *"), NINE + timedelta(days=14)
    found, date_next = due(line, "all", NINE, now, limit=500)
    assert found == [NINE + timedelta(seconds=n) for n in range(500)]
    assert date_next == NINE + timedelta(seconds=500)


@pytest.mark.parametrize("misfire", ["skip", "last"])
def test_two_weeks_of_a_schedule_for_each_second_are_passed_over_at_once(misfire: str) -> None:
    now = NINE + timedelta(days=14, microseconds=1)
    assert due(Cron("* * * * * *"), misfire, NINE, now, limit=500) == (
        [NINE + timedelta(days=14)],
        NINE + timedelta(days=14, seconds=1),
    )


def test_after_an_edit_by_hand_the_next_tick_is_one_of_the_new_line() -> None:
    assert due(Cron("30 * * * *"), "all", NINE, NINE + timedelta(minutes=1), limit=9) == ([], minutes(30)[0])


def declaration(function: object, name: str = "report") -> Declaration:
    def spec() -> TaskSpec:
        return TaskSpec("1", name, "shop:report", priority=5)

    return Declaration(name, function, MINUTELY, "last", "skip", spec)  # type: ignore[arg-type]


def test_a_name_is_given_once() -> None:
    declarations = Declarations()

    def report() -> None: ...
    def other() -> None: ...

    declarations.declare(declaration(report))
    declarations.declare(declaration(report, "again"))
    for second in (report, other):
        with pytest.raises(InvalidTask, match="a schedule 'report' already; give this one a name="):
            declarations.declare(declaration(second))


def test_a_module_that_is_loaded_again_repeats_its_schedules() -> None:
    declarations = Declarations()
    for _ in range(2):

        def report() -> None: ...

        declarations.declare(declaration(report))
    assert declarations["report"].function is report


def test_a_definition_changes_with_everything_that_the_code_says() -> None:
    schedule = declaration(print).schedule()
    assert schedule.options == '{"name": "report", "priority": 5}'
    assert schedule.definition == declaration(print).schedule().definition
    changed = {schedule._replace(**{field: "x"}).definition for field in Schedule._fields}
    assert len(changed | {schedule.definition}) == len(Schedule._fields) + 1


def test_a_task_has_the_options_of_its_row_and_no_others() -> None:
    given = {"name": "n", "channel": "mail", "id": "7", "run_at": 3, "of_a_later_release": True}
    spec = task_of("report", "shop:report", "[]", "{}", given, NINE)
    assert (spec.name, spec.channel, spec.run_at, spec.delay) == ("n", "mail", NINE, None)
    assert spec.id != "7"
    assert task_of("report", "shop:report", "[]", "{}", {}, None).name == "report"
