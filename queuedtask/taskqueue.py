"""Queue: the object that people use. What it does stands in the modules that it hands on to."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from types import FunctionType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import Engine

from queuedtask import adding
from queuedtask.adding import Batch, Detour, KnownFunction, TaskAdder
from queuedtask.config import Config
from queuedtask.control import Control
from queuedtask.db import channels, control, measures, migrate, moves, purge, reads, schedules
from queuedtask.db.connections import Database
from queuedtask.db.control import Orderable, Requeue
from queuedtask.db.health import HealthCheck
from queuedtask.db.measures import Limits
from queuedtask.db.reads import WorkerRow
from queuedtask.db.schedules import ScheduleRow
from queuedtask.errors import ConfigError, InvalidTask, ScheduleNotFound
from queuedtask.model import codec, functions, limits, options, orders, pickles, schedule, states
from queuedtask.model.cron import Cron
from queuedtask.model.measures import Metrics
from queuedtask.model.orders import Order
from queuedtask.model.schedule import Declaration, Declarations, Schedule
from queuedtask.model.task import TaskSpec
from queuedtask.refs import Requeued, TaskRef, checked_id
from queuedtask.run.hooks import H, Hooks
from queuedtask.run.resolver import OPTIONS

if TYPE_CHECKING:
    from queuedtask.worker.beside import WorkerBeside

logger = logging.getLogger("queuedtask.queue")

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
F = TypeVar("F", bound=Callable[..., object])

CLEAR_BATCH = 10_000


class TaskFunction(Protocol[P, R_co]):
    """A function that ``@queue.task`` has decorated: callable as before, and added with ``delay``."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> TaskRef:
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
            if not isinstance(engine, Engine):
                raise TypeError(f"Queue(engine={engine!r}): must be a SQLAlchemy Engine")
            if engine.dialect.name == "postgresql" and engine.driver != "psycopg2":
                raise ConfigError(
                    f"Queue(engine=…): its driver is {engine.driver}, and must be psycopg2; that of a URL is of no "
                    "account"
                )
            arguments["database_url"] = engine.url.render_as_string(hide_password=False)
        elif database_url is not None:
            arguments["database_url"] = database_url
        if config is not None and not isinstance(config, Config):
            raise TypeError(f"Queue(config={config!r}): must be a Config, such as Config(max_workers=3)")
        self._work_on(Config.resolve(config, arguments=arguments), engine)
        self._known: WeakKeyDictionary[FunctionType, KnownFunction] = WeakKeyDictionary()
        self.declarations = Declarations()
        """What ``@queue.cron`` has declared, for workers."""
        self.hooks = Hooks()
        self._detour: Detour | None = None

    def _work_on(self, config: Config, engine: Engine | None = None) -> None:
        self.config = config
        self.database = self._open(engine)
        self._control = Control(self.database)
        self._health = HealthCheck(self.database.apart)

    @contextmanager
    def _moved_to(self, database_url: str) -> Iterator[None]:
        """Work on another database while the block runs: on a test's."""
        before = {name: getattr(self, name) for name in ("config", "database", "_control", "_health")}
        config = Config.resolve(self.config, arguments={"database_url": database_url}, environ={})
        config.listen_url = None
        self._work_on(config)
        try:
            yield
        finally:
            self.close()
            vars(self).update(before)

    def _itself(self) -> "Queue":
        """Return the queue that works; where one stands for those of several applications, the current one's."""
        return self

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

    def add_task(self, function: Callable[..., object] | str, /, *args: Any, **kwargs: Any) -> TaskRef:
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
    ) -> list[TaskRef]:
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
    ) -> TaskAdder:
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

    def batch(self, *, connection: object = None) -> AbstractContextManager[Batch]:
        """Return a context manager for adding many tasks quickly: all of them, or none when the block raises.

        Use ``batch.add_task(…)`` and ``batch.options(…).add_task(…)`` inside. The tasks are written in one transaction
        that commits at the end of the block, a thousand at a time as they come. With ``connection`` (see
        :meth:`options`) they are written at the end of the block, in one statement of the caller's transaction.

        Tasks with a unique key are written last, in the order of their keys, as if added one after the other.
        """
        if connection is None:
            connection = self._default_connection()
        return adding.batch(self, connection)

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

    def run_schedule(self, name: str, /, **kwargs: Any) -> TaskRef:
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

    def _add(self, spec: TaskSpec, connection: object) -> TaskRef:
        return adding.add(self, spec, connection)

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

    def get(self, task_id: "str | UUID | TaskRef") -> TaskRef:
        """Return the ref of an existing task. Raises TaskNotFound, and ValueError for what is no task's id."""
        ref = TaskRef(self, checked_id(task_id), created=False)
        ref.row()
        return ref

    def find(
        self,
        *,
        state: str | None = None,
        name: str | None = None,
        channel: str | None = None,
        limit: int | None = 50,
    ) -> list[TaskRef]:
        """Return refs of tasks, the newest first; what is None does not restrict, ``limit=None`` returns all."""
        if state is not None and state not in states.STATES:
            raise ValueError(f"state={state!r}: must be one of {', '.join(states.STATES)}")
        limit = _whole("limit", limit)
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
    ) -> Requeued:
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
            max_requeues=_whole("max_requeues", max_requeues),
            limit=_whole("limit", limit),
        )
        requeued, skipped = self._control.requeue(which)
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
    ) -> list[TaskRef]:
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
    ) -> list[TaskRef]:
        """Stop all tasks that fit and have not ended, as :meth:`TaskRef.stop` does; see :meth:`cancel`."""
        which = _orderable("stop", name=name, channel=channel, state=state, since=since, limit=limit)
        return self._give_all(orders.STOP, which)

    def _give_all(self, order: Order, which: Orderable) -> list[TaskRef]:
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
        limit=_whole("limit", limit),
    )


def _whole(what: str, value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError(f"{what}={value!r}: must be a whole number from 0 to {2**31 - 1}, or None")
    return int(value)


def _states(what: str, value: str | Sequence[str], allowed: Sequence[str]) -> tuple[str, ...]:
    given = (value,) if isinstance(value, str) else tuple(value)
    if not given or any(each not in allowed for each in given):
        raise ValueError(f"{what}={value!r}: must be of {', '.join(allowed)}")
    return given
