"""A deadline for what is asked of the server, which the driver has not got."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable

import psycopg2
import psycopg2.extensions

logger = logging.getLogger("queuedtask.worker")

Connection = psycopg2.extensions.connection


class Watchdog:
    """Hangs up on a server that does not answer in time: a stopped backend, a network that is cut.

    Whoever waits for the answer waits in the driver; so a thread of its own watches, and shuts the socket down under
    the driver. The one who waits then gets the driver's error for a lost connection.
    """

    def __init__(self, limit: Callable[[], float]) -> None:
        self._limit = limit
        self._watched: tuple[Connection, float] | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def watch(self, connection: Connection) -> None:
        """Begin to watch a connection, or start anew: something is being sent on it."""
        self._watched = connection, time.monotonic()

    def rest(self) -> None:
        """Watch nothing: no answer is awaited."""
        self._watched = None

    def end(self) -> None:
        """End the thread."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self._limit() / 4):
            watched, limit = self._watched, self._limit()
            if watched is not None and time.monotonic() - watched[1] > limit:
                logger.warning("the database has not answered for %g s: hanging up", limit)
                _hang_up(watched[0])
                self._watched = None


def _hang_up(connection: Connection) -> None:
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as wire:
            wire.shutdown(socket.SHUT_RDWR)
    except (OSError, psycopg2.Error):
        pass  # It is closed already.
