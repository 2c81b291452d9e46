"""track(): where a loop goes on in another attempt, whatever has become of its items meanwhile."""

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from queuedtask import LeaseLost, current_task, get_context, set_context, track
from queuedtask.model import outcome
from queuedtask.model.task import Task
from queuedtask.run import track as module
from queuedtask.run.attempt import Attempt, enter
from queuedtask.run.executor import execute


class Crash(Exception):
    pass


def attempt_of(context: Any) -> Attempt:
    text = None if context is None else json.dumps(context)
    return Attempt(Task("id", "name", "jobs:f", "[]", "{}", text, 1, 0, None, None), lambda: None)


def run(body: Callable[[], object], context: Any = None) -> dict[str, Any]:
    """Run a function as one attempt and return the context that it leaves; Crash is its own affair."""
    attempt = attempt_of(context)
    before = enter(attempt)
    try:
        with suppress(Crash):
            body()
    finally:
        enter(before)
    text = attempt.context.take_changes(also_deferred=True)
    return context or {} if text is None else json.loads(text)


def loop(
    items: Iterable[Any], seen: list[Any], *, crash_at: object = None, after: int | None = None, **options: Any
) -> Callable[[], None]:
    """Return a body that loops over the items and crashes at one of them, or after so many."""

    def body() -> None:
        for number, item in enumerate(track(items, **{"key": "cursor", **options}), 1):
            if crash_at is not None and item == crash_at:
                raise Crash
            seen.append(item)
            if number == after:
                raise Crash

    return body


def resumed(first: Iterable[Any], second: Iterable[Any], *, crash_at: object, **options: Any) -> list[Any]:
    """Return what the second attempt sees after the first one crashed at an item."""
    context = run(loop(first, [], crash_at=crash_at, **options))
    seen: list[Any] = []
    run(loop(second, seen, **options), context)
    return seen


def generated(items: Iterable[Any]) -> Iterator[Any]:
    yield from items


KINDS: dict[str, Callable[[list[Any]], Iterable[Any]]] = {
    "list": list,
    "generator": generated,
    "dict": dict.fromkeys,
    "tuple": tuple,
}


