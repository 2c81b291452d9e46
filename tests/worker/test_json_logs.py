"""What a worker's processes write on stderr: one JSON object for each line, with the task that has logged it."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from helpers import wait_until
from queuedtask import Queue, clear_context, set_context

sys.path.insert(0, str(Path(__file__).parent))
import log_jobs as jobs
from trees import Tree, tree

FIRST = ["time", "level", "logger", "message", "process", "thread"]


def written(worker: Tree) -> list[dict[str, Any]]:
    return [json.loads(line) for line in worker.log]


def test_every_process_writes_objects_with_the_task_that_logs(queue: Queue, database_url: str) -> None:
    set_context("request_id", "r-1")
    beside = queue.options(channel="mail").add_task(jobs.tell, "beside")
    alone = queue.options(isolation="process").add_task(jobs.tell, "alone")
    clear_context()
    plain = queue.add_task(jobs.tell, "plain")
    with tree(database_url, "--burst", "-w", "2", "--log-format", "json", unknown="x") as worker:
        assert worker.process.wait(60) == 0
        worker.close()
        lines = written(worker)
    for line in lines:
        assert list(line)[: len(FIRST)] == FIRST
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert abs((datetime.fromisoformat(line["time"]) - datetime.now(UTC)).total_seconds()) < 120
    by_logger = {line["logger"]: line for line in lines}
    assert by_logger["queuedtask.supervisor"]["process"] == worker.pid
    (unknown,) = [line for line in lines if line["message"] == "QUEUE_UNKNOWN is no setting"]
    assert (unknown["level"], "task_id" in unknown) == ("WARNING", False)
    told = {line["message"]: line for line in lines if line["logger"] == "shop"}
    for ref, name, channel, request in (
        (beside, "beside", "mail", "r-1"),
        (alone, "alone", "default", "r-1"),
        (plain, "plain", "default", None),
    ):
        line = told[name]
        assert (line["task_id"], line["attempt"], line["channel"]) == (ref.id, 1, channel)
        assert (line["task_name"], line.get("request_id"), line["worker"]) == ("log_jobs.tell", request, 1)
        assert (line["level"], line["order"]) == ("INFO", 7)
    assert len({worker.pid, told["alone"]["process"], told["beside"]["process"]}) == 3
    assert told["plain"]["process"] == told["beside"]["process"]


def test_what_is_awkward_is_one_line_too(queue: Queue, database_url: str) -> None:
    queue.add_task(jobs.log_awkwardly)
    with tree(database_url, "--burst", "-w", "1", log_format="json") as worker:
        assert worker.process.wait(60) == 0
        worker.close()
        lines = [line for line in written(worker) if line["logger"] == "shop"]
    lines_, failed, wrong, number, odd, mapping, message, silent, stack = lines
    assert lines_["message"] == "two\nlines \u2028 \udc80"
    assert failed["exception"].startswith("Traceback")
    assert "ZeroDivisionError" in failed["exception"]
    assert (failed["level"], failed["message"]) == ("ERROR", "it failed")
    assert wrong["message"] == "'%d of them' (could not be written in full: TypeError)"
    assert number["message"] == "a number (could not be written in full: ValueError)"
    assert (odd["level"], odd["order"], odd["task_id"]) == ("INFO", {"id": 7}, failed["task_id"])
    assert (mapping["rows"], "message" in mapping) == (3, False)
    assert (message["message"], message["level"]) == ("order paid", "INFO")
    assert silent["message"] == "<Silent> (could not be written in full: RuntimeError)"
    assert "log_awkwardly" in stack["stack"]


def test_text_names_the_task_as_well(queue: Queue, database_url: str) -> None:
    ref = queue.add_task(jobs.tell, "hello")
    with tree(database_url, "--burst", "-w", "1") as worker:
        assert worker.process.wait(60) == 0
        worker.close()
    (line,) = worker.said("hello")
    assert re.fullmatch(rf"[-0-9]+ [:0-9]+Z INFO \d+ slot-1 {ref.id}/1 shop: hello", line)


def test_the_supervisor_needs_no_database_library_for_it(queue: Queue, database_url: str) -> None:
    with tree(database_url, "-w", "1", log_format="json") as worker:
        wait_until(lambda: worker.said('"worker 1 started'), 20)
        maps = Path(f"/proc/{worker.pid}/maps").read_text()
        assert "/sqlalchemy/" not in maps
        assert worker.stop() == 0


def test_without_the_package_it_says_how_to_get_it(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "pythonjsonlogger.py").write_text("raise ImportError('not here')")
    environment = {**os.environ, "QUEUE_DATABASE_URL": database_url}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    ran = subprocess.run(
        [sys.executable, "-m", "queuedtask", "worker", "--log-format", "json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.strip().endswith("type: pip install 'queuedtask[json]'")
    assert ran.stderr.count("\n") == 1


def test_a_format_that_is_none_is_a_usage_error() -> None:
    from queuedtask.cli.main import main

    assert main(["worker", "--log-format", "xml"]) == 2


def test_the_fields_are_there_for_handlers_of_an_application(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    import logging

    from inside import ended, working

    from queuedtask.run.attempt import TaskFields

    caplog.handler.addFilter(TaskFields())
    caplog.set_level(logging.INFO)
    with working(queue):
        ref = ended(queue.options(channel="mail").add_task(jobs.tell, "here"))
    (record,) = [record for record in caplog.records if record.name == "shop"]
    found = {name: getattr(record, name) for name in ("task_id", "task_name", "attempt", "channel", "request_id")}
    assert found == {
        "task_id": ref.id,
        "task_name": "log_jobs.tell",
        "attempt": 1,
        "channel": "mail",
        "request_id": None,
    }
