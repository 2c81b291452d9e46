"""The wire: whole messages in their order, whatever the other end does: reads late, dies, is stopped in between."""

import contextlib
import fcntl
import json
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helpers import wait_until
from queuedtask.worker.wire import Message, Wire, WireClosed

MEBIBYTE = 2**20


@pytest.fixture
def ends() -> Iterator[tuple[Wire, Wire]]:
    here, socket_ = Wire.pair()
    there = Wire(socket_)
    yield here, there
    here.close()
    there.close()


@pytest.fixture
def raw() -> Iterator[tuple[Wire, socket.socket]]:
    """Give a wire whose other end is a bare socket."""
    here, there = Wire.pair()
    with there:
        yield here, there
    here.close()


def receive_all(wire: Wire, number: int, meanwhile: Callable[[], None] = lambda: None) -> list[Message]:
    """Receive until so many messages are there."""
    found: list[Message] = []

    def is_complete() -> bool:
        meanwhile()
        found.extend(wire.receive())
        return len(found) >= number

    wait_until(is_complete, interval=0.0)
    return found


def assert_closed(wire: Wire) -> None:
    for _ in range(2):
        with pytest.raises(WireClosed):
            wire.receive()


# ------------------------------------------------------------------------------------------------------------- messages


def test_messages_go_both_ways_in_their_order(ends: tuple[Wire, Wire]) -> None:
    here, there = ends
    here.send(order="stop", seconds=None)
    here.send(text="ü \x00 \ud800 \n", numbers=[1, 2.5], nested={"a": {"b": []}})
    there.send(hello=True)
    assert there.receive() == [
        {"order": "stop", "seconds": None},
        {"text": "ü \x00 \ud800 \n", "numbers": [1, 2.5], "nested": {"a": {"b": []}}},
    ]
    assert here.receive() == [{"hello": True}]
    assert (here.receive(), there.receive()) == ([], [])


def test_a_message_that_comes_in_pieces_is_received_when_it_is_whole(raw: tuple[Wire, socket.socket]) -> None:
    wire, other = raw
    line = json.dumps({"a": "ü" * 3}, ensure_ascii=False).encode() + b"\n"
    for byte in line[:-1]:
        other.send(bytes([byte]))
        assert wire.receive() == []
    other.send(b'\n{"b": 2}\n{"c"')
    assert wire.receive() == [{"a": "üüü"}, {"b": 2}]
    assert wire.receive() == []
    other.send(b": 3}\n")
    assert wire.receive() == [{"c": 3}]


def test_waiting_ends_when_something_comes_and_when_the_other_end_goes(ends: tuple[Wire, Wire]) -> None:
    here, there = ends
    assert not here.wait(0)
    assert not here.wait(0.01)
    there.send(a=1)
    assert here.wait(0)
    assert here.wait()
    here.receive()
    assert not here.wait(0)
    threading.Thread(target=there.close).start()
    assert here.wait(10)
    assert_closed(here)


def test_several_threads_send_at_once_and_no_message_is_cut_in_two(ends: tuple[Wire, Wire]) -> None:
    here, there = ends
    begin = threading.Barrier(4)

    def send(thread: int) -> None:
        begin.wait()
        for number in range(150):
            here.send(thread=thread, number=number, filler="x" * (number * 97 % 5000))

    threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    found = receive_all(there, 600, here.flush)
    for thread in threads:
        thread.join()
    for n in range(4):
        mine = [message for message in found if message["thread"] == n]
        assert [message["number"] for message in mine] == list(range(150))
        assert all(len(message["filler"]) == message["number"] * 97 % 5000 for message in mine)


# ----------------------------------------------------------------------------------------------- an end that reads late


