"""Tasks for the tests of the middleware."""

from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.util import setup_testing_defaults

from queuedtask import current_task, getLogger, set_context
from queuedtask.contrib.wsgi import TaskContextMiddleware

logger = getLogger(__name__)


def log(text: str) -> None:
    logger.info(text)


def log_and_add(text: str) -> None:
    logger.info(text)
    current_task().ref._queue.add_task(log, "from its child")


def request_inside() -> None:
    queue = current_task().ref._queue
    set_context("step", "before")

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [])
        set_context("step", "after")
        queue.add_task(log, "hello")
        return [b""]

    environ: dict[str, Any] = {"HTTP_X_REQUEST_ID": "inner"}
    setup_testing_defaults(environ)
    headers: list[Any] = []
    list(TaskContextMiddleware(app)(environ, lambda status, given, *rest: headers.extend(given) or print))
    assert headers == [("X-Request-ID", "inner")]
