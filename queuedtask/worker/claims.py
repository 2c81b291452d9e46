"""What a worker claims next: from which channels, how many of each, and when it is worth another try.

Where there is one channel with tasks and nothing limits it, a claim is one statement. What else there is the worker
finds out by a look now and then: when a claim brings less than it wanted, and every tenth of a second under load. A
channel at its limit, and keys that are taken, are left alone for a while; until a task of theirs ends here, or the time
has come. So nobody has to be woken when one ends elsewhere, and no channel is locked in vain all the time.
"""

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from queuedtask.config import Config
from queuedtask.db import channels as channel_rows
from queuedtask.db import claims, store
from queuedtask.db.channels import Room
from queuedtask.db.claims import Candidate, Look
from queuedtask.db.statement import Cursor
from queuedtask.model.limits import DEFAULT_CHANNEL
from queuedtask.model.rules import Claimable
from queuedtask.model.task import Task

logger = logging.getLogger("queuedtask.worker")

LOOK_INTERVAL: Final = 0.1
"""Seconds between two looks while every claim brings what was wanted."""
FULL_INTERVAL: Final = 0.2
"""Seconds after which a channel that was at its limit is tried again."""
KEYS_INTERVAL: Final = 0.5
"""Seconds after which keys are tried again that were all taken."""
PAUSED_INTERVAL: Final = 1.0
"""Seconds between two looks whether what is paused and has tasks still is."""
CONTENDED_INTERVAL: Final = 0.02
"""Seconds after which to come back to what another worker was just claiming from."""
MOST_KEYS: Final = 100
"""So many tasks with a key are claimed at a time."""
NEVER: Final = float("inf")


class Taken(NamedTuple):
    """What a claim has brought."""

    tasks: list[Task]
    is_hungry: bool
    """Whether another claim may bring more at once."""


