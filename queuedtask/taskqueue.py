"""Queue and TaskRef: adding tasks, asking for them, sending them round again."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, ParamSpec, Protocol, TypeVar, cast
from uuid import UUID

from sqlalchemy import Engine

from queuedtask.config import Config
from queuedtask.db import reads, store
from queuedtask.db.callers import cursor_on
from queuedtask.db.connections import Database
from queuedtask.db.reads import LogRow, TaskRow, WorkerRow
from queuedtask.db.statement import Cursor
from queuedtask.db.store import Requeue
from queuedtask.errors import InvalidTask, NotAllowed, NotSerializable, TaskNotFound
from queuedtask.model import codec, functions, states
from queuedtask.model.task import TaskOptions, TaskSpec, new_id
from queuedtask.run.executor import OPTIONS

logger = logging.getLogger("queuedtask.queue")

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

CLEAR_BATCH = 10_000
BATCH_CHUNK = 1000


class TaskFunction(Protocol[P, R_co]):
    """A function that ``@queue.task`` has decorated: callable as before, and added with ``delay``."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> "TaskRef":
        """Add a task that calls the function; the same as ``queue.add_task(function, …)``."""


class Queue:
    """The object that tasks are added to and asked from; cheap to make, opens no connection until it is used.

    ``Queue()`` takes its settings from the environment, ``Queue("postgresql://…")`` names the database,
    ``Queue(engine=…)`` uses a SQLAlchemy engine of yours, ``Queue(config=Config(…))`` gives settings that the
    environment may override. Without any database named it is the embedded one, started on first use.
    Safe to share between threads, and between processes that fork.
    """

    def __init__(
        self, database_url: str | None = None, *, engine: Engine | None = None, config: Config | None = None
    ) -> None:
        arguments: dict[str, object] = {}
        if engine is not None:
            if database_url is not None:
                raise TypeError("Queue(): give database_url or engine, not both")
            arguments["database_url"] = engine.url.render_as_string(hide_password=False)
        elif database_url is not None:
            arguments["database_url"] = database_url
        self.config = Config.resolve(config, arguments=arguments)
        self.database = Database(self.config, engine)

    def __repr__(self) -> str:
        return f"<Queue {self.config.as_dict()['database_url']['value'] or 'embedded'}>"

    def close(self) -> None:
        """Close the queue's idle connections. An engine that you brought stays as it is."""
        self.database.close()

    # ---------------------------------------------------------------------------------------------------------- adding

    def add_task(self, function: Callable[..., object] | str, /, *args: Any, **kwargs: Any) -> "TaskRef":
        """Add a task that calls a function with these arguments, in a transaction of its own.

        The function is any importable one, ``def`` or ``async def``, or its path ``"module:qualname"``, which need
        not be importable here. Arguments may be what JSON knows and tuple, datetime, date, time, timedelta, Decimal,
        UUID and bytes; they come back equal. Raises InvalidTask, before anything is written, for a function that
        cannot be reached by its path and for arguments that cannot be stored (NotSerializable, with their path).
        """
        return TaskAdder(self).add_task(function, *args, **kwargs)

    def options(
        self,
        *,
        name: str | None = None,
        channel: str | None = None,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        run_at: datetime | None = None,
        timeout: float | None = None,
        max_retries: int | None = None,
        context: Mapping[str, object] | None = None,
        meta: Mapping[str, object] | None = None,
        connection: object = None,
    ) -> "TaskAdder":
        """Return an adder with options, for one or more tasks: ``queue.options(priority=10).add_task(…)``.

        ``name``: at most 255 characters, by default ``module.qualname``. ``channel``: at most 64 characters.
        ``priority``: larger is sooner. ``delay`` (seconds or a timedelta) or ``run_at`` (an aware datetime): not
        before then. ``timeout``: seconds. ``max_retries``: 3 means up to four attempts. ``context``, ``meta``:
        mappings that JSON can hold. What is not given comes from ``@queue.task`` and then from the settings.

        ``connection``: the task is added in the transaction that is open there, and is committed or vanishes with it;
        nothing of that transaction is begun, committed or rolled back here. It is a SQLAlchemy Connection or Session
        (of any driver for PostgreSQL), a psycopg2 or psycopg Connection, or a Django connection or its alias, and its
        database must be the queue's. On a connection that commits by itself the task is there at once.

        Raises InvalidTask for a value that is not allowed, before anything is sent.
        """
        return TaskAdder(self).options(
            name=name,
            channel=channel,
            priority=priority,
            delay=delay,
            run_at=run_at,
            timeout=timeout,
            max_retries=max_retries,
            context=context,
            meta=meta,
            connection=connection,
        )

    @contextmanager
    def batch(self, *, connection: object = None) -> Iterator["Batch"]:
        """Return a context manager for adding many tasks quickly: all of them, or none when the block raises.

        Use ``batch.add_task(…)`` and ``batch.options(…).add_task(…)`` inside. The tasks are written in one transaction
        that commits at the end of the block, a thousand at a time as they come. With ``connection`` (see
        :meth:`options`) they are written at the end of the block, in one statement of the caller's transaction.
        """
        if connection is not None:
            cursor = cursor_on(connection)
            batch = Batch(self, None)
            yield batch
            batch._close(cursor)
        else:
            with self.database.transaction() as cursor:
                batch = Batch(self, cursor)
                yield batch
                batch._close(cursor)

    def task(
        self,
        *,
        name: str | None = None,
        channel: str | None = None,
        priority: int | None = None,
        timeout: float | None = None,
        max_retries: int | None = None,
    ) -> Callable[[Callable[P, R_co]], TaskFunction[P, R_co]]:
        """Declare a function's default options; it stays the function it was, and gets ``.delay(…)``.

        The worker knows them as well, for tasks that were added by path. See :meth:`options` for their meaning.
        """
        declared = TaskOptions(
            name=_checked_name(name),
            channel=_checked_channel(channel),
            priority=_checked_integer("priority", priority, -(2**31)),
            timeout=_checked_timeout(timeout),
            max_retries=_checked_integer("max_retries", max_retries, 0),
        )

        def declare(function: Callable[P, R_co]) -> TaskFunction[P, R_co]:
            # What the class hands out later is the function inside, and so does a worker find it.
            inner: Any = function.__func__ if isinstance(function, staticmethod) else function

            def delay(*args: P.args, **kwargs: P.kwargs) -> TaskRef:
                return self.add_task(inner, *args, **kwargs)

            try:
                setattr(inner, OPTIONS, declared)
                inner.delay = delay
            except AttributeError:
                raise InvalidTask(f"@queue.task: {function!r} takes no attributes; wrap it in a def") from None
            return cast(TaskFunction[P, R_co], function)

        return declare

    def _add(self, spec: TaskSpec, connection: object) -> None:
        if connection is None:
            with self.database.autocommit() as cursor:
                store.add(cursor, spec, notify_channel=self._notify_channel)
        else:
            store.add(cursor_on(connection), spec, notify_channel=self._notify_channel)
        logger.debug("%s %s: added", spec.name, spec.id)

    @property
    def _notify_channel(self) -> str | None:
        return self.config.notify_channel if self.config.use_postgresql_notify else None

    # ---------------------------------------------------------------------------------------------------------- asking

    def get(self, task_id: "str | UUID | TaskRef") -> "TaskRef":
        """Return the ref of an existing task. Raises TaskNotFound, and ValueError for what is no task's id."""
        ref = TaskRef(self, _checked_id(task_id), created=False)
        ref.row()
        return ref

    def find(
        self,
        *,
        state: str | None = None,
        name: str | None = None,
        channel: str | None = None,
        limit: int | None = 50,
    ) -> list["TaskRef"]:
        """Return refs of tasks, the newest first; what is None does not restrict, ``limit=None`` returns all."""
        if state is not None and state not in states.STATES:
            raise ValueError(f"state={state!r}: must be one of {', '.join(states.STATES)}")
        with self.database.transaction() as cursor:
            found = reads.find_tasks(
                cursor, states=None if state is None else [state], name=name, channel=channel, limit=limit
            )
        return [TaskRef(self, row.id, created=False) for row in found]

    def workers(self) -> list[WorkerRow]:
        """Return the workers whose rows say that they run."""
        with self.database.transaction() as cursor:
            return reads.list_workers(cursor)

    # ----------------------------------------------------------------------------------------------------- controlling

    def retry_failed(
        self,
        *,
        since: float | timedelta | None = None,
        name: str | None = None,
        limit: int | None = None,
        max_requeues: int | None = 3,
    ) -> list["TaskRef"]:
        """Send failed tasks round again, in a transaction of its own, and return their refs.

        ``since``: those that failed at most so many seconds (or a timedelta) ago. ``max_requeues``: leave alone what
        was already sent round so often, so that a call from cron never loops a task that always fails; None for no
        limit. Two calls at once share the work.
        """
        which = Requeue(
            name=name,
            since=_seconds("since", since),
            max_requeues=max_requeues,
            limit=limit,
        )
        return [TaskRef(self, task_id, created=False) for task_id in self._requeue(which)]

    def clear(self) -> int:
        """Delete every pending task, descendants included, in bounded transactions; return how many."""
        cleared = 0
        while True:
            with self.database.transaction() as cursor:
                count = store.clear_pending(cursor, limit=CLEAR_BATCH)
            cleared += count
            if count < CLEAR_BATCH:
                return cleared

    def _requeue(self, which: Requeue) -> list[str]:
        with self.database.transaction() as cursor:
            requeued = store.requeue(cursor, which)
            if requeued and self._notify_channel:
                store.notify(cursor, self._notify_channel)
        return requeued


