"""Hooks round an attempt: their order, what they see, what their failures and interrupts do. No database."""

import asyncio
import contextvars
import gc
import logging
import random
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from helpers import wait_until
from queuedtask import Cancel, Retry, current_task, get_context, getLogger, set_context
from queuedtask.errors import Interrupted, TaskTimeout
from queuedtask.model import outcome
from queuedtask.model.outcome import Outcome
from queuedtask.model.task import Task
from queuedtask.run.attempt import Attempt, current_attempt
from queuedtask.run.executor import execute
from queuedtask.run.hooks import Hooks, TaskView, _Round

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class Run:
    """One attempt of a function with hooks, in a thread of its own."""

    def __init__(self, hooks: Hooks, function: Callable[..., object], args: str = "[]", **fields: Any) -> None:
        task = Task("id", "name", "jobs:f", args, '{"key": "value"}' if args != "[]" else "{}", None, 3, 1, None, None)
        self.attempt = Attempt(task._replace(**fields), lambda: None)
        self.ended: Outcome | None = None
        self._thread = threading.Thread(target=self._run, args=(hooks, function), daemon=True)
        self._thread.start()

    def _run(self, hooks: Hooks, function: Callable[..., object]) -> None:
        self.ended = execute(
            self.attempt, lambda path: function, default_timeout=30, on_begin=lambda attempt: None, hooks=hooks
        )

    def outcome(self) -> Outcome:
        self._thread.join(10)
        assert not self._thread.is_alive()
        assert self.ended is not None
        return self.ended

    @property
    def logged(self) -> list[str]:
        return [line.message for line in self.attempt.log.take()]


def hooks(**kinds: Callable[..., object] | list[Callable[..., object]]) -> Hooks:
    made = Hooks()
    for kind, given in kinds.items():
        for hook in given if isinstance(given, list) else [given]:
            made.add(kind if kind == "around_run" else f"on_{kind}", hook)
    return made


def hook(kind: str, action: Callable[..., object]) -> Hooks:
    made = Hooks()
    made.add(kind, action)
    return made


class Steps(list[Any]):
    """What happened, in order."""

    def around(self, name: str, *, is_async: bool = False) -> Callable[[TaskView], object]:
        def sync(task: TaskView) -> Iterator[None]:
            self.append(f"into {name}")
            yield
            self.append(f"out of {name}")

        async def asynchronous(task: TaskView) -> AsyncIterator[None]:
            await asyncio.sleep(0)
            self.append(f"into {name}")
            yield
            await asyncio.sleep(0)
            self.append(f"out of {name}")

        return asynchronous if is_async else sync

    def plain(self, name: str, *, is_async: bool = False) -> Callable[..., object]:
        async def asynchronous(*args: object) -> None:
            await asyncio.sleep(0)
            self.append(name)

        return asynchronous if is_async else lambda *args: self.append(name)


def returns_7() -> int:
    return 7


async def returns_7_async() -> int:
    await asyncio.sleep(0)
    return 7


def spin() -> None:
    while True:
        pass


# ---------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("are_async", [(False, False), (True, True), (False, True), (True, False)])
@pytest.mark.parametrize("is_task_async", [False, True])
def test_they_come_in_the_order_of_registration_and_those_around_are_nested(
    are_async: tuple[bool, bool], is_task_async: bool
) -> None:
    steps = Steps()
    one, two = are_async

    def task() -> None:
        steps.append("task")

    async def task_async() -> None:
        await asyncio.sleep(0)
        steps.append("task")

    run = Run(
        hooks(
            post_run=[steps.plain("after 1", is_async=one), steps.plain("after 2", is_async=two)],
            pre_run=[steps.plain("before 1", is_async=one), steps.plain("before 2", is_async=two)],
            around_run=[steps.around("1", is_async=one), steps.around("2", is_async=two)],
        ),
        task_async if is_task_async else task,
    )
    assert run.outcome().kind == outcome.RETURNED
    assert steps == (["into 1", "into 2", "before 1", "before 2", "task", "after 1", "after 2", "out of 2", "out of 1"])


