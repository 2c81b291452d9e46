"""A queue at home in Django: on its connection, in its transactions, with its settings, migrations, admin and commands.

Put ``"queuedtask.contrib.django"`` into ``INSTALLED_APPS``, and::

    from queuedtask.contrib.django import queue

    queue.add_task(send_receipt, order.id)     # commits or vanishes with the order

The queue is made when it is first asked for; importing this package imports nothing of Django's. Needs the extra
``django``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["DjangoQueue", "QueuedTaskBackend", "embedded_database", "queue"]

if TYPE_CHECKING:
    from queuedtask.contrib.django.backend import QueuedTaskBackend
    from queuedtask.contrib.django.embedded import embedded_database
    from queuedtask.contrib.django.queues import DjangoQueue

    queue: DjangoQueue

_WHERE = {
    "QueuedTaskBackend": "queuedtask.contrib.django.backend",
    "DjangoQueue": "queuedtask.contrib.django.queues",
    "embedded_database": "queuedtask.contrib.django.embedded",
}


def __getattr__(name: str) -> Any:
    if name == "queue":
        value: Any = import_module("queuedtask.contrib.django.queues").the_queue()
    elif name in _WHERE:
        value = getattr(import_module(_WHERE[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
