"""The self-pipe behind the manager's wait."""

import os
import select
from collections.abc import Iterator

import pytest

from queuedtask.worker.waker import Waker


@pytest.fixture
def waker() -> Iterator[Waker]:
    waker = Waker()
    yield waker
    waker.close()


def is_awake(waker: Waker) -> bool:
    return bool(select.select([waker], [], [], 0)[0])


def test_waking_makes_the_pipe_readable_until_it_is_cleared(waker: Waker) -> None:
    assert not is_awake(waker)
    waker.wake()
    waker.wake()
    assert is_awake(waker)
    waker.clear()
    assert not is_awake(waker)


def test_a_wake_after_one_that_came_while_the_pipe_was_emptied_is_not_lost(
    waker: Waker, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = os.read

    def wake_then_read(descriptor: int, size: int) -> bytes:
        waker.wake()
        return read(descriptor, size)

    waker.wake()
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", wake_then_read)
        waker.clear()
    waker.wake()
    assert is_awake(waker)


def test_a_full_pipe_does_not_block_the_one_who_wakes(waker: Waker) -> None:
    while select.select([], [waker.writer], [], 0)[1]:
        os.write(waker.writer, b"." * 4096)
    waker.wake()
    assert is_awake(waker)
    waker.clear()
    assert not is_awake(waker)
