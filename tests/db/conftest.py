"""Connections for tests of single statements: one that commits by itself, and as many more as are wanted."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helpers import raw_connection


@pytest.fixture
def lock_timeout() -> str:
    """Return how long a statement of a test may wait for a lock."""
    return "3s"


@pytest.fixture
def connect(database_url: str, lock_timeout: str) -> Iterator[Callable[..., Any]]:
    """Give a function that opens a connection; who has to wait for a lock fails instead of hanging."""
    with contextlib.ExitStack() as stack:

        def connect(*, autocommit: bool = True) -> Any:
            connection = stack.enter_context(contextlib.closing(raw_connection(database_url)))
            with connection.cursor() as cursor:
                cursor.execute("SELECT set_config('lock_timeout', %s, false)", (lock_timeout,))
            connection.autocommit = autocommit
            return connection

        yield connect


@pytest.fixture
def cursor(connect: Callable[..., Any]) -> Any:
    """Give a cursor on which every statement commits by itself."""
    return connect().cursor()