class Adder(Protocol):
    """Where a :class:`TaskAdder` puts the tasks that it makes."""

    def __call__(self, spec: TaskSpec, connection: object) -> None: ...


class TaskAdder:
    """A queue with options; what ``queue.options(…)`` returns. Immutable, may be kept and used again."""

    def __init__(self, queue: Queue, add: Adder | None = None, connection: object = None, **given: Any) -> None:
        self._queue = queue
        self._add = add or queue._add
        self._connection = connection
        self._given = given

    def options(self, *, connection: object = None, **options: Any) -> "TaskAdder":
        """Return an adder with these options besides the ones given before; see :meth:`queuedtask.Queue.options`."""
        if connection is not None:
            cursor_on(connection)  # refuses what is none
        checked = _checked_options(self._queue.config, **options)
        merged = self._given | checked
        if merged.get("delay") is not None and merged.get("run_at") is not None:
            raise InvalidTask("delay and run_at: give one of them, not both")
        return TaskAdder(self._queue, self._add, self._connection if connection is None else connection, **merged)

    def add_task(self, function: Callable[..., object] | str, /, *args: Any, **kwargs: Any) -> "TaskRef":
        """Add a task with these options; see :meth:`queuedtask.Queue.add_task`."""
        if "parent" in kwargs:
            raise InvalidTask("parent= is reserved for tasks that wait for others, which this release has not got yet")
        declared = TaskOptions()
        if isinstance(function, str):
            path = functions.check_path(function)
        else:
            inner, args, merged = functions.unwrap_partial(function, args, kwargs)
            kwargs = dict(merged)
            path = functions.path_of(inner)
            declared = getattr(inner, OPTIONS, declared)
        args_text, kwargs_text = codec.encode_arguments(args, kwargs, self._queue.config.max_payload)
        options = {name: value for name, value in declared._asdict().items() if value is not None} | self._given
        options.setdefault("name", functions.default_name(path))
        spec = TaskSpec(id=new_id(), function=path, args=args_text, kwargs=kwargs_text, **options)
        self._add(spec, self._connection)
        return TaskRef(self._queue, spec.id, created=True)


