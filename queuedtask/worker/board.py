"""The board: memory that a worker process shares with its supervisor.

The process writes down what each slot runs before the task's own code begins, and until when the process may be left
alone with it. The supervisor reads that without the process's help: while a call holds the interpreter's lock, after a
crash, after ``kill -9``. So it knows when to kill, what a dead process takes along, and what it had only claimed.

Times are on the monotonic clock, which all processes of a machine share. An entry is written by one side and read by
the other without a lock; a sequence number that is odd while it is written tells the reader to look again.
"""

import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from typing import Final, NamedTuple

NEVER: Final = float("inf")
KILL_MARGIN: Final = 2.0
"""Seconds beyond a task's grace that a process has to give an attempt up by itself, before its supervisor kills it."""
CAPACITY: Final = 4096
"""Slots that fit; a slot beyond them works, but its supervisor does not see it."""

_ENTRY: Final = struct.Struct("<q36s4xqqqqdd")
_PAYLOAD: Final = struct.Struct("<36s4xqqqqdd")
_ENTRIES_AT: Final = 64
_ENTRY_SIZE: Final = 96
_SIZE: Final = _ENTRIES_AT + CAPACITY * _ENTRY_SIZE
_TURNED_AT, _RENEWED_AT, _SLOTS_AT, _CONNECTED = 0, 8, 16, 24
_ATTEMPT_AT: Final = 48  # within an entry
_DOUBLE: Final = struct.Struct("<d")
_INTEGER: Final = struct.Struct("<q")
_FREE: Final = _INTEGER.pack(0)


class Entry(NamedTuple):
    """What one slot runs."""

    task_id: str
    attempt: int
    thread: int
    """The system's number of the slot's thread."""
    process: int
    """The process that the attempt has for itself; 0 when it runs in the slot's thread."""
    max_retries: int | None
    """What the task's function declares; the supervisor's side cannot import it."""
    began_at: float
    kill_at: float
    """When the process is to be killed if the slot still runs this and the manager does not answer; infinite for
    never."""


class Board:
    """Shared memory for one worker process. Without a descriptor it is private: a worker that nobody supervises."""

    def __init__(self, descriptor: int | None = None) -> None:
        self._memory = mmap.mmap(-1 if descriptor is None else descriptor, _SIZE)
        # The writer's own: what it has written last.
        self._sequences: dict[int, int] = {}
        self._highest = 0

    @staticmethod
    def create() -> int:
        """Return the descriptor of a new board, to be given to :class:`Board` in both processes."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("queuedtask-board")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _SIZE)
        return descriptor

    # ------------------------------------------------------------------------------------------------------ the header

    @property
    def turned_at(self) -> float:
        """When the manager's loop last went round; 0 before its first turn."""
        return self._get(_DOUBLE, _TURNED_AT)

    @turned_at.setter
    def turned_at(self, value: float) -> None:
        self._memory[_TURNED_AT : _TURNED_AT + 8] = _DOUBLE.pack(value)

    @property
    def renewed_at(self) -> float:
        """When the supervisor last renewed the worker's lease; 0 when it never did."""
        return self._get(_DOUBLE, _RENEWED_AT)

    @renewed_at.setter
    def renewed_at(self, value: float) -> None:
        self._memory[_RENEWED_AT : _RENEWED_AT + 8] = _DOUBLE.pack(value)

    @property
    def is_connected(self) -> bool:
        """Whether the process has what it needs for its work, which is a worker's connection to the database."""
        return self._memory[_CONNECTED] == 1

    @is_connected.setter
    def is_connected(self, value: bool) -> None:
        self._memory[_CONNECTED] = value

    def _get(self, shape: struct.Struct, at: int) -> float:
        return float(shape.unpack_from(self._memory, at)[0])

    # ----------------------------------------------------------------------------------------------------- the entries

    def write(
        self,
        slot: int,
        task_id: str,
        attempt: int,
        thread: int = 0,
        process: int = 0,
        max_retries: int | None = None,
        began_at: float = 0.0,
        kill_at: float = NEVER,
    ) -> None:
        """Write down what a slot (numbered from 1) runs."""
        if slot <= CAPACITY:
            at = _ENTRIES_AT + (slot - 1) * _ENTRY_SIZE
            retries = -1 if max_retries is None else max_retries
            sequence = self._sequences[slot] = self._sequences.get(slot, 0) + 2
            memory = self._memory
            # The odd number is written first, the even one when all the rest is there. Not by pack_into, which fills
            # what it writes with zeros first: a reader would see them.
            memory[at : at + 8] = _INTEGER.pack(sequence - 1)
            memory[at + 8 : at + _ENTRY_SIZE] = _PAYLOAD.pack(
                task_id.encode(), attempt, thread, process, retries, began_at, kill_at
            )
            memory[at : at + 8] = _INTEGER.pack(sequence)
            if slot > self._highest:
                self._highest = slot
                memory[_SLOTS_AT : _SLOTS_AT + 8] = _INTEGER.pack(slot)

    def clear(self, slot: int) -> None:
        """Write down that a slot is free."""
        if slot <= CAPACITY:
            at = _ENTRIES_AT + (slot - 1) * _ENTRY_SIZE + _ATTEMPT_AT
            self._memory[at : at + 8] = _FREE

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """Yield every busy slot with what it runs."""
        (slots,) = _INTEGER.unpack_from(self._memory, _SLOTS_AT)
        for slot in range(1, slots + 1):
            entry = self._read(slot)
            if entry is not None:
                yield slot, entry

    def _read(self, slot: int) -> Entry | None:
        at = _ENTRIES_AT + (slot - 1) * _ENTRY_SIZE
        for _ in range(1000):
            before = _ENTRY.unpack_from(self._memory, at)
            (after,) = _INTEGER.unpack_from(self._memory, at)
            if before[0] == after and not after & 1:  # 0 stands in a slot that was never written
                _, task_id, attempt, thread, process, retries, *times = before
                if attempt == 0:
                    return None
                declared = None if retries < 0 else retries
                return Entry(task_id.decode(), attempt, thread, process, declared, *times)
        # Its writer died in the middle: the process was killed before the task's own code began, or after it ended.
        return None
