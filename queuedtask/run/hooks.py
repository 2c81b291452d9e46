"""Hooks: functions of the application that are called when tasks are added, and round each attempt.

An attempt with hooks has two parts. In the first one the ``around_run`` hooks are entered, then come the ``on_pre_run``
hooks and the task's own code; all of it is one call under the attempt's guard, so whatever hangs in it is interrupted
as the task itself would be. In the second one, which nothing interrupts, the ``on_post_run`` hooks are called and the
``around_run`` hooks left: a clean-up that is cut short is worse than a late one. What hangs there is given up with its
slot when the grace after the attempt's deadline is over.
"""

import asyncio
import contextvars
import inspect
import logging
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from queuedtask.errors import Cancel, Retry
from queuedtask.model import codec, options
from queuedtask.model.outcome import Decision
from queuedtask.model.task import Call, Task, TaskSpec
from queuedtask.run.attempt import Attempt, JoinedContext, current_attempt
from queuedtask.run.logs import Line

logger = logging.getLogger("queuedtask.hooks")

Hook = Callable[..., Any]
H = TypeVar("H", bound=Hook)
T = TypeVar("T")

MAX_META: Final = 64 * 1024
"""Bytes that hooks may add to the meta of a schedule's task."""
MAX_TEXT: Final = 64 * 1024
"""Characters of a hook's failure in the task's log."""
_ARGUMENTS: Final = {
    "on_pre_create": ("spec",),
    "on_post_create": ("ref",),
    "on_pre_run": ("task",),
    "on_post_run": ("task", "result", "error"),
    "around_run": ("task",),
    "around_create": ("spec",),
    "on_settle": ("settled",),
}
_MISSING: Final = object()


class Hooks:
    """The hooks of one queue, each kind in the order of its registration."""

    def __init__(self) -> None:
        self.pre_create: tuple[Hook, ...] = ()
        self.post_create: tuple[Hook, ...] = ()
        self.pre_run: tuple[Hook, ...] = ()
        self.post_run: tuple[Hook, ...] = ()
        self.around_run: tuple[Hook, ...] = ()
        # The last two are for our own integrations.
        self.around_create: tuple[Callable[[NewTask], Generator[None, object, None]], ...] = ()
        """Generator functions with one yield, round the making and the INSERT of a task; get its ref, if there is one.

        They see what the on_pre_create hooks have made of it, and may only add to its meta. In a batch the INSERT comes
        later, and for a schedule's tick there is no ref. What they raise is logged; the task is added all the same.
        """
        self.settle: tuple[Callable[[Sequence[Settled]], object], ...] = ()
        """Called by the worker with attempts whose end has been committed, many at a time; not in a slot."""
        self.has_any_for_attempts = False

    def add(self, kind: str, hook: H) -> H:
        """Register a hook and return it. Raises TypeError for what cannot be called as this kind is."""
        _check(kind, hook)
        name = kind.removeprefix("on_")
        # A new tuple: workers may be going through the old one.
        setattr(self, name, (*getattr(self, name), hook))
        self.has_any_for_attempts = bool(self.pre_run or self.post_run or self.around_run)
        return hook

    def adding(self, new: "NewTask") -> None:
        """Call the on_pre_create hooks; what they raise goes to the caller."""
        for hook in self.pre_create:
            _wait_for(hook(new))

    def added(self, refs: Iterable[object]) -> None:
        """Call the on_post_create hooks for tasks that have been written; what they raise is logged."""
        for ref in refs:
            for hook in self.post_create:
                try:
                    _wait_for(hook(ref))
                except Exception:
                    # Not BaseException: inside a task an interrupt may land here.
                    with _held():
                        logger.exception("the on_post_create hook %s failed for %r", _name(hook), ref)

    @contextmanager
    def creating(self, new: "NewTask") -> Iterator[list[Any]]:
        """Go through the around_create hooks; what is put into the list is sent to them at the end of the block."""
        entered: list[tuple[Hook, _Round]] = []
        with _held():
            for hook in self.around_create:
                try:
                    round_ = _Round(hook(new))
                    round_.enter()
                    entered.append((hook, round_))
                except Exception:
                    logger.exception("the around_create hook %s failed for %r", _name(hook), new)
        made: list[Any] = []
        error: BaseException | None = None
        try:
            yield made
        except BaseException as raised:
            error = raised
            raise
        finally:
            with _held():
                for hook, round_ in reversed(entered):
                    try:
                        round_.leave(error, made[0] if made else None)
                    except Exception:
                        logger.exception("the around_create hook %s failed for %r", _name(hook), new)

    def announced(self, spec: TaskSpec) -> TaskSpec:
        """Return a task that a schedule is about to add, with what the around_create hooks add to its meta."""
        if not self.around_create:
            return spec
        given = {name: getattr(spec, name) for name in ("name", "channel", "meta") if getattr(spec, name) is not None}
        called = Call(spec.function, spec.args, spec.kwargs, {})
        with self.creating(NewTask(spec.id, called, given, max_payload=MAX_META, is_scheduled=True)):
            pass
        return spec._replace(meta=given.get("meta"))

    def settler(self, kind: type[T]) -> T | None:
        """Return the object of a class that is told of what is settled, if there is one, as integrations are."""
        owners = (getattr(hook, "__self__", None) for hook in self.settle)
        return next((owner for owner in owners if isinstance(owner, kind)), None)

    def settled(self, settled: "Sequence[Settled]") -> None:
        """Call the settle hooks; what they raise is logged."""
        for hook in self.settle:
            try:
                hook(settled)
            except Exception:
                logger.exception("the settle hook %s failed for %s attempts", _name(hook), len(settled))


