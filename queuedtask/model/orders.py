"""What a person may order of a task: that it is cancelled, or that it is stopped.

A pending task ends at once. A running one is told to end by its worker: when it is cancelled it gets the grace to end
by itself, when it is stopped the ladder of the timeouts begins at once.
"""

from typing import Final, NamedTuple

from queuedtask.model import outcome, states
from queuedtask.model.outcome import Outcome
from queuedtask.model.states import Edge

WHILE_RUNNING: Final = "while it was running"


class Order(NamedTuple):
    """One of the two."""

    name: str
    pending: Edge
    """How a task ends by it that does not run."""
    running: Edge
    """How an attempt ends by it."""
    kind: str
    """The outcome of such an attempt."""
    error_type: str
    participle: str

    @property
    def message(self) -> str:
        """What stands in the row as the error."""
        return f"the task was {self.participle}"

    def outcome(self, traceback: str | None = None, more: str = "") -> Outcome:
        """Return how an attempt ended that was told to end by this order; without a traceback it had not begun."""
        when = "" if traceback is None else f" {WHILE_RUNNING}"
        return Outcome(self.kind, None, self.error_type, f"{self.message}{when}{more}", traceback)


CANCEL: Final = Order("cancel", states.CANCEL, states.CALL_OFF, outcome.CANCELLED, "TaskCancelled", "cancelled")
STOP: Final = Order("stop", states.STOP, states.HALT, outcome.STOPPED, "TaskStopped", "stopped")

ORDERS: Final = {order.name: order for order in (CANCEL, STOP)}
