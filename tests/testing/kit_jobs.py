"""Tasks for the tests of the testing kit."""

import asyncio
import threading
from typing import Any

import queuedtask
from queuedtask import Cancel, Queue, Retry, current_task, flush_context, set_context

queue: Any = None
"""The queue that the tasks add to."""
connection: Any = None
"""The test's connection, for tasks that use it themselves."""
seen: list[Any] = []
failures = 0

own_queue = Queue("postgresql://nowhere/at-all")


@own_queue.task(max_retries=1)
def greet(name: str) -> str:
    return f"hello {name}"


def note(what: Any) -> Any:
    seen.append(what)
    return what


def add_child(what: str) -> str:
    me = current_task()
    options = queue.options(connection=connection) if connection is not None else queue
    options.options(parent=me.ref).add_task(note, f"{what}'s child")
    options.add_task(note, f"{what}'s friend")
    seen.append(what)
    return what


def sum_parents() -> Any:
    return len(current_task().parents)


def fail(message: str = "no") -> None:
    raise ValueError(message)


def fail_at_first(times: int) -> int:
    global failures
    failures += 1
    if failures <= times:
        raise ValueError(f"failure {failures}")
    return failures


def retry_at_first(times: int) -> int:
    global failures
    failures += 1
    if failures <= times:
        raise Retry(delay=3600)
    return failures


def call_off() -> None:
    raise Cancel("no need")


def leave() -> None:
    raise KeyboardInterrupt


def exit_() -> None:
    raise SystemExit(3)


def tell() -> str:
    set_context("progress", {"rows": 3})
    flush_context()
    set_context("later", 1, auto_commit=False)
    queuedtask.getLogger(__name__).warning("half way")
    return f"{current_task().name} {current_task().attempt}"


async def wait_a_little() -> int:
    await asyncio.sleep(0)
    return 7


def nothing_but_itself() -> None:
    queue.add_task(nothing_but_itself)


def break_transaction() -> None:
    execute("SELECT 1 / 0")


def roll_back() -> None:
    connection.rollback()


def execute(sql: str) -> Any:
    if hasattr(connection, "exec_driver_sql"):
        return connection.exec_driver_sql(sql)
    if hasattr(connection, "get_bind"):
        return connection.connection().exec_driver_sql(sql)
    from queuedtask.db.callers import cursor_on

    return cursor_on(connection).execute(sql)


def finish_with(how: str) -> None:
    """Finish in a transaction: of the library's own, or on the test's connection."""
    with current_task().transaction(connection if how == "given" else None):
        execute("INSERT INTO orders VALUES (2)")
        current_task().set_result("finished")


def fail_in_transaction() -> None:
    with current_task().transaction(connection):
        execute("INSERT INTO orders VALUES (3)")
        raise ValueError("not this")


def insert_with_own_connection() -> int:
    from sqlalchemy import text

    with current_task().connection() as own:
        own.execute(text("INSERT INTO orders VALUES (4)"))
        return int(own.execute(text("SELECT count(*) FROM orders")).scalar_one())


def finish_with_another(url: str) -> None:
    import psycopg2
    from sqlalchemy import make_url

    parsed = make_url(url)
    with (
        psycopg2.connect(host=parsed.query["host"], dbname=parsed.database, user=parsed.username) as other,
        current_task().transaction(other),
    ):
        pass


def log_in_thread() -> None:
    joined = current_task().copy_context()
    thread = threading.Thread(target=joined.run, args=(set_context, "thread", 1))
    thread.start()
    thread.join()


def name_of_the_application() -> str:
    from flask import current_app

    return current_app.name
