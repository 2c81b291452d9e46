"""Interrupting a task's own code, and nothing else.

``PyThreadState_SetAsyncExc`` raises an exception in another thread, at that thread's next bytecode boundary, wherever
that may be. Used carelessly it lands while a result is being written or in the next task. A :class:`Guard` allows it
only while the task's own code runs: one token is in play, and whoever takes it decides. The thread takes it when the
code has ended, or before it enters a critical section of ours (:meth:`Guard.hold`); from then on nobody can fire.
The firing side takes it before it raises; the thread then knows that an exception is under way and absorbs it. No
lock is involved, because an exception that lands between taking a lock and releasing it would leave it locked.

A coroutine is interrupted by cancelling its asyncio task, which works while it awaits. One that does not end by that
(it computes without awaiting) gets the exception in its thread, like any other code, when :meth:`Guard.insist` says so.
"""

import asyncio
import contextlib
import ctypes
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final

_set_async_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exception.argtypes = (ctypes.c_ulong, ctypes.py_object)
_set_async_exception.restype = ctypes.c_int


_NO_EXCEPTION: Final = ctypes.py_object()
"""A null pointer; ctypes would hand over None itself, which the thread would then try to raise."""
NOTHING: Final = object()
"""Stands for "has not returned"."""


def _leave(error: BaseException | None) -> None:
    """End a process that was forked off inside the call, as Python would end it, instead of going on as its parent."""
    code: object = 0
    if isinstance(error, SystemExit):
        code = 0 if error.code is None else error.code
        if not isinstance(code, int):
            sys.stderr.write(f"{code}\n")
            code = 1
    elif error is not None:
        traceback.print_exception(error)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code & 0xFF if isinstance(code, int) else 1)


