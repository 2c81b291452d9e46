"""Listening: a connection that hears what is announced under one name, and notices when it has gone deaf."""

import time
from collections.abc import Callable
from typing import Final

import psycopg2
import psycopg2.extensions
from psycopg2 import sql

CHECK_INTERVAL: Final = 10.0
"""Seconds between two looks whether there is still a server behind the connection."""


class Listener:
    """What is announced under a name. For one thread; what the driver raises means that it has to be replaced."""

    def __init__(self, connection: psycopg2.extensions.connection, name: str) -> None:
        """Begin to listen on a connection, which is the listener's from now on, also where this raises."""
        self.connection = connection
        # A name, not a value: quoted as one.
        self._statement = sql.SQL("LISTEN {}").format(sql.Identifier(name))
        try:
            self._listen()
        except BaseException:
            self.close()
            raise

    def _listen(self) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(self._statement)
        self.check_at = time.monotonic() + CHECK_INTERVAL

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when something may have been announced."""
        return self.connection.fileno()

    def received(self, *, before_check: Callable[[], None] | None = None) -> list[str]:
        """Return the payloads of what was announced since the last call, in order.

        Never waits, except now and then for an answer that shows that the server is still there.
        """
        # A backend that was terminated answers the first poll and raises at the second.
        self.connection.poll()
        if time.monotonic() >= self.check_at:
            if before_check is not None:
                before_check()
            # A server that was stopped or cut off says nothing at all. This stays the connection's only statement.
            self._listen()
        if self.connection.closed:
            raise psycopg2.OperationalError("the listening connection was closed")
        # Some may have come with the reply to the statement, and stand in the connection already.
        payloads = [notify.payload for notify in self.connection.notifies]
        self.connection.notifies.clear()
        return payloads

    def close(self) -> None:
        """Close the connection, whatever state it is in."""
        if not self.connection.closed:
            try:
                self.connection.close()
            except psycopg2.Error:
                pass  # It is dead already.
