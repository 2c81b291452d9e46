"""Claims where a plain one does not do: from several channels, from limited ones, and of tasks with a key.

A plain claim (``store.claim``) takes from one channel that nothing limits. What else there is shows :func:`look`. From
several channels first the heads of all are compared, without a lock, and then so many are taken from each as stand
among the first of all. Tasks with a concurrency key stand in no channel's order: of each key the next one is a
candidate, and it is claimed under an advisory lock on the key, which ends with the transaction.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Integer,
    Text,
    Uuid,
    all_,
    and_,
    any_,
    case,
    cast,
    column,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.selectable import LateralFromClause

from queuedtask.db.channels import is_all_paused, is_restricted, is_unlimited
from queuedtask.db.moves import in_state, literal, picked
from queuedtask.db.schema import Timestamp, channels, tasks
from queuedtask.db.statement import Cursor, Statement, parameter, rows
from queuedtask.db.store import claiming, is_ready, may_run, terms
from queuedtask.model import states
from queuedtask.model.limits import DEFAULT_CHANNEL, EVERYTHING, Limit
from queuedtask.model.rules import Claimable
from queuedtask.model.task import Task

NEAR: Final = 100
"""How many of the most urgent tasks with a key are looked at."""
FAR: Final = 100
"""How many keys are looked at, in the order of the keys, when that has not shown enough."""
FIRST_OF_KEY: Final = 20
"""How many tasks of a key are looked at for one in a channel that may be claimed from."""
KEY_LOCK: Final = 0x71746B65
"""The first half of the advisory locks on keys: "qtke" in ASCII."""

_default = literal(DEFAULT_CHANNEL)
_is_default = and_(is_ready, tasks.c.channel == _default)
_is_other = and_(is_ready, tasks.c.channel != _default)
_is_keyed = and_(in_state(states.ENQUEUED), tasks.c.concurrency_key.is_not(None))
_most_urgent = (tasks.c.priority.desc(), tasks.c.date_enqueued)
_allowed = parameter("channels", ARRAY(Text))


def _may_serve(name: ColumnElement[Any]) -> ColumnElement[bool]:
    return or_(_allowed.is_(None), name == any_(_allowed))


# ----------------------------------------------------------------------------------------------------------------- look


def _has(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return the condition that there is such a task; in an index's order, or the whole table might be read for it."""
    first = select(tasks.c.priority).where(condition).order_by(*_most_urgent).limit(literal_column("1"))
    return first.scalar_subquery().is_not(None)


def _channels_with_tasks() -> CTE:
    """Return the channels besides the default one that have ready tasks: one step along the index for each."""
    first = select(tasks.c.channel).where(_is_other).order_by(tasks.c.channel).limit(literal_column("1"))
    found = select(cast(first.scalar_subquery(), Text).label("name")).cte("found", recursive=True)
    following = (
        select(tasks.c.channel)
        .where(_is_other, tasks.c.channel > found.c.name)
        .order_by(tasks.c.channel)
        .limit(literal_column("1"))
    )
    return found.union_all(select(cast(following.scalar_subquery(), Text)).where(found.c.name.is_not(None)))


_found = _channels_with_tasks()
_sources = union_all(
    select(cast(_default, Text).label("name")).where(_has(_is_default), _may_serve(_default)),
    select(_found.c.name).where(_found.c.name.is_not(None), _may_serve(_found.c.name)),
).subquery("source")
_rules = (
    select(channels.c.name, channels.c.max_running, channels.c.max_starts, channels.c.per_seconds, channels.c.is_paused)
    .where(is_restricted)
    .subquery("rule")
)

LOOK = Statement(
    "look",
    select(
        func.coalesce(_sources.c.name, _rules.c.name),
        _sources.c.name.is_not(None),
        _rules.c.name.is_not(None),
        _rules.c.max_running,
        _rules.c.max_starts,
        _rules.c.per_seconds,
        _rules.c.is_paused,
    )
    .select_from(_sources.outerjoin(_rules, _rules.c.name == _sources.c.name, full=True))
    .union_all(
        select(null(), true(), *[null()] * 5).where(_has(_is_keyed)),
    ),
)


