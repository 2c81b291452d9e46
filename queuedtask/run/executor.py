"""One attempt: resolve the function, decode the arguments, run it interruptibly, and say how it ended."""

import inspect
import logging
import random
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from queuedtask.config import Config
from queuedtask.errors import Cancel, FunctionNotAllowed, Interrupted, InvalidSignature, Retry, TaskTimeout
from queuedtask.model import backoff, codec, outcome
from queuedtask.model.options import PROCESS, reserved
from queuedtask.model.outcome import Decision, Outcome, decide
from queuedtask.model.task import Task
from queuedtask.run import track
from queuedtask.run.attempt import MAX_RESULT_BYTES, Attempt, enter
from queuedtask.run.hooks import HookedAttempt, Hooks
from queuedtask.run.resolver import LeftToOthers, Resolve, declared
from queuedtask.run.timeouts import Guard

logger = logging.getLogger("queuedtask.executor")

MAX_ERROR_TEXT: Final = 64 * 1024
_OURS: Final = ("queuedtask.run.", "queuedtask.contrib.")

_NO_HOOKS: Final = Hooks()


def execute(
    attempt: Attempt,
    resolve: Resolve,
    *,
    default_timeout: float,
    on_begin: Callable[[Attempt], None],
    hooks: Hooks = _NO_HOOKS,
    judge: Callable[[Attempt, Outcome], Decision] | None = None,
    elsewhere: Callable[[Attempt], Outcome] | None = None,
) -> Outcome:
    """Run one attempt in this thread and return how it ended. Whatever the task does, this returns.

    ``on_begin`` is called just before the task's own code begins, when the attempt's deadline is known; the hooks
    before it are part of that. ``judge`` tells the hooks after it what becomes of the task. ``elsewhere`` is called
    instead of running the task here when its function turns out to want a process of its own.
    """
    task = attempt.task
    before = enter(attempt)
    try:
        try:
            function = resolve(task)
            args, kwargs = codec.decode_arguments(task.args, task.kwargs)
        except LeftToOthers:
            return Outcome(outcome.INTERRUPTED)
        except BaseException as error:
            # BaseException: a module that is imported here may call sys.exit().
            if attempt.on_error is not None:
                attempt.on_error(error)
            ended = _raised(error)
            attempt.is_unattended = True
            if isinstance(error, InvalidSignature | FunctionNotAllowed):
                ended = ended._replace(kind=outcome.REFUSED)
            if hooks.post_run:
                attempt.decision = None if judge is None else judge(attempt, ended)
                HookedAttempt(hooks, attempt, None, *_readable_arguments(task)).finish(None, error)
            return ended
        if attempt.order is not None:
            return attempt.order.outcome()
        options = declared(function)
        if elsewhere is not None and options.isolation == PROCESS and task.isolation is None:
            return elsewhere(attempt)
        attempt.begin(options, default_timeout)
        on_begin(attempt)
        logger.debug("%s %s: attempt %s begins", task.name, task.id, task.attempt)
        if hooks.has_any_for_attempts:
            return _run_hooked(HookedAttempt(hooks, attempt, function, args, kwargs), attempt, judge)
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


def _run_hooked(
    hooked: HookedAttempt, attempt: Attempt, judge: Callable[[Attempt, Outcome], Decision] | None
) -> Outcome:
    hooked.run()
    result, error = attempt.guard.value, attempt.guard.error
    # Before the rest of the hooks: they change nothing any more.
    ended = _outcome(attempt)
    attempt.decision = None if judge is None else judge(attempt, ended)
    hooked.finish(result, error)
    return ended


def judge(config: Config, attempt: Attempt, ended: Outcome) -> Decision:
    """Say what an outcome means for the attempt's task."""
    if ended.kind == outcome.RETURNED:
        return decide(attempt.task, ended, max_retries=0, max_lost=1)
    task, declared = attempt.task, attempt.options.max_retries
    if task.max_retries is None and declared is not None:
        task = task._replace(max_retries=declared)
    return decide(
        task,
        ended,
        max_retries=config.max_retries,
        max_lost=config.max_lost,
        backoff=None if callable(attempt.options.backoff) else attempt.options.backoff,
        jitter=random.uniform(-1.0, 1.0),
    )


def _readable_arguments(task: Task) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        return codec.decode_arguments(task.args, task.kwargs)
    except ValueError:
        return (), {}


def _outcome(attempt: Attempt) -> Outcome:
    guard = attempt.guard
    error, guard.error = guard.error, None
    if error is not None and attempt.on_error is not None:
        attempt.on_error(error)
    if attempt.finished is not None:
        if error is not None:
            logger.warning(
                "task %s: attempt %s had finished in its transaction before it raised this; it stays done",
                *(attempt.task.id, attempt.task.attempt),
                exc_info=error,
            )
        return attempt.finished
    if error is None:
        if attempt.tracks is not None:
            track.complete(attempt)
        return Outcome(outcome.RETURNED, codec.encode_result(guard.value, MAX_RESULT_BYTES))
    if isinstance(error, Cancel):
        return Outcome(outcome.ASKED_FOR_CANCEL, None, "Cancel", _text(_describe(error)))
    if isinstance(error, Retry):
        delay = _own_backoff(attempt) if error.delay is None else error.delay
        return _raised(error)._replace(kind=outcome.ASKED_FOR_RETRY, delay=delay)
    # Whatever it ends with after it was told to end is due to that: the interrupt itself, the CancelledError of a
    # coroutine, the driver's error for cancelled SQL, or what the task makes of them.
    if attempt.order is not None:
        return attempt.order.outcome(_text(_traceback(error)))
    if guard.due is TaskTimeout:
        return timed_out(attempt, _traceback(error))._replace(delay=_own_backoff(attempt))
    if guard.due is Interrupted or attempt.should_abort:
        return Outcome(outcome.INTERRUPTED)
    if attempt.options.gives_up_on(error):
        return _raised(error)._replace(is_hopeless=True)
    return _raised(error)._replace(delay=_own_backoff(attempt))


def _own_backoff(attempt: Attempt) -> float | None:
    """Ask the function's own back-off, where it is code and the task names no other; None where it does not say.

    It runs in the slot's thread after the task, and like it is given up when it does not come back.
    """
    ask = attempt.options.backoff
    if not callable(ask) or reserved(attempt.task.meta, "backoff") is not None:
        return None
    failures = attempt.task.failures + 1
    try:
        answer = ask(failures)
        delay = backoff.seconds(answer)
        if delay is None:
            raise ValueError(f"{answer!r} is not a number of seconds from 0 to 100 years, nor a timedelta")
    except BaseException as error:
        # It is the caller's code, and may call sys.exit() like any other.
        logger.error(
            "task %s: backoff(%s) of %s failed, the usual back-off is taken: %s: %s",
            *(attempt.task.id, failures, attempt.task.function, type(error).__qualname__, _describe(error)),
        )
        return None
    return delay


def told_to_end(attempt: Attempt, traceback_text: str, more: str = "") -> Outcome:
    """Return the outcome of an attempt that did not end when it was told to: by an order, else by its timeout."""
    if attempt.order is not None:
        return attempt.order.outcome(_text(traceback_text), more)
    return timed_out(attempt, traceback_text, more)


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
    while tb is not None and tb.tb_frame.f_globals.get("__name__", "").startswith(_OURS):
        tb = tb.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, tb))
    except Exception as second:
        return f"(the traceback of a {type(error).__name__} could not be formatted: {type(second).__name__})"


_text = partial(codec.clean_text, limit=MAX_ERROR_TEXT)
