"""What a worker of four slots costs while it has nothing to do: CPU, statements and memory."""

import os
import time
from pathlib import Path

from harness import arguments, bench, descendants, wait_for
from jobs import noop


def cpu_seconds(pids: list[int]) -> float:
    """Return user and system time of processes."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def proportional_mib(pids: list[int]) -> float:
    """Return the proportional set size of processes, in MiB."""
    return (
        sum(
            int(line.split()[1])
            for pid in pids
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            if line.startswith("Pss:")
        )
        / 1024
    )


def resident_mib(pid: int) -> float:
    """Return the resident set size of a process, in MiB: what it would take if it shared nothing."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    options = arguments(__doc__, seconds=20)
    with bench() as b, b.worker() as process:
        sink = b.sink()
        for _ in range(100):
            b.queue.add_task(noop, str(sink))
        wait_for(lambda: sink.stat().st_size == 100)
        time.sleep(2)
        pids = descendants(process.pid)

        def statements() -> int:
            # Every statement of the worker is a transaction of its own when it is idle.
            with b.queue.database.autocommit() as cursor:
                cursor.execute("SELECT pg_stat_clear_snapshot()")
                cursor.execute("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
                return int(cursor.fetchone()[0])

        before, cpu = statements(), cpu_seconds(pids)
        time.sleep(options.seconds)
        # Our own look costs two transactions.
        count, used = statements() - before - 2, cpu_seconds(pids) - cpu
        share, rate = used / options.seconds, count / options.seconds
        print(f"idle for {options.seconds} s: {share:.2%} CPU, {rate:.2f} statements/s")
        print(f"memory of {len(pids)} process(es), proportional: {proportional_mib(pids):.1f} MiB")
        print(
            f"of which the supervisor: {proportional_mib(pids[:1]):.1f} MiB, resident {resident_mib(pids[0]):.1f} MiB"
        )


if __name__ == "__main__":
    main()
