"""Flask: settings, which application, contexts, Flask-SQLAlchemy's session, the command line."""

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, abort
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import make_url, text

from helpers import execute, wait_until
from queuedtask import ConfigError, NotCommitted, Queue
from queuedtask.contrib import flask as contrib
from queuedtask.contrib.flask import FlaskQueue, NoApplication, QueuedTask

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
import flask_jobs
from inside import ended, fresh_event, working
from servers import program

__all__ = ["fresh_event"]  # a fixture


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("QUEUE_", "DATABASE_URL", "FLASK_", "SQLALCHEMY_")):
            monkeypatch.delenv(name)


def make_app(url: str | None = None, name: str = "shop", **config: Any) -> Flask:
    app = Flask(name)
    app.config.from_mapping({"QUEUE_DATABASE_URL": url} | config)
    return app


@pytest.fixture
def app(database_url: str) -> Flask:
    return make_app(database_url)


@pytest.fixture
def extension(app: Flask) -> Iterator[QueuedTask]:
    extension = QueuedTask(app)
    yield extension
    extension.close()


# ------------------------------------------------------------------------------------------------------- configuration


def test_settings_come_from_the_application_s_upper_case_configuration(app: Flask) -> None:
    app.config.update(QUEUE_MAX_WORKERS=7, QUEUE_TASK_TIMEOUT="12.5", QUEUE_REDACT=["token"], QUEUE_RETENTION_DAYS="")
    config = QueuedTask(app).config
    assert (config.max_workers, config.task_timeout, config.redact, config.retention_days) == (7, 12.5, ("token",), 30)
    assert {config.sources[name] for name in ("max_workers", "database_url")} == {"config"}


