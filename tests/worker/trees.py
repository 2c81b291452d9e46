"""Whole workers as people start them: a supervisor with its processes, to be watched, signalled, stopped and killed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hostile_jobs  # noqa: F401 (its directory is on the path of the workers, too)

HERE = Path(__file__).parent


class Tree:
    """A running ``queuedtask worker``."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.pid = process.pid
        self._lines: list[str] = []
        self._printed: list[str] = []
        pipes = ((process.stderr, self._lines), (process.stdout, self._printed))
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, lines), daemon=True) for pipe, lines in pipes if pipe
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(pipe: Iterable[str], lines: list[str]) -> None:
        for line in pipe:
            lines.append(line.rstrip("\n"))

    @property
    def log(self) -> list[str]:
        """What all its processes have written on stderr."""
        return list(self._lines)

    @property
    def printed(self) -> list[str]:
        """What all its processes have written on stdout, if that is captured."""
        return list(self._printed)

    def said(self, text: str) -> list[str]:
        return [line for line in self.log if text in line]

    def children(self, pid: int | None = None) -> list[int]:
        """Return the processes that a process (the supervisor) has started and that are alive."""
        pid = self.pid if pid is None else pid
        found: list[int] = []
        for thread in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += map(int, thread.read_text().split())
            except OSError:
                continue
        return sorted(found)

    def descendants(self) -> list[int]:
        found, left = [], self.children()
        while left:
            pid = left.pop()
            found.append(pid)
            left += self.children(pid)
        return found

    def signal(self, number: int, *, all_of_them: bool = False) -> None:
        """Send a signal to the supervisor, or to it and all its descendants."""
        for pid in [self.pid, *(self.descendants() if all_of_them else [])]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def close(self) -> None:
        for reader in self._readers:
            reader.join(10)
        for pipe in (self.process.stderr, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def stop(self, timeout: float = 30.0) -> int:
        """End it in order; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


@contextmanager
def tree(
    url: str, *arguments: str, command: str = "worker", places: Sequence[Path] = (), **settings: object
) -> Iterator[Tree]:
    """Run a worker beside the block; whatever is left of it at the end is killed. Settings go by the environment.

    Other commands than ``worker`` have supervisors, too. ``places`` are put on the path of the processes.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QUEUE_", "DATABASE_URL"))}
    given = {f"QUEUE_{name.upper()}": str(value) for name, value in settings.items()}
    paths = [*map(str, places), str(HERE), str(HERE.parents[1]), *sys.path]
    process = subprocess.Popen(
        [sys.executable, "-m", "queuedtask", command, *arguments],
        env={**kept, **given, "QUEUE_DATABASE_URL": url, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    running = Tree(process)
    try:
        yield running
    finally:
        running.signal(signal.SIGKILL, all_of_them=True)
        process.wait(30)
        running.close()
        sys.stderr.writelines(f"{line}\n" for line in running.log)  # pytest shows it when the test has failed
