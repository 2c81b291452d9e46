"""What a progress in a context says."""

from typing import Any

import pytest

from queuedtask.model.progress import share_of


@pytest.mark.parametrize(
    ("progress", "share"),
    [
        (0, 0.0),
        (0.4, 0.4),
        (1, 1.0),
        ({"done": 1, "total": 4}, 0.25),
        ({"done": 0, "total": 4, "rows": 7}, 0.0),
        ({"done": 5, "total": 4}, 1.0),
    ],
)
def test_a_share(progress: Any, share: float) -> None:
    assert share_of(progress) == share


@pytest.mark.parametrize(
    "progress",
    [
        None,
        True,
        -0.1,
        1.5,
        40,
        float("nan"),
        "0.4",
        [0.4],
        {},
        {"rows": 500},
        {"done": 1},
        {"total": 4},
        {"done": 1, "total": 0},
        {"done": -1, "total": 4},
        {"done": "1", "total": 4},
        {"done": True, "total": 4},
        {"done": float("nan"), "total": 4},
        {"done": 1, "total": float("nan")},
        {"done": 1, "total": 10**400},
    ],
)
def test_what_says_nothing(progress: Any) -> None:
    assert share_of(progress) is None
