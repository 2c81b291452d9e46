"""What families cost: a parent's end with many children, and draining many parents of one child.

The first is the time from the parent's end to the moment when all its children may be claimed; the second the rate of
draining with and without a child that waits for all of them, in turns.
"""

import time

from drain import drain
from harness import Bench, arguments, bench, report, wait_for
from jobs import noop


def fan_out(b: Bench, children: int) -> float:
    """Return the seconds from a parent's end until all its children may be claimed."""
    b.reset()
    sink = str(b.sink())
    with b.queue.batch() as batch:
        parent = batch.add_task(noop, sink)
        for _ in range(children):
            batch.add_task(noop, sink, parent=parent)
    b.vacuum()
    with b.worker():
        wait_for(lambda: b.count("state = 'waiting'") == 0)
        wait_for(lambda: b.count("state <> 'done'") == 0)
    with b.queue.database.transaction() as cursor:
        cursor.execute(
            "SELECT extract(epoch FROM max(t.date_enqueued) - p.date_done)::float FROM queued_tasks p"
            " JOIN queued_tasks t ON t.parent_task = p.id GROUP BY p.date_done"
        )
        return float(cursor.fetchone()[0])


def fan_in(b: Bench, tasks: int) -> float:
    """Drain tasks of which all are parents of one child; return the rate."""
    b.reset()
    sink = b.sink()
    with b.queue.batch() as batch:
        parents = [batch.add_task(noop, str(sink)) for _ in range(tasks)]
        batch.add_task(noop, str(sink), parent=parents)
    b.vacuum()
    with b.worker():
        wait_for(lambda: sink.stat().st_size > 0, interval=0.001)
        started, already = time.perf_counter(), sink.stat().st_size
        wait_for(lambda: sink.stat().st_size >= tasks)
        wait_for(lambda: b.count("state <> 'done'") == 0)
        return (tasks + 1 - already) / (time.perf_counter() - started)


def main() -> None:
    options = arguments(__doc__, tasks=10_000, runs=5)
    with bench() as b:
        report(f"{options.tasks:,} children may be claimed after", [fan_out(b, options.tasks) for _ in range(3)], "s")
        without, with_child = [], []
        for _ in range(options.runs):
            without.append(drain(b, options.tasks))
            with_child.append(fan_in(b, options.tasks))
    report(f"drain of {options.tasks:,} tasks", without, "tasks/s")
    report(f"drain of {options.tasks:,} parents of one child", with_child, "tasks/s")


if __name__ == "__main__":
    main()
