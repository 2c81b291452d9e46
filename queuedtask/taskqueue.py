"""Queue and TaskRef: adding tasks, asking for them, sending them round again."""

import json
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import FunctionType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import Engine

from queuedtask.config import Config
from queuedtask.control import Control
from queuedtask.db import adding, channels, control, measures, migrate, moves, purge, reads, schedules, unique
from queuedtask.db.callers import cursor_on, is_in_transaction
from queuedtask.db.connections import Database
from queuedtask.db.control import Orderable, Requeue
from queuedtask.db.health import HealthCheck
from queuedtask.db.measures import Limits
from queuedtask.db.reads import LogRow, TaskRow, WorkerRow
from queuedtask.db.schedules import ScheduleRow
from queuedtask.db.statement import Cursor
from queuedtask.errors import InvalidTask, NotAllowed, ScheduleNotFound, TaskNotFound, UnknownFunction
from queuedtask.model import codec, functions, limits, options, orders, pickles, schedule, states
from queuedtask.model.cron import Cron
from queuedtask.model.measures import Metrics
from queuedtask.model.options import TaskOptions
from queuedtask.model.orders import Order
from queuedtask.model.ranges import ranges
from queuedtask.model.schedule import Declaration, Declarations, Schedule
from queuedtask.model.task import Call, TaskSpec, new_id
from queuedtask.run.attempt import captured_context
from queuedtask.run.hooks import H, Hooks, NewTask
from queuedtask.run.resolver import OPTIONS

if TYPE_CHECKING:
    from queuedtask.worker.beside import WorkerBeside

logger = logging.getLogger("queuedtask.queue")

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
F = TypeVar("F", bound=Callable[..., object])

