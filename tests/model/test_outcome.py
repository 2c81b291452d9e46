"""What becomes of a task for every way in which its attempt may end."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuedtask.errors import Retry
from queuedtask.model import outcome, states
from queuedtask.model.outcome import Outcome, backoff, decide
from queuedtask.model.states import Edge
from queuedtask.model.task import Task

SETTING = 3


def a_task(*, failures: int = 0, max_retries: int | None = None) -> Task:
    return Task("id", "name", "a:b", "[]", "{}", None, 1, failures, max_retries, None)


# kind, retries left, the edge it takes, its delay, whether it counts against the retries
TABLE = [
    (outcome.RETURNED, True, states.FINISH, 0.0, False),
    (outcome.RETURNED, False, states.FINISH, 0.0, False),
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
]


@pytest.mark.parametrize(("kind", "has_retries_left", "edge", "delay", "counts"), TABLE)
@pytest.mark.parametrize("where", ["the task", "the setting"])
def test_every_outcome_leads_to_its_edge(
    kind: str, has_retries_left: bool, edge: Edge, delay: float, counts: bool, where: str
) -> None:
    allowed = 1 if has_retries_left else 0
    task = a_task(max_retries=allowed if where == "the task" else None)
    setting = 99 * (1 - allowed) if where == "the task" else allowed

    decision = decide(task, Outcome(kind), max_retries=setting)

    assert (decision.edge, decision.delay, decision.is_failed_attempt) == (edge, delay, counts)
    assert decision.outcome == Outcome(kind)


def test_the_table_has_every_outcome() -> None:
    named = {name: value for name, value in vars(outcome).items() if name.isupper() and isinstance(value, str)}
    assert set(outcome.KINDS) == set(named.values())
    assert {(kind, left) for kind, left, *_ in TABLE} == set(itertools.product(outcome.KINDS, (True, False)))


@pytest.mark.parametrize("kind", [outcome.RAISED, outcome.ASKED_FOR_RETRY])
def test_three_retries_are_four_attempts(kind: str) -> None:
    edges = [decide(a_task(failures=n, max_retries=3), Outcome(kind), max_retries=0).edge for n in range(5)]
    assert edges == [states.RETRY] * 3 + [states.FAIL] * 2


def test_what_timed_out_is_tried_only_once_more_by_the_setting() -> None:
    def edges(task_says: int | None, setting: int) -> list[Edge]:
        return [
            decide(a_task(failures=n, max_retries=task_says), Outcome(outcome.TIMED_OUT), max_retries=setting).edge
            for n in range(4)
        ]

    assert edges(None, 3) == [states.RETRY, states.FAIL, states.FAIL, states.FAIL]
    assert edges(None, 0) == [states.FAIL] * 4
    assert edges(3, 0) == [states.RETRY] * 3 + [states.FAIL]


def test_a_delay_that_the_task_asks_for_stands_in_place_of_the_back_off() -> None:
    asked = Outcome(outcome.ASKED_FOR_RETRY, delay=60.0)
    assert decide(a_task(failures=2), asked, max_retries=SETTING, jitter=1.0).delay == 60.0


def test_a_delay_of_zero_is_a_delay() -> None:
    asked = Outcome(outcome.ASKED_FOR_RETRY, delay=Retry(delay=0).delay)
    decision = decide(a_task(failures=2), asked, max_retries=SETTING, jitter=1.0)
    assert (decision.edge, decision.delay) == (states.RETRY, 0)


def test_the_back_off_grows_by_five_up_to_an_hour() -> None:
    assert [backoff(n) for n in range(8)] == [5, 25, 125, 625, 3125, 3600, 3600, 3600]


def test_the_back_off_follows_the_failures_and_not_the_attempts() -> None:
    task = a_task(failures=1)._replace(attempt=17)
    assert decide(task, Outcome(outcome.RAISED), max_retries=SETTING).delay == 25


def test_the_jitter_spreads_by_a_fifth_and_never_over_an_hour() -> None:
    assert [backoff(0, -1.0), backoff(0, 1.0)] == [4.0, 6.0]
    assert decide(a_task(), Outcome(outcome.RAISED), max_retries=SETTING, jitter=-1.0).delay == 4.0
    assert backoff(9, 1.0) == 3600


@given(st.integers(0, 2**31 - 1), st.floats(-1, 1))
def test_a_back_off_is_within_its_bounds_whatever_came_before(failures: int, jitter: float) -> None:
    plain = min(3600, 5 ** min(failures + 1, 12))
    assert 0.8 * plain - 1e-9 <= backoff(failures, jitter) <= min(3600, 1.2 * plain + 1e-9)
