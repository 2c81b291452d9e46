"""Long loops: progress, and a resume point in the context, so that another attempt goes on where one ended.

The resume point is the number of finished items and what identifies the last one of them. Where the two disagree, the
items have changed since, and what identifies it counts. In doubt an item comes twice rather than never.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextvars import ContextVar
from datetime import date, datetime
from decimal import Decimal
from itertools import chain, islice
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast
from uuid import UUID
from weakref import ref

from queuedtask.errors import LeaseLost
from queuedtask.model import codec
from queuedtask.run.attempt import Attempt, current_attempt
from queuedtask.run.context import steps_of
from queuedtask.run.logs import getLogger

T = TypeVar("T")

INTERVAL: Final = 1.0
"""Seconds between two writes of the resume point while the loop goes on."""
LONGEST_TEXT: Final = 255
"""Characters of a text that may identify an item."""
FEW: Final = 10
"""Finished items that are rather run again than searched for; so many that come in order are no accident."""

_SCALARS: Final = frozenset({int, float, bool, UUID, date, datetime, Decimal})
_ALLOWED: Final = f"an int, a text of at most {LONGEST_TEXT} characters, a UUID, a date, or a tuple of them"


def track(
    items: Iterable[T], *, key: str = "cursor", by: Callable[[T], object] | None = None, total: int | None = None
) -> Iterator[T]:
    """Iterate, and keep in the task's context how far that is: ``for order in track(orders, key="cursor")``.

    Another attempt of the task goes on after the last item that was finished, and an item is finished when the loop
    asks for the next one. The point stands in the context at ``key``, a dotted path; each loop of a task needs one of
    its own. It is written about once a second, when the loop ends, and when the attempt ends, however it does; so
    after a crash the items of the last second or two come again. Once the task is done it is of no account: sent round
    again, it begins at the first item.

    Items must come in the same order each time, new ones at the end. ``by`` returns what identifies an item: an int, a
    text, a UUID, a date, or a tuple of them. By default that is the item itself if it is one, else its ``pk`` or
    ``id``, as attribute or key; with neither, the position alone counts. If the item at which the last attempt ended
    is at another place now, the loop goes on after that; if it is gone and the items are sorted, with the next larger
    one; otherwise it begins anew.

    ``progress`` in the context is kept as well, unless the task sets it itself; ``total`` is for items that have no
    length. Of loops in each other the outer one counts. Outside a task this only iterates.

    Raises TypeError for a set, which has no order; ValueError for a key that another loop of the attempt has;
    LeaseLost when the attempt was given up, which ends the loop of a thread that nothing else could end.
    """
    if isinstance(items, set | frozenset):
        raise TypeError("track(): a set has no order to go on in; give a list, such as sorted(…)")
    if total is not None and (type(total) is not int or total < 0):
        raise ValueError(f"track(total={total!r}): must be a whole number, 0 or more")
    steps = steps_of(key)
    attempt = current_attempt()
    if attempt is None:
        return iter(items)
    return _Track(attempt, items, key, steps, by, total)


def complete(attempt: Attempt, *, is_complete: bool = True) -> None:
    """Say of every resume point whether the task is done, and so begins anew if it is sent round again."""
    for key in attempt.tracks or ():
        try:
            attempt.context.set(f"{key}.complete", is_complete, auto_commit=False)
        except ValueError:
            pass  # The task has put something else there.


class _Point(NamedTuple):
    """Where an earlier attempt stopped."""

    done: int
    total: int | None
    last: object
    is_sorted: bool


class _Place(NamedTuple):
    """Which item of a loop around it a loop belongs to."""

    key: str
    done: int
    mark: object


_open: ContextVar[tuple["ref[_Track[Any]]", ...]] = ContextVar("queuedtask.track", default=())
"""The loops that the code which is running stands in, and some that have ended."""


class _Track(Generic[T]):
    """One loop. Finished items are counted when the next one is asked for; leaving the loop finishes nothing."""

    def __init__(
        self,
        attempt: Attempt,
        items: Iterable[T],
        key: str,
        steps: Sequence[str],
        by: Callable[[T], object] | None,
        total: int | None,
    ) -> None:
        self._attempt = attempt
        self._items: Iterable[T] | None = items
        self._key = key
        self._steps = steps
        self._mark_of = identity if by is None else _checked(by)
        self._total = total
        self._iterator: Iterator[T] | None = None
        self._within: list[object] = []
        """The loops around it and where they are, as the context has it."""
        self._done = 0
        self._last: object = None
        self._is_sorted = True
        self._mark: object = None
        self._has_current = False
        self._write_at = 0.0

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        attempt = self._attempt
        if attempt.is_given_up or attempt.is_disowned:
            raise LeaseLost("the attempt is this worker's no more: the loop goes no further")
        if self._iterator is None:
            self._begin()
        elif self._has_current:
            with attempt.guard.hold():
                self._finish()
        try:
            item = next(cast(Iterator[T], self._iterator))
        except StopIteration:
            self._end()
            raise
        self._mark = self._mark_of(item)
        self._has_current = True
        return item

    def _begin(self) -> None:
        attempt, items = self._attempt, cast(Iterable[T], self._items)
        around = [each for found in _open.get() if (each := found()) is not None and each.is_around(attempt)]
        with attempt.guard.hold():
            stored = attempt.context.get(self._key)
            self._within = [codec.to_plain(each.place()) for each in around]
            tracks = attempt.tracks = {} if attempt.tracks is None else attempt.tracks
            if tracks.get(self._key) == self._within:
                raise ValueError(f"track(key={self._key!r}): another loop has it; each needs a key of its own")
            tracks[self._key] = self._within
        if self._total is None and isinstance(items, Sized):
            self._total = len(items)
        point = self._read(stored)
        found = (0, iter(items)) if point is None else _resume(items, point, self._total, self._mark_of)
        if found is None:
            self._give_up(items)
            found = 0, iter(items)
        self._done, self._iterator = found
        if self._done and point is not None:
            self._last, self._is_sorted = point.last, point.is_sorted
        self._write_at = time.monotonic() + INTERVAL
        self._items = None
        _open.set((*(ref(each) for each in around), ref(self)))

    def _read(self, stored: object) -> _Point | None:
        """Return the point that is stored, None where there is none that counts for this loop."""
        if stored is None:
            return None
        if type(stored) is int and stored >= 0:
            stored = {"done": stored}  # the caller's own, given with the task
        if not isinstance(stored, dict) or not isinstance(stored.get("done", 0), int):
            raise ValueError(f"track(key={self._key!r}): the context has something else there: {stored!r}")
        if stored.get("complete") or codec.to_plain(stored.get("in", [])) != self._within or not stored.get("done"):
            return None
        total = stored.get("total")
        return _Point(
            stored["done"],
            total if isinstance(total, int) else None,
            _tupled(stored.get("last")),
            not stored.get("unsorted", False),
        )

    def _give_up(self, items: Iterable[T]) -> None:
        """Begin anew, which items that can be had only once do at the next attempt."""
        problem = "what the last attempt ended at is not among the items any more, and they are not sorted"
        if iter(items) is not items:
            log.warning("track(key=%r): %s: beginning with the first one", self._key, problem)
            return
        with self._attempt.guard.hold():
            self._attempt.context.advance(self._steps, {"done": 0}, None, auto_commit=False)
        raise LookupError(
            f"track(key={self._key!r}): {problem}; a generator cannot be begun anew, the next attempt does it"
        )

    def _finish(self) -> None:
        """Take note that the item which the loop had is finished."""
        self._has_current = False
        mark = self._mark
        if self._is_sorted and self._done and _is_less(mark, self._last) is not False:
            self._is_sorted = False
        self._done += 1
        self._last = mark
        now = time.monotonic()
        is_due = now >= self._write_at
        if is_due:
            self._write_at = now + INTERVAL
        self._put(auto_commit=is_due)

    def _put(self, *, auto_commit: bool) -> None:
        done, total = self._done, self._total
        point: dict[str, object] = {"done": done}
        if total is not None:
            point["total"] = total
        if self._last is not None:
            point["last"] = self._last if type(self._last) is int else codec.to_plain(self._last)
            if not self._is_sorted:
                point["unsorted"] = True
        progress = None
        if self._within:
            point["in"] = self._within
        elif total:
            progress = {"done": min(done, total), "total": total, "track": self._key}
        self._attempt.context.advance(self._steps, point, progress, auto_commit=auto_commit)

    def _end(self) -> None:
        with self._attempt.guard.hold():
            if self._iterator is not None and self._done:
                self._total = self._done
                self._put(auto_commit=not self._within)

    def is_around(self, attempt: Attempt) -> bool:
        """Tell whether the code that is running stands in this loop."""
        return self._attempt is attempt and self._has_current

    def place(self) -> _Place:
        """Return which item the loop is at."""
        return _Place(self._key, self._done, self._mark)


log = getLogger(__name__)


# -------------------------------------------------------------------------------------------- what identifies an item


def identity(item: object) -> object:
    """Return what identifies an item, as far as that can be known: itself, or its ``pk`` or ``id``; else None."""
    kind = type(item)
    if kind in _SCALARS:
        return item
    if kind is str:
        return item if len(cast(str, item)) <= LONGEST_TEXT else None
    if kind is tuple:
        marks = tuple(map(_scalar, cast(tuple[object, ...], item)))
        return None if None in marks else marks
    for name in ("pk", "id"):
        try:
            found = item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)
        except Exception:  # whatever somebody else's attribute does
            continue
        if (mark := _scalar(found)) is not None:
            return mark
    return None


def _scalar(value: object) -> object:
    if type(value) is str:
        return value if len(value) <= LONGEST_TEXT else None
    return value if type(value) in _SCALARS else None


def _checked(by: Callable[[T], object]) -> Callable[[T], object]:
    def mark_of(item: T) -> object:
        mark = by(item)
        marks = mark if type(mark) is tuple else (mark,)
        if not marks or any(_scalar(each) is None for each in marks):
            raise TypeError(f"track(by=…) returned {mark!r}: must be {_ALLOWED}")
        return mark

    return mark_of


def _tupled(stored: object) -> object:
    # JSON knows no tuples.
    return tuple(stored) if isinstance(stored, list) else stored


def _is_less(one: object, other: object) -> bool | None:
    """Compare what identifies two items; None where they cannot be."""
    try:
        return bool(one < other)  # type: ignore[operator]
    except TypeError:
        return None


# ----------------------------------------------------------------------------------------------------- where to go on


def _resume(
    items: Iterable[T], point: _Point, total: int | None, mark_of: Callable[[T], object]
) -> tuple[int, Iterator[T]] | None:
    """Return how many items lie behind, and the iterator over the others; None where that cannot be known."""
    if point.last is None:
        # Items that their position alone tells apart. Fewer than before: the finished ones have gone, most likely.
        if total is not None and point.total is not None and total < point.total:
            return None
        if isinstance(items, Sequence):
            return (point.done, _from(items, point.done)) if point.done <= len(items) else None
        iterator = iter(items)
        skipped = sum(1 for _ in islice(iterator, point.done))
        return (skipped, iterator) if skipped in (0, point.done) else None
    if isinstance(items, Sequence) and point.done <= len(items) and mark_of(items[point.done - 1]) == point.last:
        return point.done, _from(items, point.done)
    if point.done < FEW:
        return _search_few(iter(items), point, mark_of)
    return _search(iter(items), point, mark_of)


def _from(items: Sequence[T], index: int) -> Iterator[T]:
    # No slice: like an iterator, it sees what the loop itself appends.
    while index < len(items):
        yield items[index]
        index += 1


def _search_few(iterator: Iterator[T], point: _Point, mark_of: Callable[[T], object]) -> tuple[int, Iterator[T]]:
    """Find the place behind a few finished items; if they have changed, running some again is cheaper than a search."""
    kept = list(islice(iterator, point.done))
    marks = [mark_of(item) for item in kept]
    if len(marks) == point.done and marks[-1] == point.last:
        behind = point.done
    else:
        behind = marks.index(point.last) + 1 if point.last in marks else 0
    return behind, chain(kept[behind:], iterator)


def _search(iterator: Iterator[T], point: _Point, mark_of: Callable[[T], object]) -> tuple[int, Iterator[T]] | None:
    """Find the place in one walk, which holds no more items than need be: a generator may give millions.

    Where number and mark agree, that is it. Otherwise, after the first item with the mark; else, if all are sorted as
    far as anybody has seen, before the first larger one.
    """
    kept: list[T] = []
    behind: int | None = None
    """How many items lie before those that are kept; None while no place is known."""
    is_found, is_sorted = False, point.is_sorted
    number, before = 0, None
    for number, item in enumerate(iterator, 1):
        mark = mark_of(item)
        if number == point.done and mark == point.last:
            return number, iterator
        is_sorted = is_sorted and (number == 1 or _is_less(mark, before) is False)
        before = mark
        if is_found:
            kept.append(item)
        elif mark == point.last:
            is_found, behind, kept = True, number, []
        elif is_sorted and (behind is not None or _is_less(point.last, mark)):
            behind = number - 1 if behind is None else behind
            kept.append(item)
        else:
            behind, kept = None, []
        if number >= point.done and behind is not None:
            return behind, chain(kept, iterator)
    if behind is not None:
        return behind, chain(kept, iterator)
    # None of them is larger, so all were finished.
    return (number, iterator) if is_sorted or number == 0 else None
