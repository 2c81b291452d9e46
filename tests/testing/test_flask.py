"""The kit on a Flask extension, which is the queue of whatever application is meant."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

from helpers import execute
from queuedtask.contrib.flask import NoApplication, QueuedTask
from queuedtask.testing import assert_enqueued, drain, inline, queue_on

sys.path.insert(0, str(Path(__file__).parent))
import kit_jobs as jobs

NOWHERE = "postgresql://nobody@127.0.0.1:1/production"


@pytest.fixture(autouse=True)
def fresh_jobs() -> Iterator[None]:
    jobs.seen.clear()
    yield
    jobs.seen.clear()


@pytest.fixture
def extension() -> QueuedTask:
    return QueuedTask()


def make_app(extension: QueuedTask, name: str = "shop", **config: Any) -> Flask:
    app = Flask(name)
    app.config.from_mapping({"QUEUE_DATABASE_URL": NOWHERE} | config)
    extension.init_app(app)
    return app


def count(url: str) -> int:
    return int(execute(url, "SELECT count(*) FROM queued_tasks")[0][0])


@pytest.mark.parametrize("is_early", [True, False], ids=["made before the block", "made in the block"])
@pytest.mark.parametrize("in_context", [True, False], ids=["in a context", "outside of one"])
def test_the_extension_s_applications_work_on_the_test_s_database_while_the_block_runs(
    extension: QueuedTask, database_url: str, is_early: bool, in_context: bool
) -> None:
    app = make_app(extension) if is_early else None
    with queue_on(extension, database_url) as given:
        assert given is extension
        app = app or make_app(extension)
        own = app.extensions["queuedtask"]

        def use() -> None:
            extension.add_task(jobs.note, "by the extension")
            own.add_task(jobs.note, "by the application")
            assert_enqueued(extension, jobs.note, "by the application")
            assert [each.state for each in drain(extension)] == ["done", "done"]

        if in_context:
            with app.app_context():
                use()
        else:
            use()
        assert (jobs.seen, count(database_url)) == (["by the extension", "by the application"], 2)
    assert own.config.database_url == NOWHERE.replace("postgresql:", "postgresql+psycopg2:")


def test_each_block_has_applications_of_its_own(extension: QueuedTask, database_url: str) -> None:
    for _ in range(2):  # as two tests do
        with queue_on(extension, database_url):
            app = make_app(extension)
            assert extension.queue is app.extensions["queuedtask"]
    with pytest.raises(NoApplication, match="no application"):
        extension.queue  # noqa: B018
    make_app(extension, "one")
    with queue_on(extension, database_url):
        make_app(extension, "two")
        with pytest.raises(NoApplication, match="several"):
            extension.queue  # noqa: B018


def test_hooks_and_contexts_are_the_application_s(extension: QueuedTask, database_url: str) -> None:
    with queue_on(extension, database_url):
        app = make_app(extension)
        hooked = []
        app.extensions["queuedtask"].on_pre_run(lambda task: hooked.append(task.name))
        extension.add_task(jobs.name_of_the_application)
        assert [each.result for each in drain(extension)] == ["shop"]
        assert hooked == ["kit_jobs.name_of_the_application"]


@pytest.mark.parametrize("in_context", [True, False], ids=["in a context", "outside of one"])
def test_inline_on_the_extension_counts_for_its_applications(extension: QueuedTask, in_context: bool) -> None:
    app = make_app(extension)
    own = app.extensions["queuedtask"]
    with inline(extension) as ran:
        if in_context:
            with app.app_context():
                assert extension.add_task(jobs.name_of_the_application).result == "shop"
        else:
            assert extension.add_task(jobs.name_of_the_application).result == "shop"
        own.add_task(jobs.note, "by the application")
        with extension.batch() as batch:
            batch.add_task(jobs.note, "in a batch")
    assert jobs.seen == ["by the application", "in a batch"]
    assert [each.state for each in ran] == ["done"] * 3
    assert (extension._detour, own._detour) == (None, None)


def test_inline_on_one_application_s_queue_leaves_the_others_alone(extension: QueuedTask, database_url: str) -> None:
    here, there = make_app(extension), make_app(extension, "other", QUEUE_DATABASE_URL=database_url)
    with inline(here.extensions["queuedtask"]) as ran:
        here.extensions["queuedtask"].add_task(jobs.note, "here")
        there.extensions["queuedtask"].add_task(jobs.note, "there")
    assert (jobs.seen, len(ran), count(database_url)) == (["here"], 1, 1)
    there.extensions["queuedtask"].close()


def test_inline_leaves_no_worry_about_a_session_that_nobody_commits(caplog: pytest.LogCaptureFixture) -> None:
    db = SQLAlchemy()
    extension = QueuedTask(db=db)
    app = Flask("shop")
    app.config.from_mapping(QUEUE_DATABASE_URL=NOWHERE, SQLALCHEMY_DATABASE_URI="sqlite://")
    db.init_app(app)
    extension.init_app(app)
    with inline(extension) as ran, app.app_context():
        db.session.execute(text("SELECT 1"))  # in a transaction, as a view is that has looked something up
        extension.add_task(jobs.note, "one")
        with extension.batch() as batch:
            batch.add_task(jobs.note, "two")
    assert ([each.result for each in ran], caplog.text) == (["one", "two"], "")
