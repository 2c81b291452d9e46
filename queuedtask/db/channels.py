"""Every statement about the rows of the channels: their limits, and whether they are paused.

A channel without a row, or with one that limits nothing, is claimed from like any other. The rows rule; the setting
QUEUE_CHANNELS only makes those that are missing. Whoever claims from a limited channel holds a lock on its row until
the claim is committed, and counts what runs in a statement after the lock: so there are never more than the limit.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Double,
    Integer,
    Text,
    and_,
    any_,
    case,
    cast,
    column,
    delete,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.types import Boolean

from queuedtask.db.moves import CLOCK, SECOND, literal, seconds
from queuedtask.db.schema import channels, tasks, workers
from queuedtask.db.statement import Cursor, Statement, parameter, rows
from queuedtask.model import states
from queuedtask.model.limits import EVERYTHING, Limit, Window

EPOCH = seconds(CLOCK)

is_restricted: ColumnElement[bool] = or_(
    channels.c.is_paused, channels.c.max_running.is_not(None), channels.c.max_starts.is_not(None)
)
_everything = literal(EVERYTHING)
is_all_paused: ColumnElement[bool] = (
    select(channels.c.name).where(channels.c.name == _everything, channels.c.is_paused).exists()
)


def is_unlimited(name: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition that tasks of a channel may be claimed without a lock on its row.

    Read by each claim itself, so that a pause or a new limit holds from its commit on.
    """
    found = select(channels.c.name).where(
        channels.c.name.in_([name, _everything]),
        is_restricted,
    )
    return ~found.exists()


# ---------------------------------------------------------------------------------------------------------- by a person

_only_pauses = and_(channels.c.is_paused, channels.c.max_running.is_(None), channels.c.max_starts.is_(None))

SEED_CHANNELS = Statement(
    "seed_channels",
    upsert(channels)
    .from_select(
        ["name", "max_running", "max_starts", "per_seconds"],
        select(
            *(
                rows(
                    "given",
                    column("name", Text),
                    column("max_running", Integer),
                    column("max_start", Integer),
                    column("per_second", Double),
                ).c
            )
        ),
    )
    # A row that a pause has made knows of no limits yet.
    .on_conflict_do_update(
        index_elements=["name"],
        set_={name: literal_column(f"excluded.{name}") for name in ("max_running", "max_starts", "per_seconds")},
        where=_only_pauses,
    ),
)

PAUSE_CHANNEL = Statement(
    "pause_channel",
    upsert(channels)
    .values(name=parameter("name", Text), is_paused=true())
    .on_conflict_do_update(index_elements=["name"], set_={"is_paused": true(), "date_updated": CLOCK}),
)

FORGET_PAUSE = Statement(
    "forget_pause", delete(channels).where(channels.c.name == parameter("name", Text), _only_pauses)
)

RESUME_CHANNEL = Statement(
    "resume_channel",
    update(channels)
    .where(channels.c.name == parameter("name", Text))
    .values(
        is_paused=false(),
        max_running=func.nullif(channels.c.max_running, literal_column("0")),
        # A rate of 0 starts is a pause as well.
        max_starts=case((channels.c.max_starts == literal_column("0"), null()), else_=channels.c.max_starts),
        per_seconds=case((channels.c.max_starts == literal_column("0"), null()), else_=channels.c.per_seconds),
        date_updated=CLOCK,
    ),
)


class ChannelRow(NamedTuple):
    """A channel's row, without the starts."""

    name: str
    max_running: int | None
    max_starts: int | None
    per_seconds: float | None
    is_paused: bool
    date_updated: datetime

    @property
    def limit(self) -> Limit:
        """Its limits, without the pause."""
        return Limit(self.max_running, self.max_starts, self.per_seconds)


LIST_CHANNELS = Statement(
    "list_channels", select(*(channels.c[name] for name in ChannelRow._fields)).order_by(channels.c.name)
)


def seed(cursor: Cursor, limits: Mapping[str, Limit]) -> None:
    """Make the rows that are missing, and give limits to those that only pause; others stay as they are."""
    ordered = sorted(limits.items())
    SEED_CHANNELS(
        cursor,
        names=[name for name, _ in ordered],
        max_runnings=[limit.max_running for _, limit in ordered],
        max_starts=[limit.max_starts for _, limit in ordered],
        per_seconds=[limit.per_seconds for _, limit in ordered],
    )


def pause(cursor: Cursor, name: str) -> None:
    """Have nothing more claimed from a channel, or from any (``*``)."""
    PAUSE_CHANNEL(cursor, name=name)