def test_a_hook_may_return_a_context_manager_of_either_kind() -> None:
    steps = Steps()

    @contextmanager
    def sync(task: TaskView) -> Iterator[None]:
        steps.append("into sync")
        yield
        steps.append("out of sync")

    @asynccontextmanager
    async def asynchronous(task: TaskView) -> AsyncIterator[None]:
        steps.append("into async")
        yield
        steps.append("out of async")

    assert Run(hooks(around_run=[sync, asynchronous]), returns_7).outcome().result == "7"
    assert steps == ["into sync", "into async", "out of async", "out of sync"]


# ------------------------------------------------------------------------------------------------------- what they see


def test_they_get_a_view_of_the_task_that_cannot_be_changed() -> None:
    seen: list[TaskView] = []

    def task(*args: object, **kwargs: object) -> None: ...

    run = Run(
        hooks(pre_run=seen.append),
        task,
        '[1, {"$tuple": [2]}]',
        meta='{"tag": {"$date": "2026-01-02"}}',
        channel="mail",
        timeout=5.0,
        max_retries=2,
    )
    run.outcome()
    (view,) = seen
    assert (view.id, view.name, view.function, view.attempt, view.channel) == ("id", "name", "jobs:f", 3, "mail")
    assert (view.args, dict(view.kwargs)) == ((1, (2,)), {"key": "value"})
    assert (view.timeout, view.max_retries, view.failures, view.is_async) == (5.0, 2, 1, False)
    assert view.meta["tag"].year == 2026
    with pytest.raises(AttributeError):
        view.id = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        view.kwargs["key"] = "other"  # type: ignore[index]
    with pytest.raises(TypeError):
        view.meta["tag"] = "other"  # type: ignore[index]


def test_they_run_in_the_task_s_own_context() -> None:
    def around(task: TaskView) -> Iterator[None]:
        set_context("around", current_task().id)
        getLogger("app").warning("before")
        yield
        set_context("after", get_context("task"))

    def task() -> object:
        set_context("task", get_context("around"))
        return get_context()

    run = Run(hooks(around_run=around), task)
    assert run.outcome().result == '{"around":"id","task":"id"}'
    assert run.attempt.context.get("after") == "id"


def test_the_result_and_the_error_reach_the_hook_behind() -> None:
    seen: list[tuple[object, object]] = []
    made = hooks(post_run=lambda task, result, error: seen.append((result, error)))
    Run(made, returns_7).outcome()
    error = ValueError("boom")

    def task() -> None:
        raise error

    Run(made, task).outcome()
    assert seen == [(7, None), (None, error)]


@pytest.mark.parametrize(("raised", "kind"), [(Retry("x"), outcome.ASKED_FOR_RETRY), (Cancel("x"), "asked_for_cancel")])
def test_what_asks_for_an_end_is_an_error_too(raised: Exception, kind: str) -> None:
    seen: list[object] = []

    def task() -> None:
        raise raised

    made = hooks(post_run=lambda task, result, error: seen.append(error))
    assert Run(made, task).outcome().kind == kind
    assert seen == [raised]


def test_the_error_is_raised_at_the_yields_and_swallowing_it_changes_nothing() -> None:
    seen: list[object] = []

    def outer(task: TaskView) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            seen.append(error)

    async def inner(task: TaskView) -> AsyncIterator[None]:
        try:
            yield
        except ValueError as error:
            seen.append(error)
            raise

    def task() -> None:
        raise ValueError("boom")

    run = Run(hooks(around_run=[outer, inner]), task)
    ended = run.outcome()
    assert (ended.kind, ended.error_message) == (outcome.RAISED, "boom")
    assert [str(error) for error in seen] == ["boom", "boom"]
    assert run.logged == []  # an error that passes through is no failure of the hook
    # The frames of the hooks and of ours are not the task's.
    assert ended.error_traceback is not None
    assert ended.error_traceback.count("File ") == 1


@pytest.mark.parametrize("error", [StopIteration("x"), StopAsyncIteration("x"), SystemExit(3), GeneratorExit()])
@pytest.mark.parametrize("is_async", [False, True])
def test_an_odd_error_passes_through_as_well(error: BaseException, is_async: bool) -> None:
    def task() -> None:
        raise error

    steps = Steps()

    def around(task: TaskView) -> Iterator[None]:
        try:
            yield
        finally:
            steps.append("out")

    async def around_async(task: TaskView) -> AsyncIterator[None]:
        try:
            yield
        finally:
            steps.append("out")

    run = Run(hooks(around_run=around_async if is_async else around), task)
    assert (run.outcome().kind, run.outcome().error_type) == (outcome.RAISED, type(error).__name__)
    assert (steps, run.logged) == (["out"], [])


