"""Parents and children: what the end of a task, and its going round again, means for those that wait for it.

A waiting task counts the parents that it still waits for (``pending_parents``). The count is settled in the transaction
in which a parent ends, under the lock of the child's row, so that two parents that end together each take off one.
"No unfinished parent exists" would not do: neither sees the other's end before both have committed.

A child that is added while its parent ends is seen by neither: its own statement sees the parent unfinished, and the
parent's does not see the child. :func:`settle_strays` finds such children; nobody waits for anybody's transaction.

The rows of children are locked in the order of their ids, those of tasks that go round again before them.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Integer,
    Text,
    Uuid,
    and_,
    any_,
    case,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from queuedtask.db.moves import HAS_NO_PARENTS_LEFT, KEY_IS_TAKEN, TIME_HAS_COME, in_state, literal, move
from queuedtask.db.schema import dependencies, tasks
from queuedtask.db.statement import Cursor, Statement, parameter
from queuedtask.model import states

BATCH = 1000

_UUID = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
_ZERO: ColumnElement[int] = literal_column("0")
_EMPTY = cast(literal("{}"), JSONB)
_ids = parameter("ids", ARRAY(Uuid))
_edge = dependencies.alias("edge")
_child = tasks.alias("child")
_parent = tasks.alias("parent")


def _is(task: Any, *allowed: str) -> ColumnElement[bool]:
    is_one: ColumnElement[bool] = task.c.state.in_([literal(state) for state in allowed])
    return is_one


# A row that somebody has written by hand may hold anything there.
_has_meta = func.jsonb_typeof(tasks.c.meta) == literal("object")


def without_ancestor() -> ColumnElement[Any]:
    """Return a task's ``meta`` without the ancestor that it fell with."""
    return case((_has_meta, func.jsonb_delete(tasks.c.meta, literal("failed_ancestor"))), else_=tasks.c.meta)


def _waits(task: Any) -> ColumnElement[bool]:
    """Return the condition that a task waits for a parent."""
    return and_(_is(task, states.WAITING), task.c.pending_parents > _ZERO)


def _array(query: Any) -> ColumnElement[Any]:
    return func.array(query.scalar_subquery())


def _locked(ids: ColumnElement[Any], *where: ColumnElement[bool]) -> ColumnElement[bool]:
    """Restrict an UPDATE to tasks that a sub-select has locked before, in the order of their ids."""
    query = select(tasks.c.id).where(tasks.c.id == any_(ids), *where).order_by(tasks.c.id)
    return tasks.c.id == any_(_array(query.with_for_update(key_share=True)))


def _children_of(parent: ColumnElement[Any]) -> Any:
    """Return the children of one row of the outer statement.

    OFFSET 0 keeps PostgreSQL from turning this into a join over the whole table, on which a family a thousand
    generations deep would be found by a thousand scans.
    """
    query = select(dependencies.c.task).where(dependencies.c.parent == parent)
    return query.offset(_ZERO).lateral("below")


# -------------------------------------------------------------------------------------------------- a parent has ended


def count_down(ended: ColumnElement[Any], *where: ColumnElement[bool]) -> CTE:
    """Return what takes parents that have ended, an array of ids, off the counts of their waiting children."""
    edges = (
        select(dependencies.c.task, func.count().label("parents"))
        .where(dependencies.c.parent == any_(ended))
        .group_by(dependencies.c.task)
        .cte("edges")
    )
    waits = (_waits(tasks), *where)
    return (
        update(tasks)
        .where(tasks.c.id == edges.c.task, _locked(_array(select(edges.c.task)), *waits), *waits)
        .values(pending_parents=func.greatest(tasks.c.pending_parents - edges.c.parents, _ZERO))
        .returning(tasks.c.pending_parents)
        .cte("counted")
    )


def _freed(counted: CTE) -> ColumnElement[Any]:
    query = select(func.count()).select_from(counted).where(counted.c.pending_parents == _ZERO)
    return query.scalar_subquery().label("freed")


def finish(move_: Any) -> Any:
    """Return the move of tasks that are done together with what it means for their children, in one statement.

    The rows that it gives are those of the move, each with the number of children that wait for no parent any more.
    """
    ended = move_.returning(tasks.c.id, tasks.c.attempt).cte("ended")
    counted = count_down(_array(select(ended.c.id)))
    return select(cast(ended.c.id, Text), ended.c.attempt, _freed(counted))


