"""How fast tasks are added: one by one in a transaction each, and in a batch; tasks per second."""

import time

from harness import Bench, arguments, bench, report
from jobs import noop


def one_by_one(b: Bench, tasks: int) -> float:
    """Add tasks one by one and return the rate."""
    b.reset()
    started = time.perf_counter()
    for _ in range(tasks):
        b.queue.add_task(noop, "/dev/null")
    rate = tasks / (time.perf_counter() - started)
    assert b.count("state = 'enqueued'") == tasks
    return rate


def batch(b: Bench, tasks: int) -> float:
    """Add tasks in one batch and return the rate."""
    b.reset()
    started = time.perf_counter()
    with b.queue.batch() as adding:
        for _ in range(tasks):
            adding.add_task(noop, "/dev/null")
    rate = tasks / (time.perf_counter() - started)
    assert b.count("state = 'enqueued'") == tasks
    return rate


def main() -> None:
    options = arguments(__doc__, tasks=50_000, single=2_000, runs=5)
    with bench() as b:
        report("single add_task", [one_by_one(b, options.single) for _ in range(options.runs)], "tasks/s")
        report(f"a batch of {options.tasks:,}", [batch(b, options.tasks) for _ in range(options.runs)], "tasks/s")


if __name__ == "__main__":
    main()
