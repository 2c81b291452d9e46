"""add_range_tasks(): one task for each chunk of ids, all or none."""

import contextlib
from typing import Any

import pytest

from helpers import execute, raw_connection
from queuedtask import InvalidTask, Queue

FUNCTION = "shop:index_orders"


def added(url: str) -> list[Any]:
    return [row[0] for row in execute(url, "SELECT args FROM queued_tasks ORDER BY id")]


def test_each_task_has_the_first_and_the_last_id_of_its_chunk(queue: Queue, database_url: str) -> None:
    refs = queue.add_range_tasks(FUNCTION, [7, 3, 5, 1, 1], chunk_size=2)
    assert added(database_url) == [[1, 3], [5, 7]]
    assert [ref.row().args for ref in refs] == ["[1, 3]", "[5, 7]"]
    assert all(ref.created for ref in refs)
    assert len(queue.add_range_tasks(FUNCTION, range(1000))) == 5


def test_without_ids_there_is_no_task(queue: Queue, database_url: str) -> None:
    assert queue.add_range_tasks(FUNCTION, []) == []
    assert added(database_url) == []


def test_options_hold_for_every_chunk(queue: Queue, database_url: str) -> None:
    queue.options(priority=5, auto_remove=True).add_range_tasks(FUNCTION, range(3), chunk_size=1)
    found = execute(database_url, "SELECT priority, auto_remove, count(*) FROM queued_tasks GROUP BY 1, 2")
    assert found == [(5, True, 3)]


def test_they_are_added_in_one_transaction(queue: Queue, database_url: str) -> None:
    queue.add_range_tasks(FUNCTION, range(2500), chunk_size=1)
    assert execute(database_url, "SELECT count(*), count(DISTINCT xmin::text) FROM queued_tasks") == [(2500, 1)]


def test_in_a_batch_they_come_with_it(queue: Queue, database_url: str) -> None:
    def fail() -> None:
        with queue.batch() as batch:
            batch.add_range_tasks(FUNCTION, range(10), chunk_size=2)
            batch.options(priority=1).add_range_tasks(FUNCTION, range(10), chunk_size=5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert added(database_url) == []
    with queue.batch() as batch:
        batch.add_range_tasks(FUNCTION, range(4), chunk_size=2)
        batch.options(priority=1).add_range_tasks(FUNCTION, range(4), chunk_size=4)
    assert added(database_url) == [[0, 1], [2, 3], [0, 3]]


def test_on_a_caller_s_connection_they_are_part_of_its_transaction(queue: Queue, database_url: str) -> None:
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as connection:
        queue.options(connection=connection).add_range_tasks(FUNCTION, range(4), chunk_size=2)
        assert added(database_url) == []
        connection.rollback()
        assert added(database_url) == []
        queue.options(connection=connection).add_range_tasks(FUNCTION, range(4), chunk_size=2)
        connection.commit()
    assert added(database_url) == [[0, 1], [2, 3]]


def test_what_is_wrong_is_refused_before_anything_is_written(queue: Queue, database_url: str) -> None:
    with pytest.raises(InvalidTask, match="chunk_size=0"):
        queue.add_range_tasks(FUNCTION, [1], chunk_size=0)
    with pytest.raises(InvalidTask, match="all of one kind"):
        queue.add_range_tasks(FUNCTION, [1, "a"])
    with pytest.raises(InvalidTask):
        queue.add_range_tasks(lambda first, last: None, [1])
    assert added(database_url) == []
