"""A WSGI application that the tests of ``serve`` drive; its requests say in files what they have come to."""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from queuedtask import Queue

queue = Queue()


def await_file(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def held(directory: str, name: str) -> str:
    """Say that it has begun, and return when somebody lets it."""
    place = Path(directory)
    (place / f"{name} began").touch()
    await_file(place / f"{name} may end")
    return name


def respond(path: str, given: dict[str, str], body: bytes) -> str:
    match path:
        case "/hello":
            return "hello"
        case "/pid":
            return str(os.getpid())
        case "/echo":
            return str(len(body))
        case "/add":
            return str(queue.add_task(held, given["directory"], "task").id)
        case "/long":
            # It needs a worker to be answered, and adds something at the last moment.
            held(given["directory"], "request")
            answer = queue.add_task(os.path.basename, "/of/a/task").wait(timeout=20)
            late = queue.options(delay=3600).add_task(os.path.basename, "late")
            return f"{answer} {late.id}"
        case "/for-ever":
            Path(given["directory"], "request began").touch()
            time.sleep(3600)
        case "/exit":
            raise SystemExit("no way to treat a server")
        case "/large":
            return "x" * 30_000_000
    return "unknown"


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    given = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    text = respond(environ["PATH_INFO"], given, environ["wsgi.input"].read())
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
    return [text.encode()]


def create_app() -> Any:
    return app


not_an_application = 7
