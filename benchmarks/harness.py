"""What the benchmarks share: a server of their own with durable defaults, a real worker, and figures."""

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from queuedtask import Queue
from queuedtask.db import migrate
from queuedtask.db.embedded import EmbeddedServer

HERE = Path(__file__).parent


class Bench:
    """A migrated database, a directory for sinks, and workers on demand."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory
        self.queue = Queue(url)
        with self.queue.database.transaction() as cursor:
            migrate.upgrade(cursor)
            cursor.execute("SHOW server_version")
            version = cursor.fetchone()[0]
            cursor.execute("SELECT current_setting('fsync'), current_setting('synchronous_commit')")
            durable = "/".join(cursor.fetchone())
        print(f"Python {sys.version.split()[0]}, PostgreSQL {version}, fsync/synchronous_commit {durable}", flush=True)

    def sink(self) -> Path:
        """Return the path of a new, empty file."""
        handle, path = tempfile.mkstemp(dir=self.directory)
        os.close(handle)
        return Path(path)

    def reset(self) -> None:
        """Forget every task, and leave the tables as autovacuum would find them on a quiet day."""
        with self.queue.database.transaction() as cursor:
            cursor.execute("TRUNCATE queued_tasks CASCADE")
        self.vacuum()

    def vacuum(self) -> None:
        """Vacuum and analyse the tasks, and write everything out, so that no run pays for the one before."""
        with self.queue.database.autocommit() as cursor:
            cursor.execute("VACUUM ANALYZE queued_tasks")
            cursor.execute("CHECKPOINT")

    def count(self, condition: str) -> int:
        """Return how many tasks meet a condition in SQL."""
        with self.queue.database.transaction() as cursor:
            cursor.execute(f"SELECT count(*) FROM queued_tasks WHERE {condition}")  # noqa: S608 (our own words)
            return int(cursor.fetchone()[0])

    @contextlib.contextmanager
    def worker(self, *arguments: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run ``python -m queuedtask worker`` beside the block, and end it in order; settings go by the environment."""
        environment = dict(os.environ, QUEUE_DATABASE_URL=self.url, PYTHONPATH=f"{HERE}:{HERE.parent}", **settings)
        process = subprocess.Popen(
            [sys.executable, "-m", "queuedtask", "worker", "-w", "4", *arguments],
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """Give a Bench on a server that is started for it and removed afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="queuedtask-bench-", dir="/var/tmp"))
    directory.chmod(0o755)
    server = EmbeddedServer(directory / "server")
    made = None
    try:
        made = Bench(server.ensure_running(None), directory)
        yield made
    finally:
        if made is not None:
            made.queue.close()
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


def descendants(pid: int) -> list[int]:
    """Return a process and all its descendants, whichever of its threads has started them."""
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            found += descendants(int(child))
    return found


def wait_for(condition: Callable[[], bool], *, timeout: float = 120.0, interval: float = 0.005) -> None:
    """Wait until a condition holds; a benchmark that hangs is an error."""
    give_up = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError("the benchmark did not end in time")
        time.sleep(interval)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def report(name: str, values: Sequence[float], unit: str) -> None:
    """Print minimum, median and maximum of several runs."""
    print(
        f"{name}: median {statistics.median(values):,.1f} {unit} "
        f"(min {min(values):,.1f}, max {max(values):,.1f}, {len(values)} runs)",
        flush=True,
    )


def arguments(description: str, **defaults: int) -> argparse.Namespace:
    """Parse ``--name N`` for each default."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    return parser.parse_args()