class NewTask:
    """A task that is about to be added, as ``on_pre_create`` hooks get it.

    ``id``, ``function`` (its path), ``args``, ``kwargs`` and ``parents`` are as they are. Every option of
    :meth:`queuedtask.Queue.options` is an attribute, and can be set: ``spec.priority = 10``. A value is checked like a
    given one, so setting one that is not allowed raises InvalidTask; None takes it back. ``context`` and ``meta`` are
    read-only mappings, to be replaced: ``spec.context = spec.context | {"tenant": 7}``.
    """

    __slots__ = ("_arguments", "_given", "_max_payload", "function", "id", "is_scheduled")

    id: str
    function: str
    is_scheduled: bool
    """Whether a schedule adds it, and no caller."""

    def __init__(
        self, task_id: str, called: Call, given: dict[str, Any], *, max_payload: int, is_scheduled: bool = False
    ) -> None:
        values = ((called.args, called.kwargs), given, max_payload, called.path, task_id, is_scheduled)
        for name, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"<NewTask {self.name} {self.id}>"

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments."""
        return codec.decode_arguments(*self._arguments)[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments."""
        return codec.decode_arguments(*self._arguments)[1]

    @property
    def parents(self) -> tuple[str, ...]:
        """The ids of the tasks that it will wait for."""
        parents: tuple[str, ...] = self._given.get("parents", ())
        return parents

    def __getattr__(self, name: str) -> Any:
        if name not in options.NAMES:
            raise AttributeError(f"a NewTask has no attribute {name!r}")
        value = self._given.get(name, TaskSpec._field_defaults.get(name))
        return _mapping(value) if name in ("context", "meta") else value

    def __setattr__(self, name: str, value: object) -> None:
        if name not in options.NAMES:
            raise AttributeError(f"a hook cannot set {name!r}; it can set {', '.join(sorted(options.NAMES))}")
        changed = {key: given for key, given in self._given.items() if key != name}
        changed |= options.checked({name: value}, max_payload=self._max_payload)
        options.check_together(changed)
        self._given.clear()
        self._given.update(changed)

    def add_meta(self, more: Mapping[str, object]) -> None:
        """Merge keys into ``meta``, over those that stand there. Raises InvalidTask like setting it."""
        text = options.checked({"meta": more}, max_payload=self._max_payload)["meta"]
        self._given["meta"] = codec.merge(self._given.get("meta") or "{}", text)


