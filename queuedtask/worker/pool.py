"""The slots: threads that take tasks from an inbox, run one attempt of each and put down what becomes of it.

A slot owns nothing and never touches the manager's connections. It is started when there is work for it and ends when
it has had none for a while.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from queuedtask.model.outcome import Decision
from queuedtask.model.task import Task
from queuedtask.run.attempt import Attempt

logger = logging.getLogger("queuedtask.pool")


class Ended(NamedTuple):
    """An attempt that a slot has run, and what becomes of its task."""

    attempt: Attempt
    decision: Decision
    at: float
    """When, on the monotonic clock."""


class Pool:
    """At most ``size`` threads, the inbox before them and the endings behind them.

    The manager submits, withdraws and takes what ended; the slots do the rest, and as much of it as they can, because
    they run while the manager waits for the database. ``on_end`` is called in a slot's thread after each attempt, with
    the number of tasks that still wait in the inbox; ``wake_manager`` is what an attempt calls when its task waits for
    the manager.
    """

    def __init__(
        self,
        run: Callable[[Attempt], Decision],
        *,
        on_end: Callable[[int], None],
        wake_manager: Callable[[], None],
        idle_timeout: Callable[[], float],
    ) -> None:
        self._run = run
        self._on_end = on_end
        self._wake_manager = wake_manager
        self._idle_timeout = idle_timeout
        self._inbox: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._ended: deque[Ended] = deque()
        self._lock = threading.Lock()
        self._threads: dict[int, threading.Thread] = {}
        self._size = 0
        self.running: dict[int, Attempt] = {}
        """What each busy slot runs, by its number."""

    @property
    def waiting(self) -> int:
        """Return how many tasks no slot has taken yet."""
        return self._inbox.qsize()

    @property
    def threads(self) -> int:
        """Return how many slots have a thread at the moment."""
        return len(self._threads)

    def submit(self, tasks: Sequence[Task], *, size: int, outstanding: int) -> None:
        """Hand tasks to the slots, the first one first; start threads while there is more work than threads.

        ``outstanding`` counts everything that was submitted and has not been taken back as ended.
        """
        for task in tasks:
            self._inbox.put(task)
        with self._lock:
            self._size = size
            while len(self._threads) < min(size, outstanding):
                self._start_thread()

    def resize(self, size: int) -> None:
        """Change the number of slots; surplus ones end when they are free."""
        if size != self._size:
            with self._lock:
                surplus, self._size = len(self._threads) - size, size
            for _ in range(surplus):
                self._inbox.put(None)

    def withdraw(self) -> list[Task]:
        """Take back what no slot has begun."""
        withdrawn: list[Task] = []
        while True:
            try:
                task = self._inbox.get_nowait()
            except queue.Empty:
                return withdrawn
            if task is not None:
                withdrawn.append(task)

    def take_ended(self) -> list[Ended]:
        """Return what has ended since the last call."""
        return [self._ended.popleft() for _ in range(len(self._ended))]

    @property
    def has_ended(self) -> bool:
        """Tell whether there is anything to take."""
        return bool(self._ended)

    def _start_thread(self) -> None:
        number = next(n for n in range(1, self._size + 1) if n not in self._threads)
        # A daemon, because a thread that cannot be interrupted must not keep the process from ending.
        thread = threading.Thread(target=self._work, args=(number,), name=f"slot-{number}", daemon=True)
        self._threads[number] = thread
        thread.start()

    def _work(self, number: int) -> None:
        while True:
            try:
                task = self._inbox.get(timeout=self._idle_timeout())
            except queue.Empty:
                task = None
            if task is None:
                if self._retires(number):
                    return
                continue
            attempt = self.running[number] = Attempt(task, self._wake_manager)
            decision = self._run(attempt)
            del self.running[number]
            self._ended.append(Ended(attempt, decision, time.monotonic()))
            # A slot that waits for work keeps nothing of the last task alive.
            del task, attempt, decision
            self._on_end(self._inbox.qsize())

    def _retires(self, number: int) -> bool:
        with self._lock:
            is_surplus = number > self._size or len(self._threads) > self._size
            # Something may have been submitted since the wait ended; submit() counts the threads after that.
            if not is_surplus and not self._inbox.empty():
                return False
            del self._threads[number]
        logger.debug("slot %s ends", number)
        return True
