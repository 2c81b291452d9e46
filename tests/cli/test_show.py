"""What ``queuedtask show`` tells of the attempts of a task: why each ended, and where a stuck one is."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import execute, wait_until
from queuedtask import Queue
from queuedtask.cli.main import main

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
import hostile_jobs as jobs
from terminals import RED, insert_attempt, insert_worker, on_a_terminal
from trees import tree

TRACEBACK = 'Traceback (most recent call last):\n  File "/shop.py", line 7, in buy\nshop.Busy: the line is engaged\n'
STACK = 'Stack of the thread when it was given up (most recent call last):\n  File "/shop.py", line 9, in hang\n'


@pytest.fixture(autouse=True)
def configured(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_DATABASE_URL", database_url)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)


def show(capsys: pytest.CaptureFixture[str], task_id: str) -> str:
    assert main(["show", task_id]) == 0
    return capsys.readouterr().out


def document(capsys: pytest.CaptureFixture[str], task_id: str) -> dict[str, Any]:
    assert main(["show", task_id, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def sections(text: str) -> list[list[str]]:
    """Return the lines of each attempt, its heading first."""
    _, *found = re.split(r"(?m)^(?=attempt \d)", text)
    return [[line for line in section.splitlines() if line] for section in found]


def test_each_attempt_says_why_it_ended_once(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ref = queue.add_task("shop:buy")
    error = {"error_type": "Busy", "error_message": "the line is engaged"}
    overdue = {"error_type": "TaskTimeout", "error_message": "the task outlived its timeout of 5 s"}
    silent = {"error_type": "WorkerLost", "error_message": "worker 7 stopped reporting"}
    insert_attempt(database_url, ref.id, 1, "raised", seconds=5, worker=6, **error, error_traceback=TRACEBACK)
    insert_attempt(database_url, ref.id, 2, "timed_out", seconds=90, worker=6, **overdue, error_traceback=STACK)
    insert_attempt(database_url, ref.id, 4, "lost", seconds=7, worker=7, **silent)

    raised, timed_out, lost = sections(show(capsys, ref.id))
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ"
    assert re.fullmatch(rf"attempt 1 raised {time} on worker 6 after 5\.0 s", raised[0])
    assert raised[1:] == TRACEBACK.splitlines()
    assert re.fullmatch(rf"attempt 2 timed out {time} on worker 6 after 1 min 30 s", timed_out[0])
    assert timed_out[1:] == ["TaskTimeout: the task outlived its timeout of 5 s", *STACK.splitlines()]
    assert re.fullmatch(rf"attempt 4 lost {time} on worker 7 after 7\.0 s", lost[0])
    assert lost[1:] == ["WorkerLost: worker 7 stopped reporting"]


def test_a_lost_attempt_says_how_its_process_ended_and_how_much_memory_that_had(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ref = queue.add_task("shop:buy")
    execute(database_url, "UPDATE queued_tasks SET lost_count = 2 WHERE id = %s RETURNING 1", (ref.id,))
    loss = {"error_type": "WorkerLost", "error_message": "its process ended with SIGSEGV", "exit_signal": "SIGSEGV"}
    stack = "Fatal Python error: Segmentation fault"
    insert_attempt(database_url, ref.id, 1, "lost", seconds=1, **loss, memory_bytes=1536 * 2**20, error_traceback=stack)
    insert_attempt(database_url, ref.id, 2, "lost", seconds=1, **loss)
    shown = show(capsys, ref.id)
    known, unknown = sections(shown)
    assert known[1:] == [
        "WorkerLost: its process ended with SIGSEGV",
        "process: SIGSEGV, 1536.0 MiB of memory at most",
        stack,
    ]
    assert unknown[2:] == ["process: SIGSEGV"]
    assert re.search(r"(?m)^lost +2 times; it runs alone in a process$", shown)

    execute(
        database_url,
        "UPDATE queued_tasks SET state = 'failed', date_done = now() WHERE id = %s RETURNING 1",
        (ref.id,),
    )
    assert re.search(r"(?m)^lost +2 times$", show(capsys, ref.id))
    found = document(capsys, ref.id)
    assert found["lost_count"] == 2
    assert [(a["exit_signal"], a["memory_bytes"]) for a in found["attempts"]] == [
        ("SIGSEGV", 1536 * 2**20),
        ("SIGSEGV", None),
    ]
    assert {key for attempt in found["attempts"] for key in attempt} == {
        *("attempt", "outcome", "error_type", "error_message", "error_traceback", "worker", "date_started"),
        *("date_done", "exit_signal", "memory_bytes", "stuck_seconds"),
    }


def test_a_stuck_attempt_is_told_from_one_that_has_ended_since(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ref = queue.add_task("shop:hang")
    slot = {"task": ref.id, "name": "shop.hang", "attempt": 2, "seconds": 61.0}
    worker = insert_worker(database_url, 101, stuck=json.dumps([slot]))
    for number in (1, 2):
        insert_attempt(database_url, ref.id, number, "timed_out", seconds=1, worker=worker, error_traceback=STACK)
    ended, stuck = sections(show(capsys, ref.id))
    assert "stuck" not in ended[0]
    assert re.search(r", and stuck for 1 min \d\d s since$", stuck[0])
    first, second = document(capsys, ref.id)["attempts"]
    assert first["stuck_seconds"] is None
    assert 61.0 <= second["stuck_seconds"] < 100.0

    red = [line for line in on_a_terminal("show", ref.id).splitlines() if "31m" in line]
    assert len(red) == 1
    assert "attempt 2 timed out" in red[0]
    assert RED not in on_a_terminal("show", ref.id, NO_COLOR="1")


def test_a_slot_that_really_hangs_shows_where(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with tree(database_url, "-w", "2", timeout_grace=0.5, max_retries=0, heartbeat_interval=0.5, lease=5):
        ref = queue.options(timeout=0.5).add_task(jobs.sleep, 120.0)
        wait_until(lambda: "stuck for" in show(capsys, ref.id), 20)
        ((heading, error, *stack),) = sections(show(capsys, ref.id))
        assert heading.startswith("attempt 1 timed out ")
        assert error == "TaskTimeout: the task outlived its timeout of 0.5 s and did not end; its slot was replaced"
        assert "in sleep" in stack[1]
        assert "time.sleep(seconds)" in stack[2]


def test_a_task_that_really_kills_its_processes_shows_how_they_ended(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with tree(database_url, "-w", "2", max_lost=2):
        ref = queue.add_task(jobs.segfault)
        wait_until(lambda: ref.state == "failed", 30)
    shown = show(capsys, ref.id)
    first, second = sections(shown)
    for section in (first, second):
        assert " lost " in section[0]
        assert section[1] == "WorkerLost: its process ended with SIGSEGV"
        assert section[2].startswith("process: SIGSEGV")
        assert any("in segfault" in line for line in section)
    assert re.search(r"^process: SIGSEGV, \d+\.\d MiB of memory at most$", first[2])
    assert re.search(r"(?m)^lost +2 times$", shown)
    assert re.search(r"(?m)^error +WorkerLost: its process ended with SIGSEGV$", shown)
