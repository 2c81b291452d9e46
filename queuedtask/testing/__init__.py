"""The testing kit: run the tasks of a test in its own thread, and look at what it has added.

The names are imported when they are first used: the pytest plugin, which is part of this, is loaded into runs that have
nothing to do with queuedtask.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_WHERE = {
    "Ran": "queuedtask.testing.draining",
    "assert_enqueued": "queuedtask.testing.enqueued",
    "drain": "queuedtask.testing.draining",
    "inline": "queuedtask.testing.inlining",
    "perform": "queuedtask.testing.inlining",
    "queue_on": "queuedtask.testing.queues",
    "refute_enqueued": "queuedtask.testing.enqueued",
    "travel": "queuedtask.testing.queues",
    "database": "queuedtask.testing.servers",
    "wait_until": "queuedtask.testing.waiting",
}

__all__ = [
    "Ran",
    "assert_enqueued",
    "database",
    "drain",
    "inline",
    "perform",
    "queue_on",
    "refute_enqueued",
    "travel",
    "wait_until",
]

if TYPE_CHECKING:
    from queuedtask.testing.draining import Ran, drain
    from queuedtask.testing.enqueued import assert_enqueued, refute_enqueued
    from queuedtask.testing.inlining import inline, perform
    from queuedtask.testing.queues import queue_on, travel
    from queuedtask.testing.servers import database
    from queuedtask.testing.waiting import wait_until


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
