"""The commands that read and control, as programs and people call them."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import execute
from queuedtask import Queue, TaskRef
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


READING = [["status"], ["metrics"], ["stats"], ["servers"], ["tasks"], ["config"]]


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


def test_health_exits_with_1_only_when_it_is_unhealthy(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["health"]) == 1
    said = capsys.readouterr()
    assert said.out.split() == ["status", "unhealthy", "reason", "no_active_workers", "workers", "0"]
    assert said.err == "queuedtask: error: no worker has reported within its lease\n"
    assert json.loads(call(capsys, "health", "--json", code=1)) == queue.health()
    execute(database_url, "INSERT INTO queued_task_workers (server_name) VALUES ('here') RETURNING 1")
    assert call(capsys, "health").split() == ["status", "healthy", "workers", "1"]
    queue.pause()
    assert main(["health"]) == 0
    assert capsys.readouterr().err == "queuedtask: warning: all channels are paused\n"


def test_health_of_a_database_that_cannot_be_reached_is_a_document_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QUEUE_DATABASE_URL", f"postgresql://nobody@/none?host={tmp_path}")
    found = json.loads(call(capsys, "health", "--json", code=1))
    assert (found["status"], found["reason"], found["workers"]) == ("unhealthy", "database_unreachable", None)


def test_metrics_has_a_line_for_all_for_each_channel_and_for_each_name(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    queue.add_task("shop:buy", 7)
    fail(database_url, queue.options(channel="mail").add_task("shop:sell").id)
    lines = [line.split() for line in call(capsys, "metrics").splitlines()]
    assert lines[1][:5] == ["all", "1", "0", "1", "0"]
    assert [line[:6] for line in lines[2:6]] == [
        ["channel", "default", "1", "0", "0", "0"],
        ["channel", "mail", "0", "0", "1", "0"],
        ["name", "shop.buy", "1", "0", "0", "0"],
        ["name", "shop.sell", "0", "0", "1", "0"],
    ]
    document = call_json(capsys, "metrics")
    assert (document["pending_tasks"], document["by_channel"]["mail"]["failed_tasks_today"]) == (1, 1)


def test_estimates_are_marked(
    database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(database_url, "INSERT INTO queued_tasks (name) SELECT 'many' FROM generate_series(1, 100001) RETURNING 1")
    printed = call(capsys, "metrics")
    assert re.search(r"^all +~1\d{5} +0 +0 +0 +~", printed, re.MULTILINE)
    assert "~ is an estimate" in printed


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


# ---------------------------------------------------------------------------------- channels: pause, resume and config


def is_paused(url: str) -> dict[str, bool]:
    return dict(execute(url, "SELECT name, is_paused FROM queued_task_channels"))


def test_pause_and_resume_a_channel_and_everything(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "pause", "mail") == "the channel mail is paused; what runs goes on\n"
    assert call(capsys, "pause") == "everything is paused; what runs goes on\n"
    assert is_paused(database_url) == {"mail": True, "*": True}
    assert main(["resume"]) == 0
    assert "still paused by name: mail" in capsys.readouterr().err
    assert is_paused(database_url) == {"mail": True}
    assert call(capsys, "resume", "mail") == "the channel mail is resumed\n"
    assert is_paused(database_url) == {}
    call(capsys, "pause")
    assert main(["resume", "mail"]) == 0
    assert "everything is still paused" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["pause", "*"], ["resume", ""], ["pause", "x" * 65], ["worker", "-q", "mail,"]])
def test_what_is_no_channel_s_name_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 2
    assert "is no channel's name" in capsys.readouterr().err


def test_config_shows_where_the_rows_differ_from_the_setting(
    database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUEUE_CHANNELS", "mail:2,api:4@10/min,same:1")
    execute(
        database_url,
        "INSERT INTO queued_task_channels (name, max_running, max_starts, per_seconds, is_paused) VALUES "
        "('mail', 3, NULL, NULL, true), ('same', 1, NULL, NULL, false), ('slow', NULL, 5, 7, false), "
        "('nothing', NULL, NULL, NULL, false)",
    )
    channels = call_json(capsys, "config")["channels"]
    assert (channels["value"], channels["source"]) == ("mail:2,api:4@10/min,same:1", "environment")
    assert channels["differences"] == {
        "api": {"configured": "4@10/min", "database": None},
        "mail": {"configured": "2", "database": "3 paused"},
        "slow": {"configured": None, "database": "@5/7s"},
    }
    shown = call(capsys, "config")
    assert "3 paused" in shown
    assert "same" not in shown.split("queued_task_channels")[1]


@pytest.mark.parametrize("url", ["postgresql://nobody@127.0.0.1:1/none", None])
def test_config_needs_no_database(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str | None
) -> None:
    if url is None:
        monkeypatch.delenv("QUEUE_DATABASE_URL")
        monkeypatch.setenv("QUEUE_EMBEDDED_DIR", str(tmp_path / "none"))
    else:
        monkeypatch.setenv("QUEUE_DATABASE_URL", url)
    assert call_json(capsys, "config")["channels"]["differences"] is None
    assert "max_workers" in call(capsys, "config")
    assert not (tmp_path / "none").exists()


# ------------------------------------------------------------------------------------------------------ cancel and stop

NOBODY = "019a0000-0000-7000-8000-000000000000"
ENDING = pytest.mark.parametrize(("command", "state"), [("cancel", "cancelled"), ("stop", "stopped")])


def doing(url: str, ref: TaskRef) -> TaskRef:
    execute(url, "UPDATE queued_tasks SET state = 'doing', claimed_by = 1, attempt = 1 WHERE id = %s", (ref.id,))
    return ref


@ENDING
def test_what_fits_is_ended_in_silence_and_the_rest_left_alone(
    queue: Queue, capsys: pytest.CaptureFixture[str], command: str, state: str
) -> None:
    mail = queue.options(channel="mail").add_task("shop:buy")
    later = queue.options(channel="mail", delay=60).add_task("shop:buy")
    other = queue.add_task("shop:buy")
    assert call(capsys, command, "--channel", "mail", "--state", "waiting") == ""
    assert [ref.state for ref in (mail, later, other)] == ["enqueued", state, "enqueued"]
    assert call(capsys, command, "--all", "--limit", "1", "-v") == f"1 task {state}, or told to end\n"
    assert [ref.state for ref in (mail, later, other)] == [state, state, "enqueued"]
    assert call(capsys, command, "--name", "shop.buy", "--since", "1h") == ""
    assert other.state == state


@ENDING
def test_an_order_for_a_running_task_stands_in_its_row(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str], command: str, state: str
) -> None:
    ref = doing(database_url, queue.add_task("shop:buy"))
    call(capsys, command, ref.id)
    asked = f"SELECT state, {command}_requested IS NOT NULL FROM queued_tasks"
    assert execute(database_url, asked) == [("doing", True)]
    assert "told to end" in call(capsys, "show", ref.id)
    assert call_json(capsys, "show", ref.id)[f"{command}_requested"].endswith("Z")


@ENDING
def test_named_tasks_are_ended_one_by_one_and_those_that_cannot_be_are_named(
    queue: Queue, database_url: str, capsys: pytest.CaptureFixture[str], command: str, state: str
) -> None:
    pending, failed, missing = queue.add_task("shop:buy"), queue.add_task("shop:buy"), NOBODY
    fail(database_url, failed.id)
    for option in (["--dry-run"], []):
        assert main([command, failed.id, missing, pending.id, *option]) == 1
        said = capsys.readouterr()
        assert f"task {failed.id} is failed" in said.err
        assert missing in said.err
        assert (pending.id in said.out) is bool(option)
        assert pending.state == ("enqueued" if option else state)
    assert failed.state == "failed"


@ENDING
def test_a_dry_run_of_it_lists_and_changes_nothing(
    queue: Queue, capsys: pytest.CaptureFixture[str], command: str, state: str
) -> None:
    refs = [queue.add_task("shop:buy", n) for n in range(3)]
    said = call(capsys, command, "--all", "--limit", "2", "--dry-run")
    assert [ref.id in said for ref in refs] == [True, True, False]
    assert f"2 tasks would be {state}" in said
    assert {ref.state for ref in refs} == {"enqueued"}


@ENDING
@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["--limit", "3"],
        ["--dry-run"],
        ["--state", "done"],
        ["not-an-id"],
        [NOBODY, "--all"],
        [NOBODY, "--name", "shop.buy"],
    ],
    ids=" ".join,
)
def test_nothing_is_ended_by_mistake(
    queue: Queue, capsys: pytest.CaptureFixture[str], command: str, state: str, wrong: list[str]
) -> None:
    ref = queue.add_task("shop:buy")
    assert main([command, *wrong]) == 2
    assert capsys.readouterr().err
    assert ref.state == "enqueued"


def test_retry_takes_a_channel_and_another_end(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    mail, other = queue.options(channel="mail").add_task("shop:buy"), queue.add_task("shop:buy")
    call(capsys, "cancel", "--all")
    call(capsys, "retry")
    assert {mail.state, other.state} == {"cancelled"}
    call(capsys, "retry", "--state", "cancelled", "--channel", "mail")
    assert (mail.state, other.state) == ("enqueued", "cancelled")
    assert main(["retry", other.id, "--channel", "mail"]) == 2
    assert main(["retry", "--state", "doing"]) == 2


def test_json_is_json_in_whatever_encoding(queue: Queue) -> None:
    queue.options(name="gr\N{LATIN SMALL LETTER U WITH DIAERESIS}ner task \N{CLOUD}").add_task("a:b")
    for encoding in ("ascii", "latin-1", "utf-8"):
        ended = subprocess.run(
            [sys.executable, "-m", "queuedtask", "tasks", "--json"],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            timeout=60,
            check=True,
        )
        (task,) = json.loads(ended.stdout.decode(encoding))
        assert task["name"] == "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}ner task \N{CLOUD}"


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [
        (">/dev/full", 1, "queuedtask: error: the output cannot be written: No space left on device\n"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
    ],
)
def test_output_that_goes_nowhere(queue: Queue, output: str, code: int, said: str) -> None:
    line = f"{shlex.quote(sys.executable)} -m queuedtask tasks --json {output}"
    ended = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (code, said)
