"""Serving a WSGI application with waitress on sockets that are there already, and ending in order."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer, create_server
from waitress.task import WSGITask

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

logger = logging.getLogger("queuedtask.web")

TURN_INTERVAL: Final = 1.0
"""Seconds at most between two turns of the loop."""
PATIENCE: Final = 5.0
"""Seconds, once the server is to end, for which a client may be silent that has to send or to read something."""
MOST_CONNECTIONS: Final = 1000
NEVER: Final = float("inf")


class Server:
    """Construct and :meth:`run`; :meth:`stop` may be called from any thread."""

    def __init__(self, application: "WSGIApplication", sockets: Sequence[socket.socket], *, threads: int) -> None:
        self._map: dict[int, Any] = {}
        created = create_server(
            application, map=self._map, sockets=list(sockets), threads=threads, connection_limit=MOST_CONNECTIONS
        )
        self._dispatcher = created.task_dispatcher
        self._listeners = [each for each in self._map.values() if isinstance(each, BaseWSGIServer)]
        for listener in self._listeners:
            listener.channel_class = _Channel
        self._stop_by = NEVER
        self._is_draining = False
        self._stopping = threading.Lock()

    def run(self, on_turn: Callable[[], None]) -> bool:
        """Serve until told to stop; tell whether every request was answered."""
        while not self._is_finished():
            on_turn()
            wasyncore.poll2(self._interval(), self._map)
        if unanswered := sum(bool(channel.requests) for channel in self._channels()):
            logger.warning("requests that are given up, because the time is over: %s", unanswered)
            self._dispatcher.set_thread_count(0)
        else:
            self._dispatcher.shutdown(timeout=1)
        wasyncore.close_all(self._map)
        return not unanswered

    def stop(self, seconds: float) -> None:
        """Accept nothing more, answer what has been asked within so many seconds, and end. A later call may hasten."""
        with self._stopping:
            self._stop_by = min(self._stop_by, time.monotonic() + seconds)
        self._listeners[0].pull_trigger()

    def _interval(self) -> float:
        if not self._is_draining:
            return TURN_INTERVAL
        # What a client owes us is judged by the clock; the end of a request wakes the loop.
        return max(0.0, min(0.1, self._stop_by - time.monotonic()))

    def _is_finished(self) -> bool:
        if self._stop_by == NEVER:
            return False
        if not self._is_draining:
            self._is_draining = True
            self._accept_the_last()
        for channel in self._channels():
            if not _is_busy(channel):
                channel.handle_close()
        return time.monotonic() >= self._stop_by or not self._channels()

    def _accept_the_last(self) -> None:
        """Accept those whose connections the system has made already, and nobody after them."""
        for listener in self._listeners:
            for _ in range(MOST_CONNECTIONS):
                before = len(self._map)
                listener.handle_accept()
                if len(self._map) == before:
                    break
            # Not its own close(), which takes along what wakes the loop. Its tasks see that it is closed.
            wasyncore.dispatcher.close(listener)

    def _channels(self) -> list[HTTPChannel]:
        return [each for each in list(self._map.values()) if isinstance(each, HTTPChannel)]


class _Task(WSGITask):
    """A request; when the server is about to end, its client is told so with the answer."""

    def execute(self) -> None:
        try:
            super().execute()
        except Exception:
            raise
        except BaseException as error:
            # Waitress would neither answer it nor close the connection.
            raise RuntimeError(f"the application raised {type(error).__name__}") from error

    def build_response_header(self) -> bytes:
        if not self.channel.server.accepting:
            request: Any = self.request  # also one that could not be read, which is answered and closed
            request.headers["CONNECTION"] = "close"
        return super().build_response_header()


class _Channel(HTTPChannel):
    task_class = _Task


def _is_busy(channel: HTTPChannel) -> bool:
    """Tell whether a request is being answered, or a client still sends or reads one and does not take too long."""
    if channel.requests:
        return True
    # One that was just accepted has not sent a byte yet; one that was kept alive is not waited for.
    has_sent_nothing = channel.last_activity == channel.creation_time
    is_under_way = has_sent_nothing or channel.request is not None or channel.writable()
    return bool(is_under_way) and time.time() - channel.last_activity < PATIENCE
