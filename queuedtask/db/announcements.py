"""Hearing of the ends of tasks: one connection that listens, for all the threads of a process that wait for some.

A thread of its own reads the connection and wakes those whom an announcement concerns. It is started when somebody
waits and ends some seconds after the last one has gone. An announcement is a hint: whoever is woken looks at the row,
and all are woken when one may have been missed.
"""

import contextlib
import logging
import os
import select
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Final

import psycopg2
import psycopg2.extensions

from queuedtask.db.listening import Listener
from queuedtask.db.moves import DONE_CHANNEL
from queuedtask.errors import DatabaseUnavailable

logger = logging.getLogger("queuedtask.database")

LINGER: Final = 10.0
"""Seconds that the connection is kept for the next one who waits."""
FIRST_DELAY: Final = 0.2
LONGEST_DELAY: Final = 15.0
NEVER: Final = float("inf")


class Announcements:
    """What one process hears. ``connect`` opens a connection for LISTEN. Safe from any thread, and after a fork."""

    def __init__(self, connect: Callable[[], psycopg2.extensions.connection]) -> None:
        self._connect = connect
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._expected: defaultdict[str, set[threading.Event]] = defaultdict(set)
        self._left_at = 0.0
        self._thread: threading.Thread | None = None
        self._waker = -1
        self._is_closed = False
        self.is_listening = False
        """Announcements are heard; else whoever waits has to look for himself."""
        self.has_tried = threading.Event()
        """Set when the connection listens, or could not be opened."""

    def expect(self, task_id: str, signal: threading.Event) -> None:
        """Set the signal when the task may have ended, until :meth:`forget`; begin to listen."""
        if self._pid != os.getpid():
            # The parent's thread is not here, and its lock may have been copied while it was held.
            self._begin_anew()
        with self._lock:
            self._expected[task_id].add(signal)
            self._is_closed = False
            if self._thread is None:
                self.has_tried.clear()
                reader, self._waker = os.pipe()
                os.set_blocking(reader, False)
                self._thread = threading.Thread(
                    target=self._run, args=(reader,), name="queuedtask-announcements", daemon=True
                )
                self._thread.start()

    def forget(self, task_id: str, signal: threading.Event) -> None:
        """Take back :meth:`expect`; does nothing a second time."""
        with self._lock:
            signals = self._expected.get(task_id)
            if signals is not None:
                signals.discard(signal)
                if not signals:
                    del self._expected[task_id]
                self._left_at = time.monotonic()

    def close(self) -> None:
        """Close the connection; a later :meth:`expect` opens another one."""
        if self._pid == os.getpid():
            with self._lock:
                if self._thread is not None and not self._is_closed:
                    self._is_closed = True
                    os.write(self._waker, b".")

    # ---------------------------------------------------------------------------------------------------- in its thread

    def _run(self, waker: int) -> None:
        delay = FIRST_DELAY
        while True:
            try:
                listener = Listener(self._connect(), DONE_CHANNEL)
                try:
                    delay = FIRST_DELAY
                    self._say_that_it_listens(True)
                    if self._hear(listener, waker):
                        return
                finally:
                    listener.close()
            except (DatabaseUnavailable, psycopg2.Error) as error:
                logger.debug("LISTEN was lost: %s", error)
            self._say_that_it_listens(False)
            if self._is_over(waker, after=delay):
                return
            delay = min(LONGEST_DELAY, delay * 2)

    def _say_that_it_listens(self, is_listening: bool) -> None:
        self.is_listening = is_listening
        self.has_tried.set()
        with self._lock:
            signals = [signal for signals in self._expected.values() for signal in signals]
        # What was announced before is gone, or was to be announced to nobody: look.
        for signal in signals:
            signal.set()

    def _hear(self, listener: Listener, waker: int) -> bool:
        """Pass on what is announced until nobody wants to hear it; raises when the connection is lost."""
        poll = select.poll()
        poll.register(listener.fileno(), select.POLLIN)
        poll.register(waker, select.POLLIN)
        while True:
            for task_id in listener.received():
                self._pass_on(task_id)
            now = time.monotonic()
            end_at = NEVER if self._expected else self._left_at + LINGER
            if (now >= end_at or self._is_closed) and self._is_over(waker):
                return True
            wakes_at = min(listener.check_at, end_at)
            poll.poll(max(0.0, wakes_at - now) * 1000 + 1)
            _drain(waker)

    def _pass_on(self, task_id: str) -> None:
        with self._lock:
            for signal in self._expected.get(task_id, ()):
                signal.set()

    def _is_over(self, waker: int, *, after: float = 0.0) -> bool:
        """Wait a while, then end if nobody wants to hear anything or it was closed; tell whether that is so."""
        if after:
            poll = select.poll()
            poll.register(waker, select.POLLIN)
            poll.poll(after * 1000)
            _drain(waker)
        with self._lock:
            if self._expected and not self._is_closed:
                return False
            self.is_listening = False
            self._thread = None
            os.close(self._waker)
            os.close(waker)
            # Who waits in spite of that has to look for himself from now on.
            for signals in self._expected.values():
                for signal in signals:
                    signal.set()
            return True


def _drain(waker: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(waker, 16)
