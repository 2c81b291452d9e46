"""What is measured of a queue, in statements that read a bounded number of rows however large the table is.

Up to 100,000 tasks of a kind are counted, along the partial indexes that hold that kind. Beyond that a sample of the
table's blocks is scaled up, always the same blocks, so that a figure does not jump for no reason. Where those indexes
are so large that they may well hold more, the sample is looked at first, so that nothing is counted in vain.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property, reduce
from operator import add
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    CTE,
    REAL,
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Double,
    FromClause,
    Select,
    Text,
    Uuid,
    and_,
    case,
    cast,
    column,
    func,
    literal_column,
    null,
    or_,
    select,
    tablesample,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB

from queuedtask.config import Config
from queuedtask.db.channels import is_all_paused
from queuedtask.db.moves import CLOCK, HAS_NO_PARENTS_LEFT, in_state, literal, seconds
from queuedtask.db.schema import Timestamp, tasks, workers
from queuedtask.db.statement import Cursor, Statement, parameter
from queuedtask.db.store import is_ready
from queuedtask.model import states
from queuedtask.model.limits import DEFAULT_CHANNEL
from queuedtask.model.measures import EXACT_UP_TO, NEWEST, Figures, Metrics, State

SAMPLED_BLOCKS: Final = 400
SURELY_MANY: Final = 2 * EXACT_UP_TO
"""A sample that says so many of a kind, of at least so many rows as follows, needs no counting beside it."""
SURELY_SEEN: Final = 1600
PROBABLY_MANY: Final = 600
"""Blocks of the indexes that hold a kind. 200,000 of the smallest entries (20 bytes) fill fewer, 100,000 of the claims'
(28 bytes) more only where they stand in blocks that are half empty."""
MOST_GROUPS: Final = 2000
STUCK_MARGIN: Final = 5.0
"""Seconds that workers have beyond timeout and grace: until then a task may just be being ended."""
MOST_PRIORITIES: Final = 1000
OLDEST: Final = "oldest_pending_seconds"
STUCK: Final = "stuck_tasks"
_SAMPLED: Final = ("pending_tasks", "running_tasks", "failed_tasks_today")
"""The figures of a sample, in their order; behind them comes the age of the oldest pending task."""
FEW: Final = 100
"""So few durations among the newest tasks that others are looked for."""

# What is bounded by a LIMIT stays so only along an index: a plan made from old or no statistics may read all of the
# table instead, or sort what it read.
PLAN_ALONG_INDEXES = Statement(
    "plan_along_indexes",
    select(
        *(
            func.set_config(literal(name), literal("off"), true())
            for name in ("enable_seqscan", "enable_bitmapscan", "enable_sort", "jit")
        ),
        func.set_config(literal("max_parallel_workers_per_gather"), literal("0"), true()),
    ),
)


def _number(value: float) -> ColumnElement[Any]:
    return literal_column(str(value))


_lease = func.greatest(parameter("lease", Double), workers.c.lease)
_is_live = and_(workers.c.is_running, seconds(CLOCK - workers.c.last_heartbeat) < _lease)
# In a query of its own, so that it is evaluated once and not for each row.
_midnight = select(func.date_trunc(literal("day"), func.now(), literal("UTC"))).scalar_subquery()
_failed_today = and_(in_state(states.FAILED), tasks.c.date_done >= _midnight)


def _blocks_of(*relations: str) -> ColumnElement[Any]:
    """Return how many blocks tables or indexes have: not the planner's number, which may be old or missing."""
    sizes = (func.pg_relation_size(func.to_regclass(literal(name)), type_=BigInteger) for name in relations)
    blocks = reduce(add, (func.coalesce(size, _number(0)) for size in sizes))
    return blocks // cast(func.current_setting(literal("block_size")), BigInteger)


BASICS = Statement(
    "measure_basics",
    select(
        CLOCK,
        select(func.count()).select_from(workers).where(_is_live).scalar_subquery(),
        is_all_paused,
        _blocks_of(tasks.name),
        _blocks_of(
            "queued_tasks_claim_default",
            "queued_tasks_claim_channel",
            "queued_tasks_claim_keyed",
            "queued_tasks_releasable",
            "queued_tasks_with_parents",
        ),
        _blocks_of("queued_tasks_failed"),
    ),
)


