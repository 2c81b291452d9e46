"""Adding tasks: what a call says, checked and made into a TaskSpec, and where it is written.

``db/adding`` has the SQL; ``db/unique`` that of tasks with a unique key.
"""

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from queuedtask.config import Config
from queuedtask.db import adding, unique
from queuedtask.db.callers import cursor_on, is_in_transaction
from queuedtask.db.statement import Cursor
from queuedtask.errors import InvalidTask, UnknownFunction
from queuedtask.model import codec, functions, options, pickles
from queuedtask.model.options import TaskOptions
from queuedtask.model.ranges import ranges
from queuedtask.model.task import Call, TaskSpec, new_id
from queuedtask.refs import HasTasks, KeyedRef, TaskRef, parent_ids
from queuedtask.run.attempt import captured_context
from queuedtask.run.hooks import Hooks, NewTask
from queuedtask.run.resolver import OPTIONS

logger = logging.getLogger("queuedtask.queue")

CHUNK = 1000
"""Tasks of a batch that are written in one statement."""


class KnownFunction:
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


class Detour(Protocol):
    """Takes the tasks that are added to a Queue, instead of its database; the testing kit has one."""

    def ref(self, spec: TaskSpec) -> TaskRef:
        """Return what stands for a task that is to be run."""

    def run(self, refs: Sequence[TaskRef]) -> None:
        """Run tasks, in their order."""


class TakesTasks(HasTasks, Protocol):
    """What adding needs of a queue."""

    config: Config
    hooks: Hooks
    _known: WeakKeyDictionary[FunctionType, KnownFunction]
    _detour: Detour | None

    def _default_connection(self) -> object: ...

    def _add(self, spec: TaskSpec, connection: object) -> TaskRef: ...

    def batch(self, *, connection: object = None) -> AbstractContextManager["Batch"]: ...


class Adder(Protocol):
    """Where a :class:`TaskAdder` puts the tasks that it makes."""

    def __call__(self, spec: TaskSpec, connection: object) -> TaskRef: ...


class TaskAdder:
    """A queue with options; what ``queue.options(…)`` returns. Immutable, may be kept and used again."""

    def __init__(self, queue: TakesTasks, add: Adder | None = None, connection: object = None, **given: Any) -> None:
        self._queue = queue
        self._add = add or queue._add
        self._connection = connection
        self._given = given
        self._known: WeakKeyDictionary[FunctionType, KnownFunction] = queue._known

    def options(self, *, connection: object = None, parent: object = None, **given: Any) -> "TaskAdder":
        """Return an adder with these options besides the ones given before; see :meth:`queuedtask.Queue.options`."""
        if connection is not None:
            cursor_on(connection)  # refuses what is none
        merged = self._given | options.checked(given, max_payload=self._queue.config.max_payload)
        if parent is not None:
            merged["parents"] = parent_ids(parent)
        options.check_together(merged)
        return TaskAdder(self._queue, self._add, self._connection if connection is None else connection, **merged)

    def add_task(self, function: Callable[..., object] | str, /, *args: Any, **kwargs: Any) -> TaskRef:
        """Add a task with these options; see :meth:`queuedtask.Queue.add_task`."""
        # With options(parent=…) the keyword is free for the function.
        has_parent = "parent" in kwargs and "parents" not in self._given
        own_parents = {"parents": parent_ids(kwargs.pop("parent"))} if has_parent else {}
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

    def _write(self, called: Call, given: dict[str, Any], task_id: str, inherited: str | None) -> TaskRef:
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
                    self._known[inner] = KnownFunction(inner, path, declared, own_options)
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
    ) -> list[TaskRef]:
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

    def __init__(self, queue: TakesTasks, cursor: Cursor | None, detour: Detour | None = None) -> None:
        self._queue = queue
        self._detour = detour
        self.detoured: list[TaskRef] = []
        self._cursor = cursor
        """Where full chunks are written as they come; None for a caller's connection, which gets all at the end."""
        self._specs: list[TaskSpec] = []
        self._keyed: list[tuple[TaskSpec, KeyedRef]] = []
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

    def add_task(self, function: Callable[..., object] | str, /, *args: Any, **kwargs: Any) -> TaskRef:
        """Add a task to the batch; see :meth:`queuedtask.Queue.add_task`. Its row comes with the batch."""
        return self._adder.add_task(function, *args, **kwargs)

    def add_range_tasks(
        self, function: Callable[..., object] | str, ids: Iterable[Any], chunk_size: int = 200
    ) -> list[TaskRef]:
        """Add a task to the batch for each chunk of ids; see :meth:`queuedtask.Queue.add_range_tasks`."""
        return self._adder.add_range_tasks(function, ids, chunk_size)

    def _keep(self, spec: TaskSpec, connection: object) -> TaskRef:
        if not self._is_open:
            raise InvalidTask("a batch takes tasks inside its with block only")
        if self._detour is not None:
            self.detoured.append(self._detour.ref(spec))
            return self.detoured[-1]
        if spec.unique_key is not None:
            ref = KeyedRef(self._queue, self._find_holders)
            self._keyed.append((spec, ref))
            return ref
        self._specs.append(spec)
        if self._cursor is not None and len(self._specs) >= CHUNK:
            self._write(self._cursor)
        return TaskRef(self._queue, spec.id, created=True)

    @contextmanager
    def taking(self) -> Iterator["Batch"]:
        """Take tasks while the block runs."""
        try:
            yield self
        finally:
            self._is_open = False

    def write_rest(self, cursor: Cursor, connection: object = None) -> None:
        """Write what has not been written, in the transaction of the caller's connection, or of ours: None."""
        if not self._keyed:
            self._write(cursor)
            return
        with unique.atomically(cursor, in_transaction=connection is None or is_in_transaction(connection)):
            self._write(cursor)
            self._write_keyed(cursor)

    def _write(self, cursor: Cursor) -> None:
        if not self._specs:
            return
        _write(self._queue, self._specs, cursor)
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