class Guard:
    """The right to interrupt one attempt; made for each attempt anew, used once."""

    __slots__ = (
        "_armed",
        "_cancel",
        "_depth",
        "_held_token",
        "_is_cancel_held",
        "_is_cancel_wanted",
        "_is_insisting",
        "_is_mine",
        "_sent",
        "_thread",
        "_token",
        "due",
        "error",
        "value",
    )

    def __init__(self) -> None:
        self.value: object = NOTHING
        """What the called function returned."""
        self.error: BaseException | None = None
        """What it raised; None when it returned."""
        self.due: type[BaseException] | None = None
        """The interrupt that was asked for, whether or not it reached the code."""
        # One element while it is in play; list.append and list.pop are atomic.
        self._token: list[None] = []
        # The next four belong to the task's thread, which alone reads and writes them.
        self._armed = False
        self._is_mine = False
        self._depth = 0
        self._held_token = False
        self._is_cancel_held = False
        self._thread = 0
        self._sent = False
        # While a coroutine runs: cancels its asyncio task, from any thread.
        self._cancel: Callable[[], object] | None = None
        self._is_cancel_wanted = False
        self._is_insisting = False

    # --------------------------------------------------------------------------------------- in the thread of the task

    def call(self, function: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call a function, interruptibly; keep what it returned or raised. Never raises anything itself."""
        self._thread = threading.get_ident()
        self._armed = True
        process = os.getpid()
        try:
            try:
                self._give_token()
                self.value = function(*args, **kwargs)
            except BaseException as error:
                self.error = error
            self._take_token()
        except BaseException as error:
            # Only an interrupt can come here, it comes once, and the function had already ended. An ending that was
            # recorded stays as it is.
            if self.error is None and self.value is NOTHING:
                self.error = error
        self._armed = False
        if os.getpid() != process:
            _leave(self.error)
        if self._sent:
            # Nothing is pending any more; make sure of it, for the thread goes on with somebody else's task.
            _set_async_exception(self._thread, _NO_EXCEPTION)

    def run(
        self, coroutine: Coroutine[Any, Any, object], run: Callable[[Coroutine[Any, Any, object]], object] = asyncio.run
    ) -> object:
        """Run a coroutine with ``asyncio.run`` or the like, interruptible by cancellation.

        To be used inside :meth:`call`. Afterwards nothing is interrupted any more, until :meth:`resume`.
        """
        try:
            # What is under way to the thread lands here, before there is a loop that it could leave half made.
            self._take_token()
        except BaseException:
            coroutine.close()
            raise

        async def cancellable() -> object:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None

            def cancel() -> None:
                # In the loop's thread, so between two steps of the coroutine.
                if self._depth:
                    self._is_cancel_held = True
                else:
                    task.cancel()

            self._cancel = lambda: loop.call_soon_threadsafe(cancel)
            try:
                if self.due is not None or self._is_cancel_wanted:
                    # Asked for between taking the token and the line above. A second cancel before the first one
                    # has arrived changes nothing.
                    task.cancel()
                self._give_token()
                return await coroutine
            finally:
                # The coroutine's end is the end of the attempt: nothing lands in asyncio's own clearing up.
                self._take_token()
                self._cancel = None

        return run(cancellable())

    def resume(self) -> None:
        """Allow interrupts again after :meth:`run`, unless one was asked for already; may raise one."""
        if self.due is None:
            self._give_token()

    def hold(self) -> "Hold":
        """Return a context manager in which no interrupt lands; one that is asked for meanwhile comes at its end.

        For critical sections in the task's thread: the library's own, and those that a task shields. In other threads
        it does nothing. It nests.
        """
        return Hold(self)

    @property
    def is_held(self) -> bool:
        """Tell whether interrupts are held back at this moment."""
        return self._depth > 0

    def _give_token(self) -> None:
        """Allow interrupts; raise the one that was asked for while they were not."""
        self._is_mine = False
        self._token.append(None)
        if self._cancel is not None and not self._is_insisting:
            if self._is_cancel_held:
                self._is_cancel_held = False
                self._cancel()
        elif self.due is not None and self._wins_token():
            raise self.due

    def _take_token(self) -> bool:
        """Forbid interrupts, after the one that is under way, if any, has landed; False when it had landed before."""
        if self._is_mine or self._wins_token():
            return True
        while not self._sent:
            time.sleep(0)
        # A pending exception is raised at a backward jump. If nothing comes, it has landed before.
        for _ in range(10):
            pass
        return False

    def _wins_token(self) -> bool:
        try:
            self._token.pop()
        except IndexError:
            return False
        self._is_mine = True
        return True

    # ----------------------------------------------------------------------------------------------- in another thread

    def cancel(self) -> None:
        """Cancel the asyncio task of a coroutine, as a request: other code is not interrupted. Acts once."""
        if self.due is None and not self._is_cancel_wanted:
            self._is_cancel_wanted = True
            self._cancel_coroutine()

    def fire(self, interrupt: type[BaseException]) -> None:
        """Interrupt the task's own code if it runs, or as soon as it may be. Acts once; a later call does nothing."""
        if self.due is not None:
            return
        self.due = interrupt
        if not self._cancel_coroutine():
            self._raise_in_thread(interrupt)

    def insist(self) -> None:
        """Raise the interrupt that is due in the thread of a coroutine that cancelling does not end; acts once."""
        if self.due is not None and not self._is_insisting:
            self._is_insisting = True
            self._raise_in_thread(self.due)
            # It may have swallowed the first one and be waiting again: then its loop has to wake for either.
            self._cancel_coroutine()

    def _cancel_coroutine(self) -> bool:
        """Cancel the asyncio task, if there is one; tell whether there is."""
        cancel = self._cancel
        if cancel is None:
            return False
        # A closed event loop: the coroutine has just ended.
        with contextlib.suppress(RuntimeError):
            cancel()
        return True

    def _raise_in_thread(self, interrupt: type[BaseException]) -> None:
        try:
            self._token.pop()
        except IndexError:
            return  # Not begun, held, sent or ended. Whoever gives the token back sees what is due.
        _set_async_exception(self._thread, interrupt)
        self._sent = True


class Hold:
    """See :meth:`Guard.hold`. Holds of one attempt may overlap, as those of two coroutines that await in turn do."""

    __slots__ = ("_guard", "_is_active")

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._is_active = guard._armed and guard._thread == threading.get_ident()

    def __enter__(self) -> None:
        if self._is_active:
            guard = self._guard
            if guard._depth == 0 and not guard._is_mine:
                guard._held_token = guard._take_token()
            guard._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_active:
            guard = self._guard
            guard._depth -= 1
            if guard._depth == 0 and guard._held_token:
                guard._held_token = False
                guard._give_token()
