"""A wire: messages between two processes, as lines of JSON on a socket.

Neither end waits for the other: what cannot be read or written at once is read or written later, so a process that was
stopped in the middle of a message cannot hold up the one that talks to it.
"""

import json
import select
import socket
import threading
import time
from typing import Any, Final

Message = dict[str, Any]

_CHUNK: Final = 65536
_MOST_UNSENT: Final = 16 * 1024 * 1024


class WireClosed(Exception):
    """Say that the other end is gone."""


class Wire:
    """One end. Any thread may send; receiving is for one."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(False)
        self._received = bytearray()
        self._unsent = b""
        self._sending = threading.Lock()
        self.is_closed = False
        self.keeps_all = False
        """However much the other end leaves unread, nothing is dropped."""

    @classmethod
    def pair(cls) -> tuple["Wire", socket.socket]:
        """Return one end, and the other one as a socket to hand to a process."""
        here, there = socket.socketpair()
        return cls(here), there

    @classmethod
    def at(cls, descriptor: int) -> "Wire":
        """Return the end that this process has inherited; its own children do not inherit it."""
        end = socket.socket(fileno=descriptor)
        end.set_inheritable(False)
        return cls(end)

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._socket.fileno()

    def send(self, **message: Any) -> None:
        """Send a message, or keep it until the other end reads. To an end that is gone it is lost without a word."""
        if self.is_closed or (len(self._unsent) > _MOST_UNSENT and not self.keeps_all):
            return
        line = json.dumps(message).encode() + b"\n"
        with self._sending:
            self._unsent += line
            self._flush(0.0)

    @property
    def is_unsent(self) -> bool:
        """Tell whether something waits until the other end reads."""
        return bool(self._unsent)

    def flush(self, timeout: float = 0.0) -> None:
        """Send what is kept, as far as the other end takes it within some seconds."""
        with self._sending:
            self._flush(timeout)

    def _flush(self, timeout: float) -> None:
        give_up_at = time.monotonic() + timeout
        while self._unsent and not self.is_closed:
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except BlockingIOError:
                if not self._poll(select.POLLOUT, give_up_at - time.monotonic()):
                    return
            except OSError:
                self._unsent = b""
                return

    def receive(self) -> list[Message]:
        """Return the messages that have arrived.

        Raises WireClosed when there are none and the other end is gone; or not ours any more: code of a task's may
        have written on a descriptor that it does not own.
        """
        closed = has_line = False
        while not closed:
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            closed = not data
            has_line = has_line or b"\n" in data
            self._received += data
        if closed and not has_line:
            raise WireClosed
        if not has_line:
            return []
        *lines, self._received = self._received.split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            raise WireClosed from None
        if not all(isinstance(message, dict) for message in messages):
            raise WireClosed
        return messages

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until something can be received, the end of the other one included; False after the timeout."""
        return self._poll(select.POLLIN, timeout)

    def _poll(self, event: int, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self._socket, event)
        return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1000))

    def close(self) -> None:
        """Close this end."""
        self.is_closed = True
        self._socket.close()
