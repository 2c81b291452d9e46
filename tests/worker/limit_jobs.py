"""Tasks that write into a table when they begin and end, by the database's clock."""

import time
from typing import NamedTuple

from helpers import execute
from queuedtask import current_task

TABLE = "CREATE TABLE spans (id serial PRIMARY KEY, label text, pid int, began timestamptz, ended timestamptz)"


def span(label: str, seconds: float) -> None:
    """Write down when it begins, take so long, write down when it ends."""
    with current_task().connection() as connection:
        begin = "INSERT INTO spans (label, began) VALUES (%s, clock_timestamp()) RETURNING id"
        number = connection.exec_driver_sql(begin, (label,)).scalar_one()
    time.sleep(seconds)
    with current_task().connection() as connection:
        connection.exec_driver_sql("UPDATE spans SET ended = clock_timestamp() WHERE id = %s", (number,))


def fail_first(label: str) -> None:
    """Fail in the first attempt."""
    span(label, 0.0)
    if current_task().attempt == 1:
        raise ValueError("the first attempt fails")


class Span(NamedTuple):
    label: str
    began: float
    ended: float | None


def spans(url: str) -> list[Span]:
    """Return what has run, in the order of beginning, in seconds of the database's clock."""
    found = execute(
        url,
        "SELECT label, extract(epoch FROM began)::float, extract(epoch FROM ended)::float FROM spans ORDER BY began",
    )
    return [Span(*row) for row in found]


def most_at_once(found: list[Span]) -> int:
    """Return how many ran at the same time at most."""
    steps = sorted([(s.began, 1) for s in found] + [(s.ended, -1) for s in found if s.ended is not None])
    running = most = 0
    for _, step in steps:
        running += step
        most = max(most, running)
    return most


def seconds_below(found: list[Span], limit: int, since: float, until: float) -> float:
    """Return for how long fewer than the limit ran, between two times."""
    ends = [(until if s.ended is None else s.ended, -1) for s in found]
    steps = sorted([(s.began, 1) for s in found] + ends)
    running, last, below = 0, since, 0.0
    for at, step in steps:
        if at > since:
            if running < limit:
                below += max(0.0, min(at, until) - last)
            last = max(last, min(at, until))
        running += step
    return below + (until - last if running < limit else 0.0)
