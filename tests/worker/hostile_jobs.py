"""Tasks that defy their worker, each in its own way; run by the workers that ``trees.py`` starts."""

import asyncio
import ctypes
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from queuedtask import current_task, set_context


def loop() -> None:
    while True:
        pass


def sleep(seconds: float = 60.0) -> float:
    time.sleep(seconds)
    return seconds


def receive() -> None:
    here, there = socket.socketpair()
    with here, there:
        here.recv(1)


def acquire() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def select_on_ours() -> None:
    with current_task().connection() as connection:
        connection.exec_driver_sql("SELECT pg_sleep(60)")


def select_on_its_own(dsn: str) -> None:
    import psycopg2

    psycopg2.connect(dsn).cursor().execute("SELECT pg_sleep(60)")


def backtrack() -> None:
    re.match(r"(a+)+$", "a" * 40 + "b")


def swallow() -> None:
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass


async def sleep_async() -> None:
    await asyncio.sleep(60)


async def loop_async() -> None:
    while True:
        pass


def note(path: str, line: str, seconds: float = 0.0) -> str:
    """Append a line with one write, so that several processes may do so at once; then take some time."""
    with Path(path).open("a") as file:
        file.write(line + "\n")
    time.sleep(seconds)
    return line


def noop() -> None:
    pass


def kill_itself() -> None:
    os.kill(os.getpid(), 9)


def segfault() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(0)


def fork_and_die() -> None:
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    os.kill(os.getpid(), 9)


def write_everywhere() -> None:
    for descriptor in range(3, 100):
        try:
            os.write(descriptor, b"nonsense\n")
        except OSError:
            continue


async def swallow_and_wait() -> None:
    for _ in range(2):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass


def process_number() -> int:
    return os.getpid()


def grow(mebibytes: int) -> int:
    kept.append(bytearray(mebibytes * 2**20))
    return os.getpid()


kept: list[bytearray] = []


def terminate_a_program() -> int:
    program = subprocess.Popen(["sleep", "60"])
    program.terminate()
    return program.wait(20)


NINE: dict[str, Callable[..., object]] = {
    each.__name__: each
    for each in (
        loop,
        sleep,
        receive,
        acquire,
        select_on_ours,
        select_on_its_own,
        backtrack,
        swallow,
        sleep_async,
    )
}


def fork_and_raise(how: str) -> int:
    """Fork a child that ends as Python code does; return the exit code that it ends with."""
    child = os.fork()
    if child == 0:
        if how == "exit":
            sys.exit(7)
        if how == "raise":
            raise ValueError("in the child")
        return 1
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def give(result: int, context: int = 0) -> str:
    """Return so many bytes, having set as many in the context."""
    if context:
        set_context("large", "x" * context)
    return "x" * result
