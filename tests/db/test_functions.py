"""queuedtask_add_task: the rows are those that Python makes, what is wrong is named, and it means its own tables."""

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest

from helpers import apply_migrations, execute, raw_connection, somebody_waits_for_a_lock, wait_until
from queuedtask import Queue, SchemaOutdated
from queuedtask.cli.main import main
from queuedtask.db import functions, migrate
from queuedtask.db.functions import Settings
from queuedtask.model.options import RESERVED_META
from queuedtask.testing import drain

SETTINGS = Settings("queue_new_task", 1048576)
PARENT = "0190d3f0-0000-7000-8000-000000000000"


def job(*args: object, **kwargs: object) -> list[object]:
    return [list(args), kwargs]


JOB = f"{__name__}:job"


def install(url: str, settings: Settings = SETTINGS) -> None:
    with contextlib.closing(raw_connection(url, autocommit=False)) as connection:
        functions.install(connection.cursor(), settings)
        connection.commit()


def add(url: str, **given: Any) -> str:
    named = ", ".join(f"{name} => %({name})s" for name in given)
    return execute(url, f"SELECT queuedtask_add_task({named})::text", given)[0][0]


@pytest.fixture
def url(database_url: str) -> str:
    install(database_url)
    return database_url


@pytest.fixture
def connection(url: str) -> Iterator[Any]:
    with contextlib.closing(raw_connection(url, autocommit=False)) as connection:
        yield connection


COLUMNS = (
    "name, state, parent_task, parents, context, function, args, kwargs, channel, priority, max_retries, timeout, "
    "pending_parents, on_parent_failure, unique_key, concurrency_key, auto_remove, meta, attempt, failures, "
    "date_scheduled - date_created BETWEEN '-1 second' AND '61 seconds'"
)

SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "arguments": ({"args": '[1, "ä"]', "kwargs": '{"a": null}'}, {}),
    "name": ({"name": "Receipt ä"}, {"name": "Receipt ä"}),
    "channel, priority": ({"channel": "mail", "priority": -5}, {"channel": "mail", "priority": -5}),
    "delay": ({"delay": timedelta(minutes=1)}, {"delay": 60}),
    "no delay": ({"delay": timedelta(0)}, {"delay": 0}),
    "run_at": ({"run_at": datetime(2020, 1, 1, tzinfo=UTC)}, {"run_at": datetime(2020, 1, 1, tzinfo=UTC)}),
    "timeout, retries": ({"timeout": timedelta(seconds=1.5), "max_retries": 0}, {"timeout": 1.5, "max_retries": 0}),
    "backoff": ({"backoff": '"linear"'}, {"backoff": "linear"}),
    "backoff in steps": ({"backoff": "[1, 2.5]"}, {"backoff": [1, 2.5]}),
    "documents": (
        {"context": '{"tenant": 7}', "meta": '{"tags": ["a"]}', "isolation": "process"},
        {"context": {"tenant": 7}, "meta": {"tags": ["a"]}, "isolation": "process"},
    ),
    "keys": (
        {"concurrency_key": "customer-1", "fifo": True, "auto_remove": True},
        {"concurrency_key": "customer-1", "fifo": True, "auto_remove": True},
    ),
    "concurrency": ({"concurrency_key": "c", "concurrency": 3}, {"concurrency_key": "c", "concurrency": 3}),
    "parent": (
        {"parent": PARENT, "on_parent_failure": "run"},
        {"parent": PARENT, "on_parent_failure": "run"},
    ),
    "empty documents": ({"context": "{}", "meta": None}, {"context": {}}),
    "NULL everywhere": (
        dict.fromkeys(("args", "kwargs", "name", "channel", "priority", "delay", "run_at", "parents", "fifo", "meta")),
        {},
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_the_row_is_the_one_that_python_makes(queue: Queue, url: str, case: str) -> None:
    execute(url, "INSERT INTO queued_tasks (id, function) VALUES (%s, 'a:b')", (PARENT,))
    given, options = SAME[case]
    args, kwargs = json.loads(given.get("args") or "[]"), json.loads(given.get("kwargs") or "{}")
    ours = queue.options(**options).add_task(JOB, *args, **kwargs)
    theirs = add(url, function=JOB, **given)
    rows = [execute(url, f"SELECT {COLUMNS} FROM queued_tasks WHERE id = %s", (each,)) for each in (ours.id, theirs)]
    assert rows[0] == rows[1]
    edges = execute(url, "SELECT parent::text FROM queued_task_dependencies WHERE task = %s", (theirs,))
    assert edges == ([(PARENT,)] if "parent" in given else [])
    assert theirs[14] == "7"
    assert ours.id[:9] <= theirs[:9]


def test_its_tasks_run(queue: Queue, url: str) -> None:
    parent = add(url, function=JOB, args="[1]")
    add(url, function=JOB, kwargs='{"a": {"b": 2}}', parents=f"{{{parent}, {parent}}}")
    assert [ran.result for ran in drain(queue)] == [[[1], {}], [[], {"a": {"b": 2}}]]
    assert add(url, function=JOB, parent=parent)
    assert len(drain(queue)) == 1


def test_a_long_path_gives_a_name_that_fits(queue: Queue, url: str) -> None:
    path = f"{'a' * 200}:{'b' * 200}"
    ours = queue.add_task(path)
    theirs = add(url, function=path)
    assert execute(url, "SELECT name FROM queued_tasks WHERE id = %s", (theirs,)) == [(ours.row().name,)]
    assert add(url, function="Läden.ök:Ärger.größe")


WRONG: dict[str, dict[str, Any]] = {
    "function => NULL: must be the path": {"function": None},
    "function => 'shop.send': must be the path": {"function": "shop.send"},
    "function => 'shop:send it': must be the path": {"function": "shop:send it"},
    "function => '1shop:send': must be the path": {"function": "1shop:send"},
    "every process has its own __main__": {"function": "__main__:send"},
    "args => '{\"a\": 1}': must be an array": {"args": '{"a": 1}'},
    "args => 'null': must be an array": {"args": "null"},
    "kwargs => '[]': must be an object": {"kwargs": "[]"},
    "args and kwargs have 1048582 bytes: at most QUEUE_MAX_PAYLOAD = 1048576": {"args": json.dumps(["x" * 1048576])},
    "name => '': must have 1 to 255 characters": {"name": ""},
    "channel => 'xxxx": {"channel": "x" * 65},
    "channel => '*': must have": {"channel": "*"},
    "delay and run_at: give one": {"delay": timedelta(1), "run_at": datetime(2030, 1, 1, tzinfo=UTC)},
    "delay => '-1 days +23:59:59': must be 0 or more": {"delay": timedelta(seconds=-1)},
    "run_at => 'infinity': must lie in the years": {"run_at": "infinity"},
    "run_at => '-infinity': must lie in the years": {"run_at": "-infinity"},
    "run_at => '9000-01-01 00:00:00+00': must lie in the years": {"run_at": "9000-01-01T00:00Z"},
    "timeout => '00:00:00': must be more than 0": {"timeout": timedelta(0)},
    "max_retries => -1: must be 0 or more": {"max_retries": -1},
    "backoff => '\"slow\"'": {"backoff": '"slow"'},
    "backoff => '[]'": {"backoff": "[]"},
    "backoff => '[1, -1]'": {"backoff": "[1, -1]"},
    "backoff => '[\"1\"]'": {"backoff": '["1"]'},
    "backoff => '5'": {"backoff": "5"},
    "unique_key => ''": {"unique_key": ""},
    "on_conflict => 'replace': must be 'return' or 'raise'": {"unique_key": "a", "on_conflict": "replace"},
    "on_conflict: needs a unique_key": {"on_conflict": "raise"},
    "on_parent_failure => 'stop'": {"on_parent_failure": "stop"},
    "concurrency_key => ''": {"concurrency_key": ""},
    "concurrency and fifo: need a concurrency_key": {"fifo": True},
    "concurrency => 0: must be 1 or more": {"concurrency_key": "a", "concurrency": 0},
    "concurrency => 2: with fifo it is 1": {"concurrency_key": "a", "concurrency": 2, "fifo": True},
    "priority => 3: not with fifo": {"concurrency_key": "a", "fifo": True, "priority": 3},
    "isolation => 'fork'": {"isolation": "fork"},
    "context => '[]': must be an object": {"context": "[]"},
    "meta => '7': must be an object": {"meta": "7"},
    "these keys are reserved: inherited, failed_ancestor": {"meta": f'{{"{RESERVED_META[-1]}": 1}}'},
    f"parent => {PARENT}: there is no such task": {"parent": PARENT},
    "parents: one of them is NULL": {"parents": [None]},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_named_and_nothing_is_written(url: str, message: str) -> None:
    with pytest.raises(psycopg2.Error) as caught:
        add(url, **{"function": JOB, **WRONG[message]})
    assert f"queuedtask_add_task: {message}" in str(caught.value) or message in str(caught.value)
    assert str(caught.value).startswith("queuedtask_add_task: ")
    assert caught.value.pgcode in ("22023", "23503")
    assert execute(url, "SELECT count(*) FROM queued_tasks") == [(0,)]


# ----------------------------------------------------------------------------------------------------------- uniqueness


def test_a_unique_key_is_held_by_one(queue: Queue, url: str) -> None:
    first = add(url, function=JOB, unique_key="a")
    assert add(url, function=JOB, unique_key="a") == first
    with pytest.raises(psycopg2.errors.UniqueViolation, match=f"unique_key => 'a' is held by task {first}"):
        add(url, function=JOB, unique_key="a", on_conflict="raise")
    drain(queue)
    assert add(url, function=JOB, unique_key="a") != first


def test_a_key_that_another_transaction_adds_is_waited_for(url: str, connection: Any) -> None:
    import threading

    cursor = connection.cursor()
    cursor.execute("SELECT queuedtask_add_task(%s, unique_key => 'a')::text", (JOB,))
    (first,) = cursor.fetchone()
    found: list[str] = []
    other = threading.Thread(target=lambda: found.append(add(url, function=JOB, unique_key="a")))
    other.start()
    wait_until(lambda: somebody_waits_for_a_lock(url))
    connection.commit()
    other.join()
    assert found == [first]


# ------------------------------------------------------------------------------------------------ waking, and triggers


def test_workers_are_woken_on_the_installation_s_channel(url: str) -> None:
    with contextlib.closing(raw_connection(url)) as listener:
        listener.cursor().execute('LISTEN queue_new_task; LISTEN "Other\'s"; LISTEN other')

        def heard() -> list[str]:
            listener.poll()
            return [notify.channel for notify in listener.notifies]

        add(url, function=JOB)
        assert wait_until(heard) == ["queue_new_task"]
        install(url, Settings("Other's", 10))
        add(url, function=JOB)
        assert wait_until(lambda: heard()[1:]) == ["Other's"]
        with pytest.raises(psycopg2.Error, match="QUEUE_MAX_PAYLOAD = 10"):
            add(url, function=JOB, args="[1, 2, 3, 4]")
        install(url, Settings(None, 1000))
        add(url, function=JOB)
        execute(url, "NOTIFY other")
        assert wait_until(lambda: heard()[2:]) == ["other"]


def test_a_trigger_adds_a_task_for_each_row_that_is_committed(queue: Queue, connection: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(
        f"""
        CREATE SCHEMA shop;
        CREATE TABLE shop.orders (id integer PRIMARY KEY, customer text);
        CREATE FUNCTION shop.confirm() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM public.queuedtask_add_task('{JOB}', jsonb_build_array(NEW.id, NEW.customer), channel => 'mail');
            RETURN NULL;
        END $$;
        CREATE TRIGGER confirm AFTER INSERT ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.confirm();
        """
    )
    connection.commit()
    cursor.execute("SET search_path = shop")
    cursor.execute("INSERT INTO orders SELECT n, CASE WHEN n > 1 THEN 'Ann' END FROM generate_series(1, 3) n")
    connection.commit()
    cursor.execute("INSERT INTO orders VALUES (4)")
    connection.rollback()
    assert [ran.result for ran in drain(queue)] == [[[1, None], {}], [[2, "Ann"], {}], [[3, "Ann"], {}]]


# ------------------------------------------------------------------------------------------------------------- security


def test_it_means_the_tables_beside_it_and_postgresql_s_own_functions(empty_database_url: str) -> None:
    with contextlib.closing(raw_connection(empty_database_url, autocommit=False)) as connection:
        cursor = connection.cursor()
        cursor.execute('CREATE SCHEMA "Queue ä"; SET search_path = "Queue ä"')
        migrate.upgrade(cursor)
        functions.install(cursor, SETTINGS)
        connection.commit()
        # Whoever may make objects anywhere puts his own in front.
        cursor.execute(
            "CREATE TEMP TABLE queued_tasks (id uuid); CREATE SCHEMA evil; "
            "CREATE FUNCTION evil.length(text) RETURNS integer LANGUAGE plpgsql AS $$BEGIN RAISE 'hijacked'; END$$; "
            "CREATE FUNCTION evil.lower(text) RETURNS text LANGUAGE plpgsql AS $$BEGIN RAISE 'hijacked'; END$$; "
            "CREATE FUNCTION evil.replace(text, text, text) RETURNS text LANGUAGE plpgsql AS $$BEGIN RAISE 'x'; END$$; "
            "SET search_path = evil, pg_catalog"
        )
        cursor.execute("SELECT \"Queue ä\".queuedtask_add_task('a:b')")
        cursor.execute('SELECT count(*) FROM "Queue ä".queued_tasks')
        assert cursor.fetchone() == (1,)
        cursor.execute("SELECT prosecdef, proconfig::text FROM pg_proc WHERE proname = 'queuedtask_add_task'")
        assert cursor.fetchone() == (False, '{"search_path=pg_catalog, \\"Queue ä\\", pg_temp"}')
        connection.rollback()


def test_who_may_not_write_the_tables_cannot_add(url: str, connection: Any) -> None:
    cursor = connection.cursor()
    role = f"guest_{url.rpartition('/')[2].partition('?')[0]}"
    cursor.execute(f"CREATE ROLE {role}; SET LOCAL ROLE {role}")
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        cursor.execute("SELECT queuedtask_add_task('a:b')")
    connection.rollback()


# -------------------------------------------------------------------------------------- installing, upgrading, removing


def test_it_is_installed_upgraded_and_removed(database_url: str, connection: Any) -> None:
    cursor = connection.cursor()
    functions.remove(cursor)
    assert (functions.installed(cursor), functions.remove(cursor), functions.upgrade(cursor)) == (None, False, False)
    functions.install(cursor, Settings("x", 5))
    assert functions.installed(cursor) == functions.Installed(Settings("x", 5), is_current=True)
    assert (functions.upgrade(cursor), migrate.script(cursor)) == (False, "")
    cursor.execute("SELECT obj_description('queuedtask_add_task'::regproc)")
    (comment,) = cursor.fetchone()
    digest = comment.split()[1]
    cursor.execute("COMMENT ON FUNCTION queuedtask_add_task IS %s", (comment.replace(digest, "0123"),))
    assert functions.installed(cursor) == functions.Installed(Settings("x", 5), is_current=False)
    assert "CREATE OR REPLACE FUNCTION public.queuedtask_add_task(" in migrate.script(cursor)
    migrate.upgrade(cursor)
    assert functions.installed(cursor) == functions.Installed(Settings("x", 5), is_current=True)
    assert (functions.remove(cursor), functions.installed(cursor)) == (True, None)
    cursor.execute("CREATE FUNCTION queuedtask_add_task(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1'")
    assert functions.installed(cursor) is None  # somebody's own
    connection.rollback()


def test_without_tables_there_is_nothing_to_install_beside(empty_database_url: str) -> None:
    with contextlib.closing(raw_connection(empty_database_url)) as connection:
        assert functions.installed(connection.cursor()) is None
        with pytest.raises(SchemaOutdated, match="db upgrade"):
            functions.install(connection.cursor(), SETTINGS)
    apply_migrations(empty_database_url)


def test_the_command_line_installs_shows_and_removes_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUEUE_DATABASE_URL", database_url)
    monkeypatch.setenv("QUEUE_NOTIFY_CHANNEL", "mine")

    def said(*arguments: str) -> str:
        assert main([*arguments]) == 0
        return capsys.readouterr().out

    assert json.loads(said("db", "status", "--json"))["sql_functions"] is None
    assert "pg_notify('mine'::text, '')" in said("db", "functions", "--sql")
    assert said("db", "functions") == "queuedtask_add_task is installed\n"
    assert json.loads(said("db", "status", "--json"))["sql_functions"] == "current"
    older = 'queuedtask 0 {"notify_channel": null, "max_payload": 9}'
    execute(database_url, "COMMENT ON FUNCTION queuedtask_add_task IS %s", (older,))
    assert "outdated: db upgrade" in said("db", "status")
    said("db", "upgrade")
    assert json.loads(said("db", "status", "--json"))["sql_functions"] == "current"
    assert said("db", "functions", "--remove") == "queuedtask_add_task is removed\n"
    assert said("db", "functions", "--remove") == "queuedtask_add_task was not installed\n"
