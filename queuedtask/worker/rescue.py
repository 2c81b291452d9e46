"""Rescue: finding out which workers are dead, and taking back what they had claimed.

A worker is dead when its heartbeat was seen unchanged for a whole lease on the observer's own clock, with the database
reachable all that time. The age of a heartbeat says nothing: after an outage, a fail-over or a jump of a clock every
heartbeat looks old. A supervisor knows of the death of its own process at once, and what that took along.
"""

import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

from queuedtask.config import Config
from queuedtask.db import moves, store, workers
from queuedtask.db.statement import Cursor
from queuedtask.db.store import Ending
from queuedtask.db.workers import Owner
from queuedtask.model import outcome
from queuedtask.model.options import PROCESS
from queuedtask.model.outcome import Decision, Outcome, decide
from queuedtask.model.task import Task
from queuedtask.run.hooks import Hooks, Settled
from queuedtask.worker.link import Link
from queuedtask.worker.obituary import Obituary, Verdict

logger = logging.getLogger("queuedtask.worker")

BATCH: Final = 500
"""Tasks that are taken back in one transaction."""


class _Seen(NamedTuple):
    heartbeat: datetime | None
    since: float


class Observer:
    """Watches the heartbeats. Pure: it is told what is seen, and when, on the observer's own clock."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        self._looked_at = float("-inf")

    def look(self, now: float, owners: Sequence[Owner], *, lease: float) -> list[Owner]:
        """Take note of all heartbeats; return the workers that have been silent for a whole lease.

        A worker's own lease counts where it is longer. After a gap of more than half a lease between two looks nobody
        knows what happened meanwhile, and the watch begins anew.
        """
        if now - self._looked_at > lease / 2:
            self._seen.clear()
        self._looked_at = now
        before, self._seen = self._seen, {}
        dead = []
        for owner in owners:
            seen = before.get(owner.id)
            if seen is None or seen.heartbeat != owner.last_heartbeat:
                seen = _Seen(owner.last_heartbeat, now)
            self._seen[owner.id] = seen
            if now - seen.since >= max(lease, owner.lease or 0.0):
                dead.append(owner)
        return dead

    def forget(self) -> None:
        """Begin anew: the database could not be reached."""
        self._seen.clear()


class TakenBack(NamedTuple):
    """What became of a batch of a dead worker's tasks."""

    endings: list[Ending]
    frees_tasks: bool
    """Whether any task may have become eligible by that."""
    is_all: bool
    """Whether the worker has no more of them."""


@dataclass(frozen=True)
class Burial:
    """A dead worker whose tasks are to be taken back."""

    worker: int
    last_heartbeat: datetime | None = None
    """With which it was found silent; None when its death is certain."""
    obituary: Obituary | None = None

    def batch(self, cursor: Cursor, *, max_retries: int, max_lost: int, jitter: Callable[[], float]) -> TakenBack:
        """Take back a batch of its tasks, in the order of their ids, in the caller's transaction.

        A worker that has reported meanwhile is left alone. Each move is fenced by the dead worker's id and the
        attempt: what has moved on is not touched.
        """
        if self.last_heartbeat is not None and not workers.lock_silent(
            cursor, worker=self.worker, last_heartbeat=self.last_heartbeat
        ):
            return TakenBack([], frees_tasks=False, is_all=True)
        claimed = store.lock_claimed(cursor, worker=self.worker, limit=BATCH)
        endings = []
        for task, age in claimed:
            ended, verdict = self._outcome(task, has_begun=age is not None)
            judged = task
            if verdict is not None and task.max_retries is None:
                judged = task._replace(max_retries=verdict.max_retries)
            decision = decide(judged, ended, max_retries=max_retries, max_lost=max_lost, jitter=jitter())
            seconds = age if verdict is None else time.monotonic() - verdict.began_at
            endings.append(Ending(task, decision, seconds, context=None))
        settled = store.settle(cursor, endings, worker=self.worker)
        is_all = len(claimed) < BATCH
        if is_all:
            workers.retire(cursor, worker=self.worker)
        buried = [ending for ending in endings if ending.task.key in settled.accepted]
        return TakenBack(buried, settled.frees_tasks, is_all)

    def _outcome(self, task: Task, *, has_begun: bool) -> tuple[Outcome, Verdict | None]:
        if self.obituary is None:
            # Its start is in the row after half a second, so a task without one may have been running; one that runs
            # alone has its start in the row before it begins.
            if has_begun or task.isolation != PROCESS:
                return lost(f"worker {self.worker} stopped reporting"), None
            return Outcome(outcome.INTERRUPTED), None
        verdict = self.obituary.verdicts.get(task.id)
        if verdict is None or verdict.attempt != task.attempt:
            return Outcome(outcome.INTERRUPTED), None
        exit_signal, memory, stack = self.obituary.exit_signal, self.obituary.memory_bytes, self.obituary.stack
        if verdict.kind == outcome.LOST:
            return lost(f"its process ended with {exit_signal}", exit_signal, memory, stack), verdict
        timed_out = Outcome(
            outcome.TIMED_OUT,
            error_type="TaskTimeout",
            error_message="the task outlived its timeout, its process did not answer and was killed",
            error_traceback=stack,
            exit_signal=exit_signal,
            memory_bytes=memory,
        )
        return timed_out, verdict


