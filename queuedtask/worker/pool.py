"""The slots: threads that take tasks from an inbox, run one attempt of each and put down what becomes of it.

A slot owns nothing and never touches the manager's connections. It is started when there is work for it and ends when
it has had none for a while. A thread that does not come back can be given up: its slot gets another one.
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
from queuedtask.run.attempt import Attempt, ThreadNumbers
from queuedtask.worker.board import Board

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
    they run while the manager waits for the database. ``begin`` makes the attempt and writes it on the board; ``run``
    runs it; ``on_end`` is called in the slot's thread after it, with the number of tasks that still wait in the inbox.
    """

    def __init__(
        self,
        board: Board,
        begin: Callable[[Task, int, ThreadNumbers], Attempt],
        run: Callable[[Attempt], Decision],
        *,
        on_end: Callable[[int], None],
        idle_timeout: Callable[[], float],
    ) -> None:
        self._board = board
        self._begin = begin
        self._run = run
        self._on_end = on_end
        self._idle_timeout = idle_timeout
        self._inbox: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._ended: deque[Ended] = deque()
        self._lock = threading.Lock()
        self._threads: dict[int, threading.Thread] = {}
        self._size = 0
        self.running: dict[Attempt, int] = {}
        """What each busy slot runs. Whoever takes an attempt out decides what becomes of it: its thread, or who gives
        it up."""
        self.stuck: dict[Attempt, float] = {}
        """Attempts that were given up and whose threads are still alive, and since when."""

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

    def close(self) -> None:
        """Let the slots end as soon as they are free: nothing more is submitted."""
        self.resize(0)

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

    def give_up(self, attempt: Attempt) -> bool:
        """Take the slot from an attempt that does not end, and give it another thread; False if it has just ended."""
        with self._lock:
            self.stuck[attempt] = time.monotonic()  # first, for its thread looks there when it finds itself given up
            slot = self.running.pop(attempt, None)
            if slot is None:
                del self.stuck[attempt]
                return False
            attempt.give_up()
            self._board.clear(slot)
            del self._threads[slot]
            if self._inbox.qsize() and len(self._threads) < self._size:
                self._start_thread()
        return True

    def note(self, attempt: Attempt, *, kill_at: float) -> None:
        """Write on the board, in the attempt's own thread, what has changed about it; nothing if it was given up."""
        with self._lock:
            if (slot := self.running.get(attempt)) is not None:
                self._board.write(
                    slot,
                    attempt.task.id,
                    attempt.task.attempt,
                    thread=attempt.thread.native,
                    process=0 if attempt.process is None else attempt.process.pid,
                    max_retries=attempt.options.max_retries,
                    began_at=attempt.began or 0.0,
                    kill_at=kill_at,
                )

    def _start_thread(self) -> None:
        number = next(n for n in range(1, self._size + 1) if n not in self._threads)
        # A daemon, because a thread that cannot be interrupted must not keep the process from ending.
        thread = threading.Thread(target=self._work, args=(number,), name=f"slot-{number}", daemon=True)
        self._threads[number] = thread
        thread.start()

    def _work(self, number: int) -> None:
        thread = ThreadNumbers.of_this_one()
        while True:
            try:
                task = self._inbox.get(timeout=self._idle_timeout())
            except queue.Empty:
                task = None
            if task is None:
                if self._retires(number):
                    return
                continue
            attempt = self._begin(task, number, thread)
            self.running[attempt] = number
            decision = self._run(attempt)
            # Without the lock, which four threads would wait for more than they work: popping is atomic, and whoever
            # gives an attempt up has to win it.
            is_given_up = self.running.pop(attempt, None) is None
            if is_given_up:
                since = self.stuck.pop(attempt)
                logger.warning(
                    "task %s: attempt %s, which was given up, has ended after %.1f s more",
                    *(task.id, task.attempt, time.monotonic() - since),
                )
                self._on_end(0)
                return
            self._board.clear(number)
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
