"""The board: what one process writes down, another reads without its help, also when it is dead."""

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from queuedtask.model.task import new_id
from queuedtask.worker.board import CAPACITY, NEVER, Board, Entry

ONE, TWO = new_id(), new_id()


@pytest.fixture
def descriptor() -> Iterator[int]:
    descriptor = Board.create()
    yield descriptor
    os.close(descriptor)


def an_entry(task_id: str = ONE, attempt: int = 1, **changed: object) -> Entry:
    blank = Entry(task_id, attempt, thread=0, process=0, max_retries=None, began_at=0.0, kill_at=NEVER)
    return blank._replace(**changed)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------- a single process


def test_a_new_board_is_empty() -> None:
    board = Board()
    assert list(board.entries()) == []
    assert (board.turned_at, board.renewed_at) == (0.0, 0.0)


@pytest.mark.parametrize("max_retries", [None, 0, 3])
def test_what_is_written_is_read(max_retries: int | None) -> None:
    board = Board()
    board.write(
        2, TWO, 7, thread=2**40, process=4_194_304, max_retries=max_retries, began_at=1.5, kill_at=123456.000001
    )
    assert list(board.entries()) == [(2, Entry(TWO, 7, 2**40, 4_194_304, max_retries, 1.5, 123456.000001))]


def test_an_attempt_may_be_written_before_anything_else_is_known_of_it() -> None:
    board = Board()
    board.write(1, ONE, 1)
    assert list(board.entries()) == [(1, an_entry())]


def test_a_slot_has_what_was_written_last_and_nothing_of_what_was_there_before() -> None:
    board = Board()
    board.write(1, ONE, 1, thread=1, process=2, max_retries=3, began_at=4.0, kill_at=5.0)
    board.write(1, TWO, 9)
    assert list(board.entries()) == [(1, an_entry(TWO, 9))]


def test_busy_slots_come_in_their_order_and_free_ones_are_left_out() -> None:
    board = Board()
    for slot in (5, 1, 3):
        board.write(slot, ONE, slot)
    board.clear(3)
    assert list(board.entries()) == [(1, an_entry(attempt=1)), (5, an_entry(attempt=5))]
    board.clear(1)
    board.clear(2)  # it never was busy
    board.write(3, TWO, 30)
    assert list(board.entries()) == [(3, an_entry(TWO, 30)), (5, an_entry(attempt=5))]


def test_a_slot_beyond_the_capacity_is_not_seen_and_harms_nobody() -> None:
    board = Board()
    for slot in (CAPACITY - 1, CAPACITY):
        board.write(slot, ONE, slot)
    board.write(CAPACITY + 1, TWO, 1)
    board.write(CAPACITY * 1000, TWO, 1)
    board.clear(CAPACITY + 1)
    assert list(board.entries()) == [(n, an_entry(attempt=n)) for n in (CAPACITY - 1, CAPACITY)]


def test_the_two_times_of_the_header_are_apart_and_leave_the_entries_alone() -> None:
    board = Board()
    board.write(1, ONE, 1)
    board.turned_at = 123.456
    board.renewed_at = 1e9 + 0.25
    assert (board.turned_at, board.renewed_at) == (123.456, 1e9 + 0.25)
    assert list(board.entries()) == [(1, an_entry())]


def test_private_boards_have_nothing_in_common() -> None:
    one, other = Board(), Board()
    one.write(1, ONE, 1)
    one.turned_at = 1.0
    assert (list(other.entries()), other.turned_at) == ([], 0.0)


# ------------------------------------------------------------------------------------------------------ two ends of one


@pytest.mark.parametrize("has_memfd", [True, False])
def test_two_boards_on_one_descriptor_are_the_same_also_when_it_is_closed(
    monkeypatch: pytest.MonkeyPatch, has_memfd: bool
) -> None:
    if not has_memfd:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    descriptor = Board.create()
    worker, supervisor = Board(descriptor), Board(descriptor)
    os.close(descriptor)
    worker.write(3, ONE, 2, kill_at=9.0)
    worker.turned_at, supervisor.renewed_at = 1.0, 2.0
    assert list(supervisor.entries()) == [(3, an_entry(attempt=2, kill_at=9.0))]
    assert (supervisor.turned_at, worker.renewed_at) == (1.0, 2.0)
    worker.clear(3)
    assert list(supervisor.entries()) == []


