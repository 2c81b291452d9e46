"""Attempts that run alone in a process: this side, in the slot that waits for one.

A task that has lost a process before must not take its neighbours along once more; others ask for a process of their
own (``isolation="process"``). Its slot hands such a task to a process that has nothing else to do, passes on what the
task sets and logs, and sees how it ends: by itself, by being killed after its timeout, or by taking the process with
it, which is then known for certain.

A process is kept for the next such task for a while; it never has two at a time. ``runner`` is the other side.
"""

import logging
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from queuedtask.errors import Interrupted
from queuedtask.model import outcome
from queuedtask.model.options import TaskOptions
from queuedtask.model.orders import Order
from queuedtask.model.outcome import Outcome
from queuedtask.model.task import Task
from queuedtask.run.attempt import Attempt
from queuedtask.run.executor import told_to_end
from queuedtask.run.logs import Line
from queuedtask.taskqueue import Queue
from queuedtask.worker.rescue import lost
from queuedtask.worker.spawn import Process
from queuedtask.worker.wire import Message, WireClosed

logger = logging.getLogger("queuedtask.worker")

IDLE_LIMIT: Final = 10.0
"""Seconds that a process is kept without a task."""
START_LIMIT: Final = 60.0
"""Seconds that a process has to start and to import the application."""
STACK_WAIT: Final = 0.2
"""Seconds that a process has to write its stack down before it is killed."""
SETTINGS: Final = (
    "log_level",
    "log_format",
    "function_aliases",
    "allowed_functions",
    "secret_key",
    "max_retries",
    "max_lost",
)
"""What of the configuration such a process gets: by wire, where neither ``ps`` nor a log shows its secrets."""
_TICK: Final = 0.25


class Runner:
    """One such process, as its slot sees it."""

    def __init__(self, queue: Queue, application: str | None, worker: int) -> None:
        self._process = Process(["worker"], "--isolated")
        self._inherited_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        """The worker's own peak, with which the count of a child's memory begins."""
        self.is_killed = False
        self.idle_since = 0.0
        config = queue.config
        url = queue.database.engine.url.render_as_string(hide_password=False)
        self._process.wire.send(
            path=sys.path,
            application=application,
            database_url=url,
            worker=worker,
            settings={name: getattr(config, name) for name in SETTINGS},
        )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def send(self, **message: Any) -> None:
        """Send the process a message."""
        self._process.wire.send(**message)

    def receive(self) -> list[Message] | None:
        """Return what the process has sent within a tick; None when it is gone."""
        wire = self._process.wire
        wire.flush()
        # A process that the task has forked may keep the wire open, so its end is no sure sign of death, nor the only.
        has_ended = self.has_ended
        if not wire.wait(0.0 if has_ended else _TICK):
            return None if has_ended else []
        try:
            return wire.receive()
        except WireClosed:
            return None

    def ask_to_abort(self) -> None:
        """Ask the attempt in there to end."""
        self.send(abort=True)

    def interrupt(self, interrupt: type[BaseException]) -> None:
        """Interrupt the attempt in there."""
        self.send(interrupt=interrupt.__name__)

    def obey(self, order: Order, task: Task) -> None:
        """Tell the attempt in there that somebody has cancelled or stopped it, unless it is another by now."""
        self.send(order=order.name, of=task.key)

    def kill(self) -> None:
        """End the process, whatever it does; its last stack is kept first, if it still answers. Acts once."""
        if not self.is_killed:
            self.is_killed = True
            threading.Thread(target=self._kill, name=f"kill-{self.pid}", daemon=True).start()

    def _kill(self) -> None:
        self._process.ask_for_stacks()
        time.sleep(STACK_WAIT)
        self._process.send_signal(signal.SIGKILL)

    def end(self) -> None:
        """End the process at once, and wait for that. Its slot, if it has one, sees it."""
        self.is_killed = True
        self._process.send_signal(signal.SIGKILL)
        self._process.reap(wait=True)

    def bury(self) -> tuple[str, int | None, str | None]:
        """Wait for the end of the process; return how it ended, the most memory that it had, and its last stack."""
        self._process.send_signal(signal.SIGKILL)  # nothing after its death; it may have closed its wire alone
        ending = self._process.reap(wait=True)
        assert ending is not None
        stack = self._process.stacks.last()
        self._process.close()
        # A figure that is not above what it inherited says nothing about the process itself.
        memory = ending.memory_bytes
        known = memory is not None and memory > self._inherited_memory
        return ending.exit_signal, memory if known else None, stack

    @property
    def has_ended(self) -> bool:
        """Tell whether the process is dead already."""
        return self._process.reap() is not None


