"""The command schedules: the list in words, running one with options, and what people change."""

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from helpers import execute
from queuedtask import Queue
from queuedtask.cli.main import main
from queuedtask.db import schedules

APPLICATION = '''
from datetime import date
from decimal import Decimal
from queuedtask import Queue

queue = Queue()


@queue.cron("0 8 * * *", timezone="Europe/Paris", name="morning")
def report(limit: int = 5, *, dry_run: bool = False, day: "date | None" = None, rate: Decimal = Decimal(1),
           tags: list[str] | None = None, to="ann@example.com", threshold=0.5, app="x", **more):
    """Say good morning."""


@queue.cron("@hourly", args=(3,), kwargs={"colour": "red"}, channel="paint")
def paint(times: int, colour: str, password="s3cret"): ...
'''


@pytest.fixture(autouse=True)
def application(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make an application whose schedules a worker has written."""
    monkeypatch.setenv("QUEUE_DATABASE_URL", database_url)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    (tmp_path / "cron_app.py").write_text(APPLICATION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import cron_app

    with closing(cron_app.queue) as queue, queue.database.transaction() as cursor:
        now = schedules.clock(cursor)
        for declaration in queue.declarations.values():
            schedules.declare(cursor, declaration.schedule(), date_next=declaration.cron.next(now))
    yield
    sys.modules.pop("cron_app", None)


def call(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["schedules", *arguments]) == code
    said = capsys.readouterr()
    return said.err if code else said.out


def ran(queue: Queue, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return queue.get(call(capsys, "run", *arguments).strip()).row()


# ------------------------------------------------------------------------------------------------------------- listing


def test_the_list_tells_when_they_run_in_words(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    queue.pause_schedule("cron_app.paint")
    header, paint, morning = call(capsys).splitlines()
    assert header.split("  ")[0] == "name"
    assert "At 08:00 every day" in morning
    assert "Europe/Paris" in morning
    assert " at 08:00" in morning
    assert "At the start of every hour" in paint
    assert paint.endswith("paused")


def test_the_list_as_json(queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    queue.pause_schedule("cron_app.paint")
    execute(
        database_url,
        "UPDATE queued_task_schedules SET date_last_tick = '2026-05-04 06:00Z' WHERE name = 'morning' RETURNING 1",
    )
    paint, morning = json.loads(call(capsys, "--json"))
    assert paint["is_paused"] is True
    assert paint["next_runs"] == []
    assert (paint["args"], paint["kwargs"], paint["options"]["channel"]) == ([3], {"colour": "red"}, "paint")
    assert (morning["cron"], morning["words"]) == ("0 8 * * *", "At 08:00 every day")
    assert (morning["misfire"], morning["overlap"], morning["timezone"]) == ("last", "skip", "Europe/Paris")
    assert morning["date_last_tick"] == "2026-05-04T06:00:00Z"
    runs = [datetime.fromisoformat(text) for text in morning["next_runs"]]
    assert len(runs) == 3
    assert datetime.now(UTC) < runs[0] < runs[1] < runs[2]


def test_a_row_that_cannot_be_is_listed_with_its_fault(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    execute(database_url, "UPDATE queued_task_schedules SET cron = 'soon' WHERE name = 'morning' RETURNING 1")
    assert "cannot be: soon" in call(capsys)
    assert json.loads(call(capsys, "--json"))[1]["words"] is None


def test_an_overdue_run_is_listed_first(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    execute(database_url, "UPDATE queued_task_schedules SET date_next = now() - interval '1 hour' RETURNING 1")
    assert " now, in " in call(capsys).splitlines()[1]


def test_no_schedules_are_an_empty_list(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("morning", "cron_app.paint"):
        call(capsys, "remove", name)
    assert json.loads(call(capsys, "--json")) == []


def test_what_no_worker_has_written_yet_is_listed_and_can_be_run(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(database_url, "DELETE FROM queued_task_schedules RETURNING 1")
    assert json.loads(call(capsys, "--json")) == []
    paint, morning = json.loads(call(capsys, "-a", "cron_app", "--json"))
    assert (paint["name"], morning["words"]) == ("cron_app.paint", "At 08:00 every day")
    assert len(paint["next_runs"]) == 3
    assert json.loads(ran(queue, capsys, "morning", "-a", "cron_app", "--limit", "7").kwargs) == {"limit": 7}
    assert "a worker writes it when it starts" in call(capsys, "-a", "cron_app", "pause", "morning", code=1)


# ------------------------------------------------------------------------------------------------------------- running


def test_run_prints_the_id_of_a_task_with_the_schedule_s_own_arguments(
    queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ran(queue, capsys, "cron_app.paint")
    assert (task.function, task.args, task.kwargs) == ("cron_app:paint", "[3]", '{"colour": "red"}')
    assert (task.channel, task.state) == ("paint", "enqueued")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--limit", "7"], {"limit": 7}),
        (["--limit=-7"], {"limit": -7}),
        (["--dry-run"], {"dry_run": True}),
        (["--dry_run"], {"dry_run": True}),
        (["--dry-run", "no", "--limit", "0"], {"dry_run": False, "limit": 0}),
        (["--to", "bob@example.com"], {"to": "bob@example.com"}),
        (["--threshold", "0.25"], {"threshold": 0.25}),
        (["--tags", '["a", "b"]'], {"tags": ["a", "b"]}),
        (["--", "--app", "shop"], {"app": "shop"}),
        (["--limit", "7", "--app", "cron_app"], {"limit": 7}),
        (["-a", "cron_app", "--limit", "7"], {"limit": 7}),
    ],
    ids=" ".join,
)
def test_run_takes_the_function_s_keyword_arguments_as_options(
    queue: Queue, capsys: pytest.CaptureFixture[str], given: list[str], expected: dict[str, object]
) -> None:
    assert json.loads(ran(queue, capsys, "morning", *given).kwargs) == expected


def test_run_reads_richer_types_by_the_annotation(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    task = ran(queue, capsys, "morning", "--day", "2026-05-04", "--rate", "1.10")
    assert "2026-05-04" in task.kwargs
    assert "1.10" in task.kwargs


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--colour", "red"], "unrecognized arguments: --colour red"),
        (["--lim", "7"], "unrecognized arguments: --lim"),
        (["7"], "unrecognized arguments: 7"),
        (["--limit", "many"], "'many' is no whole number"),
        (["--limit"], "expected one argument"),
        (["--dry-run", "perhaps"], "'perhaps' is no true or false"),
        (["--day", "tomorrow"], "'tomorrow' is no date"),
        (["--rate", "x"], "'x' is no number"),
        (["--tags", "a,b"], "'a,b' is no JSON"),
    ],
    ids=str,
)
def test_an_option_that_the_function_has_not_got_is_a_usage_error(
    queue: Queue, capsys: pytest.CaptureFixture[str], given: list[str], complaint: str
) -> None:
    assert complaint in call(capsys, "run", "morning", *given, code=2)
    assert queue.find() == []


def test_what_the_schedule_gives_by_position_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--times" in call(capsys, "run", "cron_app.paint", "--times", "4", code=2)


def test_run_explains_a_function_s_options(capsys: pytest.CaptureFixture[str]) -> None:
    said = call(capsys, "run", "morning", "--help")
    assert "Say good morning." in said
    assert "--limit VALUE" in said
    assert "default: 5" in said


def test_run_without_options_does_not_need_the_function(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(database_url, "UPDATE queued_task_schedules SET function = 'nowhere:at_all' RETURNING 1")
    assert ran(queue, capsys, "morning").function == "nowhere:at_all"
    assert "no module nowhere" in call(capsys, "run", "morning", "--limit", "7", code=1)


# ------------------------------------------------------------------------------------------------------------ changing


def test_pause_resume_edit_and_remove(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    def found() -> Any:
        return {row.name: row for row in queue.schedules()}.get("morning")

    assert call(capsys, "pause", "morning") == ""
    assert found().is_paused
    call(capsys, "resume", "morning")
    assert not found().is_paused
    call(capsys, "edit", "morning", "--cron", "30 9 * * 1-5", "--timezone", "Asia/Tokyo")
    assert (found().cron, found().timezone) == ("30 9 * * 1-5", "Asia/Tokyo")
    call(capsys, "edit", "morning", "--cron", "@weekly")
    assert (found().cron, found().timezone) == ("@weekly", "Asia/Tokyo")
    call(capsys, "remove", "morning")
    assert found() is None


@pytest.mark.parametrize("action", ["run", "pause", "resume", "remove", "edit"])
def test_a_schedule_that_does_not_exist_is_an_error(capsys: pytest.CaptureFixture[str], action: str) -> None:
    more = ["--cron", "@daily"] if action == "edit" else []
    assert "no schedule 'absent'" in call(capsys, action, "absent", *more, code=1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["edit", "morning"],
        ["edit", "morning", "--cron", "soon"],
        ["edit", "morning", "--timezone", "Mars"],
        ["pause"],
        ["stop", "morning"],
        ["run"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_a_usage_error(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    call(capsys, *arguments, code=2)


def test_options_may_stand_before_the_action_and_behind_the_name(
    database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUEUE_DATABASE_URL", "postgresql://nowhere.invalid/x")
    call(capsys, "--database-url", database_url, "pause", "morning")
    call(capsys, "resume", "morning", "--database-url", database_url)
    call(capsys, "run", "morning", "--database-url", database_url)
    call(capsys, "run", "--database-url", database_url, "morning", "--limit", "3")
