"""The command ``worker``: a supervisor in this process, and the processes that it starts.

The supervisor's side imports neither the application nor SQLAlchemy. The two hidden options mark the processes that
ours start: a worker process under its supervisor, and one that runs single attempts for its slot.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from queuedtask.cli.logs import log_to_stderr, warn
from queuedtask.cli.parser import UsageError
from queuedtask.config import Config, handed_down
from queuedtask.errors import ConfigError, QueuedTaskError
from queuedtask.model.address import Address
from queuedtask.worker.crew import Crew
from queuedtask.worker.http import HttpServer
from queuedtask.worker.listening import Listening
from queuedtask.worker.spawn import settle_in
from queuedtask.worker.wire import Message, Wire, WireClosed
from queuedtask.worker.workers import Workers

if TYPE_CHECKING:
    from queuedtask.run.attempt import Connections

FLAGS = {
    "max_workers": "--workers",
    "shutdown_timeout": "--shutdown-timeout",
    "log_level": "--log-level",
    "log_format": "--log-format",
}
SHARED = ("--app", "--database-url", "--shutdown-timeout", "--log-level", "--log-format")
"""What every process of a tree is told, if it was given."""
METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus-client's variable: where several processes keep their counters."""


def worker(arguments: argparse.Namespace) -> int:
    """Run tasks until a signal, or in a burst until none is left."""
    if arguments.isolated is not None:
        return _isolated(arguments)
    if arguments.supervised is not None:
        return _supervised(arguments)
    return _supervisor(arguments)


def _supervisor(arguments: argparse.Namespace) -> int:
    begin(arguments)
    workers = Workers(
        arguments.argv[1:], processes=arguments.processes, burst=arguments.burst, max_rss=arguments.max_rss
    )
    crews: list[Crew] = [workers]
    if arguments.probes is not None:
        crews.append(http_server(arguments, arguments.probes, "probes on"))
    return supervise(arguments, crews, workers)


# --------------------------------------------------------------------------------- supervising, here and by ``serve``


def begin(arguments: argparse.Namespace) -> None:
    """Begin as a supervisor: refuse wrong settings before anything is started, and set up the log."""
    # With an application the database is its business; a DATABASE_URL may then be meant for something else.
    ignored = None if arguments.app is None else "postgresql://"
    config = Config.resolve(arguments={"database_url": arguments.database_url or ignored})
    try:
        config.set_flags(**{name: getattr(arguments, attribute(option)) for name, option in FLAGS.items()})
    except ConfigError as error:
        raise UsageError(str(error)) from None
    log_to_stderr(config)
    for variable, meant in Config.unknown_variables():
        hint = f"; did you mean {meant}?" if meant else ""
        warn(config, f"{variable} is no setting{hint}")


def http_server(
    arguments: argparse.Namespace, address: Address, title: str, application: str | None = None
) -> HttpServer:
    """Return the crew of a server at an address; without an application it answers probes."""
    if find_spec("waitress") is None:
        raise QueuedTaskError("serving HTTP needs waitress: pip install 'queuedtask[http]'")
    command = [] if application is None else [application]
    command += passed_on(arguments, *SHARED, "--threads")

    def say(url: str) -> None:
        print(title, url, flush=True)

    return HttpServer(command, Listening(address), on_ready=say, has_probes=application is None)


def passed_on(arguments: argparse.Namespace, *options: str) -> list[str]:
    """Return what was given for some options, as a command line."""
    given = {option: getattr(arguments, attribute(option), None) for option in options}
    texts = {
        option: ",".join(value) if isinstance(value, list) else str(value)
        for option, value in given.items()
        if value is not None
    }
    return [f"{option}={text}" for option, text in texts.items()]


def supervise(arguments: argparse.Namespace, crews: Sequence[Crew], workers: Workers | None) -> int:
    """Keep crews running until a signal, in the order in which they are to end."""
    from queuedtask.worker.supervisor import Supervisor

    has_probes = any(isinstance(crew, HttpServer) and crew.has_probes for crew in crews)
    with _counters() if has_probes else nullcontext():
        return Supervisor(*crews, workers=workers, liveness_file=arguments.liveness_file).run()


@contextmanager
def _counters() -> Iterator[None]:
    """Give the processes of a tree a directory in which they add up what they count for Prometheus."""
    with TemporaryDirectory(prefix="queuedtask-metrics-") as directory, handed_down(METRICS_DIRECTORY, directory):
        yield


# ----------------------------------------------------------------------------------------------- the other processes


def _supervised(arguments: argparse.Namespace) -> int:
    wire, (board,) = settle_in(arguments.supervised)

    from queuedtask.cli.apps import application_of, open_queue
    from queuedtask.worker.board import Board
    from queuedtask.worker.process import WorkerProcess

    queue = open_queue(arguments, FLAGS)
    process: WorkerProcess | None = None
    log_to_stderr(queue.config, worker=lambda: None if process is None else process.id)
    process = WorkerProcess(
        queue,
        wire,
        Board(board),
        application=application_of(arguments),
        burst=arguments.burst,
        max_tasks=arguments.max_tasks,
        channels=arguments.queues,
    )
    return process.run()


def _isolated(arguments: argparse.Namespace) -> int:
    wire, _ = settle_in(arguments.isolated)
    hello, early = _greeting(wire)
    sys.path[:] = hello["path"]

    from queuedtask.run.hooks import Hooks
    from queuedtask.worker.runner import Runner

    queue = None
    if hello["application"] is not None:
        from queuedtask.cli.apps import load_application

        queue = load_application(hello["application"])
    config = Config(**hello["settings"])
    log_to_stderr(config, worker=lambda: int(hello["worker"]))

    def connect() -> "Connections":
        from queuedtask.taskqueue import Queue
        from queuedtask.worker.sql import TaskConnections

        return TaskConnections(queue or Queue(hello["database_url"]), worker=lambda: hello["worker"])

    hooks = Hooks() if queue is None else queue.hooks
    Runner(wire, config, connect=connect, hooks=hooks).run(early)
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


def attribute(option: str) -> str:
    """Return where argparse puts an option."""
    return option.removeprefix("--").replace("-", "_")
