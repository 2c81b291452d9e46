"""The obituary: what a supervisor knows of a worker process that died, for the one that takes its tasks back.

Nothing here does anything: it is what the board says, and what follows from that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

from queuedtask.model.outcome import LOST, TIMED_OUT
from queuedtask.worker.board import Entry

__all__ = ["LOST", "SAMPLE", "TIMED_OUT", "Obituary", "Verdict", "judge"]

SAMPLE: Final = 0.3
"""Seconds for which threads are watched to find out which of them holds the interpreter's lock."""
BUSY_SHARE: Final = 0.3
"""The share of that time for which the one that holds it computes."""


class Verdict(NamedTuple):
    """What becomes of an attempt that ran in the process."""

    attempt: int
    kind: str
    """LOST or TIMED_OUT."""
    max_retries: int | None
    """The retries that the task's function declares."""
    began_at: float
    """When it began, on the monotonic clock of this machine."""

    @classmethod
    def of(cls, entry: Entry, kind: str) -> "Verdict":
        """Return the verdict on what a slot was running."""
        return cls(entry.attempt, kind, entry.max_retries, entry.began_at)


@dataclass(frozen=True)
class Obituary:
    """How a process ended and what ran in it. What is not named here was claimed and had not begun, or is not lost."""

    worker: int
    exit_signal: str
    memory_bytes: int | None = None
    stack: str | None = None
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """By task id."""

    def as_message(self) -> dict[str, Any]:
        """Return it in JSON's types."""
        return asdict(self)

    @classmethod
    def of_message(cls, message: Mapping[str, Any]) -> "Obituary":
        """Make it from what :meth:`as_message` returned, on the other side of a wire."""
        verdicts = {task_id: Verdict(*verdict) for task_id, verdict in message["verdicts"].items()}
        return cls(**{**message, "verdicts": verdicts})


def judge(
    entries: Sequence[Entry],
    before: Mapping[int, float],
    after: Mapping[int, float],
    *,
    now: float,
    grace: float,
) -> dict[str, Verdict]:
    """Return what becomes of the attempts in a process that is killed because some have outlived their timeouts.

    A thread that computes while nobody else gets to run holds the interpreter's lock, and keeps the others from ending
    in time: it is to blame, they are not. If its own timeout is still to come, it counts as lost. If it runs no attempt
    that we know of, nobody can be blamed for sure: what is overdue counts as lost. What is lost runs alone from then
    on, so that the next time there is no doubt.

    ``before`` and ``after`` are the processor times of the process's threads, SAMPLE seconds apart; ``grace`` is how
    long after its deadline an attempt is to be killed.
    """
    used = {thread: seconds - before.get(thread, seconds) for thread, seconds in after.items()}
    busiest = max(used, key=lambda thread: used[thread], default=0)
    is_computing = used.get(busiest, 0.0) > SAMPLE * BUSY_SHARE
    to_blame = next((entry for entry in entries if is_computing and entry.thread == busiest), None)
    if to_blame is not None:
        return {to_blame.task_id: Verdict.of(to_blame, TIMED_OUT if to_blame.kill_at - grace <= now else LOST)}
    kind = LOST if is_computing else TIMED_OUT
    return {entry.task_id: Verdict.of(entry, kind) for entry in entries if entry.kill_at <= now}
