"""Who is to blame when a process has to be killed because attempts have outlived their timeouts."""

import pytest

from queuedtask.worker.board import NEVER, Entry
from queuedtask.worker.obituary import LOST, SAMPLE, TIMED_OUT, judge

NOW, GRACE = 1000.0, 7.0


def entry(thread: int, *, kill_at: float) -> Entry:
    return Entry(f"task-{thread}", 1, thread, 0, thread, 900.0, kill_at)


OVERDUE = entry(1, kill_at=NOW - 0.5)
PAST_ITS_DEADLINE = entry(2, kill_at=NOW + GRACE - 1.0)
WITH_TIME_LEFT = entry(3, kill_at=NOW + GRACE + 100.0)
ENTRIES = [OVERDUE, PAST_ITS_DEADLINE, WITH_TIME_LEFT]
IDLE = dict.fromkeys((1, 2, 3, 99), 5.0)


def kinds(busy: int | None) -> dict[str, str]:
    after = {thread: seconds + (SAMPLE if thread == busy else 0.01) for thread, seconds in IDLE.items()}
    return {task: verdict.kind for task, verdict in judge(ENTRIES, IDLE, after, now=NOW, grace=GRACE).items()}


@pytest.mark.parametrize(
    ("busy", "expected"),
    [
        (None, {"task-1": TIMED_OUT}),
        (1, {"task-1": TIMED_OUT}),
        (2, {"task-2": TIMED_OUT}),
        (3, {"task-3": LOST}),
        (99, {"task-1": LOST}),
    ],
    ids=["nobody computes", "the overdue one", "one past its deadline", "one with time left", "an unknown thread"],
)
def test_the_thread_that_computes_is_to_blame_and_the_others_go_back(
    busy: int | None, expected: dict[str, str]
) -> None:
    assert kinds(busy) == expected


def test_without_processor_times_what_is_overdue_has_timed_out() -> None:
    verdicts = judge(ENTRIES, {}, {}, now=NOW, grace=GRACE)
    assert {task: verdict.kind for task, verdict in verdicts.items()} == {"task-1": TIMED_OUT}


def test_a_verdict_carries_what_the_rows_need() -> None:
    (verdict,) = judge([OVERDUE], IDLE, IDLE, now=NOW, grace=GRACE).values()
    assert (verdict.attempt, verdict.max_retries, verdict.began_at) == (1, 1, 900.0)


def test_what_never_is_to_be_killed_is_not_judged() -> None:
    assert judge([entry(1, kill_at=NEVER)], IDLE, IDLE, now=NOW, grace=GRACE) == {}
