"""How an attempt ended (Outcome), and what that means for its task (Decision).

``decide`` is the only place that knows when a task is retried. It is pure: the same outcome of the same task gives
the same decision, apart from the jitter that the caller hands in.
"""

from typing import Final, NamedTuple

from queuedtask.model import states
from queuedtask.model.states import Edge
from queuedtask.model.task import Task

RETURNED: Final = "returned"
RAISED: Final = "raised"
TIMED_OUT: Final = "timed_out"
ASKED_FOR_RETRY: Final = "asked_for_retry"
ASKED_FOR_CANCEL: Final = "asked_for_cancel"
INTERRUPTED: Final = "interrupted"
LOST: Final = "lost"

KINDS: Final = (RETURNED, RAISED, TIMED_OUT, ASKED_FOR_RETRY, ASKED_FOR_CANCEL, INTERRUPTED, LOST)

BACKOFF_BASE: Final = 5.0
BACKOFF_LIMIT: Final = 3600.0
BACKOFF_JITTER: Final = 0.2


class Outcome(NamedTuple):
    """How one attempt ended, as the slot saw it. Texts are storable already."""

    kind: str
    result: str | None = None
    """JSON text, None for "nothing"."""
    error_type: str | None = None
    error_message: str | None = None
    error_traceback: str | None = None
    delay: float | None = None
    """Seconds that the task asked for with ``Retry(delay=…)``."""
    exit_signal: str | None = None
    """How its process ended, when that ended the attempt: a signal's name or an exit code."""
    memory_bytes: int | None = None
    """The most memory that this process had."""

    @property
    def is_loss(self) -> bool:
        """Tell whether the attempt took its process along: counted, and the next one runs alone in a process."""
        return self.kind == LOST or self.exit_signal is not None


class Decision(NamedTuple):
    """What becomes of the task: the edge it takes, and what is written with it."""

    edge: Edge
    outcome: Outcome
    delay: float = 0.0
    """Seconds until a retried task is eligible again."""

    @property
    def leaves_row(self) -> bool:
        """Tell whether this attempt leaves a row of its own: it failed, timed out or was lost."""
        return self.outcome.kind in (RAISED, TIMED_OUT, ASKED_FOR_RETRY, LOST)


def decide(task: Task, outcome: Outcome, *, max_retries: int, max_lost: int, jitter: float = 0.0) -> Decision:
    """Return what an outcome means for its task.

    ``max_retries`` holds where the task names none. A task that was lost ``max_lost`` times fails; before that, a loss
    uses no retry. ``jitter`` in [-1, 1] spreads the back-off by up to 20 %.
    """
    if outcome.kind == RETURNED:
        return Decision(states.FINISH, outcome)
    if outcome.kind == INTERRUPTED:
        return Decision(states.HAND_BACK, outcome)
    if outcome.kind == ASKED_FOR_CANCEL:
        return Decision(states.CALL_OFF, outcome)
    if outcome.kind == LOST:
        return Decision(states.LOSE if task.lost_count + 1 >= max_lost else states.RESCUE, outcome)
    if task.failures >= _retries_allowed(task, outcome, max_retries):
        return Decision(states.FAIL, outcome)
    delay = backoff(task.failures, jitter) if outcome.delay is None else outcome.delay
    return Decision(states.RETRY, outcome, delay)


def _retries_allowed(task: Task, outcome: Outcome, max_retries: int) -> int:
    if task.max_retries is not None:
        return task.max_retries
    if outcome.kind == TIMED_OUT:
        # What hung once will most likely hang again, for a whole timeout each time.
        return min(1, max_retries)
    return max_retries


def backoff(failures: int, jitter: float = 0.0) -> float:
    """Return the seconds to wait after so many earlier failures: 5, 25, 125 … at most an hour, spread by the jitter."""
    # The exponent is bounded first: a task with thousands of retries must not overflow a float.
    base = min(BACKOFF_LIMIT, BACKOFF_BASE ** min(failures + 1, 10))
    return min(BACKOFF_LIMIT, base * (1.0 + BACKOFF_JITTER * jitter))