class _Basics(NamedTuple):
    date: datetime
    active_workers: int
    is_paused: bool
    blocks: int
    blocks_of_pending: int
    blocks_of_failed: int


# ----------------------------------------------------------------------------------------------------------- by groups

_ALL: Final = 3
_CHANNEL: Final = 1
"""What ``grouping(channel, name)`` says of a row; otherwise it is one name's."""


def _figures(table: FromClause, **figures: ColumnElement[Any]) -> Select[Any]:
    """Return figures of each channel and name together."""
    channel, name = table.c.channel, table.c.name
    labelled = (figure.label(label) for label, figure in figures.items())
    return select(channel, name, *labelled).group_by(channel, name)


def _by_group(figures: Select[Any] | CompoundSelect[Any]) -> Select[Any]:
    """Add figures up over all, over each channel and over each name: first those of all, then of the most frequent.

    All figures are numbers, except ``oldest``, an age, of which the highest counts, and ``seconds``.
    """
    each = figures.subquery("each")
    channel, name, *columns = each.c
    group = func.grouping(channel, name)
    added_up = [
        func.max(figure) if figure.name == "oldest" else cast(func.coalesce(func.sum(figure), _number(0)), Double)
        for figure in columns
    ]
    numbers = [sum_ for figure, sum_ in zip(columns, added_up, strict=True) if figure.name not in ("oldest", "seconds")]
    return (
        select(group, func.coalesce(channel, name), *added_up)
        .group_by(func.grouping_sets(tuple_(), tuple_(channel), tuple_(name)))
        .order_by((group == _number(_ALL)).desc(), reduce(add, numbers).desc())
        .limit(_number(MOST_GROUPS + 1))
    )


class _Groups(NamedTuple):
    """Figures of all, of channels and of names, as a statement has added them up."""

    all: tuple[Any, ...]
    channels: dict[str, tuple[Any, ...]]
    names: dict[str, tuple[Any, ...]]

    @classmethod
    def read(cls, statement: Statement, cursor: Cursor, **parameters: Any) -> "_Groups":
        found = cls((), {}, {})
        for group, key, *figures in statement(cursor, **parameters).fetchall():
            if group == _ALL:
                found = found._replace(all=tuple(figures))
            elif key is not None:  # the channel of a stuck slot whose task's row is gone
                (found.channels if group == _CHANNEL else found.names)[key] = tuple(figures)
        return found


# ---------------------------------------------------------------------------------------------------------- by counting

_most = _number(EXACT_UP_TO + 1)
_default = and_(is_ready, tasks.c.channel == literal(DEFAULT_CHANNEL))
_other = and_(is_ready, tasks.c.channel != literal(DEFAULT_CHANNEL))
_keyed = and_(in_state(states.ENQUEUED), tasks.c.concurrency_key.is_not(None))


def _pending(
    condition: ColumnElement[bool], *, state: str = states.ENQUEUED, channel: str | None = None
) -> Select[Any]:
    """Return the figures of what fits the condition of an index; where that names the channel, it need not be read."""
    found = (
        select(tasks.c.name, tasks.c.channel, tasks.c.date_enqueued)
        .where(in_state(state), condition)
        .limit(_most)
        .subquery("found")
    )
    oldest = func.min(found.c.date_enqueued) if state == states.ENQUEUED else cast(null(), Timestamp)
    age = seconds(CLOCK - oldest)
    if channel is None:
        return _figures(found, number=func.count(), oldest=age)
    # A key less, and one far behind in the row: half the time.
    name = found.c.name
    constant = cast(literal(channel), Text).label("channel")
    return select(constant, name, func.count().label("number"), age.label("oldest")).group_by(name)


# Of each index as many: a LIMIT round all of them would want the rows themselves.
COUNT_PENDING = Statement(
    "measure_pending",
    _by_group(
        union_all(
            _pending(_default, channel=DEFAULT_CHANNEL),
            _pending(_other),
            _pending(_keyed),
            _pending(HAS_NO_PARENTS_LEFT, state=states.WAITING),
            _pending(tasks.c.pending_parents > _number(0), state=states.WAITING),
        )
    ),
)

