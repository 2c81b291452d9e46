"""Tasks of the tests of tracing, Sentry and metrics."""

import asyncio
import os
import signal
import threading
import time
from typing import Any

from opentelemetry import trace

from queuedtask import Cancel, Queue, Retry, current_task

queues: list[Queue] = []
"""The one that tasks of this process add to."""


def span_id() -> str:
    return format(trace.get_current_span().get_span_context().span_id, "016x")


def tell(*arguments: object) -> str:
    return span_id()


async def tell_async() -> str:
    await asyncio.sleep(0)
    return await asyncio.create_task(asyncio.sleep(0, span_id()))


def tell_from_threads() -> list[str]:
    said: dict[str, str] = {}
    joined = current_task().copy_context()

    def inside() -> None:
        with joined:
            said["with"] = span_id()
        said["after"] = span_id()

    threads = [
        threading.Thread(target=inside),
        threading.Thread(target=joined.run, args=(lambda: said.update(run=span_id()),)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [said["with"], said["run"], said["after"]]


def hand_on() -> str:
    return queues[0].add_task(tell).id


def fail(message: str = "boom") -> None:
    raise ValueError(message)


def fail_once() -> int:
    if current_task().attempt == 1:
        raise ValueError("not the first time")
    return current_task().attempt


def ask_for_retry(times: int) -> int:
    if current_task().attempt <= times:
        raise Retry("not yet", delay=0)
    return current_task().attempt


def cancel() -> None:
    raise Cancel("customer left")


def spin() -> None:
    while True:
        pass


def block(seconds: float) -> None:
    time.sleep(seconds)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def add_beside(other: str) -> Any:
    return queues[0].options(name=other).add_task(tell).id
