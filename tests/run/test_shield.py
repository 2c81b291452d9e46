"""Shields: what is due comes at their end; and insisting on a coroutine that cancelling does not end."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from queuedtask.errors import Interrupted, TaskTimeout
from queuedtask.run.timeouts import NOTHING, Guard

FOREVER = 10.0


def spin(seconds: float = FOREVER) -> None:
    """Run Python code, and only that, until it is interrupted."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass


class Call:
    """One call under a guard, in a thread like a slot's; what it reaches is noted by name."""

    def __init__(self) -> None:
        self.guard = Guard()
        self.reached: list[str] = []
        self._has_reached = threading.Condition()
        self._goes_on = threading.Event()
        self._thread: threading.Thread | None = None
        self._escaped: BaseException | None = None

    # ------------------------------------------------------------------------------------------- in the task's thread

    def note(self, place: str) -> None:
        # Whoever is interrupted in here must not leave the condition locked.
        with self.guard.hold(), self._has_reached:
            self.reached.append(place)
            self._has_reached.notify_all()

    def pause(self) -> None:
        """Wait until the test says so; for a moment longer, so that what is on its way would arrive."""
        assert self._goes_on.wait(10)
        spin(0.03)

    async def pause_async(self) -> None:
        while not self._goes_on.is_set():
            await asyncio.sleep(0.001)
        for _ in range(10):
            await asyncio.sleep(0.001)

    # ----------------------------------------------------------------------------------------------------- in the test

    def start(self, function: Callable[[], object]) -> None:
        def work() -> None:
            try:
                self.guard.call(function, (), {})
                # Whatever is still pending lands here, and not in somebody else's task.
                spin(0.02)
            except BaseException as error:
                self._escaped = error

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def start_coroutine(self, function: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self.start(lambda: self.guard.run(function()))

    def wait_for(self, place: str) -> None:
        with self._has_reached:
            assert self._has_reached.wait_for(lambda: place in self.reached, 10), f"never came to {place!r}"

    def go_on(self) -> None:
        self._goes_on.set()

    def finish(self) -> None:
        assert self._thread is not None
        before = time.monotonic()
        self._thread.join(20)
        assert not self._thread.is_alive()
        assert time.monotonic() - before < FOREVER / 2, "it was not interrupted"
        assert self._escaped is None, f"{self._escaped!r} landed outside of the guarded call"


@pytest.fixture
def call() -> Iterator[Call]:
    call = Call()
    yield call
    call.go_on()


# ------------------------------------------------------------------------------------------------------ plain functions


def test_what_is_due_comes_at_the_end_of_a_shield(call: Call) -> None:
    def code() -> None:
        try:
            with call.guard.hold():
                call.note("inside")
                call.pause()
                call.note("end of the shield")
            call.note("behind it")
        finally:
            call.note("finally")

    call.start(code)
    call.wait_for("inside")
    call.guard.fire(TaskTimeout)
    assert call.guard.is_held
    call.go_on()
    call.finish()
    assert call.reached == ["inside", "end of the shield", "finally"]
    assert isinstance(call.guard.error, TaskTimeout)
    assert not call.guard.is_held


def test_what_a_shield_would_have_returned_gives_way_to_what_is_due(call: Call) -> None:
    def code() -> str:
        with call.guard.hold():
            call.guard.fire(Interrupted)
            return "value"

    call.start(code)
    call.finish()
    assert isinstance(call.guard.error, Interrupted)
    assert call.guard.value is NOTHING


def test_without_anything_due_a_shield_changes_nothing(call: Call) -> None:
    def code() -> str:
        with call.guard.hold(), call.guard.hold():
            call.note("inside")
        with pytest.raises(ValueError), call.guard.hold():
            raise ValueError
        return "value"

    call.start(code)
    call.finish()
    assert (call.guard.value, call.guard.error, call.guard.is_held) == ("value", None, False)


def test_between_two_shields_what_is_due_comes_at_once(call: Call) -> None:
    def code() -> None:
        with call.guard.hold():
            call.note("first")
        call.note("between")
        spin()
        with call.guard.hold():
            call.note("second")

    call.start(code)
    call.wait_for("between")
    call.guard.fire(TaskTimeout)
    call.finish()
    assert call.reached == ["first", "between"]
    assert isinstance(call.guard.error, TaskTimeout)


def test_insisting_does_not_break_a_shield_and_adds_no_second_interrupt(call: Call) -> None:
    def code() -> str:
        try:
            with call.guard.hold():
                call.note("inside")
                call.pause()
                call.note("end of the shield")
        except TaskTimeout:
            call.note("caught")
        spin(0.05)
        return "went on"

    call.start(code)
    call.wait_for("inside")
    call.guard.fire(TaskTimeout)
    call.guard.insist()
    call.go_on()
    call.wait_for("caught")
    call.guard.insist()
    call.finish()
    assert call.reached == ["inside", "end of the shield", "caught"]
    assert (call.guard.value, call.guard.error) == ("went on", None)


# ----------------------------------------------------------------------------------------------------------- coroutines


def test_a_cancellation_is_held_back_until_the_shield_ends_across_awaits_too(call: Call) -> None:
    async def code() -> None:
        with call.guard.hold():
            call.note("inside")
            await call.pause_async()
            call.note("end of the shield")
        call.note("behind it")  # until the next await, where coroutines are cancelled
        await asyncio.sleep(FOREVER)
        call.note("never")

    call.start_coroutine(code)
    call.wait_for("inside")
    call.guard.fire(TaskTimeout)
    call.go_on()
    call.finish()
    assert call.reached == ["inside", "end of the shield", "behind it"]
    assert isinstance(call.guard.error, asyncio.CancelledError)


def test_a_cancellation_comes_with_the_end_of_the_outermost_shield(call: Call) -> None:
    async def code() -> None:
        with call.guard.hold():
            with call.guard.hold():
                call.note("inside")
                await call.pause_async()
            await asyncio.sleep(0.01)
            with call.guard.hold():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)
            call.note("end of the outer shield")
        await asyncio.sleep(FOREVER)
        call.note("never")

    call.start_coroutine(code)
    call.wait_for("inside")
    call.guard.fire(TaskTimeout)
    call.go_on()
    call.finish()
    assert call.reached == ["inside", "end of the outer shield"]
    assert isinstance(call.guard.error, asyncio.CancelledError)


