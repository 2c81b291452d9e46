"""A self-pipe: wakes the manager's wait from slots and from signals."""

import os
from typing import Final

_BYTE: Final = b"."


class Waker:
    """A pipe whose reading end is waited for; waking an awake manager costs nothing."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self.writer, False)
        self._is_set = False

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._reader

    def wake(self) -> None:
        """End the manager's wait, this one or the next one. Safe from any thread and from a signal handler."""
        if not self._is_set:
            self._is_set = True
            try:
                os.write(self.writer, _BYTE)
            except BlockingIOError:
                pass  # Full: there is enough in it to wake anybody.

    def clear(self) -> None:
        """Empty the pipe. Whatever woke the manager before this returns is seen by the turn that follows."""
        try:
            while len(os.read(self._reader, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass
        # Last: were the flag taken down first, a wake in between would leave it up over an empty pipe, and every
        # later wake would be lost.
        self._is_set = False

    def close(self) -> None:
        """Close both ends."""
        os.close(self._reader)
        os.close(self.writer)
