"""TaskRef: a task's id and its queue, to ask for the task and to lay a hand on it."""

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast
from uuid import UUID

from queuedtask.control import Control
from queuedtask.db import reads, unique
from queuedtask.db.connections import Database
from queuedtask.db.control import Requeue
from queuedtask.db.reads import LogRow, TaskRow
from queuedtask.errors import InvalidTask, NotAllowed, TaskNotFound
from queuedtask.model import codec, orders, states
from queuedtask.model.orders import Order

RETRY_ATTEMPTS = 5
RETRY_INTERVAL = 0.05


class HasTasks(Protocol):
    """What a ref needs of its queue."""

    database: Database
    _control: Control


class TaskRef:
    """A task's id and its queue. Reading an attribute asks the database, in a transaction of its own.

    Every reading attribute raises TaskNotFound when the task's row is gone.
    """

    def __init__(self, queue: HasTasks, task_id: str, *, created: bool) -> None:
        self._queue = queue
        self._id = task_id
        self._created = created
        self._may_be_uncommitted = False

    @property
    def id(self) -> str:
        """The task's id."""
        return self._id

    @property
    def created(self) -> bool:
        """Whether the call that returned this ref made the task; False when another one had its unique key."""
        return self._created

    def __repr__(self) -> str:
        return f"<TaskRef {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskRef) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def row(self) -> TaskRow:
        """Return the whole row, JSON as text."""
        with self._queue.database.transaction() as cursor:
            row = reads.get_task(cursor, self.id)
        if row is None:
            raise TaskNotFound(f"there is no task {self.id}")
        return row

    @property
    def state(self) -> str:
        """The state: waiting, enqueued, doing, done, failed, cancelled or stopped."""
        return self.row().state

    @property
    def result(self) -> Any:
        """What the function returned; None before the end, too. Tuples and sets come as lists."""
        return codec.decode(self.row().result)

    @property
    def error(self) -> str | None:
        """The last error as ``"Type: message"``, None without one."""
        row = self.row()
        return None if row.error_type is None else f"{row.error_type}: {row.error_message or ''}"

    @property
    def context(self) -> dict[str, Any]:
        """The context as last written."""
        context = codec.decode(self.row().context)
        return context if isinstance(context, dict) else {}

    def logs(self) -> list[LogRow]:
        """Return the lines that were logged inside the task, in their order."""
        with self._queue.database.transaction() as cursor:
            return reads.task_logs(cursor, self.id)

    def wait(self, timeout: float | None = None) -> Any:
        """Wait until the task has ended, at most so many seconds, and return what its function returned.

        Raises TaskFailed, TaskCancelled or TaskStopped for one that has not ended as *done*, with the stored error;
        TimeoutError, which changes nothing about the task; TaskGone when its row vanishes meanwhile, and TaskNotFound
        when there is none; NotCommitted at once when the transaction that adds it is still open.

        It does not poll: the end is announced by the database. Any number of threads may wait; they share one
        connection, apart from the pool. Inside a task it occupies the slot, and says in the log when there is none left
        for the task that it waits for.
        """
        end = self._queue._control.wait(self.id, timeout, may_be_uncommitted=self._may_be_uncommitted)
        return codec.decode(end.result)

    def cancel(self) -> None:
        """Call the task off: at once when it is pending, else as soon as it heeds.

        A running one is asked to end: ``should_abort()`` turns true and a coroutine is cancelled. After
        ``QUEUE_TIMEOUT_GRACE`` it is made to end, as one that has outlived its timeout is. It ends as *cancelled*, and
        never runs again; if it returns before, it is *done*. Raises NotAllowed when it has ended already.
        """
        self._give(orders.CANCEL)

    def stop(self) -> None:
        """End the task: at once when it is pending, else as one that has outlived its timeout, without delay.

        It ends as *stopped*, unless it returns before that. Raises NotAllowed when it has ended already.
        """
        self._give(orders.STOP)

    def _give(self, order: Order) -> None:
        if not self._queue._control.give(order, self.id):
            allowed = ", ".join((*states.PENDING, states.DOING))
            raise NotAllowed(f"task {self.id} is {self.state}: only one that is {allowed} can be {order.participle}")

    def retry(self) -> None:
        """Send the ended task round again.

        Raises NotAllowed unless its state is final, and when another task has its unique key.
        """
        skipped = 0
        for _ in range(RETRY_ATTEMPTS):
            requeued, skipped = self._queue._control.requeue(Requeue(states=states.FINAL, ids=[self.id]))
            if requeued:
                return
            if skipped or self.state not in states.FINAL:
                break
            # Somebody has its row: a worker that puts its children right lets go of it at once.
            time.sleep(RETRY_INTERVAL)
        if skipped:
            with self._queue.database.transaction() as cursor:
                rival = unique.rival_of(cursor, self.id) or "another task had its unique key"
            raise NotAllowed(f"task {self.id} cannot be sent round again: {rival}")
        state = self.state
        if state in states.FINAL:
            raise NotAllowed(f"task {self.id} is {state}, but somebody is just changing it or adding a child to it")
        raise NotAllowed(
            f"task {self.id} is {state}: only one that is {', '.join(states.FINAL)} can be sent round again"
        )


class KeyedRef(TaskRef):
    """The ref of a task with a unique key in a batch: which task it is turns out when it is written."""

    def __init__(self, queue: HasTasks, find: Callable[[], None]) -> None:
        super().__init__(queue, "", created=False)
        self._find = find
        self.held: unique.Held | None = None

    @property
    def id(self) -> str:
        return self._found().id

    @property
    def created(self) -> bool:
        return self._found().created

    def _found(self) -> unique.Held:
        if self.held is None:
            self._find()
        assert self.held is not None
        return self.held

    def __repr__(self) -> str:
        return "<TaskRef in a batch>" if self.held is None else super().__repr__()


class Requeued(list[TaskRef]):
    """Refs of the tasks that were sent round again."""

    def __init__(self, refs: Iterable[TaskRef], skipped: int) -> None:
        super().__init__(refs)
        self.skipped = skipped
        """How many were left alone because another task has their unique key."""


def parent_ids(given: object) -> tuple[str, ...]:
    """Return the ids of the parents that are given: one, several, or none; each once."""
    if given is None:
        return ()
    several = given if isinstance(given, list | tuple | set | frozenset) else [given]
    try:
        return tuple(dict.fromkeys(checked_id(parent) for parent in several))
    except ValueError as error:
        raise InvalidTask(f"parent: {error}; give a ref, an id or a list of them") from None


def checked_id(value: object) -> str:
    """Return the id of a task that is given as a ref, a UUID or its text. Raises ValueError for anything else."""
    if isinstance(value, TaskRef):
        return value.id
    try:
        return str(value if isinstance(value, UUID) else UUID(cast(str, value)))
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"{value!r} is not a task's id: a UUID is") from None
