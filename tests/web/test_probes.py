"""The WSGI application of the probes, without a server."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from queuedtask import Queue
from queuedtask.errors import DatabaseUnavailable, QueuedTaskError
from queuedtask.web import probes
from queuedtask.web.probes import Probes, Tree


def ask(application: Any, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "SCRIPT_NAME": "/at", "PATH_INFO": path, "QUERY_STRING": ""}
    setup_testing_defaults(environ)
    answered: list[Any] = []
    body = validator(application)(environ, lambda status, headers, *_: answered.append((status, headers)))
    with closing(body):  # type: ignore[type-var]
        content = b"".join(body)
    ((status, headers),) = answered
    return int(status.split()[0]), dict(headers), content


class Asked:
    """Stands for a Queue: ``health`` is given or raised."""

    def __init__(self, health: Any) -> None:
        self._health = health

    def health(self) -> Any:
        if isinstance(self._health, Exception):
            raise self._health
        return self._health


def probes_of(health: Any, tree: Any = None) -> Probes:
    return Probes(lambda: Asked(health), tree)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(("status", "code"), [("healthy", 200), ("degraded", 200), ("unhealthy", 503)])
def test_healthz_is_the_queue_s_health_and_degraded_is_good_enough(status: str, code: int) -> None:
    health = {"status": status, "reason": None, "error": None, "workers": 1}
    answered, headers, body = ask(probes_of(health), "/healthz")
    assert (answered, json.loads(body)) == (code, health)
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == "no-store"


def test_healthz_of_a_real_queue_without_workers(queue: Queue) -> None:
    answered, _, body = ask(Probes(lambda: queue), "/healthz")
    assert (answered, json.loads(body)["reason"]) == (503, "no_active_workers")


@pytest.mark.parametrize("error", [QueuedTaskError("not there yet"), DatabaseUnavailable("away"), ValueError("odd")])
@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
def test_a_queue_that_cannot_be_asked_is_said_to_be_unavailable(error: Exception, path: str) -> None:
    def queue() -> Queue:
        raise error

    if path == "/metrics":
        pytest.importorskip("queuedtask.contrib.prometheus")
    answered, _, body = ask(Probes(queue), path)
    assert answered == 503
    assert str(error) in body.decode()


def test_head_has_the_headers_of_get_and_no_body() -> None:
    application = probes_of({"status": "healthy"})
    _, of_get, body = ask(application, "/healthz")
    assert body
    assert ask(application, "/healthz", "HEAD") == (200, of_get, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_refused(method: str) -> None:
    answered, headers, _ = ask(probes_of({}), "/healthz", method)
    assert (answered, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/", "", "/healthz/", "/live", "/ready", "/../healthz", "/hé"])
def test_an_unknown_path_is_told_what_there_is(path: str) -> None:
    answered, _, body = ask(probes_of({}), path.encode().decode("latin-1"))
    assert (answered, body) == (404, b"There are: /healthz, /metrics\n")


@pytest.mark.parametrize(
    ("tree", "live", "ready"),
    [
        (Tree([], []), 200, 200),
        (Tree([], ["shutting down"]), 200, 503),
        (Tree(["process 7 has not answered for 40 s"], []), 503, 503),
    ],
)
def test_a_tree_is_live_without_problems_and_ready_without_shortcomings_too(tree: Tree, live: int, ready: int) -> None:
    application = probes_of({}, lambda: tree)
    for path, expected in (("/live", live), ("/ready", ready)):
        answered, _, body = ask(application, path)
        assert answered == expected
        assert set(json.loads(body)["reasons"]) <= {*tree.problems, *tree.shortcomings}
        assert bool(json.loads(body)["reasons"]) == (expected == 503)


def test_metrics_are_what_a_scraper_reads(queue: Queue) -> None:
    exposed = pytest.importorskip("queuedtask.contrib.prometheus")
    parser = pytest.importorskip("prometheus_client.parser")
    answered, headers, body = ask(Probes(lambda: queue), "/metrics")
    assert (answered, headers["Content-Type"]) == (200, exposed.CONTENT_TYPE)
    names = {family.name for family in parser.text_string_to_metric_families(body.decode())}
    assert "queuedtask_pending_tasks" in names


def test_without_prometheus_client_metrics_say_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "queuedtask.contrib.prometheus", None)
    answered, _, body = ask(probes_of({}), "/metrics")
    assert answered == 501
    assert "queuedtask[prometheus]" in body.decode()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_those_who_hang_on_the_database_do_not_take_all_threads(gate: threading.Event) -> None:
    entered = threading.Semaphore(0)

    def queue() -> Queue:
        entered.release()
        gate.wait(30)
        raise QueuedTaskError("too late")

    application = Probes(queue, lambda: Tree([], []))
    asking = [threading.Thread(target=ask, args=(application, "/healthz")) for _ in range(probes.MOST_AT_ONCE)]
    for each in asking:
        each.start()
        assert entered.acquire(timeout=10)
    answered, _, body = ask(application, "/healthz")
    assert (answered, "others are asking" in body.decode()) == (503, True)
    assert ask(application, "/live")[0] == 200
    gate.set()
    for each in asking:
        each.join(10)
    assert "too late" in ask(application, "/healthz")[2].decode()
