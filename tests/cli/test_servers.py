"""What ``queuedtask servers`` shows of processes, slots and what is amiss, to people and to programs."""

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
from terminals import RED, insert_worker, on_a_terminal
from trees import tree


@pytest.fixture(autouse=True)
def configured(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_DATABASE_URL", database_url)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["servers"]) == 0
    return capsys.readouterr().out.splitlines()


def document(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert main(["servers", "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def start(url: str, task_id: str, worker: int, *, seconds: float) -> None:
    execute(
        url,
        "UPDATE queued_tasks SET state = 'doing', attempt = attempt + 1, claimed_by = %s, "
        "date_started = clock_timestamp() - %s * interval '1 second' WHERE id = %s RETURNING 1",
        (worker, seconds, task_id),
    )


def stuck(task_id: str = "019a0000-0000-7000-8000-000000000000", seconds: float = 60.0) -> str:
    return json.dumps([{"task": task_id, "name": "shop.hang", "attempt": 2, "seconds": seconds}])


# --------------------------------------------------------------------------------------------------------------- groups


def test_the_processes_of_one_supervisor_stand_together(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = insert_worker(database_url, 101, supervisor_pid=100)
    other = insert_worker(database_url, 201, supervisor_pid=200)
    # The same number on another server is another supervisor.
    elsewhere = insert_worker(database_url, 102, supervisor_pid=100, server_name="web2")
    second = insert_worker(database_url, 103, supervisor_pid=100)
    alone = [insert_worker(database_url, pid) for pid in (301, 302)]

    header, *rows = lines(capsys)
    assert header.split()[:4] == ["server", "supervisor", "worker", "pid"]
    assert [row.split()[:4] for row in rows] == [
        ["web1", "none", str(alone[0]), "301"],
        ["web1", "none", str(alone[1]), "302"],
        ["web1", "100", str(first), "101"],
        [str(second), "103", "4", "0"],
        ["web1", "200", str(other), "201"],
        ["web2", "100", str(elsewhere), "102"],
    ]
    assert [worker["id"] for worker in document(capsys)] == [*alone, first, second, other, elsewhere]


def test_what_nobody_has_gets_no_column(queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    insert_worker(database_url, 101, supervisor_pid=100)
    header, _ = lines(capsys)
    assert not {"stuck", "refused", "remark"} & set(header.split())
    insert_worker(database_url, 102, supervisor_pid=100, refused=7, stuck=stuck())
    header, first, second, *_ = lines(capsys)
    for column, shown in (("stuck", "1"), ("refused", "7")):
        end = header.index(column) + len(column)
        assert first[end - len(column) : end].strip() == ""
        assert second[end - len(column) : end].strip() == shown


def test_the_document_has_the_same_facts_under_keys_that_stay(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = insert_worker(database_url, 102, supervisor_pid=100, refused=7, lease=45.0, stuck=stuck(), silence=3)
    ref = queue.options(timeout=30).add_task("shop:buy")
    start(database_url, ref.id, worker, seconds=40)
    (shown,) = document(capsys)
    assert set(shown) == {
        *("id", "server_name", "max_workers", "active_workers", "idle_workers", "is_running", "last_heartbeat"),
        *("pid", "supervisor_pid", "date_started", "version", "lease", "stuck", "refused", "silence", "is_live"),
        "running",
    }
    assert (shown["supervisor_pid"], shown["lease"], shown["refused"]) == (100, 45.0, 7)
    (running,) = shown["running"]
    assert set(running) == {
        *("id", "name", "claimed_by", "attempt", "date_started", "timeout", "seconds", "is_overdue", "progress")
    }
    assert (running["id"], running["timeout"], running["is_overdue"]) == (ref.id, 30.0, True)
    (slot,) = shown["stuck"]
    assert set(slot) == {"task", "name", "attempt", "seconds"}
    # Written as of the heartbeat, which is three seconds old.
    assert 63.0 <= slot["seconds"] < 70.0


# -------------------------------------------------------------------------------------------------------- what is amiss


def test_a_worker_is_silent_beyond_the_longer_one_of_the_two_leases(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUEUE_LEASE", "30")
    longer = insert_worker(database_url, 101, lease=120.0, silence=60)
    shorter = insert_worker(database_url, 102, lease=10.0, silence=20)
    silent = insert_worker(database_url, 103, lease=10.0, silence=60)
    older = insert_worker(database_url, 104, silence=60)  # of a version that does not tell
    assert {worker["id"]: worker["is_live"] for worker in document(capsys)} == {
        longer: True,
        shorter: True,
        silent: False,
        older: False,
    }
    assert [("silent" in row) for row in lines(capsys)[1:]] == [False, False, True, True]


def test_a_task_over_its_own_timeout_and_a_stuck_slot_are_told_apart_from_the_rest(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hung = queue.add_task("shop:hang")
    worker = insert_worker(database_url, 101, supervisor_pid=100, stuck=stuck(hung.id))
    overdue, in_time, unknown = (queue.options(timeout=t).add_task("shop:buy") for t in (30, 60, None))
    for ref in (overdue, in_time, unknown):
        start(database_url, ref.id, worker, seconds=40)
    rows = {line.split()[1]: line for line in lines(capsys) if "shop." in line}
    assert set(rows) == {overdue.id, in_time.id, unknown.id, hung.id}
    assert rows[overdue.id].endswith("over its timeout of 30.0 s")
    for ref in (in_time, unknown):
        assert re.search(r"4\d\.\d s$", rows[ref.id])
    assert re.search(r"1 min \d\d s  stuck since it was given up$", rows[hung.id])


def test_what_is_amiss_is_red_on_a_terminal_and_nothing_else(queue: Queue, database_url: str) -> None:
    fine = insert_worker(database_url, 101, server_name="fine")
    amiss = insert_worker(database_url, 102, server_name="amiss", silence=60, stuck=stuck())
    overdue, in_time = (queue.options(timeout=t).add_task("shop:buy") for t in (30, 60))
    for ref, worker in ((overdue, amiss), (in_time, fine)):
        start(database_url, ref.id, worker, seconds=40)
    shown = on_a_terminal("servers")
    red = [line for line in shown.splitlines() if RED in line]
    assert len(red) == 3, shown
    assert "amiss" in red[0]
    assert re.search(re.escape(RED) + r"1 min \d\d s ago, silent", red[0])
    assert f"{RED}1 " in red[0]  # the stuck slot
    assert f"{RED}amiss" not in red[0]
    assert f"{RED}{overdue.id}" in red[1]
    assert f"{RED}019a0000-" in red[2]
    assert in_time.id in shown

    plain = on_a_terminal("servers", NO_COLOR="1")
    assert "\x1b[31" not in plain
    assert "silent" in plain
    assert "stuck since" in plain


def test_a_narrow_terminal_still_shows_whose_and_how_many(queue: Queue, database_url: str) -> None:
    insert_worker(database_url, 101, supervisor_pid=100, version=None)
    shown = on_a_terminal("servers", columns=60)
    assert "supervisor" in shown
    assert "heartbeat" in shown
    assert "started" not in shown


# --------------------------------------------------------------------------------------------------------- real workers


def test_a_real_supervisor_s_processes_and_a_slot_that_really_hangs(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with tree(
        database_url, "-w", "2", "-p", "2", timeout_grace=0.5, max_retries=0, heartbeat_interval=0.5, lease=5
    ) as worker:
        wait_until(lambda: len(queue.workers()) == 2, 20)
        hung = queue.options(timeout=0.5).add_task(jobs.sleep, 120.0)
        long = queue.add_task(jobs.sleep, 120.0)

        def shown() -> dict[str, Any] | None:
            found = document(capsys)
            assert [each["supervisor_pid"] for each in found] == [worker.pid] * 2
            assert sorted(each["pid"] for each in found) == worker.children()
            return next((each for each in found if each["stuck"]), None)

        found = wait_until(shown, 20)
        assert found is not None
        (slot,) = found["stuck"]
        assert (slot["task"], slot["name"], slot["attempt"]) == (hung.id, "hostile_jobs.sleep", 1)
        wait_until(lambda: any(each["running"] for each in document(capsys)), 10)
        (running,) = [task for each in document(capsys) for task in each["running"]]
        assert (running["id"], running["is_overdue"]) == (long.id, False)
        assert sum(each["active_workers"] for each in document(capsys)) == 1

        terminal = on_a_terminal("servers")
        (red,) = [line for line in terminal.splitlines() if hung.id in line]
        assert f"{RED}{hung.id}" in red
        (black,) = [line for line in terminal.splitlines() if long.id in line]
        assert RED not in black
        # The first of the two processes names their supervisor, the second does not repeat it.
        processes, _ = terminal.split("running task")
        assert len(re.findall(rf"\b{worker.pid}\b", processes)) == 1
