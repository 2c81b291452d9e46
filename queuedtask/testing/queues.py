"""The application's own Queue on a test's database, and travelling in time there."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from queuedtask.db import travel as times
from queuedtask.db.callers import cursor_on
from queuedtask.model import options
from queuedtask.taskqueue import Queue


@contextmanager
def queue_on(queue: Queue, url: str) -> Iterator[Queue]:
    """Put a Queue of the application on another database while the block runs; the same object, for all threads.

    All that uses it works there: what modules have imported, ``.delay()`` of its functions, its hooks and schedules, a
    worker that is started in the block. Settings that are assigned in the block hold in it only. Of Flask's extension
    all applications are put there, those that it gets in the block as well; it forgets these after it.
    """
    with queue._moved_to(url):
        yield queue


def travel(queue: Queue, seconds: float | timedelta, connection: object = None) -> None:
    """Let so many seconds pass, for all that stands in the database: a delay or a retry that is due by then can run.

    The clocks stay; the times in the rows are moved back: those of all tasks (added, scheduled, begun, ended), of their
    failed attempts and their log lines, and the last and next ticks of schedules. What a channel with a rate has
    started longer ago than that is forgotten. Heartbeats of workers and what Python holds stay as they are.

    ``connection``: the transaction of the test, for what is not committed; by default a framework's own.
    """
    passed = options.seconds("seconds", seconds)
    if connection is None:
        connection = queue._default_connection()
    if connection is not None:
        times.travel(cursor_on(connection), passed)
    else:
        with queue.database.transaction() as cursor:
            times.travel(cursor, passed)
