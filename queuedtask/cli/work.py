"""The command ``worker``: a supervisor in this process, and the processes that it starts.

The supervisor's side imports neither the application nor SQLAlchemy. The two hidden options mark the processes that
ours start: a worker process under its supervisor, and one that runs single attempts for its slot.
"""

import argparse
import logging
import sys
import time
from typing import TYPE_CHECKING

from queuedtask.cli.parser import UsageError
from queuedtask.config import Config
from queuedtask.errors import ConfigError
from queuedtask.worker.spawn import settle_in
from queuedtask.worker.wire import Message, Wire, WireClosed

if TYPE_CHECKING:
    from queuedtask.run.attempt import Connections

FLAGS = {"max_workers": "--workers", "shutdown_timeout": "--shutdown-timeout", "log_level": "--log-level"}


def worker(arguments: argparse.Namespace) -> int:
    """Run tasks until a signal, or in a burst until none is left."""
    if arguments.isolated is not None:
        return _isolated(arguments)
    if arguments.supervised is not None:
        return _supervised(arguments)
    return _supervisor(arguments)


def _supervisor(arguments: argparse.Namespace) -> int:
    from queuedtask.worker.supervisor import Supervisor

    config = Config.resolve(arguments={"database_url": arguments.database_url})
    try:
        config.set_flags(**{name: getattr(arguments, _attribute(option)) for name, option in FLAGS.items()})
    except ConfigError as error:
        raise UsageError(str(error)) from None
    _log_to_stderr(config.log_level)
    for variable, meant in Config.unknown_variables():
        hint = f"; did you mean {meant}?" if meant else ""
        print(f"queuedtask: warning: {variable} is no setting{hint}", file=sys.stderr)
    return Supervisor(
        arguments.argv[1:], processes=arguments.processes, burst=arguments.burst, max_rss=arguments.max_rss
    ).run()


def _supervised(arguments: argparse.Namespace) -> int:
    wire, (board,) = settle_in(arguments.supervised)

    from queuedtask.cli.apps import application_of, open_queue
    from queuedtask.worker.board import Board
    from queuedtask.worker.process import WorkerProcess

    queue = open_queue(arguments, FLAGS)
    _log_to_stderr(queue.config.log_level)
    return WorkerProcess(
        queue,
        wire,
        Board(board),
        application=application_of(arguments),
        burst=arguments.burst,
        max_tasks=arguments.max_tasks,
    ).run()


def _isolated(arguments: argparse.Namespace) -> int:
    wire, _ = settle_in(arguments.isolated)
    hello, early = _greeting(wire)
    sys.path[:] = hello["path"]

    from queuedtask.worker.runner import Runner

    queue = None
    if hello["application"] is not None:
        from queuedtask.cli.apps import load_application

        queue = load_application(hello["application"])
    _log_to_stderr(hello["log_level"])

    def connect() -> "Connections":
        from queuedtask.taskqueue import Queue
        from queuedtask.worker.sql import TaskConnections

        return TaskConnections((queue or Queue(hello["database_url"])).database)

    runner = Runner(wire, function_aliases=hello["function_aliases"], log_level=hello["log_level"], connect=connect)
    runner.run(early)
    return 0


def _greeting(wire: Wire) -> tuple[Message, list[Message]]:
    """Return the slot's first message, and those that have come with it."""
    while wire.wait():
        try:
            if messages := wire.receive():
                return messages[0], messages[1:]
        except WireClosed:
            break
    sys.exit(0)  # its slot is gone


def _attribute(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _log_to_stderr(level: int) -> None:
    """Log to stderr, unless the application has set up logging of its own."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(
        "%(asctime)s %(levelname)s %(process)d %(threadName)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%SZ"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root.addHandler(handler)
    root.setLevel(level)
