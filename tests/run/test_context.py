"""The context document and the functions by which tasks set it."""

import json
import threading
from typing import Any

import pytest

from helpers import wait_until
from queuedtask import flush_context, get_context, set_context
from queuedtask.errors import TaskTimeout
from queuedtask.model.task import Task
from queuedtask.run.attempt import Attempt, enter
from queuedtask.run.context import Context


def taken(context: Context, *, also_deferred: bool = True) -> Any:
    text = context.take_changes(also_deferred=also_deferred)
    return None if text is None else json.loads(text)


def make_attempt(context: str | None = None) -> Attempt:
    return Attempt(Task("id", "name", "jobs:f", "[]", "{}", context, 1, 0, None, None), lambda: None)


def test_a_dotted_path_makes_the_mappings_on_its_way() -> None:
    context = Context()
    context.set("progress.rows.done", 3)
    context.set("progress.rows.all", 9)
    context.set("note", "x")
    assert context.get() == {"progress": {"rows": {"done": 3, "all": 9}}, "note": "x"}
    assert context.get("progress.rows") == {"done": 3, "all": 9}
    assert context.get("progress.rows.done") == 3


def test_a_value_that_is_not_there_is_the_default() -> None:
    context = Context('{"a": {"b": null}}')
    assert context.get("a.b", "default") is None
    assert context.get("a.c", "default") == "default"
    assert context.get("a.b.c", "default") == "default"
    assert context.get("x") is None


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b"])
def test_a_path_with_an_empty_step_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not a path"):
        Context().set(path, 1)
    with pytest.raises(ValueError, match="not a path"):
        Context().get(path)


def test_a_path_through_something_that_is_no_mapping_is_refused_and_changes_nothing() -> None:
    context = Context('{"a": {"b": 5}}')
    with pytest.raises(ValueError, match=r"a\.b holds 5, which is not a mapping"):
        context.set("a.b.c", 1)
    assert context.get() == {"a": {"b": 5}}
    assert context.take_changes(also_deferred=True) is None


def test_a_failed_set_leaves_the_lock_open() -> None:
    context = Context('{"a": 5}')
    with pytest.raises(ValueError, match="not a mapping"):
        context.set("a.b", 1)
    context.set("c", 1)
    assert context.get("c") == 1


def test_what_was_set_shares_nothing_with_the_callers_object() -> None:
    context = Context()
    value = {"list": [1, 2]}
    context.set("value", value)
    value["list"].append(3)
    assert context.get("value") == {"list": [1, 2]}
    context.get("value")["list"].append(4)
    context.get()["value"]["list"].append(5)
    assert context.get("value") == {"list": [1, 2]}


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, float("nan"), "a\0b", "\ud800", b"bytes", 10**5000],
    ids=["object", "set", "nan", "nul", "surrogate", "bytes", "a huge number"],
)
def test_any_value_gives_text_that_json_reads(value: object) -> None:
    context = Context()
    context.set("value", value)
    text = context.take_changes(also_deferred=True)
    assert text is not None
    text.encode()
    assert "\\u0000" not in text
    assert "value" in json.loads(text, parse_constant=pytest.fail)


def test_a_nested_container_of_itself_does_not_hang_the_task() -> None:
    loop: list[Any] = []
    loop.append(loop)
    context = Context()
    context.set("loop", loop)
    assert "loop" in taken(context)


@pytest.mark.parametrize("text", ['["a"]', "3", '"text"', "null"])
def test_a_stored_context_that_is_no_mapping_is_kept_under_a_name(text: str) -> None:
    context = Context(text)
    context.set("key", 1)
    assert context.get("key") == 1
    assert context.get("value") == json.loads(text)


def test_changes_are_taken_once() -> None:
    context = Context('{"old": 1}')
    assert context.take_changes(also_deferred=True) is None
    context.set("new", 2)
    assert taken(context) == {"old": 1, "new": 2}
    assert context.take_changes(also_deferred=True) is None


def test_a_change_without_auto_commit_waits_for_the_end_or_for_the_next_write() -> None:
    context = Context()
    context.set("cursor", 1, auto_commit=False)
    assert taken(context, also_deferred=False) is None
    context.set("rows", 2)
    assert taken(context, also_deferred=False) == {"cursor": 1, "rows": 2}
    context.set("cursor", 3, auto_commit=False)
    assert taken(context, also_deferred=False) is None
    assert taken(context, also_deferred=True) == {"cursor": 3, "rows": 2}


def test_what_was_put_back_is_due_again_with_what_came_later() -> None:
    context = Context()
    context.set("a", 1)
    assert taken(context, also_deferred=False) == {"a": 1}
    context.set("b", 2, auto_commit=False)
    context.put_back()
    assert taken(context, also_deferred=False) == {"a": 1, "b": 2}


def test_a_requested_write_is_confirmed_when_it_has_been_written() -> None:
    context = Context()
    context.set("a", 1, auto_commit=False)
    written = context.request_write()
    assert taken(context, also_deferred=False) == {"a": 1}
    assert not written.is_set()
    later = context.request_write()
    context.confirm()
    assert written.is_set()
    assert not later.is_set(), "it was asked for after the write had been taken"
    taken(context, also_deferred=False)
    context.confirm()
    assert later.is_set()