def test_a_function_that_is_not_there_reaches_the_hook_behind_only() -> None:
    steps = Steps()
    seen: list[tuple[TaskView, object]] = []
    made = hooks(
        pre_run=steps.plain("before"),
        around_run=steps.around("1"),
        post_run=lambda task, result, error: seen.append((task, error)),
    )
    attempt = Attempt(Task("id", "name", "jobs:f", "[1]", "{}", None, 1, 0, None, None), lambda: None)

    def resolve(path: str) -> Callable[..., object]:
        raise LookupError(path)

    ended = execute(attempt, resolve, default_timeout=30, on_begin=lambda attempt: None, hooks=made)
    assert (ended.error_type, steps) == ("LookupError", [])
    ((view, error),) = seen
    assert view.args == (1,)
    assert isinstance(error, LookupError)


@pytest.mark.parametrize("args", ["{}", "[", '[{"$date": "x"}]'])
def test_arguments_that_cannot_be_read_reach_it_too(args: str) -> None:
    seen: list[TaskView] = []
    run = Run(hooks(post_run=lambda task, result, error: seen.append(task)), returns_7, args, kwargs="{}", meta="[")
    assert run.outcome().error_type == "ValueError"
    assert (seen[0].args, seen[0].meta) == ((), {})


# ------------------------------------------------------------------------------------------------ context variables


@pytest.mark.parametrize("is_hook_async", [False, True])
@pytest.mark.parametrize("is_task_async", [False, True])
def test_what_a_hook_around_sets_in_context_variables_is_there_for_the_task_and_gone_after_it(
    is_hook_async: bool, is_task_async: bool
) -> None:
    seen: list[str] = []

    def around(task: TaskView) -> Iterator[None]:
        token = variable.set("set")
        yield
        seen.append(variable.get())
        variable.reset(token)  # works in the context only in which it was set

    async def around_async(task: TaskView) -> AsyncIterator[None]:
        token = variable.set("set")
        await asyncio.sleep(0)
        yield
        seen.append(variable.get())
        variable.reset(token)

    def task() -> str:
        return variable.get()

    async def task_async() -> str:
        await asyncio.sleep(0)
        return variable.get()

    made = hooks(around_run=around_async if is_hook_async else around, pre_run=lambda task: seen.append(variable.get()))
    run = Run(made, task_async if is_task_async else task)
    assert run.outcome().result == '"set"'
    assert (seen, run.logged) == (["set", "set"], [])


def test_a_variable_that_is_never_reset_does_not_reach_the_next_attempt_of_the_thread() -> None:
    def around(task: TaskView) -> Iterator[None]:
        before.append(variable.get())
        variable.set("left behind")
        yield

    before: list[str] = []
    for _ in range(2):
        attempt = Attempt(Task("id", "name", "jobs:f", "[]", "{}", None, 1, 0, None, None), lambda: None)
        execute(
            attempt,
            lambda path: returns_7,
            default_timeout=30,
            on_begin=lambda attempt: None,
            hooks=hooks(around_run=around),
        )
    assert before == ["unset", "unset"]
    assert variable.get() == "unset"


def test_an_asynchronous_hook_and_an_asynchronous_task_share_one_loop() -> None:
    loops: list[object] = []

    async def around(task: TaskView) -> AsyncIterator[None]:
        loops.append(asyncio.get_running_loop())
        yield
        loops.append(asyncio.get_running_loop())

    async def task() -> None:
        loops.append(asyncio.get_running_loop())

    async def behind(*args: object) -> None:
        loops.append(asyncio.get_running_loop())

    Run(hooks(around_run=around, post_run=behind), task).outcome()
    assert len(loops) == 4
    assert len(set(loops)) == 1
    assert loops[0].is_closed()  # type: ignore[attr-defined]