class Rescuer:
    """What a worker does about the dead: it looks for them, and takes back their tasks batch by batch."""

    def __init__(self, config: Config, hooks: Hooks, *, on_buried: Callable[[int], None]) -> None:
        self._config = config
        self._hooks = hooks
        self._on_buried = on_buried
        self._observer = Observer()
        self._burials: deque[Burial] = deque()
        self.look_at = 0.0
        """When the next look is due, on the monotonic clock."""

    def add(self, obituary: Obituary) -> None:
        """Take note of a death that is certain. Safe from any thread."""
        self._burials.append(Burial(obituary.worker, obituary=obituary))

    @property
    def is_busy(self) -> bool:
        """Tell whether there is anything to take back."""
        return bool(self._burials)

    def forget(self) -> None:
        """Begin to watch anew: the database could not be reached."""
        self._observer.forget()

    def look(self, cursor: Cursor, own_id: int) -> None:
        """Look at the heartbeats of all other workers."""
        lease = self._config.lease
        owners = [owner for owner in workers.owners(cursor) if owner.id != own_id]
        now = time.monotonic()
        self.look_at = now + min(self._config.heartbeat_interval, lease / 4)
        known = {burial.worker for burial in self._burials}
        for owner in self._observer.look(now, owners, lease=lease):
            if owner.id not in known:
                self._burials.append(Burial(owner.id, owner.last_heartbeat))

    def take_back(self, link: Link) -> list[Decision]:
        """Take back one batch, in a transaction of its own; return what became of the tasks."""
        burial, config = self._burials[0], self._config
        with link.transaction() as cursor:
            taken = burial.batch(
                cursor,
                max_retries=config.max_retries,
                max_lost=config.max_lost,
                jitter=lambda: random.uniform(-1.0, 1.0),
            )
            decisions = [ending.decision for ending in taken.endings]
            if taken.frees_tasks:
                moves.notify(cursor, config.wake_channel)
        if taken.endings:
            if self._hooks.settle:
                self._hooks.settled([Settled(e.task, e.decision, None, e.seconds, True) for e in taken.endings])
            kinds = Counter(decision.outcome.kind.replace("_", " ") for decision in decisions)
            shown = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            logger.warning("took back %s tasks of worker %s: %s", len(taken.endings), burial.worker, shown)
        if taken.is_all:
            self._burials.popleft()
            if burial.obituary is not None:
                self._on_buried(burial.worker)
        return decisions


def lost(
    message: str, exit_signal: str | None = None, memory_bytes: int | None = None, stack: str | None = None
) -> Outcome:
    """Return the outcome of an attempt whose process died."""
    return Outcome(
        outcome.LOST,
        error_type="WorkerLost",
        error_message=message,
        error_traceback=stack,
        exit_signal=exit_signal,
        memory_bytes=memory_bytes,
    )
