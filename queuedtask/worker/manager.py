"""The manager: one loop in one thread that owns the worker's conversation with the database.

Each turn does the same few things: take what ended, interrupt what is overdue, settle and claim in one transaction,
do what is due, wait. The slots run the tasks; they never see a connection.
"""

import logging
import select
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Final

import psycopg2

from queuedtask.db import channels as channel_rows
from queuedtask.db import migrate, store
from queuedtask.db.connections import is_conflict, is_transient
from queuedtask.db.statement import Cursor
from queuedtask.db.store import Progress
from queuedtask.errors import Interrupted
from queuedtask.model import limits, outcome, states
from queuedtask.model.orders import Order
from queuedtask.model.outcome import Decision, Outcome
from queuedtask.model.rules import CurrentRules
from queuedtask.model.task import Task
from queuedtask.run.attempt import Attempt, current_attempt
from queuedtask.run.executor import judge, told_to_end
from queuedtask.run.logs import capture_logs
from queuedtask.taskqueue import Queue
from queuedtask.worker.board import Board
from queuedtask.worker.claims import Claims, Taken
from queuedtask.worker.duties import Duty, Release
from queuedtask.worker.isolation import Isolation
from queuedtask.worker.ladder import Ladder, stack_line, stack_of
from queuedtask.worker.link import Link
from queuedtask.worker.maintenance import AutoRemoval, Retention
from queuedtask.worker.obituary import Obituary
from queuedtask.worker.orders import Orders
from queuedtask.worker.pace import PATIENCE, Pace
from queuedtask.worker.pool import Pool
from queuedtask.worker.presence import Presence, Report
from queuedtask.worker.reconciler import Reconciler
from queuedtask.worker.rescue import Rescuer
from queuedtask.worker.settling import Settlements, Settling, log_lines
from queuedtask.worker.slots import Slots
from queuedtask.worker.sql import TaskConnections
from queuedtask.worker.strangers import Strangers
from queuedtask.worker.ticking import Ticking
from queuedtask.worker.waker import Waker

logger = logging.getLogger("queuedtask.worker")

LINGER: Final = 0.02
"""Seconds that an ending may wait for company while the slots are busy."""
PROGRESS_INTERVAL: Final = 0.5
"""Seconds between two writes of the context, the logs and the start of running attempts."""
INTERRUPT_GRACE: Final = 1.0
"""Seconds that interrupted tasks have at a shutdown before they are handed back without their consent."""
NEVER: Final = float("inf")


