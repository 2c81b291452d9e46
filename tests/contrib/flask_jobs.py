"""Flask applications and their tasks, for tests: a factory whose extensions stand in their own module, as is usual."""

import os
import time
from typing import Any

from flask import Flask, Response, current_app, g, has_app_context, has_request_context
from flask_sqlalchemy import SQLAlchemy

from queuedtask import current_task, set_context
from queuedtask.contrib.flask import QueuedTask

db = SQLAlchemy()
queue = QueuedTask()
shared = QueuedTask(db=db)

contexts: list[Any] = []


@queue.task(max_retries=0)
def look() -> list[Any]:
    """Tell in which context the task runs, and that nothing is left of an earlier one."""
    seen = g.get("seen")
    g.seen = True
    return [has_app_context(), has_request_context(), current_app.name, seen]


@queue.task(max_retries=0)
def fail() -> None:
    raise ValueError(current_app.name)


async def look_async() -> list[Any]:
    return [current_app.name]


@queue.task()
def add_another() -> str:
    return queue.add_task(look).id


@shared.task(max_retries=0)
def add_in_session(commit: bool) -> None:
    shared.add_task(look)
    if commit:
        db.session.commit()


@queue.cron("0 0 1 1 *", name="yearly")
def yearly() -> None: ...


def note(text: str) -> None:
    set_context("note", text)


def create_app(**config: Any) -> Flask:
    """What FLASK_APP names: its database comes from the environment."""
    app = Flask("factory-made")
    app.config.from_mapping(SECRET_KEY="x", **config)
    queue.init_app(app)

    @app.get("/")
    def index() -> Response:
        return Response(queue.add_task(look).id)

    @app.cli.command("wait")
    def wait() -> None:
        time.sleep(2.5)

    if slots := os.environ.get("SLOTS"):
        queue.start_worker(int(slots))
    return app


def broken_app() -> Flask:
    raise AttributeError("this is the application's own mistake")


def without_queue() -> Flask:
    return Flask("plain")


def tell_task() -> int:
    return current_task().attempt
