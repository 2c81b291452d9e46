"""How far a task is, by the ``progress`` in its context."""

from collections.abc import Mapping


def share_of(progress: object) -> float | None:
    """Return a share from 0 to 1, None for what says nothing of that kind.

    A progress is a number from 0 to 1, or a mapping with the numbers ``done`` and ``total``.
    """
    if isinstance(progress, Mapping):
        done, total = _number(progress.get("done")), _number(progress.get("total"))
        if done is None or total is None or not (total > 0 and done >= 0):
            return None
        return 1.0 if done >= total else done / total
    share = _number(progress)
    return share if share is not None and 0 <= share <= 1 else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
