"""The options that keep tasks from running at the same time, and pausing: what is written, what is refused."""

import json
from typing import Any

import pytest

from helpers import execute
from queuedtask import InvalidTask, Queue


def plain() -> None: ...


def stored(url: str) -> tuple[str | None, dict[str, Any] | None]:
    ((key, meta),) = execute(url, "SELECT concurrency_key, meta::text FROM queued_tasks")
    return key, None if meta is None else json.loads(meta)


def test_a_key_stands_in_its_column_and_the_rest_in_meta(queue: Queue, database_url: str) -> None:
    queue.options(concurrency_key="customer-7", concurrency=3, meta={"tag": [1]}).add_task(plain)
    assert stored(database_url) == ("customer-7", {"concurrency": 3, "tag": [1]})


def test_what_is_the_default_is_not_written(queue: Queue, database_url: str) -> None:
    queue.options(concurrency_key="customer-7", fifo=False).add_task(plain)
    assert stored(database_url) == ("customer-7", None)


def test_a_function_declares_them_and_the_call_gives_the_key(queue: Queue, database_url: str) -> None:
    def declared() -> None: ...

    globals()["declared"] = declared
    declared.__qualname__ = "declared"
    queue.task(fifo=True)(declared)
    queue.options(concurrency_key="customer-7").add_task(declared)
    assert stored(database_url) == ("customer-7", {"fifo": True})
    queue.clear()
    queue.add_task(declared)
    assert stored(database_url) == (None, None)


def test_a_batch_takes_them(queue: Queue, database_url: str) -> None:
    with queue.batch() as batch:
        batch.options(concurrency_key="a", fifo=True).add_task(plain)
    assert stored(database_url) == ("a", {"fifo": True})


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"concurrency": 2}, "needs a concurrency_key"),
        ({"fifo": True}, "needs a concurrency_key"),
        ({"concurrency_key": ""}, "1 to 255 characters"),
        ({"concurrency_key": "x" * 256}, "1 to 255 characters"),
        ({"concurrency_key": 7}, "1 to 255 characters"),
        ({"concurrency_key": "a", "concurrency": 0}, "whole number from 1"),
        ({"concurrency_key": "a", "concurrency": True}, "whole number from 1"),
        ({"concurrency_key": "a", "fifo": 1}, "must be True or False"),
        ({"concurrency_key": "a", "fifo": True, "concurrency": 2}, "one after another"),
        ({"concurrency_key": "a", "fifo": True, "priority": 2}, "order is that of adding"),
        ({"meta": {"fifo": True}}, "'fifo' is reserved"),
        ({"meta": {"concurrency": 2, "x": 1}}, "'concurrency' is reserved"),
        ({"channel": "*"}, "stands for all channels"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    queue: Queue, database_url: str, given: dict[str, Any], match: str
) -> None:
    with pytest.raises(InvalidTask, match=match):
        queue.options(**given).add_task(plain)
    assert execute(database_url, "SELECT count(*) FROM queued_tasks") == [(0,)]


@pytest.mark.parametrize("channel", ["", "*", 7, "x" * 65])
def test_what_is_no_channel_cannot_be_paused_or_resumed(queue: Queue, database_url: str, channel: Any) -> None:
    for change in (queue.pause, queue.resume):
        with pytest.raises(InvalidTask, match="channel="):
            change(channel)
    assert execute(database_url, "SELECT count(*) FROM queued_task_channels") == [(0,)]


def test_pause_keeps_the_limits_and_resume_leaves_them(queue: Queue, database_url: str) -> None:
    execute(database_url, "INSERT INTO queued_task_channels VALUES ('mail', 2, 10, 60)")
    queue.pause("mail")
    queue.resume("mail")
    queue.resume("never paused")
    rows = execute(
        database_url, "SELECT name, max_running, max_starts, per_seconds, is_paused FROM queued_task_channels"
    )
    assert rows == [("mail", 2, 10, 60.0, False)]
