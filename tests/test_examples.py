"""Every documented example, run as a user would: added here, worked off by a real worker process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from helpers import execute, raw_connection, wait_until
from queuedtask import Config, Queue, __all__
from queuedtask.cli.main import main
from queuedtask.db.embedded import EmbeddedServer
from queuedtask.model import states
from queuedtask.testing import travel

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
TESTED = {
    "control.py",
    "django_shop",  # in contrib/django/test_shop.py
    "exactly_once.py",
    "families.py",
    "flask_shop",  # in contrib/test_flask_shop.py
    "hooks.py",
    "idempotency.py",
    "limits.py",
    "monitoring.py",
    "morning.py",
    "observed.py",
    "newsletter.py",
    "local_functions.py",
    "long_work.py",
    "options.py",
    "progress.py",
    "queries.sql",
    "retries.py",
    "serve_site.py",
    "services.py",
    "shielded.py",
    "shop.py",
    "test_shop.py",
    "transactions.py",
    "triggers.sql",
    "unique.py",
}


@pytest.fixture
def example(database_url: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Import an example with the environment that its reader would have set."""
    monkeypatch.setenv("QUEUE_DATABASE_URL", database_url)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module = __import__(request.param)
    yield module
    module.queue.close()
    del sys.modules[request.param]


def work(database_url: str, *arguments: str, directory: Path = EXAMPLES) -> None:
    environment = {**os.environ, "QUEUE_DATABASE_URL": database_url, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "queuedtask", "worker", "-w", "2", "--burst", *arguments]
    ended = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.name != "__pycache__"} == TESTED


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
    fetched, refused, converted = (
        *(example.fetch_rates.delay(url) for url in ("https://rates.example", "http://rates.example")),
        example.convert.delay("a.doc"),
    )
    work(database_url)
    row = fetched.row()
    assert (row.state, row.failures) == ("waiting", 1)
    assert row.date_scheduled is not None
    assert 55 < (row.date_scheduled - row.date_enqueued).total_seconds() < 120
    assert (refused.state, refused.row().failures) == ("failed", 1)
    assert converted.result == "a.doc.pdf"


@pytest.mark.parametrize("example", ["unique"], indirect=True)
def test_unique(example: ModuleType, database_url: str) -> None:
    first, said_first = example.request_report("2026-03")
    second, said_second = example.request_report("2026-03")
    assert (first == second, said_first, said_second) == (True, "on its way", "had been asked for already")
    closing = example.close_month("2026-03")
    with pytest.raises(ValueError, match=f"2026-03 is being closed by task {closing.id}"):
        example.close_month("2026-03")
    saved = [example.save("plan", text) for text in ("a", "ab", "abc")]
    assert [ref.created for ref in saved] == [True, False, False]
    work(database_url)
    assert first.result == "report-2026-03.pdf"
    (rebuilt,) = example.queue.find(name="unique.rebuild_index")
    assert rebuilt.result == "rebuilt: plan was saved"
    (row,) = [ref.row() for ref in example.queue.find(name="unique.notify_followers")]
    assert (row.state, row.args) == ("waiting", '["plan", "abc"]')
    assert example.request_report("2026-03")[0].created