CLEAR_BATCH = 10_000
BATCH_CHUNK = 1000
RETRY_ATTEMPTS = 5
RETRY_INTERVAL = 0.05


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
        self._work_on(Config.resolve(config, arguments=arguments), engine)
        self._known: WeakKeyDictionary[FunctionType, _Known] = WeakKeyDictionary()
        self.declarations = Declarations()
        """What ``@queue.cron`` has declared, for workers."""
        self.hooks = Hooks()
        self._detour: Detour | None = None

    def _work_on(self, config: Config, engine: Engine | None = None) -> None:
        self.config = config
        self.database = self._open(engine)
        self._control = Control(self.database)
        self._health = HealthCheck(self.database.apart)

    def _open(self, engine: Engine | None) -> Database:
        return Database(self.config, engine)

    def __repr__(self) -> str:
        return f"<Queue {self.config.as_dict()['database_url']['value'] or 'embedded'}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a Queue is not sent along: make one inside the function, or import it there from its module")

    def close(self) -> None:
        """Close the queue's idle connections. An engine that you brought stays as it is."""
        self._control.close()
        self.database.close()

    # ---------------------------------------------------------------------------------------------------------- adding

    def add_task(self, function: Callable[..., object] | str, /, *args: Any, **kwargs: Any) -> "TaskRef":
        """Add a task that calls a function with these arguments, in a transaction of its own.

        The function is any importable one, ``def`` or ``async def``, or its path ``"module:qualname"``, which need
        not be importable here. With ``QUEUE_SECRET_KEY`` set, a local one (a lambda, a nested function, one that a
        script or a prompt defines) goes as a signed pickle. Arguments may be what JSON knows and tuple, datetime,
        date, time, timedelta, Decimal, UUID and bytes; they come back equal. Raises InvalidTask, before anything is
        written, for a function that no worker could reach, and for arguments that cannot be stored
        (NotSerializable, with their path).

        ``parent`` is the one keyword that the function does not get: the task waits until this task is done, or all of
        a list of them (refs or ids; of any transaction that is committed, or of this one). It is cancelled when one
        of them ends otherwise; see ``on_parent_failure`` of :meth:`options`. Raises ParentNotFound when one does not
        exist; the transaction stays usable.
        """
        return TaskAdder(self).add_task(function, *args, **kwargs)

    def add_range_tasks(
        self, function: Callable[..., object] | str, ids: Iterable[Any], chunk_size: int = 200
    ) -> list["TaskRef"]:
        """Add one task for each chunk of ids, in one transaction; each calls ``function(first, last)``.

        The ids are sorted, and each counts once; they are ints, texts, UUIDs, dates or datetimes, all of one kind. A
        task has those of them that lie between its first and its last one, both included: ``WHERE id BETWEEN …``. Texts
        are sorted by their code points: compare them with ``COLLATE "C"``. Without ids there is no task.

        Raises InvalidTask, before anything is written, for ids that have no common order and for a chunk_size below 1.
        """
        return TaskAdder(self).add_range_tasks(function, ids, chunk_size)

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
        backoff: str | Sequence[float | timedelta] | None = None,
        unique_key: str | None = None,
        on_conflict: str | None = None,
        isolation: str | None = None,
        concurrency_key: str | None = None,
        concurrency: int | None = None,
        fifo: bool | None = None,
        context: Mapping[str, object] | None = None,
        meta: Mapping[str, object] | None = None,
        parent: object = None,
        on_parent_failure: str | None = None,
        auto_remove: bool | None = None,
        connection: object = None,
    ) -> "TaskAdder":
        """Return an adder with options, for one or more tasks: ``queue.options(priority=10).add_task(…)``.

        ``name``: at most 255 characters, by default ``module.qualname``. ``channel``: at most 64 characters.
        ``priority``: larger is sooner. ``delay`` (seconds or a timedelta) or ``run_at`` (an aware datetime): not
        before then. ``timeout``: seconds. ``max_retries``: 3 means up to four attempts. ``backoff``: the time between
        them, ``"exponential"``, ``"linear"`` or a list of seconds (see :doc:`/retries`). ``context``, ``meta``:
        mappings that JSON can hold. ``concurrency_key``: of the tasks with the same one at most ``concurrency`` (1) run
        at a time, over all servers; with ``fifo=True`` one after another, in the order in which they were added.
        ``auto_remove``: the row goes seconds after the task is done, unless it has logged an error or a child of it has
        not ended; reading the ref raises TaskNotFound then. What is not given comes from ``@queue.task`` and then from
        the settings.

        ``parent``: see :meth:`add_task`. Given here, the keyword ``parent`` of ``add_task`` is the function's own.
        ``on_parent_failure``: ``"cancel"`` (the default) cancels the task, and all that waits for it, when a parent
        ends other than done; ``"run"`` runs it then as well, for what has to be cleared up in any case.

        ``unique_key``: a text of at most 255 characters that only one task has at a time among those that have not
        ended. ``on_conflict`` says what happens when there is one: ``"return"`` (its ref is returned), ``"raise"``
        (DuplicateTask is raised), ``"replace"`` or ``"debounce"`` (it is changed to what is added now, if it has not
        begun). See :doc:`/unique`.

        ``isolation="process"``: it runs alone in a process, as what has lost one does; ``"thread"`` is the default.

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
            backoff=backoff,
            unique_key=unique_key,
            on_conflict=on_conflict,
            isolation=isolation,
            concurrency_key=concurrency_key,
            concurrency=concurrency,
            fifo=fifo,
            context=context,
            meta=meta,
            parent=parent,
            on_parent_failure=on_parent_failure,
            auto_remove=auto_remove,
            connection=connection,
        )

    @contextmanager
    def batch(self, *, connection: object = None) -> Iterator["Batch"]:
        """Return a context manager for adding many tasks quickly: all of them, or none when the block raises.

        Use ``batch.add_task(…)`` and ``batch.options(…).add_task(…)`` inside. The tasks are written in one transaction
        that commits at the end of the block, a thousand at a time as they come. With ``connection`` (see
        :meth:`options`) they are written at the end of the block, in one statement of the caller's transaction.

        Tasks with a unique key are written last, in the order of their keys, as if added one after the other.
        """
        if connection is None:
            connection = self._default_connection()
        if self._detour is not None:
            batch = Batch(self, None, self._detour)
            with batch._taking():
                yield batch
            batch._close_detour()
        elif connection is not None:
            cursor = cursor_on(connection)
            batch = Batch(self, None)
            with batch._taking():
                yield batch
            batch._close(cursor, connection)
        else:
            with self.database.transaction() as cursor:
                batch = Batch(self, cursor)
                with batch._taking():
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
        on_parent_failure: str | None = None,
        backoff: str | Sequence[float | timedelta] | Callable[[int], float | timedelta] | None = None,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] | None = None,
        give_up_on: type[BaseException] | tuple[type[BaseException], ...] | None = None,
        unique_key: str | None = None,
        on_conflict: str | None = None,
        isolation: str | None = None,
        concurrency_key: str | None = None,
        concurrency: int | None = None,
        fifo: bool | None = None,
        auto_remove: bool | None = None,
    ) -> Callable[[Callable[P, R_co]], TaskFunction[P, R_co]]:
        """Declare a function's default options; it stays the function it was, and gets ``.delay(…)``.

        The worker knows them as well, for tasks that were added by path. See :meth:`options` for their meaning.
        ``backoff`` may be a function here: of the number of failures, 1 at first, which returns seconds. ``retry_on``:
        exceptions after which the task is tried again, and no others; ``give_up_on``: those after which it is not,
        whatever ``retry_on`` says.
        """
        declared = options.declared(
            {
                "name": name,
                "channel": channel,
                "priority": priority,
                "timeout": timeout,
                "max_retries": max_retries,
                "on_parent_failure": on_parent_failure,
                "backoff": backoff,
                "retry_on": retry_on,
                "give_up_on": give_up_on,
                "unique_key": unique_key,
                "on_conflict": on_conflict,
                "isolation": isolation,
                "concurrency_key": concurrency_key,
                "concurrency": concurrency,
                "fifo": fifo,
                "auto_remove": auto_remove,
            }
        )

        def declare(function: Callable[P, R_co]) -> TaskFunction[P, R_co]:
            # What the class hands out later is the function inside, and so does a worker find it.
            inner: Any = function.__func__ if isinstance(function, staticmethod) else function

            def delay(*args: P.args, **kwargs: P.kwargs) -> TaskRef:
                return self.add_task(inner, *args, **kwargs)

            try:
                setattr(inner, OPTIONS, declared)
                setattr(delay, pickles.LEFT_OUT, True)
                inner.delay = delay
            except AttributeError:
                raise InvalidTask(f"@queue.task: {function!r} takes no attributes; wrap it in a def") from None
            return cast(TaskFunction[P, R_co], function)

        return declare

    # ------------------------------------------------------------------------------------------------------- schedules

    def cron(
        self,
        line: str,
        *,
        timezone: str = "UTC",
        misfire: str = schedule.LAST,
        overlap: str = schedule.SKIP,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        name: str | None = None,
        channel: str | None = None,
        priority: int | None = None,
        timeout: float | None = None,
        max_retries: int | None = None,
        auto_remove: bool | None = None,
    ) -> Callable[[F], F]:
        """Declare that a function is to run by the clock; it stays the function it was, and may have several of these.

        ``line``: five fields of cron, six with the seconds first, or ``@daily`` and the like. ``timezone``: a name such
        as ``Europe/Paris``. ``misfire``: what becomes of ticks that no worker was there for: ``skip`` drops them,
        ``last`` makes the latest up, ``all`` every one. ``overlap``: ``skip`` adds no task while the last one has not
        ended (under ``all`` the tick waits instead of being left out), ``allow`` does. ``args``, ``kwargs``: what the
        function is called with. ``name``: the schedule's and its tasks', by default ``module.qualname``; each schedule
        needs one of its own. The others are those of :meth:`options`.

        A worker writes the schedule into the database when it starts, if the code says something else than it said
        before. Raises InvalidTask for what cannot be.
        """
        ticks = Cron(line, timezone)
        schedule.checked_policy("misfire", misfire, schedule.MISFIRE)
        schedule.checked_policy("overlap", overlap, schedule.OVERLAP)
        given = options.checked(
            {
                "name": name,
                "channel": channel,
                "priority": priority,
                "timeout": timeout,
                "max_retries": max_retries,
                "auto_remove": auto_remove,
            },
            max_payload=self.config.max_payload,
        )
        called_with = tuple(args), dict(kwargs or {})

        def declare(function: F) -> F:
            inner: Any = function.__func__ if isinstance(function, staticmethod) else function
            default = functions.default_name(":".join(functions.check_declared(inner)))
            functions.check_call(inner, *called_with)
            codec.encode_arguments(*called_with, self.config.max_payload)

            def spec() -> TaskSpec:
                return TaskAdder(self, **given).spec_of(inner, *called_with)

            self.declarations.declare(Declaration(name or default, inner, ticks, misfire, overlap, spec))
            return function

        return declare

    def schedules(self) -> list[ScheduleRow]:
        """Return the schedules that stand in the database, by name."""
        with self.database.transaction() as cursor:
            return schedules.list_schedules(cursor)

    def run_schedule(self, name: str, /, **kwargs: Any) -> "TaskRef":
        """Add a task of a schedule now, beside its ticks, paused or not; with these keyword arguments over its own.

        Raises ScheduleNotFound and what :meth:`add_task` raises.
        """
        row: ScheduleRow | Schedule
        try:
            with self.database.transaction() as cursor:
                row = schedules.lock(cursor, name)
        except ScheduleNotFound:
            # It may be declared here, and no worker has started since.
            if name not in self.declarations:
                raise
            row = self.declarations[name].schedule()
        args, own = codec.decode_arguments(row.args, row.kwargs)
        arguments = codec.encode_arguments(args, own | kwargs, self.config.max_payload)
        spec = schedule.task_of(name, row.function, *arguments, json.loads(row.options), None)
        return self._add(self.hooks.announced(spec), self._default_connection())

    def pause_schedule(self, name: str) -> None:
        """Let a schedule's ticks pass until it is resumed, whatever is deployed. Raises ScheduleNotFound."""
        self._change_schedule(name, is_paused=True)

    def resume_schedule(self, name: str) -> None:
        """Let a paused schedule go on with its next tick; what passed is not made up. Raises ScheduleNotFound."""
        self._change_schedule(name, is_paused=False)

    def edit_schedule(self, name: str, *, cron: str | None = None, timezone: str | None = None) -> None:
        """Give a schedule another line or time zone, until the code says something else than it does now.

        Raises ScheduleNotFound, and InvalidTask for what cannot be.
        """
        self._change_schedule(name, cron=cron, timezone=timezone)

    def remove_schedule(self, name: str) -> None:
        """Delete a schedule; its tasks stay. Raises ScheduleNotFound.

        One that the code declares comes back with the next worker that starts.
        """
        with self.database.transaction() as cursor:
            schedules.remove(cursor, name)

    def _change_schedule(self, name: str, **changes: Any) -> None:
        with self.database.transaction() as cursor:
            schedules.change(cursor, name, **changes, notify_channel=self.config.wake_channel)

    # ----------------------------------------------------------------------------------------------------------- hooks

    def on_pre_create(self, hook: H) -> H:
        """Register a hook that is called with each task that is about to be added; a decorator.

        ``hook(spec)`` gets a :class:`~queuedtask.run.hooks.NewTask`, in the caller's stack and before anything is
        written. It may set options, and what it raises goes to the caller, whose task is not added then.

        Hooks of a kind are called in the order of their registration, and may be ``async def``. Raises TypeError for a
        hook that does not take these arguments.
        """
        return self.hooks.add("on_pre_create", hook)

    def on_post_create(self, hook: H) -> H:
        """Register a hook that is called with the ref of each task that has been added; a decorator.

        ``hook(ref)`` is called after the INSERT: on a connection of yours before you commit, in a batch when its chunk
        has been written. What it raises is logged, and the task stays added.
        """
        return self.hooks.add("on_post_create", hook)

    def on_pre_run(self, hook: H) -> H:
        """Register a hook that is called before each attempt, in its slot; a decorator.

        ``hook(task)`` gets a :class:`~queuedtask.run.hooks.TaskView`. What it raises fails the attempt, as if the task
        had raised it: ``Retry`` and ``Cancel`` too. It counts into the task's timeout.
        """
        return self.hooks.add("on_pre_run", hook)

    def on_post_run(self, hook: H) -> H:
        """Register a hook that is called after each attempt, in its slot, however it has ended; a decorator.

        ``hook(task, result, error)`` gets what the task returned, or the exception that ended it: TaskTimeout when it
        timed out, Interrupted when its worker must give it back. What it raises is logged, and changes nothing about
        the attempt. It is not interrupted; one that does not end within the grace after the attempt's deadline is given
        up, and the attempt with it. It is not called when the process was killed, or the attempt given up.
        """
        return self.hooks.add("on_post_run", hook)

    def around_run(self, hook: H) -> H:
        """Register a hook round each attempt, in its slot; a decorator.

        ``hook(task)`` is a generator function with one yield, at which the other hooks and the task run and the task's
        error is raised, or it returns a context manager; either may be asynchronous. What it raises is logged, and
        neither that nor swallowing the error changes how the attempt ends. Context variables that it sets are there in
        the task. Up to the yield it counts into the task's timeout; after it, it is like :meth:`on_post_run`.
        """
        return self.hooks.add("around_run", hook)

    # ----------------------------------------------------------------------------------------------------- the database

    def _default_connection(self) -> object:
        """Return the connection for tasks that are added without one; None for a transaction of their own.

        A framework's queue has the framework's.
        """
        return None

    def _add(self, spec: TaskSpec, connection: object) -> "TaskRef":
        if self._detour is not None:
            ref = self._detour.ref(spec)
            self._detour.run([ref])
            return ref
        if connection is None:
            with self.database.autocommit() as cursor:
                ref = self._write_one(cursor, spec, None)
        else:
            ref = self._write_one(cursor_on(connection), spec, connection)
        logger.debug("%s %s: %s", spec.name, ref.id, "added" if ref.created else "has its unique key already")
        if self.hooks.post_create and ref.created:
            self.hooks.added([ref])
        return ref

    def _write_one(self, cursor: Cursor, spec: TaskSpec, connection: object) -> "TaskRef":
        if spec.unique_key is None:
            self._write([spec], cursor)
            return TaskRef(self, spec.id, created=True)
        in_transaction = connection is not None and is_in_transaction(connection)
        held = unique.add(cursor, spec, notify_channel=self.config.wake_channel, in_transaction=in_transaction)
        return TaskRef(self, held.id, created=held.created)

    def _write(self, specs: Sequence[TaskSpec], cursor: Cursor) -> None:
        """Insert tasks in one statement."""
        if any(spec.parents for spec in specs):
            adding.add_family(cursor, specs, notify_channel=self.config.wake_channel)
        elif len(specs) == 1:
            adding.add(cursor, specs[0], notify_channel=self.config.wake_channel)
        else:
            adding.add_many(cursor, specs, notify_channel=self.config.wake_channel)

    # ---------------------------------------------------------------------------------------------------- working here

    def start_worker(self, slots: int = 2) -> "WorkerBeside":
        """Run tasks in this process, in threads beside what it does itself; for development and small sites.

        It returns at once, begins a second later, and ends in order with the process. Call it when the application is
        made, as the last thing; a second call returns the same worker. Raises ValueError for a number of slots that
        cannot be, NotAllowed for another one than it was started with.

        In servers that fork, each process that serves gets slots and a row of its own, and the one that forks none;
        processes that ``multiprocessing`` forks, and those that only restart another one when files change, get none
        either. See :doc:`/wsgi`.

        It is less than ``queuedtask worker``: nothing supervises it. Signals are the server's. It has no last rung of
        the ladder: a task that cannot be interrupted after its timeout is given up and its thread left behind, and with
        too many of those (``QUEUE_MAX_STUCK_SLOTS``) it ends. A call that holds the interpreter's lock for longer than
        the lease lets others take its tasks for lost.
        """
        from queuedtask.worker import beside  # the one import upwards

        return beside.start(self, slots)

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

    def health(self, *, timeout: float = 5.0) -> dict[str, Any]:
        """Return how the queue is, within so many seconds, whatever state its database is in; raises nothing.

        ``{"status": "healthy" | "degraded" | "unhealthy", "reason": None | "no_active_workers" | …, "error": a text for
        people or None, "workers": how many live, None where that is not known}``. See :doc:`/monitoring` for the
        reasons.
        """
        return self._health.ask(timeout)

    def metrics(self) -> Metrics:
        """Return the figures of the queue: of all tasks, and for each channel and name.

        Up to 100,000 tasks of a kind are counted; more are estimated and marked as such, so that it costs the same
        beside a million rows. Raises DatabaseUnavailable and SchemaOutdated.
        """
        with self.database.apart.transaction() as cursor:
            migrate.require_usable(cursor)
            return measures.read_metrics(cursor, Limits.of(self.config))

    # ----------------------------------------------------------------------------------------------------- controlling

    def retry_failed(
        self,
        *,
        since: float | timedelta | None = None,
        name: str | None = None,
        channel: str | None = None,
        state: str = states.FAILED,
        limit: int | None = None,
        max_requeues: int | None = 3,
    ) -> "Requeued":
        """Send failed tasks round again, in a transaction of its own, and return their refs.

        ``since``: those that failed at most so many seconds (or a timedelta) ago. ``state``: those that ended
        otherwise, as *cancelled* for example. ``max_requeues``: leave alone what was already sent round so often, so
        that a call from cron never loops a task that always fails; None for no limit. Two calls at once share the work.

        A task whose unique key another one has by now is left alone; the list's ``skipped`` says how many were.
        """
        which = Requeue(
            states=_states("state", state, states.FINAL),
            name=name,
            channel=channel,
            since=None if since is None else options.seconds("since", since),
            max_requeues=max_requeues,
            limit=limit,
        )
        requeued, skipped = self._requeue(which)
        if skipped:
            logger.info("%s failed tasks were not sent round again: others have their unique keys", skipped)
        return Requeued((TaskRef(self, task_id, created=False) for task_id in requeued), skipped)

    def pause(self, channel: str | None = None) -> None:
        """Have no more tasks of a channel claimed, on any server; without a channel, none at all.

        What a worker has claimed already runs on. Tasks can still be added; they wait for :meth:`resume`.
        """
        with self.database.transaction() as cursor:
            channels.pause(cursor, limits.EVERYTHING if channel is None else options.channel_name(channel))

    def resume(self, channel: str | None = None) -> None:
        """Undo :meth:`pause`; a limit of 0, which is a pause too, becomes none.

        Without a channel this is what :meth:`pause` without one did: channels that were paused by name stay so.
        """
        with self.database.transaction() as cursor:
            channels.resume(cursor, limits.EVERYTHING if channel is None else options.channel_name(channel))
            moves.notify(cursor, self.config.wake_channel)

    def cancel(
        self,
        *,
        name: str | None = None,
        channel: str | None = None,
        state: str | Sequence[str] | None = None,
        since: float | timedelta | None = None,
        limit: int | None = None,
    ) -> list["TaskRef"]:
        """Cancel all tasks that fit and have not ended, as :meth:`TaskRef.cancel` does, and return their refs.

        ``state``: one or some of waiting, enqueued and doing; all three stand for everything. ``since``: those that
        were added at most so many seconds (or a timedelta) ago. ``limit``: at most so many, the oldest ones first. At
        least one condition besides it has to be given. It works in bounded transactions: others see it bit by bit.
        """
        which = _orderable("cancel", name=name, channel=channel, state=state, since=since, limit=limit)
        return self._give_all(orders.CANCEL, which)

    def stop(
        self,
        *,
        name: str | None = None,
        channel: str | None = None,
        state: str | Sequence[str] | None = None,
        since: float | timedelta | None = None,
        limit: int | None = None,
    ) -> list["TaskRef"]:
        """Stop all tasks that fit and have not ended, as :meth:`TaskRef.stop` does; see :meth:`cancel`."""
        which = _orderable("stop", name=name, channel=channel, state=state, since=since, limit=limit)
        return self._give_all(orders.STOP, which)

    def _give_all(self, order: Order, which: Orderable) -> list["TaskRef"]:
        return [TaskRef(self, task_id, created=False) for task_id in self._control.give_all(order, which)]

    def clear(self) -> int:
        """Delete every pending task, descendants included, in bounded transactions; return how many."""
        cleared = 0
        while True:
            with self.database.transaction() as cursor:
                count = control.clear_pending(cursor, limit=CLEAR_BATCH)
            cleared += count
            if count < CLEAR_BATCH:
                return cleared

    def purge(self, *, older_than: float | timedelta | None = None, states: str | Iterable[str] | None = None) -> int:
        """Delete tasks that have ended, with their logs, in short transactions; return how many.

        ``older_than``: those that ended at least so many seconds (or a timedelta) ago; by default those that were kept
        for as long as ``QUEUE_RETENTION_DAYS`` says, which workers delete by themselves. ``states``: one or more of
        done, failed, cancelled and stopped; by default all. A task with a child that has not ended is left, and so is
        what somebody else has locked.
        """
        return purge.remove_all(self.database.transaction, keep_for(self.config, older_than, states))

    def _requeue(self, which: Requeue) -> tuple[list[str], int]:
        """Return what was sent round again, and how many were not because others have their unique keys."""

        def requeue(cursor: Cursor) -> tuple[list[str], int]:
            requeued = control.requeue(cursor, which)
            if requeued:
                moves.notify(cursor, self.config.wake_channel)
            return requeued, control.count_blocked(cursor, which)

        return self.database.in_transaction(requeue)


