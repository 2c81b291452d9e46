"""Ids cut into ranges."""

from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import pytest

from queuedtask.errors import InvalidTask
from queuedtask.model.ranges import ranges


def test_chunks_are_sorted_and_adjacent_and_the_last_one_may_be_shorter() -> None:
    assert ranges([5, 3, 1, 2, 4], 2) == [(1, 2), (3, 4), (5, 5)]
    assert ranges(range(400), 200) == [(0, 199), (200, 399)]
    assert ranges(iter([9]), 200) == [(9, 9)]


def test_an_id_that_comes_twice_is_in_one_chunk_only() -> None:
    assert ranges([1, 1, 1, 2, 2, 3], 2) == [(1, 2), (3, 3)]


@pytest.mark.parametrize(
    "ids",
    [
        ["b", "a", "ä", "B"],
        [UUID(int=7), UUID(int=1 << 127), UUID(int=0)],
        [date(2026, 3, 1), date(2025, 3, 1)],
        [datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)],
        [-5, 10**30, 0],
    ],
)
def test_every_kind_of_id_that_has_an_order(ids: list[Any]) -> None:
    assert ranges(ids, 1) == [(each, each) for each in sorted(ids)]


def test_no_ids_make_no_chunk() -> None:
    assert ranges([], 1) == []
    assert ranges((), 200) == []


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None, "200"])
def test_a_chunk_size_below_one_is_refused(size: Any) -> None:
    with pytest.raises(InvalidTask, match="chunk_size"):
        ranges([1], size)
    with pytest.raises(InvalidTask, match="chunk_size"):
        ranges([], size)


@pytest.mark.parametrize(
    "ids",
    [
        "abc",
        b"abc",
        7,
        None,
        [1, "a"],
        [1, None],
        [True, False],
        [1.5],
        [(1, 2)],
        [date(2026, 3, 1), datetime(2026, 3, 1, tzinfo=UTC)],
        [datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC).replace(tzinfo=None)],
    ],
)
def test_ids_without_a_common_order_are_refused(ids: Any) -> None:
    with pytest.raises(InvalidTask, match="ids"):
        ranges(ids, 2)
