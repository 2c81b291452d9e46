"""Schedules on whole workers that are killed: every tick once, and none missing."""

import os
import random
import signal
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from helpers import execute, wait_until
from queuedtask import Queue

sys.path.insert(0, str(Path(__file__).parent))
from trees import tree

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("QUEUEDTASK_TEST_ROUNDS", "2"))
"""How often the long trials are repeated; tox -e soak asks for more: then this one takes a minute."""
SECONDS = max(8, 3 * ROUNDS)
STEPS = {"side by side": 1, "one by one": 1, "in Paris": 2}


def ticks(url: str, name: str) -> list[Any]:
    return [
        tick for (tick,) in execute(url, "SELECT tick FROM queued_task_ticks WHERE schedule = %s ORDER BY 1", (name,))
    ]


def test_every_tick_comes_once_and_none_is_missing_while_workers_are_killed_at_random(
    queue: Queue, database_url: str
) -> None:
    chance = random.Random()
    with ExitStack() as stack:
        settings = {"lease": 2, "heartbeat_interval": 0.5, "app": "ticking_app"}
        workers = [stack.enter_context(tree(database_url, "-w", "2", **settings)) for _ in range(4)]
        wait_until(lambda: len(queue.workers()) == 4, 30)
        wait_until(lambda: all(ticks(database_url, name) for name in STEPS), 20)
        began = time.monotonic()
        until = began + SECONDS
        whole = began + SECONDS * chance.uniform(0.3, 0.6)
        while (now := time.monotonic()) < until:
            if now > whole and len(workers) == 4:
                workers.pop(chance.randrange(4)).signal(signal.SIGKILL, all_of_them=True)
            elif children := chance.choice(workers).children():
                try:
                    os.kill(chance.choice(children), signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(chance.uniform(0.5, 2.5))
        for name in STEPS:
            queue.edit_schedule(name, cron="@yearly")
        last = {name: ticks(database_url, name)[-1] for name in STEPS}
        count = "SELECT count(*) FROM queued_tasks WHERE state <> 'done'"
        wait_until(lambda: execute(database_url, count) == [(0,)], 60, interval=0.1, message="all tasks are done")
    for name, step in STEPS.items():
        found = ticks(database_url, name)
        assert found == [found[0] + timedelta(seconds=n * step) for n in range(len(found))], name
        assert found[-1] == last[name]
        tasks = execute(database_url, "SELECT date_scheduled FROM queued_tasks WHERE name = %s ORDER BY 1", (name,))
        assert [when for (when,) in tasks] == found, name
    # One that waits for its predecessor may have been some ticks behind, the others not.
    assert len(ticks(database_url, "side by side")) >= SECONDS
    assert len(ticks(database_url, "in Paris")) >= SECONDS // 2
