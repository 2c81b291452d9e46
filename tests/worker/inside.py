"""Workers in a thread of the test's own process, for tests that look inside."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers import execute, wait_until
from queuedtask import Queue, TaskRef
from queuedtask.worker.manager import Manager

sys.path.insert(0, str(Path(__file__).parent))
import worker_jobs as jobs

FINAL = ("done", "failed", "cancelled", "stopped")


@contextmanager
def working(queue: Queue, **settings: object) -> Iterator[Manager]:
    """Run a worker in a thread beside the block; what the thread raises is raised at the block's end."""
    for name, value in {"max_workers": 4, "fallback_polling_interval": 3600.0, **settings}.items():
        setattr(queue.config, name, value)
    manager = Manager(queue)
    manager.start()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            manager.run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="manager")
    thread.start()
    try:
        yield manager
    finally:
        jobs.released.set()
        manager.stop(5)
        thread.join(30)
        assert not thread.is_alive()
        assert not raised, raised


@pytest.fixture(autouse=True)
def fresh_event() -> None:
    jobs.released.clear()


def ended(ref: TaskRef, state: str = "done", timeout: float = 10.0) -> TaskRef:
    wait_until(lambda: ref.state in FINAL, timeout, message=f"{ref} ends")
    assert ref.state == state, ref.error
    return ref


def attempts(queue: Queue, ref: TaskRef) -> list[tuple[object, ...]]:
    assert queue.config.database_url
    return execute(
        queue.config.database_url,
        "SELECT attempt, outcome, error_type FROM queued_task_attempts WHERE queued_task_id = %s ORDER BY id",
        (ref.id,),
    )
