"""Attempts that run alone in a process: the process itself. It has no database of its own; ``isolation`` is its slot.

The main thread listens to the slot and tells it what the task sets and logs; one thread runs the attempts, so that
they find the same surroundings as in a worker. When the slot is gone the process ends at once, whatever it is doing.
"""

import os
import queue
import select
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from queuedtask.config import Config
from queuedtask.errors import Interrupted, TaskTimeout
from queuedtask.model.orders import ORDERS
from queuedtask.model.outcome import Outcome
from queuedtask.model.task import Task
from queuedtask.run.attempt import Attempt, Connections, ThreadNumbers, current_attempt
from queuedtask.run.executor import execute, judge
from queuedtask.run.hooks import Hooks
from queuedtask.run.logs import capture_logs
from queuedtask.run.resolver import Resolver
from queuedtask.worker.waker import Waker
from queuedtask.worker.wire import Message, Wire, WireClosed

INTERVAL: Final = 0.25
"""Seconds between two reports of what the task has set and logged."""
_INTERRUPTS: Final = {each.__name__: each for each in (TaskTimeout, Interrupted)}


class Runner:
    """Runs what its slot sends. ``connect`` makes what tasks draw their connections from, when one is first wanted."""

    def __init__(self, wire: Wire, config: Config, *, connect: Callable[[], Connections], hooks: Hooks) -> None:
        self._wire = wire
        wire.keeps_all = True  # how the attempt has ended is among it
        self._waker = Waker()
        self._config = config
        self._resolve = Resolver(config)
        self._connections = _Lazily(connect)
        self._hooks = hooks
        self._inbox: queue.SimpleQueue[tuple[Attempt, float]] = queue.SimpleQueue()
        self._attempt: Attempt | None = None
        self._ended: list[Outcome] = []
        self._is_flush_wanted = False

    def run(self, early: Sequence[Message] = ()) -> None:
        """Serve the slot, beginning with the messages that came early; ends with the process."""
        threading.Thread(target=self._work, name="slot-1", daemon=True).start()
        poll = select.poll()
        poll.register(self._wire, select.POLLIN)
        poll.register(self._waker.fileno(), select.POLLIN)
        with capture_logs(self._config.log_level, current_attempt):
            for message in early:
                self._obey(message)
            while True:
                # What the slot could not take at once, such as a large result, goes as soon as it can.
                poll.modify(self._wire, select.POLLIN | (select.POLLOUT if self._wire.is_unsent else 0))
                poll.poll(None if self._attempt is None else INTERVAL * 1000)
                self._waker.clear()
                try:
                    messages = self._wire.receive()
                except WireClosed:
                    os._exit(0)
                for message in messages:
                    self._obey(message)
                self._report()
                self._wire.flush()

    def _obey(self, message: Message) -> None:
        if "attempt" in message:
            task = Task(**message["attempt"])
            self._attempt = Attempt(task, self._flush_wanted, connections=self._connections)
            self._attempt.runs_alone = True
            self._inbox.put((self._attempt, message["default_timeout"]))
        elif "abort" in message and self._attempt is not None:
            self._attempt.ask_to_abort()
        elif "order" in message and self._attempt is not None:
            if self._attempt.task.key == tuple(message["of"]):
                self._attempt.obey(ORDERS[message["order"]])
        elif "interrupt" in message and self._attempt is not None:
            self._attempt.interrupt(_INTERRUPTS[message["interrupt"]])
        elif "flushed" in message and self._attempt is not None:
            self._attempt.context.confirm()

    def _report(self) -> None:
        attempt = self._attempt
        if attempt is None:
            return
        ended = self._ended.pop() if self._ended else None
        is_flush_wanted, self._is_flush_wanted = self._is_flush_wanted, False
        context = attempt.context.take_changes(also_deferred=ended is not None)
        now = time.monotonic()
        lines = [(line.type, line.name, line.message, now - line.at) for line in attempt.log.take()]
        if context is not None or lines or is_flush_wanted:
            self._wire.send(lines=lines, context=context, flush=is_flush_wanted)
        if ended is not None:
            self._attempt = None
            attempt.context.confirm(is_last=True)
            self._wire.send(ended=ended._asdict())

    def _flush_wanted(self) -> None:
        self._is_flush_wanted = True
        self._waker.wake()

    # -------------------------------------------------------------------------------------- in the thread of the tasks

    def _work(self) -> None:
        while True:
            attempt, default_timeout = self._inbox.get()
            attempt.thread = ThreadNumbers.of_this_one()
            ended = execute(
                attempt,
                self._resolve,
                default_timeout=default_timeout,
                on_begin=self._began,
                hooks=self._hooks,
                judge=partial(judge, self._config),
            )
            self._ended.append(ended)
            self._waker.wake()

    def _began(self, attempt: Attempt) -> None:
        self._wire.send(begun=attempt.options.portable())


class _Lazily:
    """Makes the database's part when the first task asks for a connection: most never do, and it takes time."""

    def __init__(self, connect: Callable[[], Connections]) -> None:
        self._connect = connect
        self._made: Connections | None = None

    def open(self, attempt: Attempt) -> Any:
        with attempt.guard.hold():
            made = self._make()
        return made.open(attempt)

    def finish_in(self, attempt: Attempt, connection: object) -> Any:
        with attempt.guard.hold():
            made = self._make()
        return made.finish_in(attempt, connection)

    def ref(self, task_id: str) -> Any:
        return self._make().ref(task_id)

    def worker_id(self) -> int:
        return self._make().worker_id()

    def _make(self) -> Connections:
        if self._made is None:
            self._made = self._connect()
        return self._made

    def cancel(self, attempt: Attempt) -> None:
        if self._made is not None:
            self._made.cancel(attempt)

    def finish(self, attempt: Attempt) -> None:
        if self._made is not None:
            self._made.finish(attempt)
