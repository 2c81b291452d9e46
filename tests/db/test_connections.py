"""Connections: one pool for each process, and errors of ours when the server is gone."""

# ruff: noqa: PT012 (how a block ends is what is tested)

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import psycopg2
import pytest
from sqlalchemy import create_engine, exc
from sqlalchemy.pool import NullPool, QueuePool

from helpers import execute, raw_connection, wait_until
from queuedtask.config import Config
from queuedtask.db import connections
from queuedtask.db.connections import Database, is_transient
from queuedtask.db.embedded import EmbeddedServer
from queuedtask.errors import ConfigError, DatabaseUnavailable

CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(Config(database_url=database_url))
    yield database
    database.close()


def terminate_others(url: str) -> int:
    """End every other backend of the database, as a restart or an administrator does; return how many."""
    others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ended = execute(url, f"SELECT count(pg_terminate_backend(pid)) FROM ({others}) AS other")
    wait_until(lambda: not execute(url, others), message="the backends have ended")
    return int(ended[0][0])


def backend(cursor: Any) -> int:
    cursor.execute("SELECT pg_backend_pid()")
    return int(cursor.fetchone()[0])


def assert_one_line(error: BaseException) -> None:
    assert str(error)
    assert "\n" not in str(error)


# --------------------------------------------------------------------------------------------------- transactions


def test_a_transaction_is_committed_at_its_end_and_rolled_back_on_an_error(database: Database) -> None:
    insert = "INSERT INTO queued_tasks (function) VALUES ('a:b')"
    with database.transaction() as cursor:
        cursor.execute(insert)
    with pytest.raises(RuntimeError), database.transaction() as cursor:
        cursor.execute(insert)
        raise RuntimeError
    with pytest.raises(psycopg2.Error, match="nonsense"), database.transaction() as cursor:
        cursor.execute(insert)
        cursor.execute("SELECT nonsense")
    with database.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM queued_tasks")
        assert cursor.fetchone() == (1,)


def test_autocommit_commits_each_statement_and_leaves_no_trace_in_the_pool(database: Database) -> None:
    insert = "INSERT INTO queued_tasks (function) VALUES ('a:b')"
    with pytest.raises(RuntimeError), database.autocommit() as cursor:
        cursor.execute(insert)
        first = backend(cursor)
        raise RuntimeError
    with pytest.raises(RuntimeError), database.transaction() as cursor:
        assert backend(cursor) == first
        cursor.execute(insert)
        raise RuntimeError
    with database.autocommit() as cursor:
        cursor.execute("SELECT count(*) FROM queued_tasks")
        assert cursor.fetchone() == (1,)


def test_an_error_in_autocommit_leaves_the_connection_usable(database: Database) -> None:
    with pytest.raises(psycopg2.Error), database.autocommit() as cursor:
        cursor.execute("SELECT nonsense")
    with database.transaction() as cursor:
        assert backend(cursor) > 0


def test_nothing_is_opened_before_it_is_used(database_url: str, database: Database) -> None:
    assert execute(database_url, CONNECTIONS) == [(0,)]
    with database.transaction() as cursor:
        backend(cursor)
    assert execute(database_url, CONNECTIONS) == [(1,)]
    database.close()
    wait_until(lambda: execute(database_url, CONNECTIONS) == [(0,)])


def test_a_connection_says_who_it_is_and_notices_a_cut_network(database: Database) -> None:
    with database.transaction() as cursor:
        cursor.execute("SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()")
        assert cursor.fetchone() == ("queuedtask",)
        given = cursor.connection.info.dsn_parameters  # type: ignore[attr-defined]
    assert {name: given.get(name) for name in ("connect_timeout", "keepalives_idle", "tcp_user_timeout")} == {
        "connect_timeout": "5",
        "keepalives_idle": "5",
        "tcp_user_timeout": "5000",
    }


