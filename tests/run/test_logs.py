"""Levels of the root logger and its handlers while task records are caught."""

import itertools
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from queuedtask.run import logs
from queuedtask.run.logs import capture_logs, forget_captures

Levels = tuple[int, int]


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