def keep_for(
    config: Config, older_than: float | timedelta | None = None, only: str | Iterable[str] | None = None
) -> dict[str, float]:
    """Return for how many seconds tasks are kept after their end, by state, for a purge with these conditions."""
    wanted = states.FINAL if only is None else (only,) if isinstance(only, str) else tuple(only)
    if wrong := [state for state in wanted if state not in states.FINAL]:
        raise ValueError(
            f"states={wrong[0]!r}: only ended tasks are deleted; give {', '.join(states.FINAL)} or several"
        )
    seconds = None if older_than is None else options.seconds("older_than", older_than)
    return {state: config.retention[state] if seconds is None else seconds for state in wanted}


class Requeued(list["TaskRef"]):
    """Refs of the tasks that were sent round again."""

    def __init__(self, refs: Iterable["TaskRef"], skipped: int) -> None:
        super().__init__(refs)
        self.skipped = skipped
        """How many were left alone because another task has their unique key."""


class Detour(Protocol):
    """Takes the tasks that are added to a Queue, instead of its database; the testing kit has one."""

    def ref(self, spec: TaskSpec) -> "TaskRef":
        """Return what stands for a task that is to be run."""

    def run(self, refs: "Sequence[TaskRef]") -> None:
        """Run tasks, in their order."""