def test_what_the_url_says_itself_is_left_as_it_is(database_url: str) -> None:
    url = f"{database_url}&application_name=shop&connect_timeout=30"
    with contextlib.closing(Database(Config(database_url=url)).connect()) as connection:
        given = connection.info.dsn_parameters
        assert (given["application_name"], given["connect_timeout"]) == ("shop", "30")


def test_a_connection_of_one_s_own_is_in_autocommit_and_outside_of_the_pool(database: Database) -> None:
    with contextlib.closing(database.connect()) as mine, contextlib.closing(database.connect_to_listen()) as listener:
        pids = {backend(mine.cursor()), backend(listener.cursor())}
        assert len(pids) == 2
        assert mine.autocommit
        assert listener.autocommit
        database.close()
        assert backend(mine.cursor()) in pids


def test_the_listener_goes_to_its_own_url(database_url: str, empty_database_url: str) -> None:
    database = Database(Config(database_url=database_url, listen_url=empty_database_url))
    with contextlib.closing(database.connect_to_listen()) as listener, listener.cursor() as cursor:
        cursor.execute("SELECT to_regclass('queued_tasks')")
        assert cursor.fetchone() == (None,)


def test_many_threads_share_one_engine_made_once(database: Database) -> None:
    engines: list[Any] = []
    begin = threading.Barrier(8)

    def use() -> None:
        begin.wait()
        with database.transaction() as cursor:
            backend(cursor)
        engines.append(database.engine)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(engines) == 8
    assert len({id(engine) for engine in engines}) == 1


def test_a_connection_for_single_statements_stays_at_hand_until_the_database_is_closed(
    database: Database, database_url: str
) -> None:
    used = []
    for _ in range(3):
        with database.autocommit() as cursor:
            used.append(backend(cursor))
    pool = cast(QueuePool, database.engine.pool)
    assert (len(set(used)), pool.checkedout(), pool.checkedin()) == (1, 1, 0)
    with database.autocommit(), database.autocommit(), database.transaction() as cursor:
        assert backend(cursor) not in used
        assert pool.checkedout() == 3
    assert (pool.checkedout(), pool.checkedin()) == (1, 2)
    database.close()
    wait_until(lambda: execute(database_url, CONNECTIONS) == [(0,)])


def test_a_connection_whose_block_was_cut_off_is_cleared_up_before_its_next_use(database: Database) -> None:
    lost: Any = database.engine.raw_connection()
    lost.cursor().execute("INSERT INTO queued_tasks (function) VALUES ('a:b')")
    del lost  # as where an interrupt lands between taking it and what would give it back
    with database.autocommit() as cursor:
        cursor.execute("SELECT count(*) FROM queued_tasks")
        assert cursor.fetchone() == (0,)
    database.close()

    lost = database.engine.raw_connection()
    lost.dbapi_connection.autocommit = True
    del lost
    with pytest.raises(RuntimeError), database.transaction() as cursor:
        cursor.execute("INSERT INTO queued_tasks (function) VALUES ('a:b')")
        raise RuntimeError
    with database.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM queued_tasks")
        assert cursor.fetchone() == (0,)


def test_a_connection_whose_block_is_cut_off_when_it_has_ended_is_not_in_two_places(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CutOff(deque[Any]):
        def append(self, kept: Any) -> None:
            super().append(kept)
            raise KeyboardInterrupt

    monkeypatch.setattr(database, "_kept", CutOff())
    with pytest.raises(KeyboardInterrupt), database.autocommit() as cursor:
        first = backend(cursor)
    pool = cast(QueuePool, database.engine.pool)
    assert (pool.checkedout(), pool.checkedin()) == (1, 0)
    with pytest.raises(KeyboardInterrupt), database.autocommit() as cursor, database.transaction() as other:
        assert (backend(cursor), backend(other) != first) == (first, True)


def test_a_given_engine_has_its_connections_back_after_each_statement(database_url: str) -> None:
    engine = create_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=1)
    database = Database(Config(), engine)
    for way in (database.autocommit, database.transaction, database.autocommit):
        with way() as cursor:
            assert backend(cursor) > 0
    assert cast(QueuePool, engine.pool).checkedout() == 0
    engine.dispose()


