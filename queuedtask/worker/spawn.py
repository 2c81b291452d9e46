"""Processes of ours: started clean (never forked), and what is known when they end.

A child gets the ends that it needs as descriptors: a wire for orders, a file for stacks. It takes no notice of the
signals that a terminal sends to the whole group. They are blocked while it starts, and have handlers that do nothing
from then on; were they ignored instead, the programs that tasks start would inherit that and could not be terminated.
"""

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

from queuedtask.worker.wire import Wire

GROUP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DUMP_SIGNAL: Final = signal.SIGUSR1
BLOCKED_AT_START: Final = (*GROUP_SIGNALS, DUMP_SIGNAL)
MOST_OF_A_STACK: Final = 16 * 1024
_MOST_TO_SEARCH: Final = 1024 * 1024
_CRASH: Final = b"Fatal Python error"


class Stacks:
    """A file that a process writes the stacks of its threads into when it crashes, or when it is asked to.

    Written by Python's faulthandler from within the signal, so also while a call holds the interpreter's lock.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        self._read = 0
        self._seen = 0
        self._mark: int | None = None

    def fileno(self) -> int:
        """Return the descriptor to hand to the process."""
        return self._file.fileno()

    def take(self, *, is_final: bool = False) -> str:
        """Return what was written since the last call, once it has stopped growing or nothing more can come.

        So a dump that is just being written is not cut in two.
        """
        size = os.fstat(self._file.fileno()).st_size
        is_growing, self._seen = size != self._seen, size
        if size == self._read or (is_growing and not is_final):
            return ""
        text = os.pread(self._file.fileno(), _MOST_TO_SEARCH, self._read)
        self._read += len(text)
        return text.decode(errors="replace")

    @property
    def is_pending(self) -> bool:
        """Tell whether something was seen that :meth:`take` has not returned yet."""
        return self._read < self._seen

    def mark(self) -> None:
        """Remember this place: what :meth:`last` returns begins here, unless a crash comes after it."""
        self._mark = os.fstat(self._file.fileno()).st_size

    def last(self) -> str | None:
        """Return the stacks of the crash, or those since the mark, from their beginning; None when there are none."""
        size = os.fstat(self._file.fileno()).st_size
        text = os.pread(self._file.fileno(), _MOST_TO_SEARCH, max(self._mark or 0, size - _MOST_TO_SEARCH))
        crash = text.rfind(_CRASH)
        if crash < 0 and self._mark is None:
            return None  # What somebody has asked for at some time says nothing about the end.
        return text[max(crash, 0) :][:MOST_OF_A_STACK].decode(errors="replace") or None

    def close(self) -> None:
        """Forget the file."""
        self._file.close()


class Ending(NamedTuple):
    """How a process has ended."""

    exit_signal: str
    """The name of the signal, or ``exit code 3``."""
    code: int
    """As :mod:`subprocess` counts: negative for a signal."""
    memory_bytes: int | None
    """The most memory that it had; None where that is not known."""


class Process:
    """A process that runs ``python -m queuedtask …`` with inherited descriptors."""

    def __init__(self, command: Sequence[str], option: str, *descriptors: int) -> None:
        """Start it with a command and its arguments.

        ``option`` tells it the numbers of a wire, of its file for stacks and of further descriptors.
        """
        self.wire, end = Wire.pair()
        self.stacks = Stacks()
        handed = [end.fileno(), self.stacks.fileno(), *descriptors]
        numbers = ",".join(map(str, handed))
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_AT_START)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "queuedtask", *command, option, numbers],
                stdin=subprocess.DEVNULL,
                pass_fds=handed,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        end.close()
        self.pid = self._process.pid
        self.ending: Ending | None = None
        self._reaping = threading.Lock()

    def ask_for_stacks(self) -> None:
        """Have it write down the stacks of all its threads; it may not be able to any more."""
        self.stacks.mark()
        self.send_signal(DUMP_SIGNAL)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has been reaped."""
        with self._reaping:
            if self.ending is None:
                os.kill(self.pid, number)

    def reap(self, *, wait: bool = False) -> Ending | None:
        """Return how it ended, None while it lives (unless this is to wait)."""
        while self.ending is None:
            if wait:
                with contextlib.suppress(ChildProcessError):  # another thread has reaped it just now
                    os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            with self._reaping:
                if self.ending is None:
                    pid, status, usage = os.wait4(self.pid, os.WNOHANG)
                    if pid:
                        code = self._process.returncode = os.waitstatus_to_exitcode(status)
                        self.ending = Ending(_name(code), code, usage.ru_maxrss * _MAXRSS_UNIT)
            if not wait:
                break
        return self.ending

    def close(self) -> None:
        """Close our ends."""
        self.wire.close()
        self.stacks.close()


_MAXRSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024


def _name(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def settle_in(numbers: str) -> tuple[Wire, list[int]]:
    """Begin as such a process: return the wire and the further descriptors; take the signals as a child does."""
    wire, stacks, *more = map(int, numbers.split(","))
    for number in GROUP_SIGNALS:
        signal.signal(number, _take_no_notice)
    for descriptor in (stacks, *more):
        os.set_inheritable(descriptor, False)
    faulthandler.enable(stacks, all_threads=True)
    faulthandler.register(DUMP_SIGNAL, stacks, all_threads=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED_AT_START)
    return Wire.at(wire), more


def _take_no_notice(number: int, frame: object) -> None:
    pass