class Look(NamedTuple):
    """What there is to claim."""

    sources: frozenset[str]
    """The channels that have ready tasks without a key."""
    rules: Mapping[str, Limit]
    """Every channel that has a limit or is paused (then its limit is 0), whether or not it has tasks."""
    has_keyed: bool
    """Whether there are ready tasks with a key, in whatever channel."""

    @property
    def is_all_paused(self) -> bool:
        """Tell whether nothing at all is to be claimed."""
        return EVERYTHING in self.rules


def look(cursor: Cursor, *, channels: Sequence[str] | None) -> Look:
    """Look what there is to claim, from these channels or (None) from any."""
    sources, rules, has_keyed = set[str](), dict[str, Limit](), False
    for name, has_tasks, has_rule, max_running, max_starts, per_seconds, is_paused in LOOK(
        cursor, channels=None if channels is None else list(channels)
    ).fetchall():
        if name is None:
            has_keyed = True
            continue
        if has_tasks:
            sources.add(name)
        if has_rule:
            rules[name] = Limit(0 if is_paused or max_starts == 0 else max_running, max_starts, per_seconds)
    return Look(frozenset(sources), rules, has_keyed)


# ------------------------------------------------------------------------------------------------ from several channels

_source = rows("source", column("name", Text), column("most", Integer))


def _ready_of(source: FromClause, *columns: ColumnElement[Any], limit: ColumnElement[Any]) -> Any:
    return (
        select(*columns)
        .where(_is_other, tasks.c.channel == source.c.name, may_run(tasks.c.function))
        .order_by(*_most_urgent)
        .limit(limit)
        .correlate(source)
    )


_head = _ready_of(_source, tasks.c.priority, tasks.c.date_enqueued, limit=_source.c.most).lateral("head")
_default_head = (
    select(tasks.c.priority, tasks.c.date_enqueued)
    .where(_is_default, may_run(tasks.c.function))
    .order_by(*_most_urgent)
    .limit(parameter("default_most", Integer))
    .subquery("default_head")
)
_keyed = rows(
    "keyed",
    column("keyed_channel", Text),
    column("keyed_priority", Integer),
    column("keyed_date", Timestamp),
    position="position",
)
_room = rows("room", column("room_name", Text), column("room_most", Integer))
_no_position = cast(null(), Integer).label("position")
_heads = union_all(
    select(_source.c.name, _no_position, _head.c.priority, _head.c.date_enqueued).select_from(
        _source.join(_head, true())
    ),
    select(cast(_default, Text), _no_position, _default_head.c.priority, _default_head.c.date_enqueued),
    select(_keyed.c.keyed_channel, _keyed.c.position, _keyed.c.keyed_priority, _keyed.c.keyed_date),
).subquery("heads")
_ranked = select(
    _heads,
    func.row_number()
    .over(partition_by=_heads.c.name, order_by=(_heads.c.priority.desc(), _heads.c.date_enqueued))
    .label("rank"),
).subquery("ranked")
_first = (
    select(_ranked.c.name, _ranked.c.position)
    .select_from(_ranked.outerjoin(_room, _room.c.room_name == _ranked.c.name))
    .where(or_(_room.c.room_most.is_(None), _ranked.c.rank <= _room.c.room_most))
    .order_by(_ranked.c.priority.desc(), _ranked.c.date_enqueued)
    .limit(parameter("limit", Integer))
    .subquery("first")
)

HEADS = Statement(
    "heads",
    select(_first.c.name, _first.c.position, func.count()).group_by(_first.c.name, _first.c.position),
)

