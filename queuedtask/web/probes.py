"""A WSGI application for those who watch: /healthz and /metrics, and /live and /ready beside a tree of workers."""

import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from queuedtask.errors import QueuedTaskError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from queuedtask.taskqueue import Queue

logger = logging.getLogger("queuedtask.web")

MOST_AT_ONCE: Final = 4
"""Requests that may ask the database at the same time; those beyond are refused, so that the others get through."""


class Tree(NamedTuple):
    """How a supervisor and its children are."""

    problems: list[str]
    """What is wrong though all processes live."""
    shortcomings: list[str]
    """Why nothing new can be taken on."""


class Answer(NamedTuple):
    """What is sent back."""

    status: str
    content_type: str
    body: bytes

    @classmethod
    def of_json(cls, status: str, value: object) -> "Answer":
        """Return one in JSON."""
        return cls(status, "application/json", json.dumps(value, default=str).encode() + b"\n")

    @classmethod
    def of_text(cls, status: str, text: str) -> "Answer":
        """Return one for people."""
        return cls(status, "text/plain; charset=utf-8", text.encode() + b"\n")


OK: Final = "200 OK"
NOT_IMPLEMENTED: Final = "501 Not Implemented"
UNAVAILABLE: Final = "503 Service Unavailable"


class Probes:
    """The application; mount it anywhere. It reads, and never imports what tasks need.

    ``queue`` returns the Queue to ask about, and may raise; ``tree`` how the processes are, and without it there is
    neither /live nor /ready.
    """

    def __init__(self, queue: "Callable[[], Queue]", tree: Callable[[], Tree] | None = None) -> None:
        self._queue = queue
        self._tree = tree
        self._asking = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._routes: Mapping[str, Callable[[], Answer]] = {"/healthz": self._health, "/metrics": self._metrics}
        if tree is not None:
            self._routes = {**self._routes, "/live": self._live, "/ready": self._ready}

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer a request."""
        method = environ["REQUEST_METHOD"]
        route = self._routes.get(environ.get("PATH_INFO", ""))
        more = []
        if route is None:
            answer = Answer.of_text("404 Not Found", f"There are: {', '.join(sorted(self._routes))}")
        elif method not in ("GET", "HEAD"):
            answer = Answer.of_text("405 Method Not Allowed", "GET or HEAD")
            more = [("Allow", "GET, HEAD")]
        else:
            answer = route()
        headers = [("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body)))]
        start_response(answer.status, [*headers, ("Cache-Control", "no-store"), *more])
        return [] if method == "HEAD" else [answer.body]

    def _health(self) -> Answer:
        return self._asked(self._ask_for_health, lambda error: Answer.of_json(UNAVAILABLE, _unhealthy(error)))

    def _ask_for_health(self) -> Answer:
        health = self._queue().health()
        return Answer.of_json(UNAVAILABLE if health["status"] == "unhealthy" else OK, health)

    def _metrics(self) -> Answer:
        try:
            from queuedtask.contrib.prometheus import CONTENT_TYPE, exposition
        except ImportError as error:
            return Answer.of_text(
                NOT_IMPLEMENTED, f"metrics need prometheus-client: pip install 'queuedtask[prometheus]' ({error})"
            )
        return self._asked(
            lambda: Answer(OK, CONTENT_TYPE, exposition(self._queue())),
            lambda error: Answer.of_text(UNAVAILABLE, error),
        )

    def _asked(self, ask: Callable[[], Answer], failed: Callable[[str], Answer]) -> Answer:
        if not self._asking.acquire(blocking=False):
            return failed(f"{MOST_AT_ONCE} others are asking at this moment")
        try:
            return ask()
        except QueuedTaskError as error:
            return failed(str(error))
        except Exception as error:
            logger.exception("a probe has failed")
            return failed(f"{type(error).__name__}: {error}")
        finally:
            self._asking.release()

    def _live(self) -> Answer:
        return self._of_tree("live", lambda tree: tree.problems)

    def _ready(self) -> Answer:
        return self._of_tree("ready", lambda tree: tree.problems + tree.shortcomings)

    def _of_tree(self, what: str, against: Callable[[Tree], list[str]]) -> Answer:
        reasons = against(self._tree()) if self._tree is not None else []
        body: dict[str, Any] = {"status": f"not {what}" if reasons else what, "reasons": reasons}
        return Answer.of_json(UNAVAILABLE if reasons else OK, body)


def _unhealthy(error: str) -> dict[str, Any]:
    """Return what :meth:`Queue.health` might, about a queue that could not be asked."""
    return {"status": "unhealthy", "reason": "not_asked", "error": error, "workers": None}