class Settled(NamedTuple):
    """An attempt whose end stands in the database, as hooks of the kind ``settle`` get it."""

    task: Task
    decision: Decision
    waited: float | None
    """Seconds from the moment when it could have been claimed to the start of its own code; None if that is unknown."""
    seconds: float | None
    """For how long its own code ran; None when that never began, or nobody knows."""
    is_unattended: bool
    """Whether no hook round it has seen its end: it was given up or lost, or its function was not found."""


class TaskView(NamedTuple):
    """The task of an attempt, as the hooks round it get it."""

    id: str
    name: str
    function: str
    """The path, ``"module:qualname"``."""
    attempt: int
    """The number of this attempt."""
    args: tuple[Any, ...]
    """The positional arguments: the objects that the function gets. Empty when they cannot be read."""
    kwargs: Mapping[str, Any]
    """The keyword arguments."""
    channel: str
    meta: Mapping[str, Any]
    parents: tuple[str, ...]
    """The ids of the tasks that it was waiting for."""
    timeout: float
    """Seconds for this attempt, its hooks included."""
    max_retries: int | None
    """The row's, or else the function's; None stands for the setting."""
    failures: int
    """How many attempts have failed before."""
    is_async: bool
    """Whether the function is a coroutine function."""

    @classmethod
    def of(
        cls, attempt: Attempt, args: tuple[Any, ...], kwargs: Mapping[str, Any], function: Callable[..., object] | None
    ) -> "TaskView":
        """Return the view of an attempt; without a function when there is none at its path."""
        task, declared = attempt.task, attempt.options.max_retries
        return cls(
            task.id,
            task.name or task.function,
            task.function,
            task.attempt,
            args,
            MappingProxyType(dict(kwargs)),
            task.channel,
            _mapping(task.meta),
            tuple(task.parents or ()),
            attempt.timeout,
            declared if task.max_retries is None else task.max_retries,
            task.failures,
            inspect.iscoroutinefunction(function),
        )