@pytest.mark.parametrize("example", ["morning"], indirect=True)
def test_morning(example: ModuleType, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_APP", "morning")
    work(database_url)
    rows = {row.name: row for row in example.queue.schedules()}
    assert set(rows) == {"morning.morning_report", "sync fast", "sync all"}
    assert rows["morning.morning_report"].timezone == "Europe/Paris"
    ref = example.queue.run_schedule("morning.morning_report", limit=3, dry_run=True)
    other = example.queue.run_schedule("sync fast")
    work(database_url)
    assert ref.result == "the 3 best customers, not sent"
    assert other.result == "orders in sync"
    assert ref.row().timeout == 600


@pytest.mark.parametrize("example", ["monitoring"], indirect=True)
def test_monitoring(example: ModuleType, database_url: str) -> None:
    assert example.alarms() == ["no worker has reported within its lease"]
    example.queue.options(max_retries=0).add_task(example.send_receipt, 7)
    work(database_url)
    execute(database_url, "INSERT INTO queued_task_workers (server_name) VALUES ('here') RETURNING 1")
    assert example.alarms() == []
    assert example.alarms(max_failed=0) == ["monitoring.send_receipt: 1 failed today"]
    example.queue.options(channel="mail").add_task(example.send_receipt, 8)
    assert example.alarms(max_wait=0.0) == ["mail: the oldest of 1 pending tasks waits too long"]
    example.queue.pause()
    assert example.alarms() == ["all channels are paused"]


@pytest.mark.parametrize("example", ["limits"], indirect=True)
def test_limits(example: ModuleType, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_CHANNELS", "mail:2")
    example.stop_mails_for_a_while()
    mails, bookings = example.add_some()
    work(database_url)
    assert {ref.state for ref in mails} == {"enqueued"}
    began = [ref.row().date_started for ref in bookings]
    assert began[:3] == sorted(began[:3])
    assert began[3:] == sorted(began[3:])
    example.queue.resume("mail")
    work(database_url)
    assert mails[0].result == "sent to customer-0@example.com"
    assert {ref.state for ref in mails} == {"done"}
    rows = execute(database_url, "SELECT name, max_running, is_paused FROM queued_task_channels")
    assert rows == [("mail", 2, False)]


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


@pytest.mark.parametrize("example", ["hooks"], indirect=True)
def test_hooks(example: ModuleType, database_url: str) -> None:
    ref = example.handle_request("acme", 7)
    other = example.handle_request("other", 8)
    with pytest.raises(PermissionError):
        example.queue.add_task(example.place_order, 9)
    assert (ref.row().priority, other.row().priority) == (10, 0)
    work(database_url, "-a", "hooks:queue")
    assert (ref.result, other.result) == ("order 7 of acme", "order 8 of other")
    receipts = example.queue.find(state="failed")
    assert sorted((receipt.context["tenant"], receipt.row().priority) for receipt in receipts) == [
        ("acme", 10),
        ("other", 0),
    ]
    assert sorted(line.message for receipt in receipts for line in receipt.logs()) == [
        "hooks:send_receipt failed for acme: ValueError('no such printer')",
        "hooks:send_receipt failed for other: ValueError('no such printer')",
    ]


def test_serve_site(database_url: str) -> None:
    environment = {**os.environ, "QUEUE_DATABASE_URL": database_url, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "queuedtask", "serve", "serve_site:app", "--workers=3", "-a", "serve_site"]
    with subprocess.Popen(
        [*command, "--bind", "127.0.0.1:0"], cwd=EXAMPLES, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            with urlopen(f"{url}/orders", b"7") as response:
                assert response.status == 202
                task_id = response.read().decode().strip()

            def told() -> bytes:
                with urlopen(f"{url}/orders/{task_id}") as response:
                    return bytes(response.read())

            wait_until(lambda: told() == b'done "receipt-7.pdf"\n', 30)
            with pytest.raises(HTTPError, match="404"):
                urlopen(f"{url}/orders/8")
        finally:
            process.terminate()
        assert process.wait(30) == 0


@pytest.mark.parametrize("example", ["services"], indirect=True)
def test_services(example: ModuleType, database_url: str, tmp_path: Path) -> None:
    ref = example.queue.add_task(example.charge, 500)
    work(database_url, "-a", "services:queue", directory=tmp_path)
    assert ref.result == 500
    ref.retry()
    work(database_url, "-a", "services:queue", directory=tmp_path)
    assert ref.result == 1000


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


@pytest.mark.parametrize("example", ["families"], indirect=True)
def test_families(example: ModuleType, database_url: str) -> None:
    _, summed, always = example.order_import(["one", "three"])
    (_, broken), without, after_all = example.order_import(["one", "broken"])
    work(database_url)
    assert (summed.result, always.result) == (8, "cleaned up")
    assert without.error == f"ParentFailed: families.fetch ({broken.id}) ended as failed"
    assert after_all.result == "cleaned up"


@pytest.mark.parametrize("example", ["exactly_once"], indirect=True)
def test_exactly_once(example: ModuleType, database_url: str) -> None:
    execute(database_url, "CREATE TABLE accounts (owner text, cents int)")
    execute(database_url, "INSERT INTO accounts VALUES ('ann', 500), ('bob', 0)")
    paid = example.queue.add_task(example.transfer, "ann", "bob", 300)
    work(database_url)
    refused = example.queue.options(max_retries=0).add_task(example.transfer, "ann", "bob", 300)
    work(database_url)
    assert (paid.result, refused.error) == (200, "ValueError: not enough money")
    assert execute(database_url, "SELECT * FROM accounts ORDER BY owner") == [("ann", 200), ("bob", 300)]


@pytest.mark.parametrize("example", ["local_functions"], indirect=True)
def test_local_functions(example: ModuleType, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_SECRET_KEY", "a-secret")
    example.queue.config.secret_key = "a-secret"
    report, day = example.add_reports("France", 1.2)
    work(database_url)
    assert (report.result, day.result) == ("France: 12.00", "MONDAY")


@pytest.mark.parametrize("example", ["control"], indirect=True)
def test_control(example: ModuleType, database_url: str) -> None:
    with ThreadPoolExecutor() as threads:
        converted = threads.submit(example.convert_now, 3)
        wait_until(lambda: example.queue.find(state="enqueued"))
        work(database_url)
        assert converted.result(20) == "3 pages"
        hurried = threads.submit(example.convert_now, 10**6, 3.0)
        wait_until(lambda: example.queue.find(state="enqueued"))
        work(database_url)
        assert hurried.result(20) == "it takes too long"
    (ref,) = example.queue.find(state="cancelled")
    # It may not have begun by then.
    assert str(ref.error).startswith(("Cancel: called off at page ", "TaskCancelled: "))
    pending = example.queue.add_task(example.convert, 1)
    assert example.call_off_what_was_added_by_mistake() == 1
    assert pending.state == "cancelled"


@pytest.mark.parametrize("example", ["long_work"], indirect=True)
def test_long_work(example: ModuleType, database_url: str) -> None:
    execute(database_url, "CREATE TABLE customers (id int PRIMARY KEY, shop text, indexed int DEFAULT 0)")
    execute(database_url, "INSERT INTO customers SELECT n, 'web' FROM generate_series(1, 30) AS n")
    point = {"done": 12, "total": 30, "last": 12}  # as an attempt would have left it
    ref = example.queue.options(context={"customers": point}).add_task(example.index_customers, "web")
    work(database_url)
    assert ref.result == 30
    assert ref.context["customers"] == {"done": 30, "total": 30, "last": 30, "complete": True}
    assert ref.context["progress"] == {"done": 30, "total": 30, "track": "customers"}
    indexed = "SELECT indexed, count(*) FROM customers GROUP BY indexed ORDER BY indexed"
    assert execute(database_url, indexed) == [(0, 12), (1, 18)]
    refs = example.index_side_by_side(range(1, 31))
    work(database_url)
    assert len(refs) == 1
    assert execute(database_url, indexed) == [(1, 12), (2, 18)]


def test_observed(database_url: str, tmp_path: Path) -> None:
    # In processes of its own: what it sets up is global, and stays.
    paths = os.pathsep.join([str(EXAMPLES), *sys.path])
    environment = {**os.environ, "QUEUE_DATABASE_URL": database_url, "PYTHONPATH": paths}
    environment["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path)

    def said(*arguments: str) -> str:
        ended = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def spans(text: str) -> list[dict[str, Any]]:
        decoder, found, text = json.JSONDecoder(), [], text.strip()
        while text:
            span, end = decoder.raw_decode(text)
            found.append(span)
            text = text[end:].strip()
        return found

    created, placed = spans(said("-c", "import observed; observed.place_order(7)"))
    asked, processed = spans(said("-m", "queuedtask", "worker", "-w", "2", "--burst", "-a", "observed:queue"))
    chain = [placed, created, processed, asked]
    assert [span["name"] for span in chain] == [
        *("place order", "create observed.charge", "process observed.charge", "ask the bank")
    ]
    assert {span["context"]["trace_id"] for span in chain} == {placed["context"]["trace_id"]}
    assert [span["parent_id"] for span in chain[1:]] == [span["context"]["span_id"] for span in chain[:-1]]
    metrics = said("-c", "import observed; print(observed.metrics({}, lambda *said: None)[0].decode())")
    counted = 'queuedtask_attempts_total{channel="default",name="observed.charge",outcome="done"} 1.0'
    assert counted in metrics.splitlines()


@pytest.mark.parametrize("example", ["options"], indirect=True)
def test_options(example: ModuleType, database_url: str) -> None:
    now, tonight, three_at_a_time, nowhere = example.add_some()
    work(database_url)
    assert (now.result, now.row().meta) == ("order 7 for north", '{"source": "web"}')
    assert (tonight.state, tonight.row().priority) == ("waiting", 5)
    assert three_at_a_time.result == "order 9 for None"
    assert (nowhere.state, nowhere.row().attempt, nowhere.error) == ("failed", 1, "BadAddress: -1")


def test_queries(queue: Queue, database_url: str) -> None:
    queue.add_task("shop:send_receipt", 7)
    text = (EXAMPLES / "queries.sql").read_text()
    connection = raw_connection(database_url)
    with connection.cursor() as cursor:
        for query in filter(str.strip, text.split(";")):
            cursor.execute(query)
    connection.close()


def test_triggers(queue: Queue, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_DATABASE_URL", database_url)
    assert main(["db", "functions"]) == 0
    execute(database_url, (EXAMPLES / "triggers.sql").read_text())
    assert len(queue.find(state="waiting")) == 3
    travel(queue, 1)
    work(database_url)
    results = {ref.row().name: ref.result for ref in queue.find(state="done")}
    assert results["Receipt of order 2"] == "receipt-2.pdf"
    # Both were added in one transaction: neither is the newer one.
    assert sorted(ref.result for ref in queue.find(name="shop.send_receipt")) == ["receipt-3.pdf", "receipt-4.pdf"]


@pytest.mark.parametrize(
    ("directory", "file", "passed"),
    [(".", "test_shop.py", 4), ("flask_shop", "test_orders.py", 3)],
    ids=["shop", "Flask shop"],
)
def test_the_tests_of_an_example(directory: str, file: str, passed: int) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLES / directory), *sys.path])}
    environment.pop("PYTEST_ADDOPTS", None)
    options = ["-q", "-p", "queuedtask.testing.plugin", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir=."]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options, file],
        cwd=EXAMPLES / directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, f"{passed} passed" in ended.stdout) == (0, True), ended.stdout


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
    for command in (
        "worker",
        "status",
        "stats",
        "servers",
        "tasks",
        "show",
        "logs",
        "retry",
        "cancel",
        "stop",
        "clear",
        "check",
        "health",
        "metrics",
    ):
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


def test_newsletter(server: EmbeddedServer) -> None:
    environment = {**os.environ, "QUEUE_EMBEDDED_DIR": str(server.directory), "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(*command: str) -> str:
        ended = subprocess.run(
            [sys.executable, *command],
            cwd=EXAMPLES,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    ids = {name: task_id for task_id, name in map(str.split, run("newsletter.py").splitlines())}
    asked, sent = ids["newsletter.ask_printer"], ids["newsletter.send_issue"]
    assert run("newsletter.py", asked) == "READY 0 \n"
    run("-m", "queuedtask", "worker", "-a", "newsletter", "--burst")
    assert run("newsletter.py", asked) == "SUCCESSFUL 2 issue 7 will be printed, said at attempt 2\n"
    assert run("newsletter.py", sent) == "SUCCESSFUL 1 issue 7 for bob@example.org\n"
