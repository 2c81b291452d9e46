"""The worker as a process: signals, exit codes, the application's Queue."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers import execute, has_begun, wait_until
from queuedtask import Queue

SLEEPER = """
import time


def sleep(seconds):
    time.sleep(seconds)
    return seconds
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "queuedtask", *arguments]


def environment(url: str | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QUEUE_", "DATABASE_URL"))}
    return {**kept, **({"QUEUE_DATABASE_URL": url} if url else {}), "PYTHONPATH": os.pathsep.join(sys.path)}


def run(project: Path, url: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=project, env=environment(url), capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def worker(project: Path, url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command("worker", *arguments), cwd=project, env=environment(url), stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_ends_in_time_end_and_hands_the_rest_back(
    queue: Queue, database_url: str, project: Path, number: signal.Signals
) -> None:
    short = queue.add_task("sleeper:sleep", 2)
    long = queue.add_task("sleeper:sleep", 60)
    with worker(project, database_url, "-w", "4", "--shutdown-timeout", "3") as process:
        wait_until(lambda: has_begun(short) and has_begun(long), 20)
        process.send_signal(number)
        assert process.wait(20) == 0
    assert (short.state, short.result) == ("done", 2)
    row = long.row()
    assert (row.state, row.failures, row.claimed_by) == ("enqueued", 0, None)
    assert queue.workers() == []


def test_a_second_signal_ends_it_at_once(queue: Queue, database_url: str, project: Path) -> None:
    ref = queue.add_task("sleeper:sleep", 60)
    with worker(project, database_url, "--shutdown-timeout", "50") as process:
        wait_until(lambda: has_begun(ref), 20)
        # To the very end, when Python has given up its handlers, too.
        wait_until(lambda: process.poll() is not None or process.send_signal(signal.SIGTERM), 20, interval=0.002)
        assert process.returncode == 0
    assert ref.state == "enqueued"


def test_a_burst_runs_what_there_is_and_exits_0(queue: Queue, database_url: str, project: Path) -> None:
    refs = [queue.add_task("sleeper:sleep", 0) for _ in range(20)]
    ended = run(project, database_url, "start", "--workers=2", "--burst")
    assert ended.returncode == 0, ended.stderr
    assert {ref.state for ref in refs} == {"done"}


def test_the_process_and_its_listening_connection_are_found_where_people_look(
    queue: Queue, database_url: str, project: Path
) -> None:
    with worker(project, database_url, "-w", "2") as process:
        wait_until(queue.workers, 20)
        assert b"queuedtask\0worker" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert execute(
            database_url,
            "SELECT pid FROM pg_stat_activity WHERE query LIKE %s AND query NOT LIKE %s",
            ("%LISTEN%", "%pg_stat_activity%"),
        )


def test_a_database_without_the_schema_says_what_to_type(empty_database_url: str, project: Path) -> None:
    ended = run(project, empty_database_url, "worker", "--burst")
    assert ended.returncode == 1
    assert "db upgrade" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert run(project, empty_database_url, "db", "upgrade").returncode == 0
    assert run(project, empty_database_url, "worker", "--burst").returncode == 0


def test_the_application_s_only_queue_is_taken(queue: Queue, database_url: str, project: Path) -> None:
    (project / "shop.py").write_text(
        "from queuedtask import Queue\nqueue = also = Queue()\nqueue.config.max_workers = 3\ndef buy(): return 'sold'\n"
    )
    ref = queue.add_task("shop:buy")
    ended = run(project, database_url, "worker", "-a", "shop", "--burst")
    assert ended.returncode == 0, ended.stderr
    assert ref.result == "sold"
    assert "3 slots" in ended.stderr


@pytest.mark.parametrize(
    ("source", "application", "code", "said"),
    [
        ("from queuedtask import Queue\na = Queue()\nb = Queue()\n", "shop", 2, "several"),
        ("x = 1\n", "shop", 2, "no Queue"),
        ("from queuedtask import Queue\na = Queue()\nb = 1\n", "shop:b", 2, "no Queue"),
        ("raise ValueError('broken application')\n", "shop", 1, "broken application"),
    ],
)
def test_an_application_that_cannot_be_used_is_refused(
    database_url: str, project: Path, source: str, application: str, code: int, said: str
) -> None:
    (project / "shop.py").write_text(source)
    ended = run(project, database_url, "worker", "-a", application, "--burst")
    assert ended.returncode == code
    assert said in ended.stderr


def test_one_of_several_queues_is_taken_by_its_name(database_url: str, project: Path) -> None:
    (project / "shop.py").write_text("from queuedtask import Queue\na = Queue()\nb = Queue()\n")
    assert run(project, database_url, "worker", "-a", "shop:b", "--burst").returncode == 0


def test_the_processes_of_a_worker_take_only_from_the_channels_that_it_is_given(
    project: Path, queue: Queue, database_url: str
) -> None:
    mail = queue.options(channel="mail").add_task("sleeper:sleep", 0)
    other = queue.add_task("sleeper:sleep", 0)
    ended = run(project, database_url, "worker", "-q", "api, mail", "--burst", "-p", "2")
    assert ended.returncode == 0, ended.stderr
    assert (mail.state, other.state) == ("done", "enqueued")
