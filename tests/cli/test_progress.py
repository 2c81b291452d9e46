"""How far tasks are, as the commands show it; and status --watch."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import execute
from queuedtask import Queue
from queuedtask.cli import output
from queuedtask.cli.main import main

sys.path.insert(0, str(Path(__file__).parent))
from terminals import insert_worker, on_a_terminal


@pytest.fixture(autouse=True)
def configured(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_DATABASE_URL", database_url)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def start(url: str, task_id: str, worker: int) -> None:
    execute(
        url,
        "UPDATE queued_tasks SET state = 'doing', claimed_by = %s, attempt = 1, date_started = now() - interval '5 s' "
        "WHERE id = %s",
        (worker, task_id),
    )


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0 %"), (0.29, "29 %"), (0.4, "40 %"), (0.999, "99 %"), (1, "100 %")]
)
def test_a_percentage_is_not_rounded_up(share: float, text: str) -> None:
    assert output.Bar(share) == text


@pytest.mark.parametrize("progress", [0.4, {"done": 2, "total": 5}])
def test_progress_is_shown(queue: Queue, capsys: pytest.CaptureFixture[str], progress: Any) -> None:
    ref = queue.options(context={"progress": progress}).add_task("shop:buy", 7)
    queue.add_task("shop:sell")
    assert re.search(r"^progress +40 %$", call(capsys, "show", ref.id), re.MULTILINE)
    heading, *rows = call(capsys, "tasks").splitlines()
    assert heading.split()[-4] == "progress"
    assert [("40 %" in row) for row in rows] == [False, True]
    assert json.loads(call(capsys, "show", ref.id, "--json"))["progress"] == 0.4
    assert [each["progress"] for each in json.loads(call(capsys, "tasks", "--json"))] == [None, 0.4]


@pytest.mark.parametrize("context", [None, {}, {"progress": {"rows": 7}}, {"progress": "soon"}, {"progress": 40}])
def test_without_any_or_with_an_odd_one_nothing_is_shown(
    queue: Queue, capsys: pytest.CaptureFixture[str], context: Any
) -> None:
    ref = queue.options(context=context).add_task("shop:buy")
    assert "%" not in call(capsys, "show", ref.id)
    assert "progress" not in call(capsys, "tasks")
    assert json.loads(call(capsys, "show", ref.id, "--json"))["progress"] is None


@pytest.mark.parametrize("context", ["7", '[{"progress": 0.4}]', '"progress"', "null"])
def test_a_context_that_somebody_wrote_by_hand_does_no_harm(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str], context: str
) -> None:
    ref = queue.add_task("shop:buy")
    execute(database_url, "UPDATE queued_tasks SET context = %s WHERE id = %s", (context, ref.id))
    start(database_url, ref.id, insert_worker(database_url, 101))
    for arguments in (["tasks"], ["show", ref.id], ["status", "--json"]):
        call(capsys, *arguments)


def test_a_terminal_gets_a_bar(queue: Queue) -> None:
    ref = queue.options(context={"progress": 0.4}).add_task("shop:buy")
    for arguments in (["tasks"], ["show", ref.id]):
        (line,) = [line for line in on_a_terminal(*arguments).splitlines() if "40 %" in line]
        assert "━━━━" in line
        (plain,) = [line for line in on_a_terminal(*arguments, NO_COLOR="1").splitlines() if "40 %" in line]
        assert "━" in plain
        assert "\x1b[3" not in plain


# ------------------------------------------------------------------------------------------------------ status --watch


@pytest.fixture
def running(queue: Queue, database_url: str) -> str:
    ref = queue.options(context={"progress": {"done": 1, "total": 4}}).add_task("shop:buy")
    start(database_url, ref.id, insert_worker(database_url, 101))
    return ref.id


def frames(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:
            return
        if not chunk:
            return
        yield chunk


def watch(*arguments: str, until: bytes, times: int, is_terminal: bool = False) -> tuple[str, int]:
    """Run status --watch until something has come so often, then press Ctrl-C; return output and exit code."""
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", "LINES": "50"}
    process = subprocess.Popen(
        [sys.executable, "-m", "queuedtask", "status", "--watch", *arguments],
        stdout=theirs,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    os.close(theirs)
    written = b""
    for chunk in frames(ours):
        written += chunk
        if written.count(until) >= times:
            process.send_signal(signal.SIGINT)
            times = sys.maxsize
    os.close(ours)
    return written.decode().replace("\r\n", "\n"), process.wait(30)


def test_status_is_watched_until_it_is_interrupted(running: str) -> None:
    shown, code = watch(until=b"25 %", times=2)
    assert code == 130
    first, second = re.findall(r"(?ms)^\d{4}-\d\d-\d\d .*?25 %$", shown)[:2]
    for frame in (first, second):
        assert re.search(rf"(?m)^{running} +shop\.buy +\d+ +1 +\d\.\d s +25 %$", frame)
        assert re.search(r"(?m)^doing +1$", frame)
    assert "\x1b" not in shown


def test_on_a_terminal_it_is_drawn_in_place_with_a_bar(running: str) -> None:
    shown, code = watch(until=b"25 %", times=2, is_terminal=True)
    assert code == 130
    assert shown.startswith("\x1b[?1049h")
    assert shown.rstrip().endswith("\x1b[?1049l")
    assert shown.count("\x1b[H") >= 2
    (line, *_) = [line for line in shown.splitlines() if "25 %" in line]
    assert "━━━" in line


def test_in_json_it_is_an_object_for_each_time(running: str) -> None:
    shown, code = watch("--json", until=b"\n", times=2)
    assert code == 130
    found = [json.loads(line) for line in shown.splitlines()]
    assert len(found) >= 2
    (task,) = found[0]["running"]
    assert (task["id"], task["progress"], task["is_overdue"]) == (running, 0.25, False)
    assert found[0]["tasks"]["doing"] == 1


def test_where_nothing_runs_it_says_so(queue: Queue) -> None:
    shown, _ = watch(until=b"half a second", times=1)
    assert "no task has been running for half a second" in shown


# ---------------------------------------------------------------------------------------------------------------- purge


def end(url: str, *ids: str, state: str = "done", ago: str) -> None:
    execute(
        url,
        "UPDATE queued_tasks SET state = %s, date_done = now() - %s::interval WHERE id = ANY(%s::uuid[])",
        (state, ago, list(ids)),
    )


def test_purge_deletes_what_was_kept_long_enough(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [queue.add_task("shop:buy").id for _ in range(5)]
    end(database_url, refs[0], ago="31 days")
    end(database_url, refs[1], ago="29 days")
    end(database_url, refs[2], state="failed", ago="3 hours")
    end(database_url, refs[3], state="cancelled", ago="3 hours")
    assert call(capsys, "purge", "--dry-run") == "1 task would be deleted: 1 done\n"
    assert call(capsys, "purge") == ""
    assert len(queue.find()) == 4
    dry = call(capsys, "purge", "--older-than", "2h", "--dry-run")
    assert dry == "3 tasks would be deleted: 1 done, 1 failed, 1 cancelled\n"
    assert call(capsys, "purge", "-v", "--older-than", "2h", "--state", "failed", "--state", "done") == (
        "2 tasks deleted\n"
    )
    assert {ref.id for ref in queue.find()} == set(refs[3:])
    monkeypatch.setenv("QUEUE_RETENTION_DAYS", "cancelled:0.1")
    assert call(capsys, "purge", "-v") == "1 task deleted\n"
    assert call(capsys, "purge", "-v", "--older-than", "0") == "0 tasks deleted\n"
    assert call(capsys, "purge", "--older-than", "0", "--dry-run") == "0 tasks would be deleted\n"


def test_purge_says_how_many_on_a_terminal(queue: Queue) -> None:
    assert on_a_terminal("purge") == "0 tasks deleted\n"


@pytest.mark.parametrize("arguments", [["--state", "enqueued"], ["--older-than", "soon"], ["--older-than", "-1"]])
def test_what_cannot_be_purged_is_a_usage_error(arguments: list[str]) -> None:
    assert main(["purge", *arguments]) == 2
