"""Adding in the caller's own transaction: the tasks commit or vanish with it, on any connection; and in batches."""

import contextlib
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from djangos import django_connections
from helpers import execute, raw_connection
from queuedtask import InvalidTask, NotSerializable, Queue
from queuedtask.db.callers import cursor_on


def job(number: int = 0) -> int:
    return number


def engine_of(url: str, driver: str) -> Any:
    parsed = make_url(url).set(drivername=f"postgresql+{driver}")
    if driver != "pg8000":
        return create_engine(parsed)
    pytest.importorskip("pg8000", reason="pg8000 is not installed")
    # It knows no directory as a host.
    socket = f"{parsed.query['host']}/.s.PGSQL.{parsed.query['port']}"
    return create_engine(parsed.set(query={}), connect_args={"unix_sock": socket})


def names(url: str) -> list[str]:
    return [name for (name,) in execute(url, "SELECT name FROM queued_tasks ORDER BY id")]


class Caller:
    """A connection of a caller's, with a transaction open in which something of his own has been written."""

    def __init__(self, connection: object, execute: Callable[[str], Any], commit: Any, rollback: Any) -> None:
        self.connection = connection
        self.execute = execute
        self.commit = commit
        self.rollback = rollback


@contextlib.contextmanager
def sqlalchemy_connection(url: str, driver: str) -> Iterator[Caller]:
    engine = engine_of(url, driver)
    with engine.connect() as connection:
        yield Caller(connection, lambda sql: connection.execute(text(sql)), connection.commit, connection.rollback)
    engine.dispose()


@contextlib.contextmanager
def sqlalchemy_session(url: str, *, scoped: bool = False) -> Iterator[Caller]:
    engine = engine_of(url, "psycopg2")
    session: Any = scoped_session(sessionmaker(engine)) if scoped else Session(engine)
    yield Caller(session, lambda sql: session.execute(text(sql)), session.commit, session.rollback)
    session.close()
    engine.dispose()


@contextlib.contextmanager
def psycopg2_connection(url: str) -> Iterator[Caller]:
    with contextlib.closing(raw_connection(url, autocommit=False)) as connection:
        yield Caller(connection, connection.cursor().execute, connection.commit, connection.rollback)


@contextlib.contextmanager
def psycopg_connection(url: str) -> Iterator[Caller]:
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with contextlib.closing(psycopg.connect(dsn)) as connection:
        yield Caller(connection, connection.execute, connection.commit, connection.rollback)  # type: ignore[arg-type]


@contextlib.contextmanager
def django_connection(url: str, *, by_alias: bool = False) -> Iterator[Caller]:
    connections = django_connections(url)
    wrapper = connections["default"]
    wrapper.set_autocommit(False)  # what atomic() does for its outermost block

    def run(sql: str) -> None:
        with wrapper.cursor() as cursor:
            cursor.execute(sql)

    try:
        yield Caller("default" if by_alias else wrapper, run, wrapper.commit, wrapper.rollback)
    finally:
        wrapper.close()


CALLERS: dict[str, Callable[[str], contextlib.AbstractContextManager[Caller]]] = {
    "SQLAlchemy Connection, psycopg2": lambda url: sqlalchemy_connection(url, "psycopg2"),
    "SQLAlchemy Connection, psycopg": lambda url: sqlalchemy_connection(url, "psycopg"),
    "SQLAlchemy Connection, pg8000": lambda url: sqlalchemy_connection(url, "pg8000"),
    "SQLAlchemy Session": sqlalchemy_session,
    "SQLAlchemy scoped_session": lambda url: sqlalchemy_session(url, scoped=True),
    "psycopg2": psycopg2_connection,
    "psycopg": psycopg_connection,
    "Django connection": django_connection,
    "Django alias": lambda url: django_connection(url, by_alias=True),
}


@pytest.fixture(params=CALLERS)
def caller(request: pytest.FixtureRequest, database_url: str) -> Iterator[Caller]:
    execute(database_url, "CREATE TABLE orders (number integer)")
    with CALLERS[request.param](database_url) as caller:
        caller.execute("INSERT INTO orders VALUES (1)")
        yield caller


def orders(url: str) -> list[tuple[int]]:
    return execute(url, "SELECT number FROM orders")


# ------------------------------------------------------------------------------------------------- commit and roll back


