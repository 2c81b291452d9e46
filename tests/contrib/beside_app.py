"""A plain WSGI application with worker slots beside it, and programs that fork in other ways."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from queuedtask import Queue, current_task, getLogger
from queuedtask.contrib.wsgi import TaskContextMiddleware

queue = Queue()
logger = getLogger(__name__)


def run(number: int) -> int:
    """Leave a trace: a task that ran twice, or in another's process, shows."""
    with current_task().connection() as connection:
        logger.info("runs")
        connection.exec_driver_sql("INSERT INTO ran VALUES (%s, %s)", (number, os.getpid()))
    return os.getpid()


def nap(seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)
    return "slept"


def _view(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    first, count = (int(part) for part in environ["QUERY_STRING"].split(","))
    for number in range(first, first + count):
        queue.add_task(run, number)
    with queue.database.transaction() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (backend,) = cursor.fetchone()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"pid": os.getpid(), "backend": backend}).encode()]


application = TaskContextMiddleware(_view)

# A connection that is in the pool when a server forks.
if os.environ.get("TOUCH_DATABASE"):
    queue.workers()
if slots := os.environ.get("SLOTS"):
    queue.start_worker(int(slots))


def _wait_for_end(seconds: float = 60.0) -> None:
    time.sleep(seconds)


def main(what: str) -> None:
    """Be a program that forks; the worker has been started already."""
    if what == "forks":
        children = [pid for _ in range(2) if (pid := os.fork())]
        if len(children) < 2:
            _wait_for_end()
            os._exit(0)
    elif what == "forks-later":
        input()
        if not os.fork():
            _wait_for_end()
            os._exit(0)
    elif what == "multiprocessing":
        context = multiprocessing.get_context("fork")
        context.Process(target=_wait_for_end, daemon=True).start()
        subprocess.run(["true"], preexec_fn=lambda: None, check=True)
    elif what == "ends":
        input()
        sys.exit(7)
    sys.stdout.write(f"parent {os.getpid()}\n")
    sys.stdout.flush()
    _wait_for_end()


if __name__ == "__main__":
    main(sys.argv[1])