# Down from tasks that ended badly to all that wait for them, and would be of no use without them.
_waits_to_be_cancelled = select(_child.c.on_parent_failure).where(_waits(_child)).correlate_except(_child)
_BAD = (states.FAILED, states.CANCELLED, states.STOPPED)
# A parent that fell with an ancestor of its own: its children fall with that one, which will bring all of them back,
# unless it has gone round again already and this parent has not.
_ancestor = tasks.alias("ancestor")
_mark = _parent.c.meta["failed_ancestor"].as_string()
_marked = case((_mark.regexp_match(literal(_UUID)), cast(_mark, Uuid)))
_ancestor_of_parent = (
    select(_ancestor.c.id)
    .select_from(_parent.join(_ancestor, _ancestor.c.id == _marked))
    .where(_parent.c.id == _edge.c.parent, _is(_parent, states.CANCELLED), _is(_ancestor, *_BAD))
    .correlate(_edge)
    .scalar_subquery()
)
_first = select(_edge.c.task.label("id"), func.coalesce(_ancestor_of_parent, _edge.c.parent).label("ancestor")).where(
    _edge.c.parent == any_(_ids),
    _waits_to_be_cancelled.where(_child.c.id == _edge.c.task).scalar_subquery() == literal("cancel"),
)
_falling = _first.cte("falling", recursive=True)
_below = _children_of(_falling.c.id)
_falling = _falling.union(
    select(_below.c.task, _falling.c.ancestor)
    .select_from(_falling.join(_below, literal_column("true")))
    .where(_waits_to_be_cancelled.where(_child.c.id == _below.c.task).scalar_subquery() == literal("cancel"))
)
_one = (
    # As text: PostgreSQL has a min() of uuid only since 18.
    select(_falling.c.id, cast(func.min(cast(_falling.c.ancestor, Text)), Uuid).label("ancestor"))
    .group_by(_falling.c.id)
    .cte("one")
)

TAKE_DOWN = Statement(
    "take_down",
    move(
        states.CANCEL,
        tasks.c.id == _one.c.id,
        _parent.c.id == _one.c.ancestor,
        _locked(_array(select(_one.c.id)), _waits(tasks)),
        _waits(tasks),
        error_type=literal("ParentFailed"),
        error_message=func.format(
            literal("%s (%s) ended as %s"),
            func.coalesce(func.nullif(_parent.c.name, literal("")), _parent.c.function),
            _parent.c.id,
            _parent.c.state,
        ),
        error_traceback=null(),
        meta=func.jsonb_concat(
            case((_has_meta, tasks.c.meta), else_=_EMPTY),
            func.jsonb_build_object(literal("failed_ancestor"), _parent.c.id),
        ),
    ).returning(cast(tasks.c.id, Text)),
)

COUNT_DOWN = Statement("count_down", select(_freed(count_down(_ids, tasks.c.on_parent_failure == literal("run")))))


def end_badly(cursor: Cursor, ids: Sequence[str]) -> int:
    """Cancel everything that waits for tasks that have ended other than done; let run what is to run in any case.

    Return how many wait for no parent any more. To be called in the transaction in which they ended, after it.
    """
    taken_down = [row[0] for row in TAKE_DOWN(cursor, ids=list(ids)).fetchall()]
    return int(COUNT_DOWN(cursor, ids=[*ids, *taken_down]).fetchone()[0])


RELEASE_CHILDREN = Statement(
    "release_children",
    move(
        states.RELEASE,
        _locked(
            _array(select(dependencies.c.task).where(dependencies.c.parent == any_(_ids))),
            in_state(states.WAITING),
            HAS_NO_PARENTS_LEFT,
        ),
        TIME_HAS_COME,
    ),
)


def release_children(cursor: Cursor, ids: Sequence[str]) -> None:
    """Make the children of tasks eligible that wait for no parent and no time any more."""
    RELEASE_CHILDREN(cursor, ids=list(ids))


# ---------------------------------------------------------------------------------------------- a task goes round again

RELATIONS = Statement(
    "relations",
    select(dependencies.c.task)
    .where(or_(dependencies.c.parent == any_(_ids), dependencies.c.task == any_(_ids)))
    .limit(literal_column("1")),
)

