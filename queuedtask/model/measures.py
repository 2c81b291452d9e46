"""What is measured of a queue, and how it is judged: figures, and the reasons for which a queue is not well.

Pure: ``db/measures`` reads what is measured, ``db/health`` asks within a time limit.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple

EXACT_UP_TO: Final = 100_000
"""Above so many tasks a figure is estimated."""
NEWEST: Final = 5_000
"""The average duration is that of the tasks among so many that were done."""

HEALTHY: Final = "healthy"
DEGRADED: Final = "degraded"
UNHEALTHY: Final = "unhealthy"

DATABASE_UNREACHABLE: Final = "database_unreachable"
"""It cannot be connected to, or gave no answer in time."""
DATABASE_ERROR: Final = "database_error"
"""It answers, but refuses: a missing permission, for example."""
TABLES_MISSING: Final = "tables_missing"
SCHEMA_OUTDATED: Final = "schema_outdated"
"""This release does not work with the version of the tables, which may also be too new."""
NO_ACTIVE_WORKERS: Final = "no_active_workers"
TASKS_STUCK: Final = "tasks_stuck"
"""More than ``health_max_stuck`` of them."""
PAUSED: Final = "paused"
"""Somebody has paused all channels."""

STATUS: Final[Mapping[str, str]] = MappingProxyType(
    {
        DATABASE_UNREACHABLE: UNHEALTHY,
        DATABASE_ERROR: UNHEALTHY,
        TABLES_MISSING: UNHEALTHY,
        SCHEMA_OUTDATED: UNHEALTHY,
        NO_ACTIVE_WORKERS: UNHEALTHY,
        TASKS_STUCK: DEGRADED,
        PAUSED: DEGRADED,
    }
)
"""Every reason with its status, the graver one first: of several the first is named."""


class State(NamedTuple):
    """What the health of a queue depends on once the database answers."""

    active_workers: int
    stuck_tasks: int
    is_paused: bool


def health(reason: str | None, error: str | None = None, workers: int | None = None) -> dict[str, Any]:
    """Return the document that says how a queue is."""
    status = HEALTHY if reason is None else STATUS[reason]
    return {"status": status, "reason": reason, "error": error, "workers": workers}


def judge(state: State, *, max_stuck: int) -> dict[str, Any]:
    """Say how a queue is whose database answers."""
    if not state.active_workers:
        return health(NO_ACTIVE_WORKERS, "no worker has reported within its lease", 0)
    if state.stuck_tasks > max_stuck:
        error = f"{state.stuck_tasks} tasks are stuck, more than {max_stuck}"
        return health(TASKS_STUCK, error, state.active_workers)
    if state.is_paused:
        return health(PAUSED, "all channels are paused", state.active_workers)
    return health(None, workers=state.active_workers)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is measured of all tasks, of one channel's, or of those of one name."""

    pending_tasks: int = 0
    """Waiting and enqueued."""
    running_tasks: int = 0
    """Claimed; some of them may be about to begin."""
    failed_tasks_today: int = 0
    """Failed for good since midnight UTC, by the clock of the database."""
    average_task_duration: float | None = None
    """Seconds that the tasks among the newest 5,000 took that were done; None when none was."""
    stuck_tasks: int = 0
    """Beyond their timeout and grace, of a worker that is dead, or in a stuck slot."""
    oldest_pending_seconds: float | None = None
    """How long the task waits that has been waiting longest for a slot; None when none does."""


@dataclass(frozen=True, kw_only=True)
class Metrics(Figures):
    """The figures of a queue at one moment, of all tasks and for each channel and name."""

    active_workers: int = 0
    """Worker processes that have reported within their lease."""
    by_channel: Mapping[str, Figures] = field(default_factory=dict)
    by_name: Mapping[str, Figures] = field(default_factory=dict)
    """The most frequent ones: at most 2,000 channels and names for each figure."""
    estimated: frozenset[str] = frozenset()
    """The fields that are estimates, because more than 100,000 tasks would have had to be counted."""
    date: datetime
    """When, by the clock of the database."""

    @property
    def is_estimated(self) -> bool:
        """Tell whether any figure is an estimate."""
        return bool(self.estimated)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it in JSON's types."""
        return {
            **asdict(self),
            "estimated": sorted(self.estimated),
            "is_estimated": self.is_estimated,
            "date": self.date.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        }
