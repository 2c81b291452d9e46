"""The crew of worker processes: their leases, what they leave behind, their memory and the end of a burst.

What a dead process leaves behind is taken back by a living one, to which an obituary is sent.
"""

import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from queuedtask.worker.board import Board
from queuedtask.worker.crew import NEVER, Child, Crew, Place
from queuedtask.worker.heart import Heart
from queuedtask.worker.obituary import LOST, Obituary, Verdict
from queuedtask.worker.spawn import Ending
from queuedtask.worker.wire import Message

logger = logging.getLogger("queuedtask.supervisor")

SETTLER_LIMIT: Final = 20.0
"""Seconds that a process has which is started at a shutdown to take back the tasks of one that had to be killed."""


class Workers(Crew):
    """``arguments`` are those of the command ``worker``; with ``burst`` it is over when all have nothing left to do."""

    kind = "worker process"

    def __init__(
        self, arguments: Sequence[str], *, processes: int = 1, burst: bool = False, max_rss: int | None = None
    ) -> None:
        super().__init__(["worker", *arguments], places=processes)
        self._burst = burst
        self._max_rss = max_rss
        self._hearts: dict[str, Heart] = {}
        self._obituaries: dict[int, tuple[Obituary, Child | None]] = {}
        self._has_started_settler = False
        self._database_url: str | None = None

    @property
    def is_over(self) -> bool:
        """Tell whether the bursts are over and nothing is left behind."""
        return all(place.is_done for place in self._places) and not self.children and not self._obituaries

    @property
    def shortcomings(self) -> list[str]:
        """See :attr:`Crew.shortcomings`; it is said when only the database is missing."""
        found = super().shortcomings
        if found and any(child.is_ready and not child.board.is_connected for child in self.children):
            return ["no worker process has its connection to the database"]
        return found

    @property
    def database_url(self) -> str | None:
        """Where the tasks are, once a process has said so."""
        if (ready := next((child for child in self.children if child.is_ready), None)) is not None and ready.facts:
            self._database_url = str(ready.facts["database_url"])
        return self._database_url

    def turn(self, now: float, *, is_lenient: bool) -> None:
        """See :meth:`Crew.turn`; obituaries are delivered, too."""
        super().turn(now, is_lenient=is_lenient)
        self._deliver_obituaries()

    def close(self) -> None:
        """End the hearts, and say what nobody has taken back."""
        for heart in self._hearts.values():
            heart.stop()
        for worker in self._obituaries:
            logger.error("the tasks of worker %s could not be taken back; another worker will, after its lease", worker)

    # ----------------------------------------------------------------------------------------------- what they say

    def _take(self, child: Child, message: Message) -> None:
        super()._take(child, message)
        if "replace" in message:
            place = self._place_of(child)
            if place is not None:
                # It claims nothing more: its successor must come, whatever else was planned.
                self._succeed(place, message["replace"])
                place.is_reloading = False
        elif "buried" in message:
            self._obituaries.pop(message["buried"], None)

    def _welcome(self, child: Child) -> None:
        facts = child.facts or {}
        dsn = facts["dsn"]
        if dsn not in self._hearts:
            # New code may name another database; ids of the one mean nothing in the other.
            self._hearts[dsn] = Heart(
                dsn, facts["keep_alive"], facts["heartbeat_interval"], living=partial(self._living, dsn)
            )
        self._hearts[dsn].beat()
        super()._welcome(child)

    def _living(self, dsn: str) -> Mapping[int, Board]:
        ready = [child for child in self.children if child.is_ready]
        return {child.worker: child.board for child in ready if child.facts and child.facts["dsn"] == dsn}

    # ------------------------------------------------------------------------------------------------------ the end

    def _keep_within_limits(self, child: Child, now: float) -> None:
        super()._keep_within_limits(child, now)
        place = self._place_of(child)
        if self._max_rss is None or place is None or not child.is_ready or child.is_leaving:
            return
        if (mebibytes := child.memory_bytes() // 2**20) > self._max_rss:
            self._succeed(place, f"it has {mebibytes} MiB of memory")

    def _ended(self, child: Child, ending: Ending) -> None:
        for _, entry in child.board.entries():
            if entry.process:
                _kill_runner(entry.process)
        super()._ended(child, ending)

    def _left(self, place: Place, child: Child, after: float) -> None:
        if child.has_said_bye and self._burst:
            place.is_done = True
        else:
            super()._left(place, child, after)

    def _died(self, child: Child, ending: Ending) -> None:
        verdicts = child.verdicts
        if verdicts is None:
            # It took along what ran in its threads; what runs in a process of its own has nothing to do with it.
            verdicts = {
                entry.task_id: Verdict.of(entry, LOST) for _, entry in child.board.entries() if not entry.process
            }
        logger.error("%s ended with %s; %s of its tasks had begun", child, ending.exit_signal, len(verdicts))
        obituary = Obituary(
            child.worker, ending.exit_signal, ending.memory_bytes, child.process.stacks.last(), verdicts
        )
        self._obituaries[child.worker] = (obituary, None)

    def _deliver_obituaries(self) -> None:
        """Give every obituary to a process that can take the tasks back; at a shutdown one is started for that."""
        undelivered = {
            worker: obituary
            for worker, (obituary, heir) in self._obituaries.items()
            if heir is None or heir.has_said_bye or heir not in self.children
        }
        if not undelivered:
            return
        heir = next((child for child in self.children if child.is_ready and child.process.reap() is None), None)
        is_settler = heir is None and self.is_stopping and not self._has_started_settler
        if is_settler:
            self._has_started_settler = True
            heir = self._start()
            self._leaving.add(heir)
        if heir is None:
            return
        for worker, obituary in undelivered.items():
            heir.order(bury=obituary.as_message())
            self._obituaries[worker] = (obituary, heir)
        if is_settler:
            # What waits for it when it has started is obeyed before it claims anything.
            heir.stop(NEVER)
            heir.end_by = time.monotonic() + SETTLER_LIMIT


def _kill_runner(pid: int) -> None:
    """Kill a process that a dead worker process has left; not another one that has got its number meanwhile."""
    try:
        if b"--isolated" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    except OSError:
        pass  # It has ended with its worker.
