"""One attempt: resolve the function, decode the arguments, run it interruptibly, and say how it ended."""

import inspect
import logging
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from queuedtask.errors import Cancel, Interrupted, Retry, TaskTimeout
from queuedtask.model import codec, functions, outcome
from queuedtask.model.outcome import Outcome
from queuedtask.model.task import TaskOptions
from queuedtask.run.attempt import Attempt, enter
from queuedtask.run.timeouts import Guard

logger = logging.getLogger("queuedtask.executor")

OPTIONS: Final = "__queuedtask__"
"""The attribute in which a function carries the options of ``@queue.task``."""
MAX_ERROR_TEXT: Final = 64 * 1024
MAX_RESULT_BYTES: Final = 64 * 1024 * 1024

Resolve = Callable[[str], Callable[..., object]]


class Resolver:
    """Functions by their path, each looked up once."""

    def __init__(self, aliases: Callable[[], Mapping[str, str]]) -> None:
        self._aliases = aliases
        self._known: dict[str, Callable[..., object]] = {}

    def knows(self, path: str) -> bool:
        """Tell whether a function has been looked up, so that looking it up again imports nothing."""
        return path in self._known

    def __call__(self, path: str) -> Callable[..., object]:
        """Return the function at a path. Raises UnknownFunction."""
        found = self._known.get(path)
        if found is None:
            found = self._known[path] = functions.resolve(self._aliases().get(path, path))
        return found


def execute(
    attempt: Attempt, resolve: Resolve, *, default_timeout: float, on_begin: Callable[[Attempt], None]
) -> Outcome:
    """Run one attempt in this thread and return how it ended. Whatever the task does, this returns.

    ``on_begin`` is called just before the task's own code begins, when the attempt's deadline is known.
    """
    task = attempt.task
    before = enter(attempt)
    try:
        try:
            function = resolve(task.function)
            args, kwargs = codec.decode_arguments(task.args, task.kwargs)
        except BaseException as error:
            # BaseException: a module that is imported here may call sys.exit().
            return _raised(error)
        attempt.begin(getattr(function, OPTIONS, None) or TaskOptions(), default_timeout)
        on_begin(attempt)
        logger.debug("%s %s: attempt %s begins", task.name, task.id, task.attempt)
        attempt.guard.call(_run, (attempt.guard, function, args, kwargs), {})
        return _outcome(attempt)
    finally:
        enter(before)
        if attempt.open_connections and attempt.connections is not None:
            attempt.connections.finish(attempt)
        attempt.log.close()


def _run(guard: Guard, function: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    returned = function(*args, **kwargs)
    return guard.run(returned) if inspect.iscoroutine(returned) else returned


def _outcome(attempt: Attempt) -> Outcome:
    guard = attempt.guard
    error, guard.error = guard.error, None
    if error is None:
        return Outcome(outcome.RETURNED, codec.encode_result(guard.value, MAX_RESULT_BYTES))
    if isinstance(error, Cancel):
        return Outcome(outcome.ASKED_FOR_CANCEL, None, "Cancel", _text(str(error)))
    if isinstance(error, Retry):
        return _raised(error)._replace(kind=outcome.ASKED_FOR_RETRY, delay=error.delay)
    # Whatever it ends with after it was told to end is due to that: the interrupt itself, the CancelledError of a
    # coroutine, the driver's error for cancelled SQL, or what the task makes of them.
    if guard.due is TaskTimeout:
        return timed_out(attempt, _traceback(error))
    if guard.due is Interrupted or attempt.should_abort:
        return Outcome(outcome.INTERRUPTED)
    return _raised(error)


def timed_out(attempt: Attempt, traceback_text: str, more: str = "") -> Outcome:
    """Return the outcome of an attempt that outlived its timeout."""
    return Outcome(
        outcome.TIMED_OUT,
        error_type="TaskTimeout",
        error_message=f"the task outlived its timeout of {attempt.timeout:g} s{more}",
        error_traceback=_text(traceback_text),
    )


def _raised(error: BaseException) -> Outcome:
    return Outcome(
        outcome.RAISED,
        None,
        _text(type(error).__qualname__),
        _text(_describe(error)),
        _text(_traceback(error)),
    )


def _describe(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:
        return f"(its message could not be read: {type(second).__name__})"


def _traceback(error: BaseException) -> str:
    """Return the traceback without locals and without the frames of this package above the task's own code."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_globals.get("__name__", "").startswith("queuedtask.run."):
        tb = tb.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, tb))
    except Exception as second:
        return f"(the traceback of a {type(error).__name__} could not be formatted: {type(second).__name__})"


_text = partial(codec.clean_text, limit=MAX_ERROR_TEXT)
