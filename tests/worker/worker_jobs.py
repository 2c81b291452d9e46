"""The tasks of the worker's tests; ``tests/worker`` is put on the import path by the tests that use them."""

import asyncio
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from queuedtask import Cancel, Retry, current_task, flush_context, get_context, set_context, track

flushed: list[str] = []
released = threading.Event()
"""What blocked() waits for."""


def add(a: int, b: int) -> int:
    return a + b


async def add_async(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


def fail(message: str = "boom") -> None:
    raise ValueError(message)


def leave() -> None:
    raise SystemExit(3)


def interrupt_keyboard() -> None:
    raise KeyboardInterrupt


def spin() -> None:
    while True:
        pass


async def sleep_async(seconds: float) -> None:
    await asyncio.sleep(seconds)


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


def blocked() -> str:
    assert released.wait(30)
    return "released"


def note(path: str, line: str) -> None:
    with Path(path).open("a") as file:
        file.write(line + "\n")


def retry_once(delay: float) -> int:
    attempt = current_task().attempt
    if attempt == 1:
        raise Retry("not yet", delay=delay)
    return attempt


def cancel() -> None:
    raise Cancel("customer left")


def count_up_to_failure() -> None:
    set_context("count", get_context("count", 0) + 1)
    raise ValueError("again")


def set_and_spin() -> None:
    set_context("progress.rows", 500)
    while True:
        pass


def set_and_wait() -> None:
    set_context("progress.rows", 500)
    assert released.wait(30)
    set_context("progress.rows", 1000)


def set_often(times: int) -> None:
    for n in range(times):
        set_context("n", n)


def flush_deferred() -> None:
    set_context("deferred", 1, auto_commit=False)
    flush_context()
    assert released.wait(30)


def log_from_everywhere() -> None:
    logging.getLogger("shop").info("from the task, %s", "formatted")
    logging.getLogger("queuedtask.own").warning("ours")
    logging.getLogger("sqlalchemy.engine").warning("the driver's")
    logging.getLogger("shop").debug("below the level")

    def joined() -> None:
        set_context("thread", True)
        logging.getLogger("shop.thread").warning("from a thread\0 of it")

    thread = threading.Thread(target=current_task().copy_context().run, args=(joined,))
    thread.start()
    thread.join()


def odd_result() -> Any:
    return {"when": object(), "nan": float("nan"), "text": "a\0b\ud800"}


def token() -> list[object]:
    return [current_task().id, current_task().attempt]


def wait_for_abort() -> str:
    while not current_task().should_abort():
        time.sleep(0.01)
    return "told to abort"


def set_until_interrupted() -> None:
    count = 0
    while True:
        count += 1
        set_context("count", count)
        time.sleep(0.01)


def ends_about(seconds: float) -> str:
    """End about so many seconds after its beginning, in Python code."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return "ended"


def insert(table: str, value: int, *, fail: bool = False, swallow_for: float = 0.0) -> None:
    with current_task().connection() as connection:
        connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({value})")
        try:
            time.sleep(swallow_for)
        except BaseException:
            pass
        if fail:
            raise ValueError("after the insert")


def tell_backend_and_spin() -> None:
    with current_task().connection() as connection:
        set_context("backend", connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
        # Between two statements: in the middle of one SQLAlchemy itself gives the connection up.
        spin()


def is_start_in_row() -> bool:
    with current_task().connection() as connection:
        read = "SELECT date_started IS NOT NULL FROM queued_tasks WHERE id = %s"
        return bool(connection.exec_driver_sql(read, (current_task().id,)).scalar_one())


def raise_when_told() -> None:
    while not current_task().should_abort():
        time.sleep(0.01)
    raise ValueError("told to abort")


def set_after_a_while_and_sleep(before: float, after: float) -> None:
    time.sleep(before)
    set_context("set", True)
    time.sleep(after)


def shielded_select(seconds: float) -> str:
    with current_task().connection() as connection:
        with current_task().shield():
            slept = connection.exec_driver_sql(f"SELECT pg_sleep({seconds})::text || 'slept'").scalar_one()
            set_context("shielded", slept)
        while True:
            pass


def tell(steps: int) -> dict[str, object]:
    """Set context, flush, log and return: all that a process of its own has to pass on."""
    for n in range(steps):
        set_context("step", n)
        logging.getLogger("shop").info("step %s", n)
    flush_context()
    set_context("flushed", True, auto_commit=False)
    return {"process": os.getpid(), "attempt": current_task().attempt}


def tell_and_die() -> None:
    set_context("before", "death")
    flush_context()
    os.kill(os.getpid(), 9)


def sleep_and_tell(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def sleep_for_long() -> None:
    time.sleep(60)


async def sleep_async_for_long() -> None:
    await asyncio.sleep(60)


def set_tenant_and_fail() -> None:
    set_context("tenant", 99)
    raise ValueError("again")


def sleep_in_sql(seconds: float) -> None:
    with current_task().connection() as connection:
        connection.exec_driver_sql(f"SELECT pg_sleep({seconds})")


def finish_and_fail(result: int) -> None:
    with current_task().transaction():
        current_task().set_result(result)
    raise ValueError("after it")


async def clean_up_and_return() -> str:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        set_context("cleaned", True)
    return "returned"


def wait_for(task_id: str, timeout: float | None = None) -> Any:
    """Wait for another task, as a task would that has added it."""
    return queues[0].get(task_id).wait(timeout)


def add_and_wait(n: int) -> Any:
    return queues[0].add_task(add, n, n).wait(30)


queues: list[Any] = []
"""The queue of a worker in the test's own process."""


def leave_a_thread_that_flushes() -> None:
    """End while a thread that has joined the task goes on, and asks for a write once the task has ended."""

    def flush_late() -> None:
        released.wait(30)
        set_context("late", True)
        try:
            flush_context()
        except BaseException as error:
            flushed.append(repr(error))

    threading.Thread(target=current_task().copy_context().run, args=(flush_late,), daemon=True).start()


def set_far_down() -> None:
    set_context(".".join(["a"] * 3000), 1)


class Unreadable(Cancel):
    def __str__(self) -> str:
        raise RuntimeError


def cancel_unreadably() -> None:
    raise Unreadable


def fail_with_nul() -> None:
    raise ValueError("a\0b")


def fail_when_released() -> None:
    assert released.wait(30)
    raise ValueError("released")


def loop_slowly(path: str, count: int, seconds: float) -> int:
    """Note each item when it is finished."""
    for item in track(range(count), key="cursor"):
        time.sleep(seconds)
        note(path, str(item))
    return count


def loop_until_blocked(path: str, blocked_at: int) -> None:
    """Get stuck at an item in the first attempt."""
    for item in track(range(20), key="cursor"):
        if item == blocked_at and current_task().attempt == 1:
            released.wait(60)
        note(path, str(item))


def loop_and_finish(path: str, fail: bool) -> None:
    """Finish in a transaction after the loop."""
    for item in track(range(3), key="cursor"):
        note(path, str(item))
    with current_task().transaction() as connection:
        connection.exec_driver_sql("SELECT 1")
        if fail and current_task().attempt == 1:
            raise ValueError("in the transaction")