def half_written(board: Board, slot: int) -> None:
    """Leave an entry as a writer leaves it that dies in the middle."""
    at = 64 + (slot - 1) * 96
    (sequence,) = struct.unpack_from("<q", board._memory, at)
    struct.pack_into("<q", board._memory, at, sequence | 1)
    board._memory[at + 8 : at + 24] = b"\xff" * 16


def test_an_entry_whose_writer_died_in_the_middle_is_not_read_and_can_be_written_again(descriptor: int) -> None:
    worker, supervisor = Board(descriptor), Board(descriptor)
    for slot in (1, 2, 3):
        worker.write(slot, ONE, slot)
    half_written(worker, 2)
    assert [slot for slot, _ in supervisor.entries()] == [1, 3]
    worker.write(2, TWO, 4)
    assert list(supervisor.entries())[1] == (2, an_entry(TWO, 4))
    half_written(worker, 2)
    worker.clear(2)
    assert [slot for slot, _ in supervisor.entries()] == [1, 3]


# ------------------------------------------------------------------------------------------------------- two processes

WRITE_ONCE = """
board.turned_at = 77.5
board.write(1, ONE, 1, thread=threading.get_native_id(), began_at=1.0, kill_at=2.0)
board.write(2, TWO, 2)
board.write(3, TWO, 3)
board.clear(2)
print(threading.get_native_id(), flush=True)
# One call that holds the interpreter's lock and does not end.
re.match(r"(a+)+$", "a" * 60 + "b")
"""

# All numbers of an entry are the same, so that one can tell whether they belong together.
WRITE_ALL_THE_TIME = """
print(flush=True)
for n in itertools.count(1):
    board.write(1, ONE, n, thread=n, process=n, max_retries=n, began_at=n, kill_at=n)
    board.write(2, TWO, n, thread=n, process=n, max_retries=n, began_at=n, kill_at=n)
    board.clear(1)
"""


WRITE_TIMES = """
board.turned_at = board.renewed_at = 4095.9
print(flush=True)
while True:
    board.turned_at = board.renewed_at = 4096.5
    board.turned_at = board.renewed_at = 4095.9
"""


@contextmanager
def writer(descriptor: int, body: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run a process that has the board; give it and what it said when it had begun."""
    preface = f"""
import itertools, re, threading
from queuedtask.worker.board import Board
board, ONE, TWO = Board({descriptor}), {ONE!r}, {TWO!r}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", preface + body], pass_fds=[descriptor], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()
            process.wait(10)


def test_a_killed_process_leaves_what_it_was_running_to_be_read(descriptor: int) -> None:
    board = Board(descriptor)
    with writer(descriptor, WRITE_ONCE) as (process, said):
        expected = [
            (1, an_entry(thread=int(said), began_at=1.0, kill_at=2.0)),
            (3, an_entry(TWO, 3)),
        ]
        assert (list(board.entries()), board.turned_at) == (expected, 77.5)
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    assert (list(board.entries()), board.turned_at) == (expected, 77.5)


def mixed(entries: Iterable[tuple[int, Entry]]) -> list[tuple[int, Entry]]:
    """Return the entries that were put together from several."""
    return [(n, entry) for n, entry in entries if entry.task_id != {1: ONE, 2: TWO}[n] or len(set(entry[1:])) > 1]


def test_an_entry_is_read_as_it_was_written_while_it_is_written_and_cleared(descriptor: int) -> None:
    board = Board(descriptor)
    with writer(descriptor, WRITE_ALL_THE_TIME):
        read = [pair for _ in range(30_000) for pair in board.entries()]
    assert len(read) > 1000
    assert mixed(read) == []


def test_the_times_of_the_header_are_read_as_they_were_written_while_they_are_written(descriptor: int) -> None:
    board = Board(descriptor)
    with writer(descriptor, WRITE_TIMES):
        read = {time for _ in range(100_000) for time in (board.turned_at, board.renewed_at)}
    assert read <= {4095.9, 4096.5}


def test_a_process_that_is_killed_while_it_writes_leaves_whole_entries_or_none(descriptor: int) -> None:
    for _ in range(5):
        with writer(descriptor, WRITE_ALL_THE_TIME):
            pass
        assert mixed(Board(descriptor).entries()) == []