class Batch:
    """Many tasks in one transaction; what ``with queue.batch() as batch`` gives."""

    def __init__(self, queue: Queue, cursor: Cursor | None) -> None:
        self._queue = queue
        self._cursor = cursor
        """Where full chunks are written as they come; None for a caller's connection, which gets all at the end."""
        self._specs: list[TaskSpec] = []
        self._is_open = True

    def options(self, **options: Any) -> TaskAdder:
        """Return an adder with options for tasks of this batch; see :meth:`queuedtask.Queue.options`.

        Raises InvalidTask for a connection: that is the batch's.
        """
        if "connection" in options:
            raise InvalidTask("connection: is given to the batch, not to single tasks of it")
        return TaskAdder(self._queue, self._keep).options(**options)

    def add_task(self, function: Callable[..., object] | str, /, *args: Any, **kwargs: Any) -> "TaskRef":
        """Add a task to the batch; see :meth:`queuedtask.Queue.add_task`. Its row comes with the batch."""
        return TaskAdder(self._queue, self._keep).add_task(function, *args, **kwargs)

    def _keep(self, spec: TaskSpec, connection: object) -> None:
        if not self._is_open:
            raise InvalidTask("a batch takes tasks inside its with block only")
        self._specs.append(spec)
        if self._cursor is not None and len(self._specs) >= BATCH_CHUNK:
            self._write(self._cursor)

    def _close(self, cursor: Cursor) -> None:
        self._is_open = False
        if self._specs:
            self._write(cursor)

    def _write(self, cursor: Cursor) -> None:
        store.add_many(cursor, self._specs, notify_channel=self._queue._notify_channel)
        self._specs = []