def test_a_requested_write_that_fails_is_confirmed_by_the_next_one() -> None:
    context = Context()
    written = context.request_write()
    taken(context, also_deferred=False)
    context.put_back()
    assert not written.is_set()
    assert taken(context, also_deferred=False) == {}
    context.confirm()
    assert written.is_set()


def test_many_threads_set_while_snapshots_are_taken() -> None:
    context, snapshots = Context(), []
    threads, rounds = 4, 300
    ended = threading.Event()

    def work(number: int) -> None:
        for step in range(rounds):
            # Two values that belong to one set are never seen apart.
            context.set(f"t{number}", {"step": step, "again": [step] * 3})
            context.set(f"deep.t{number}.k{step % 7}", step)

    def take() -> None:
        while not ended.is_set():
            if (text := context.take_changes(also_deferred=False)) is not None:
                snapshots.append(text)
                context.confirm()

    taker = threading.Thread(target=take)
    taker.start()
    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    ended.set()
    taker.join(30)
    if (text := context.take_changes(also_deferred=True)) is not None:
        snapshots.append(text)
    seen = dict.fromkeys(range(threads), -1)
    for snapshot in map(json.loads, snapshots):
        for number in range(threads):
            value = snapshot.get(f"t{number}")
            if value is not None:
                assert value["again"] == [value["step"]] * 3
                assert value["step"] >= seen[number]
                seen[number] = value["step"]
    assert seen == dict.fromkeys(range(threads), rounds - 1)


# ---------------------------------------------------------------------------------------- inside and outside tasks


@pytest.fixture
def outside() -> Any:
    """Run a function in a thread that has never set anything."""

    def run(function: Any) -> Any:
        result: list[Any] = []
        thread = threading.Thread(target=lambda: result.append(function()))
        thread.start()
        thread.join(10)
        return result[0]

    return run


def test_outside_a_task_the_context_is_in_memory_and_each_threads_own(outside: Any) -> None:
    def first() -> Any:
        set_context("request.id", 7)
        set_context("deferred", 1, auto_commit=False)
        flush_context()
        return get_context(), outside(get_context)

    assert outside(first) == ({"request": {"id": 7}, "deferred": 1}, {})


def test_inside_a_task_the_context_is_the_attempts(outside: Any) -> None:
    def task() -> Any:
        set_context("outside", 1)
        attempt = make_attempt('{"stored": 1}')
        before = enter(attempt)
        set_context("inside", 2)
        seen = get_context()
        enter(before)
        return seen, attempt.context.get(), get_context()

    inside = {"stored": 1, "inside": 2}
    assert outside(task) == (inside, inside, {"outside": 1})


def test_flush_context_returns_when_the_write_is_confirmed() -> None:
    attempt, asked, ended = make_attempt(), threading.Event(), threading.Event()
    attempt.wake_manager = asked.set

    def task() -> None:
        enter(attempt)
        set_context("a", 1, auto_commit=False)
        flush_context()
        ended.set()

    thread = threading.Thread(target=task)
    thread.start()
    assert asked.wait(5)
    assert taken(attempt.context, also_deferred=False) == {"a": 1}
    assert not ended.is_set()
    attempt.context.confirm()
    assert ended.wait(5)
    thread.join(5)


def test_an_interrupt_reaches_a_task_that_waits_for_its_flush() -> None:
    attempt, asked = make_attempt(), threading.Event()
    attempt.wake_manager = asked.set

    def slot() -> None:
        enter(attempt)
        attempt.guard.call(flush_context, (), {})

    thread = threading.Thread(target=slot)
    thread.start()
    assert asked.wait(5)
    attempt.interrupt(TaskTimeout)
    thread.join(5)
    assert not thread.is_alive()
    assert isinstance(attempt.guard.error, TaskTimeout)


@pytest.mark.parametrize("where", ["asking", "waiting"])
def test_an_interrupt_does_not_land_while_a_flush_may_hold_a_lock(where: str) -> None:
    """The manager takes the same locks to write and to say so: left locked, they would stop the worker."""
    attempt, ended = make_attempt(), []

    def interrupt_if(here: str) -> None:
        if where == here:
            attempt.interrupt(TaskTimeout)
            for _ in range(1000):  # where it would land
                pass
        ended.append(here)

    class Written(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            interrupt_if("waiting")
            return super().wait(timeout)

    class WatchedContext(Context):
        __slots__ = ()

        def request_write(self) -> threading.Event:
            interrupt_if("asking")
            return Written()

    attempt.context = WatchedContext()

    def slot() -> None:
        enter(attempt)
        attempt.guard.call(flush_context, (), {})

    thread = threading.Thread(target=slot)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    assert isinstance(attempt.guard.error, TaskTimeout)
    assert ended[-1] == where, "it landed inside, or not right after"


def test_joined_threads_and_the_task_share_one_context() -> None:
    from queuedtask import current_task

    attempt = make_attempt()

    def task() -> None:
        joined = current_task().copy_context()
        threads = [threading.Thread(target=joined.run, args=(set_context, f"parts.p{n}", n)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)

    before = enter(attempt)
    try:
        task()
        wait_until(lambda: len(get_context("parts")) == 5)
    finally:
        enter(before)
    assert attempt.context.get("parts") == {f"p{n}": n for n in range(5)}