@contextmanager
def batch(queue: TakesTasks, connection: object) -> Iterator[Batch]:
    """Take tasks and write them in the transaction of a connection, or in one of their own: None."""
    if (detour := queue._detour) is not None:
        with Batch(queue, None, detour).taking() as taken:
            yield taken
        detour.run(taken.detoured)
    elif connection is not None:
        cursor = cursor_on(connection)
        with Batch(queue, None).taking() as taken:
            yield taken
        taken.write_rest(cursor, connection)
    else:
        with queue.database.transaction() as cursor:
            with Batch(queue, cursor).taking() as taken:
                yield taken
            taken.write_rest(cursor)


def add(queue: TakesTasks, spec: TaskSpec, connection: object) -> TaskRef:
    """Add one task in the transaction of a connection; None for one of its own."""
    if queue._detour is not None:
        ref = queue._detour.ref(spec)
        queue._detour.run([ref])
        return ref
    if connection is None:
        with queue.database.autocommit() as cursor:
            ref = _write_one(queue, cursor, spec, None)
    else:
        ref = _write_one(queue, cursor_on(connection), spec, connection)
    logger.debug("%s %s: %s", spec.name, ref.id, "added" if ref.created else "has its unique key already")
    if queue.hooks.post_create and ref.created:
        queue.hooks.added([ref])
    return ref


def _write_one(queue: TakesTasks, cursor: Cursor, spec: TaskSpec, connection: object) -> TaskRef:
    if spec.unique_key is None:
        _write(queue, [spec], cursor)
        return TaskRef(queue, spec.id, created=True)
    in_transaction = connection is not None and is_in_transaction(connection)
    held = unique.add(cursor, spec, notify_channel=queue.config.wake_channel, in_transaction=in_transaction)
    return TaskRef(queue, held.id, created=held.created)


def _write(queue: TakesTasks, specs: Sequence[TaskSpec], cursor: Cursor) -> None:
    """Insert tasks in one statement."""
    if any(spec.parents for spec in specs):
        adding.add_family(cursor, specs, notify_channel=queue.config.wake_channel)
    elif len(specs) == 1:
        adding.add(cursor, specs[0], notify_channel=queue.config.wake_channel)
    else:
        adding.add_many(cursor, specs, notify_channel=queue.config.wake_channel)