_doing = (
    select(tasks.c.channel, tasks.c.name, tasks.c.claimed_by, tasks.c.date_started, tasks.c.timeout)
    .where(in_state(states.DOING))
    .limit(_most)
    .subquery("doing")
)
_live = select(workers.c.id).where(_is_live).subquery("live")
_limit = func.coalesce(_doing.c.timeout, parameter("task_timeout", Double)) + parameter("grace", Double)
_is_stuck = or_(_live.c.id.is_(None), seconds(CLOCK - _doing.c.date_started) > _limit)
_running = (
    select(_doing.c.channel, _doing.c.name, _is_stuck.label("is_stuck"))
    .select_from(_doing.outerjoin(_live, _live.c.id == _doing.c.claimed_by))
    .subquery("running")
)
COUNT_RUNNING = Statement(
    "measure_running",
    _by_group(_figures(_running, number=func.count(), stuck=func.count().filter(_running.c.is_stuck))),
)

_slot = func.jsonb_array_elements(workers.c.stuck).table_valued(column("value", JSONB), name="slot").lateral()
_slots = (
    select(
        tasks.c.channel,
        func.coalesce(tasks.c.name, _slot.c.value.op("->>")(literal("name")), literal("")).label("name"),
    )
    .select_from(
        workers.join(_slot, true()).outerjoin(tasks, tasks.c.id == cast(_slot.c.value.op("->>")(literal("task")), Uuid))
    )
    .where(_is_live)
    .subquery("slots")
)
COUNT_STUCK_SLOTS = Statement("measure_stuck_slots", _by_group(_figures(_slots, number=func.count())))

_failed = select(tasks.c.channel, tasks.c.name).where(_failed_today).limit(_most).subquery("failed")
COUNT_FAILED = Statement("measure_failed", _by_group(_figures(_failed, number=func.count())))

# --------------------------------------------------------------------------------------------------------- by a sample

_blocks = tablesample(tasks, func.system(parameter("percent", REAL)), name="sampled", seed=literal_column("0"))


def _sampled(*allowed: str) -> ColumnElement[bool]:
    return _blocks.c.state.in_([literal(state) for state in allowed])


# By state as well, and told apart afterwards: half the time of asking each row what it is.
_group = (_blocks.c.channel, _blocks.c.name, _blocks.c.state)
SAMPLE = Statement(
    "measure_sample",
    _by_group(
        select(
            _blocks.c.channel,
            _blocks.c.name,
            case((_sampled(*states.PENDING), func.count()), else_=_number(0)).label("pending"),
            case((_sampled(states.DOING), func.count()), else_=_number(0)).label("running"),
            case((_sampled(states.FAILED), func.count()), else_=_number(0)).label("failed"),
            case((_sampled(states.ENQUEUED), seconds(CLOCK - func.min(_blocks.c.date_enqueued)))).label("oldest"),
        )
        .where(
            or_(
                _sampled(*states.PENDING, states.DOING),
                and_(_sampled(states.FAILED), _blocks.c.date_done >= _midnight),
            )
        )
        .group_by(*_group)
    ),
)

# ------------------------------------------------------------------------------------------------- ages and durations


def _step(*order: ColumnElement[Any], where: Sequence[ColumnElement[bool]]) -> Select[Any]:
    first = select(tasks.c.channel, tasks.c.priority, tasks.c.date_enqueued).where(*where).order_by(*order)
    return first.limit(_number(1))


def _heads(name: str, condition: ColumnElement[bool], *, by_channel: bool = False) -> CTE:
    """Walk along a claim's index: the oldest task of each priority (of each channel), one step for each."""
    order = (tasks.c.channel,) * by_channel + (tasks.c.priority.desc(), tasks.c.date_enqueued)
    first = _step(*order, where=[condition]).subquery()
    heads = select(first, _number(1).label("step")).cte(name, recursive=True)
    following = _step(
        tasks.c.priority.desc(),
        tasks.c.date_enqueued,
        where=[
            condition,
            tasks.c.priority < heads.c.priority,
            *[tasks.c.channel == heads.c.channel] * by_channel,
        ],
    ).correlate(heads)
    if by_channel:
        other = _step(*order, where=[condition, tasks.c.channel > heads.c.channel]).correlate(heads)
        following = select(union_all(following, other).subquery()).limit(_number(1)).correlate(heads)
    step = following.lateral("following")
    return heads.union_all(
        select(step, heads.c.step + _number(1))
        .select_from(heads.join(step, true()))
        .where(heads.c.step < _number(MOST_PRIORITIES))
    )


