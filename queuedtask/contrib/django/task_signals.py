"""Django's signals ``task_started`` and ``task_finished``, and the TaskResult of the attempt that runs."""

import contextvars
import logging
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakSet

from queuedtask.contrib.django import task_api, task_results
from queuedtask.contrib.django.task_results import META, About
from queuedtask.db import reads
from queuedtask.db.reads import AttemptRow
from queuedtask.errors import NotInTask, UnknownFunction
from queuedtask.model import states
from queuedtask.run.attempt import Attempt, current_attempt
from queuedtask.run.hooks import TaskView
from queuedtask.taskqueue import Queue

logger = logging.getLogger("queuedtask.django")

_running: Final[contextvars.ContextVar[Any]] = contextvars.ContextVar("queuedtask_django_result", default=None)
_joined: Final[WeakSet[Queue]] = WeakSet()


def join(queue: Queue) -> None:
    """Have the attempts of a queue send the signals of those tasks that are Django's; a second call does nothing."""
    if queue not in _joined:
        _joined.add(queue)
        signals = _Signals(queue)
        queue.on_pre_run(signals.started)
        queue.on_post_run(signals.finished)


def running_result(queue: Queue, task: Any) -> Any:
    """Return the TaskResult of the attempt that runs here, which has led to this Task. Raises NotInTask outside one."""
    attempt, result = current_attempt(), _running.get()
    if result is not None and (attempt is None or attempt.task.id == result.id):
        return result
    if attempt is None:
        raise NotInTask(f"{task.module_path} takes a context, which only an attempt of a task has")
    # Its worker works for another Queue, or it was not added by a back end of Django's.
    return _result(queue, attempt, task, task_results.about(attempt.task.meta) or About(task.backend, task.priority))


class _Signals:
    """The hooks of one queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def started(self, view: TaskView) -> None:
        """Send ``task_started`` before an attempt."""
        about = task_results.about(view.meta) if META in view.meta else None
        attempt = current_attempt()
        if about is None or attempt is None:
            return
        task = task_results.task_at(view.function, view.channel, about, self._queue.config)
        result = _result(self._queue, attempt, task, about)
        _running.set(result)
        _send("task_started", result)

    def finished(self, view: TaskView, returned: object, error: BaseException | None) -> None:
        """Send ``task_finished`` after an attempt with which its task ends."""
        about = task_results.about(view.meta) if META in view.meta else None
        attempt = current_attempt()
        decision = None if attempt is None else attempt.decision
        if about is None or attempt is None or decision is None or decision.edge.target not in states.FINAL:
            return
        result = _running.get()
        if result is None:
            try:
                task = task_results.task_at(view.function, view.channel, about, self._queue.config)
            except UnknownFunction:
                return  # which is why the attempt has failed; there is no Task to speak of
            result = _result(self._queue, attempt, task, about)
        traceback = decision.outcome.error_traceback or ""
        task_results.end(task_api.of_task(result.task), result, returned, error, traceback)
        if error is None:
            _send("task_finished", result)
            return
        before = error.__traceback__
        try:
            # Receivers look for it where an exception is that is being handled.
            raise error
        except BaseException:
            _send("task_finished", result)
        finally:
            error.__traceback__ = before


def _send(signal: str, result: Any) -> None:
    api = task_api.of_task(result.task)
    getattr(api.signals, signal).send(type(api.backends[result.backend]), task_result=result)


def _result(queue: Queue, attempt: Attempt, task: Any, about: About) -> Any:
    worker = "" if attempt.connections is None else str(attempt.connections.worker_id())
    claimed = attempt.task
    return task_results.of_attempt(
        task_api.of_task(task),
        task,
        claimed.id,
        (claimed.args, claimed.kwargs),
        _earlier_attempts(queue, attempt),
        worker,
        about.backend,
    )


def _earlier_attempts(queue: Queue, attempt: Attempt) -> Sequence[AttemptRow]:
    if attempt.task.attempt <= 1:
        return ()
    try:
        with attempt.guard.hold(), queue.database.transaction() as cursor:
            return reads.task_attempts(cursor, attempt.task.id)
    except Exception as error:
        # The task shall not fail for what it may not even ask for.
        logger.warning("task %s: its earlier attempts could not be read: %s", attempt.task.id, error)
        return ()