def test_an_engine_that_commits_by_itself_stays_so_and_its_transactions_are_some(database_url: str) -> None:
    engine = create_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=1, isolation_level="AUTOCOMMIT")
    database = Database(Config(), engine)

    def seen() -> int:
        with engine.connect() as connection:
            connection.exec_driver_sql("INSERT INTO seen DEFAULT VALUES")
        return int(execute(database_url, "SELECT count(*) FROM seen")[0][0])

    execute(database_url, "CREATE TABLE seen (number integer)")
    with database.autocommit() as cursor:
        cursor.execute("SELECT 1")
    assert seen() == 1
    with pytest.raises(RuntimeError), database.transaction() as cursor:
        cursor.execute("INSERT INTO seen DEFAULT VALUES")
        raise RuntimeError
    assert seen() == 2
    with database.transaction() as cursor:
        cursor.execute("INSERT INTO seen DEFAULT VALUES")
    assert seen() == 4
    taken = database.open_for_task()
    taken.connection.exec_driver_sql("INSERT INTO seen DEFAULT VALUES")
    taken.connection.rollback()
    taken.connection.close()
    assert seen() == 5
    engine.dispose()


# -------------------------------------------------------------------------------------------- a server that is gone


@pytest.mark.parametrize("notices", ["transaction", "autocommit"])
def test_whoever_notices_that_the_server_was_gone_is_the_only_one(
    database: Database, database_url: str, notices: str
) -> None:
    with database.transaction(), database.autocommit():
        pass
    terminate_others(database_url)
    with pytest.raises(DatabaseUnavailable), getattr(database, notices)() as cursor:
        cursor.execute("SELECT 1")
    for way in (database.autocommit, database.transaction):
        with way() as cursor:
            assert backend(cursor) > 0


def test_a_connection_that_died_while_it_idled_is_replaced(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_IDLE_BEFORE_PING", 0.0)
    for way in (database.transaction, database.autocommit):
        with way() as cursor:
            before = backend(cursor)
        assert terminate_others(database_url) == 1
        with way() as cursor:
            assert backend(cursor) != before


def test_a_connection_that_was_just_used_is_not_asked_first(database: Database) -> None:
    with database.transaction() as cursor:
        before = backend(cursor)
    with database.transaction() as cursor:
        cursor.execute("SELECT query FROM pg_stat_activity WHERE pid = %s", (before,))
        assert cursor.fetchone()[0].startswith("SELECT query FROM")
        assert backend(cursor) == before


@pytest.mark.parametrize("way", ["transaction", "autocommit"])
def test_a_server_that_dies_in_the_middle_is_our_error_and_the_next_use_works(
    database: Database, database_url: str, way: str
) -> None:
    def use() -> Any:
        return getattr(database, way)()

    with use() as first, use() as second:  # two in the pool
        backend(first)
        backend(second)
    with pytest.raises(DatabaseUnavailable) as caught, use() as cursor:
        terminate_others(database_url)
        cursor.execute("SELECT 1")
    assert_one_line(caught.value)
    assert isinstance(caught.value.__cause__, psycopg2.Error)
    with use() as cursor:
        assert backend(cursor) > 0


def test_a_server_that_dies_before_the_commit_is_our_error(database: Database, database_url: str) -> None:
    with pytest.raises(DatabaseUnavailable) as caught, database.transaction() as cursor:
        cursor.execute("INSERT INTO queued_tasks (function) VALUES ('a:b')")
        terminate_others(database_url)
    assert_one_line(caught.value)
    assert execute(database_url, "SELECT count(*) FROM queued_tasks") == [(0,)]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://nobody@/nothing?host=/nonexistent",
        "postgresql://nobody@127.0.0.1:1/nothing",
        "postgresql://nobody@name.invalid/nothing",
    ],
)
@pytest.mark.parametrize("way", ["transaction", "autocommit", "connect", "connect_to_listen"])
def test_a_server_that_cannot_be_reached_is_our_error_in_one_line(url: str, way: str) -> None:
    database = Database(Config(database_url=url))
    with pytest.raises(DatabaseUnavailable) as caught:
        made = getattr(database, way)()
        made.__enter__()
    assert_one_line(caught.value)
    assert isinstance(caught.value, ConnectionError)


