"""How long health() and metrics() take beside a million rows, in the shapes that could make them slow.

``cold`` is the first call after a restart of the server with nothing of its files in memory, a new connection included;
``first`` the first one of a new connection after that; ``warm`` the median of the others. Milliseconds, by the clock.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from harness import Bench, arguments, bench

from queuedtask import Queue
from queuedtask.db.embedded import EmbeddedServer
from queuedtask.model.task import first_id

# How many of each state; they are added in this order.
SHAPES = {
    "all done": {"done": 1.0},
    "all enqueued": {"enqueued": 1.0},
    "all failed today": {"failed": 1.0},
    "100,000 enqueued behind what is done": {"done": 0.9, "enqueued": 0.1},
    "a third of each": {"done": 0.34, "failed": 0.33, "enqueued": 0.33},
}

ADD = """
INSERT INTO queued_tasks (id, function, name, args, state, channel, date_enqueued, date_started, date_done, attempt)
SELECT (substr(%(first)s, 1, 8) || lpad(to_hex(n), 8, '0') || md5(n::text))::char(32)::uuid,
    'jobs:noop', 'shop.tasks.task_' || n %% 20, jsonb_build_array(n), %(state)s,
    CASE WHEN n %% 10 = 0 THEN 'mail' ELSE 'default' END, clock_timestamp(),
    CASE WHEN %(ended)s THEN clock_timestamp() END, CASE WHEN %(ended)s THEN clock_timestamp() END, 1
FROM generate_series(%(start)s + 1, %(start)s + %(count)s) AS n
"""


def fill(b: Bench, shape: dict[str, float], rows: int) -> None:
    """Make a table of this shape, as autovacuum has not seen it yet."""
    first = first_id(time.time()).replace("-", "")
    with b.queue.database.transaction() as cursor:
        cursor.execute("TRUNCATE queued_tasks CASCADE")
        # The next runs should meet the same table as the first.
        cursor.execute("ALTER TABLE queued_tasks SET (autovacuum_enabled = off)")
        start = 0
        for state, share in shape.items():
            count, ended = round(share * rows), state != "enqueued"
            cursor.execute(ADD, {"first": first, "state": state, "ended": ended, "start": start, "count": count})
            start += count


def forget(b: Bench) -> None:
    """Restart the server, and have the system forget its files."""
    b.queue.close()
    server = EmbeddedServer(b.directory / "server")
    server.stop()
    for path in Path(server.directory).rglob("*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    server.ensure_running(None)


def timed(work: Callable[[], object]) -> float:
    """Return how long a call takes, in milliseconds."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def measure(b: Bench, what: str, calls: int) -> str:
    """Measure one of the two."""
    forget(b)
    figures = {}
    for kind in ("cold", "first"):
        with contextlib.closing(Queue(b.url)) as queue:
            figures[kind] = timed(getattr(queue, what))
    warm = [timed(getattr(b.queue, what)) for _ in range(calls + 1)][1:]
    figures |= {"warm": statistics.median(warm), "worst": max(warm)}
    return ", ".join(f"{kind} {milliseconds:.1f}" for kind, milliseconds in figures.items())


def main() -> None:
    options = arguments(__doc__, rows=1_000_000, calls=15)
    with bench() as b:
        for name, shape in SHAPES.items():
            fill(b, shape, options.rows)
            for statistics_ in ("never analysed", "analysed"):
                if statistics_ == "analysed":
                    b.vacuum()
                found = b.queue.metrics()
                marks = ", ".join(sorted(found.estimated)) or "nothing"
                print(f"{options.rows:,} rows, {name}, {statistics_}; estimated: {marks}", flush=True)
                for what in ("health", "metrics"):
                    print(f"    {what}: {measure(b, what, options.calls)}", flush=True)


if __name__ == "__main__":
    main()