class HookedAttempt:
    """An attempt with the hooks round it: :meth:`run` is the first part of it, :meth:`finish` the second one.

    Both belong to one context of context variables, so what a hook sets is there for the task and not for the next one.
    """

    def __init__(
        self,
        hooks: Hooks,
        attempt: Attempt,
        function: Callable[..., object] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._hooks = hooks
        self._attempt = attempt
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._task = TaskView.of(attempt, args, kwargs, function)
        self._context = contextvars.copy_context()
        self._rounds: list[tuple[Hook, _Round | _AsyncRound]] = []
        self._made_loop: _Loop | None = None

    def run(self) -> None:
        """Run the hooks before the task's own code, and that; the attempt's guard has how it ended."""
        self._context.run(self._attempt.guard.call, self._run, (), {})

    def finish(self, result: object, error: BaseException | None) -> None:
        """Run the hooks after it, whatever has happened; never raises anything itself."""
        self._attempt.is_after = True
        self._context.run(self._finish, None if error else result, self._as_interrupt(error))

    # ------------------------------------------------------------------------- the first part, which can be interrupted

    def _run(self) -> object:
        for hook in self._hooks.around_run:
            try:
                self._enter(hook)
            except BaseException as error:
                if self._attempt.guard.due is not None:
                    raise
                self._log("around_run", hook, error)
            self._raise_what_is_due()
        for hook in self._hooks.pre_run:
            returned = hook(self._task)
            if inspect.iscoroutine(returned):
                self._run_hook(returned)
            self._raise_what_is_due()
        assert self._function is not None
        returned = self._function(*self._args, **self._kwargs)
        if not inspect.iscoroutine(returned):
            return returned
        if self._made_loop is None:
            return self._attempt.guard.run(returned)
        return self._attempt.guard.run(returned, self._made_loop.run)

    def _enter(self, hook: Hook) -> None:
        round_ = _round(hook(self._task))
        # First: an interrupt may land as soon as it has yielded.
        self._rounds.append((hook, round_))
        if isinstance(round_, _AsyncRound):
            self._run_hook(round_.enter())
        else:
            round_.enter()

    def _run_hook(self, coroutine: Coroutine[Any, Any, object]) -> None:
        try:
            self._attempt.guard.run(coroutine, self._loop.run)
        finally:
            self._attempt.guard.resume()

    def _raise_what_is_due(self) -> None:
        """End an attempt whose interrupt a hook has swallowed; it would not come again."""
        if self._attempt.guard.due is not None:
            raise self._attempt.guard.due

    # ---------------------------------------------------------------------------- the second part, which cannot

    def _finish(self, result: object, error: BaseException | None) -> None:
        finished = self._attempt.finished
        told = (result, error) if finished is None else (codec.decode(finished.result), None)
        for hook in self._hooks.post_run:
            try:
                returned = hook(self._task, *told)
                if inspect.iscoroutine(returned):
                    self._loop.run(returned)
            except BaseException as raised:
                self._log("on_post_run", hook, raised)
        while self._rounds:
            hook, round_ = self._rounds.pop()
            try:
                if isinstance(round_, _AsyncRound):
                    self._loop.run(round_.leave(error))
                else:
                    round_.leave(error)
            except BaseException as raised:
                self._log("around_run", hook, raised)
        if self._made_loop is not None:
            try:
                self._made_loop.close()
            except BaseException:
                logger.exception("task %s: the event loop of its hooks could not be closed", self._task.id)

    def _as_interrupt(self, error: BaseException | None) -> BaseException | None:
        """Return the interrupt for what an attempt ends with that was told to end, such as a CancelledError."""
        due = self._attempt.guard.due
        if error is None or due is None or isinstance(error, due | Cancel | Retry):
            return error
        interrupt = due()
        interrupt.__cause__ = error
        return interrupt

    @property
    def _loop(self) -> "_Loop":
        if self._made_loop is None:
            self._made_loop = _Loop()
        return self._made_loop

    def _log(self, kind: str, hook: Hook, error: BaseException) -> None:
        """Log a hook's failure: where the worker logs, and in the task's own log."""
        attempt = self._attempt
        with attempt.guard.hold():
            logger.error(
                "task %s: attempt %s: the %s hook %s failed",
                *(attempt.task.id, attempt.task.attempt, kind, _name(hook)),
                exc_info=error,
            )
            text = f"the {kind} hook {_name(hook)} failed\n{''.join(traceback.format_exception(error))}"
            attempt.log.append(Line("error", logger.name, codec.clean_text(text, MAX_TEXT), time.monotonic()))


class _Loop:
    """One event loop for an attempt, so that what an asynchronous hook opens can be used and closed in it.

    What is set in context variables passes both ways; the loop keeps one context of its own, because a variable can be
    reset only in the context in which it was set.
    """

    def __init__(self) -> None:
        # With a factory the runner leaves the thread's own current loop alone.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._context = contextvars.Context()

    def run(self, coroutine: Coroutine[Any, Any, object]) -> object:
        """Run a coroutine to its end."""
        self._context.run(_take_over, contextvars.copy_context())
        try:
            return self._runner.run(coroutine, context=self._context)
        finally:
            _take_over(self._context)

    def close(self) -> None:
        """Cancel what is left in the loop, and close it."""
        self._runner.close()


def _take_over(context: contextvars.Context) -> None:
    for variable, value in context.items():
        if variable.get(_MISSING) is not value:
            variable.set(value)


class _Round:
    """An ``around_run`` hook in one attempt."""

    def __init__(self, generator: Generator[Any, Any, Any]) -> None:
        self._generator = generator

    def enter(self) -> None:
        """Run it up to its yield."""
        try:
            next(self._generator)
        except StopIteration:
            raise RuntimeError("it did not yield") from None

    def leave(self, error: BaseException | None, sent: object = None) -> None:
        """Run it from its yield, which gives what is sent, to its end; with the error raised there if there is one.

        Nothing if it is not there.
        """
        # The generator itself knows best: an interrupt may have landed after its yield and before anything of ours.
        if inspect.getgeneratorstate(self._generator) != inspect.GEN_SUSPENDED:
            return
        with _Passing(error):
            try:
                if error is None:
                    self._generator.send(sent)
                else:
                    self._generator.throw(error)
            except StopIteration:
                return
            self._generator.close()
            raise RuntimeError("it yielded more than once")


class _AsyncRound:
    """The same for one that is asynchronous."""

    def __init__(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generator = generator
        self._is_entered = False

    async def enter(self) -> None:
        try:
            await anext(self._generator)
        except StopAsyncIteration:
            raise RuntimeError("it did not yield") from None
        self._is_entered = True

    async def leave(self, error: BaseException | None) -> None:
        if not self._is_entered:
            return
        with _Passing(error):
            try:
                if error is None:
                    await anext(self._generator)
                else:
                    await self._generator.athrow(error)
            except StopAsyncIteration:
                return
            await self._generator.aclose()
            raise RuntimeError("it yielded more than once")


class _Passing:
    """Let an error pass through a generator: it is no failure of that, and keeps its traceback."""

    def __init__(self, error: BaseException | None) -> None:
        self._error = error
        self._traceback = None if error is None else error.__traceback__

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, raised: BaseException | None, traceback: object) -> bool:
        error = self._error
        if error is None:
            return False
        error.__traceback__ = self._traceback
        # A StopIteration cannot leave a generator as it is.
        is_stop = isinstance(error, StopIteration | StopAsyncIteration) and isinstance(raised, RuntimeError)
        return raised is error or (is_stop and raised is not None and raised.__cause__ is error)


def _round(made: object) -> _Round | _AsyncRound:
    if inspect.isgenerator(made):
        return _Round(made)
    if inspect.isasyncgen(made):
        return _AsyncRound(made)
    # As generators too: with them it is certain whether they have been entered.
    if isinstance(made, AbstractContextManager):
        return _Round(_within(made))
    if isinstance(made, AbstractAsyncContextManager):
        return _AsyncRound(_within_async(made))
    if inspect.iscoroutine(made):
        made.close()
    raise TypeError(
        f"an around_run hook is a generator function with one yield, or returns a context manager; this one returned a "
        f"{type(made).__qualname__}"
    )


def _within(manager: AbstractContextManager[Any]) -> Generator[None, None, None]:
    with manager:
        yield


async def _within_async(manager: AbstractAsyncContextManager[Any]) -> AsyncGenerator[None, None]:
    async with manager:
        yield


def _wait_for(returned: object) -> None:
    """Run the coroutine of an asynchronous hook that was called where tasks are added; nothing for another one."""
    if not inspect.iscoroutine(returned):
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        _run_in_new_loop(returned, nullcontext())
    else:
        # The loop of this thread waits for this very call, and no second one can run in it.
        attempt, context = current_attempt(), contextvars.copy_context()
        joined = nullcontext() if attempt is None else JoinedContext(attempt)
        with ThreadPoolExecutor(1) as executor:
            executor.submit(context.run, _run_in_new_loop, returned, joined).result()


def _run_in_new_loop(coroutine: Coroutine[Any, Any, object], joined: AbstractContextManager[None]) -> None:
    with joined, asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(coroutine)


def _held() -> AbstractContextManager[object]:
    """Return a block in which no interrupt lands, for what is ours inside a task; outside any it does nothing."""
    attempt = current_attempt()
    return nullcontext() if attempt is None else attempt.guard.hold()


def _mapping(text: str | None) -> Mapping[str, Any]:
    try:
        value = codec.decode(text)
    except ValueError:
        value = None
    return MappingProxyType(value if isinstance(value, dict) else {})


def _check(kind: str, hook: object) -> None:
    names = _ARGUMENTS[kind]
    if not callable(hook):
        raise TypeError(f"{kind}: {hook!r} is not a function")
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):
        return  # one in C that does not tell
    try:
        signature.bind(*names)
    except TypeError:
        raise TypeError(f"{kind}: {_name(hook)} must take ({', '.join(names)}), but takes {signature}") from None


def _name(hook: object) -> str:
    return f"{getattr(hook, '__module__', '?')}.{getattr(hook, '__qualname__', None) or repr(hook)}"