_again = select(func.unnest(_ids).label("id"), func.unnest(_ids).label("ancestor")).cte("again", recursive=True)
_below_again = _children_of(_again.c.id)
_taken_down_by = (
    select(_child.c.meta["failed_ancestor"].as_string())
    .where(_is(_child, states.CANCELLED), _child.c.id == _below_again.c.task)
    .correlate_except(_child)
    .scalar_subquery()
)
_again = _again.union(
    select(_below_again.c.task, _again.c.ancestor)
    .select_from(_again.join(_below_again, literal_column("true")))
    .where(_taken_down_by == cast(_again.c.ancestor, Text))
)

# One whose unique key another task has stays cancelled; of several with one key the newest comes back.
_twin = tasks.alias("twin")
_is_newest_of_key = tasks.c.id == (
    select(_twin.c.id)
    .where(_twin.c.id.in_(select(_again.c.id)), _twin.c.unique_key == tasks.c.unique_key, _is(_twin, states.CANCELLED))
    .order_by(_twin.c.id.desc())
    .limit(literal_column("1"))
    .correlate_except(_twin)
    .scalar_subquery()
)
_may_have_key = or_(tasks.c.unique_key.is_(None), and_(~KEY_IS_TAKEN, _is_newest_of_key))

LOCK_FALLEN = Statement(
    "lock_fallen",
    select(cast(tasks.c.id, Text))
    .where(
        tasks.c.id == any_(_array(select(_again.c.id).where(_again.c.id != _again.c.ancestor))),
        in_state(states.CANCELLED),
    )
    .order_by(tasks.c.id)
    .with_for_update(key_share=True),
)

REVIVE = Statement(
    "revive",
    move(
        states.REVIVE,
        _locked(
            _array(select(_again.c.id).where(_again.c.id != _again.c.ancestor)),
            in_state(states.CANCELLED),
            _may_have_key,
        ),
        error_type=null(),
        error_message=null(),
        meta=without_ancestor(),
    ).returning(cast(tasks.c.id, Text)),
)

LOCK_CHILDREN = Statement(
    "lock_children",
    select(cast(tasks.c.id, Text))
    .where(
        or_(
            tasks.c.id == any_(_array(select(dependencies.c.task).where(dependencies.c.parent == any_(_ids)))),
            tasks.c.id == any_(_ids),
        ),
        in_state(*states.PENDING),
    )
    .order_by(tasks.c.id)
    .with_for_update(key_share=True),
)


def _count_parents(*where: ColumnElement[bool]) -> Any:
    return (
        select(func.count())
        .select_from(_edge.join(_parent, _parent.c.id == _edge.c.parent))
        .where(_edge.c.task == tasks.c.id, *where)
        .correlate(tasks)
        .scalar_subquery()
    )


_is_unfinished = _parent.c.state.not_in([literal(state) for state in states.FINAL])
# By the rule by which a new child counts: one that is to be cancelled with a parent waits for one that failed, too.
_is_awaited = or_(
    _is_unfinished,
    and_(_parent.c.state != literal(states.DONE), tasks.c.on_parent_failure == literal("cancel")),
)

_recounted = update(tasks).where(tasks.c.id == any_(_ids), in_state(*states.PENDING))
RECOUNT = Statement("recount", _recounted.values(pending_parents=_count_parents(_is_unfinished)))
RECOUNT_AS_NEW = Statement("recount_as_new", _recounted.values(pending_parents=_count_parents(_is_awaited)))
HOLD = Statement("hold", move(states.HOLD, tasks.c.id == any_(_ids), tasks.c.pending_parents > _ZERO))

# As if they were added now: a parent that ends at this moment sees no more of them than of a child that is new.
RENEW_EDGES = Statement(
    "renew_edges",
    update(dependencies)
    .where(dependencies.c.task == any_(_ids))
    .values(added_in=cast(cast(func.pg_current_xact_id(), Text), BigInteger)),
)

_with_parent_and_child = _edge.join(_parent, _parent.c.id == _edge.c.parent).join(_child, _child.c.id == _edge.c.task)
BAD_PARENTS = Statement(
    "bad_parents",
    select(cast(_edge.c.parent, Text))
    .select_from(_with_parent_and_child)
    .where(
        _edge.c.task == any_(_ids),
        _is(_parent, *_BAD),
        _waits(_child),
        _child.c.on_parent_failure == literal("cancel"),
    )
    .order_by(_edge.c.parent)
    .with_for_update(read=True, of=_parent),
)


