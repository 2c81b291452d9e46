"""Every statement about the rows of the workers: one for each start of a process, which it keeps alive and ends.

A row's id is the owner token of all that the process claims. Whoever watches a worker looks at whether its heartbeat
changes, never at how old it is.
"""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import (
    Double,
    Integer,
    Text,
    and_,
    any_,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from queuedtask.db.moves import CLOCK, SECOND, literal
from queuedtask.db.schema import Timestamp, tasks, workers
from queuedtask.db.statement import Cursor, Statement, parameter
from queuedtask.model import states

REGISTER_WORKER = Statement(
    "register_worker",
    insert(workers)
    .values(
        server_name=parameter("server_name", Text),
        max_workers=parameter("slots", Integer),
        idle_workers=parameter("slots", Integer),
        pid=parameter("pid", Integer),
        supervisor_pid=parameter("supervisor_pid", Integer),
        version=parameter("version", Text),
        lease=parameter("lease", Double),
    )
    .returning(workers.c.id),
)

HEARTBEAT = Statement(
    "heartbeat",
    update(workers)
    .where(workers.c.id == parameter("worker", Integer))
    .values(
        last_heartbeat=CLOCK,
        is_running=true(),
        max_workers=parameter("slots", Integer),
        active_workers=parameter("active", Integer),
        idle_workers=parameter("slots", Integer) - parameter("active", Integer),
        stuck=parameter("stuck", JSONB),
        refused=parameter("refused", Integer),
    ),
)

# For the supervisor, which knows that they live but not what they do. One that has just ended in order, or that others
# took for dead, is left to speak for itself.
KEEP_ALIVE = Statement(
    "keep_alive",
    update(workers)
    .where(workers.c.id == any_(parameter("workers", ARRAY(Integer))), workers.c.is_running)
    .values(last_heartbeat=CLOCK)
    .returning(workers.c.id),
)

RETIRE_WORKER = Statement(
    "retire_worker",
    update(workers)
    .where(workers.c.id == parameter("worker", Integer))
    .values(
        is_running=literal_column("false"),
        active_workers=literal_column("0"),
        idle_workers=literal_column("0"),
        stuck=literal("[]"),
    ),
)

RETIRE_ALL_WORKERS = Statement(
    "retire_all_workers",
    update(workers).values(
        is_running=literal_column("false"),
        active_workers=literal_column("0"),
        idle_workers=literal_column("0"),
        stuck=literal("[]"),
    ),
)

_is_claimed = and_(tasks.c.state == literal(states.DOING), tasks.c.claimed_by.is_not(None))
_owners = (
    select(tasks.c.claimed_by.label("id"))
    .where(_is_claimed)
    .union(select(workers.c.id).where(workers.c.is_running))
    .subquery("owners")
)

OWNERS = Statement(
    "owners",
    select(_owners.c.id, workers.c.last_heartbeat, workers.c.lease).select_from(
        _owners.outerjoin(workers, workers.c.id == _owners.c.id)
    ),
)

LOCK_SILENT_WORKER = Statement(
    "lock_silent_worker",
    select(workers.c.id)
    .where(
        workers.c.id == parameter("worker", Integer),
        or_(
            parameter("last_heartbeat", Timestamp).is_(None),
            workers.c.last_heartbeat == parameter("last_heartbeat", Timestamp),
        ),
    )
    .with_for_update(skip_locked=True, key_share=True),
)


# Long ago: nobody has heard of it for as long as any task is kept, so at most a task that was kept for a child's sake
# still names it.
REMOVE_WORKERS = Statement(
    "remove_workers",
    delete(workers).where(
        workers.c.id
        == any_(
            func.array(
                select(workers.c.id)
                .where(
                    ~workers.c.is_running,
                    workers.c.last_heartbeat < func.now() - parameter("seconds", Double) * SECOND,
                    workers.c.id.not_in(select(tasks.c.claimed_by).where(_is_claimed)),
                )
                .order_by(workers.c.id)
                .limit(parameter("limit", Integer))
                .with_for_update(skip_locked=True)
                .scalar_subquery()
            )
        )
    ),
)


def register(
    cursor: Cursor, *, server_name: str, slots: int, pid: int, supervisor_pid: int | None, version: str, lease: float
) -> int:
    """Insert the row of a worker process that starts; its id is the owner token of everything it claims."""
    row = REGISTER_WORKER(
        cursor,
        server_name=server_name[:255],
        slots=slots,
        pid=pid,
        supervisor_pid=supervisor_pid,
        version=version,
        lease=lease,
    ).fetchone()
    return int(row[0])


def heartbeat(cursor: Cursor, *, worker: int, slots: int, active: int, stuck: str = "[]", refused: int = 0) -> bool:
    """Say that a worker lives and how busy it is; False when its row is gone.

    ``stuck`` is JSON text: a list with an object for each stuck slot. ``refused`` counts the writes that came too late.
    """
    return HEARTBEAT(cursor, worker=worker, slots=slots, active=active, stuck=stuck, refused=refused).rowcount == 1


def retire(cursor: Cursor, *, worker: int) -> None:
    """Say that a worker has ended, in order or not."""
    RETIRE_WORKER(cursor, worker=worker)


def remove_ended(cursor: Cursor, *, seconds: float, limit: int) -> int:
    """Delete rows of workers that ended so many seconds ago and of which no task runs; return how many."""
    return REMOVE_WORKERS(cursor, seconds=seconds, limit=limit).rowcount


class Owner(NamedTuple):
    """Somebody whose tasks run, or who says that he works."""

    id: int
    last_heartbeat: datetime | None
    """None when it has no row."""
    lease: float | None


def owners(cursor: Cursor) -> list[Owner]:
    """Return every worker that says that it runs, and every one that tasks say they are claimed by."""
    return [Owner._make(row) for row in OWNERS(cursor).fetchall()]


def lock_silent(cursor: Cursor, *, worker: int, last_heartbeat: datetime | None) -> bool:
    """Lock a worker's row if its heartbeat is still this one (None: whatever it is), and nobody else has locked it.

    Until the transaction ends the worker cannot renew its lease, and therefore claims nothing.
    """
    return bool(LOCK_SILENT_WORKER(cursor, worker=worker, last_heartbeat=last_heartbeat).fetchall())
