"""Ticking: every worker adds the tasks of schedules when they are due, by the database's clock.

All of them wake at the same tick; one gets the lock on the schedule's row, the others pass it by and look again.
"""

import json
import logging
import time
from collections.abc import Collection, Mapping
from typing import Final

from queuedtask.config import Config
from queuedtask.db import schedules
from queuedtask.db.connections import is_transient
from queuedtask.db.schedules import ScheduleRow
from queuedtask.db.statement import Cursor
from queuedtask.errors import InvalidTask
from queuedtask.model import schedule
from queuedtask.model.cron import Cron
from queuedtask.model.schedule import Declaration, Due, Schedule
from queuedtask.run.hooks import Hooks
from queuedtask.worker.link import Link

logger = logging.getLogger("queuedtask.worker")

BATCH: Final = 500
"""Ticks of one schedule that become tasks in one transaction."""
TURN: Final = 0.25
"""Seconds after which the manager gets on with its other work, however much is due."""
LOOK_INTERVAL: Final = 0.25
"""Seconds between two looks for schedules that others have added or changed, when they say so."""
LOCKED_INTERVAL: Final = 0.02
"""Seconds until a schedule is looked at again that somebody else is firing."""
POSTPONED: Final = (0.05, 2.0)
"""Seconds, at least and at most, between two looks whether a tick that has to wait for a task can come."""
PUT_OFF: Final = 60.0
"""Seconds for which a schedule is left alone that this worker cannot fire."""
CLEAN_INTERVAL: Final = 600.0
CLEAN_BATCH: Final = 1000
KEPT: Final = 2 * 86400.0
"""Seconds for which ticks are kept that cannot fire again."""
NEVER: Final = float("inf")


class Ticking:
    """Writes the schedules that the code declares, and fires those that are due."""

    def __init__(self, config: Config, declarations: Mapping[str, Declaration], hooks: Hooks | None = None) -> None:
        self._config = config
        self._hooks = hooks or Hooks()
        self._declarations = declarations
        self._is_declared = False
        self._crons: dict[tuple[str, str], Cron] = {}
        # Schedules that are due and have to wait, and until when, on the monotonic clock.
        self._aside: dict[str, float] = {}
        self._clean_at = time.monotonic() + CLEAN_INTERVAL
        self.due_at = 0.0

    def heed(self) -> None:
        """A schedule may have been added or changed."""
        self.due_at = min(self.due_at, time.monotonic() + LOOK_INTERVAL)

    def perform(self, link: Link) -> bool:
        """Fire what is due, for a moment; tell whether there are new tasks."""
        if not self._is_declared:
            self._declare(link)
            self._is_declared = True
        count, seconds = self._fire(link)
        self.due_at = min(time.monotonic() + seconds, *self._aside.values(), NEVER)
        if time.monotonic() >= self._clean_at:
            self._clean(link)
        return count > 0

    # ---------------------------------------------------------------------------------------------------- declarations

    def _declare(self, link: Link) -> None:
        """Write what the code declares where it has changed; what others have declared is left alone."""
        known = {row.name: row for row in schedules.list_schedules(link.cursor)}
        for declaration in self._declarations.values():
            try:
                declared = declaration.schedule()
            except InvalidTask as error:
                logger.error("schedule %s cannot be written: %s", declaration.name, error)
                continue
            row = known.get(declared.name)
            if row is None or row.definition != declared.definition:
                self._write(link, declared, declaration.cron)
        if self._declarations and (others := sorted(known.keys() - self._declarations.keys())):
            logger.info("schedules that go on although this application does not declare them: %s", ", ".join(others))

    def _write(self, link: Link, declared: Schedule, cron: Cron) -> None:
        with link.transaction() as cursor:
            now = schedules.clock(cursor)
            if schedules.declare(cursor, declared, date_next=cron.next(now)):
                logger.info("schedule %s: %s (%s)", declared.name, cron.words, cron.timezone)

    # ---------------------------------------------------------------------------------------------------------- firing

    def _fire(self, link: Link) -> tuple[int, float]:
        """Deal with each schedule that is due, once; return how many tasks that made, and when to look again."""
        began, count, dealt_with = time.monotonic(), 0, set[str]()
        self._aside = {name: until for name, until in self._aside.items() if until > began}
        while True:
            seconds = schedules.seconds_to_next_tick(link.cursor, besides=sorted(self._aside))
            if seconds is None or seconds > 0:
                return count, NEVER if seconds is None else seconds
            if time.monotonic() - began > TURN:
                return count, 0.0
            fired = self._fire_one(link, dealt_with | self._aside.keys())
            if fired is None:
                # What is left has more ticks to come, or is locked by others.
                return count, 0.0 if dealt_with else LOCKED_INTERVAL
            dealt_with.add(fired[0])
            count += fired[1]

    def _fire_one(self, link: Link, besides: Collection[str]) -> tuple[str, int] | None:
        """Deal with one schedule in a transaction of its own; return its name and how many tasks that made."""
        row: ScheduleRow | None = None
        try:
            with link.transaction() as cursor:
                row = schedules.lock_due(cursor, besides=sorted(besides))
                if row is None:
                    return None
                count = self._fire_locked(cursor, row)
        except Exception as error:
            # One row that cannot be fired must not keep the others waiting. Elsewhere it may: other time zones are
            # known there.
            if row is None or is_transient(error):
                raise
            logger.error("schedule %s cannot be fired here, the next try is in %g s: %s", row.name, PUT_OFF, error)
            self._aside[row.name] = time.monotonic() + PUT_OFF
            return row.name, 0
        if count:
            logger.debug("schedule %s: %s tasks", row.name, count)
        return row.name, count

    def _fire_locked(self, cursor: Cursor, row: ScheduleRow) -> int:
        cron = self._cron(row)
        if row.date_next is None:
            due = Due([], cron.next(row.now))
        else:
            limit = BATCH if row.overlap == schedule.ALLOW else 1
            due = schedule.due(cron, row.misfire, row.date_next, row.now, limit=limit)
        if due.ticks and row.overlap != schedule.ALLOW and row.last_task is not None:
            seconds = schedules.seconds_running(cursor, row.last_task)
            if seconds is not None and row.misfire == schedule.ALL:
                # None is to be missed, and none to run beside another: it waits.
                least, most = POSTPONED
                self._aside[row.name] = time.monotonic() + min(most, max(least, seconds / 10))
                return 0
            if seconds is not None:
                logger.debug("schedule %s: a tick is left out, its last task has not ended", row.name)
                due = due._replace(ticks=[])
        given = json.loads(row.options)
        specs = [
            self._hooks.announced(schedule.task_of(row.name, row.function, row.args, row.kwargs, given, tick))
            for tick in due.ticks
        ]
        channel = self._config.wake_channel
        return schedules.fire(cursor, row.name, specs, date_next=due.date_next, notify_channel=channel)

    def _cron(self, row: ScheduleRow) -> Cron:
        key = row.cron, row.timezone
        if key not in self._crons:
            if len(self._crons) > 1000:
                self._crons.clear()
            self._crons[key] = Cron(*key)
        return self._crons[key]

    # -------------------------------------------------------------------------------------------------------- cleaning

    def _clean(self, link: Link) -> None:
        cleaned = schedules.clean_ticks(link.cursor, kept=KEPT, limit=CLEAN_BATCH)
        self._clean_at = time.monotonic() + (1.0 if cleaned == CLEAN_BATCH else CLEAN_INTERVAL)
