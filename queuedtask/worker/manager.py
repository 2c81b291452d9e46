"""The manager: one loop in one thread that owns the worker's conversation with the database.

Each turn does the same few things: take what ended, interrupt what is overdue, settle and claim in one transaction,
do what is due, wait. The slots run the tasks; they never see a connection.
"""

import logging
import os
import random
import select
import socket
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Final, NamedTuple

import psycopg2

from queuedtask import __version__
from queuedtask.db import migrate, store
from queuedtask.db.connections import is_transient
from queuedtask.db.statement import Cursor
from queuedtask.db.store import Ending, LogLine, Progress
from queuedtask.errors import Interrupted, TaskTimeout
from queuedtask.model import outcome, states
from queuedtask.model.outcome import Decision, Outcome, decide
from queuedtask.model.task import Task
from queuedtask.run.attempt import Attempt, current_attempt
from queuedtask.run.executor import Resolver, execute
from queuedtask.run.logs import Line, capture_logs
from queuedtask.taskqueue import Queue
from queuedtask.worker.link import Link
from queuedtask.worker.pace import PATIENCE, Pace
from queuedtask.worker.pool import Pool
from queuedtask.worker.waker import Waker

logger = logging.getLogger("queuedtask.worker")

LINGER: Final = 0.02
"""Seconds that an ending may wait for company while the slots are busy."""
PROGRESS_INTERVAL: Final = 0.5
"""Seconds between two writes of the context, the logs and the start of running attempts."""
RELEASE_INTERVAL: Final = 0.05
"""Seconds at least between two looks for waiting tasks that are due."""
RELEASE_BATCH: Final = 1000
INTERRUPT_GRACE: Final = 1.0
"""Seconds that interrupted tasks have at a shutdown before they are handed back without their consent."""
NEVER: Final = float("inf")


class _Settling(NamedTuple):
    """What becomes of a task, on its way into the database; kept until it is there."""

    task: Task
    decision: Decision
    attempt: Attempt | None = None
    """None for a task that was handed back before a slot took it."""
    context: str | None = None
    lines: Sequence[Line] = ()

    @classmethod
    def of(cls, attempt: Attempt, decision: Decision) -> "_Settling":
        """Take the last changes of an attempt's context and log along."""
        return cls(
            attempt.task,
            decision,
            attempt,
            attempt.context.take_changes(also_deferred=True),
            attempt.log.take() if attempt.log else (),
        )

    def ending(self) -> Ending:
        """Return what goes into the row."""
        return Ending(self.task, self.decision, self.attempt.seconds() if self.attempt else None, self.context)


