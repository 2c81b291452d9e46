"""What becomes of a task for every way in which its attempt may end."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuedtask.errors import Retry
from queuedtask.model import outcome, states
from queuedtask.model.backoff import delay_after
from queuedtask.model.outcome import Outcome, decide
from queuedtask.model.states import Edge
from queuedtask.model.task import Task

SETTING = 3
MAX_LOST = 3


def a_task(*, failures: int = 0, max_retries: int | None = None, lost_count: int = 0) -> Task:
    return Task("id", "name", "a:b", "[]", "{}", None, 1, failures, max_retries, None, lost_count)


# kind, retries left, the edge it takes, its delay, whether the attempt leaves a row of its own
TABLE = [
    (outcome.RETURNED, True, states.FINISH, 0.0, False),
    (outcome.RETURNED, False, states.FINISH, 0.0, False),
    (outcome.FINISHED, True, states.FINISH, 0.0, False),
    (outcome.FINISHED, False, states.FINISH, 0.0, False),
    (outcome.RAISED, True, states.RETRY, 5.0, True),
    (outcome.RAISED, False, states.FAIL, 0.0, True),
    (outcome.TIMED_OUT, True, states.RETRY, 5.0, True),
    (outcome.TIMED_OUT, False, states.FAIL, 0.0, True),
    (outcome.ASKED_FOR_RETRY, True, states.RETRY, 5.0, True),
    (outcome.ASKED_FOR_RETRY, False, states.FAIL, 0.0, True),
    (outcome.ASKED_FOR_CANCEL, True, states.CALL_OFF, 0.0, False),
    (outcome.ASKED_FOR_CANCEL, False, states.CALL_OFF, 0.0, False),
    (outcome.INTERRUPTED, True, states.HAND_BACK, 0.0, False),
    (outcome.INTERRUPTED, False, states.HAND_BACK, 0.0, False),
    (outcome.CANCELLED, True, states.CALL_OFF, 0.0, False),
    (outcome.CANCELLED, False, states.CALL_OFF, 0.0, False),
    (outcome.STOPPED, True, states.HALT, 0.0, False),
    (outcome.STOPPED, False, states.HALT, 0.0, False),
    (outcome.LOST, True, states.RESCUE, 0.0, True),
    (outcome.LOST, False, states.RESCUE, 0.0, True),
    (outcome.REFUSED, True, states.FAIL, 0.0, True),
    (outcome.REFUSED, False, states.FAIL, 0.0, True),
]


@pytest.mark.parametrize(("kind", "has_retries_left", "edge", "delay", "leaves_row"), TABLE)
@pytest.mark.parametrize("where", ["the task", "the setting"])
def test_every_outcome_leads_to_its_edge(
    kind: str, has_retries_left: bool, edge: Edge, delay: float, leaves_row: bool, where: str
) -> None:
    allowed = 1 if has_retries_left else 0
    task = a_task(max_retries=allowed if where == "the task" else None)
    setting = 99 * (1 - allowed) if where == "the task" else allowed

    decision = decide(task, Outcome(kind), max_retries=setting, max_lost=MAX_LOST)

    assert (decision.edge, decision.delay, decision.leaves_row) == (edge, delay, leaves_row)
    assert decision.outcome == Outcome(kind)


def test_the_table_has_every_outcome() -> None:
    named = {name: value for name, value in vars(outcome).items() if name.isupper() and isinstance(value, str)}
    assert set(outcome.KINDS) == set(named.values())
    assert {(kind, left) for kind, left, *_ in TABLE} == set(itertools.product(outcome.KINDS, (True, False)))


@pytest.mark.parametrize("kind", [outcome.RAISED, outcome.ASKED_FOR_RETRY])
def test_three_retries_are_four_attempts(kind: str) -> None:
    edges = [
        decide(a_task(failures=n, max_retries=3), Outcome(kind), max_retries=0, max_lost=MAX_LOST).edge
        for n in range(5)
    ]
    assert edges == [states.RETRY] * 3 + [states.FAIL] * 2


def test_what_timed_out_is_tried_only_once_more_by_the_setting() -> None:
    def edges(task_says: int | None, setting: int) -> list[Edge]:
        tasks = [a_task(failures=n, max_retries=task_says) for n in range(4)]
        timed_out = Outcome(outcome.TIMED_OUT)
        return [decide(task, timed_out, max_retries=setting, max_lost=MAX_LOST).edge for task in tasks]

    assert edges(None, 3) == [states.RETRY, states.FAIL, states.FAIL, states.FAIL]
    assert edges(None, 0) == [states.FAIL] * 4
    assert edges(3, 0) == [states.RETRY] * 3 + [states.FAIL]


@pytest.mark.parametrize("max_retries", [None, 0, 9])
def test_a_task_that_loses_its_process_too_often_fails_whatever_retries_it_has_left(max_retries: int | None) -> None:
    def edges(max_lost: int) -> list[Edge]:
        tasks = [a_task(lost_count=n, max_retries=max_retries) for n in range(4)]
        return [decide(t, Outcome(outcome.LOST), max_retries=SETTING, max_lost=max_lost).edge for t in tasks]

    assert edges(3) == [states.RESCUE] * 2 + [states.LOSE] * 2
    assert edges(1) == [states.LOSE] * 4
    assert edges(9) == [states.RESCUE] * 4


def test_losses_before_use_no_retry_and_failures_before_count_as_no_loss() -> None:
    lost_often = a_task(lost_count=MAX_LOST - 1, max_retries=1)
    assert decide(lost_often, Outcome(outcome.RAISED), max_retries=0, max_lost=MAX_LOST).edge is states.RETRY
    failed_often = a_task(failures=99, max_retries=1)
    assert decide(failed_often, Outcome(outcome.LOST), max_retries=0, max_lost=MAX_LOST).edge is states.RESCUE


@pytest.mark.parametrize(
    ("ended", "is_loss"),
    [
        (Outcome(outcome.LOST), True),
        (Outcome(outcome.LOST, exit_signal="SIGSEGV"), True),
        (Outcome(outcome.TIMED_OUT, exit_signal="SIGKILL"), True),
        (Outcome(outcome.TIMED_OUT), False),
        (Outcome(outcome.RAISED, memory_bytes=1), False),
        (Outcome(outcome.RETURNED), False),
    ],
)
def test_an_attempt_that_ended_with_its_process_is_a_loss_whatever_else_it_is(ended: Outcome, is_loss: bool) -> None:
    assert ended.is_loss is is_loss


def test_a_timeout_that_took_its_process_along_is_decided_as_a_timeout() -> None:
    killed = Outcome(outcome.TIMED_OUT, exit_signal="SIGKILL")
    edges = [
        decide(a_task(failures=n, lost_count=MAX_LOST + n), killed, max_retries=SETTING, max_lost=MAX_LOST).edge
        for n in range(2)
    ]
    assert edges == [states.RETRY, states.FAIL]


def test_a_delay_that_the_task_asks_for_stands_in_place_of_the_back_off() -> None:
    asked = Outcome(outcome.ASKED_FOR_RETRY, delay=60.0)
    assert decide(a_task(failures=2), asked, max_retries=SETTING, max_lost=MAX_LOST, jitter=1.0).delay == 60.0


def test_a_delay_of_zero_is_a_delay() -> None:
    asked = Outcome(outcome.ASKED_FOR_RETRY, delay=Retry(delay=0).delay)
    decision = decide(a_task(failures=2), asked, max_retries=SETTING, max_lost=MAX_LOST, jitter=1.0)
    assert (decision.edge, decision.delay) == (states.RETRY, 0)


def test_the_back_off_grows_by_five_up_to_an_hour() -> None:
    assert [delay_after(n) for n in range(8)] == [5, 25, 125, 625, 3125, 3600, 3600, 3600]


def test_the_back_off_follows_the_failures_and_not_the_attempts() -> None:
    task = a_task(failures=1)._replace(attempt=17)
    assert decide(task, Outcome(outcome.RAISED), max_retries=SETTING, max_lost=MAX_LOST).delay == 25


def test_the_jitter_spreads_by_a_fifth_and_never_over_an_hour() -> None:
    assert [delay_after(0, jitter=-1.0), delay_after(0, jitter=1.0)] == [4.0, 6.0]
    assert decide(a_task(), Outcome(outcome.RAISED), max_retries=SETTING, max_lost=MAX_LOST, jitter=-1.0).delay == 4.0
    assert delay_after(9, jitter=1.0) == 3600


@given(st.integers(0, 2**31 - 1), st.floats(-1, 1))
def test_a_back_off_is_within_its_bounds_whatever_came_before(failures: int, jitter: float) -> None:
    plain = min(3600, 5 ** min(failures + 1, 12))
    assert 0.8 * plain - 1e-9 <= delay_after(failures, jitter=jitter) <= min(3600, 1.2 * plain + 1e-9)