def test_a_database_that_does_not_exist_is_named(server: EmbeddedServer) -> None:
    url = server.url.replace(f"/{server.database}?", "/not_there?")
    with pytest.raises(DatabaseUnavailable, match="not_there"), Database(Config(database_url=url)).transaction():
        pass


def test_a_pool_that_is_used_up_is_our_error(database_url: str) -> None:
    engine = create_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    database = Database(Config(database_url=database_url), engine)
    with database.transaction(), pytest.raises(DatabaseUnavailable, match="QueuePool"), database.transaction():
        pass
    engine.dispose()


# ------------------------------------------------------------------------------------------------- a given engine


def test_an_engine_that_was_given_is_used_and_never_closed(database_url: str) -> None:
    engine = create_engine(database_url)
    database = Database(Config(database_url=database_url), engine)
    with database.transaction() as cursor:
        before = backend(cursor)
    assert database.engine is engine
    database.close()
    with database.transaction() as cursor:
        assert backend(cursor) == before
    engine.dispose()


def test_an_engine_without_a_pool_may_be_given(database_url: str) -> None:
    database = Database(Config(database_url=database_url), create_engine(database_url, poolclass=NullPool))
    with database.autocommit() as cursor:
        cursor.execute("INSERT INTO queued_tasks (function) VALUES ('a:b')")
    with contextlib.closing(database.connect()) as connection, connection.cursor() as mine:
        mine.execute("SELECT count(*) FROM queued_tasks")
        assert mine.fetchone() == (1,)


# --------------------------------------------------------------------------------------------------------- forking

FORK = """
import os, signal, sys
from queuedtask.config import Config
from queuedtask.db.connections import Database
from sqlalchemy import create_engine

url, given, way = sys.argv[1], sys.argv[2] == "given", sys.argv[3]
database = Database(Config(database_url=url), create_engine(url) if given else None)

def ask(numbers):
    wrong = 0
    for number in numbers:
        with getattr(database, way)() as cursor:
            cursor.execute("SELECT %s::int, pg_backend_pid()", (number,))
            answer, backend = cursor.fetchone()
            wrong += answer != number
    return wrong, backend

_, before = ask([0])
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    wrong, backend = ask(range(1000, 1200))
    database.close()
    os.write(write, f"{wrong} {backend != before}".encode())
    sys.exit(0)  # an ordinary end, with all that is cleared away then
wrong, backend = ask(range(2000, 2200))
os.close(write)
with open(read) as pipe:
    print("child", pipe.read())
status = os.waitpid(pid, 0)[1]
again, still = ask(range(3000, 3100))
print("parent", wrong, backend == before, again, still == before, status)
"""


@pytest.mark.parametrize("way", ["transaction", "autocommit"])
@pytest.mark.parametrize("engine", ["own", "given"])
def test_a_forked_child_shares_no_socket_with_its_parent(database_url: str, engine: str, way: str) -> None:
    said = run_python(FORK, database_url, engine, way)
    assert (said.stdout.splitlines(), said.stderr) == (["child 0 True", "parent 0 True 0 True 0"], "")


LOCKED = """
import os, signal, sys, threading
from queuedtask.config import Config
from queuedtask.db import connections

holds, go = threading.Event(), threading.Event()
def hold():
    with connections._making_an_engine:
        holds.set(); go.wait()
thread = threading.Thread(target=hold); thread.start(); holds.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    with connections.Database(Config(database_url=sys.argv[1])).transaction() as cursor:
        cursor.execute("SELECT 1")
    os._exit(0)
status = os.waitpid(pid, 0)[1]
go.set(); thread.join()
print(status)
"""


