"""The life cycle as data: every state, and every edge that a task may take between two of them.

Nothing here does anything. ``db/moves`` turns an edge into a guarded UPDATE, and the tests walk every pair of state
and edge.

::

    waiting ──release──▶ enqueued ──claim──▶ doing ──finish──▶ done
       ▲    ◀───hold────  ▲     ▲              ├──fail, lose─▶ failed
       │                  │     └─hand_back,───┤
       │                  │  disown, rescue    ├──call_off───▶ cancelled
       └──────────────────┼─────────retry──────┤
                          │                    └──halt───────▶ stopped
                          └──requeue── (any final state)
"""

from typing import Final, NamedTuple

WAITING: Final = "waiting"
ENQUEUED: Final = "enqueued"
DOING: Final = "doing"
DONE: Final = "done"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
STOPPED: Final = "stopped"

PENDING: Final = (WAITING, ENQUEUED)
FINAL: Final = (DONE, FAILED, CANCELLED, STOPPED)
STATES: Final = (*PENDING, DOING, *FINAL)


class Edge(NamedTuple):
    """A move that is allowed: from one of the sources to the target.

    A fenced edge belongs to the attempt that takes it: besides the state, the row must still be claimed by this
    worker in this very attempt. A late, doubled or stale move then matches no row.
    """

    name: str
    sources: tuple[str, ...]
    target: str
    fenced: bool = False


RELEASE: Final = Edge("release", (WAITING,), ENQUEUED)
"""Its time has come and its parents are done."""
CLAIM: Final = Edge("claim", (ENQUEUED,), DOING)
"""A worker takes it; the attempt number grows by one."""
FINISH: Final = Edge("finish", (DOING,), DONE, fenced=True)
"""The task's own code returned."""
FAIL: Final = Edge("fail", (DOING,), FAILED, fenced=True)
"""It raised, or timed out, and has no retry left."""
RETRY: Final = Edge("retry", (DOING,), WAITING, fenced=True)
"""It raised, or timed out, and is tried again after its back-off."""
CALL_OFF: Final = Edge("call_off", (DOING,), CANCELLED, fenced=True)
"""Its attempt ended as cancelled."""
HALT: Final = Edge("halt", (DOING,), STOPPED, fenced=True)
"""A person ended the run."""
HAND_BACK: Final = Edge("hand_back", (DOING,), ENQUEUED, fenced=True)
"""Its worker gives it back unfinished (a shutdown): no retry is used."""
DISOWN: Final = Edge("disown", (DOING,), ENQUEUED)
"""Claimed by a worker that does not know of it: the connection broke, or the table came out of a dump."""
RESCUE: Final = Edge("rescue", (DOING,), ENQUEUED, fenced=True)
"""The process that ran it died; it is taken back, and one more loss is counted."""
LOSE: Final = Edge("lose", (DOING,), FAILED, fenced=True)
"""The process that ran it died, once too often."""
CANCEL: Final = Edge("cancel", PENDING, CANCELLED)
"""Called off before it ran."""
STOP: Final = Edge("stop", PENDING, STOPPED)
"""A person stopped it before it ran."""
HOLD: Final = Edge("hold", (ENQUEUED,), WAITING)
"""A parent of it goes round again before it has run."""
REQUEUE: Final = Edge("requeue", FINAL, ENQUEUED)
"""An ended task goes round again."""
RESCHEDULE: Final = Edge("reschedule", PENDING, WAITING)
"""A call with the same unique key gives it another time."""
REVIVE: Final = Edge("revive", (CANCELLED,), WAITING)
"""The ancestor whose failure took it down goes round again."""

EDGES: Final = (
    RELEASE,
    CLAIM,
    FINISH,
    FAIL,
    RETRY,
    CALL_OFF,
    HALT,
    HAND_BACK,
    DISOWN,
    RESCUE,
    LOSE,
    CANCEL,
    STOP,
    HOLD,
    REQUEUE,
    RESCHEDULE,
    REVIVE,
)
