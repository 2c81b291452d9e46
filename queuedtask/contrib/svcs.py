"""Services from an svcs registry inside tasks: one container per attempt, closed after it, however it ends.

Needs the extra ``svcs``. See https://svcs.hynek.me for registries, factories and clean-ups.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import TypeVar
from weakref import WeakSet

import svcs

from queuedtask.errors import NotInTask, QueuedTaskError
from queuedtask.run.attempt import current_attempt
from queuedtask.run.hooks import TaskView
from queuedtask.taskqueue import Queue

T = TypeVar("T")

_queues: WeakSet[Queue] = WeakSet()
# By id and attempt, so that threads which have joined the task find the one of theirs.
_containers: dict[tuple[str, int], svcs.Container] = {}


class NoRegistry(QueuedTaskError, LookupError):
    """Say that the queue that this worker works for has no svcs registry."""


def register(queue: Queue, registry: svcs.Registry) -> None:
    """Give a queue the registry from which its tasks draw their services. Raises ValueError for a second one.

    It has to be the Queue that the worker is given with ``-a`` or ``QUEUE_APP``. The registry is not closed with it.
    """
    if queue in _queues:
        raise ValueError("register(): this queue has an svcs registry already")
    _queues.add(queue)

    def container(task: TaskView) -> AbstractContextManager[None] | AbstractAsyncContextManager[None]:
        return _aopened(task, registry) if task.is_async else _opened(task, registry)

    queue.around_run(container)


def get_service(service_type: type[T]) -> T:
    """Return the running attempt's instance of a service, made when it is first asked for.

    Raises NotInTask outside a task, NoRegistry without :func:`register`, and what svcs raises, such as
    ``svcs.exceptions.ServiceNotFoundError``.
    """
    return _container("get_service").get(service_type)


async def aget_service(service_type: type[T]) -> T:
    """Return the same of a service whose factory may be asynchronous; for tasks that are ``async def``.

    Its clean-up is awaited in the task's own event loop, when the attempt has ended.
    """
    return await _container("aget_service").aget(service_type)


def current_container() -> svcs.Container:
    """Return the running attempt's container, for the rest of what svcs can do. Raises NotInTask and NoRegistry."""
    return _container("current_container")


def _container(caller: str) -> svcs.Container:
    attempt = current_attempt()
    if attempt is None:
        raise NotInTask(f"{caller}() was called in a thread that runs no task and has joined none")
    container = _containers.get(attempt.task.key)
    if container is None:
        raise NoRegistry(
            f"{caller}(): there is no svcs registry here; call queuedtask.contrib.svcs.register(queue, registry) for "
            "the Queue that the worker is given with -a or QUEUE_APP"
        )
    return container


@contextmanager
def _opened(task: TaskView, registry: svcs.Registry) -> Iterator[None]:
    with svcs.Container(registry) as container:
        _containers[task.id, task.attempt] = container
        try:
            yield
        finally:
            del _containers[task.id, task.attempt]


@asynccontextmanager
async def _aopened(task: TaskView, registry: svcs.Registry) -> AsyncIterator[None]:
    async with svcs.Container(registry) as container:
        _containers[task.id, task.attempt] = container
        try:
            yield
        finally:
            del _containers[task.id, task.attempt]
