"""Every documented example, run as a user would: added here, worked off by a real worker process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import pytest

from helpers import execute, raw_connection, wait_until
from queuedtask import Config, Queue, __all__
from queuedtask.model import states

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
TESTED = {"shop.py", "retries.py", "idempotency.py", "progress.py", "shielded.py", "transactions.py", "queries.sql"}


@pytest.fixture
def example(database_url: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Import an example with the environment that its reader would have set."""
    monkeypatch.setenv("QUEUE_DATABASE_URL", database_url)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module = __import__(request.param)
    yield module
    module.queue.close()
    del sys.modules[request.param]


def work(database_url: str) -> None:
    environment = {**os.environ, "QUEUE_DATABASE_URL": database_url, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "queuedtask", "worker", "-w", "2", "--burst"]
    ended = subprocess.run(
        command, cwd=EXAMPLES, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == TESTED


@pytest.mark.parametrize("example", ["shop"], indirect=True)
def test_shop(example: ModuleType, database_url: str) -> None:
    ref = example.queue.add_task(example.send_receipt, 7)
    work(database_url)
    assert ref.result == "receipt-7.pdf"
    assert ref.context == {"receipt": {"sent": True}}
    assert [line.message for line in ref.logs()] == ["sending the receipt of order 7"]


@pytest.mark.parametrize("example", ["retries"], indirect=True)
def test_retries(example: ModuleType, database_url: str) -> None:
    paid, busy, missing = example.add_some()
    work(database_url)
    assert paid.result == "paid"
    row = busy.row()
    assert (row.state, row.failures, row.error_message) == ("waiting", 1, "attempt 1: the line is engaged")
    assert row.date_scheduled is not None
    assert 50 < (row.date_scheduled - row.date_enqueued).total_seconds() < 120
    assert missing.state == "waiting"
    execute(database_url, "UPDATE queued_tasks SET date_scheduled = now() WHERE id = %s RETURNING 1", (missing.id,))
    work(database_url)
    assert (missing.state, missing.row().error_message) == ("cancelled", "there is no such order")


@pytest.mark.parametrize("example", ["idempotency"], indirect=True)
def test_idempotency(example: ModuleType, database_url: str, tmp_path: Path) -> None:
    ref = example.queue.add_task(example.charge, str(tmp_path / "ledger"), "ann", 500)
    work(database_url)
    assert ref.result == "charged"
    ref.retry()
    work(database_url)
    assert (ref.result, ref.row().attempt) == ("had been charged already", 2)


@pytest.mark.parametrize("example", ["progress"], indirect=True)
def test_progress(example: ModuleType, database_url: str) -> None:
    ref = example.queue.options(context={"progress": {"rows": 1500}}).add_task(example.import_rows, 3000)
    work(database_url)
    assert (ref.result, ref.context) == (3000, {"progress": {"rows": 3000}})
    assert [line.message for line in ref.logs()] == ["at row 2000 of 3000"]


@pytest.mark.parametrize("example", ["shielded"], indirect=True)
def test_shielded(example: ModuleType, database_url: str, tmp_path: Path) -> None:
    connection = raw_connection(database_url)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE orders (day text, cents int)")
        cursor.execute("CREATE TABLE closed_days (day text PRIMARY KEY, cents int)")
        cursor.execute("INSERT INTO orders VALUES ('2026-03-01', 500), ('2026-03-01', 250), ('2026-03-02', 1)")
    connection.close()
    ref = example.queue.add_task(example.close_day, str(tmp_path), "2026-03-01")
    work(database_url)
    assert ref.result == 750
    ref.retry()
    work(database_url)
    assert (ref.result, ref.row().attempt) == (750, 2)
    assert execute(database_url, "SELECT * FROM closed_days") == [("2026-03-01", 750)]
    report = (tmp_path / "2026-03-01.txt").read_bytes()
    assert report == b"2026-03-01: 7.50\n"
    assert (tmp_path / "2026-03-01.sha256").read_text() == sha256(report).hexdigest()


@pytest.mark.parametrize("example", ["transactions"], indirect=True)
def test_transactions(example: ModuleType, database_url: str) -> None:
    execute(database_url, "CREATE TABLE orders (id int, cents int)")
    example.place_order(7, 500)
    with pytest.raises(ValueError, match="costs something"):
        example.place_order(8, 0)
    assert execute(database_url, "SELECT id FROM orders") == [(7,)]
    refs = example.send_all_receipts([1, 2])
    work(database_url)
    assert [ref.result for ref in refs] == ["receipt-1.pdf", "receipt-2.pdf"]
    assert execute(database_url, "SELECT args::text FROM queued_tasks ORDER BY id") == [("[7]",), ("[1]",), ("[2]",)]
    example.engine.dispose()


def test_queries(queue: Queue, database_url: str) -> None:
    queue.add_task("shop:send_receipt", 7)
    text = (EXAMPLES / "queries.sql").read_text()
    connection = raw_connection(database_url)
    with connection.cursor() as cursor:
        for query in filter(str.strip, text.split(";")):
            cursor.execute(query)
    connection.close()


def test_the_queries_that_people_have_run_as_they_stand(queue: Queue, database_url: str) -> None:
    parent, child = queue.add_task("shop:a"), queue.add_task("shop:b")
    connection = raw_connection(database_url)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE queued_tasks SET parent_task = %s WHERE id = %s", (parent.id, child.id))
        cursor.execute(
            "SELECT id, name, state, date_enqueued, date_started, date_done, parent_task FROM queued_tasks "
            "ORDER BY date_enqueued DESC LIMIT 50"
        )
        assert cursor.rowcount == 2
        cursor.execute(
            "SELECT qt.name, qtl.type, qtl.message, qtl.date_created FROM queued_task_logs qtl "
            "JOIN queued_tasks qt ON qtl.queued_task_id = qt.id ORDER BY qtl.date_created DESC LIMIT 100"
        )
        cursor.execute(
            "SELECT server_name, max_workers, active_workers, idle_workers, is_running, last_heartbeat "
            "FROM queued_task_workers WHERE is_running = true"
        )
        cursor.execute(
            "WITH RECURSIVE hierarchy AS (SELECT id, name, parent_task, 1 AS level, ARRAY[id] AS path "
            "FROM queued_tasks WHERE parent_task IS NULL UNION ALL SELECT t.id, t.name, t.parent_task, h.level + 1, "
            "h.path || t.id FROM queued_tasks t JOIN hierarchy h ON t.parent_task = h.id) "
            "SELECT level, repeat('  ', level - 1) || name, id, path FROM hierarchy ORDER BY path"
        )
        assert [(row[0], row[1]) for row in cursor.fetchall()] == [(1, "shop.a"), (2, "  shop.b")]
        cursor.execute("SELECT state, count(*) FROM queued_tasks GROUP BY state")
        assert cursor.fetchall() == [("enqueued", 2)]
        cursor.execute(
            "SELECT name, error_message FROM queued_tasks "
            "WHERE state = 'failed' AND date_done > NOW() - INTERVAL '1 hour'"
        )
        for name, where in (("state", "state"), ("date_enqueued", "date_enqueued"), ("parent", "parent_task")):
            cursor.execute(f"CREATE INDEX idx_queued_tasks_{name} ON queued_tasks({where})")
    connection.close()


def test_every_command_setting_and_public_name_is_documented() -> None:
    from queuedtask.cli.parser import build_parser

    api = (ROOT / "docs" / "reference" / "api.rst").read_text()
    assert [name for name in __all__ if name not in api] == []
    # The pages of commands and settings are generated; what they are generated from must say something.
    assert [setting.name for setting in Config.settings() if not setting.help] == []
    commands = build_parser().format_help()
    for command in ("worker", "status", "stats", "servers", "tasks", "show", "logs", "retry", "clear", "check"):
        assert command in commands


def test_the_documented_life_cycle_is_that_of_the_code() -> None:
    def diagram(text: str) -> list[str]:
        (drawn,) = [block for block in text.split("\n\n") if "──release──" in block]
        return [line.strip() for line in drawn.splitlines()]

    drawn = diagram((ROOT / "docs" / "lifecycle.rst").read_text())
    assert drawn == diagram(states.__doc__ or "")
    of_attempts = [edge.name for edge in states.EDGES if states.DOING in edge.sources]
    assert [name for name in of_attempts if name not in "\n".join(drawn)] == []


def test_a_worker_shows_its_listening_connection(queue: Queue, database_url: str) -> None:
    environment = {**os.environ, "QUEUE_DATABASE_URL": database_url, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-m", "queuedtask", "worker"], env=environment, cwd=EXAMPLES)
    try:
        wait_until(queue.workers, 20)
        found = execute(database_url, "SELECT * FROM pg_stat_activity WHERE query LIKE '%LISTEN%'")
        assert len(found) >= 2  # the worker's, and this query itself
    finally:
        process.terminate()
        process.wait(20)