_open_source = (
    select(_source.c.name, _source.c.most)
    .where(
        or_(_source.c.name == any_(parameter("locked", ARRAY(Text))), is_unlimited(_source.c.name)),
        ~is_all_paused,
    )
    .subquery("open")
)
_of_source = (
    _ready_of(_open_source, tasks.c.id, limit=_open_source.c.most)
    .with_for_update(skip_locked=True, key_share=True, of=tasks)
    .lateral("picked")
)
_of_default = (
    select(tasks.c.id)
    .where(
        _is_default,
        may_run(tasks.c.function),
        or_(_default == any_(parameter("locked", ARRAY(Text))), is_unlimited(_default)),
        ~is_all_paused,
    )
    .order_by(*_most_urgent)
    .limit(parameter("default_most", Integer))
    .with_for_update(skip_locked=True, key_share=True, of=tasks)
)
_of_others = select(_of_source.c.id).select_from(_open_source.join(_of_source, true()))

CLAIM_FROM = claiming(
    "claim_from",
    tasks.c.id
    == any_(func.array_cat(func.array(_of_default.scalar_subquery()), func.array(_of_others.scalar_subquery()))),
)


class Candidate(NamedTuple):
    """A task with a concurrency key that may be next."""

    id: str
    key: str
    channel: str
    priority: int
    date_enqueued: datetime


def heads(
    cursor: Cursor,
    channels: Mapping[str, int],
    candidates: Sequence[Candidate],
    *,
    rooms: Mapping[str, int],
    limit: int,
    only: Claimable | None = None,
) -> tuple[dict[str, int], list[Candidate]]:
    """Return how many of the ``limit`` most urgent tasks stand in which channel, and which candidates are among them.

    ``channels``: from which, and how many of each at most. ``rooms``: how many of a channel may be claimed at all,
    candidates included. Nothing is locked.
    """
    others = {name: most for name, most in channels.items() if name != DEFAULT_CHANNEL}
    found = HEADS(
        cursor,
        names=list(others),
        mosts=list(others.values()),
        default_most=channels.get(DEFAULT_CHANNEL, 0),
        keyed_channels=[candidate.channel for candidate in candidates],
        keyed_prioritys=[candidate.priority for candidate in candidates],
        keyed_dates=[candidate.date_enqueued for candidate in candidates],
        room_names=list(rooms),
        room_mosts=list(rooms.values()),
        limit=limit,
        **terms(only),
    ).fetchall()
    counts = {name: count for name, position, count in found if position is None}
    return counts, [candidates[position - 1] for _, position, _ in found if position is not None]


def claim_from(
    cursor: Cursor,
    counts: Mapping[str, int],
    *,
    worker: int,
    locked: Collection[str],
    only: Claimable | None = None,
) -> list[Task]:
    """Take up to so many tasks of each channel, the most urgent first.

    ``locked`` are limited channels whose rows the transaction has locked; of others that are limited none is taken.
    ``only``: tasks of certain functions.
    """
    others = {name: most for name, most in counts.items() if name != DEFAULT_CHANNEL}
    claimed = CLAIM_FROM(
        cursor,
        worker=worker,
        names=list(others),
        mosts=list(others.values()),
        default_most=counts.get(DEFAULT_CHANNEL, 0),
        locked=list(locked),
        monotonic=time.monotonic(),
        **terms(only),
    )
    return [Task._make(row) for row in claimed.fetchall()]


# ---------------------------------------------------------------------------------------------------- tasks with a key


def _is_fifo(meta: ColumnElement[Any]) -> ColumnElement[bool]:
    return func.coalesce(meta.op("->>")(literal("fifo")) == literal("true"), literal_column("false"))


def _concurrency(meta: ColumnElement[Any]) -> ColumnElement[Any]:
    # Rows are written by hand, too: what is no number there must not make the statement fail for all.
    given = meta.op("->>")(literal("concurrency"))
    is_number = given.op("~")(literal("^[1-9][0-9]{0,8}$"))
    return case((_is_fifo(meta), literal_column("1")), (is_number, cast(given, Integer)), else_=literal_column("1"))


def _of_key(key: ColumnElement[Any], state: str, alias: str) -> tuple[Any, ColumnElement[bool]]:
    other = tasks.alias(alias)
    return other, and_(
        other.c.concurrency_key.is_not(None),
        other.c.concurrency_key == key,
        other.c.state == literal(state),
    )


