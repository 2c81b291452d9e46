"""What limits cost: draining in a channel with a limit against one without, and claims beside an exhausted backlog.

The runs take turns, so that what else the machine does falls on all of them.
"""

import statistics
import time

from harness import Bench, arguments, bench, report, wait_for

from queuedtask.db import claims, store, workers


def drain(b: Bench, tasks: int, channel: str, limit: int | None, *arguments: str) -> float:
    """Drain so many no-op tasks of a channel once and return the rate."""
    b.reset()
    sink = b.sink()
    with b.queue.database.transaction() as cursor:
        cursor.execute("TRUNCATE queued_task_channels")
        if limit is not None:
            cursor.execute("INSERT INTO queued_task_channels (name, max_running) VALUES (%s, %s)", (channel, limit))
        cursor.execute(
            "INSERT INTO queued_tasks (function, name, channel, args) "
            "SELECT 'jobs:noop', 'noop', %s, jsonb_build_array(%s::text) FROM generate_series(1, %s)",
            (channel, str(sink), tasks),
        )
    b.vacuum()
    with b.worker(*arguments):
        wait_for(lambda: sink.stat().st_size > 0, interval=0.001)
        started, already = time.perf_counter(), sink.stat().st_size
        wait_for(lambda: sink.stat().st_size >= tasks)
        wait_for(lambda: b.count("state IN ('enqueued', 'doing')") == 0)
        rate = (tasks - already) / (time.perf_counter() - started)
    assert b.count("state = 'done' AND attempt = 1") == tasks
    return rate


def claim_beside(b: Bench, backlog: int, rounds: int) -> None:
    """Report how long claims of one task take beside the backlog of a channel at its limit."""
    b.reset()
    with b.queue.database.transaction() as cursor:
        cursor.execute("TRUNCATE queued_task_channels")
        cursor.execute("INSERT INTO queued_task_channels (name, max_running) VALUES ('full', 1)")
        me = workers.register(cursor, server_name="", slots=1, pid=1, supervisor_pid=None, version="", lease=3600.0)
        cursor.execute(
            "INSERT INTO queued_tasks (function, channel, state, claimed_by) VALUES ('a:b', 'full', 'doing', %s)", (me,)
        )
        cursor.execute(
            "INSERT INTO queued_tasks (function, channel, priority) "
            "SELECT 'a:b', 'full', 5 FROM generate_series(1, %s)",
            (backlog,),
        )
        cursor.execute(
            "INSERT INTO queued_tasks (function, channel) "
            "SELECT 'a:b', CASE n %% 2 WHEN 0 THEN 'default' ELSE 'rare' END FROM generate_series(1, %s) n",
            (8 * rounds,),
        )
    for is_analysed in (False, True):
        if is_analysed:
            b.vacuum()
        took: dict[str, list[float]] = {"plain claim": [], "look": [], "claim from two channels": []}
        with b.queue.database.autocommit() as cursor:
            cursor.execute("SET synchronous_commit = off")  # what a commit takes is not the question here
            for _ in range(rounds):
                started = time.perf_counter()
                assert len(store.claim(cursor, worker=me, limit=1)) == 1
                claimed = time.perf_counter()
                seen = claims.look(cursor, channels=None)
                looked = time.perf_counter()
                assert seen.sources == {"full", "default", "rare"}
                counts, _ = claims.heads(cursor, {"default": 1, "rare": 1}, [], rooms={}, limit=1)
                assert len(claims.claim_from(cursor, counts, worker=me, locked=[])) == 1
                took["plain claim"].append((claimed - started) * 1000)
                took["look"].append((looked - claimed) * 1000)
                took["claim from two channels"].append((time.perf_counter() - looked) * 1000)
        how = "analysed" if is_analysed else "never analysed"
        for what, values in took.items():
            report(f"{what} beside {backlog:,} of a channel at its limit, {how}", values, "ms")


def main() -> None:
    options = arguments(__doc__, tasks=20_000, runs=5, limit=1000, backlog=300_000, rounds=200)
    kinds = {
        "the default channel": ("default", None),
        "another channel": ("bulk", None),
        f"a channel with a limit of {options.limit:,}": ("bulk", options.limit),
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    with bench() as b:
        for _ in range(options.runs):
            for name, (channel, limit) in kinds.items():
                rates[name].append(drain(b, options.tasks, channel, limit))
        for name, values in rates.items():
            report(f"drain of {options.tasks:,} no-op tasks in {name}", values, "tasks/s")
        usual, limited = (statistics.median(rates[name]) for name in list(kinds)[1:])
        print(f"the limit costs {100 * (1 - limited / usual):.0f} %")
        claim_beside(b, options.backlog, options.rounds)


if __name__ == "__main__":
    main()