def resume(cursor: Cursor, name: str) -> None:
    """Undo a pause; a limit of 0, which is one too, becomes none. Other limits stay."""
    FORGET_PAUSE(cursor, name=name)
    RESUME_CHANNEL(cursor, name=name)


def list_channels(cursor: Cursor) -> list[ChannelRow]:
    """Return all rows, by name."""
    return [ChannelRow._make(row) for row in LIST_CHANNELS(cursor).fetchall()]


# ---------------------------------------------------------------------------------------------------------- by a worker

LOCK_CHANNELS = Statement(
    "lock_channels",
    select(
        channels.c.name,
        channels.c.max_running,
        channels.c.max_starts,
        channels.c.per_seconds,
        channels.c.is_paused,
        cast(channels.c.starts, Text),
        EPOCH,
    )
    .where(channels.c.name == any_(parameter("names", ARRAY(Text))))
    .order_by(channels.c.name)
    .with_for_update(skip_locked=True, key_share=True),
)

# Whose attempts count: a worker that is silent for longer than its lease is dead, whether or not somebody has taken its
# tasks back. While the database itself may have been away ("is_unsure"), silence says nothing.
_live = select(workers.c.id).where(
    workers.c.is_running,
    or_(
        workers.c.id == parameter("worker", Integer),
        parameter("is_unsure", Boolean),
        workers.c.last_heartbeat > CLOCK - func.coalesce(workers.c.lease, parameter("lease", Double)) * SECOND,
    ),
)
_name = rows("channel", column("name", Text))
_running = (
    select(
        func.count().label("all"),
        func.count().filter(tasks.c.claimed_by == parameter("worker", Integer)).label("own"),
    )
    .where(
        tasks.c.state == literal(states.DOING),
        # Not a join: on a table without statistics it would be planned as one over all rows.
        tasks.c.claimed_by == any_(func.array(_live.scalar_subquery())),
        tasks.c.channel == _name.c.name,
    )
    .lateral("running")
)
COUNT_RUNNING = Statement(
    "count_running",
    select(
        _name.c.name,
        _running.c.all,
        _running.c.own,
        func.cardinality(func.array(_live.scalar_subquery())),
    ).select_from(_name.join(_running, true())),
)

RECORD_STARTS = Statement(
    "record_starts",
    update(channels)
    .where(channels.c.name == parameter("name", Text))
    .values(
        starts=parameter("before", JSONB).op("||")(
            func.jsonb_build_array(func.jsonb_build_array(EPOCH, parameter("count", Integer)))
        )
    ),
)


class Room(NamedTuple):
    """How many tasks of a limited channel may be claimed now, by whoever holds the lock on its row."""

    room: int | None
    """None: as many as one likes."""
    own: int
    """How many run in this worker."""
    share: int | None
    """How many it may hold at a time without taking other workers' part."""
    seconds_to_start: float | None
    """Where a rate sets the room: how long until it lets one more start."""
    window: Window | None


def lock_rooms(cursor: Cursor, names: Sequence[str], *, worker: int, lease: float, is_unsure: bool) -> dict[str, Room]:
    """Lock the rows of channels, but for those that somebody else has locked, and tell what room each has.

    Only the attempts of live workers count. In the caller's transaction, which must be READ COMMITTED: what others have
    claimed under the same lock is seen by the statement after it.
    """
    locked = {row[0]: _Locked._make(row) for row in LOCK_CHANNELS(cursor, names=sorted(names)).fetchall()}
    if not locked:
        return {}
    counted = COUNT_RUNNING(cursor, names=list(locked), worker=worker, lease=lease, is_unsure=is_unsure).fetchall()
    return {name: _room(locked[name], running, own, live) for name, running, own, live in counted}


class _Locked(NamedTuple):
    name: str
    max_running: int | None
    max_starts: int | None
    per_seconds: float | None
    is_paused: bool
    starts: str
    now: float


def _room(rule: _Locked, running: int, own: int, live: int) -> Room:
    window, seconds, share = None, None, None
    room = 0 if rule.is_paused else None
    if rule.max_running is not None:
        share = rule.max_running // max(1, live)
        if room is None:
            room = max(0, rule.max_running - running)
    if rule.max_starts is not None and rule.per_seconds is not None:
        window = Window(rule.starts, rule.max_starts, rule.per_seconds, rule.now)
        if room is None or window.room < room:
            room, seconds = max(0, window.room), window.seconds_to_room
    return Room(room, own, share, seconds, window)


def record_starts(cursor: Cursor, started: Iterable[tuple[str, Window, int]]) -> None:
    """Write down how many tasks of channels with a rate were claimed now, under the same lock."""
    for name, window, count in started:
        before, together = window.before(count)
        RECORD_STARTS(cursor, name=name, before=before, count=together)
