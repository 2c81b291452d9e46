"""The commands that read and control, as programs and people call them."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import execute
from queuedtask import Queue
from queuedtask.cli.main import main


@pytest.fixture(autouse=True)
def configured(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_DATABASE_URL", database_url)
    monkeypatch.delenv("DATABASE_URL", raising=False)


def fail(url: str, *ids: str, ago: str = "0 s", requeues: int = 0) -> None:
    for task_id in ids:
        execute(
            url,
            "UPDATE queued_tasks SET state = 'failed', date_done = now() - %s::interval, error_type = 'ValueError', "
            "error_message = 'boom', requeues = %s WHERE id = %s RETURNING 1",
            (ago, requeues, task_id),
        )


def call(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(arguments) == code
    return capsys.readouterr().out


def call_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(call(capsys, *arguments, "--json"))


READING = [["status"], ["stats"], ["servers"], ["tasks"], ["config"]]


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_reading_commands_speak_plain_text_and_json(
    queue: Queue, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    queue.add_task("shop:buy", 7)
    plain = call(capsys, *command)
    assert plain
    assert plain.isprintable() or "\x1b" not in plain
    json.loads(call(capsys, *command, "--json"))


def test_show_has_the_task_its_arguments_and_its_error(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ref = queue.add_task("shop:buy", 7, colour="red")
    fail(database_url, ref.id)
    shown = call_json(capsys, "show", ref.id)
    assert (shown["id"], shown["state"], shown["args"], shown["kwargs"]) == (ref.id, "failed", [7], {"colour": "red"})
    assert "boom" in call(capsys, "show", ref.id)


def test_values_of_redacted_arguments_are_not_shown(
    queue: Queue, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUEUE_REDACT", "password")
    ref = queue.add_task("shop:login", user="ann", password="s3cret")
    for arguments in (["show", ref.id], ["show", ref.id, "--json"], ["tasks"], ["tasks", "--json"]):
        assert "s3cret" not in call(capsys, *arguments)


def test_an_unknown_id_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "019a0000-0000-7000-8000-000000000000"]) == 1
    assert "no task" in capsys.readouterr().err


def test_a_wrong_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--state", "lost"]) == 2
    assert main(["no-such-command"]) == 2
    assert main(["retry", "--since", "soon"]) == 2
    assert capsys.readouterr().err


def test_retry_sends_failed_tasks_round_again_in_silence_and_once(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refs = [queue.add_task("shop:buy", n) for n in range(3)]
    fail(database_url, *(ref.id for ref in refs))
    for _ in range(2):
        assert main(["retry"]) == 0
        said = capsys.readouterr()
        assert (said.out, said.err) == ("", "")
    assert [(ref.row().state, ref.row().requeues, ref.row().error_type) for ref in refs] == [("enqueued", 1, None)] * 3


def test_retry_leaves_alone_what_went_round_too_often_or_failed_too_long_ago(queue: Queue, database_url: str) -> None:
    often, old, recent = (queue.add_task("shop:buy", n) for n in range(3))
    fail(database_url, often.id, requeues=3)
    fail(database_url, old.id, ago="2 h")
    fail(database_url, recent.id)
    assert main(["retry", "--since", "1h"]) == 0
    assert [ref.state for ref in (often, old, recent)] == ["failed", "failed", "enqueued"]


def test_a_dry_run_changes_nothing(queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    ref = queue.add_task("shop:buy")
    fail(database_url, ref.id)
    assert ref.id in call(capsys, "retry", "--dry-run")
    assert ref.state == "failed"


def test_retrying_by_id_says_what_could_not_be_done_and_does_the_rest(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pending, failed = queue.add_task("shop:buy"), queue.add_task("shop:buy")
    fail(database_url, failed.id)
    assert main(["retry", pending.id, failed.id]) == 1
    assert pending.id in capsys.readouterr().err
    assert (failed.state, failed.row().requeues) == ("enqueued", 1)


def test_clear_wants_a_yes(queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    queue.add_task("shop:buy")
    queue.options(delay=3600).add_task("shop:buy")
    done = queue.add_task("shop:buy")
    fail(database_url, done.id)
    assert main(["clear"]) == 2
    assert len(queue.find()) == 3
    assert main(["clear", "--yes"]) == 0
    assert queue.find() == [done]


def test_check_wants_a_live_worker(queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 1
    assert "no worker" in capsys.readouterr().err
    execute(database_url, "INSERT INTO queued_task_workers (server_name) VALUES ('here') RETURNING 1")
    assert main(["check"]) == 0


def test_check_says_that_the_database_cannot_be_reached(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QUEUE_DATABASE_URL", f"postgresql://nobody@/none?host={tmp_path}")
    assert main(["check"]) == 1
    assert capsys.readouterr().err.startswith("queuedtask: error:")


def test_config_has_sources_and_hides_passwords(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUEUE_DATABASE_URL", "postgresql://ann:s3cret@db.example/shop")
    monkeypatch.setenv("QUEUE_MAX_RETRIES", "7")
    shown = call_json(capsys, "config")
    assert shown["max_retries"] == {"value": 7, "source": "environment"}
    assert shown["polling_interval"] == {"value": 2, "source": "default"}
    assert "s3cret" not in call(capsys, "config")


def test_logs_are_printed_in_their_order(queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    ref = queue.add_task("shop:buy")
    for message in ("first", "second"):
        execute(
            database_url,
            "INSERT INTO queued_task_logs (queued_task_id, message) VALUES (%s, %s) RETURNING 1",
            (ref.id, message),
        )
    out = call(capsys, "logs", ref.id)
    assert out.index("first") < out.index("second")
    lines = [json.loads(line) for line in call(capsys, "logs", ref.id, "--json").splitlines()]
    assert [line["message"] for line in lines] == ["first", "second"]


def test_the_schema_is_checked_printed_and_made(
    empty_database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUEUE_DATABASE_URL", empty_database_url)
    assert main(["db", "upgrade", "--check"]) == 1
    capsys.readouterr()
    script = call(capsys, "db", "upgrade", "--sql")
    assert "CREATE TABLE IF NOT EXISTS queued_tasks" in script
    assert main(["db", "upgrade"]) == 0
    assert main(["db", "upgrade", "--check"]) == 0


def test_a_demo_of_a_directory_ends_with_a_summary_and_names_what_could_not_be_read(
    queue: Queue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.py").write_text("def one(): pass\ndef two(): pass\n")
    (tmp_path / "bad.py").write_text("def (\n")
    (tmp_path / "text.txt").write_text("a\nb\n")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "left_out.py").write_text("x")
    out = call(capsys, "demo", str(tmp_path))
    assert "none lost" in out
    assert {ref.state for ref in queue.find()} == {"done"}
    results = {Path(ref.row().args[2:-2]).name: ref.result for ref in queue.find()}
    assert set(results) == {"good.py", "bad.py", "text.txt"}
    assert results["text.txt"]["lines"] == 2