def test_a_coroutine_whose_last_step_is_shielded_returns_what_it_has_done(call: Call) -> None:
    async def code() -> str:
        with call.guard.hold():
            call.note("inside")
            await call.pause_async()
            return "value"

    call.start_coroutine(code)
    call.wait_for("inside")
    call.guard.fire(TaskTimeout)
    call.go_on()
    call.finish()
    assert (call.guard.value, call.guard.error) == ("value", None)


def test_a_shield_in_a_part_of_a_coroutine_holds_for_all_of_it(call: Call) -> None:
    async def part() -> None:
        with call.guard.hold():
            call.note("inside")
            await call.pause_async()
            call.note("end of the shield")
        await asyncio.sleep(FOREVER)

    async def code() -> None:
        await asyncio.gather(part(), asyncio.sleep(FOREVER))

    call.start_coroutine(code)
    call.wait_for("inside")
    call.guard.fire(TaskTimeout)
    call.go_on()
    call.finish()
    assert call.reached == ["inside", "end of the shield"]
    assert isinstance(call.guard.error, asyncio.CancelledError)


def test_of_shields_that_overlap_the_last_one_to_end_lets_the_cancellation_through(call: Call) -> None:
    async def first() -> None:
        with call.guard.hold():
            await call.pause_async()
            call.note("end of the first")
        await asyncio.sleep(FOREVER)

    async def second() -> None:
        with call.guard.hold():
            call.note("inside")
            while "end of the first" not in call.reached:
                await asyncio.sleep(0.001)
            for _ in range(10):
                await asyncio.sleep(0.001)
            call.note("end of the second")
        await asyncio.sleep(FOREVER)

    async def code() -> None:
        await asyncio.gather(first(), second())

    call.start_coroutine(code)
    call.wait_for("inside")
    call.guard.fire(TaskTimeout)
    call.go_on()
    call.finish()
    assert call.reached == ["inside", "end of the first", "end of the second"]
    assert isinstance(call.guard.error, asyncio.CancelledError)


# ------------------------------------------------------------------------------------------------------------ insisting


def test_a_coroutine_that_never_awaits_goes_on_until_it_is_insisted_on(call: Call) -> None:
    async def code() -> str:
        call.note("running")
        call.pause()
        call.note("still running")
        spin()
        return "not interrupted"

    call.start_coroutine(code)
    call.wait_for("running")
    call.guard.fire(TaskTimeout)
    call.go_on()
    call.wait_for("still running")
    call.guard.insist()
    call.finish()
    assert isinstance(call.guard.error, TaskTimeout)
    assert call.guard.value is NOTHING


def test_one_who_insists_waits_for_the_end_of_a_shield_in_a_coroutine(call: Call) -> None:
    async def code() -> None:
        with call.guard.hold():
            call.note("inside")
            call.pause()
            call.note("end of the shield")
        call.note("behind it")

    call.start_coroutine(code)
    call.wait_for("inside")
    call.guard.fire(TaskTimeout)
    call.guard.insist()
    call.go_on()
    call.finish()
    assert call.reached == ["inside", "end of the shield"]
    assert isinstance(call.guard.error, TaskTimeout)


def test_insisting_acts_once(call: Call) -> None:
    async def code() -> str:
        call.note("running")
        try:
            spin()
        except TaskTimeout:
            call.note("caught")
        call.pause()
        return "went on"

    call.start_coroutine(code)
    call.wait_for("running")
    call.guard.fire(TaskTimeout)
    call.guard.insist()
    call.wait_for("caught")
    call.guard.insist()
    call.go_on()
    call.finish()
    assert (call.guard.value, call.guard.error) == ("went on", None)


def test_insisting_on_what_nothing_is_due_to_does_nothing(call: Call) -> None:
    async def code() -> str:
        call.note("running")
        call.pause()
        return "value"

    call.start_coroutine(code)
    call.wait_for("running")
    call.guard.insist()
    call.go_on()
    call.finish()
    assert (call.guard.value, call.guard.error) == ("value", None)


@pytest.mark.parametrize("is_coroutine", [True, False])
def test_insisting_after_the_end_changes_nothing_and_leaves_the_next_call_alone(call: Call, is_coroutine: bool) -> None:
    async def code() -> str:
        return "value"

    call.start(lambda: call.guard.run(code()) if is_coroutine else "value")
    call.finish()
    call.guard.fire(TaskTimeout)
    call.guard.insist()
    following = Guard()
    following.call(spin, (0.02,), {})
    assert (call.guard.value, call.guard.error, following.error) == ("value", None, None)


def test_a_plain_function_that_has_swallowed_its_interrupt_is_not_interrupted_again(call: Call) -> None:
    def code() -> str:
        call.note("running")
        try:
            spin()
        except TaskTimeout:
            call.note("caught")
        call.pause()
        return "went on"

    call.start(code)
    call.wait_for("running")
    call.guard.fire(TaskTimeout)
    call.wait_for("caught")
    call.guard.insist()
    call.go_on()
    call.finish()
    assert (call.guard.value, call.guard.error) == ("went on", None)