def test_a_task_commits_with_the_caller_s_data(queue: Queue, database_url: str, caller: Caller) -> None:
    ref = queue.options(connection=caller.connection, name="mine", context={"a": 1}).add_task(job, 7)
    assert names(database_url) == []
    caller.commit()
    assert (names(database_url), orders(database_url)) == (["mine"], [(1,)])
    row = ref.row()
    assert (row.args, row.state, row.context, row.attempt) == ("[7]", "enqueued", '{"a": 1}', 0)


def test_a_task_vanishes_with_the_caller_s_data(queue: Queue, database_url: str, caller: Caller) -> None:
    queue.options(connection=caller.connection).add_task(job)
    caller.rollback()
    assert (names(database_url), orders(database_url)) == ([], [])


def test_what_is_refused_leaves_the_caller_s_transaction_as_it_was(
    queue: Queue, database_url: str, caller: Caller
) -> None:
    adder = queue.options(connection=caller.connection)
    with pytest.raises(NotSerializable):
        adder.add_task(job, object())
    with pytest.raises(InvalidTask):
        adder.options(timeout=-1)
    caller.execute("INSERT INTO orders VALUES (2)")
    adder.add_task(job)
    caller.commit()
    assert (len(names(database_url)), orders(database_url)) == (1, [(1,), (2,)])


def test_a_batch_commits_or_vanishes_with_the_caller_s_data(queue: Queue, database_url: str, caller: Caller) -> None:
    with queue.batch(connection=caller.connection) as batch:
        for n in range(3):
            batch.options(name=str(n), delay=3600 if n == 1 else None).add_task(job, n)
    assert names(database_url) == []
    caller.commit()
    assert names(database_url) == ["0", "1", "2"]
    states = execute(database_url, "SELECT state FROM queued_tasks ORDER BY id")
    assert states == [("enqueued",), ("waiting",), ("enqueued",)]
    with queue.batch(connection=caller.connection) as batch:
        batch.add_task(job)
    caller.rollback()
    assert len(names(database_url)) == 3


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_it_works_at_higher_levels_of_isolation(queue: Queue, database_url: str, level: str) -> None:
    with psycopg2_connection(database_url) as caller:
        caller.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        caller.execute("SELECT count(*) FROM queued_tasks")
        queue.add_task(job)
        queue.options(connection=caller.connection).add_task(job)
        caller.commit()
    assert len(names(database_url)) == 2


def test_on_a_connection_that_commits_by_itself_it_is_there_at_once(queue: Queue, database_url: str) -> None:
    with contextlib.closing(raw_connection(database_url)) as connection:
        queue.options(connection=connection).add_task(job)
        with queue.batch(connection=connection) as batch:
            for _ in range(2500):
                batch.add_task(job)
        assert len(names(database_url)) == 2501
    wrapper = django_connections(database_url)["default"]
    queue.options(connection=wrapper).add_task(job)
    assert len(names(database_url)) == 2502
    wrapper.close()


def test_inside_atomic_it_is_part_of_the_block(queue: Queue, database_url: str) -> None:
    wrapper = django_connections(database_url)["default"]
    from django.db import transaction

    def add_and_fail(name: str) -> None:
        with transaction.atomic():
            queue.options(connection="default", name=name).add_task(job)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        add_and_fail("of the block")
    assert names(database_url) == []
    with transaction.atomic():
        queue.options(connection="default", name="kept").add_task(job)
        with pytest.raises(ZeroDivisionError):
            add_and_fail("of the savepoint")
        assert names(database_url) == []
    assert names(database_url) == ["kept"]
    wrapper.close()


# --------------------------------------------------------------------------------------------------------- notification


@pytest.fixture
def listener(database_url: str) -> Iterator[Any]:
    with contextlib.closing(raw_connection(database_url)) as connection:
        connection.cursor().execute("LISTEN queue_new_task")
        yield connection


def heard(listener: Any, timeout: float) -> int:
    select.select([listener], [], [], timeout)
    listener.poll()
    count = len(listener.notifies)
    listener.notifies.clear()
    return count


def test_workers_are_not_woken_before_the_commit_and_then_once(queue: Queue, database_url: str, listener: Any) -> None:
    with psycopg2_connection(database_url) as caller:
        for _ in range(5):
            queue.options(connection=caller.connection).add_task(job)
        with queue.batch(connection=caller.connection) as batch:
            batch.add_task(job)
        assert heard(listener, 0.2) == 0
        caller.commit()
        assert heard(listener, 5) == 1
        queue.options(connection=caller.connection).add_task(job)
        caller.rollback()
        assert heard(listener, 0.2) == 0