class TaskRef:
    """A task's id and its queue. Reading an attribute asks the database, in a transaction of its own.

    Every reading attribute raises TaskNotFound when the task's row is gone.
    """

    def __init__(self, queue: Queue, task_id: str, *, created: bool) -> None:
        self._queue = queue
        self.id = task_id
        self.created = created
        """Whether the call that returned this ref made the task."""

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

    def retry(self) -> None:
        """Send the ended task round again. Raises NotAllowed unless its state is final."""
        if not self._queue._requeue(Requeue(states=states.FINAL, ids=[self.id])):
            raise NotAllowed(
                f"task {self.id} is {self.state}: only one that is {', '.join(states.FINAL)} can be sent round again"
            )


# ------------------------------------------------------------------------------------------------ checking of options


def _checked_options(config: Config, **options: Any) -> dict[str, Any]:
    check: dict[str, Callable[[Any], Any]] = {
        "name": _checked_name,
        "channel": _checked_channel,
        "priority": lambda value: _checked_integer("priority", value, -(2**31)),
        "delay": lambda value: _seconds("delay", value),
        "run_at": _checked_run_at,
        "timeout": _checked_timeout,
        "max_retries": lambda value: _checked_integer("max_retries", value, 0),
        "context": lambda value: _checked_document("context", value, config.max_payload),
        "meta": lambda value: _checked_document("meta", value, config.max_payload),
    }
    for name in options:
        if name not in check:
            raise TypeError(f"there is no option {name!r}; there are {', '.join(check)}")
    return {name: check[name](value) for name, value in options.items() if value is not None}


def _checked_name(value: object) -> str | None:
    return _checked_text("name", value, 255)


def _checked_channel(value: object) -> str | None:
    return _checked_text("channel", value, 64)


def _checked_text(option: str, value: object, longest: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= longest or codec.clean_text(value) != value:
        raise InvalidTask(f"{option}={value!r}: must be a text of 1 to {longest} characters that PostgreSQL can store")
    return value


def _checked_integer(option: str, value: object, least: int) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
        raise InvalidTask(f"{option}={value!r}: must be a whole number from {least} to {2**31 - 1}")
    return value


def _checked_timeout(value: object) -> float | None:
    seconds = _seconds("timeout", value)
    if seconds == 0:
        raise InvalidTask("timeout=0: must be more than 0 seconds; None stands for the setting QUEUE_TASK_TIMEOUT")
    return seconds


def _seconds(option: str, value: object) -> float | None:
    if value is None:
        return None
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds <= 100 * 366 * 86400:
        raise InvalidTask(
            f"{option}={value!r}: must be a number of seconds or a timedelta, 0 or more, at most 100 years"
        )
    return float(seconds)


def _checked_run_at(value: object) -> datetime:
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise InvalidTask(
            f"run_at={value!r}: must be an aware datetime, such as datetime.now(timezone.utc) + timedelta(hours=1)"
        )
    return value


def _checked_document(option: str, value: object, max_bytes: int) -> str:
    if not isinstance(value, Mapping):
        raise InvalidTask(f"{option}={value!r}: must be a mapping")
    try:
        # The text of a list of one; what stands between its brackets is the document.
        return codec.encode_arguments((dict(value),), {}, max_bytes)[0][1:-1]
    except NotSerializable as error:
        raise NotSerializable(str(error).replace("args[0]", option, 1)) from None


def _checked_id(value: "str | UUID | TaskRef") -> str:
    if isinstance(value, TaskRef):
        return value.id
    try:
        return str(value if isinstance(value, UUID) else UUID(value))
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"{value!r} is not a task's id: a UUID is") from None
