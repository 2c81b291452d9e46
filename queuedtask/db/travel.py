"""Time travel for tests: the times in the rows are moved back, as if so much time had passed since."""

from collections.abc import Sequence

from sqlalchemy import Double, Table, Uuid, any_, update
from sqlalchemy.dialects.postgresql import ARRAY

from queuedtask.db.moves import CLOCK, SECOND, in_state, literal
from queuedtask.db.schema import Timestamp, attempts, channels, logs, schedules, tasks
from queuedtask.db.statement import Cursor, Statement, parameter
from queuedtask.model import states

_seconds = parameter("seconds", Double)


def _moved(table: Table, *names: str) -> Statement:
    values = {table.c[name]: table.c[name] - _seconds * SECOND for name in names}
    return Statement(f"travel_{table.name}", update(table).values(values))


TRAVEL = (
    _moved(tasks, *(column.name for column in tasks.c if column.type is Timestamp)),
    _moved(attempts, "date_started", "date_done"),
    _moved(logs, "date_created"),
    _moved(schedules, "date_next", "date_last_tick"),
    # The starts that a rate counts: those of its last per_seconds.
    Statement(
        "travel_channels", update(channels).where(channels.c.per_seconds <= _seconds).values(starts=literal("[]"))
    ),
)

HASTEN = Statement(
    "hasten",
    update(tasks)
    .where(tasks.c.id == any_(parameter("ids", ARRAY(Uuid))), in_state(states.WAITING))
    .values(date_scheduled=CLOCK),
)


def travel(cursor: Cursor, seconds: float) -> None:
    """Move the times of all tasks, attempts, log lines and ticks to come back by so many seconds."""
    for statement in TRAVEL:
        statement(cursor, seconds=seconds)


def hasten(cursor: Cursor, ids: Sequence[str]) -> None:
    """Let the time of waiting tasks come now."""
    HASTEN(cursor, ids=list(ids))