class Manager:
    """Runs one worker: construct, :meth:`start`, :meth:`run`. :meth:`stop` may be called from anywhere.

    ``board`` is shared with a supervisor, if there is one; ``on_replacement_wanted`` is called once with the reason
    when this process should be replaced by a new one, and claims nothing more then: without a supervisor it ends.
    ``on_buried`` is called with the id of each worker whose obituary has been dealt with. ``channels`` are those
    that it claims from; None for all.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        burst: bool = False,
        supervisor_pid: int | None = None,
        board: Board | None = None,
        application: str | None = None,
        max_tasks: int | None = None,
        channels: Sequence[str] | None = None,
        on_replacement_wanted: Callable[[str], None] | None = None,
        on_buried: Callable[[int], None] = lambda worker: None,
    ) -> None:
        self._config = queue.config
        self._burst = burst
        self._on_replacement_wanted = on_replacement_wanted or (lambda reason: self.stop(NEVER))
        self._waker = Waker()
        self._board = board or Board()
        self._link = Link(queue.database, queue.config, on_return=self._take_stock)
        self._presence = Presence(self._config, self._board, supervisor_pid=supervisor_pid, describe=self._describe)
        self._isolation = Isolation(queue, application, worker=lambda: self.id)
        self._ladder = Ladder(self._config)
        self._slots = Slots(
            self._config,
            self._board,
            self._presence.lease,
            self._ladder,
            self._isolation,
            TaskConnections(queue, worker=lambda: self.id),
            queue.hooks,
            note=self._note,
            wake_by=self._wake_by,
            wake_manager=self._flush_wanted,
        )
        self._pool: Pool = Pool(
            self._board,
            self._slots.begin,
            self._slots.run,
            on_end=self._ended,
            idle_timeout=lambda: self._config.worker_idle_timeout,
        )
        self._pace = Pace()
        self._claims = Claims(self._config, channels)
        self._settlements = Settlements(self._config, queue.hooks)
        self._rescuer = Rescuer(self._config, queue.hooks, on_buried=on_buried)
        self._release = Release(self._config, polling_interval=lambda: self._polling_interval)
        self._rules = CurrentRules(self._config)
        # By id and attempt: a task that was taken from us may come back while its old attempt still runs.
        self._outstanding: dict[tuple[str, int], Task] = {}
        self._orders = Orders(
            worker=lambda: self.id, claimed=self._outstanding, running=self._running, withdraw=self._call_off
        )
        self._auto_removal = AutoRemoval()
        self._duties: tuple[Duty, ...] = (
            self._release,
            Reconciler(on_freed=self._release.expect),
            Ticking(self._config, queue.declarations, queue.hooks),
            Strangers(self._config, self._rules, worker=lambda: self.id),
            self._auto_removal,
            Retention(self._config),
        )
        self._claims_left = NEVER if max_tasks is None else max_tasks
        self._is_closing = False
        self._is_lapsed = False
        self._is_hungry = True
        self._low_water = 0
        self._wakes_at = 0.0
        self._is_flush_wanted = False
        # When each duty is due, on the monotonic clock.
        self._poll_at = 0.0
        self._progress_at = NEVER
        # A shutdown: asked for, then interrupting what still runs, then leaving it.
        self._stop_by: float | None = None
        self._leave_at: float | None = None

    # ---------------------------------------------------------------------------------------------------- from outside

    def start(self) -> None:
        """Check the schema, register the worker and listen. Raises SchemaOutdated and the driver's errors."""
        self._link.open()
        cursor = self._link.cursor
        migrate.require_usable(cursor)
        if given := limits.parse(self._config.channels):
            channel_rows.seed(cursor, given)
        self._presence.register(cursor)
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
                self.close()

    def close(self) -> None:
        """Give up threads, processes and connections: at the end of :meth:`run`, or where it never comes to that."""
        self._pool.close()
        self._isolation.close()
        self._link.close()

    def stop(self, timeout: float | None = None) -> None:
        """Ask the worker to end: claim nothing more, finish what runs within the timeout, hand the rest back.

        Safe in a signal handler and from any thread. A later call can only shorten the time.
        """
        timeout = self._config.shutdown_timeout if timeout is None else timeout
        self._stop_by = min(NEVER if self._stop_by is None else self._stop_by, time.monotonic() + timeout)
        self._waker.wake()

    def bury(self, obituary: Obituary) -> None:
        """Take back the tasks of a process that has died, as soon as the database is there. Safe from any thread."""
        self._rescuer.add(obituary)
        self._waker.wake()

    @property
    def is_abandoning(self) -> bool:
        """Tell whether threads are still running tasks that were handed back: the process must exit hard."""
        return bool(self._pool.running or self._pool.stuck)

    @property
    def id(self) -> int:
        """The worker's row and owner token, once it has started."""
        return self._presence.id

    @property
    def refused(self) -> int:
        """How many writes came too late: their rows were no longer this worker's."""
        return self._settlements.refused

    # ------------------------------------------------------------------------------------------- in the slots' threads

    def _note(self, attempt: Attempt) -> None:
        self._pool.note(attempt, kill_at=self._ladder.kill_at(attempt))

    def _wake_by(self, time_: float) -> None:
        if time_ < self._wakes_at:
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
        self._board.turned_at = time.monotonic()
        self._take_ended()
        self._climb()
        self._mind_the_lease()
        self._shut_down_further()
        self._hand_back_what_waits_too_long()
        self._close_when_spent()
        self._pool.resize(self._config.max_workers)
        if self._link.restore():
            try:
                self._converse()
            except psycopg2.Error as error:
                if is_conflict(error):
                    # Two transactions stood in each other's way, ours was rolled back: all of it is still to be done.
                    logger.debug("rolled back by the server, trying again: %s", error)
                    return
                if not is_transient(error):
                    raise
                self._link.lost(error)
                self._rescuer.forget()
        self._board.is_connected = self._link.is_up

    def _converse(self) -> None:
        if self._presence.lease.is_lapsed:
            self._presence.beat(self._link.cursor)
        if self._rescuer.is_busy:
            self._bury()
        wanted = self._appetite()
        now = time.monotonic()
        settlements = self._settlements
        is_quiet = self._pool.waiting <= self._low_water
        if wanted:
            self._claims.prepare(self._link.cursor)
        if wanted or now >= settlements.due_at or (settlements.pending and is_quiet):
            self._settle_and_claim(wanted)
            now = time.monotonic()
        if now >= self._progress_at or self._is_flush_wanted:
            self._write_progress()
        for duty in self._duties_now:
            if now >= duty.due_at:
                self._is_hungry |= duty.perform(self._link)
        if now >= self._presence.due_at:
            self._presence.beat_if_due(self._link.cursor)
            self._isolation.close_idle()
        if now >= self._rescuer.look_at and self._stop_by is None:
            self._rescuer.look(self._link.cursor, self.id)

    def _wait(self) -> None:
        now = time.monotonic()
        self._wakes_at = wakes_at = self._next_duty()
        poll = select.poll()
        poll.register(self._waker.fileno(), select.POLLIN)
        if (listening := self._link.fileno()) is not None:
            poll.register(listening, select.POLLIN)
        # Notifications may have come with the reply to another statement, and stand in the connection already.
        if not self._link.heard():
            self._link.rest()
            if wakes_at > now:
                poll.poll(min(wakes_at - now, 3600.0) * 1000)
            heard = self._link.heard()
        else:
            heard = True
        self._waker.clear()
        now = time.monotonic()
        if self._claims.heed_time(now):
            self._is_hungry = True
        if heard or now >= self._poll_at:
            self._is_hungry = True
            self._poll_at = now + self._polling_interval
            for duty in (self._orders, *self._duties):
                duty.heed()

    def _next_duty(self) -> float:
        """Return when the next thing is due that nobody will wake us for, on the monotonic clock."""
        if not self._link.is_up:
            duties = [self._link.retry_at]
        else:
            duties = [self._poll_at, self._presence.due_at, self._progress_at, self._link.retry_at]
            duties += [duty.due_at for duty in self._duties_now]
            if self._stop_by is None:
                duties += [self._claims.due_at, self._rescuer.look_at]
            if self._settlements.pending or self._pool.has_ended:
                duties.append(min(self._settlements.due_at, time.monotonic() + LINGER))
            if self._appetite() or self._rescuer.is_busy:
                duties.append(0.0)
        duties.append(self._ladder.next_step(self._running()))
        if self._pool.waiting:
            duties.append(time.monotonic() + PATIENCE)
        if self._stop_by is not None:
            duties.append(self._leave_at or self._stop_by)
        return min(duties)

    @property
    def _duties_now(self) -> Sequence[Duty]:
        # What runs can be called off to the very end, which may take long.
        return (self._orders, *self._duties) if self._stop_by is None else (self._orders,)

    @property
    def _polling_interval(self) -> float:
        return self._config.fallback_polling_interval if self._link.is_listening else self._config.polling_interval

    def _running(self) -> Sequence[Attempt]:
        return list(self._pool.running)

    def _is_finished(self) -> bool:
        if self._stop_by is None and not self._burst:
            return False
        left = len(self._outstanding) + len(self._settlements.pending) + self._rescuer.is_busy
        if self._stop_by is None:
            left += self._claims.is_contended
        if self._leave_at is not None and time.monotonic() >= self._leave_at and not self._link.is_up:
            logger.error("%s tasks could not be settled: no database", left)
            return True
        if left:
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
        # Without an entry it was handed back at a shutdown and ended after all.
        ours = [end for end in ended if self._outstanding.pop(end.attempt.task.key, None) is not None]
        self._is_hungry |= self._claims.heed_ended(end.attempt.task for end in ours)
        settlings = [Settling.of(attempt, decision, at=at) for attempt, decision, at in ours]
        self._settlements.add(*settlings, due_at=time.monotonic() + LINGER)

    def _hand_back(self, tasks: Sequence[Task]) -> None:
        running = {attempt.task.key: attempt for attempt in self._running()}
        for task in tasks:
            self._outstanding.pop(task.key, None)
            attempt = running.get(task.key)
            if attempt is not None and attempt.finished is not None:
                decision = Decision(states.FINISH, attempt.finished)
            else:
                decision = Decision(states.HAND_BACK, Outcome(outcome.INTERRUPTED))
            settling = Settling.of(attempt, decision) if attempt else Settling(task, decision)
            self._settlements.add(settling, due_at=0.0)

    def _call_off(self, orders: Mapping[tuple[str, int], Order]) -> None:
        """End what somebody has called off and no slot has begun; the others wait on."""
        others = []
        for task in self._pool.withdraw():
            if (order := orders.get(task.key)) is None:
                others.append(task)
            else:
                del self._outstanding[task.key]
                self._settlements.add(Settling(task, Decision(order.running, order.outcome())), due_at=0.0)
        if others:
            self._pool.submit(others, size=self._config.max_workers, outstanding=len(self._outstanding))

    # ---------------------------------------------------------------------------------- attempts that should have ended

    def _climb(self) -> None:
        """Take the steps that are due against what outlives its timeout; settle what is given up, with its stack."""
        for attempt in self._ladder.climb(self._running()):
            if attempt.process is not None:
                # Its slot only waits for it, and will see what has become of it.
                attempt.process.kill()
                continue
            stack = stack_of(attempt)
            if not self._pool.give_up(attempt):
                continue
            logger.error(
                "task %s: attempt %s has not ended %g s after it was told to: it is given up, its slot replaced",
                *(attempt.task.id, attempt.task.attempt, self._config.timeout_grace),
            )
            is_ours = self._outstanding.pop(attempt.task.key, None) is not None and not attempt.is_disowned
            if is_ours:
                ended = attempt.finished or told_to_end(attempt, stack, " and did not end; its slot was replaced")
                settling = Settling.of(attempt, judge(self._config, attempt, ended), stack_line(stack))
                self._settlements.add(settling, due_at=0.0)
        if len(self._pool.stuck) >= (self._config.max_stuck_slots or self._config.max_workers):
            self._close(f"{len(self._pool.stuck)} stuck slots")

    def _close(self, reason: str) -> None:
        """Claim nothing more and ask for a successor."""
        if not self._is_closing:
            self._is_closing = True
            logger.warning("worker %s claims nothing more and is to be replaced: %s", self.id, reason)
            self._hand_back(self._pool.withdraw())
            self._on_replacement_wanted(reason)

    def _close_when_spent(self) -> None:
        if self._claims_left <= 0:
            self._close("it has had its number of tasks")

    def _mind_the_lease(self) -> None:
        """While others may take this worker for dead: begin nothing, and tell what runs to come to an end."""
        was_lapsed, self._is_lapsed = self._is_lapsed, self._presence.lease.is_lapsed
        if self._is_lapsed and not was_lapsed:
            logger.warning("worker %s could not renew its lease in time: it claims nothing until it has", self.id)
            self._hand_back(self._pool.withdraw())
            for attempt in self._running():
                attempt.ask_to_abort()
        elif was_lapsed and not self._is_lapsed:
            # Find out which attempts are still ours: their next write is accepted or refused.
            for attempt in self._running():
                attempt.is_start_unwritten = True
            self._progress_at = 0.0

    # ------------------------------------------------------------------------------------------------ settle and claim

    def _appetite(self) -> int:
        if not self._is_hungry or self._stop_by is not None or self._is_closing or self._presence.lease.is_lapsed:
            return 0
        wanted = self._pace.appetite(self._config.max_workers, len(self._outstanding))
        return int(min(wanted, self._claims_left))

    def _settle_and_claim(self, wanted: int) -> None:
        settlements, taken = self._settlements, Taken([], is_hungry=False)
        pending = settlements.pending
        refused: list[Settling] = []
        try:
            # A single statement commits by itself, which saves two round trips where they count: when it is quiet.
            is_single = not pending or (len(pending) == 1 and not wanted and pending[0].is_plain)
            is_single &= not (wanted and self._claims.needs_transaction)
            with nullcontext(self._link.cursor) if is_single else self._link.transaction() as cursor:
                if pending:
                    refused = settlements.write(cursor, worker=self.id)
                if wanted:
                    taken = self._claims.take(
                        cursor,
                        worker=self.id,
                        wanted=wanted,
                        slots=self._config.max_workers,
                        only=self._rules().claimable,
                    )
        except (psycopg2.Error, ValueError) as error:  # the driver's own, for what it cannot send
            if is_transient(error) or is_conflict(error) or not pending:
                raise
            settlements.write_one_by_one(self._link, worker=self.id, on_written=self._plan_releases)
            return
        if pending:
            self._auto_removal.heed()
        self._plan_releases(settlements.written(refused))
        if settlements.has_freed:
            settlements.has_freed = False
            self._release.expect(0.0)
        if wanted:
            self._is_hungry = taken.is_hungry
            self._start(taken.tasks)

    def _plan_releases(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            if decision.edge.target == states.WAITING:
                self._release.expect(decision.delay)

    def _start(self, claimed: Sequence[Task]) -> None:
        self._outstanding.update((task.key, task) for task in claimed)
        self._claims_left -= len(claimed)
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
        running = [a for a in self._running() if a.began is not None and not a.is_disowned]
        taken = [
            (attempt, attempt.context.take_changes(also_deferred=False), attempt.log.take()) for attempt in running
        ]
        # The start is written once; a task's row shows it half a second later at the latest.
        due = [(a, context) for a, context, _ in taken if context is not None or a.is_start_unwritten]
        lines = [line for attempt, _, logged in taken for line in log_lines(attempt.task, logged)]
        accepted: set[tuple[str, int]] = set()
        try:
            if due or lines:
                with self._link.transaction() as cursor:
                    if due:
                        rows = [Progress(a.task, a.seconds() or 0.0, context) for a, context in due]
                        accepted = store.write_progress(cursor, rows, worker=self.id)
                    if lines:
                        store.add_logs(cursor, lines, worker=self.id)
        except BaseException:
            for attempt, context, logged in taken:
                attempt.log.put_back(logged)
                if context is not None:
                    attempt.context.put_back()
            raise
        for attempt, _ in due:
            if attempt.task.key not in accepted and attempt in self._pool.running:
                self._disown(attempt)
        for attempt, _, _ in taken:
            attempt.is_start_unwritten = False
            attempt.context.confirm()
            if attempt.start_written is not None:
                attempt.start_written.set()
        self._is_flush_wanted = False
        self._progress_at = time.monotonic() + PROGRESS_INTERVAL if self._outstanding else NEVER
        self._presence.beat_if_changed(self._link.cursor)

    def _disown(self, attempt: Attempt) -> None:
        """Tell an attempt that is no longer ours to end: somebody else has rescued, cleared or deleted its task."""
        if not attempt.is_disowned:
            attempt.is_disowned = True
            self._settlements.refuse(attempt.task, "is still running")
            attempt.interrupt(Interrupted)

    def _describe(self) -> Report:
        stuck = [(a.task.id, a.task.name, a.task.attempt, since) for a, since in list(self._pool.stuck.items())]
        return Report(self._config.max_workers, len(self._pool.running), tuple(stuck), self.refused)

    def _take_stock(self, cursor: Cursor) -> None:
        """After a reconnection: give back what a claim may have taken without our hearing of it."""
        known = [*(task_id for task_id, _ in self._outstanding), *(s.task.id for s in self._settlements.pending)]
        if disowned := store.disown(cursor, worker=self.id, known=known):
            logger.warning("%s tasks that were claimed while the connection broke were given back", disowned)
        self._claims.connected()
        self._orders.heed()
        self._is_hungry = True

    def _bury(self) -> None:
        """Take back a batch of a dead worker's tasks."""
        self._plan_releases(self._rescuer.take_back(self._link))
        self._release.expect(0.0)
        self._is_hungry = True

    # -------------------------------------------------------------------------------------------------------- shutdown

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
                self._presence.retire(self._link.cursor)
            except psycopg2.Error as error:
                # All tasks are settled; only the row goes on saying that this worker runs.
                self._link.lost(error)
        if handed_back := self._settlements.handed_back:
            shown = ", ".join(handed_back[:10]) + (" …" if len(handed_back) > 10 else "")
            logger.warning("worker %s handed back %s unfinished tasks: %s", self.id, len(handed_back), shown)
        logger.info("worker %s ended", self.id)
