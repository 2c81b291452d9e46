"""Servers and other programs as people start them, to be talked to, watched, signalled and killed."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

from helpers import wait_until

HERE = Path(__file__).parent


class Server:
    """A running program that answers over HTTP, or one that only says something on its outputs."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.pid = process.pid
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line.rstrip("\n"))

    @property
    def log(self) -> list[str]:
        return list(self._lines)

    def said(self, pattern: str, timeout: float = 30.0) -> re.Match[str]:
        """Wait until it has said something, and return the match."""

        def found() -> re.Match[str] | None:
            matches = (re.search(pattern, line) for line in self.log)
            return next(filter(None, matches), None)

        return wait_until(found, timeout, message=f"{pattern!r} is said; it said {self.log[-20:]}")

    @property
    def url(self) -> str:
        return self.said(r"http://[\w.:]+:\d+").group()

    def get(self, path: str = "/", data: bytes | None = None, **headers: str) -> str:
        request = Request(f"{self.url}{path}", data, {name.replace("_", "-"): value for name, value in headers.items()})
        with urlopen(request, timeout=30) as answer:
            return str(answer.read().decode())

    def stop(self, number: int = signal.SIGTERM, timeout: float = 30.0) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def close(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(30)
        self._reader.join(10)
        for stream in (self.process.stdout, self.process.stdin):
            assert stream is not None
            stream.close()


@contextmanager
def program(url: str, *command: str, directory: Path = HERE, **environment: object) -> Iterator[Server]:
    """Run a Python program beside the block; all of its process group is killed at the end.

    ``command`` is what stands behind ``python``.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QUEUE_", "DATABASE_URL"))}
    given = {name: str(value) for name, value in environment.items()}
    paths = [str(directory), str(HERE.parents[1]), *sys.path]
    process = subprocess.Popen(
        [sys.executable, "-u", *command],
        cwd=directory,
        env={**kept, "QUEUE_DATABASE_URL": url, "PYTHONPATH": os.pathsep.join(paths), **given},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    server = Server(process)
    try:
        yield server
    finally:
        server.close()
        sys.stderr.writelines(f"{line}\n" for line in server.log)  # pytest shows it when the test has failed


def gunicorn(*arguments: str) -> tuple[str, ...]:
    return ("-m", "gunicorn", "--bind", "127.0.0.1:0", *arguments)