class Manager:
    """Runs one worker: construct, :meth:`start`, :meth:`run`. :meth:`stop` may be called from anywhere."""

    def __init__(self, queue: Queue, *, burst: bool = False, supervisor_pid: int | None = None) -> None:
        self._config = queue.config
        self._burst = burst
        self._supervisor_pid = supervisor_pid
        self._waker = Waker()
        self._link = Link(queue.database, queue.config, on_return=self._take_stock)
        self._resolve = Resolver(lambda: self._config.function_aliases)
        self._pool = Pool(
            self._execute,
            on_end=self._ended,
            wake_manager=self._flush_wanted,
            idle_timeout=lambda: self._config.worker_idle_timeout,
        )
        self._pace = Pace()
        self.id = 0
        """The worker's row and owner token, once it has started."""
        self.refused = 0
        """How many endings came too late: their rows were no longer this worker's."""
        self._outstanding: dict[str, Task] = {}
        self._settling: list[_Settling] = []
        self._is_hungry = True
        self._low_water = 0
        self._wakes_at = 0.0
        self._is_flush_wanted = False
        # When each duty is due, on the monotonic clock.
        self._settle_at = NEVER
        self._poll_at = 0.0
        self._release_at = 0.0
        self._progress_at = NEVER
        self._heartbeat_at = 0.0
        self._reported_active = 0
        # A shutdown: asked for, then interrupting what still runs, then leaving it.
        self._stop_by: float | None = None
        self._leave_at: float | None = None

    # ---------------------------------------------------------------------------------------------------- from outside

    def start(self) -> None:
        """Check the schema, register the worker and listen. Raises SchemaOutdated and the driver's errors."""
        self._link.open()
        cursor = self._link.cursor
        migrate.require_usable(cursor)
        self.id = store.register_worker(
            cursor,
            server_name=socket.gethostname(),
            slots=self._config.max_workers,
            pid=os.getpid(),
            supervisor_pid=self._supervisor_pid,
            version=__version__,
        )
        self._heartbeat_at = time.monotonic() + self._config.heartbeat_interval
        logger.info("worker %s started with %s slots", self.id, self._config.max_workers)

    def run(self) -> None:
        """Work until :meth:`stop`, or until nothing is left to do in a burst; leave no claimed task behind."""
        with capture_logs(self._config.log_level, current_attempt):
            try:
                self._turn()
                while not self._is_finished():
                    self._wait()
                    self._turn()
                self._retire()
            finally:
                self._link.close()

    def stop(self, timeout: float | None = None) -> None:
        """Ask the worker to end: claim nothing more, finish what runs within the timeout, hand the rest back.

        Safe in a signal handler and from any thread. A later call can only shorten the time.
        """
        timeout = self._config.shutdown_timeout if timeout is None else timeout
        self._stop_by = min(self._stop_by or NEVER, time.monotonic() + timeout)
        self._waker.wake()

    @property
    def wakeup_fd(self) -> int:
        """Return the descriptor for ``signal.set_wakeup_fd``."""
        return self._waker.writer

    @property
    def is_abandoning(self) -> bool:
        """Tell whether threads are still running tasks that were handed back: the process must exit hard."""
        return bool(self._pool.running)

    # ------------------------------------------------------------------------------------------- in the slots' threads

    def _execute(self, attempt: Attempt) -> Decision:
        try:
            ended = execute(attempt, self._resolve, default_timeout=self._config.task_timeout, on_begin=self._began)
        except BaseException as error:
            # A fault of ours, or no memory left: the slot survives, and the attempt still ends.
            logger.exception("task %s could not be run", attempt.task.id)
            ended = Outcome(outcome.RAISED, error_type=type(error).__qualname__, error_message="the worker failed")
        if ended.kind == outcome.RETURNED:
            return decide(attempt.task, ended, max_retries=0)
        task, declared = attempt.task, attempt.options.max_retries
        if task.max_retries is None and declared is not None:
            task = task._replace(max_retries=declared)
        return decide(task, ended, max_retries=self._config.max_retries, jitter=random.uniform(-1.0, 1.0))

    def _began(self, attempt: Attempt) -> None:
        if attempt.deadline is not None and attempt.deadline < self._wakes_at:
            self._waker.wake()

    def _ended(self, waiting: int) -> None:
        # Under load the manager sleeps on until the inbox is half empty; a slot that is free wakes it at once.
        if waiting <= self._low_water:
            self._waker.wake()

    def _flush_wanted(self) -> None:
        self._is_flush_wanted = True
        self._waker.wake()

    # -------------------------------------------------------------------------------------------------------- the loop

    def _turn(self) -> None:
        self._take_ended()
        self._interrupt_overdue()
        self._shut_down_further()
        self._hand_back_what_waits_too_long()
        self._pool.resize(self._config.max_workers)
        if self._link.restore():
            try:
                self._converse()
            except psycopg2.Error as error:
                if not is_transient(error):
                    raise
                self._link.lost(error)

    def _converse(self) -> None:
        wanted = self._appetite()
        now = time.monotonic()
        if wanted or now >= self._settle_at or (self._settling and self._pool.waiting <= self._low_water):
            self._settle_and_claim(wanted)
            now = time.monotonic()
        if now >= self._progress_at or self._is_flush_wanted:
            self._write_progress()
        if now >= self._release_at and self._stop_by is None:
            self._release_due()
        if now >= self._heartbeat_at:
            self._heartbeat()

    def _wait(self) -> None:
        now = time.monotonic()
        self._wakes_at = wakes_at = self._next_duty()
        poll = select.poll()
        poll.register(self._waker.fileno(), select.POLLIN)
        if (listening := self._link.fileno()) is not None:
            poll.register(listening, select.POLLIN)
        # Notifications may have come with the reply to another statement, and stand in the connection already.
        if not self._link.heard():
            if wakes_at > now:
                poll.poll(min(wakes_at - now, 3600.0) * 1000)
            heard = self._link.heard()
        else:
            heard = True
        self._waker.clear()
        now = time.monotonic()
        if heard or now >= self._poll_at:
            self._is_hungry = True
            self._poll_at = now + self._polling_interval
            # A notification may also tell of a task that waits for a time.
            self._release_at = min(self._release_at, now + RELEASE_INTERVAL)

    def _next_duty(self) -> float:
        """Return when the next thing is due that nobody will wake us for, on the monotonic clock."""
        if not self._link.is_up:
            duties = [self._link.retry_at]
        else:
            duties = [self._poll_at, self._heartbeat_at, self._progress_at, self._link.retry_at]
            if self._stop_by is None:
                duties.append(self._release_at)
            if self._settling or self._pool.has_ended:
                duties.append(min(self._settle_at, time.monotonic() + LINGER))
            if self._appetite():
                duties.append(0.0)
        duties += [a.deadline for a in self._running() if a.deadline is not None and not a.should_abort]
        if self._pool.waiting:
            duties.append(time.monotonic() + PATIENCE)
        if self._stop_by is not None:
            duties.append(self._leave_at or self._stop_by)
        return min(duties)

    @property
    def _polling_interval(self) -> float:
        return self._config.fallback_polling_interval if self._link.is_listening else self._config.polling_interval

    def _running(self) -> Sequence[Attempt]:
        return list(self._pool.running.values())

    def _is_finished(self) -> bool:
        if self._stop_by is None and not self._burst:
            return False
        if self._leave_at is not None and time.monotonic() >= self._leave_at and not self._link.is_up:
            logger.error("%s tasks could not be settled: no database", len(self._outstanding) + len(self._settling))
            return True
        if self._outstanding or self._settling:
            return False
        return self._stop_by is not None or not self._is_hungry

    # --------------------------------------------------------------------------------------------- attempts that ended

    def _take_ended(self) -> None:
        ended = self._pool.take_ended()
        if not ended:
            return
        spans = [end.at - end.attempt.began for end in ended if end.attempt.began is not None]
        if spans:
            self._pace.observe(sum(spans) / len(spans), len(spans))
        for attempt, decision, _ in ended:
            # Without an entry it was handed back at a shutdown and ended after all.
            if self._outstanding.pop(attempt.task.id, None) is not None:
                self._settling.append(_Settling.of(attempt, decision))
        self._settle_at = min(self._settle_at, time.monotonic() + LINGER)

    def _hand_back(self, tasks: Sequence[Task]) -> None:
        running = {attempt.task.id: attempt for attempt in self._running()}
        for task in tasks:
            self._outstanding.pop(task.id, None)
            decision = decide(task, Outcome(outcome.INTERRUPTED), max_retries=0)
            attempt = running.get(task.id)
            self._settling.append(_Settling.of(attempt, decision) if attempt else _Settling(task, decision))
            self._settle_at = 0.0

    # ------------------------------------------------------------------------------------------------ settle and claim

    def _appetite(self) -> int:
        if not self._is_hungry or self._stop_by is not None:
            return 0
        return self._pace.appetite(self._config.max_workers, len(self._outstanding))

    def _settle_and_claim(self, wanted: int) -> None:
        settling, claimed = self._settling, list[Task]()
        refused: list[_Settling] = []
        try:
            # A single statement commits by itself, which saves two round trips where they count: when it is quiet.
            is_single = not settling or (len(settling) == 1 and not wanted and self._is_plain(settling[0]))
            with nullcontext(self._link.cursor) if is_single else self._link.transaction() as cursor:
                if settling:
                    refused = self._settle(cursor, settling)
                if wanted:
                    claimed = store.claim(cursor, worker=self.id, limit=wanted)
        except psycopg2.Error as error:
            if is_transient(error) or not settling:
                raise
            self._settle_one_by_one()
            return
        self._settled(settling, refused)
        self._settling, self._settle_at = [], NEVER
        if wanted:
            self._is_hungry = len(claimed) == wanted
            self._start(claimed)

    @staticmethod
    def _is_plain(settling: _Settling) -> bool:
        return not settling.lines and not settling.decision.is_failed_attempt

    def _settle(self, cursor: Cursor, settling: Sequence[_Settling]) -> list[_Settling]:
        """Write endings and their log lines; return those that were refused."""
        accepted = store.settle(cursor, [s.ending() for s in settling], worker=self.id)
        lines = [line for s in settling if s.lines for line in _log_lines(s.task, s.lines)]
        if lines:
            store.add_logs(cursor, lines)
        if any(s.decision.edge.target == states.ENQUEUED for s in settling) and self._config.use_postgresql_notify:
            store.notify(cursor, self._config.notify_channel)
        return [s for s in settling if s.task.id not in accepted]

    def _settled(self, settling: Sequence[_Settling], refused: Sequence[_Settling]) -> None:
        now = time.monotonic()
        for s in settling:
            if s.attempt is not None:
                s.attempt.context.confirm()
            if s.decision.edge.target == states.WAITING:
                self._release_at = min(self._release_at, now + s.decision.delay)
        for s in refused:
            self.refused += 1
            logger.warning(
                "task %s: attempt %s ended as %s, but the row was no longer this worker's; nothing was written",
                s.task.id,
                s.task.attempt,
                s.decision.edge.target,
            )
        if logger.isEnabledFor(logging.DEBUG):
            for s in settling:
                logger.debug("%s %s: %s", s.task.name, s.task.id, s.decision.edge.target)

    def _settle_one_by_one(self) -> None:
        """Find the ending that the database does not take, and let that attempt fail instead of all of them."""
        while self._settling:
            settling = self._settling[0]
            try:
                with self._link.transaction() as cursor:
                    refused = self._settle(cursor, [settling])
            except psycopg2.Error as error:
                if is_transient(error):
                    raise
                if settling.decision.outcome.error_type == "NotStorable":
                    raise
                logger.exception("task %s: how it ended could not be stored", settling.task.id)
                failed = Outcome(
                    outcome.RAISED,
                    error_type="NotStorable",
                    error_message=f"the database refused how the attempt ended: {type(error).__name__}",
                )
                task = settling.task._replace(max_retries=0)
                self._settling[0] = _Settling(settling.task, decide(task, failed, max_retries=0), settling.attempt)
                continue
            self._settled([settling], refused)
            self._settling.pop(0)

    def _start(self, claimed: Sequence[Task]) -> None:
        self._outstanding.update((task.id, task) for task in claimed)
        if logger.isEnabledFor(logging.DEBUG):
            for task in claimed:
                logger.debug("%s %s: claimed", task.name, task.id)
        slots = self._config.max_workers
        self._low_water = max(0, len(self._outstanding) - slots) // 2
        if claimed:
            self._pool.submit(claimed, size=slots, outstanding=len(self._outstanding))
            self._progress_at = min(self._progress_at, time.monotonic() + PROGRESS_INTERVAL)

    def _hand_back_what_waits_too_long(self) -> None:
        """Give tasks that were claimed ahead to whoever is free, when no slot here gets free any more."""
        if not self._pool.waiting:
            return
        busy = [attempt.seconds() or 0.0 for attempt in self._running()]
        if len(busy) >= self._config.max_workers and min(busy) > PATIENCE:
            self._pace.slow_down(min(busy))
            self._hand_back(self._pool.withdraw())
            self._low_water = 0

    # ---------------------------------------------------------------------------------------------------------- duties

    def _write_progress(self) -> None:
        """Write what running attempts have set, logged and begun since the last time."""
        running = [attempt for attempt in self._running() if attempt.began is not None]
        taken = [
            (attempt, attempt.context.take_changes(also_deferred=False), attempt.log.take()) for attempt in running
        ]
        # The start is written once; a task's row shows it half a second later at the latest.
        due = [(a, context) for a, context, _ in taken if context is not None or a.is_start_unwritten]
        lines = [line for attempt, _, logged in taken for line in _log_lines(attempt.task, logged)]
        try:
            if due or lines:
                with self._link.transaction() as cursor:
                    if due:
                        rows = [Progress(a.task, a.seconds() or 0.0, context) for a, context in due]
                        store.write_progress(cursor, rows, worker=self.id)
                    if lines:
                        store.add_logs(cursor, lines)
        except BaseException:
            for attempt, context, logged in taken:
                attempt.log.put_back(logged)
                if context is not None:
                    attempt.context.put_back()
            raise
        for attempt, _, _ in taken:
            attempt.is_start_unwritten = False
            attempt.context.confirm()
        self._is_flush_wanted = False
        self._progress_at = time.monotonic() + PROGRESS_INTERVAL if self._outstanding else NEVER
        if len(self._pool.running) != self._reported_active:
            self._heartbeat()

    def _release_due(self) -> None:
        cursor = self._link.cursor
        released = store.release_due(cursor, limit=RELEASE_BATCH)
        if released:
            self._is_hungry = True
            logger.debug("%s waiting tasks are due", released)
            if released > self._config.max_workers and self._config.use_postgresql_notify:
                store.notify(cursor, self._config.notify_channel)
        seconds = 0.0 if released == RELEASE_BATCH else store.seconds_to_next_due(cursor)
        now = time.monotonic()
        # Tasks added by others without a notification are found when polling.
        self._release_at = now + min(
            self._polling_interval, NEVER if seconds is None else max(RELEASE_INTERVAL, seconds)
        )

    def _heartbeat(self) -> None:
        active = len(self._pool.running)
        if not store.heartbeat(self._link.cursor, worker=self.id, slots=self._config.max_workers, active=active):
            logger.warning("the row of worker %s is gone from queued_task_workers", self.id)
        self._reported_active = active
        self._heartbeat_at = time.monotonic() + self._config.heartbeat_interval

    def _take_stock(self, cursor: Cursor) -> None:
        """After a reconnection: give back what a claim may have taken without our hearing of it."""
        known = [*self._outstanding, *(s.task.id for s in self._settling)]
        if disowned := store.disown(cursor, worker=self.id, known=known):
            logger.warning("%s tasks that were claimed while the connection broke were given back", disowned)
        self._is_hungry = True

    # ---------------------------------------------------------------------------------------------------- interrupting

    def _interrupt_overdue(self) -> None:
        now = time.monotonic()
        for attempt in self._running():
            if attempt.deadline is not None and now >= attempt.deadline and not attempt.should_abort:
                logger.debug("%s %s: timed out", attempt.task.name, attempt.task.id)
                attempt.interrupt(TaskTimeout)

    def _shut_down_further(self) -> None:
        """Take the next step of a shutdown: give back what waits, interrupt what runs, leave what does not end."""
        if self._stop_by is None:
            return
        self._hand_back(self._pool.withdraw())
        now = time.monotonic()
        if now >= self._stop_by and self._leave_at is None:
            self._leave_at = now + min(INTERRUPT_GRACE, self._config.timeout_grace)
            for attempt in self._running():
                attempt.interrupt(Interrupted)
        if self._leave_at is not None and now >= self._leave_at and self._outstanding:
            self._hand_back(list(self._outstanding.values()))

    def _retire(self) -> None:
        if self._link.is_up:
            try:
                store.retire_worker(self._link.cursor, worker=self.id)
            except psycopg2.Error as error:
                # All tasks are settled; only the row goes on saying that this worker runs.
                self._link.lost(error)
        logger.info("worker %s ended", self.id)


def _log_lines(task: Task, lines: Sequence[Line]) -> list[LogLine]:
    now = time.monotonic()
    return [LogLine(task.id, task.attempt, line.type, line.name, line.message, now - line.at) for line in lines]