def test_a_large_message_does_not_hold_up_its_sender_and_arrives_while_both_ends_go_on(
    ends: tuple[Wire, Wire],
) -> None:
    here, there = ends
    text = "0123456789abcdef" * (8 * MEBIBYTE // 16)
    here.send(text=text)
    assert here.is_unsent
    assert receive_all(there, 1, here.flush) == [{"text": text}]
    assert not here.is_unsent


def test_an_end_that_does_not_read_holds_up_nobody_and_gets_everything_later_in_its_order(
    ends: tuple[Wire, Wire],
) -> None:
    here, there = ends
    while not here.is_unsent:
        here.send(number=0, filler="x" * 10_000)
    for number in range(1, 100):
        here.send(number=number)
        here.flush()
    # Nothing of it depends on further messages, only on being flushed.
    found = []
    while here.is_unsent:
        found += there.receive()
        here.flush()
    found += there.receive()
    numbers = [message["number"] for message in found]
    assert numbers == sorted(numbers)
    assert numbers[-100:] == list(range(100))


def test_a_flush_with_a_timeout_waits_for_the_reader_as_long_as_that(ends: tuple[Wire, Wire]) -> None:
    here, there = ends
    here.send(text="x" * 4 * MEBIBYTE)
    before = time.monotonic()
    here.flush(timeout=0.05)
    assert time.monotonic() - before >= 0.05
    assert here.is_unsent
    found: list[Message] = []
    reader = threading.Thread(target=lambda: found.extend(receive_all(there, 1)))
    reader.start()
    here.flush(timeout=10)
    assert not here.is_unsent
    reader.join(10)
    assert len(found[0]["text"]) == 4 * MEBIBYTE


def test_what_is_kept_for_an_end_that_never_reads_is_bounded_and_what_arrives_is_whole(
    ends: tuple[Wire, Wire],
) -> None:
    here, there = ends
    for number in range(40):
        here.send(number=number, filler="x" * MEBIBYTE)
    assert len(here._unsent) < 20 * MEBIBYTE
    found = receive_all(there, 15, here.flush)
    assert [message["number"] for message in found] == list(range(len(found)))
    assert {len(message["filler"]) for message in found} == {MEBIBYTE}


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Allow descriptors above 1,100, as servers have them; an ordinary user often begins with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1200
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"a process may not have more than {hard} descriptors here")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_descriptors_may_have_any_number() -> None:
    near, far = socket.socketpair()
    with near, far:
        high = socket.socket(fileno=fcntl.fcntl(near.fileno(), fcntl.F_DUPFD_CLOEXEC, 1100))
    with contextlib.closing(Wire(high)) as wire:
        assert wire.fileno() >= 1100
        assert wire.wait(0)  # the other end is gone
    here, there = Wire.pair()
    with there, contextlib.closing(here):
        high = socket.socket(fileno=fcntl.fcntl(there.fileno(), fcntl.F_DUPFD_CLOEXEC, 1100))
        with contextlib.closing(Wire(high)) as wire:
            wire.send(text="x" * 4 * MEBIBYTE)
            wire.flush(timeout=0.01)
            assert receive_all(here, 1, wire.flush)


# ------------------------------------------------------------------------------------------------- an end that is gone


def test_what_was_sent_before_the_end_is_received_before_it(ends: tuple[Wire, Wire]) -> None:
    here, there = ends
    there.send(a=1)
    there.send(b=2)
    there.close()
    assert here.receive() == [{"a": 1}, {"b": 2}]
    assert_closed(here)


def test_what_was_sent_before_the_end_is_received_also_when_the_other_end_left_something_unread(
    ends: tuple[Wire, Wire],
) -> None:
    here, there = ends
    here.send(never="read")
    there.send(a=1)
    there.close()  # the system answers the next one with an error instead of an end
    assert here.receive() == [{"a": 1}]
    assert_closed(here)


def test_half_a_message_before_the_end_is_nothing(raw: tuple[Wire, socket.socket]) -> None:
    wire, other = raw
    other.send(b'{"a": 1}\n{"b": ')
    other.close()
    assert wire.receive() == [{"a": 1}]
    assert_closed(wire)


def test_sending_to_an_end_that_is_gone_is_lost_without_a_word(ends: tuple[Wire, Wire]) -> None:
    here, there = ends
    here.send(text="x" * 4 * MEBIBYTE)
    assert here.is_unsent
    there.close()
    here.flush(timeout=10)
    assert not here.is_unsent
    here.send(a=1)
    assert not here.is_unsent
    here.close()
    here.send(b=2)
    here.flush(timeout=10)
    assert not here.is_unsent


SPEAK = """
import os, subprocess, sys, time
from queuedtask.worker.wire import Wire
descriptor = int(sys.argv[1])
wire = Wire.at(descriptor)
look = f"import os; os.fstat({descriptor})"
grandchild = subprocess.run([sys.executable, "-c", look], close_fds=False, stderr=subprocess.DEVNULL)
wire.send(pid=os.getpid(), is_inherited=grandchild.returncode == 0)
wire.send(rest="x" * 4_000_000)
while True:
    wire.flush(timeout=10)
"""


@contextlib.contextmanager
def speaker() -> Iterator[tuple[Wire, "subprocess.Popen[bytes]"]]:
    """Run a process at the other end that sends a short message and a long one."""
    wire, end = Wire.pair()
    with end:
        process = subprocess.Popen([sys.executable, "-c", SPEAK, str(end.fileno())], pass_fds=[end.fileno()])
    try:
        yield wire, process
    finally:
        process.kill()
        process.wait(10)
        wire.close()


def test_a_process_takes_its_end_over_and_its_own_children_do_not() -> None:
    with speaker() as (wire, process):
        (message, *_) = receive_all(wire, 1)
        assert message == {"pid": process.pid, "is_inherited": False}


def until_closed(wire: Wire) -> list[Message]:
    found: list[Message] = []

    def is_closed() -> Any:
        try:
            found.extend(wire.receive())
        except WireClosed:
            return True

    wait_until(is_closed)
    return found


def test_a_process_that_is_killed_in_the_middle_of_a_message_has_said_what_came_before() -> None:
    with speaker() as (wire, process):
        assert wire.wait(10)
        process.kill()
        process.wait(10)
        assert [message["pid"] for message in until_closed(wire)] == [process.pid]
