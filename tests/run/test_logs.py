"""Levels of the root logger and its handlers while task records are caught."""

import io
import itertools
import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from queuedtask import TaskTimeout
from queuedtask.run import logs
from queuedtask.run.logs import capture_logs, forget_captures
from queuedtask.run.timeouts import Guard

Levels = tuple[int, int]


@pytest.fixture(autouse=True)
def levels_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave no level behind for the tests that follow in this process."""
    monkeypatch.setattr(logs, "_levels", logs._Levels())
    root = logging.getLogger()
    before = [(each, each.level) for each in (root, *root.handlers)]
    yield
    for each, level in before:
        each.setLevel(level)


@pytest.fixture
def handler() -> Iterator[logging.Handler]:
    root = logging.getLogger()
    before = root.level
    handler = logging.NullHandler()
    root.addHandler(handler)
    root.setLevel(logging.ERROR)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


def levels(handler: logging.Handler) -> Levels:
    return logging.getLogger().level, handler.level


def capturing(level: int) -> AbstractContextManager[None]:
    return capture_logs(level, lambda: None)


@pytest.mark.parametrize("ends", list(itertools.permutations(range(3))), ids=str)
def test_blocks_that_overlap_put_the_levels_back_when_the_last_one_ends(
    handler: logging.Handler, ends: tuple[int, ...]
) -> None:
    blocks = [capturing(level) for level in (logging.WARNING, logging.DEBUG, logging.INFO)]
    for block in blocks:
        block.__enter__()
    assert levels(handler) == (logging.DEBUG, logging.ERROR)
    for number in ends[:2]:
        blocks[number].__exit__(None, None, None)
        assert levels(handler) == (logging.DEBUG, logging.ERROR)
    blocks[ends[2]].__exit__(None, None, None)
    assert levels(handler) == (logging.ERROR, logging.NOTSET)


def test_a_level_that_somebody_changed_meanwhile_stays(handler: logging.Handler) -> None:
    with capturing(logging.INFO):
        assert levels(handler) == (logging.INFO, logging.ERROR)
        logging.getLogger().setLevel(logging.WARNING)
        handler.setLevel(logging.NOTSET)
    assert levels(handler) == (logging.WARNING, logging.NOTSET)
    with capturing(logging.INFO):
        logging.getLogger().setLevel(logging.WARNING)
        with capturing(logging.INFO):
            assert levels(handler) == (logging.INFO, logging.WARNING)
    assert levels(handler) == (logging.WARNING, logging.NOTSET)


def test_a_forked_child_forgets_the_blocks_of_its_parent(
    handler: logging.Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    handlers = list(root.handlers)
    block = capturing(logging.INFO)
    block.__enter__()
    monkeypatch.setattr(logs, "_levels", logs._levels)  # the child's own comes in its place
    forget_captures()
    assert root.handlers == handlers
    assert levels(handler) == (logging.ERROR, logging.NOTSET)
    with capturing(logging.DEBUG):
        assert levels(handler) == (logging.DEBUG, logging.ERROR)
    assert levels(handler) == (logging.ERROR, logging.NOTSET)


# ----------------------------------------------------------------------------------------------------------- interrupts


class Attempt:
    """What is needed of one."""

    def __init__(self) -> None:
        self.guard = Guard()
        self.log = logs.LogBuffer()
        self.request_id = None


def test_an_interrupt_leaves_no_handler_locked() -> None:
    logger, handler = logging.getLogger("shop.of_tests"), logging.StreamHandler(io.StringIO())
    logger.addHandler(handler)
    logger.propagate = False
    here, is_over = threading.local(), threading.Event()

    def run(attempt: Attempt, begun: threading.Event) -> None:
        here.attempt = attempt

        def log_for_ever() -> None:
            while True:
                logger.warning("a line")
                begun.set()

        attempt.guard.call(log_for_ever, (), {})

    def log_as_well() -> None:
        while not is_over.is_set():
            logger.warning("another line")

    beside = threading.Thread(target=log_as_well)
    try:
        with capture_logs(logging.INFO, lambda: getattr(here, "attempt", None)):
            beside.start()
            for _ in range(50):
                attempt, begun = Attempt(), threading.Event()
                thread = threading.Thread(target=run, args=(attempt, begun))
                thread.start()
                assert begun.wait(10)
                attempt.guard.fire(TaskTimeout)
                thread.join(10)
                assert not thread.is_alive()
                assert isinstance(attempt.guard.error, TaskTimeout)
                assert handler.lock is not None
                assert handler.lock.acquire(timeout=10), "the interrupt has left the handler locked"
                handler.lock.release()
    finally:
        is_over.set()
        beside.join(10)
        logger.removeHandler(handler)
        logger.propagate = True


def test_whoever_takes_part_in_logging_later_is_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    attempt, seen = Attempt(), []
    with capture_logs(logging.INFO, lambda: attempt):
        before = logging.Logger.callHandlers

        def watch(logger: logging.Logger, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())
            before(logger, record)

        monkeypatch.setattr(logging.Logger, "callHandlers", watch)  # as Sentry does
    with capture_logs(logging.INFO, lambda: attempt):
        logging.getLogger("shop").warning("a line")
    assert (seen, [line.message for line in attempt.log.take()]) == (["a line"], ["a line"])


def test_logging_that_is_configured_anew_is_captured_all_the_same(handler: logging.Handler) -> None:
    attempt = Attempt()
    with capture_logs(logging.INFO, lambda: attempt):
        logging.getLogger("shop").warning("before")
        root = logging.getLogger()
        for each in [each for each in root.handlers if isinstance(each, logs.TaskLogHandler)]:
            root.removeHandler(each)  # as basicConfig(force=True) and dictConfig() do
        logging.getLogger("shop").warning("after")
    assert [line.message for line in attempt.log.take()] == ["before", "after"]
    assert not [each for each in logging.getLogger().handlers if isinstance(each, logs.TaskLogHandler)]


def test_the_name_of_a_level_is_stored_whatever_it_is() -> None:
    attempt = Attempt()
    logging.addLevelName(25, "A\0B")
    with capture_logs(logging.INFO, lambda: attempt):
        logging.getLogger("shop").log(25, "x")
    (line,) = attempt.log.take()
    assert "\0" not in line.type
