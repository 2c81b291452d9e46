"""Where a coroutine's synchronous calls run, those of ``sync_to_async`` and of the ORM's asynchronous methods."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from typing import ParamSpec, TypeVar

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db import connections

from queuedtask.run.attempt import current_attempt
from queuedtask.run.hooks import TaskView

P = ParamSpec("P")
T = TypeVar("T")


def beside_the_loop(task: TaskView) -> AbstractContextManager[None] | AbstractAsyncContextManager[None]:
    """Give an attempt that is a coroutine a thread of its own for them: all slots of the process would share one else.

    A connection that breaks there, or a call that hangs, then is nobody else's. In the midst of somebody's test they
    run in his thread instead, on his connections and inside his transaction.
    """
    if not task.is_async:
        return nullcontext()
    attempt = current_attempt()
    return _in_this_thread() if attempt is not None and attempt.is_guest else _in_a_thread_of_its_own()


@asynccontextmanager
async def _in_a_thread_of_its_own() -> AsyncIterator[None]:
    async with ThreadSensitiveContext():
        try:
            yield
        finally:
            await sync_to_async(connections.close_all)()


@asynccontextmanager
async def _in_this_thread() -> AsyncIterator[None]:
    async with ThreadSensitiveContext() as context:
        SyncToAsync.context_to_thread_executor[context] = _ThisThread()
        yield


class _ThisThread(Executor):
    """Calls at once, and holds the event loop up meanwhile. Django allows that only where it sees no loop."""

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        future: Future[T] = Future()
        loop = asyncio.get_running_loop()
        asyncio._set_running_loop(None)
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        finally:
            asyncio._set_running_loop(loop)
        return future
