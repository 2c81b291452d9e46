"""Listening: a connection that hears what is announced under one name, and notices when it has gone deaf."""

import time
from collections.abc import Callable
from typing import Final

import psycopg2
import psycopg2.extensions
from psycopg2 import sql

CHECK_INTERVAL: Final = 10.0
"""Seconds between two looks whether there is still a server behind the connection."""


Connection = psycopg2.extensions.connection


class Listener:
    """What is announced under a name. For one thread; what the driver raises means that it has to be replaced."""

    def __init__(self, connection: Connection, name: str, *, watch: Callable[[Connection], None] | None = None) -> None:
        """Begin to listen on a connection, which is the listener's from now on, also where this raises.

        ``watch`` is called before an answer of the server is awaited, which may take for ever.
        """
        self._connection = connection
        self._watch = watch
        # A name, not a value: quoted as one.
        self._statement = sql.SQL("LISTEN {}").format(sql.Identifier(name))
        try:
            self._listen()
        except BaseException:
            self.close()
            raise

    def _listen(self) -> None:
        if self._watch is not None:
            self._watch(self._connection)
        with self._connection.cursor() as cursor:
            cursor.execute(self._statement)
        self.check_at = time.monotonic() + CHECK_INTERVAL

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when something may have been announced."""
        return self._connection.fileno()

    def received(self) -> list[str]:
        """Return the payloads of what was announced since the last call, in order.

        Never waits, except now and then for an answer that shows that the server is still there.
        """
        # A backend that was terminated answers the first poll and raises at the second.
        self._connection.poll()
        if time.monotonic() >= self.check_at:
            # A server that was stopped or cut off says nothing at all. This stays the connection's only statement.
            self._listen()
        if self._connection.closed:
            raise psycopg2.OperationalError("the listening connection was closed")
        # Some may have come with the reply to the statement, and stand in the connection already.
        payloads = [notify.payload for notify in self._connection.notifies]
        self._connection.notifies.clear()
        return payloads

    def close(self) -> None:
        """Close the connection, whatever state it is in."""
        if not self._connection.closed:
            try:
                self._connection.close()
            except psycopg2.Error:
                pass  # It is dead already.
