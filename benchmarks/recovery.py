"""How long after a kill -9 the lost tasks run again: of one process of two, and of a whole tree beside another one."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

from harness import Bench, arguments, bench, descendants, report, wait_for
from jobs import begin

TASKS = 8
LEASE, HEARTBEAT = 5.0, 1.0


def runs(sink: Path) -> list[float]:
    """Return when runs of the tasks began."""
    return [float(line) for line in sink.read_text().split()]


def one_process(b: Bench) -> float:
    """Kill one of two processes while it runs half of the tasks; return the seconds until all of them run again."""
    b.reset()
    sink = b.sink()
    with b.worker("-p", "2") as supervisor:
        wait_for(lambda: len(b.queue.workers()) == 2)
        for _ in range(TASKS):
            b.queue.add_task(begin, str(sink), 5.0)
        wait_for(lambda: len(runs(sink)) == TASKS)
        victim = b.queue.workers()[0]
        lost = b.count(f"state = 'doing' AND claimed_by = {victim.id}")
        killed_at = time.time()
        os.kill(victim.pid or supervisor.pid, signal.SIGKILL)
        wait_for(lambda: len(runs(sink)) == TASKS + lost)
        seconds = max(runs(sink)) - killed_at
        wait_for(lambda: b.count("state = 'done'") == TASKS)
    return seconds


def whole_tree(b: Bench) -> float:
    """Kill a whole tree while another one is idle; return the seconds until all of its tasks run again there."""
    b.reset()
    sink = b.sink()
    settings = {"QUEUE_LEASE": str(LEASE), "QUEUE_HEARTBEAT_INTERVAL": str(HEARTBEAT)}
    with ExitStack() as stack:
        victim = stack.enter_context(b.worker(**settings))
        wait_for(lambda: len(b.queue.workers()) == 1)
        for _ in range(4):
            b.queue.add_task(begin, str(sink), 15.0)
        wait_for(lambda: len(runs(sink)) == 4)
        stack.enter_context(b.worker(**settings))
        wait_for(lambda: len(b.queue.workers()) == 2)
        time.sleep(LEASE)
        processes = descendants(victim.pid)
        killed_at = time.time()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in processes:
                os.kill(pid, number)
        wait_for(lambda: len(runs(sink)) == 8)
        return max(runs(sink)) - killed_at


def main() -> None:
    options = arguments(__doc__, runs=3)
    with bench() as b:
        report("one process of two, until its 4 tasks run again", [one_process(b) for _ in range(options.runs)], "s")
        name = f"a whole tree, lease {LEASE:g} s, heartbeat {HEARTBEAT:g} s, until its 4 tasks run again"
        report(name, [whole_tree(b) for _ in range(options.runs)], "s")


if __name__ == "__main__":
    main()
