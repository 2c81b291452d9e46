"""An application whose Queue has hooks, and a task that tells what they have done."""

import contextvars
import os
from collections.abc import Iterator
from typing import Any

from queuedtask import Queue, current_task, get_context, set_context
from queuedtask.run.hooks import TaskView

queue = Queue()
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@queue.around_run
def around(task: TaskView) -> Iterator[None]:
    variable.set(f"{task.id} {task.attempt}")
    try:
        yield
    finally:
        set_context("around.left", os.getpid())


@queue.on_pre_run
def before(task: TaskView) -> None:
    set_context("before", [task.id, os.getpid()])


@queue.on_post_run
async def behind(task: TaskView, result: Any, error: BaseException | None) -> None:
    set_context("behind", [result, repr(error)])


def tell(fail: bool = False) -> dict[str, object]:
    if fail:
        raise ValueError("boom")
    return {
        "process": os.getpid(),
        "variable": variable.get(),
        "before": get_context("before"),
        "attempt": current_task().attempt,
    }


def hand_down(deep: int) -> None:
    """Add a task that does the same, with something of its own in the context."""
    set_context("own", deep)
    set_context("tenant", f"changed by {deep}")
    if deep:
        queue.add_task(hand_down, deep - 1)
