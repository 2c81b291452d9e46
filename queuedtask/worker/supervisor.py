"""The supervisor: a small process without user code that keeps its children running.

It starts them clean, orders them by wire, keeps the workers' leases, reads on their boards what they run, and kills
what cannot be stopped otherwise. It imports neither the application nor SQLAlchemy: whatever tasks do to a worker
process, nothing of it reaches this one.
"""

import faulthandler
import logging
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from queuedtask.errors import QueuedTaskError
from queuedtask.worker.board import KILL_MARGIN
from queuedtask.worker.crew import NEVER, Crew
from queuedtask.worker.waker import Waker
from queuedtask.worker.workers import Workers

logger = logging.getLogger("queuedtask.supervisor")

TURN_INTERVAL: Final = 1.0
"""Seconds at most between two looks at the boards."""


class Supervisor:
    """Construct with its crews, in the order in which they are to end, and :meth:`run`; it is told by signals.

    ``workers`` is the crew among them that knows where the tasks are. The time of ``liveness_file`` is set in every
    turn in which all is well; the file is deleted at the end.
    """

    def __init__(self, *crews: Crew, workers: Workers | None = None, liveness_file: Path | None = None) -> None:
        self._crews = crews
        self._waker = Waker()
        self._exit_code = 0
        self._stopping_since: float | None = None
        self._signals: list[int] = []
        self._is_told_to_end = False
        self._turned_at = time.monotonic()
        self._lenient_until = 0.0
        self._workers = workers
        self._liveness_file = liveness_file
        self._touched_at = 0.0

    def run(self) -> int:
        """Keep the processes running until told to stop, or until their bursts are over; return the exit code."""
        with self._taking_signals(), self._showing_life():
            while not self._is_finished():
                self._turn()
                self._wait()
            for crew in self._crews:
                crew.close()
        logger.info("the supervisor has ended")
        return self._exit_code

    # -------------------------------------------------------------------------------------------------------- the loop

    def _turn(self) -> None:
        now = time.monotonic()
        if now - self._turned_at > TURN_INTERVAL + KILL_MARGIN:
            # We were stopped ourselves, and perhaps the processes with us: they get their time to notice.
            self._lenient_until = now + KILL_MARGIN
        self._turned_at = now
        for crew in self._crews:
            crew.turn(now, is_lenient=now < self._lenient_until)
        self._obey_signals()
        self._end_in_order()
        self._tell_how_it_is(now)

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._waker.fileno(), select.POLLIN)
        for crew in self._crews:
            for child in crew.children:
                if not child.process.wire.is_closed:
                    poll.register(child.process.wire, select.POLLIN)
        now = time.monotonic()
        times = [time_ for crew in self._crews for time_ in (crew.look_again_at, crew.next_start())]
        poll.poll(max(0.0, min(now + TURN_INTERVAL, *times) - now) * 1000)
        self._waker.clear()

    def _is_finished(self) -> bool:
        return self._stopping_since is not None and not any(crew.children for crew in self._crews)

    # ------------------------------------------------------------------------------------------------- how the tree is

    def _tell_how_it_is(self, now: float) -> None:
        problems = [problem for crew in self._crews for problem in crew.problems]
        shortcomings = [shortcoming for crew in self._crews for shortcoming in crew.shortcomings]
        if self._stopping_since is not None:
            shortcomings = ["shutting down"]
        status = {
            "problems": problems,
            "shortcomings": shortcomings,
            "has_workers": self._workers is not None,
            "database_url": None if self._workers is None else self._workers.database_url,
        }
        for crew in self._crews:
            crew.tell(status, now)
        if self._liveness_file is not None and not problems and now >= self._touched_at + TURN_INTERVAL / 2:
            self._touched_at = now
            try:
                self._liveness_file.touch()
            except OSError as error:
                logger.error("the liveness file cannot be written: %s", error)

    @contextmanager
    def _showing_life(self) -> Iterator[None]:
        file = self._liveness_file
        try:
            if file is not None:
                try:
                    file.touch()
                except OSError as error:
                    raise QueuedTaskError(f"the liveness file {file} cannot be written: {error.strerror}") from None
            yield
        finally:
            if file is not None:
                file.unlink(missing_ok=True)

    # --------------------------------------------------------------------------------------------------------- signals

    @contextmanager
    def _taking_signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)
        before = {number: signal.signal(number, note) for number in numbers}
        descriptor = signal.set_wakeup_fd(self._waker.writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in before.items():
                # Whoever told it to end may say so once more: the exit code is to tell that it has ended in order.
                is_over = self._is_told_to_end and number != signal.SIGCHLD
                signal.signal(number, signal.SIG_IGN if is_over else handler)

    def _obey_signals(self) -> None:
        is_stopping = self._stopping_since is not None
        while self._signals:
            number = self._signals.pop(0)
            if number in (signal.SIGTERM, signal.SIGINT):
                self._is_told_to_end = True
                logger.info("stopping%s", " at once" if is_stopping else "")
                self._stop(at_once=is_stopping)
                is_stopping = True
            elif number == signal.SIGHUP and not is_stopping:
                logger.info("starting anew: new processes first")
                for crew in self._crews:
                    crew.reload()
            elif number == signal.SIGUSR1:
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                for crew in self._crews:
                    crew.dump_stacks()

    # -------------------------------------------------------------------------------------------------------- stopping

    def _stop(self, *, at_once: bool = False) -> None:
        if self._stopping_since is None:
            self._stopping_since = self._turned_at
        if at_once:
            for crew in self._crews:
                crew.stop(NEVER)

    def _end_in_order(self) -> None:
        """End one crew after the other; what they need of the shutdown timeout is the later ones' loss."""
        for crew in self._crews:
            if crew.failed_with is not None and not self._exit_code:
                self._exit_code = crew.failed_with
                logger.info("stopping at once")
                self._stop(at_once=True)
            elif crew.is_over:
                self._stop()
        if self._stopping_since is None:
            return
        for crew in self._crews:
            if not crew.is_stopping:
                crew.stop(self._turned_at - self._stopping_since)
            if crew.children:
                return