def test_the_environment_goes_first(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    app.config.update(QUEUE_MAX_WORKERS=7, QUEUE_MAX_RETRIES=1)
    monkeypatch.setenv("QUEUE_MAX_WORKERS", "9")
    config = QueuedTask(app).config
    assert (config.max_workers, config.max_retries) == (9, 1)


def test_a_setting_that_cannot_be_is_refused(app: Flask) -> None:
    app.config["QUEUE_MAX_WORKERS"] = "many"
    with pytest.raises(ConfigError, match=r"the settings of the application 'shop': max_workers='many': must be"):
        QueuedTask(app)
    assert "queuedtask" not in app.extensions


def test_an_unknown_setting_is_named(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    app.config["QUEUE_MAX_WORKER"] = 3
    QueuedTask(app)
    assert "app.config['QUEUE_MAX_WORKER'] is no setting; did you mean QUEUE_MAX_WORKERS?" in caplog.text


@pytest.mark.parametrize(
    ("config", "environment", "expected"),
    [
        ({}, {}, None),
        ({"SQLALCHEMY_DATABASE_URI": "postgresql://s/db"}, {}, "s"),
        ({"SQLALCHEMY_DATABASE_URI": "postgresql+psycopg://s/db"}, {}, "s"),
        ({"SQLALCHEMY_DATABASE_URI": make_url("postgresql://u:p@s/db")}, {}, "s"),
        ({"SQLALCHEMY_DATABASE_URI": {"url": "postgresql://s/db"}}, {}, "s"),
        ({"SQLALCHEMY_DATABASE_URI": "sqlite://"}, {}, None),
        ({"SQLALCHEMY_DATABASE_URI": None}, {}, None),
        ({"SQLALCHEMY_DATABASE_URI": "sqlite://"}, {"DATABASE_URL": "postgresql://e/db"}, "e"),
        ({"SQLALCHEMY_DATABASE_URI": "postgresql://s/db"}, {"DATABASE_URL": "postgresql://e/db"}, "s"),
        ({"SQLALCHEMY_DATABASE_URI": "postgresql://s/db"}, {"DATABASE_URL": "mysql://e/db"}, "s"),
        ({"SQLALCHEMY_DATABASE_URI": "postgresql://s/db"}, {"QUEUE_DATABASE_URL": "postgresql://e/db"}, "e"),
        ({"QUEUE_DATABASE_URL": "postgresql://q/db"}, {"DATABASE_URL": "postgresql://e/db"}, "q"),
        ({"QUEUE_DATABASE_URL": "postgresql://q/db", "SQLALCHEMY_DATABASE_URI": "postgresql://s/db"}, {}, "q"),
        ({"DATABASE_URL": "postgresql://d/db", "SQLALCHEMY_DATABASE_URI": "postgresql://s/db"}, {}, "d"),
    ],
)
def test_which_database_it_is(
    config: dict[str, Any], environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    url = QueuedTask(make_app(None, **config)).config.database_url
    assert (None if url is None else make_url(url).host) == expected
    assert url is None or url.startswith("postgresql+psycopg2://")


# --------------------------------------------------------------------------------------------------- which application


def test_the_extension_is_a_queue_and_the_application_has_its_own(app: Flask, extension: QueuedTask) -> None:
    assert isinstance(extension, Queue)
    assert isinstance(app.extensions["queuedtask"], FlaskQueue)
    assert extension.queue is app.extensions["queuedtask"]
    with app.app_context():
        refs = [
            extension.add_task(flask_jobs.note, "a"),
            extension.options(priority=3).add_task(flask_jobs.note, "b"),
            app.extensions["queuedtask"].add_task(flask_jobs.note, "c"),
            *extension.add_range_tasks("flask_jobs:note", [1, 2]),
        ]
        with extension.batch() as batch:
            refs.append(batch.add_task(flask_jobs.note, "d"))
    assert [ref.state for ref in refs] == ["enqueued"] * 5
    assert len(extension.find()) == 5
    assert extension.metrics().pending_tasks == 5
    assert extension.health()["reason"] == "no_active_workers"
    assert extension.get(refs[1].id).row().priority == 3
    with pytest.raises(AttributeError, match="no_such_thing"):
        extension.no_such_thing  # noqa: B018


def test_declaring_needs_no_application_and_counts_for_all(database_url: str) -> None:
    extension = QueuedTask()
    seen: list[Any] = []

    extension.on_post_create(lambda ref: seen.append(("early", ref.id)))
    urgent = extension.options(priority=10)
    first, second = make_app(database_url, "one"), make_app(database_url, "two")
    extension.init_app(first)
    extension.init_app(second)
    extension.on_post_create(lambda ref: seen.append(("late", ref.id)))
    first.extensions["queuedtask"].on_post_create(lambda ref: seen.append(("first's", ref.id)))
    with second.app_context():
        ref = urgent.add_task(flask_jobs.note, "x")
    assert seen == [("early", ref.id), ("late", ref.id)]
    with first.app_context():
        other = extension.add_task(flask_jobs.note, "x")
    assert [name for name, id_ in seen if id_ == other.id] == ["early", "late", "first's"]
    assert ref.row().priority == 10
    assert "yearly" in flask_jobs.queue.declarations


def test_without_an_application_it_says_so() -> None:
    extension = QueuedTask()
    with pytest.raises(NoApplication, match=r"no application has been given to init_app\(\)"):
        extension.add_task(flask_jobs.note, "x")
    with pytest.raises(NoApplication, match="flask queuedtask worker"):
        extension.find()
    with pytest.raises(NoApplication, match="flask queuedtask worker"):
        extension.health()
    assert not hasattr(extension, "whatever")
    repr(extension)


def test_what_is_set_before_there_is_an_application_is_its_default(database_url: str) -> None:
    extension = QueuedTask()
    extension.config.max_workers = 11
    extension.config.max_retries = 1
    extension.init_app(make_app(database_url, QUEUE_MAX_RETRIES=2))
    assert (extension.config.max_workers, extension.config.max_retries) == (11, 2)


def test_with_several_the_context_decides(database_url: str, empty_database_url: str) -> None:
    extension = QueuedTask()
    first, second, foreign = make_app(database_url, "one"), make_app(empty_database_url, "two"), Flask("foreign")
    extension.init_app(first)
    assert extension.config.database_url == first.extensions["queuedtask"].config.database_url
    extension.init_app(second)
    for app in (first, second):
        with app.app_context():
            assert extension.queue is app.extensions["queuedtask"]
            assert extension.config is extension.queue.config
    with pytest.raises(NoApplication, match="several applications"):
        extension.add_task(flask_jobs.note, "x")
    with foreign.app_context(), pytest.raises(NoApplication, match="'foreign' has not been given"):
        extension.add_task(flask_jobs.note, "x")
    with first.app_context():
        ref = extension.add_task(flask_jobs.note, "x")
        found = extension.find()
    # A ref knows where it belongs, whatever the context is now.
    with second.app_context():
        assert [ref.state, *(each.state for each in found)] == ["enqueued"] * 2


def test_an_application_has_one_queue(app: Flask, extension: QueuedTask) -> None:
    for again in (extension, QueuedTask()):
        with pytest.raises(RuntimeError, match="'shop' has a QueuedTask already"):
            again.init_app(app)


def test_an_application_that_nobody_has_any_more_goes(database_url: str) -> None:
    extension = QueuedTask()
    app = make_app(database_url)
    extension.init_app(app)
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None
    with pytest.raises(NoApplication):
        extension.find()
    another = make_app(database_url)
    extension.init_app(another)
    assert extension.find() == []  # the only one there is


# ------------------------------------------------------------------------------------------------------------ contexts


def test_each_attempt_has_a_fresh_context_of_its_application(database_url: str) -> None:
    extension = flask_jobs.queue
    first, second = make_app(database_url, "one"), make_app(database_url, "two")
    extension.init_app(first)
    extension.init_app(second)
    torn_down: list[Any] = []
    second.teardown_appcontext(torn_down.append)
    with working(second.extensions["queuedtask"], max_workers=1), first.app_context():
        refs = [extension.add_task(flask_jobs.look) for _ in range(3)]
        for ref in refs:
            # The application is the one that the worker works for, whichever has added it.
            assert ended(ref).result == [True, False, "two", None]
        assert ended(extension.add_task(flask_jobs.look_async)).result == ["two"]
        assert torn_down == [None] * 4
        assert ended(extension.add_task(flask_jobs.fail), "failed").error == "ValueError: two"
        wait_until(lambda: len(torn_down) == 5)
        # As after a request: what is torn down knows of the error, and a session is rolled back.
        assert isinstance(torn_down[4], ValueError)
        inner = ended(extension.add_task(flask_jobs.add_another)).result
        assert ended(extension.get(inner)).result == [True, False, "two", None]
    for app in (first, second):
        app.extensions["queuedtask"].close()


def test_a_worker_that_was_given_the_extension_itself(app: Flask, extension: QueuedTask) -> None:
    seen: list[Any] = []
    extension.on_post_run(lambda task, result, error: seen.append(result))
    with working(extension):
        assert ended(extension.add_task(flask_jobs.look)).result == [True, False, "shop", None]
    assert seen == [[True, False, "shop", None]]


def test_slots_beside_the_application(app: Flask, extension: QueuedTask) -> None:
    worker = extension.start_worker(slots=1)
    assert extension.queue.start_worker(1) is worker
    assert ended(extension.add_task(flask_jobs.look)).result == [True, False, "shop", None]
    worker.stop()


# ------------------------------------------------------------------------------------------ Flask-SQLAlchemy's session


@pytest.fixture
def shop(database_url: str) -> Iterator[tuple[Flask, QueuedTask, SQLAlchemy]]:
    db, app = SQLAlchemy(), make_app(None, SQLALCHEMY_DATABASE_URI=database_url)
    db.init_app(app)
    extension = QueuedTask(app, db=db)
    with app.app_context():
        db.session.execute(text("CREATE TABLE orders (id int)"))
        db.session.commit()
    yield app, extension, db
    extension.close()
    with app.app_context():
        db.engine.dispose()


Shop = tuple[Flask, QueuedTask, SQLAlchemy]


def test_tasks_are_added_in_the_session_s_transaction(shop: Shop, database_url: str) -> None:
    app, extension, db = shop
    count = "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM queued_tasks)"
    with app.app_context():
        db.session.execute(text("INSERT INTO orders VALUES (1)"))
        ref = extension.add_task(flask_jobs.note, "a")
        assert execute(database_url, count) == [(0, 0)]
        with pytest.raises(NotCommitted):
            ref.wait(1)
        db.session.rollback()
        assert execute(database_url, count) == [(0, 0)]
        db.session.execute(text("INSERT INTO orders VALUES (1)"))
        extension.add_task(flask_jobs.note, "a")
        with extension.batch() as batch:
            batch.add_task(flask_jobs.note, "b")
            batch.options(unique_key="k").add_task(flask_jobs.note, "c")
        extension.options(unique_key="k").add_task(flask_jobs.note, "d")
        extension.add_range_tasks("flask_jobs:note", [1, 2])
        assert execute(database_url, count) == [(0, 0)]
        db.session.commit()
    assert execute(database_url, count) == [(1, 4)]
    extension.add_task(flask_jobs.note, "at once, outside of any context")
    assert execute(database_url, count) == [(1, 5)]


def test_a_view_that_fails_leaves_no_task_and_one_that_commits_does(shop: Shop, database_url: str) -> None:
    app, extension, db = shop

    @app.post("/<what>")
    def order(what: str) -> str:
        extension.add_task(flask_jobs.note, what)
        if what == "raise":
            raise ValueError
        if what == "abort":
            db.session.rollback()
            abort(409)
        db.session.commit()
        return what

    client = app.test_client()
    assert [client.post(f"/{what}").status_code for what in ("raise", "abort", "fine")] == [500, 409, 200]
    assert execute(database_url, "SELECT args FROM queued_tasks") == [(["fine"],)]


def test_tasks_that_vanish_because_nobody_commits_are_missed(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    app, extension, db = shop
    with app.app_context():
        extension.add_task(flask_jobs.note, "a")
        db.session.commit()
    with app.app_context():
        extension.add_task(flask_jobs.note, "a")
        db.session.rollback()
    with app.app_context():
        with db.session.begin_nested():
            extension.add_task(flask_jobs.note, "a")
        db.session.commit()
    with pytest.raises(ZeroDivisionError), app.app_context():
        extension.add_task(flask_jobs.note, 1 / (len(extension.add_task(flask_jobs.note, "a").id) - 36))
    assert caplog.text == ""
    with app.app_context(), extension.batch() as batch:
        batch.add_task(flask_jobs.note, "a")
    assert "neither committed nor rolled back: they vanish with it" in caplog.text
    assert len(extension.find()) == 2


def test_another_connection_can_be_given_all_the_same(shop: Shop, database_url: str) -> None:
    app, extension, db = shop
    with app.app_context(), db.engine.begin() as connection:
        extension.options(connection=connection).add_task(flask_jobs.note, "a")
    assert len(extension.find()) == 1
    with app.app_context():
        db.session.rollback()


def test_a_task_adds_in_the_session_of_its_own_context(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(None, SQLALCHEMY_DATABASE_URI=database_url)
    flask_jobs.db.init_app(app)
    flask_jobs.shared.init_app(app)
    queue = app.extensions["queuedtask"]
    with working(queue):
        committed, forgotten = (queue.add_task(flask_jobs.add_in_session, commit) for commit in (True, False))
        ended(committed)
        ended(forgotten)
        wait_until(lambda: "neither committed" in caplog.text)
    assert len(queue.find(name="flask_jobs.look")) == 1
    with app.app_context():
        flask_jobs.db.engine.dispose()
    queue.close()


def test_sessions_of_requests_at_once_keep_to_themselves(shop: Shop, database_url: str) -> None:
    """A race: half of the requests commit, and exactly their tasks are there."""
    app, extension, db = shop
    barrier = threading.Barrier(8)

    @app.post("/<int:number>")
    def order(number: int) -> str:
        extension.add_task(flask_jobs.note, number)
        db.session.commit() if number % 2 else db.session.rollback()
        return ""

    def work(first: int) -> None:
        client = app.test_client()
        barrier.wait()
        for number in range(first, 200, 8):
            client.post(f"/{number}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = execute(database_url, "SELECT (args->>0)::int FROM queued_tasks ORDER BY 1")
    assert [number for (number,) in found] == list(range(1, 200, 2))


# -------------------------------------------------------------------------------------------------------- command line


def flask(url: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    here = Path(__file__).parent
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QUEUE_", "FLASK_"))}
    paths = [str(here.parents[1]), *sys.path]
    return subprocess.run(
        [sys.executable, "-m", "flask", *arguments],
        cwd=here,
        env={**kept, "QUEUE_DATABASE_URL": url, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_the_command_line_passes_everything_on(queue: Queue, database_url: str) -> None:
    ref = queue.add_task("flask_jobs:look")
    bad = queue.options(max_retries=0).add_task("flask_jobs:fail")
    said = flask(database_url, "--app", "flask_jobs", "queuedtask", "tasks", "--json")
    assert said.returncode == 0, said.stderr
    assert {row["id"] for row in json.loads(said.stdout)} == {ref.id, bad.id}
    worked = flask(database_url, "--app", "flask_jobs:create_app()", "queuedtask", "worker", "--burst", "-w", "1")
    assert worked.returncode == 0, worked.stderr
    assert ref.result == [True, False, "factory-made", None]
    assert bad.error == "ValueError: factory-made"
    worked = flask(database_url, "queuedtask", "retry", bad.id, FLASK_APP="flask_jobs")
    assert (worked.returncode, bad.state) == (0, "enqueued")
    assert flask(database_url, "--app", "flask_jobs", "queuedtask", "show", ref.id.replace("0", "1")).returncode == 1
    assert flask(database_url, "--app", "flask_jobs", "queuedtask", "worker", "--wrong").returncode == 2
    helped = flask(database_url, "--app", "flask_jobs", "queuedtask", "--help")
    assert (helped.returncode, "worker" in helped.stdout) == (0, True)
    # An isolated attempt has the application, too.
    alone = queue.options(isolation="process").add_task("flask_jobs:look")
    worked = flask(database_url, "queuedtask", "worker", "--burst", FLASK_APP="flask_jobs")
    assert alone.result == [True, False, "factory-made", None], worked.stderr


@pytest.mark.slow
def test_what_cannot_be_loaded_is_an_error_with_its_reason(database_url: str) -> None:
    worker = ("-m", "queuedtask", "worker", "--burst", "-a", contrib.APPLICATION)

    def run(application: str) -> tuple[int, str]:
        with program(database_url, *worker, FLASK_APP=application) as process:
            return process.process.wait(30), "\n".join(process.log)

    code, said = run("flask_jobs:broken_app")
    assert (code, "this is the application's own mistake" in said, "Traceback" in said) == (1, True, True)
    code, said = run("flask_jobs:without_queue")
    assert (code, "the application 'plain' has no queue" in said) == (1, True)
    code, said = run("no_such_module")
    assert (code, "Could not import 'no_such_module'" in said) == (1, True)


def test_the_worker_is_a_clean_process_and_takes_its_signals(queue: Queue, database_url: str) -> None:
    with program(
        database_url, "-m", "flask", "--app", "flask_jobs", "queuedtask", "worker", "-w", "1", SLOTS=1
    ) as process:
        wait_until(queue.workers, 30)
        command = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
        assert command[1:6] == ["-m", "queuedtask", "worker", "--app", contrib.APPLICATION]
        loaded = Path(f"/proc/{process.pid}/maps").read_text()
        assert "psycopg2" in loaded  # the heart's
        assert "_speedups" not in loaded  # markupsafe's, of Flask
        ref = queue.add_task("flask_jobs:look")
        assert ended(ref).result == [True, False, "factory-made", None]
        # What create_app() starts beside a web process is not started inside a worker.
        assert not wait_until(lambda: len(queue.workers()) == 1) or process.stop(signal.SIGTERM) == 0
    assert len(execute(database_url, "SELECT 1 FROM queued_task_workers")) == 1


@pytest.mark.slow
def test_under_the_reloader_the_process_that_serves_runs_tasks_and_no_other(queue: Queue, database_url: str) -> None:
    served = ("-m", "flask", "--app", "flask_jobs", "run", "--debug", "--port", "0")
    with program(database_url, *served, SLOTS=1) as server:
        (ref,) = [queue.get(server.get())]
        assert ended(ref, timeout=20).result == [True, False, "factory-made", None]
        (pid,) = [row.pid for row in queue.workers()]
        assert pid != server.pid
        ended(queue.options(delay=1.5).add_task("flask_jobs:look"))  # longer than another one would need to begin
        assert [row.pid for row in queue.workers()] == [pid]


@pytest.mark.slow
def test_a_command_that_loads_the_application_runs_no_tasks(queue: Queue, database_url: str) -> None:
    ref = queue.add_task("flask_jobs:look")
    assert flask(database_url, "--app", "flask_jobs", "wait", SLOTS="1").returncode == 0
    assert (ref.state, execute(database_url, "SELECT 1 FROM queued_task_workers")) == ("enqueued", [])


def test_the_module_has_nothing_else_lazily() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        contrib.nothing  # noqa: B018


def test_in_a_context_the_module_s_queue_is_the_current_application_s(app: Flask, extension: QueuedTask) -> None:
    with app.app_context():
        assert contrib.queue is extension.queue


def test_commands_in_the_test_runner(app: Flask, extension: QueuedTask, capsys: pytest.CaptureFixture[str]) -> None:
    ref = extension.add_task(flask_jobs.look)
    with capsys.disabled():
        runner = app.test_cli_runner()
        result = runner.invoke(args=["queuedtask", "tasks", "--json"])
        assert (result.exit_code, ref.id in result.output) == (0, True), result.output
        # It would replace the tests' own process.
        result = runner.invoke(args=["queuedtask", "worker"])
    assert (result.exit_code, "name it, or its factory, with FLASK_APP" in result.output) == (2, True)


def test_logging_is_ours() -> None:
    assert contrib.logger is logging.getLogger("queuedtask.flask")
