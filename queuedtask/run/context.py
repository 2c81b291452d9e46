"""The context: a small JSON document that a task writes while it runs and that people read in the row.

A task's thread changes it, other threads that joined it may too, and the manager takes snapshots to write. Values are
encoded when they are set, so a snapshot shares nothing with the task's own objects.
"""

import json
import threading
from collections.abc import Sequence
from typing import Any

from queuedtask.model import codec


class Write(threading.Event):
    """A write that somebody waits for."""

    is_too_late = False
    """It will not come: the attempt has ended before it was asked for."""

    def give_up(self) -> None:
        """Say that it will not come."""
        self.is_too_late = True
        self.set()


class Context:
    """One attempt's context, or that of a thread outside any task (then it stays in memory)."""

    __slots__ = ("_changed", "_is_closed", "_lock", "_plain", "_taken", "_text", "_urgent", "_waiting")

    def __init__(self, text: str | None = None) -> None:
        self._text = text
        self._plain: dict[str, Any] | None = None if text else {}
        self._lock = threading.Lock()
        self._changed = False
        self._urgent = False
        # Who waits for the next write, and for the one that is under way.
        self._waiting: list[Write] = []
        self._taken: list[Write] = []
        self._is_closed = False

    def set(self, path: str, value: object, *, auto_commit: bool = True) -> None:
        """Set the value at a dotted path, making the mappings on the way.

        With ``auto_commit=False`` the change causes no write of its own: it goes along with the next one.
        Raises ValueError when something on the way is no mapping.
        """
        steps = steps_of(path)
        plain = codec.to_plain(value)
        with self._lock:
            self._put(steps, plain)
            self._changed = True
            self._urgent = self._urgent or auto_commit

    def advance(
        self, steps: Sequence[str], point: dict[str, object], progress: dict[str, object] | None, *, auto_commit: bool
    ) -> None:
        """Set the resume point of a loop, and the progress with it unless the task itself has set that.

        Both are plain already. A progress with a ``track`` is a loop's.
        """
        with self._lock:
            self._put(steps, point)
            if progress is not None:
                document = self._document()
                present = document.get("progress")
                if present is None or (isinstance(present, dict) and "track" in present):
                    document["progress"] = progress
            self._changed = True
            self._urgent = self._urgent or auto_commit

    def _put(self, steps: Sequence[str], plain: object) -> None:
        *way, last = steps
        here = self._document()
        self._text = None
        for depth, step in enumerate(way, 1):
            inner = here.setdefault(step, {})
            if not isinstance(inner, dict):
                raise ValueError(
                    f"set_context({'.'.join(steps)!r}): {'.'.join(way[:depth])} holds {inner!r}, which is not a mapping"
                )
            here = inner
        here[last] = plain

    def get(self, path: str | None = None, default: object = None) -> Any:
        """Return a copy of the value at a dotted path, or of the whole context; the default where there is none."""
        steps = steps_of(path) if path is not None else []
        with self._lock:
            here: Any = self._document()
            for step in steps:
                if not isinstance(here, dict) or step not in here:
                    return default
                here = here[step]
            return codec.from_plain(here)

    def text(self) -> str | None:
        """Return all of it as JSON text, None when nothing is in it."""
        with self._lock:
            document = self._document()
            if self._text is None and document:
                self._text = codec.dumps(document)
            return self._text if document else None

    def request_write(self) -> "Write":
        """Ask for a write; the event is set once everything that was set before has been written, or never will be."""
        written = Write()
        with self._lock:
            self._changed = self._urgent = True
            if self._is_closed:
                written.give_up()
            else:
                self._waiting.append(written)
        return written

    def take_changes(self, *, also_deferred: bool) -> str | None:
        """Return the whole context as JSON text when it is due to be written, None when it is not.

        To be followed by :meth:`confirm` or, when the write did not succeed, by :meth:`put_back`.
        """
        if not (self._changed if also_deferred else self._urgent):
            return None
        with self._lock:
            self._changed = self._urgent = False
            self._taken, self._waiting = self._taken + self._waiting, []
            return codec.dumps(self._document())

    def confirm(self, *, is_last: bool = False) -> None:
        """Say that what was taken has been written; or, to those who wait as well, that nothing will be any more."""
        if not self._taken and not is_last:
            return
        with self._lock:
            taken, self._taken = self._taken, []
            late: list[Write] = []
            if is_last:
                self._is_closed = True
                late, self._waiting = self._waiting, []
        for write in taken:
            write.set()
        for write in late:
            write.give_up()

    def replace(self, text: str) -> None:
        """Take over the whole context from the process in which the task runs; it is due to be written."""
        with self._lock:
            self._text, self._plain = text, None
            self._changed = self._urgent = True

    def put_back(self) -> None:
        """Say that what was taken could not be written: it is due again."""
        with self._lock:
            self._changed = self._urgent = True
            self._taken, self._waiting = [], self._taken + self._waiting

    def _document(self) -> dict[str, Any]:
        if self._plain is None:
            stored = json.loads(self._text or "{}")
            # A row that somebody wrote by hand may hold anything; a context is a mapping.
            self._plain = stored if isinstance(stored, dict) else {"value": stored}
        return self._plain


def steps_of(path: str) -> list[str]:
    """Return the names of a dotted path. Raises ValueError for what is none."""
    steps = path.split(".")
    if not all(steps):
        raise ValueError(f"{path!r} is not a path of names joined by dots, such as 'progress.rows'")
    if len(steps) > codec.MAX_DEPTH:
        raise ValueError(f"a path of {len(steps)} names: at most {codec.MAX_DEPTH}")
    return [codec.clean_text(step) for step in steps]