class Claims:
    """Decides and claims. ``channels``: those that this worker serves, None for all."""

    def __init__(self, config: Config, channels: Sequence[str] | None = None) -> None:
        self._config = config
        self._channels = None if channels is None else tuple(dict.fromkeys(channels))
        self._usual = DEFAULT_CHANNEL if self._channels is None else self._channels[0]
        self._look = Look(frozenset({self._usual}), {}, has_keyed=False)
        self._look_at = 0.0
        self._is_fresh = False
        self._sources: list[str] = []
        # Until when a channel at its limit, and the keys, are left alone; on the monotonic clock.
        self._full: dict[str, float] = {}
        self._keys_taken_until = 0.0
        self._after_key = ""
        self._connected_at = time.monotonic()
        self.due_at = NEVER
        """When another claim may bring something although nobody says so, on the monotonic clock."""
        self.needs_transaction = False
        """Whether the next :meth:`take` is more than a single statement."""
        self.is_contended = False
        """Whether the last claim brought less because another worker was claiming from the same at that moment."""

    def connected(self) -> None:
        """Take note that the database has come back: for a lease, other workers' silence says nothing."""
        self._connected_at = time.monotonic()
        self._look_at = 0.0

    def heed_time(self, now: float) -> bool:
        """Tell whether it is time for another try, and have it begin with a look."""
        if now < self.due_at:
            return False
        self.due_at = NEVER
        self._look_at = 0.0
        return True

    def heed_ended(self, ended: Iterable[Task]) -> bool:
        """Take note of tasks that ended here; tell whether others may have become claimable by that."""
        is_freed = False
        for task in ended:
            if task.concurrency_key is not None:
                self._keys_taken_until = 0.0
                is_freed = True
            if self._look.rules and task.channel in self._look.rules:
                self._full.pop(task.channel, None)
                is_freed = True
        return is_freed

    def prepare(self, cursor: Cursor) -> None:
        """Look what there is, if it is time for that; a single statement, which needs no transaction."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look = claims.look(cursor, channels=self._channels)
            self._is_fresh = True
            # With very many channels a look is not cheap.
            took = time.monotonic() - now
            self._look_at = now + max(LOOK_INTERVAL, 10 * took)
        self._sources, self.needs_transaction = self._plan()

    def take(self, cursor: Cursor, *, worker: int, wanted: int, slots: int, only: Claimable | None = None) -> Taken:
        """Claim up to so many tasks, after :meth:`prepare`, in the caller's transaction if one is needed.

        ``only``: of certain functions.
        """
        is_fresh, self._is_fresh = self._is_fresh, False
        self.is_contended = False
        tasks, is_more = list[Task](), False
        if self.needs_transaction:
            tasks, is_more = self._take_from_several(cursor, self._sources, worker, wanted, slots, only)
        elif self._sources:
            self._usual = self._sources[0]
            tasks = store.claim(cursor, worker=worker, limit=wanted, channel=self._usual, only=only)
        elif not is_fresh and self._usual not in self._look.rules and not self._look.is_all_paused:
            # What comes is most likely what has come before.
            tasks = store.claim(cursor, worker=worker, limit=wanted, channel=self._usual, only=only)
        if len(tasks) < wanted and not is_more and not is_fresh:
            # There may be something else by now; the next claim begins with a look, and tells for certain.
            self._look_at = 0.0
            is_more = True
        self._plan_next_try()
        return Taken(tasks, is_more or len(tasks) == wanted)

    # --------------------------------------------------------------------------------------------------------- choices

    def _plan(self) -> tuple[list[str], bool]:
        """Return from which channels to claim now, and whether that takes more than a plain claim from one."""
        found, now = self._look, time.monotonic()
        if found.is_all_paused:
            return [], False
        channels = sorted(name for name in found.sources if self._is_open(name, now))
        has_keys = found.has_keyed and self._keys_taken_until <= now
        return channels, has_keys or len(channels) > 1 or any(name in found.rules for name in channels)

    def _is_open(self, channel: str, now: float) -> bool:
        """Tell whether a channel is neither paused nor known to be at its limit."""
        rule = self._look.rules.get(channel)
        return rule is None or (rule.max_running != 0 and self._full.get(channel, 0.0) <= now)

    def _plan_next_try(self) -> None:
        """Set when those are due that have tasks and could not give any now."""
        now, found = time.monotonic(), self._look
        due = [NEVER]
        if self.is_contended:
            due.append(now + CONTENDED_INTERVAL)
        if found.is_all_paused:
            due.append(now + PAUSED_INTERVAL)
        else:
            limited = found.sources & found.rules.keys()
            due += [now + PAUSED_INTERVAL for name in limited if found.rules[name].max_running == 0]
            due += [until for name, until in self._full.items() if name in limited and until > now]
            if found.has_keyed:
                due.append(max(self._keys_taken_until, now + CONTENDED_INTERVAL))
        self.due_at = min(due)

    # ------------------------------------------------------------------------------------------ limited, keyed, several

    def _take_from_several(
        self,
        cursor: Cursor,
        channels: Sequence[str],
        worker: int,
        wanted: int,
        slots: int,
        only: Claimable | None,
    ) -> tuple[list[Task], bool]:
        """Claim the most urgent tasks of all; tell whether there may be more of the keys that were claimed from."""
        rules = self._look.rules
        candidates = self._candidates(cursor, wanted, only)
        limited = {name for name in channels if name in rules} | {c.channel for c in candidates if c.channel in rules}
        rooms, most = self._lock_rooms(cursor, limited, worker, wanted, slots)
        sources = {name: most.get(name, wanted) for name in channels if name not in limited or name in most}
        candidates = [c for c in candidates if c.channel not in limited or c.channel in most]
        counts, seen = sources, len(candidates)
        if len(sources) + len(candidates) > 1:
            counts, candidates = claims.heads(cursor, sources, candidates, rooms=most, limit=wanted, only=only)
            seen = sum(counts.values()) + len(candidates)
        tasks = claims.claim_keyed(cursor, candidates, worker=worker, locked=most, only=only) if candidates else []
        has_keyed = bool(tasks)
        if counts:
            tasks += claims.claim_from(cursor, counts, worker=worker, locked=most, only=only)
        self._note_claimed(cursor, rooms, most, tasks)
        # What was seen and could not be had is being claimed by somebody else, who may leave some of it.
        self.is_contended |= len(tasks) < seen
        return tasks, has_keyed

    def _candidates(self, cursor: Cursor, wanted: int, only: Claimable | None) -> list[Candidate]:
        now = time.monotonic()
        if not self._look.has_keyed or self._keys_taken_until > now:
            return []
        found, self._after_key = claims.candidates(
            cursor,
            channels=self._channels,
            shut=[name for name in self._look.rules if not self._is_open(name, now)],
            after=self._after_key,
            limit=min(wanted, MOST_KEYS),
            only=only,
        )
        if not found:
            self._keys_taken_until = now + KEYS_INTERVAL
        return found

    def _lock_rooms(
        self, cursor: Cursor, names: Collection[str], worker: int, wanted: int, slots: int
    ) -> tuple[dict[str, Room], dict[str, int]]:
        """Lock limited channels; return their rooms, and how many may be taken of each that has any."""
        if not names:
            return {}, {}
        rooms = channel_rows.lock_rooms(
            cursor,
            sorted(names),
            worker=worker,
            lease=self._config.lease,
            is_unsure=time.monotonic() - self._connected_at < self._config.lease,
        )
        self.is_contended = len(rooms) < len(names)
        most = {}
        for name, room in rooms.items():
            most[name] = wanted if room.room is None else min(wanted, room.room)
            if room.share is not None:
                # What is claimed ahead counts against the limit: no worker keeps more than its part from the others.
                most[name] = min(most[name], max(slots, room.share) - room.own)
            if most[name] <= 0:
                self._leave_alone(name, room)
                del most[name]
        return rooms, most

    def _note_claimed(
        self, cursor: Cursor, rooms: Mapping[str, Room], most: Mapping[str, int], tasks: Sequence[Task]
    ) -> None:
        if not most:
            return
        counts = Counter(task.channel for task in tasks)
        started = [(name, rooms[name].window, counts[name]) for name in most if counts[name]]
        channel_rows.record_starts(cursor, [(name, window, count) for name, window, count in started if window])
        for name, room in rooms.items():
            if name in most and room.room is not None and counts[name] >= most[name]:
                self._leave_alone(name, room)

    def _leave_alone(self, name: str, room: Room) -> None:
        seconds = FULL_INTERVAL
        if room.seconds_to_start is not None:
            # Not for long at a time: somebody may change the rate.
            seconds = min(max(room.seconds_to_start, CONTENDED_INTERVAL), PAUSED_INTERVAL)
        self._full[name] = time.monotonic() + seconds