def test_a_task_may_run_a_loop_of_its_own_inside_an_asynchronous_hook() -> None:
    steps = Steps()

    def task() -> object:
        return asyncio.run(returns_7_async())

    run = Run(hooks(around_run=steps.around("1", is_async=True)), task)
    assert (run.outcome().result, steps) == ("7", ["into 1", "out of 1"])


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (ValueError("refused"), outcome.RAISED),
        (Retry("refused", delay=7), outcome.ASKED_FOR_RETRY),
        (Cancel("refused"), outcome.ASKED_FOR_CANCEL),
        (SystemExit("refused"), outcome.RAISED),
    ],
)
def test_a_hook_before_that_raises_fails_the_attempt_as_the_task_would(
    raised: BaseException, kind: str, is_async: bool
) -> None:
    steps = Steps()

    def refuse(task: TaskView) -> None:
        raise raised

    async def refuse_async(task: TaskView) -> None:
        raise raised

    run = Run(
        hooks(
            around_run=steps.around("1"),
            pre_run=[refuse_async if is_async else refuse, steps.plain("never")],
            post_run=lambda task, result, error: steps.append(error),
        ),
        lambda: steps.append("never"),
    )
    ended = run.outcome()
    assert (ended.kind, ended.error_message) == (kind, "refused")
    assert ended.delay == getattr(raised, "delay", None)
    assert steps == ["into 1", raised]
    assert run.logged == []


def fails_at_once(task: TaskView) -> Iterator[None]:
    raise RuntimeError("at once")
    yield


def fails_at_the_end(task: TaskView) -> Iterator[None]:
    yield
    raise RuntimeError("at the end")


async def fails_at_once_async(task: TaskView) -> AsyncIterator[None]:
    raise RuntimeError("at once")
    yield


async def fails_at_the_end_async(task: TaskView) -> AsyncIterator[None]:
    yield
    raise RuntimeError("at the end")


def exits(task: TaskView) -> Iterator[None]:
    raise SystemExit("exits")
    yield


def does_not_yield(task: TaskView) -> Iterator[None]:
    if task is None:
        yield


async def does_not_yield_async(task: TaskView) -> AsyncIterator[None]:
    if task is None:
        yield


def yields_twice(task: TaskView) -> Iterator[None]:
    yield
    yield


async def yields_twice_async(task: TaskView) -> AsyncIterator[None]:
    yield
    yield


def returns_nothing(task: TaskView) -> None: ...


async def is_a_coroutine_function(task: TaskView) -> None: ...


