"""Ids cut into ranges: what ``add_range_tasks`` makes one task of each."""

from collections.abc import Iterable
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from queuedtask.errors import InvalidTask

_KINDS: Final = (int, str, UUID, datetime, date)
_ALLOWED: Final = "must be ints, texts, UUIDs, dates or datetimes, all of one kind"


def ranges(ids: Iterable[Any], chunk_size: int) -> list[tuple[Any, Any]]:
    """Return the first and the last id of each chunk, the ids sorted and each counted once.

    Raises InvalidTask for a chunk_size that is none, and for ids that have no common order.
    """
    if type(chunk_size) is not int or chunk_size < 1:
        raise InvalidTask(f"chunk_size={chunk_size!r}: must be a whole number, 1 or more")
    found = _sorted(ids)
    return [(found[at], found[min(at + chunk_size, len(found)) - 1]) for at in range(0, len(found), chunk_size)]


def _sorted(ids: Iterable[Any]) -> list[Any]:
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise InvalidTask(f"ids={ids!r}: must be a list or another iterable of ids")
    found = list(ids)
    kinds = {type(each) for each in found}
    if len(kinds) > 1 or not kinds <= set(_KINDS):
        raise InvalidTask(f"ids: {_ALLOWED}, not {', '.join(sorted(kind.__qualname__ for kind in kinds))}")
    try:
        return sorted(set(found))
    except TypeError:
        raise InvalidTask("ids: datetimes must all have a time zone, or none of them") from None
