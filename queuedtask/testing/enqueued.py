"""What has been added and has not ended: asserting that a task is there, or that none is."""

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Final

from queuedtask.db import reads
from queuedtask.db.callers import cursor_on
from queuedtask.db.reads import TaskRow
from queuedtask.errors import UnknownFunction
from queuedtask.model import codec, functions, options, states
from queuedtask.refs import TaskRef
from queuedtask.taskqueue import Queue

SHOWN: Final = 10
"""So many tasks are listed when the one is not there that should be."""
_TOLERANCE: Final = 1.0
"""Seconds by which a delay may be off: the row knows when the task was made and when it is due."""
_UNFINISHED: Final = (*states.PENDING, states.DOING)


def assert_enqueued(
    queue: Queue,
    function: Callable[..., object] | str,
    /,
    *args: Any,
    having: Mapping[str, object] | None = None,
    connection: object = None,
    **kwargs: Any,
) -> list[TaskRef]:
    """Raise AssertionError unless a task that calls a function with these arguments waits or runs; return all of them.

    The newest comes first. Arguments are compared as the task will get them; ``unittest.mock.ANY`` fits all, and
    without any arguments here the task's may be what they are. ``having``: options that it must have as well, by the
    names that :meth:`queuedtask.Queue.options` has for them, and ``state``, ``args`` and ``kwargs``:
    ``having={"channel": "mail", "delay": 60}``. ``connection``: the transaction of the test, for what is not committed;
    by default a framework's own.

    The message lists what is there, the most similar first.
    """
    wanted = _Wanted(function, args, kwargs, having)
    queue = queue._itself()
    rows = _unfinished(queue, connection)
    if found := [row for row in rows if wanted.misses(row) == []]:
        return [TaskRef(queue, row.id, created=False) for row in found]
    raise AssertionError(f"no task {wanted} is enqueued{_listed(wanted, rows)}")


def refute_enqueued(
    queue: Queue,
    function: Callable[..., object] | str,
    /,
    *args: Any,
    having: Mapping[str, object] | None = None,
    connection: object = None,
    **kwargs: Any,
) -> None:
    """Raise AssertionError if a task that calls a function with these arguments waits or runs.

    The arguments are those of :func:`assert_enqueued`.
    """
    wanted = _Wanted(function, args, kwargs, having)
    if found := [row for row in _unfinished(queue, connection) if wanted.misses(row) == []]:
        raise AssertionError(f"{len(found)} × {wanted} enqueued{_listed(wanted, found)}")


def _unfinished(queue: Queue, connection: object) -> list[TaskRow]:
    if connection is None:
        connection = queue._default_connection()
    if connection is not None:
        return reads.find_tasks(cursor_on(connection), states=_UNFINISHED)
    with queue.database.transaction() as cursor:
        return reads.find_tasks(cursor, states=_UNFINISHED)


class _Wanted:
    """The task that is looked for."""

    def __init__(
        self,
        function: Callable[..., object] | str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        having: Mapping[str, object] | None,
    ) -> None:
        if not isinstance(function, str):
            function, args, merged = functions.unwrap_partial(function, args, kwargs)
            kwargs = dict(merged)
        self.path = _path(function)
        self._arguments = (args, kwargs) if args or kwargs else None
        self._having = dict(having or {})
        if unknown := sorted(self._having.keys() - _READ.keys()):
            raise TypeError(f"having: there is no {unknown[0]!r}; there are {', '.join(sorted(_READ))}")

    def __str__(self) -> str:
        arguments = "(…)" if self._arguments is None else _call(*self._arguments)
        having = ", ".join(f"{name}={value!r}" for name, value in self._having.items())
        return f"{self.path}{arguments}{f' having {having}' if having else ''}"

    def misses(self, row: TaskRow) -> list[str]:
        """Return what of a task is other than wanted; the function stands first, and counts most."""
        missed = []
        if row.function != self.path:
            missed += ["function", "", ""]
        if self._arguments is not None and _arguments(row) != self._arguments:
            missed.append("arguments")
        return missed + [name for name, value in self._having.items() if not _fits(name, _READ[name](row), value)]


def _path(function: Callable[..., object] | str) -> str:
    if isinstance(function, str):
        return functions.check_path(function)
    try:
        return functions.path_of(function)
    except UnknownFunction:
        # A local one can be a task all the same, as a pickle.
        name = functions.local_name(function)
        if name is None:
            raise
        return name


def _arguments(row: TaskRow) -> object:
    try:
        return codec.decode_arguments(row.args, row.kwargs)
    except ValueError as error:
        return error


def _args(row: TaskRow) -> object:
    found = _arguments(row)
    return found[0] if isinstance(found, tuple) else found


def _kwargs(row: TaskRow) -> object:
    found = _arguments(row)
    return found[1] if isinstance(found, tuple) else found


def _delay(row: TaskRow) -> float | None:
    return None if row.date_scheduled is None else (row.date_scheduled - row.date_created).total_seconds()


def _in_meta(name: str) -> Callable[[TaskRow], object]:
    return lambda row: options.reserved(row.meta, name)


_READ: Final[dict[str, Callable[[TaskRow], Any]]] = {
    "args": _args,
    "kwargs": _kwargs,
    "context": lambda row: codec.decode(row.context) or {},
    "delay": _delay,
    "meta": lambda row: codec.decode(row.meta) or {},
    "parent": lambda row: row.parents,
    "run_at": lambda row: row.date_scheduled,
    **{name: _in_meta(name) for name in ("isolation", "backoff", "concurrency", "fifo")},
    **{
        name: attrgetter(name)
        for name in ("name", "state", "channel", "priority", "timeout", "max_retries", "unique_key")
    },
}


def _fits(name: str, found: Any, wanted: Any) -> bool:
    if name == "delay" and found is not None and wanted is not None:
        try:
            return abs(float(found) - options.seconds("delay", wanted)) < _TOLERANCE
        except ValueError:  # something that compares itself, as ANY does
            return bool(found == wanted)
    if name == "parent":
        several = wanted if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
        return sorted(found) == sorted(each.id if isinstance(each, TaskRef) else str(each) for each in several)
    if name in ("args", "kwargs"):
        return bool(found == (tuple(wanted) if name == "args" else dict(wanted)))
    if name in ("context", "meta") and isinstance(wanted, Mapping):
        # What travels with every task is there beside it.
        return isinstance(found, dict) and all(key in found and found[key] == wanted[key] for key in wanted)
    return bool(found == wanted)


def _listed(wanted: _Wanted, rows: list[TaskRow]) -> str:
    if not rows:
        return "; there is no task that has not ended"
    similar = sorted(rows, key=lambda row: len(wanted.misses(row)))
    lines = [f"\n  {_shown(wanted, row)}" for row in similar[:SHOWN]]
    more = f"\n  … and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"; there {'is' if len(rows) == 1 else 'are'}:{''.join(lines)}{more}"


def _shown(wanted: _Wanted, row: TaskRow) -> str:
    found = _arguments(row)
    call = _call(*found) if isinstance(found, tuple) else f"({found})"
    differing = [f"{name}={_READ[name](row)!r}" for name in wanted.misses(row) if name in _READ]
    marks = [row.state, f"channel {row.channel}", *differing]
    return f"{row.function}{call}  {', '.join(marks)}"


def _call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    return f"({', '.join([*map(repr, args), *(f'{name}={value!r}' for name, value in kwargs.items())])})"
