"""The heart: a thread of the supervisor that keeps its worker processes' leases alive.

It needs neither the processes' help nor their interpreter, so a call that holds the interpreter's lock for minutes
does not make a worker look dead. It has a connection of its own, and knows no SQL but the statement that a worker
process has told it. When the database is away it says nothing, for the worker processes do.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

import psycopg2
import psycopg2.extensions

from queuedtask.worker.board import Board
from queuedtask.worker.watchdog import Watchdog

logger = logging.getLogger("queuedtask.supervisor")

RETRY_INTERVAL: Final = 1.0


class Heart:
    """Writes heartbeats for the processes that ``living`` names, with their boards, until it is stopped."""

    def __init__(self, dsn: str, statement: str, interval: float, *, living: Callable[[], Mapping[int, Board]]) -> None:
        self._dsn = dsn
        self._statement = statement
        self._interval = interval
        self._living = living
        self._connection: psycopg2.extensions.connection | None = None
        self._watchdog = Watchdog(lambda: max(1.0, interval))
        self._wanted = threading.Event()
        self._is_stopped = False
        threading.Thread(target=self._run, name="heart", daemon=True).start()

    def beat(self) -> None:
        """Beat at once: a process has joined."""
        self._wanted.set()

    def stop(self) -> None:
        """End the thread; does not wait for it."""
        self._is_stopped = True
        self._wanted.set()

    def _run(self) -> None:
        while not self._is_stopped:
            wait = self._interval
            living = dict(self._living())
            if living:
                sent_at = time.monotonic()
                try:
                    renewed = self._write(list(living))
                except psycopg2.Error as error:
                    logger.debug("the heartbeats could not be written: %s", error)
                    self._drop()
                    wait = min(wait, RETRY_INTERVAL)
                else:
                    for worker in renewed:
                        living[worker].renewed_at = sent_at
            self._wanted.wait(wait)
            self._wanted.clear()
        self._drop()
        self._watchdog.end()

    def _write(self, workers: list[int]) -> list[int]:
        """Write the heartbeats; return the workers that have one."""
        if self._connection is None:
            self._connection = psycopg2.connect(self._dsn)
            self._connection.autocommit = True
        self._watchdog.watch(self._connection)
        with self._connection.cursor() as cursor:
            cursor.execute(self._statement, {"workers": workers})
            renewed = [worker for (worker,) in cursor.fetchall()]
        self._watchdog.rest()
        return renewed

    def _drop(self) -> None:
        self._watchdog.rest()
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except psycopg2.Error:
                pass  # It is dead already.
