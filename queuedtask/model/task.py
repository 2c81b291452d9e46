"""The two shapes of a task that cross seams: what ``add_task`` makes, and what a claim brings."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from queuedtask.model.options import PROCESS, reserved


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
    parents: tuple[str, ...] = ()
    """The ids of the tasks that it waits for, each once."""
    on_parent_failure: str = "cancel"
    pickled_function: str | None = None
    """In base64: the function itself, signed for this id, when no path leads to it."""
    unique_key: str | None = None
    on_conflict: str | None = None
    """What is to happen when a task that has not ended has the same key; None stands for "return"."""
    concurrency_key: str | None = None
    """Shared by tasks of which only so many run at a time; how many stands in ``meta``."""
    auto_remove: bool = False


class Call(NamedTuple):
    """What a task is to call, checked and serialised, and what its function declares."""

    path: str
    args: str
    kwargs: str
    options: dict[str, Any]
    local: Callable[..., object] | None = None
    """The function itself when no worker can import it."""


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
    channel: str = "default"
    parents: Sequence[str] | None = None
    """The ids of all its parents; None without any."""
    meta: str | None = None
    pickled_function: str | None = None
    """In base64: the function itself, when no path leads to it; not yet verified."""
    concurrency_key: str | None = None
    eligible_at: float | None = None
    """Since when it could have been claimed, on the monotonic clock of the machine that claimed it."""

    @property
    def key(self) -> tuple[str, int]:
        """The id and the attempt: what nothing else has, now or later."""
        return self.id, self.attempt

    @property
    def is_suspect(self) -> bool:
        """Tell whether it has lost a process before: then it runs alone in one, so that it can take nobody along."""
        return self.lost_count > 0

    @property
    def isolation(self) -> str | None:
        """Where it is to run, as far as its row says so; None leaves that to what its function declares."""
        if self.is_suspect:
            return PROCESS
        return None if self.meta is None else reserved(self.meta, "isolation")


_RANDOM_BYTES = 8 * 512


class _Source:
    """The state behind :func:`new_id`: the last stamp, and random bytes that are fetched many at a time."""

    def __init__(self) -> None:
        self._last = 0
        self._renew()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        # A fork may have copied the lock while another thread held it; and no two processes share their random bytes.
        self.lock = threading.Lock()
        self._random = b""
        self._used = 0

    def next(self) -> tuple[int, int]:
        """Return the next stamp, 48 bits of milliseconds and 12 below them, strictly growing; and 62 random bits."""
        with self.lock:
            milliseconds, rest = divmod(time.time_ns(), 1_000_000)
            self._last = max(self._last + 1, milliseconds << 12 | rest * 4096 // 1_000_000)
            if self._used >= len(self._random):
                self._random, self._used = os.urandom(_RANDOM_BYTES), 0
            start = self._used
            self._used += 8
            return self._last, int.from_bytes(self._random[start : self._used]) & 0x3FFF_FFFF_FFFF_FFFF


_source = _Source()


def new_id() -> str:
    """Make a UUIDv7 (RFC 9562, method 3: the sub-millisecond part of the time in ``rand_a``).

    Ids made by one process sort in the order in which they were made, even when the clock is set back.
    """
    stamp, tail = _source.next()
    text = f"{(stamp >> 12) << 80 | 0x7 << 76 | (stamp & 0xFFF) << 64 | 0b10 << 62 | tail:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def first_id(time_: float) -> str:
    """Return the smallest id that :func:`new_id` can make at this time, in seconds since 1970."""
    return str(UUID(int=max(0, int(time_ * 1000)) << 80))


def time_of(task_id: str) -> datetime | None:
    """Return when an id was made, by the clock of whoever made it; None for one that is not a UUIDv7."""
    number = UUID(task_id).int
    if number >> 76 & 0xF != 7:
        return None
    stamp = number >> 80 << 12 | number >> 64 & 0xFFF
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=stamp * 1000 // 4096)