# ---------------------------------------------------------------------------------------------------------- own batches


def test_a_batch_of_its_own_is_one_transaction_however_many_it_has(
    queue: Queue, database_url: str, listener: Any
) -> None:
    with queue.batch() as batch:
        refs = [batch.add_task(job, n) for n in range(2500)]
        assert names(database_url) == []
    assert execute(database_url, "SELECT count(DISTINCT xmin::text) FROM queued_tasks") == [(1,)]
    assert execute(database_url, "SELECT array_agg(args::text ORDER BY id) FROM queued_tasks")[0][0] == [
        f"[{n}]" for n in range(2500)
    ]
    assert [refs[0].row().args, refs[-1].row().args] == ["[0]", "[2499]"]
    assert all(ref.created for ref in refs)
    assert heard(listener, 5) == 1


def test_a_batch_whose_block_raises_adds_nothing(queue: Queue, database_url: str) -> None:
    def add(*arguments: object) -> None:
        with queue.batch() as batch:
            for argument in arguments:
                batch.add_task(job, argument)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        add(*range(1500))
    with pytest.raises(NotSerializable):
        add(1, object())
    assert names(database_url) == []


def test_an_empty_batch_and_every_option_in_one(queue: Queue, database_url: str) -> None:
    with queue.batch():
        pass
    declared = queue.task(max_retries=5, channel="mail")(job)
    with queue.batch() as batch:
        options = batch.options(priority=3, timeout=9, max_retries=1, delay=60, meta={"m": 1}, context={"c": 2})
        full = options.add_task("shop:send", 1, key="v")
        plain = batch.add_task(declared)
    row = full.row()
    assert (row.priority, row.timeout, row.max_retries, row.state) == (3, 9.0, 1, "waiting")
    assert (row.function, row.args, row.kwargs, row.meta, row.context) == (
        *("shop:send", "[1]", '{"key": "v"}'),
        *('{"m": 1}', '{"c": 2}'),
    )
    assert (plain.row().channel, plain.row().max_retries, plain.row().date_scheduled) == ("mail", 5, None)
    del job.delay, job.__queuedtask__  # type: ignore[attr-defined]


def test_a_batch_takes_nothing_after_its_block_and_no_connection_for_single_tasks(queue: Queue) -> None:
    with queue.batch() as batch, pytest.raises(InvalidTask, match="given to the batch"):
        batch.options(connection="default")
    with pytest.raises(InvalidTask, match="inside its with block"):
        batch.add_task(job)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("connection", [object(), 5, b"default", sys])
def test_what_is_no_connection_is_refused_with_what_is_allowed(queue: Queue, connection: object) -> None:
    with pytest.raises(InvalidTask, match="psycopg2 or psycopg Connection"):
        queue.options(connection=connection)
    with pytest.raises(InvalidTask, match="psycopg2 or psycopg Connection"), queue.batch(connection=connection):
        pytest.fail("the block is not to be entered")


def test_an_engine_an_async_connection_and_another_database_are_refused(queue: Queue, database_url: str) -> None:
    with pytest.raises(InvalidTask, match="an Engine is no transaction"):
        queue.options(connection=queue.database.engine)
    with pytest.raises(InvalidTask, match="AsyncConnection"):
        queue.options(connection=object.__new__(psycopg.AsyncConnection))
    sqlite = create_engine("sqlite://")
    with sqlite.connect() as connection, pytest.raises(InvalidTask, match="its database is sqlite"):
        queue.options(connection=connection)
    sqlite.dispose()


def test_a_closed_connection_is_refused(queue: Queue, database_url: str) -> None:
    with psycopg2_connection(database_url) as one, psycopg_connection(database_url) as two:
        pass
    with sqlalchemy_connection(database_url, "psycopg2") as three:
        pass
    for caller in (one, two, three):
        with pytest.raises(InvalidTask, match="it is closed"):
            queue.options(connection=caller.connection)


def test_an_alias_that_django_does_not_know_is_refused(queue: Queue, database_url: str) -> None:
    django_connections(database_url)
    with pytest.raises(InvalidTask, match="nowhere"):
        queue.options(connection="nowhere")


def test_an_alias_without_django_is_refused(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "django.db", raising=False)
    with pytest.raises(InvalidTask, match="not in use here"):
        cursor_on("default")