class Isolation:
    """The processes of one worker, and running an attempt in one."""

    def __init__(self, queue: Queue, application: str | None, *, worker: Callable[[], int]) -> None:
        self._queue = queue
        self._worker = worker
        self._application = application
        self._lock = threading.Lock()
        self._all: set[Runner] = set()
        self._idle: list[Runner] = []
        self._is_closed = False

    def execute(self, attempt: Attempt, *, default_timeout: float, on_begin: Callable[[Attempt], None]) -> Outcome:
        """Run one attempt in a process of its own and return how it ended. Waits in the slot's thread."""
        if not self._wait_for_the_start_to_be_written(attempt):
            return Outcome(outcome.INTERRUPTED)
        runner = self._acquire()
        if runner is None:
            return Outcome(outcome.INTERRUPTED)
        task = attempt.task
        runner.send(attempt=task._asdict(), default_timeout=default_timeout)
        attempt.process = runner
        # An order that came before is repeated: whoever gave it saw no process, or this sees the order.
        if attempt.order is not None:
            runner.obey(attempt.order, task)
        ended = self._follow(attempt, runner, default_timeout, on_begin)
        if ended is None:
            attempt.is_unattended = True
            ended = self._death(attempt, runner)
        else:
            self._release(runner)
        attempt.process = None
        return ended

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            busy = self._all.difference(idle)
        for runner in idle:
            runner.bury()
        for runner in busy:
            runner.end()

    def close_idle(self) -> None:
        """End those that have had nothing to do for a while."""
        limit = time.monotonic() - IDLE_LIMIT
        with self._lock:
            tired = [runner for runner in self._idle if runner.idle_since < limit]
            self._idle = [runner for runner in self._idle if runner not in tired]
            self._all.difference_update(tired)
        for runner in tired:
            runner.bury()

    def _wait_for_the_start_to_be_written(self, attempt: Attempt) -> bool:
        """Wait until the row says that the attempt has begun; False when it is not to begin any more.

        Whoever takes the task back after the death of this worker then knows for certain whether it was running.
        """
        attempt.start_written = threading.Event()
        attempt.began = time.monotonic()
        while not attempt.start_written.is_set():
            attempt.wake_manager()
            attempt.start_written.wait(_TICK)
            if attempt.interrupted_at is not None or self._is_closed:
                return False
        return attempt.interrupted_at is None

    def _acquire(self) -> Runner | None:
        with self._lock:
            while self._idle:
                runner = self._idle.pop()
                if not runner.has_ended:
                    return runner
                self._all.discard(runner)
                runner.bury()
            if self._is_closed:
                return None
            runner = Runner(self._queue, self._application, self._worker())
            self._all.add(runner)
            return runner

    def _release(self, runner: Runner) -> None:
        with self._lock:
            if runner in self._all:
                runner.idle_since = time.monotonic()
                self._idle.append(runner)

    def _follow(
        self, attempt: Attempt, runner: Runner, default_timeout: float, on_begin: Callable[[Attempt], None]
    ) -> Outcome | None:
        """Pass on what the process says until the attempt has ended; None when the process is gone."""
        start_by: float | None = time.monotonic() + START_LIMIT
        while (messages := runner.receive()) is not None:
            for message in messages:
                if "begun" in message:
                    start_by = None
                    attempt.begin(TaskOptions(**message["begun"]), default_timeout)
                    on_begin(attempt)
                if "lines" in message:
                    self._pass_on(attempt, runner, message)
                if "ended" in message:
                    attempt.is_unattended = start_by is not None
                    return Outcome(**message["ended"])
            if start_by is not None and time.monotonic() > start_by:
                logger.error("task %s: its own process did not start within %g s", attempt.task.id, START_LIMIT)
                runner.kill()
        return None

    def _pass_on(self, attempt: Attempt, runner: Runner, message: Message) -> None:
        now = time.monotonic()
        for type_, name, text, age in message["lines"]:
            attempt.log.append(Line(type_, name, text, now - age))
        if message["context"] is not None:
            attempt.context.replace(message["context"])
        if message.get("flush"):
            written = attempt.context.request_write()
            attempt.wake_manager()
            while not written.wait(_TICK) and not self._is_closed and not runner.is_killed:
                pass
            runner.send(flushed=True)

    def _death(self, attempt: Attempt, runner: Runner) -> Outcome:
        with self._lock:
            is_closed = self._is_closed
            self._all.discard(runner)
        exit_signal, memory, stack = runner.bury()
        if is_closed:
            return Outcome(outcome.INTERRUPTED)
        if runner.is_killed and attempt.guard.due is not None:
            if attempt.guard.due is Interrupted and attempt.order is None:
                return Outcome(outcome.INTERRUPTED)
            return told_to_end(attempt, stack or "", " and did not end; its process was killed")
        return lost(f"its process ended with {exit_signal}", exit_signal, memory, stack)
