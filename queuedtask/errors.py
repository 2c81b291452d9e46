"""Every error that the package raises for its callers.

A leaf: it imports nothing of ours, so that every floor may raise and catch these. Each class also inherits from the
builtin that a caller would guess, so ``except LookupError`` works without knowing us.
"""


class QueuedTaskError(Exception):
    """Be the root of all errors of this package."""


class ConfigError(QueuedTaskError, ValueError):
    """Refuse a setting: unknown, of the wrong type or out of its range."""


class InvalidTask(QueuedTaskError, ValueError):
    """Refuse a task in the caller's stack, before anything is written."""


class NotSerializable(InvalidTask, TypeError):
    """Refuse an argument that JSON and our few tagged types cannot carry; the message names its path."""


class UnknownFunction(InvalidTask, ImportError):
    """Say that a function cannot be reached by an import path."""


class TaskNotFound(QueuedTaskError, LookupError):
    """Say that no task has this id: never added, rolled back, cleared or purged."""


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

    ``delay`` is in seconds, None stands for the task's back-off. It uses up one retry; with none left the task fails.
    """

    def __init__(self, message: str = "the task asked to be retried", *, delay: float | None = None) -> None:
        super().__init__(message)
        if delay is not None and not 0 <= delay < float("inf"):
            raise ValueError(f"Retry(delay={delay!r}): a number of seconds, 0 or more, or None")
        self.delay = delay


class Cancel(QueuedTaskError):
    """End the running task as *cancelled*; raise it inside a task, with the reason as its message."""


class TaskTimeout(BaseException):
    """Arrive inside a task that has outlived its timeout.

    A BaseException, so that a task's own ``except Exception`` does not swallow it.
    """


class Interrupted(BaseException):
    """Arrive inside a task whose worker must give it back: the task is claimed again, no retry is used."""


class NotInTask(QueuedTaskError, RuntimeError):
    """Say that something was called outside a task that makes sense only inside one."""
