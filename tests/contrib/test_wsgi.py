"""The middleware: what a task that is added during a request knows of it, and what is left behind in the thread."""

import io
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest

from queuedtask import Queue, clear_context, get_context, set_context
from queuedtask.cli.logs import _TextFormatter
from queuedtask.contrib.wsgi import TaskContextMiddleware
from queuedtask.run.attempt import TaskFields

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
import wsgi_jobs
from inside import ended, fresh_event, working

__all__ = ["fresh_event"]  # a fixture

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    clear_context()
    yield
    assert get_context() == {}


def answering(work: Callable[[], object]) -> App:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        work()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    return app


def streaming(work: Callable[[], object], closed: Callable[[], object] = lambda: None) -> App:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])

        def body() -> Iterator[bytes]:
            try:
                for _ in range(3):
                    work()
                    yield b"."
            finally:
                closed()

        return body()

    return app


class Response:
    def __init__(self, app: App, headers: Mapping[str, str] = MappingProxyType({}), **environ: Any) -> None:
        setup_testing_defaults(environ)
        environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
        self.environ = environ
        self.headers: dict[str, str] = {}
        self.body: Any = app(environ, self._start)

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        self.headers = dict(headers)
        return lambda data: None


def test_tasks_get_the_request_s_id_and_what_is_extracted(queue: Queue) -> None:
    app = TaskContextMiddleware(
        answering(lambda: refs.append(queue.add_task(wsgi_jobs.log, "hello"))),
        extract=lambda environ: {"tenant": environ["HTTP_HOST"], "browser.name": environ.get("HTTP_USER_AGENT")},
    )
    refs: list[Any] = []
    given = Response(validator(app), {"X-Request-ID": "abc-123", "User-Agent": "lynx"}, QUERY_STRING="")
    assert list(given.body) == [b"done"]
    given.body.close()
    assert given.headers["X-Request-ID"] == given.environ["queuedtask.request_id"] == "abc-123"
    assert refs[0].context == {"tenant": "127.0.0.1", "browser": {"name": "lynx"}, "request_id": "abc-123"}
    assert get_context() == {}
    outside = queue.add_task(wsgi_jobs.log, "hello")
    assert outside.context == {}


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\nb", "é", "\x00", "a\x7f"])
def test_an_id_that_cannot_be_is_replaced(queue: Queue, given: str) -> None:
    seen: list[Any] = []
    app = TaskContextMiddleware(answering(lambda: seen.append(get_context("request_id"))))
    first, second = Response(app, {"X-Request-ID": given}), Response(app, {"X-Request-ID": given})
    assert seen == [first.headers["X-Request-ID"], second.headers["X-Request-ID"]]
    assert len({*seen, given}) == 3


def test_the_longest_id_passes() -> None:
    assert (
        Response(TaskContextMiddleware(answering(int)), {"X-Request-ID": "~" * 128}).headers["X-Request-ID"]
        == "~" * 128
    )


def test_a_header_of_the_application_s_own_stays() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("x-request-id", "mine")])
        return []

    assert Response(TaskContextMiddleware(app)).headers == {"x-request-id": "mine"}


def test_a_streamed_body_has_it_while_it_is_iterated_and_the_thread_not_in_between() -> None:
    seen: list[Any] = []

    def note() -> None:
        seen.append(get_context("request_id"))

    response = Response(TaskContextMiddleware(streaming(note, note)), {"X-Request-ID": "one"})
    for _ in response.body:
        assert get_context() == {}
    assert seen == ["one"] * 4
    response = Response(TaskContextMiddleware(streaming(note, note)), {"X-Request-ID": "two"})
    next(response.body)
    response.body.close()
    assert (seen[4:], get_context()) == (["two"] * 2, {})


def test_a_body_that_is_closed_late_or_never_leaves_nothing_behind() -> None:
    seen: list[Any] = []
    app = TaskContextMiddleware(streaming(lambda: seen.append(get_context("request_id"))))
    late, never = (Response(app, {"X-Request-ID": name}) for name in ("late", "never"))
    next(late.body)
    next(never.body)
    other = Response(TaskContextMiddleware(answering(lambda: seen.append(get_context("request_id")))), {})
    next(late.body)
    late.body.close()
    assert seen == ["late", "never", other.headers["X-Request-ID"], "late"]


def test_an_application_that_raises_leaves_nothing_behind() -> None:
    def fail() -> None:
        set_context("left", True)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        Response(TaskContextMiddleware(answering(fail)))
    assert get_context() == {}
    response = Response(TaskContextMiddleware(streaming(fail)))
    with pytest.raises(ValueError, match="broken"):
        next(response.body)
    assert get_context() == {}
    with pytest.raises(ZeroDivisionError):
        Response(TaskContextMiddleware(answering(int), extract=lambda environ: {"x": 1 / 0}))


def test_what_a_view_sets_or_clears_holds_for_the_rest_of_its_request() -> None:
    seen: list[Any] = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [])
        set_context("user", 7)

        def body() -> Iterator[bytes]:
            seen.append(get_context())
            clear_context()
            yield b""
            seen.append(get_context())
            yield b""

        return body()

    assert len(list(Response(TaskContextMiddleware(app), {"X-Request-ID": "r"}).body)) == 2
    assert seen == [{"user": 7, "request_id": "r"}, {}]