def _running_of(holder: FromClause, key: ColumnElement[Any]) -> ColumnElement[Any]:
    # Whoever runs it: a key is free again only when its task has ended, or has been taken back from a dead worker.
    other, condition = _of_key(key, states.DOING, "running")
    return select(func.count()).select_from(other).where(condition).correlate(holder).scalar_subquery()


def _first_unfinished(holder: FromClause, key: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the id of the first task of a key that is enqueued or waiting: what a task "in order" has to be."""
    firsts = []
    for state in states.PENDING:
        other, condition = _of_key(key, state, f"first_{state}")
        order = (other.c.priority.desc(), other.c.date_created, other.c.id)
        columns = (other.c.id, other.c.priority, other.c.date_created)
        firsts.append(select(*columns).where(condition).order_by(*order).limit(literal_column("1")).correlate(holder))
    both = union_all(*firsts).subquery("both")
    return (
        select(both.c.id)
        .order_by(both.c.priority.desc(), both.c.date_created, both.c.id)
        .limit(literal_column("1"))
        .scalar_subquery()
    )


def _candidate_of(keys: FromClause) -> LateralFromClause:
    """Return, for each key, the task that may be claimed next."""
    other, condition = _of_key(keys.c.key, states.ENQUEUED, "next")
    first = (
        select(other.c.id, other.c.channel, other.c.priority, other.c.date_enqueued, other.c.meta, other.c.function)
        .where(condition)
        .order_by(other.c.priority.desc(), other.c.date_created, other.c.id)
        .limit(literal_column(str(FIRST_OF_KEY)))
        .correlate(keys)
        .lateral("first")
    )
    return (
        select(first.c.id, first.c.channel, first.c.priority, first.c.date_enqueued)
        .where(
            first.c.channel != all_(parameter("shut", ARRAY(Text))),
            _may_serve(first.c.channel),
            may_run(first.c.function),
            _running_of(keys, keys.c.key) < _concurrency(first.c.meta),
            or_(~_is_fifo(first.c.meta), first.c.id == _first_unfinished(keys, keys.c.key)),
        )
        .limit(literal_column("1"))
        .correlate(keys)
        .lateral("candidate")
    )


_near = (
    select(tasks.c.concurrency_key.label("key"), tasks.c.priority, tasks.c.date_enqueued)
    .where(_is_keyed)
    .order_by(*_most_urgent)
    .limit(literal_column(str(NEAR)))
    .subquery("near")
)
_near_key = (
    select(_near.c.key, func.max(_near.c.priority).label("priority"), func.min(_near.c.date_enqueued).label("since"))
    .group_by(_near.c.key)
    .subquery("near_key")
)
_near_candidate = _candidate_of(_near_key)

CANDIDATES_NEAR = Statement(
    "candidates_near",
    select(
        cast(_near_candidate.c.id, Text),
        _near_key.c.key,
        _near_candidate.c.channel,
        _near_candidate.c.priority,
        _near_candidate.c.date_enqueued,
    )
    .select_from(_near_key.join(_near_candidate, true()))
    .order_by(_near_key.c.priority.desc(), _near_key.c.since)
    .limit(parameter("limit", Integer)),
)


def _keys_after() -> CTE:
    """Return keys with unfinished tasks, in the order of the keys: one step along the index for each."""
    is_unfinished = and_(tasks.c.concurrency_key.is_not(None), in_state(states.WAITING, states.ENQUEUED, states.DOING))

    def next_after(key: ColumnElement[Any]) -> ColumnElement[Any]:
        return (
            select(tasks.c.concurrency_key)
            .where(is_unfinished, tasks.c.concurrency_key > key)
            .order_by(tasks.c.concurrency_key)
            .limit(literal_column("1"))
            .scalar_subquery()
        )

    one: ColumnElement[int] = literal_column("1").label("number")
    keys = select(next_after(parameter("after", Text)).label("key"), one).cte("keys", recursive=True)
    return keys.union_all(
        select(next_after(keys.c.key), keys.c.number + one).where(
            keys.c.key.is_not(None), keys.c.number < literal_column(str(FAR))
        )
    )


_far_key = _keys_after()
_far_candidate = _candidate_of(_far_key)

CANDIDATES_FAR = Statement(
    "candidates_far",
    select(
        cast(_far_candidate.c.id, Text),
        _far_key.c.key,
        _far_candidate.c.channel,
        _far_candidate.c.priority,
        _far_candidate.c.date_enqueued,
    )
    .select_from(_far_key.outerjoin(_far_candidate, true()))
    .where(_far_key.c.key.is_not(None))
    .order_by(_far_key.c.key),
)

_key = rows("wanted", column("key", Text))
LOCK_KEYS = Statement(
    "lock_keys",
    select(_key.c.key).where(func.pg_try_advisory_xact_lock(literal_column(str(KEY_LOCK)), func.hashtext(_key.c.key))),
)

_wanted = rows("wanted", column("id", Uuid), column("key", Text))

CLAIM_KEYED = claiming(
    "claim_keyed",
    picked(
        select(tasks.c.id).where(
            tasks.c.id == any_(parameter("ids", ARRAY(Uuid))),
            _is_keyed,
            may_run(tasks.c.function),
            select(literal_column("1"))
            .select_from(_wanted)
            .where(_wanted.c.id == tasks.c.id, _wanted.c.key == tasks.c.concurrency_key)
            .correlate(tasks)
            .exists(),
            _running_of(tasks, tasks.c.concurrency_key) < _concurrency(tasks.c.meta),
            or_(~_is_fifo(tasks.c.meta), tasks.c.id == _first_unfinished(tasks, tasks.c.concurrency_key)),
            or_(tasks.c.channel == any_(parameter("locked", ARRAY(Text))), is_unlimited(tasks.c.channel)),
            ~is_all_paused,
        )
    ),
)


def candidates(
    cursor: Cursor,
    *,
    channels: Sequence[str] | None,
    shut: Sequence[str],
    after: str,
    limit: int,
    only: Claimable | None = None,
) -> tuple[list[Candidate], str]:
    """Return tasks with a key that may be claimed now, one of each key; and up to which key was looked.

    The most urgent first. Where many stand before them whose keys are taken, it goes on with some keys ``after`` this
    one, so that calls one after the other come round to every key. ``shut`` are channels to take none from.
    """
    where = {"channels": None if channels is None else list(channels), "shut": list(shut), **terms(only)}
    found = [Candidate._make(row) for row in CANDIDATES_NEAR(cursor, limit=limit, **where).fetchall()]
    if len(found) >= limit:
        return found, after
    rows_ = CANDIDATES_FAR(cursor, after=after, **where).fetchall()
    known = {candidate.key for candidate in found}
    found += [Candidate._make(row) for row in rows_ if row[0] is not None and row[1] not in known]
    return found[:limit], rows_[-1][1] if len(rows_) == FAR else ""


def claim_keyed(
    cursor: Cursor,
    candidates: Sequence[Candidate],
    *,
    worker: int,
    locked: Collection[str],
    only: Claimable | None = None,
) -> list[Task]:
    """Take those of the candidates that may still be claimed, and whose keys nobody else is claiming from now.

    ``locked`` are limited channels whose rows the transaction has locked. In a READ COMMITTED transaction: what another
    one has claimed under the lock on a key is seen by the statement after it.
    """
    keys = {row[0] for row in LOCK_KEYS(cursor, keys=[candidate.key for candidate in candidates]).fetchall()}
    ours = [candidate for candidate in candidates if candidate.key in keys]
    if not ours:
        return []
    claimed = CLAIM_KEYED(
        cursor,
        worker=worker,
        ids=[candidate.id for candidate in ours],
        keys=[candidate.key for candidate in ours],
        locked=list(locked),
        monotonic=time.monotonic(),
        **terms(only),
    )
    return [Task._make(row) for row in claimed.fetchall()]
