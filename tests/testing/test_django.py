"""The kit inside Django's TestCase, whose transaction is rolled back, and with Sessions that join a test's."""

import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from djangos import django_connections
from helpers import execute
from queuedtask import Queue, current_task
from queuedtask.testing import assert_enqueued, drain, inline, refute_enqueued

sys.path.insert(0, str(Path(__file__).parent))


def place(number: int) -> None:
    """Write on Django's own connection, as a task of a Django project does."""
    from django.db import connection, transaction

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders VALUES (%s)", (number,))


def place_twice(number: int) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders VALUES (%s)", (number,))
        cursor.execute("INSERT INTO orders VALUES (%s)", (number,))


def break_off(number: int) -> None:
    from django.db import transaction

    with transaction.atomic():
        place(number)
        transaction.set_rollback(True)


def place_and_finish(number: int) -> None:
    with current_task().transaction("default"):
        place(number)
        current_task().set_result(number)


def numbers() -> list[int]:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT number FROM orders ORDER BY 1")
        return [row[0] for row in cursor.fetchall()]


@pytest.fixture
def connections(database_url: str) -> Iterator[Any]:
    execute(database_url, "CREATE TABLE orders (number integer PRIMARY KEY)")
    connections = django_connections(database_url)
    yield connections
    connections["default"].close()


def run(case: type[unittest.TestCase]) -> unittest.TestResult:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun
    return result


def test_tasks_run_inside_a_test_case_and_vanish_with_it(queue: Queue, connections: Any, database_url: str) -> None:
    from django.test import TestCase

    class OrderTest(TestCase):
        @classmethod
        def setUpTestData(cls) -> None:
            place(1)

        def add(self, function: Any, *args: Any, **options: Any) -> Any:
            return queue.options(connection="default", **options).add_task(function, *args)

        def test_it_runs(self) -> None:
            self.add(place, 2)
            assert_enqueued(queue, place, 2, connection="default")
            self.add(place_and_finish, 3)
            assert [ran.state for ran in drain(queue, "default")] == ["done", "done"]
            assert numbers() == [1, 2, 3]
            refute_enqueued(queue, place, connection="default")

        def test_it_fails(self) -> None:
            from django.db import IntegrityError

            self.add(place_twice, 4, max_retries=0)
            self.add(break_off, 5)
            with pytest.raises(IntegrityError):
                drain(queue, "default")
            assert [ran.state for ran in drain(queue, "default")] == ["done"]
            assert numbers() == [1]

        def test_it_runs_inline(self) -> None:
            with inline(queue):
                assert self.add(place_and_finish, 6).result == 6
            assert numbers() == [1, 6]

    result = run(OrderTest)
    assert not result.errors + result.failures, result.errors + result.failures
    assert execute(database_url, "SELECT 1 FROM queued_tasks UNION ALL SELECT number FROM orders") == []


def test_a_test_case_with_real_transactions_needs_no_connection_but_may_name_it(
    queue: Queue, connections: Any, database_url: str
) -> None:
    queue.options(connection="default").add_task(place_and_finish, 1)
    assert [ran.result for ran in drain(queue, "default")] == [1]
    assert execute(database_url, "SELECT number FROM orders") == [(1,)]


session: Any = None


def save(number: int) -> None:
    """Work with the application's Session, as a task of a Flask application does, and commit it."""
    session.execute(text("INSERT INTO orders VALUES (:number)"), {"number": number})
    session.commit()


def save_nothing(number: int) -> None:
    session.execute(text("INSERT INTO orders VALUES (:number)"), {"number": number})
    session.rollback()


def test_sessions_that_join_a_test_s_transaction_may_commit_and_roll_back(queue: Queue, database_url: str) -> None:
    global session
    execute(database_url, "CREATE TABLE orders (number integer PRIMARY KEY)")
    engine = create_engine(database_url)
    with engine.connect() as connection, connection.begin() as transaction:
        session = Session(bind=connection, join_transaction_mode="create_savepoint")
        queue.options(connection=session).add_task(save, 1)
        queue.options(connection=session).add_task(save_nothing, 2)
        queue.options(connection=session).add_task(save, 3)
        session.commit()
        assert {ran.state for ran in drain(queue, connection)} == {"done"}
        assert connection.execute(text("SELECT number FROM orders ORDER BY 1")).scalars().all() == [1, 3]
        session.close()
        transaction.rollback()
    engine.dispose()
    assert execute(database_url, "SELECT 1 FROM queued_tasks UNION ALL SELECT number FROM orders") == []
