"""Tasks that finish in transactions of their own. Imported by the workers, too."""

import contextlib
import logging
import threading
import time
from typing import Any

import psycopg
import psycopg2
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from queuedtask import LeaseLost, NotAllowed, current_task, set_context

inside = threading.Event()
"""Set by a task inside its block."""
go_on = threading.Event()
"""What such a task waits for."""

INSERT = "INSERT INTO written VALUES ({})"


def finish(value: int, *, fail_inside: bool = False, fail_after: bool = False, wait: bool = False) -> str:
    with current_task().transaction() as connection:
        connection.execute(text(INSERT.format(value)))
        current_task().set_result({"written": value})
        set_context("seen", value)
        logging.getLogger("shop").warning("inside")
        if wait:
            inside.set()
            assert go_on.wait(20)
        if fail_inside:
            raise ValueError("inside")
    logging.getLogger("shop").warning("after")
    set_context("after", True)
    if fail_after:
        raise ValueError("after")
    return "not the result"


def finish_slowly(value: int) -> None:
    with current_task().transaction() as connection:
        connection.execute(text(INSERT.format(value)))
        time.sleep(0.01)
    time.sleep(0.01)


def finish_twice() -> None:
    with current_task().transaction():
        pass
    with contextlib.suppress(NotAllowed), current_task().transaction() as connection:
        connection.execute(text(INSERT.format(2)))
    with contextlib.suppress(NotAllowed):
        current_task().set_result(3)


def note_loss(value: int) -> None:
    try:
        finish(value, wait=True)
    except LeaseLost:
        set_context("lost", True)
        raise


def finish_with_session(url: str, value: int) -> None:
    engine = create_engine(url)
    with Session(engine) as session, current_task().transaction(session) as given:
        assert given is session
        session.execute(text(INSERT.format(value)))
        current_task().set_result(value)
    engine.dispose()


def finish_with_connection(url: str, value: int) -> None:
    engine = create_engine(url)
    with engine.connect() as connection, current_task().transaction(connection):
        connection.execute(text(INSERT.format(value)))
        current_task().set_result(value)
    engine.dispose()


def finish_with_driver(driver: str, dsn: str, value: int, *, autocommit: bool = False) -> None:
    connection: Any = (psycopg2 if driver == "psycopg2" else psycopg).connect(dsn)
    connection.autocommit = autocommit
    with contextlib.closing(connection), current_task().transaction(connection):
        connection.cursor().execute(INSERT.format(value))
        current_task().set_result(value)


def finish_with_django(value: int, *, atomic: bool = False, fail: bool = False) -> None:
    from django.db import connection, transaction

    # It is the slot's thread's, and nobody else closes it: this Queue knows nothing of Django.
    with (
        contextlib.closing(connection),
        transaction.atomic() if atomic else contextlib.nullcontext(),
        current_task().transaction("default") as given,
    ):
        with connection.cursor() as cursor:
            cursor.execute(INSERT.format(value))
        assert given.alias == "default"
        current_task().set_result(value)
        if fail:
            raise ValueError("inside")