def test_one_middleware_within_another_is_one_request() -> None:
    seen: list[Any] = []
    inner = TaskContextMiddleware(answering(lambda: seen.append(get_context())), extract=lambda environ: {"inner": 1})
    outer = TaskContextMiddleware(inner, extract=lambda environ: {"outer": 2})
    response = Response(outer, {"X-Request-ID": "same"})
    assert seen == [{"outer": 2, "inner": 1, "request_id": "same"}]
    assert response.headers["X-Request-ID"] == "same"
    assert get_context() == {}


def test_what_the_thread_had_before_is_there_afterwards() -> None:
    set_context("job", "nightly")
    seen: list[Any] = []
    response = Response(TaskContextMiddleware(answering(lambda: seen.append(get_context()))))
    assert seen == [{"job": "nightly", "request_id": response.headers["X-Request-ID"]}]
    assert get_context() == {"job": "nightly"}
    clear_context()


def test_lists_and_files_reach_the_server_as_they_are() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [])
        return FileWrapper(io.BytesIO(b"file"))

    assert Response(TaskContextMiddleware(answering(int))).body == [b"done"]
    sent = Response(TaskContextMiddleware(app), **{"wsgi.file_wrapper": FileWrapper})
    assert type(sent.body) is FileWrapper


def test_a_request_inside_a_task_leaves_the_task_s_context_alone(queue: Queue) -> None:
    refs: list[Any] = []
    app = TaskContextMiddleware(answering(lambda: refs.append(queue.add_task(wsgi_jobs.request_inside))))
    Response(app, {"X-Request-ID": "outer"})
    with working(queue):
        ref = ended(refs[0])
    assert ref.context == {"request_id": "outer", "step": "after"}
    (child,) = queue.find(name="wsgi_jobs.log")
    # It was added by the task, and the request was only a part of that.
    assert child.context == {"request_id": "outer"}


def test_the_run_s_log_carries_the_request_s_id(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    refs: list[Any] = []

    def view() -> None:
        refs.append(queue.add_task(wsgi_jobs.log_and_add, "hello"))
        refs.append(queue.options(isolation="process").add_task(wsgi_jobs.log, "alone"))

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(TaskFields())
    handler.setFormatter(_TextFormatter())
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    logging.getLogger().addHandler(handler)
    try:
        Response(TaskContextMiddleware(answering(view)), {"X-Request-ID": "r-1"})
        with working(queue):
            ended(refs[0])
            ended(refs[1], timeout=30)
            (child,) = [ref for ref in queue.find(name="wsgi_jobs.log") if ref != refs[1]]
            ended(child)
            plain = ended(queue.add_task(wsgi_jobs.log, "without"))
    finally:
        logging.getLogger().removeHandler(handler)
    said = stream.getvalue().splitlines()
    assert [line.endswith("wsgi_jobs: [r-1] hello") for line in said if f"{refs[0].id}/1" in line] == [True]
    assert [line.endswith("wsgi_jobs: without") for line in said if f"{plain.id}/1" in line] == [True]
    assert [line.message for ref in (refs[0], child, refs[1], plain) for line in ref.logs()] == [
        "[r-1] hello",
        "[r-1] from its child",
        "[r-1] alone",
        "without",
    ]


def test_records_of_a_request_itself_carry_its_id() -> None:
    record = logging.makeLogRecord({})

    def log() -> None:
        TaskFields().filter(record)

    Response(TaskContextMiddleware(answering(log)), {"X-Request-ID": "r-2"})
    assert (vars(record)["request_id"], vars(record)["task_id"], vars(record)["attempt"]) == ("r-2", None, None)


def test_a_row_whose_context_is_something_else_has_no_request_id(queue: Queue) -> None:
    odd = queue.options(context={"request_id": 5}).add_task(wsgi_jobs.log, "hello")
    nested = queue.options(context={"a": "request_id"}).add_task(wsgi_jobs.log, "hello")
    with working(queue):
        assert [ended(ref).logs()[0].message for ref in (odd, nested)] == ["hello", "hello"]


def test_requests_at_once_keep_to_themselves(queue: Queue) -> None:
    """A race: threads that serve many requests each, with bodies that are read bit by bit."""
    barrier = threading.Barrier(8)
    wrong: list[Any] = []

    def serve(number: int) -> None:
        barrier.wait()
        for n in range(50):
            name = f"{number}-{n}"
            check = lambda name=name: get_context("request_id") == name or wrong.append(name)  # noqa: E731
            response = Response(TaskContextMiddleware(streaming(check, check)), {"X-Request-ID": name})
            for _ in response.body:
                if get_context():
                    wrong.append(name)
            if n % 2:
                response.body.close()

    threads = [threading.Thread(target=serve, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []


class Quiet(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None: ...


def test_over_a_real_server(queue: Queue) -> None:
    from urllib.request import Request, urlopen

    seen: list[Any] = []
    app = validator(TaskContextMiddleware(validator(streaming(lambda: seen.append(get_context("request_id"))))))
    server = make_server("127.0.0.1", 0, app, handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        for name in ("a", "b"):
            with urlopen(Request(url, headers={"X-Request-ID": name}), timeout=10) as answer:
                assert (answer.read(), answer.headers["X-Request-ID"]) == (b"...", name)
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
    assert seen == ["a"] * 3 + ["b"] * 3