# ------------------------------------------------------------------------------------------------------------- one loop


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [8, 50])
def test_another_attempt_goes_on_with_the_item_at_which_the_last_one_crashed(kind: str, count: int) -> None:
    items = list(range(count))
    for crash_at in (0, 1, count // 2, count - 1):
        assert resumed(KINDS[kind](items), KINDS[kind](items), crash_at=crash_at) == items[crash_at:]


def test_an_item_counts_as_finished_when_the_next_one_is_asked_for() -> None:
    context = run(loop([5, 6, 7], [], after=2))
    assert context["cursor"] == {"done": 1, "total": 3, "last": 5}


def test_leaving_the_loop_finishes_nothing() -> None:
    def body() -> None:
        for item in track([5, 6, 7]):
            if item == 6:
                break

    assert run(body)["cursor"] == {"done": 1, "total": 3, "last": 5}


def test_a_loop_that_has_ended_is_passed_over() -> None:
    seen: list[int] = []
    context = run(loop([1, 2, 3], []))
    assert context["cursor"] == {"done": 3, "total": 3, "last": 3}
    assert run(loop([1, 2, 3], seen), context)["cursor"]["done"] == 3
    assert seen == []
    run(loop([1, 2, 3, 4], seen), context)
    assert seen == [4]


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_loop(kind: str) -> None:
    assert run(loop(KINDS[kind]([]), [])) == {}
    assert resumed([1, 2, 3], KINDS[kind]([]), crash_at=2) == []
    many = list(range(50))
    assert resumed(many, KINDS[kind]([]), crash_at=30) == []


def test_a_point_that_was_given_with_the_task_is_a_number_of_items() -> None:
    seen: list[str] = []
    run(loop("abcde", seen), {"cursor": 3})
    assert seen == ["d", "e"]


def test_what_is_no_point_is_refused_and_stays() -> None:
    with pytest.raises(ValueError, match="something else there: 'mine'"):
        run(loop([1], []), {"cursor": "mine"})
    with pytest.raises(ValueError, match="not a mapping"):
        run(loop([1, 2], [], key="a.b"), {"a": 5})


def test_a_loop_that_appends_to_its_own_list_sees_what_it_appends() -> None:
    def body(todo: list[int], seen: list[int], crash_at: int) -> None:
        for item in track(todo):
            if item == crash_at:
                raise Crash
            seen.append(item)
            if item < 3:
                todo.append(item + 10)

    seen: list[int] = []
    context = run(lambda: body([1, 2, 3], [], 3))
    run(lambda: body([1, 2, 3, 11, 12], seen, -1), context)
    assert seen == [3, 11, 12]


def test_outside_a_task_it_only_iterates() -> None:
    assert list(track([1, 2], key="cursor")) == [1, 2]
    assert list(track([1, 2], key="cursor")) == [1, 2]


@pytest.mark.parametrize("items", [{1, 2}, frozenset("ab")])
def test_a_set_is_refused(items: Any) -> None:
    with pytest.raises(TypeError, match="has no order"):
        track(items)


@pytest.mark.parametrize("total", [-1, 1.5, True, "3"])
def test_a_total_is_a_number_of_items(total: Any) -> None:
    with pytest.raises(ValueError, match="total"):
        track([1], total=total)


def test_a_key_is_a_path() -> None:
    with pytest.raises(ValueError, match="not a path"):
        track([1], key="a..b")
    assert run(loop([1, 2], [], key="import.cursor"))["import"]["cursor"]["done"] == 2


# ---------------------------------------------------------------------------------------------- what identifies an item

DAY = date(2026, 3, 1)
IDENTIFIED: dict[str, list[Any]] = {
    "texts": [f"{n:03}" for n in range(40)],
    "UUIDs": [UUID(int=n) for n in range(40)],
    "dates": [date.fromordinal(DAY.toordinal() + n) for n in range(40)],
    "times": [datetime.fromtimestamp(n, UTC) for n in range(40)],
    "decimals": [Decimal(n) / 8 for n in range(40)],
    "floats": [n / 8 for n in range(40)],
    "tuples": [(n // 7, f"{n % 7}") for n in range(40)],
    "mappings": [{"id": n, "name": "x"} for n in range(40)],
    "objects": [SimpleNamespace(id=UUID(int=n)) for n in range(40)],
    "models": [SimpleNamespace(pk=n, id="the same") for n in range(40)],
}


@pytest.mark.parametrize("kind", ["list", "generator"])
@pytest.mark.parametrize("what", IDENTIFIED)
def test_finished_items_may_be_gone(what: str, kind: str) -> None:
    items = IDENTIFIED[what]
    for gone in (items[:20], items[5:12], items[19:20], []):
        left = [item for item in items if item not in gone]
        assert resumed(items, KINDS[kind](left), crash_at=items[20]) == items[20:]


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_items_that_nothing_identifies_are_counted(kind: str) -> None:
    items = [[n] for n in range(40)]
    context = run(loop(KINDS[kind](items), [], crash_at=[20]))
    assert "last" not in context["cursor"]
    assert resumed(KINDS[kind](items), KINDS[kind](items), crash_at=[20]) == items[20:]
    assert resumed(KINDS[kind](items), KINDS[kind]([*items, [40]]), crash_at=[20]) == [*items[20:], [40]]


def test_fewer_items_that_nothing_identifies_are_begun_anew() -> None:
    items = [[n] for n in range(40)]
    assert resumed(items, items[20:], crash_at=[20]) == items[20:]
    assert resumed(items, items[10:], crash_at=[20]) == items[10:]


def test_by_says_what_identifies_an_item() -> None:
    items = [[n, "x"] for n in range(40)]
    context = run(loop(items, [], crash_at=[20, "x"], by=lambda item: item[0]))
    assert context["cursor"]["last"] == 19
    assert resumed(items, items[20:], crash_at=[20, "x"], by=lambda item: item[0]) == items[20:]


@pytest.mark.parametrize("mark", [None, [1], "x" * 300, object(), ()])
def test_by_must_return_what_can_be_kept(mark: object) -> None:
    with pytest.raises(TypeError, match="by="):
        run(loop([1], [], by=lambda item: mark))


def test_an_attribute_that_raises_identifies_nothing() -> None:
    class Detached:
        @property
        def id(self) -> int:
            raise RuntimeError("detached")

    items = [Detached() for _ in range(3)]
    assert run(loop(items, []))["cursor"] == {"done": 3, "total": 3}


# ------------------------------------------------------------------------------------ items that have changed meanwhile


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_unsorted_items_go_on_after_the_last_one_wherever_it_is(kind: str) -> None:
    items = [(n * 37) % 101 for n in range(101)]
    crash_at = items[50]
    assert resumed(KINDS[kind](items), KINDS[kind](items), crash_at=crash_at) == items[50:]
    assert resumed(KINDS[kind](items), KINDS[kind](items[30:]), crash_at=crash_at) == items[50:]
    assert resumed(KINDS[kind](items), KINDS[kind]([500, 400, *items]), crash_at=crash_at) == items[50:]


def test_unsorted_items_without_the_last_one_are_begun_anew(caplog: pytest.LogCaptureFixture) -> None:
    items = [(n * 37) % 101 for n in range(101)]
    left = [item for item in items if item != items[49]]
    with caplog.at_level(logging.WARNING):
        assert resumed(items, left, crash_at=items[50]) == left
    assert "beginning with the first one" in caplog.text


def test_unsorted_items_are_not_taken_for_sorted_because_those_that_are_left_begin_so() -> None:
    left = [*range(1, 12), 200, 4, 5]
    assert resumed([*range(100, 88, -1), *left], left, crash_at=1) == left


def test_a_generator_that_cannot_be_begun_anew_fails_once() -> None:
    items = [(n * 37) % 101 for n in range(101)]
    left = [item for item in items if item != items[49]]
    context = run(loop(generated(items), [], crash_at=items[50]))
    attempt = attempt_of(context)
    before = enter(attempt)
    try:
        with pytest.raises(LookupError, match="the next attempt does it"):
            next(track(generated(left)))
    finally:
        enter(before)
    context = json.loads(attempt.context.take_changes(also_deferred=True) or "")
    seen: list[int] = []
    run(loop(generated(left), seen), context)
    assert seen == left


def test_few_finished_items_that_have_changed_are_run_again() -> None:
    assert resumed([3, 1, 2, 9, 4], generated([1, 2, 9, 4]), crash_at=9) == [9, 4]
    assert resumed([3, 1, 2, 9, 4], generated([3, 1, 9, 4]), crash_at=9) == [3, 1, 9, 4]
    assert resumed([1, 2, 3, 4], generated([3, 4]), crash_at=3) == [3, 4]


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_the_same_item_may_come_several_times(kind: str) -> None:
    items = [7] * 30 + [8] * 30
    for after in (1, 5, 20, 45):
        context = run(loop(KINDS[kind](items), [], after=after))
        seen: list[int] = []
        run(loop(KINDS[kind](items), seen), context)
        assert seen == items[after - 1 :]


def test_no_unfinished_item_is_ever_left_out_when_finished_ones_vanish() -> None:
    import random

    chance = random.Random(7)
    for _ in range(2000):
        items = chance.sample(range(200), chance.randint(2, 40))
        if chance.random() < 0.5:
            items.sort()
        place = chance.randrange(len(items))
        kept = [item for item in items[:place] if chance.random() < chance.choice((0.0, 0.5, 0.95))]
        now = kept + items[place:]
        kind = KINDS[chance.choice(["list", "dict"])]
        seen = resumed(kind(items), kind(now), crash_at=items[place])
        assert seen[len(seen) - len(items[place:]) :] == items[place:], (items, place, now)


def test_a_generator_is_not_kept_in_memory() -> None:
    class Item:
        alive = 0

        def __init__(self, number: int) -> None:
            self.id = number
            Item.alive += 1

        def __del__(self) -> None:
            Item.alive -= 1

    def generate(first: int) -> Iterator[Item]:
        yield from map(Item, range(first, 5000))

    context = run(loop(generate(0), [], after=4000))
    most = 0

    def body() -> None:
        nonlocal most
        for item in track(generate(0)):
            most = max(most, Item.alive)
            if item.id == 3999:
                break

    Item.alive = 0
    run(body, context)
    assert most <= 3


# -------------------------------------------------------------------------------------------------------- several loops


def test_two_loops_of_a_task_have_a_point_each() -> None:
    seen: list[Any] = []

    def body(crash_at: object) -> None:
        for key, items in (("orders", [1, 2, 3]), ("mails", "abc")):
            for item in track(items, key=key):
                if item == crash_at:
                    raise Crash
                seen.append(item)

    context = run(lambda: body("b"))
    assert (context["orders"]["done"], context["mails"]["done"]) == (3, 1)
    seen.clear()
    run(lambda: body(None), context)
    assert seen == ["b", "c"]


def test_two_loops_with_one_key_are_refused() -> None:
    def body() -> None:
        list(track([1, 2]))
        list(track([3, 4]))

    with pytest.raises(ValueError, match="each needs a key of its own"):
        run(body)


def nested(seen: list[Any], crash_at: object, days: Iterable[int] = (1, 2, 3)) -> Callable[[], None]:
    def body() -> None:
        for day in track(list(days), key="day"):
            for shop in track("abcd", key="shop"):
                if (day, shop) == crash_at:
                    raise Crash
                seen.append((day, shop))

    return body


ALL = [(day, shop) for day in (1, 2, 3) for shop in "abcd"]


@pytest.mark.parametrize("crash_at", ALL)
def test_a_loop_in_a_loop_goes_on_in_the_item_that_it_was_in(crash_at: tuple[int, str]) -> None:
    seen: list[Any] = []
    context = run(nested([], crash_at))
    run(nested(seen, None), context)
    assert seen == ALL[ALL.index(crash_at) :]


def test_a_loop_in_a_loop_begins_anew_when_the_item_around_it_is_another() -> None:
    seen: list[Any] = []
    context = run(nested([], (2, "c")))
    run(nested(seen, None, days=(1, 5)), context)
    assert seen == [(5, shop) for shop in "abcd"]


def test_a_loop_that_was_left_is_not_around_the_next_one() -> None:
    seen: list[int] = []

    def body(crash_at: int | None) -> None:
        for item in track([1, 2], key="first"):
            if item == 1:
                break
        for item in track([1, 2, 3], key="second"):
            if item == crash_at:
                raise Crash
            seen.append(item)

    context = run(lambda: body(3))
    assert "in" not in context["second"]
    seen.clear()
    run(lambda: body(None), context)
    assert seen == [3]


def test_loops_of_several_threads_and_coroutines_are_not_in_each_other() -> None:
    def body() -> None:
        def work(key: str) -> None:
            for _ in track(range(200), key=key):
                pass

        joined = current_task().copy_context()
        threads = [threading.Thread(target=joined.run, args=(work, f"thread{n}")) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        async def coroutine(key: str) -> None:
            for _ in track(range(20), key=key):
                await asyncio.sleep(0)

        async def both() -> None:
            await asyncio.gather(coroutine("one"), coroutine("other"))

        asyncio.run(both())

    context = run(body)
    for key in ("thread0", "thread1", "thread2"):
        assert context[key] == {"done": 200, "total": 200, "last": 199}
    for key in ("one", "other"):
        assert context[key] == {"done": 20, "total": 20, "last": 19}


# -------------------------------------------------------------------------------------------------- progress and writes


def test_progress_is_that_of_the_outer_loop() -> None:
    context = run(nested([], (2, "c")))
    assert context["progress"] == {"done": 1, "total": 3, "track": "day"}


def test_a_task_may_set_progress_itself() -> None:
    def body(own: object) -> None:
        for item in track([1, 2, 3]):
            if item == 2:
                set_context("progress", own)

    assert run(lambda: body(0.4))["progress"] == 0.4
    assert run(lambda: body({"rows": 7}))["progress"] == {"rows": 7}
    assert run(loop([1, 2], []), {"progress": {"done": 1, "total": 2}})["progress"] == {"done": 1, "total": 2}
    assert run(loop([1, 2, 3], [], crash_at=3), {"progress": {"done": 1, "total": 1, "track": "x"}})["progress"] == {
        "done": 2,
        "total": 3,
        "track": "cursor",
    }


def test_without_a_length_there_is_progress_when_a_total_is_given_and_at_the_end() -> None:
    assert "progress" not in run(loop(generated([1, 2, 3]), [], crash_at=3))
    assert run(loop(generated([1, 2, 3]), [], crash_at=3, total=9))["progress"]["total"] == 9
    assert run(loop(generated([1, 2, 3]), []))["progress"] == {"done": 3, "total": 3, "track": "cursor"}
    # More than were announced are no more than everything.
    assert run(loop(generated(range(5)), [], crash_at=4, total=2))["progress"]["done"] == 2


def test_items_cause_no_write_of_their_own_but_one_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    attempt = attempt_of(None)
    before = enter(attempt)
    try:
        writes = 0
        for _ in track(range(1000)):
            clock.now += 0.01
            writes += attempt.context.take_changes(also_deferred=False) is not None
        assert 8 <= writes <= 10
        # At its end the loop is written at once.
        assert json.loads(attempt.context.take_changes(also_deferred=False) or "")["cursor"]["done"] == 1000
    finally:
        enter(before)


def test_a_loop_ends_when_its_attempt_was_given_up() -> None:
    attempt = attempt_of(None)
    before = enter(attempt)
    try:
        seen = []
        tracked = track(range(10))
        for item in tracked:
            seen.append(item)
            if item == 3:
                break
        attempt.give_up()
        with pytest.raises(LeaseLost, match="no more"):
            next(tracked)
        assert seen == [0, 1, 2, 3]
    finally:
        enter(before)


def test_a_task_that_was_done_begins_anew_when_it_is_sent_round_again() -> None:
    seen: list[int] = []

    def jobs(path: str) -> Callable[[], object]:
        def body() -> object:
            for item in track([1, 2, 3]):
                seen.append(item)
                if item == get_context("fail_at"):
                    raise ValueError
            return None

        return body

    def attempt(context: str) -> tuple[str, str]:
        made = attempt_of(json.loads(context))
        ended = execute(made, jobs, default_timeout=60.0, on_begin=lambda attempt: None)
        return ended.kind, made.context.take_changes(also_deferred=True) or context

    kind, context = attempt('{"fail_at": 2}')
    assert (kind, seen) == (outcome.RAISED, [1, 2])
    kind, context = attempt(context.replace('"fail_at":2', '"fail_at":0'))
    assert (kind, seen) == (outcome.RETURNED, [1, 2, 2, 3])
    assert json.loads(context)["cursor"] == {"done": 3, "total": 3, "last": 3, "complete": True}
    seen.clear()
    kind, context = attempt(context)
    assert (kind, seen) == (outcome.RETURNED, [1, 2, 3])


def test_a_task_that_keeps_something_else_at_the_key_can_still_be_done() -> None:
    def jobs(path: str) -> Callable[[], object]:
        def body() -> object:
            list(track([1]))
            set_context("cursor", "mine")
            return None

        return body

    made = attempt_of(None)
    assert execute(made, jobs, default_timeout=60.0, on_begin=lambda attempt: None).kind == outcome.RETURNED
    assert made.context.get("cursor") == "mine"
