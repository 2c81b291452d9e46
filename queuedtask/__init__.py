"""queuedtask: a synchronous, thread-based task queue on PostgreSQL.

The public names are imported when they are first used, so that the command line's parser, and with it the man page,
can be built without SQLAlchemy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Config": "queuedtask.config",
    "Queue": "queuedtask.taskqueue",
    "TaskRef": "queuedtask.refs",
    "clear_context": "queuedtask.run.attempt",
    "current_task": "queuedtask.run.attempt",
    "flush_context": "queuedtask.run.attempt",
    "get_context": "queuedtask.run.attempt",
    "getLogger": "queuedtask.run.logs",
    "set_context": "queuedtask.run.attempt",
    "track": "queuedtask.run.track",
} | dict.fromkeys(
    (
        "Cancel",
        "ConfigError",
        "DatabaseUnavailable",
        "DuplicateTask",
        "FunctionNotAllowed",
        "Interrupted",
        "InvalidSignature",
        "InvalidTask",
        "IsolationError",
        "LeaseLost",
        "NotAllowed",
        "NotCommitted",
        "NotInTask",
        "NotSerializable",
        "ParentNotFound",
        "QueuedTaskError",
        "Retry",
        "ScheduleNotFound",
        "SchemaOutdated",
        "TaskCancelled",
        "TaskEnded",
        "TaskFailed",
        "TaskGone",
        "TaskNotFound",
        "TaskStopped",
        "TaskTimeout",
        "UnknownFunction",
    ),
    "queuedtask.errors",
)

__all__ = [
    "Cancel",
    "Config",
    "ConfigError",
    "DatabaseUnavailable",
    "DuplicateTask",
    "FunctionNotAllowed",
    "Interrupted",
    "InvalidSignature",
    "InvalidTask",
    "IsolationError",
    "LeaseLost",
    "NotAllowed",
    "NotCommitted",
    "NotInTask",
    "NotSerializable",
    "ParentNotFound",
    "Queue",
    "QueuedTaskError",
    "Retry",
    "ScheduleNotFound",
    "SchemaOutdated",
    "TaskCancelled",
    "TaskEnded",
    "TaskFailed",
    "TaskGone",
    "TaskNotFound",
    "TaskRef",
    "TaskStopped",
    "TaskTimeout",
    "UnknownFunction",
    "clear_context",
    "current_task",
    "flush_context",
    "getLogger",
    "get_context",
    "set_context",
    "track",
]

if TYPE_CHECKING:
    from queuedtask.config import Config
    from queuedtask.errors import (
        Cancel,
        ConfigError,
        DatabaseUnavailable,
        DuplicateTask,
        FunctionNotAllowed,
        Interrupted,
        InvalidSignature,
        InvalidTask,
        IsolationError,
        LeaseLost,
        NotAllowed,
        NotCommitted,
        NotInTask,
        NotSerializable,
        ParentNotFound,
        QueuedTaskError,
        Retry,
        ScheduleNotFound,
        SchemaOutdated,
        TaskCancelled,
        TaskEnded,
        TaskFailed,
        TaskGone,
        TaskNotFound,
        TaskStopped,
        TaskTimeout,
        UnknownFunction,
    )
    from queuedtask.refs import TaskRef
    from queuedtask.run.attempt import clear_context, current_task, flush_context, get_context, set_context
    from queuedtask.run.logs import getLogger
    from queuedtask.run.track import track
    from queuedtask.taskqueue import Queue


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