_all_heads = union_all(
    *(
        select(heads.c.channel, heads.c.date_enqueued)
        for heads in (
            _heads("of_default", _default),
            _heads("of_others", _other, by_channel=True),
            _heads("of_keyed", _keyed),
        )
    )
).subquery("heads")
OLDEST_PENDING = Statement(
    "oldest_pending",
    select(_all_heads.c.channel, seconds(CLOCK - func.min(_all_heads.c.date_enqueued))).group_by(_all_heads.c.channel),
)

_up_to = parameter("up_to", Uuid)
_newest = (
    select(tasks.c.channel, tasks.c.name, tasks.c.state, tasks.c.date_started, tasks.c.date_done)
    .where(tasks.c.id <= _up_to)
    .order_by(tasks.c.id.desc())
    .limit(_number(NEWEST))
    .subquery("newest")
)
_took = (
    select(_newest.c.channel, _newest.c.name, (_newest.c.date_done - _newest.c.date_started).label("time"))
    .where(_newest.c.state == literal(states.DONE), _newest.c.date_started.is_not(None))
    .subquery("took")
)
DURATIONS = Statement(
    "measure_durations", _by_group(_figures(_took, number=func.count(), seconds=seconds(func.sum(_took.c.time))))
)

# Where the workers are: behind a long backlog the newest tasks say nothing yet.
_doing_ids = select(tasks.c.id).where(in_state(states.DOING)).limit(_number(1000)).subquery("doing")
FRONT = Statement(
    "measure_front",
    select(
        cast(
            func.coalesce(
                select(_doing_ids.c.id).order_by(_doing_ids.c.id.desc()).limit(_number(1)).scalar_subquery(),
                select(tasks.c.id)
                .where(_default)
                .order_by(tasks.c.priority.desc(), tasks.c.date_enqueued)
                .limit(_number(1))
                .scalar_subquery(),
                select(tasks.c.id)
                .where(_other)
                .order_by(tasks.c.channel, tasks.c.priority.desc(), tasks.c.date_enqueued)
                .limit(_number(1))
                .scalar_subquery(),
            ),
            Text,
        )
    ),
)
_LAST_ID: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"

# ------------------------------------------------------------------------------------------------------------- reading


class Limits(NamedTuple):
    """What of the configuration says who lives and what is stuck."""

    lease: float
    task_timeout: float
    timeout_grace: float

    @classmethod
    def of(cls, config: Config) -> "Limits":
        """Return those of a configuration."""
        return cls(config.lease, config.task_timeout, config.timeout_grace)

    @property
    def overdue(self) -> dict[str, float]:
        """As parameters of the statements."""
        return {"lease": self.lease, "task_timeout": self.task_timeout, "grace": self.timeout_grace + STUCK_MARGIN}


def read_state(cursor: Cursor, limits: Limits) -> State:
    """Return what the health of a queue depends on; in a transaction, whose plans are restricted to indexes."""
    PLAN_ALONG_INDEXES(cursor)
    basics = _basics(cursor, limits)
    running = _Groups.read(COUNT_RUNNING, cursor, **limits.overdue)
    slots = _Groups.read(COUNT_STUCK_SLOTS, cursor, lease=limits.lease)
    return State(basics.active_workers, int(running.all[1] + slots.all[0]), basics.is_paused)


def _basics(cursor: Cursor, limits: Limits) -> _Basics:
    return _Basics._make(BASICS(cursor, lease=limits.lease).fetchone())