class Adder(Protocol):
    """Where a :class:`TaskAdder` puts the tasks that it makes."""

    def __call__(self, spec: TaskSpec, connection: object) -> "TaskRef": ...


class _Known:
    """What has been found out about a function of a module: the same one is added thousands of times."""

    __slots__ = ("_function", "_namespace", "_options", "declared", "path")

    def __init__(
        self, function: FunctionType, path: str, declared: dict[str, Any], own_options: TaskOptions | None
    ) -> None:
        self._function = weakref.ref(function)
        self._namespace = function.__globals__
        self._options = own_options
        self.path = path
        self.declared = declared

    def holds(self) -> bool:
        """Tell whether its module still has it under its name, with the same options."""
        function = self._function()
        return (
            function is not None
            and self._namespace.get(function.__name__) is function
            and getattr(function, OPTIONS, None) is self._options
        )


class TaskAdder:
    """A queue with options; what ``queue.options(…)`` returns. Immutable, may be kept and used again."""

    def __init__(self, queue: Queue, add: Adder | None = None, connection: object = None, **given: Any) -> None:
        self._queue = queue
        self._add = add or queue._add
        self._connection = connection
        self._given = given
        self._known: WeakKeyDictionary[FunctionType, _Known] = queue._known

    def options(self, *, connection: object = None, parent: object = None, **given: Any) -> "TaskAdder":
        """Return an adder with these options besides the ones given before; see :meth:`queuedtask.Queue.options`."""
        if connection is not None:
            cursor_on(connection)  # refuses what is none
        merged = self._given | options.checked(given, max_payload=self._queue.config.max_payload)
        if parent is not None:
            merged["parents"] = _parents(parent)
        options.check_together(merged)
        return TaskAdder(self._queue, self._add, self._connection if connection is None else connection, **merged)

    def add_task(self, function: Callable[..., object] | str, /, *args: Any, **kwargs: Any) -> "TaskRef":
        """Add a task with these options; see :meth:`queuedtask.Queue.add_task`."""
        # With options(parent=…) the keyword is free for the function.
        has_parent = "parent" in kwargs and "parents" not in self._given
        own_parents = {"parents": _parents(kwargs.pop("parent"))} if has_parent else {}
        called = self._called(function, args, kwargs)
        given = called.options | self._given | own_parents
        if "name" not in given:
            given["name"] = functions.default_name(called.path)
        hooks, task_id = self._queue.hooks, new_id()
        inherited = captured_context()
        if inherited is not None:
            given["context"] = codec.merge(self._checked_inheritance(inherited), given.get("context") or "{}")
        if hooks.pre_create or hooks.around_create:
            new = NewTask(task_id, called, given, max_payload=self._queue.config.max_payload)
            hooks.adding(new)
            given.setdefault("name", functions.default_name(called.path))
            with hooks.creating(new) as made:
                made.append(self._write(called, given, task_id, inherited))
            ref: TaskRef = made[0]
            return ref
        return self._write(called, given, task_id, inherited)

    def _write(self, called: Call, given: dict[str, Any], task_id: str, inherited: str | None) -> "TaskRef":
        if inherited is not None:
            # After the hooks, which may have replaced the meta: what it hands down itself is not theirs to change.
            handed_down = f'{{"{options.INHERITED}":{inherited}}}'
            given["meta"] = codec.merge(given.get("meta") or "{}", handed_down)
        is_in_batch, connection = self._add != self._queue._add, self._connection
        if connection is None and not is_in_batch:
            connection = self._queue._default_connection()
        ref = self._add(self._spec(called, given, task_id), connection)
        # On a caller's connection, or in a batch, it may not be there yet.
        ref._may_be_uncommitted = connection is not None or is_in_batch
        return ref

    def spec_of(self, function: Callable[..., object], args: Sequence[Any], kwargs: Mapping[str, Any]) -> TaskSpec:
        """Return the task that :meth:`add_task` would add.

        It has no unique key, and is made without the hooks and without the context of this thread.
        """
        called = self._called(function, tuple(args), dict(kwargs))
        if called.local is not None:
            functions.path_of(called.local)  # raises: a pickle is signed for one task, a schedule makes many
        merged = called.options | self._given
        given = {name: value for name, value in merged.items() if name not in ("unique_key", "on_conflict")}
        given.setdefault("name", functions.default_name(called.path))
        return self._spec(called, given, new_id())

    def _called(self, function: Callable[..., object] | str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Find out how a worker reaches the function, and serialise the arguments."""
        config, local = self._queue.config, None
        known = self._known.get(function) if isinstance(function, FunctionType) else None
        if known is not None and known.holds():
            path, declared = known.path, known.declared
        elif isinstance(function, str):
            path, declared = functions.check_path(function), {}
        else:
            inner, args, merged = functions.unwrap_partial(function, args, kwargs)
            kwargs = dict(merged)
            own_options = getattr(inner, OPTIONS, None)
            declared = options.storable(own_options or TaskOptions())
            try:
                path = functions.path_of(inner)
                if inner is function and isinstance(inner, FunctionType) and "." not in inner.__qualname__:
                    self._known[inner] = _Known(inner, path, declared, own_options)
            except UnknownFunction as error:
                path, local = pickles.admit(inner, error, config.secret_key), inner
        texts = codec.encode_arguments(args, kwargs, config.max_payload)
        return Call(path, *texts, declared, local)

    def _spec(self, called: Call, given: dict[str, Any], task_id: str) -> TaskSpec:
        config, pickled = self._queue.config, None
        fields = options.as_fields(given, called.options)
        if called.local is not None:
            if fields.get("on_conflict") in options.REPLACING:
                raise InvalidTask("a local function cannot replace a task: it is signed for the id of its own")
            pickled = pickles.pack(
                called.local,
                config.secret_key,
                task_id=task_id,
                name=called.path,
                arguments=(called.args, called.kwargs),
                max_payload=config.max_payload,
            )
        return TaskSpec(
            id=task_id,
            function=called.path,
            args=called.args,
            kwargs=called.kwargs,
            pickled_function=pickled,
            **fields,
        )

    def _checked_inheritance(self, inherited: str) -> str:
        max_payload = self._queue.config.max_payload
        if len(inherited) > max_payload:
            raise InvalidTask(
                f"what set_context() has set outside a task is copied into each task, and has {len(inherited):,} "
                f"characters: at most QUEUE_MAX_PAYLOAD = {max_payload:,} are allowed"
            )
        return inherited

    def add_range_tasks(
        self, function: Callable[..., object] | str, ids: Iterable[Any], chunk_size: int = 200
    ) -> list["TaskRef"]:
        """Add a task with these options for each chunk of ids; see :meth:`queuedtask.Queue.add_range_tasks`."""
        chunks = ranges(ids, chunk_size)
        if not chunks:
            return []
        if self._add != self._queue._add:
            return [self.add_task(function, first, last) for first, last in chunks]
        with self._queue.batch(connection=self._connection) as batch:
            adder = TaskAdder(self._queue, batch._keep, **self._given)
            return [adder.add_task(function, first, last) for first, last in chunks]


class Batch:
    """Many tasks in one transaction; what ``with queue.batch() as batch`` gives."""

    def __init__(self, queue: Queue, cursor: Cursor | None, detour: Detour | None = None) -> None:
        self._queue = queue
        self._detour = detour
        self._detoured: list[TaskRef] = []
        self._cursor = cursor
        """Where full chunks are written as they come; None for a caller's connection, which gets all at the end."""
        self._specs: list[TaskSpec] = []
        self._keyed: list[tuple[TaskSpec, _KeyedRef]] = []
        """Tasks with unique keys: kept to the end, to be written in the order of the keys."""
        self._adder = TaskAdder(queue, self._keep)
        self._is_open = True

    def options(self, **given: Any) -> TaskAdder:
        """Return an adder with options for tasks of this batch; see :meth:`queuedtask.Queue.options`.

        Raises InvalidTask for a connection: that is the batch's.
        """
        if "connection" in given:
            raise InvalidTask("connection: is given to the batch, not to single tasks of it")
        return self._adder.options(**given)

    def add_task(self, function: Callable[..., object] | str, /, *args: Any, **kwargs: Any) -> "TaskRef":
        """Add a task to the batch; see :meth:`queuedtask.Queue.add_task`. Its row comes with the batch."""
        return self._adder.add_task(function, *args, **kwargs)

    def add_range_tasks(
        self, function: Callable[..., object] | str, ids: Iterable[Any], chunk_size: int = 200
    ) -> list["TaskRef"]:
        """Add a task to the batch for each chunk of ids; see :meth:`queuedtask.Queue.add_range_tasks`."""
        return self._adder.add_range_tasks(function, ids, chunk_size)

    def _keep(self, spec: TaskSpec, connection: object) -> "TaskRef":
        if not self._is_open:
            raise InvalidTask("a batch takes tasks inside its with block only")
        if self._detour is not None:
            self._detoured.append(self._detour.ref(spec))
            return self._detoured[-1]
        if spec.unique_key is not None:
            ref = _KeyedRef(self._queue, self._find_holders)
            self._keyed.append((spec, ref))
            return ref
        self._specs.append(spec)
        if self._cursor is not None and len(self._specs) >= BATCH_CHUNK:
            self._write(self._cursor)
        return TaskRef(self._queue, spec.id, created=True)

    @contextmanager
    def _taking(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._is_open = False

    def _close(self, cursor: Cursor, connection: object = None) -> None:
        if not self._keyed:
            self._write(cursor)
            return
        with unique.atomically(cursor, in_transaction=connection is None or is_in_transaction(connection)):
            self._write(cursor)
            self._write_keyed(cursor)

    def _close_detour(self) -> None:
        assert self._detour is not None
        self._detour.run(self._detoured)

    def _write(self, cursor: Cursor) -> None:
        if not self._specs:
            return
        self._queue._write(self._specs, cursor)
        written, self._specs = self._specs, []
        if self._queue.hooks.post_create:
            self._queue.hooks.added(TaskRef(self._queue, spec.id, created=True) for spec in written)

    def _write_keyed(self, cursor: Cursor) -> None:
        keyed, self._keyed = self._keyed, []
        found = unique.add_many(cursor, [spec for spec, _ in keyed], notify_channel=self._queue.config.wake_channel)
        for (_, ref), held in zip(keyed, found, strict=True):
            ref.held = held
        if self._queue.hooks.post_create:
            self._queue.hooks.added(ref for _, ref in keyed if ref.created)

    def _find_holders(self) -> None:
        """Write what there is, because somebody asks for the id of a task with a unique key."""
        if self._cursor is None or not self._is_open:
            raise InvalidTask("the id of a task with a unique_key is known when its batch has been written")
        with unique.atomically(self._cursor, in_transaction=True):
            self._write(self._cursor)
            self._write_keyed(self._cursor)


class TaskRef:
    """A task's id and its queue. Reading an attribute asks the database, in a transaction of its own.

    Every reading attribute raises TaskNotFound when the task's row is gone.
    """

    def __init__(self, queue: Queue, task_id: str, *, created: bool) -> None:
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
            requeued, skipped = self._queue._requeue(Requeue(states=states.FINAL, ids=[self.id]))
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


class _KeyedRef(TaskRef):
    """The ref of a task with a unique key in a batch: which task it is turns out when it is written."""

    def __init__(self, queue: Queue, find: Callable[[], None]) -> None:
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


def _orderable(
    verb: str,
    *,
    name: str | None,
    channel: str | None,
    state: str | Sequence[str] | None,
    since: float | timedelta | None,
    limit: int | None,
) -> Orderable:
    if all(given is None for given in (name, channel, state, since)):
        raise ValueError(
            f"queue.{verb}(): give a condition; state={Orderable().states!r} for every task that has not ended"
        )
    return Orderable(
        states=Orderable().states if state is None else _states("state", state, Orderable().states),
        name=name,
        channel=channel,
        since=None if since is None else options.seconds("since", since),
        limit=limit,
    )


def _states(what: str, value: str | Sequence[str], allowed: Sequence[str]) -> tuple[str, ...]:
    given = (value,) if isinstance(value, str) else tuple(value)
    if not given or any(each not in allowed for each in given):
        raise ValueError(f"{what}={value!r}: must be of {', '.join(allowed)}")
    return given


def _parents(given: object) -> tuple[str, ...]:
    """Return the ids of the parents that are given: one, several, or none; each once."""
    if given is None:
        return ()
    several = given if isinstance(given, list | tuple | set | frozenset) else [given]
    try:
        return tuple(dict.fromkeys(_checked_id(parent) for parent in several))
    except ValueError as error:
        raise InvalidTask(f"parent: {error}; give a ref, an id or a list of them") from None


def _checked_id(value: object) -> str:
    if isinstance(value, TaskRef):
        return value.id
    try:
        return str(value if isinstance(value, UUID) else UUID(cast(str, value)))
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"{value!r} is not a task's id: a UUID is") from None
