"""Every error that the package raises for its callers.

A leaf: it imports nothing of ours, so that every floor may raise and catch these. Each class also inherits from the
builtin that a caller would guess, so ``except LookupError`` works without knowing us.
"""

from datetime import timedelta


class QueuedTaskError(Exception):
    """Be the root of all errors of this package."""


class ConfigError(QueuedTaskError, ValueError):
    """Refuse a setting: unknown, of the wrong type or out of its range."""


class InvalidTask(QueuedTaskError, ValueError):
    """Refuse a task in the caller's stack, before anything is written."""


class ParentNotFound(InvalidTask, LookupError):
    """There is no such parent: it was removed, or its transaction is not committed yet."""


class NotSerializable(InvalidTask, TypeError):
    """Refuse an argument that JSON and our few tagged types cannot carry; the message names its path."""


class UnknownFunction(InvalidTask, ImportError):
    """Say that a function cannot be reached by an import path."""


class DuplicateTask(InvalidTask):
    """Refuse a task whose unique key is held by another that has not ended."""

    def __init__(self, message: str, *, task_id: str) -> None:
        super().__init__(message)
        self.task_id = task_id
        """The id of the task that has the key."""


class IsolationError(InvalidTask):
    """Say that the caller's transaction, by its level of isolation, cannot see what adding the task depends on.

    Nothing was written, and the transaction can go on.
    """


class InvalidSignature(QueuedTaskError, ValueError):
    """Refuse a pickled function that no key of this worker's has signed for its task; its code was not loaded."""


class FunctionNotAllowed(QueuedTaskError, PermissionError):
    """Refuse a function that is outside ``QUEUE_ALLOWED_FUNCTIONS``."""


class NotCommitted(InvalidTask):
    """Say that a task cannot be waited for: the transaction that adds it is still open, or was rolled back."""


class TaskNotFound(QueuedTaskError, LookupError):
    """Say that no task has this id: never added, rolled back, cleared or purged."""


class ScheduleNotFound(QueuedTaskError, LookupError):
    """Say that no schedule has this name: never written by a worker, or removed."""


class TaskGone(QueuedTaskError, LookupError):
    """Say that a task's row has vanished while somebody waited for its end: it was cleared, purged or deleted."""


class TaskEnded(QueuedTaskError):
    """Say that a task that was waited for has not ended as *done*; each other end has a class of its own.

    What its row says about the error stands in the attributes.
    """

    _how = "ended"

    def __init__(self, task_id: str, type: str | None, message: str | None, traceback: str | None) -> None:
        super().__init__(task_id, type, message, traceback)
        self.task_id = task_id
        self.type = type
        """The name of the error's class, as text: it need not be importable here."""
        self.message = message
        self.traceback = traceback
        """The traceback as text, without local variables."""

    def __str__(self) -> str:
        why = ": ".join(filter(None, (self.type, self.message)))
        return f"task {self.task_id} {self._how}" + (f": {why}" if why else "")


class TaskFailed(TaskEnded):
    """Say that a task that was waited for has failed, and with which error."""

    _how = "failed"


class TaskCancelled(TaskEnded):
    """Say that a task that was waited for was cancelled: by somebody, by itself, or with a parent that failed."""

    _how = "was cancelled"


class TaskStopped(TaskEnded):
    """Say that a task that was waited for was stopped by somebody."""

    _how = "was stopped"


class NotAllowed(QueuedTaskError):
    """Refuse a change that the task's state forbids; the message says which states allow it."""


class LeaseLost(QueuedTaskError):
    """Say that an attempt is no longer this worker's: what it does has no effect on its task any more."""


class SchemaOutdated(QueuedTaskError):
    """Say that the database's tables are missing or of a version that this release cannot work with."""


class DatabaseUnavailable(QueuedTaskError, ConnectionError):
    """Say that the database cannot be reached, or that none is configured."""


class Retry(QueuedTaskError):
    """Ask for another attempt of the running task; raise it inside a task.

    ``delay``: seconds or a timedelta, at most 100 years; None stands for the task's back-off. It uses up one retry;
    with none left the task fails.
    """

    def __init__(
        self, message: str = "the task asked to be retried", *, delay: float | timedelta | None = None
    ) -> None:
        super().__init__(message)
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if seconds is not None and not 0 <= seconds <= 100 * 366 * 86400:
            raise ValueError(
                f"Retry(delay={delay!r}): a number of seconds or a timedelta, 0 or more, at most 100 years, or None"
            )
        self.delay = seconds


class Cancel(QueuedTaskError):
    """End the running task as *cancelled*; raise it inside a task, with the reason as its message."""


class TaskTimeout(BaseException):
    """Arrive inside a task that has outlived its timeout.

    A BaseException, so that a task's own ``except Exception`` does not swallow it.
    """


class Interrupted(BaseException):
    """Arrive inside a task that must end although it is in time.

    Its worker gives it back (the task is claimed again, no retry is used), or somebody has cancelled or stopped it.
    """


class NotInTask(QueuedTaskError, RuntimeError):
    """Say that something was called outside a task that makes sense only inside one."""