def test_a_child_that_was_forked_while_an_engine_was_made_does_not_hang(database_url: str) -> None:
    said = run_python(LOCKED, database_url)
    assert (said.stdout, said.stderr) == ("0\n", "")


def run_python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


# ---------------------------------------------------------------------------------------------------- passing errors


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("40001", True),  # serialization_failure
        ("40P01", True),  # deadlock_detected
        ("55P03", True),  # lock_not_available
        ("53300", True),  # too_many_connections
        ("25006", True),  # read_only_sql_transaction: an old primary after a fail-over
        ("57P01", True),  # admin_shutdown
        ("57P03", True),  # cannot_connect_now
        ("57014", True),  # query_canceled: a statement_timeout
        ("08006", True),  # connection_failure
        ("23505", False),  # unique_violation
        ("22P02", False),  # invalid_text_representation
        ("42P01", False),  # undefined_table
        ("42501", False),  # insufficient_privilege
        ("53100", False),  # disk_full
        ("XX000", False),  # internal_error
    ],
)
def test_an_error_of_the_server_passes_or_does_not(database_url: str, code: str, expected: bool) -> None:
    with pytest.raises(psycopg2.Error) as caught:
        execute(database_url, f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{code}'; END $$")
    assert caught.value.pgcode == code
    assert is_transient(caught.value) is expected


def test_a_lost_connection_passes_whichever_error_it_makes(database_url: str) -> None:
    connection = raw_connection(database_url)
    terminate_others(database_url)
    with contextlib.closing(connection), connection.cursor() as cursor:
        with pytest.raises(psycopg2.Error) as first:
            cursor.execute("SELECT 1")
        with pytest.raises(psycopg2.InterfaceError) as second:
            cursor.execute("SELECT 1")
    assert is_transient(first.value)
    assert is_transient(second.value)


def test_a_server_that_cannot_be_reached_passes() -> None:
    with pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect("host=/nonexistent dbname=x")
    assert is_transient(caught.value)


@pytest.mark.parametrize(
    "error", [ValueError("x"), OSError("x"), psycopg2.ProgrammingError("x"), psycopg2.DataError("x")]
)
def test_no_other_error_passes(error: Exception) -> None:
    assert not is_transient(error)


# ------------------------------------------------------------------------------------------------------------- urls


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2", "POSTGRESQL"])
def test_every_spelling_of_the_scheme_reaches_psycopg2(database_url: str, scheme: str) -> None:
    url = database_url.replace("postgresql+psycopg2:", f"{scheme}:")
    database = Database(Config(database_url=url))
    with database.transaction() as cursor:
        assert backend(cursor) > 0
    assert database.engine.dialect.driver == "psycopg2"
    database.close()


def test_another_database_system_is_refused() -> None:
    with pytest.raises(ConfigError, match="PostgreSQL"):
        Config(database_url="mysql://root@localhost/x")


def test_an_embedded_database_is_upgraded_by_itself(
    server: EmbeddedServer, empty_database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []

    def ensure_running(self: EmbeddedServer, announce: Any) -> str:
        announce("started")
        return empty_database_url

    monkeypatch.setattr(EmbeddedServer, "ensure_running", ensure_running)
    database = Database(Config(embedded_dir=tmp_path), announce=said.append)
    with database.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM queued_tasks")
    assert said == ["started"]
    database.close()


def test_errors_of_sqlalchemy_are_told_in_the_driver_s_words() -> None:
    inner = psycopg2.OperationalError("connection refused\n\tIs the server running?\n")
    error = connections.unavailable(exc.OperationalError("SELECT 1", {}, inner))
    assert str(error) == "connection refused Is the server running?"


def test_an_interrupted_block_gives_its_connection_back(database: Database) -> None:
    with pytest.raises(KeyboardInterrupt), database.transaction() as cursor:
        before = backend(cursor)
        signal.raise_signal(signal.SIGINT)
    with database.transaction() as cursor:
        assert backend(cursor) == before
