"""The command ``worker``: one worker in this process, its signals, its log on stderr."""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from queuedtask.cli import output
from queuedtask.cli.apps import open_queue
from queuedtask.config import Config
from queuedtask.worker.manager import Manager

FLAGS = {"max_workers": "--workers", "shutdown_timeout": "--shutdown-timeout", "log_level": "--log-level"}


def worker(arguments: argparse.Namespace) -> int:
    """Run tasks until a signal, or in a burst until none is left."""
    queue = open_queue(arguments, FLAGS)
    _log_to_stderr(queue.config.log_level)
    for variable, meant in Config.unknown_variables():
        hint = f"; did you mean {meant}?" if meant else ""
        output.print_warning(f"{variable} is no setting{hint}")
    manager = Manager(queue, burst=arguments.burst)
    with _stopped_by_signals(manager):
        manager.start()
        manager.run()
    queue.close()
    if manager.is_abandoning:
        # Threads that cannot be stopped still run tasks that were given back. Python would let them go on until its
        # very end; nothing of theirs is awaited any more.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


@contextmanager
def _stopped_by_signals(manager: Manager) -> Iterator[None]:
    """Let the first SIGTERM or SIGINT stop the manager in its time, a second one at once."""
    is_second = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_second
        manager.stop(0 if is_second else None)
        is_second = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    # The manager waits in poll(): the byte that Python writes here ends the wait, and the handler above runs.
    descriptor = signal.set_wakeup_fd(manager.wakeup_fd)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_to_stderr(level: int) -> None:
    """Log to stderr, unless the application has set up logging of its own."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(
        "%(asctime)s %(levelname)s %(threadName)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%SZ"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root.addHandler(handler)
    root.setLevel(level)