@pytest.mark.parametrize(
    ("around", "message"),
    [
        (fails_at_once, "RuntimeError: at once"),
        (fails_at_once_async, "RuntimeError: at once"),
        (fails_at_the_end, "RuntimeError: at the end"),
        (fails_at_the_end_async, "RuntimeError: at the end"),
        (exits, "SystemExit: exits"),
        (does_not_yield, "RuntimeError: it did not yield"),
        (does_not_yield_async, "RuntimeError: it did not yield"),
        (yields_twice, "RuntimeError: it yielded more than once"),
        (yields_twice_async, "RuntimeError: it yielded more than once"),
        (returns_nothing, "TypeError: an around_run hook is a generator function"),
        (is_a_coroutine_function, "TypeError: an around_run hook is a generator function"),
    ],
)
def test_a_hook_around_that_fails_is_logged_once_and_the_task_goes_on(
    around: Callable[..., object], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    steps = Steps()
    run = Run(hooks(around_run=[steps.around("1"), around, steps.around("3")]), returns_7)
    assert (run.outcome().kind, run.outcome().result) == (outcome.RETURNED, "7")
    assert steps == ["into 1", "into 3", "out of 3", "out of 1"]
    (logged,) = run.logged
    assert logged.startswith(f"the around_run hook {around.__module__}.{around.__qualname__} failed\n")
    assert message in logged
    assert "Traceback (most recent call last)" in logged
    (record,) = [r for r in caplog.records if r.name == "queuedtask.hooks"]
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert around.__qualname__ in record.getMessage()


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("raised", [ValueError("boom"), SystemExit("boom")])
def test_a_hook_behind_that_fails_is_logged_once_and_changes_nothing(raised: BaseException, is_async: bool) -> None:
    steps = Steps()

    def fail(*args: object) -> None:
        raise raised

    async def fail_async(*args: object) -> None:
        raise raised

    made = hooks(post_run=[fail_async if is_async else fail, steps.plain("after 2")], around_run=steps.around("1"))
    run = Run(made, returns_7)
    assert (run.outcome().kind, run.outcome().result) == (outcome.RETURNED, "7")
    assert steps == ["into 1", "after 2", "out of 1"]
    (logged,) = run.logged
    assert f"{type(raised).__name__}: boom" in logged


def test_a_hook_around_that_raises_something_else_is_logged_and_the_task_s_own_error_stays() -> None:
    def translate(task: TaskView) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise LookupError("translated") from error

    def task() -> None:
        raise ValueError("boom")

    run = Run(hooks(around_run=translate), task)
    assert (run.outcome().error_type, run.outcome().error_message) == ("ValueError", "boom")
    (logged,) = run.logged
    assert "LookupError: translated" in logged


# ----------------------------------------------------------------------------------------------------------- interrupts


def around_spinning(task: TaskView) -> Iterator[None]:
    spin()
    yield


async def around_waiting(task: TaskView) -> AsyncIterator[None]:
    started.set()
    await asyncio.sleep(60)
    yield


def pre_spinning(task: TaskView) -> None:
    spin()


async def pre_waiting(task: TaskView) -> None:
    await asyncio.sleep(60)


def pre_swallowing(task: TaskView) -> None:
    try:
        spin()
    except BaseException:
        pass


def around_swallowing(task: TaskView) -> Iterator[None]:
    pre_swallowing(task)
    yield


started = threading.Event()


@pytest.mark.parametrize("interrupt", [TaskTimeout, Interrupted])
@pytest.mark.parametrize(
    ("kind", "hanging"),
    [
        ("around_run", around_spinning),
        ("around_run", around_waiting),
        ("around_run", around_swallowing),
        ("on_pre_run", pre_spinning),
        ("on_pre_run", pre_waiting),
        ("on_pre_run", pre_swallowing),
    ],
)
def test_a_hook_before_the_task_is_interrupted_as_the_task_would_be(
    kind: str, hanging: Callable[..., object], interrupt: type[BaseException]
) -> None:
    steps = Steps()
    made = hooks(around_run=steps.around("1"), post_run=lambda task, result, error: steps.append(type(error)))
    made.add(kind, hanging)
    run = Run(made, lambda: steps.append("never"))
    wait_until(lambda: run.attempt.began is not None and steps)
    time.sleep(0.02)
    run.attempt.interrupt(interrupt)
    assert run.outcome().kind == (outcome.TIMED_OUT if interrupt is TaskTimeout else outcome.INTERRUPTED)
    # The one that was entered is left; the error is the interrupt, whatever the hook has made of it.
    assert steps == ["into 1", interrupt]
    assert run.logged == []


@pytest.mark.parametrize("is_hook_async", [False, True])
def test_a_task_that_is_interrupted_between_hooks_is_told_of_as_that(is_hook_async: bool) -> None:
    steps = Steps()

    async def task() -> None:
        steps.append("task")
        await asyncio.sleep(60)

    async def behind(task: TaskView, result: object, error: BaseException | None) -> None:
        await asyncio.sleep(0.01)
        steps.append((type(error), type(error.__cause__)) if error else None)

    around = Steps.around(steps, "1", is_async=is_hook_async)
    run = Run(hooks(around_run=around, post_run=behind), task)
    wait_until(lambda: "task" in steps)
    run.attempt.interrupt(TaskTimeout)
    assert run.outcome().kind == outcome.TIMED_OUT
    assert steps == ["into 1", "task", (TaskTimeout, asyncio.CancelledError)]
    assert run.logged == []


@pytest.mark.parametrize("is_async", [False, True])
def test_a_hook_behind_is_not_interrupted_and_the_outcome_stands(is_async: bool) -> None:
    steps = Steps()
    go_on = threading.Event()

    def behind(*args: object) -> None:
        steps.append("behind")
        while not go_on.is_set():
            pass
        steps.append("ended")

    async def behind_async(*args: object) -> None:
        steps.append("behind")
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        steps.append("ended")

    def task() -> None:
        raise ValueError("its own")

    run = Run(hooks(post_run=behind_async if is_async else behind, around_run=steps.around("1")), task)
    wait_until(lambda: "behind" in steps)
    run.attempt.interrupt(TaskTimeout)
    run.attempt.guard.insist()
    time.sleep(0.02)
    go_on.set()
    assert (run.outcome().kind, run.outcome().error_message) == (outcome.RAISED, "its own")
    assert steps == ["into 1", "behind", "ended"]
    assert run.logged == []


@pytest.mark.parametrize("how", ["generator", "manager"])
def test_one_that_is_interrupted_right_after_its_yield_is_left_all_the_same(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[type[BaseException] | None] = []
    enter = _Round.enter

    def enter_and_interrupt(round_: _Round) -> None:
        enter(round_)
        attempt = current_attempt()
        assert attempt is not None
        threading.Thread(target=attempt.interrupt, args=(TaskTimeout,)).start()
        spin()

    def around(task: TaskView) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            seen.append(type(error))
            raise

    monkeypatch.setattr(_Round, "enter", enter_and_interrupt)
    run = Run(hooks(around_run=around if how == "generator" else contextmanager(around)), returns_7)
    assert run.outcome().kind == outcome.TIMED_OUT
    assert (seen, run.logged) == ([TaskTimeout], [])


# A coroutine that has been made and is interrupted before it runs is never awaited.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")
def test_an_interrupt_at_any_moment_leaves_what_was_entered_and_calls_the_hook_behind() -> None:
    """Fire at random into the many small steps of an attempt with hooks, in one thread, and count."""
    counts = {"in": 0, "out": 0, "behind": 0, "abandoned": 0}
    kinds: dict[str, int] = {}
    current: list[Attempt] = []
    done = threading.Event()

    def around(task: TaskView) -> Iterator[None]:
        counts["in"] += 1
        try:
            yield
        except GeneratorExit:
            counts["abandoned"] += 1
            raise
        finally:
            counts["out"] += 1

    async def around_async(task: TaskView) -> AsyncIterator[None]:
        counts["in"] += 1
        try:
            await asyncio.sleep(0)
            yield
        finally:
            counts["out"] += 1

    def behind(*args: object) -> None:
        counts["behind"] += 1

    def fire() -> None:
        last = None
        while not done.is_set():
            if current and current[0] is not last:
                last = current[0]
                while last.began is None and not done.is_set():
                    time.sleep(0)
                until = time.perf_counter() + random.random() * 0.0003
                while time.perf_counter() < until:
                    pass
                last.interrupt(TaskTimeout)

    made = hooks(around_run=[around, around_async, around], post_run=behind, pre_run=lambda task: None)
    thread = threading.Thread(target=fire)
    trials, switching = 1000, sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        for n in range(trials):
            attempt = Attempt(Task("id", "name", "jobs:f", "[]", "{}", None, n, 0, None, None), lambda: None)
            current[:] = [attempt]
            function: Callable[..., object] = returns_7 if n % 2 else returns_7_async
            ended = execute(
                attempt,
                lambda path, function=function: function,  # type: ignore[misc]
                default_timeout=30,
                on_begin=lambda attempt: None,
                hooks=made,
            )
            kinds[ended.kind] = kinds.get(ended.kind, 0) + 1
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(switching)
        del current[:]
        gc.collect()
    assert counts["behind"] == trials
    assert counts["in"] == counts["out"]
    assert counts["abandoned"] == 0
    assert set(kinds) == {outcome.RETURNED, outcome.TIMED_OUT}, kinds


# --------------------------------------------------------------------------------------------------------- registration


@pytest.mark.parametrize("kind", ["on_pre_create", "on_post_create", "on_pre_run", "on_post_run", "around_run"])
def test_registering_returns_the_function_and_refuses_what_cannot_be_called_so(kind: str) -> None:
    def takes_all(*args: object) -> None: ...

    assert Hooks().add(kind, takes_all) is takes_all
    assert Hooks().add(kind, print) is print
    with pytest.raises(TypeError, match=f"{kind}: 7 is not a function"):
        Hooks().add(kind, 7)  # type: ignore[type-var]
    with pytest.raises(TypeError, match=rf"{kind}: .*returns_7 must take \((spec|ref|task)"):
        Hooks().add(kind, returns_7)


def test_an_attempt_without_hooks_for_it_makes_nothing_of_them() -> None:
    made = hooks(pre_create=lambda spec: None, post_create=lambda ref: None)
    assert not made.has_any_for_attempts
    assert hook("on_pre_run", print).has_any_for_attempts
