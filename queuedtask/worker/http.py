"""The crew of a server for HTTP: one process at a time on a socket that outlives it."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from queuedtask.worker.crew import Child, Crew
from queuedtask.worker.listening import Listening

STATUS_INTERVAL: Final = 1.0
"""Seconds after which a server hears how the tree is, although nothing has changed."""


class HttpServer(Crew):
    """``arguments`` are those of the command ``serve``.

    ``on_ready`` is called with the URL when it is served for the first time. A server of probes is told by its
    supervisor, in every turn, how the whole tree is.
    """

    kind = "HTTP server"

    def __init__(
        self, arguments: Sequence[str], listening: Listening, *, on_ready: Callable[[str], None], has_probes: bool
    ) -> None:
        super().__init__(["serve", *arguments])
        self._listening = listening
        self._on_ready: Callable[[str], None] | None = on_ready
        self.has_probes = has_probes
        self._told: tuple[dict[str, Any], float, list[Child]] = ({}, 0.0, [])

    def tell(self, status: dict[str, Any], now: float) -> None:
        """Say how the tree is."""
        if not self.has_probes:
            return
        before, told_at, children = self._told
        if status == before and now < told_at + STATUS_INTERVAL and children == self.children:
            return
        self._told = status, now, self.children
        for child in self.children:
            # One that does not read gets no heap of old news.
            if not child.process.wire.is_unsent:
                child.order(status=status)

    def stop(self, elapsed: float) -> None:
        """See :meth:`Crew.stop`; nobody listens any more when the children have taken that in."""
        self._listening.close()
        super().stop(elapsed)

    def close(self) -> None:
        """Free the address."""
        self._listening.close()

    def _start(self) -> Child:
        return Child(self._command, *(each.fileno() for each in self._listening.sockets))

    def _welcome(self, child: Child) -> None:
        super()._welcome(child)
        if self._on_ready is not None:
            self._on_ready(self._listening.address.url)
            self._on_ready = None
