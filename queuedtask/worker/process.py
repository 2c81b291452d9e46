"""A worker process under a supervisor: what it says of itself, the orders that it takes, and its end.

It takes orders from its wire alone. When the wire ends the supervisor is gone, and the worker ends in order.
"""

import gc
import logging
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import psycopg2.extensions

from queuedtask.db.workers import KEEP_ALIVE
from queuedtask.errors import QueuedTaskError
from queuedtask.taskqueue import Queue
from queuedtask.worker.board import Board
from queuedtask.worker.manager import NEVER, Manager
from queuedtask.worker.obituary import Obituary
from queuedtask.worker.wire import Message, Wire, WireClosed

logger = logging.getLogger("queuedtask.worker")


class WorkerProcess:
    """Joins a manager to the supervisor's wire."""

    def __init__(
        self,
        queue: Queue,
        wire: Wire,
        board: Board,
        *,
        application: str | None = None,
        burst: bool = False,
        max_tasks: int | None = None,
        channels: Sequence[str] | None = None,
    ) -> None:
        self._queue = queue
        self._wire = wire
        self._manager = Manager(
            queue,
            burst=burst,
            supervisor_pid=os.getppid(),
            board=board,
            application=application,
            max_tasks=max_tasks,
            channels=channels,
            on_replacement_wanted=lambda reason: wire.send(replace=reason),
            on_buried=lambda worker: wire.send(buried=worker),
        )

    @property
    def id(self) -> int | None:
        """The worker's id, once it has one."""
        return self._manager.id or None

    def run(self) -> int:
        """Work until told to stop, or until a burst has nothing left; return the exit code."""
        # Orders that came while the process started are obeyed before anything is claimed.
        self._obey_what_came()
        self._manager.start()
        self._wire.send(hello=self._introduction())
        threading.Thread(target=self._listen, name="orders", daemon=True).start()
        # Tens of thousands of short-lived objects a second make the collector run often; what was made up to now, the
        # application's modules above all, stays anyway and need not be looked at each time.
        gc.freeze()
        self._manager.run()
        self._queue.close()
        self._wire.send(bye=True)
        self._wire.flush(timeout=1.0)
        if self._manager.is_abandoning:
            # Threads that cannot be stopped still run tasks that were given back. Python would let them go on until its
            # very end; nothing of theirs is awaited any more.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        return 0

    def _introduction(self) -> Message:
        """Return what the supervisor needs to keep the lease and to judge: it imports neither application nor SQL."""
        config = self._queue.config
        connection = self._queue.database.connect()
        try:
            parameters: dict[str, Any] = connection.get_dsn_parameters()
            if connection.info.password:
                parameters["password"] = connection.info.password
        finally:
            connection.close()
        return {
            "name": f"worker {self._manager.id}",
            "worker": self._manager.id,
            "dsn": psycopg2.extensions.make_dsn(**parameters),
            "database_url": f"postgresql+psycopg2:///?{urlencode(parameters)}",
            "keep_alive": KEEP_ALIVE.sql,
            "heartbeat_interval": config.heartbeat_interval,
            "lease": config.lease,
            "shutdown_timeout": config.shutdown_timeout,
            "timeout_grace": config.timeout_grace,
        }

    def _listen(self) -> None:
        while True:
            self._wire.wait()
            self._obey_what_came()
            if self._wire.is_closed:
                return

    def _obey_what_came(self) -> None:
        try:
            for message in self._wire.receive():
                self._obey(message)
        except WireClosed:
            if not self._wire.is_closed:
                logger.warning("the supervisor is gone: ending in order")
                self._wire.is_closed = True
                self._manager.stop()

    def _obey(self, message: Message) -> None:
        if "stop" in message:
            self._manager.stop(message["stop"])
        elif "retire" in message:
            self._manager.stop(NEVER)
        elif "bury" in message:
            self._manager.bury(Obituary.of_message(message["bury"]))
        else:
            raise QueuedTaskError(f"the supervisor sent an order that this worker does not know: {list(message)}")