def read_metrics(cursor: Cursor, limits: Limits) -> Metrics:
    """Return the figures of a queue; in a transaction, whose plans are restricted to indexes."""
    PLAN_ALONG_INDEXES(cursor)
    basics = _basics(cursor, limits)
    taken = _Figures(cursor, basics.blocks)
    taken.count("pending_tasks", COUNT_PENDING, OLDEST, basics.blocks_of_pending)
    taken.count("running_tasks", COUNT_RUNNING, STUCK, **limits.overdue)
    taken.count("failed_tasks_today", COUNT_FAILED, None, basics.blocks_of_failed)
    taken.add(STUCK, _Groups.read(COUNT_STUCK_SLOTS, cursor, lease=limits.lease), 0)
    taken.durations()
    return Metrics(
        **taken.all,
        active_workers=basics.active_workers,
        by_channel={key: Figures(**figures) for key, figures in sorted(taken.channels.items())},
        by_name={key: Figures(**figures) for key, figures in sorted(taken.names.items())},
        estimated=frozenset(taken.estimated),
        date=basics.date,
    )


class _Figures:
    """The figures as they are put together, one after the other."""

    def __init__(self, cursor: Cursor, blocks: int) -> None:
        self._cursor = cursor
        self._blocks = blocks
        self.all: dict[str, Any] = {}
        self.channels: dict[str, dict[str, Any]] = {}
        self.names: dict[str, dict[str, Any]] = {}
        self.estimated: set[str] = set()

    @cached_property
    def _scale(self) -> float:
        return max(1.0, self._blocks / SAMPLED_BLOCKS)

    @cached_property
    def _sample(self) -> _Groups:
        return _Groups.read(SAMPLE, self._cursor, percent=100.0 / self._scale)

    def _seen(self, figure: str) -> float:
        return float(self._sample.all[_SAMPLED.index(figure)])

    def count(
        self, figure: str, statement: Statement, second: str | None = None, blocks: int = 0, /, **parameters: Any
    ) -> None:
        """Count tasks along indexes of so many blocks, and what the statement says beside their number; or estimate."""
        is_doubtful = blocks > PROBABLY_MANY and self._blocks > 10 * SAMPLED_BLOCKS
        if is_doubtful and self._seen(figure) >= max(SURELY_SEEN, SURELY_MANY / self._scale):
            self._estimate(figure, second)
            return
        counted = _Groups.read(statement, self._cursor, **parameters)
        if second is not None:
            self.add(second, counted, 1)
        if counted.all[0] > EXACT_UP_TO:
            self._estimate(figure, second)
        else:
            self.add(figure, counted, 0)

    def _estimate(self, figure: str, second: str | None) -> None:
        self.estimated.update([figure] if second is None else [figure, second])
        self.add(figure, self._sample, _SAMPLED.index(figure), self._scale)
        self.all[figure] = max(EXACT_UP_TO + 1, self.all[figure])
        if second == OLDEST:
            # Of each channel and in all exactly, by steps along the claims' indexes; of each name as the sample has it.
            self.add(OLDEST, self._sample, len(_SAMPLED))
            for channel, age in OLDEST_PENDING(self._cursor).fetchall():
                self._put(self.channels.setdefault(channel, {}), OLDEST, age)
                self._put(self.all, OLDEST, age)

    def durations(self) -> None:
        """Average the durations of the newest tasks that are done, wherever the workers are."""
        taken = _Groups.read(DURATIONS, self._cursor, up_to=_LAST_ID)
        if taken.all[0] < FEW:
            front = FRONT(self._cursor).fetchone()[0]
            behind = taken if front is None else _Groups.read(DURATIONS, self._cursor, up_to=front)
            taken = behind if behind.all[0] > taken.all[0] else taken
        for row, figures in self._rows(taken):
            if row[0]:
                figures["average_task_duration"] = row[1] / row[0]

    def add(self, figure: str, groups: _Groups, position: int, scale: float = 1.0) -> None:
        """Take a figure over from what was read: numbers add up, of ages the highest counts."""
        for row, figures in self._rows(groups):
            value = row[position]
            if value and figure != OLDEST:
                value = round(value * scale)
            self._put(figures, figure, value)

    def _put(self, figures: dict[str, Any], figure: str, value: Any) -> None:
        present = figures.get(figure)
        if figure != OLDEST:
            figures[figure] = (present or 0) + (value or 0)
        elif value is not None:
            figures[figure] = max(present or 0.0, value)

    def _rows(self, groups: _Groups) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        yield groups.all, self.all
        for found, kept in ((groups.channels, self.channels), (groups.names, self.names)):
            for key, row in found.items():
                if any(row):
                    yield row, kept.setdefault(key, {})