def _bad_parents(cursor: Cursor, children: Sequence[str]) -> list[str]:
    """Return the parents for whose sake these are to be cancelled, locked FOR SHARE: none of them goes round again now.

    Parents that have ended are not written by workers, so none has to wait.
    """
    return list(dict.fromkeys(row[0] for row in BAD_PARENTS(cursor, ids=list(children)).fetchall()))


def go_round_again(cursor: Cursor, ids: Sequence[str]) -> None:
    """Let the children of tasks that were requeued wait for them again, and revive what had been taken down with them.

    To be called in the transaction of the requeue, which has locked their rows FOR UPDATE: nobody can be adding a child
    of theirs meanwhile. What is requeued itself waits for those of its parents that have not ended.
    """
    if RELATIONS(cursor, ids=list(ids)).fetchone() is None:
        return
    held = [row[0] for row in LOCK_CHILDREN(cursor, ids=list(ids)).fetchall()]
    _lock_fallen(cursor, ids)
    revived = [row[0] for row in REVIVE(cursor, ids=list(ids)).fetchall()]
    RECOUNT(cursor, ids=held)
    HOLD(cursor, ids=held)
    RENEW_EDGES(cursor, ids=[*held, *revived])
    if revived:
        RECOUNT_AS_NEW(cursor, ids=revived)
        if bad := _bad_parents(cursor, revived):
            end_badly(cursor, bad)


def _lock_fallen(cursor: Cursor, ids: Sequence[str]) -> None:
    """Lock all that was taken down with these tasks.

    Whoever takes late children down for the sake of one of them holds its row; behind that lock there may be more.
    """
    locked: set[str] = set()
    while (found := {row[0] for row in LOCK_FALLEN(cursor, ids=list(ids)).fetchall()}) - locked:
        locked |= found


# -------------------------------------------------------------------------------------------------------------- strays

_counts = (
    select(_edge.c.task)
    .select_from(_with_parent_and_child)
    .where(_waits(_child))
    .group_by(_edge.c.task, _child.c.pending_parents, _child.c.on_parent_failure)
    .having(
        or_(
            func.count().filter(_is_unfinished) < _child.c.pending_parents,
            and_(_child.c.on_parent_failure == literal("cancel"), func.bool_or(_is(_parent, *_BAD))),
        )
    )
    .limit(parameter("limit", Integer))
)

STRAYS = Statement("strays", select(cast(_counts.subquery("stray").c.task, Text)))
YOUNG_STRAYS = Statement(
    "young_strays",
    select(cast(_counts.where(_edge.c.added_in >= parameter("since", BigInteger)).subquery("stray").c.task, Text)),
)
OLDEST_TRANSACTION = Statement(
    "oldest_transaction", select(cast(cast(func.pg_snapshot_xmin(func.pg_current_snapshot()), Text), BigInteger))
)


def oldest_transaction(cursor: Cursor) -> int:
    """Return the oldest transaction that is still open: what it and later ones add is not seen yet."""
    return int(OLDEST_TRANSACTION(cursor).fetchone()[0])


def strays(cursor: Cursor, *, since: int | None) -> list[str]:
    """Return waiting children whose count does not fit their parents, if a transaction from ``since`` on added them.

    Within one snapshot the end of a parent and the count of its children always fit, so none of them is found by
    mistake. ``since=None`` looks at every waiting child.
    """
    found = STRAYS(cursor, limit=BATCH) if since is None else YOUNG_STRAYS(cursor, since=since, limit=BATCH)
    return [row[0] for row in found.fetchall()]


def settle_strays(cursor: Cursor, ids: Sequence[str]) -> None:
    """Count the parents of strays again, and cancel those that have a parent that ended badly."""
    # First, in the order in which a requeue locks: parents, then children.
    bad = _bad_parents(cursor, ids)
    LOCK_CHILDREN(cursor, ids=list(ids))
    RECOUNT_AS_NEW(cursor, ids=list(ids))
    if bad:
        end_badly(cursor, bad)
