"""The two shapes of a task that cross seams: what ``add_task`` makes, and what a claim brings."""

import os
import threading
import time
from datetime import datetime
from typing import NamedTuple
from uuid import UUID


class TaskSpec(NamedTuple):
    """A task as it is about to be added: checked and serialised, not yet written."""

    id: str
    name: str
    function: str
    args: str = "[]"
    kwargs: str = "{}"
    channel: str = "default"
    priority: int = 0
    delay: float | None = None
    """Seconds from the insert, on the database's clock."""
    run_at: datetime | None = None
    """An aware time; at most one of delay and run_at is given."""
    timeout: float | None = None
    max_retries: int | None = None
    context: str | None = None
    meta: str | None = None


class Task(NamedTuple):
    """A claimed row, frozen: all that one attempt needs. JSON stays text until the slot decodes it."""

    id: str
    name: str
    function: str
    args: str
    kwargs: str
    context: str | None
    attempt: int
    failures: int
    max_retries: int | None
    timeout: float | None
    lost_count: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """The id and the attempt: what nothing else has, now or later."""
        return self.id, self.attempt

    @property
    def is_suspect(self) -> bool:
        """Tell whether it has lost a process before: then it runs alone in one, so that it can take nobody along."""
        return self.lost_count > 0


class TaskOptions(NamedTuple):
    """Options that a function declares with ``@queue.task``; None stands for "not given"."""

    name: str | None = None
    channel: str | None = None
    priority: int | None = None
    timeout: float | None = None
    max_retries: int | None = None


class _Clock:
    """The state behind :func:`new_id`: the last millisecond and the counter within it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.last = 0
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        # A fork may have copied the lock while another thread held it.
        self.lock = threading.Lock()

    def tick(self) -> int:
        """Return the next 60-bit stamp: 48 bits of milliseconds, 12 of sub-milliseconds, strictly growing."""
        with self.lock:
            nanoseconds = time.time_ns()
            milliseconds, rest = divmod(nanoseconds, 1_000_000)
            self.last = max(self.last + 1, milliseconds << 12 | rest * 4096 // 1_000_000)
            return self.last


_clock = _Clock()


def new_id() -> str:
    """Make a UUIDv7 (RFC 9562, method 3: the sub-millisecond part of the time in ``rand_a``).

    Ids made by one process sort in the order in which they were made, even when the clock is set back.
    """
    stamp = _clock.tick()
    tail = int.from_bytes(os.urandom(8)) & 0x3FFF_FFFF_FFFF_FFFF
    return str(UUID(int=(stamp >> 12) << 80 | 0x7 << 76 | (stamp & 0xFFF) << 64 | 0b10 << 62 | tail))
