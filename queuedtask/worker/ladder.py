"""The ladder: what happens to an attempt that must end, step by step, each for what defies the one before.

It must end when it has outlived its timeout, when somebody has stopped it, and a grace after somebody has cancelled it.

1. It is told to end: ``should_abort()``, cancellation of a coroutine, an exception in the thread, cancellation of its
   SQL. (:meth:`Attempt.interrupt`)
2. Half a grace later a coroutine that computes without awaiting gets the exception in its thread.
3. After the grace it is given up: its stack is logged, it counts as timed out, its slot gets another thread. A process
   of its own is killed.

The last step is the supervisor's: what keeps this process from taking these steps is killed with the process.
"""

import sys
import time
import traceback
from collections.abc import Sequence
from typing import Final

from queuedtask.config import Config
from queuedtask.errors import Interrupted, TaskTimeout
from queuedtask.model.codec import clean_text
from queuedtask.run.attempt import Attempt
from queuedtask.run.logs import Line
from queuedtask.worker.board import KILL_MARGIN

NEVER: Final = float("inf")


class Ladder:
    """Climbs for all running attempts of one process."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def kill_at(self, attempt: Attempt) -> float:
        """Return when the process is to be killed if the attempt is still there and the manager does not answer."""
        if attempt.deadline is None or attempt.process is not None:
            return NEVER
        return attempt.deadline + self._config.timeout_grace + KILL_MARGIN

    def climb(self, running: Sequence[Attempt]) -> list[Attempt]:
        """Take the steps that are due; return the attempts that are to be given up now."""
        now = time.monotonic()
        grace = self._config.timeout_grace
        given_up = []
        for attempt in running:
            if attempt.interrupted_at is None:
                if attempt.deadline is not None and now >= attempt.deadline:
                    attempt.interrupt(TaskTimeout)
                elif now >= attempt.ordered_at + grace:
                    attempt.interrupt(Interrupted)
            elif _has_no_other_end(attempt):
                if now >= attempt.interrupted_at + grace:
                    given_up.append(attempt)
                elif now >= attempt.interrupted_at + grace / 2:
                    attempt.guard.insist()
        return given_up

    def next_step(self, running: Sequence[Attempt]) -> float:
        """Return when the next step is due, on the monotonic clock."""
        now, grace = time.monotonic(), self._config.timeout_grace
        steps = [NEVER]
        for attempt in running:
            if attempt.interrupted_at is None:
                steps += [NEVER if attempt.deadline is None else attempt.deadline, attempt.ordered_at + grace]
            elif _has_no_other_end(attempt) and not (attempt.process is not None and attempt.process.is_killed):
                half = attempt.interrupted_at + grace / 2
                steps.append(half if half > now else attempt.interrupted_at + grace)
        return min(steps)


def _has_no_other_end(attempt: Attempt) -> bool:
    """Tell whether the ladder ends it: what is interrupted for a shutdown is left behind with the process."""
    return attempt.guard.due is TaskTimeout or attempt.is_disowned or attempt.order is not None


def stack_of(attempt: Attempt) -> str:
    """Return where an attempt's thread is at this moment, without the library's own frames above the task's."""
    frame = sys._current_frames().get(attempt.thread.ident)
    if frame is None:
        return ""
    frames = list(traceback.walk_stack(frame))[::-1]
    inside = next((n for n, (f, _) in enumerate(frames) if f.f_globals.get("__name__") == "queuedtask.run.executor"), 0)
    own = [item for item in frames[inside:] if not item[0].f_globals.get("__name__", "").startswith("queuedtask.")]
    summary = traceback.StackSummary.extract(iter(own or frames))
    return clean_text("Stack of the thread when it was given up (most recent call last):\n" + "".join(summary.format()))


def stack_line(stack: str) -> Line:
    """Return the line for the task's own log."""
    return Line("error", "queuedtask", f"the attempt did not end when it was told to\n{stack}", time.monotonic())
