"""The command ``serve``: a WSGI application, or our own probes, with workers beside it under one supervisor.

The hidden option marks the process that serves. The supervisor's side imports no application, SQLAlchemy or waitress.
"""

import argparse
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from queuedtask.cli import work
from queuedtask.cli.logs import log_to_stderr
from queuedtask.cli.parser import UsageError
from queuedtask.config import Config
from queuedtask.errors import QueuedTaskError
from queuedtask.worker.board import Board
from queuedtask.worker.crew import Crew
from queuedtask.worker.spawn import settle_in
from queuedtask.worker.wire import Message, Wire, WireClosed
from queuedtask.worker.workers import Workers

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from queuedtask.taskqueue import Queue
    from queuedtask.web.probes import Tree
    from queuedtask.web.server import Server

FOR_WORKERS = ("--processes", "--queues", "--max-tasks", "--max-rss")
STALE_AFTER = 5.0
"""Seconds after which a supervisor that says nothing is taken for one that does not go round."""


def serve(arguments: argparse.Namespace) -> int:
    """Serve until a signal."""
    arguments.workers = arguments.workers or None  # as a setting: not given
    return _supervisor(arguments) if arguments.supervised is None else _supervised(arguments)


def _supervisor(arguments: argparse.Namespace) -> int:
    work.begin(arguments)
    has_workers = arguments.workers is not None
    if not has_workers:
        if arguments.no_http:
            raise UsageError("nothing to do: --no-http needs --workers")
        for option in FOR_WORKERS:
            if getattr(arguments, work.attribute(option)) is not None:
                raise UsageError(f"argument {option}: needs --workers")
    crews: list[Crew] = []
    workers = None
    with ExitStack() as bound:  # what is bound already is freed when something else cannot be
        # In the order in which they end: what requests add or wait for needs workers, and probes tell of all of it.
        if arguments.application is not None and not arguments.no_http:
            crews.append(work.http_server(arguments, arguments.bind, "serving on", arguments.application))
            bound.callback(crews[-1].close)
        if has_workers:
            options = ("--workers", *FOR_WORKERS, *work.SHARED)
            workers = Workers(
                work.passed_on(arguments, *options), processes=arguments.processes or 1, max_rss=arguments.max_rss
            )
            crews.append(workers)
        if arguments.application is None and not arguments.no_http:
            crews.append(work.http_server(arguments, arguments.bind, "serving on"))
            bound.callback(crews[-1].close)
        if arguments.probes is not None:
            crews.append(work.http_server(arguments, arguments.probes, "probes on"))
            bound.callback(crews[-1].close)
        return work.supervise(arguments, crews, workers)


# -------------------------------------------------------------------------------------------- the process that serves


def _supervised(arguments: argparse.Namespace) -> int:
    wire, (board, *sockets) = settle_in(arguments.supervised)

    from queuedtask.web.server import Server

    config = Config.resolve(arguments={"database_url": arguments.database_url})
    config.set_flags(**{name: getattr(arguments, work.attribute(option), None) for name, option in work.FLAGS.items()})
    orders = _Orders(wire)
    application: WSGIApplication
    if arguments.application is not None:
        from queuedtask.cli.apps import load_wsgi

        application = load_wsgi(arguments.application)
    else:
        from queuedtask.web.probes import Probes

        application = Probes(_Queues(arguments, orders).current, orders.tree)
    log_to_stderr(config)
    server = Server(application, [socket.socket(fileno=each) for each in sockets], threads=arguments.threads)
    return _Process(server, wire, orders, Board(board), config).run()


class _Orders:
    """What the supervisor says: how the tree is, and when to end."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._status: Message = {"problems": [], "shortcomings": [], "has_workers": False, "database_url": None}
        self._heard_at = time.monotonic()
        self.on_stop: Callable[[float | None], None] = lambda seconds: None

    def obey(self) -> None:
        """Take what has come. The supervisor's death counts as an order to end."""
        try:
            for message in self._wire.receive():
                if "status" in message:
                    self._status, self._heard_at = message["status"], time.monotonic()
                else:
                    self.on_stop(message.get("stop"))
        except WireClosed:
            self._wire.is_closed = True
            self.on_stop(None)

    def listen(self) -> None:
        """Obey until there is nobody to obey."""
        while not self._wire.is_closed:
            self._wire.wait()
            self.obey()

    def tree(self) -> "Tree":
        """Return how the tree is, as far as that is known."""
        from queuedtask.web.probes import Tree

        status, silence = self._status, time.monotonic() - self._heard_at
        problems = list(status["problems"])
        if silence > STALE_AFTER:
            problems.append(f"the supervisor has not gone round for {silence:.0f} s")
        return Tree(problems, list(status["shortcomings"]))

    def database_url(self) -> str | None:
        """Return where the workers beside us have their tasks; None when there are no workers."""
        if not self._status["has_workers"]:
            return None
        url: str | None = self._status["database_url"]
        if url is None:
            raise QueuedTaskError("no worker process has been ready yet")
        return url


class _Queues:
    """The Queue that probes ask about: that of the workers, without their application; without workers, our own."""

    def __init__(self, arguments: argparse.Namespace, orders: _Orders) -> None:
        self._arguments = arguments
        self._orders = orders
        self._opening = threading.Lock()
        self._opened: tuple[str | None, Queue] | None = None

    def current(self) -> "Queue":
        """Return it; raises when it cannot be known yet."""
        url = self._orders.database_url()
        with self._opening:
            if self._opened is None or self._opened[0] != url:
                self._opened = (url, self._open(url))
            return self._opened[1]

    def _open(self, url: str | None) -> "Queue":
        from queuedtask.cli.apps import open_queue
        from queuedtask.taskqueue import Queue

        return open_queue(self._arguments) if url is None else Queue(url)


class _Process:
    """Joins a server to the supervisor's wire."""

    def __init__(self, server: "Server", wire: Wire, orders: _Orders, board: Board, config: Config) -> None:
        self._server = server
        self._wire = wire
        self._orders = orders
        self._board = board
        self._config = config

    def run(self) -> int:
        """Serve until told to end; return the exit code."""
        self._orders.on_stop = self._stop
        self._orders.obey()  # How the tree is has been said before the first request can come.
        self._board.is_connected = True
        self._turn()
        facts = {name: getattr(self._config, name) for name in ("shutdown_timeout", "lease")}
        self._wire.send(hello={"name": "the HTTP server", "timeout_grace": 0.0, **facts})
        threading.Thread(target=self._orders.listen, name="orders", daemon=True).start()
        is_clean = self._server.run(self._turn)
        self._wire.send(bye=True)
        self._wire.flush(timeout=1.0)
        if not is_clean:
            # Threads that answer nobody any more would be torn down somewhere in the middle.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        return 0

    def _turn(self) -> None:
        self._board.turned_at = time.monotonic()

    def _stop(self, seconds: float | None) -> None:
        self._server.stop(self._config.shutdown_timeout if seconds is None else seconds)
