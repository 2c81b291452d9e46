"""How an attempt ended (Outcome), and what that means for its task (Decision).

``decide`` is the only place that knows when a task is retried. It is pure: the same outcome of the same task gives
the same decision, apart from the jitter that the caller hands in.
"""

from typing import Final, NamedTuple

from queuedtask.model import states
from queuedtask.model.backoff import Backoff, delay_after, stored
from queuedtask.model.options import reserved
from queuedtask.model.states import Edge
from queuedtask.model.task import Task

RETURNED: Final = "returned"
FINISHED: Final = "finished"
"""It has settled itself, in a transaction of its own."""
RAISED: Final = "raised"
TIMED_OUT: Final = "timed_out"
ASKED_FOR_RETRY: Final = "asked_for_retry"
ASKED_FOR_CANCEL: Final = "asked_for_cancel"
INTERRUPTED: Final = "interrupted"
CANCELLED: Final = "cancelled"
STOPPED: Final = "stopped"
LOST: Final = "lost"
REFUSED: Final = "refused"
"""The worker would not run it, nor would it the next time: there is no retry."""

KINDS: Final = (
    RETURNED,
    FINISHED,
    RAISED,
    TIMED_OUT,
    ASKED_FOR_RETRY,
    ASKED_FOR_CANCEL,
    INTERRUPTED,
    CANCELLED,
    STOPPED,
    LOST,
    REFUSED,
)


_ENDINGS: Final = {
    states.FINISH: "done",
    states.FAIL: "failed",
    states.LOSE: "failed",
    states.CALL_OFF: "cancelled",
    states.HALT: "stopped",
    states.RETRY: "retried",
    states.HAND_BACK: "interrupted",
    states.RESCUE: "lost",
}
ENDINGS: Final = tuple(dict.fromkeys(_ENDINGS.values()))
"""How an attempt ends: with its task's end (the first four), or so that another attempt follows."""


class Outcome(NamedTuple):
    """How one attempt ended, as the slot saw it. Texts are storable already."""

    kind: str
    result: str | None = None
    """JSON text, None for "nothing"."""
    error_type: str | None = None
    error_message: str | None = None
    error_traceback: str | None = None
    delay: float | None = None
    """Seconds that the task asked for with ``Retry(delay=…)``, or that its function's own back-off says."""
    exit_signal: str | None = None
    """How its process ended, when that ended the attempt: a signal's name or an exit code."""
    memory_bytes: int | None = None
    """The most memory that this process had."""
    is_hopeless: bool = False
    """It ended with an exception after which its function is not to be tried again."""

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
    def ending(self) -> str:
        """Return how the attempt ended, in one word: one of :data:`ENDINGS`."""
        return _ENDINGS[self.edge]

    @property
    def leaves_row(self) -> bool:
        """Tell whether this attempt leaves a row of its own: it failed, timed out, was lost or refused."""
        return self.outcome.kind in (RAISED, TIMED_OUT, ASKED_FOR_RETRY, LOST, REFUSED)


def decide(
    task: Task,
    outcome: Outcome,
    *,
    max_retries: int,
    max_lost: int,
    backoff: Backoff | None = None,
    jitter: float = 0.0,
) -> Decision:
    """Return what an outcome means for its task.

    ``max_retries`` and ``backoff`` hold where the task names none. A task that was lost ``max_lost`` times fails;
    before that, a loss uses no retry. ``jitter`` in [-1, 1] spreads the back-off by up to 20 %.
    """
    if outcome.kind in (RETURNED, FINISHED):
        return Decision(states.FINISH, outcome)
    if outcome.kind == INTERRUPTED:
        return Decision(states.HAND_BACK, outcome)
    if outcome.kind in (ASKED_FOR_CANCEL, CANCELLED):
        return Decision(states.CALL_OFF, outcome)
    if outcome.kind == REFUSED:
        return Decision(states.FAIL, outcome)
    if outcome.kind == STOPPED:
        return Decision(states.HALT, outcome)
    if outcome.kind == LOST:
        return Decision(states.LOSE if task.lost_count + 1 >= max_lost else states.RESCUE, outcome)
    if outcome.is_hopeless or task.failures >= _retries_allowed(task, outcome, max_retries):
        return Decision(states.FAIL, outcome)
    if outcome.delay is not None:
        return Decision(states.RETRY, outcome, outcome.delay)
    own = stored(reserved(task.meta, "backoff"))
    return Decision(states.RETRY, outcome, delay_after(task.failures, own or backoff, jitter))


def _retries_allowed(task: Task, outcome: Outcome, max_retries: int) -> int:
    if task.max_retries is not None:
        return task.max_retries
    if outcome.kind == TIMED_OUT:
        # What hung once will most likely hang again, for a whole timeout each time.
        return min(1, max_retries)
    return max_retries
