"""Drain no-op tasks with one worker of four slots, on durable defaults: tasks per second.

The tasks are there before the worker starts. The clock runs from the first byte that a task leaves to the moment when
no row is pending any more, so start-up does not count.
"""

import time

from harness import Bench, arguments, bench, report, wait_for


def drain(b: Bench, tasks: int) -> float:
    """Drain so many tasks once and return the rate."""
    b.reset()
    sink = b.sink()
    with b.queue.database.transaction() as cursor:
        cursor.execute(
            "INSERT INTO queued_tasks (function, name, args) "
            "SELECT 'jobs:noop', 'noop', jsonb_build_array(%s::text) FROM generate_series(1, %s)",
            (str(sink), tasks),
        )
    b.vacuum()
    with b.worker():
        wait_for(lambda: sink.stat().st_size > 0, interval=0.001)
        started, already = time.perf_counter(), sink.stat().st_size
        wait_for(lambda: sink.stat().st_size >= tasks)
        wait_for(lambda: b.count("state IN ('enqueued', 'doing')") == 0)
        rate = (tasks - already) / (time.perf_counter() - started)
    assert b.count("state = 'done' AND attempt = 1") == tasks
    assert sink.stat().st_size == tasks
    return rate


def main() -> None:
    options = arguments(__doc__, tasks=20_000, runs=5)
    with bench() as b:
        rates = [drain(b, options.tasks) for _ in range(options.runs)]
    report(f"drain of {options.tasks:,} no-op tasks", rates, "tasks/s")


if __name__ == "__main__":
    main()
