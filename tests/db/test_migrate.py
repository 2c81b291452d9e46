"""From whatever a database holds to our schema: nothing, an older one, a dump of three tables, somebody else's."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from helpers import apply_migrations, execute, fresh_database, raw_connection, wait_until
from queuedtask.db import migrate, store, workers
from queuedtask.db.embedded import EmbeddedServer
from queuedtask.db.migrate import Migration
from queuedtask.db.schema import metadata
from queuedtask.errors import SchemaOutdated

LATEST = migrate.latest_version()


@pytest.fixture
def cursor(empty_database_url: str) -> Iterator[Any]:
    """Give a cursor on an empty database, in a transaction."""
    with contextlib.closing(raw_connection(empty_database_url, autocommit=False)) as connection:
        with connection.cursor() as cursor:
            yield cursor
        connection.rollback()


@pytest.fixture
def other_url(server: EmbeddedServer) -> Iterator[str]:
    """Give the URL of a second empty database."""
    with fresh_database(server) as url:
        yield url


@pytest.fixture
def program(server: EmbeddedServer) -> Callable[..., str]:
    """Give a function that runs one of the server's own programs and returns what it said."""

    def run(name: str, *arguments: str, given: str | None = None) -> str:
        said = subprocess.run(
            [server._programs() / name, *arguments], input=given, capture_output=True, text=True, check=False
        )
        assert (said.returncode, said.stderr) == (0, ""), f"{name}: {said.stderr}"
        return said.stdout

    return run


def for_libpq(url: str) -> str:
    return url.replace("postgresql+psycopg2:", "postgresql:")


def schema_of(program: Callable[..., str], url: str) -> str:
    """Return the schema as pg_dump writes it; casts and brackets wander each time that a CHECK is read back."""
    text = program("pg_dump", "--schema-only", "--no-owner", for_libpq(url))
    text = re.sub(r"::(character varying|text)(\[\])?|[()]", "", text)
    return re.sub(r"(?m)^(\\(un)?restrict .*|--.*|SET .*|)\n", "", text)


# ------------------------------------------------------------------------------------------------------------- upgrade


def test_an_empty_database_gets_every_migration_once(cursor: Any) -> None:
    assert migrate.current_version(cursor) == 0
    assert migrate.pending(cursor) == list(migrate.migrations())
    assert migrate.upgrade(cursor) == list(migrate.migrations())
    assert migrate.current_version(cursor) == LATEST
    assert migrate.pending(cursor) == []
    assert migrate.upgrade(cursor) == []
    migrate.require_usable(cursor)


def test_the_migrations_are_numbered_without_a_gap() -> None:
    assert [each.version for each in migrate.migrations()] == list(range(1, LATEST + 1))


def test_the_version_stands_in_its_table_and_in_the_comment_on_the_tasks(cursor: Any) -> None:
    migrate.upgrade(cursor)
    cursor.execute("SELECT version, name, now() - date_applied < interval '1 minute' FROM queued_task_migrations")
    assert cursor.fetchall() == [(each.version, each.name, True) for each in migrate.migrations()]
    cursor.execute("SELECT obj_description('queued_tasks'::regclass, 'pg_class')")
    assert cursor.fetchone() == (f"queuedtask schema {LATEST}",)


def test_a_second_upgrade_changes_neither_schema_nor_rows(database_url: str, program: Callable[..., str]) -> None:
    execute(database_url, "INSERT INTO queued_tasks (function, state, claimed_by) VALUES ('a:b', 'doing', 7)")
    before = schema_of(program, database_url), execute(database_url, "SELECT * FROM queued_tasks")
    apply_migrations(database_url)
    assert (schema_of(program, database_url), execute(database_url, "SELECT * FROM queued_tasks")) == before


def test_an_upgrade_belongs_to_the_transaction_of_its_caller(empty_database_url: str) -> None:
    with contextlib.closing(raw_connection(empty_database_url, autocommit=False)) as connection:
        migrate.upgrade(connection.cursor())
        connection.rollback()
    assert execute(empty_database_url, "SELECT to_regclass('queued_tasks')") == [(None,)]


def test_only_what_is_missing_is_applied(cursor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate.upgrade(cursor)
    more = Migration(LATEST + 1, "more", "CREATE TABLE queued_task_more (a int);\n")
    known = migrate.migrations()
    monkeypatch.setattr(migrate, "migrations", lambda: (*known, more))
    assert migrate.pending(cursor) == [more]
    assert migrate.upgrade(cursor) == [more]
    assert migrate.current_version(cursor) == LATEST + 1
    cursor.execute("SELECT count(*) FROM queued_task_more")


@pytest.mark.parametrize("version", range(1, LATEST))
def test_a_database_of_an_earlier_version_gets_the_same_schema_and_keeps_its_rows(
    empty_database_url: str,
    database_url: str,
    program: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    version: int,
) -> None:
    known = migrate.migrations()
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "migrations", lambda: known[:version])
        apply_migrations(empty_database_url)
    execute(empty_database_url, FILL)
    before = execute(empty_database_url, "SELECT id, state, claimed_by FROM queued_tasks ORDER BY id")
    upgraded(empty_database_url).close()
    assert schema_of(program, empty_database_url) == schema_of(program, database_url)
    assert execute(empty_database_url, "SELECT id, state, claimed_by FROM queued_tasks ORDER BY id") == before


MIGRATE = """
import sys
from queuedtask.config import Config
from queuedtask.db import migrate
from queuedtask.db.connections import Database
with Database(Config(database_url=sys.argv[1])).transaction() as cursor:
    print(len(migrate.upgrade(cursor)))
"""


def test_ten_processes_at_once_make_one_schema(
    empty_database_url: str, database_url: str, program: Callable[..., str]
) -> None:
    with contextlib.closing(raw_connection(empty_database_url)) as gate, gate.cursor() as cursor:
        # All of them are let in at the same moment.
        cursor.execute("SELECT pg_advisory_lock(%s)", (migrate.LOCK,))
        running = [
            subprocess.Popen(
                [sys.executable, "-c", MIGRATE, empty_database_url],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            for _ in range(10)
        ]

        def all_wait() -> bool:
            assert all(process.poll() is None for process in running), running
            cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            return bool(cursor.fetchone()[0] >= 10)

        wait_until(all_wait, timeout=60, message="ten processes wait to migrate")
        cursor.execute("SELECT pg_advisory_unlock(%s)", (migrate.LOCK,))
        said = [process.communicate(timeout=60) for process in running]
    assert sorted(said) == [("0\n", "")] * 9 + [(f"{LATEST}\n", "")]
    assert schema_of(program, empty_database_url) == schema_of(program, database_url)


def test_the_scripts_run_by_psql_make_the_same_schema_and_may_run_twice(
    empty_database_url: str, database_url: str, program: Callable[..., str]
) -> None:
    scripts = "".join(each.script() for each in migrate.migrations())
    for _ in range(2):
        program("psql", "-qX", "-v", "ON_ERROR_STOP=1", "-c", "SET client_min_messages = warning",
                "-f", "-", for_libpq(empty_database_url), given=scripts)  # fmt: skip
    assert schema_of(program, empty_database_url) == schema_of(program, database_url)
    with contextlib.closing(raw_connection(empty_database_url)) as connection:
        assert migrate.pending(connection.cursor()) == []


def run_script(program: Callable[..., str], url: str) -> str:
    with contextlib.closing(raw_connection(url)) as connection:
        script = migrate.script(connection.cursor())
    options = ("-qX", "-v", "ON_ERROR_STOP=1", "-o", os.devnull)
    program("psql", *options, "-c", "SET client_min_messages = warning", "-f", "-", for_libpq(url), given=script)
    return script


def test_the_script_of_an_upgrade_does_what_the_upgrade_does(
    empty_database_url: str, database_url: str, program: Callable[..., str]
) -> None:
    assert run_script(program, empty_database_url) != ""
    assert schema_of(program, empty_database_url) == schema_of(program, database_url)
    assert run_script(program, empty_database_url) == ""


# -------------------------------------------------------------------------------------------------------- usable or not


def test_a_database_without_the_tables_says_what_to_type(cursor: Any) -> None:
    with pytest.raises(SchemaOutdated, match=r"no queuedtask tables.*python -m queuedtask db upgrade"):
        migrate.require_usable(cursor)


def pretend(cursor: Any, version: int) -> None:
    migrate.upgrade(cursor)
    cursor.execute("DELETE FROM queued_task_migrations")
    cursor.execute("INSERT INTO queued_task_migrations (version, name) VALUES (%s, 'x')", (version,))


def test_an_older_schema_says_what_to_type(cursor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(cursor, LATEST)
    monkeypatch.setattr(migrate, "latest_version", lambda: LATEST + 1)
    with pytest.raises(
        SchemaOutdated, match=f"version {LATEST}, this release needs {LATEST + 1}.*python -m queuedtask db upgrade"
    ):
        migrate.require_usable(cursor)


def test_the_next_schema_can_be_worked_with(cursor: Any) -> None:
    pretend(cursor, LATEST + 1)
    migrate.require_usable(cursor)
    assert migrate.upgrade(cursor) == []
    assert migrate.current_version(cursor) == LATEST + 1


def test_a_schema_two_ahead_is_refused_with_the_versions(cursor: Any) -> None:
    pretend(cursor, LATEST + 2)
    expected = f"version {LATEST + 2}, this release works with {LATEST} and {LATEST + 1} only: upgrade queuedtask"
    with pytest.raises(SchemaOutdated, match=expected):
        migrate.require_usable(cursor)


@pytest.mark.parametrize("comment", [None, "our orders", "queuedtask schema", "queuedtask schema 1 or so"])
@pytest.mark.parametrize("act", [migrate.upgrade, migrate.require_usable, migrate.pending, migrate.current_version])
def test_a_table_of_somebody_else_is_neither_used_nor_changed(
    cursor: Any, act: Callable[[Any], object], comment: str | None
) -> None:
    cursor.execute("CREATE TABLE queued_tasks (id int)")
    cursor.execute("COMMENT ON TABLE queued_tasks IS %s", (comment,))
    with pytest.raises(SchemaOutdated, match=r"queued_tasks that is not ours.*another database"):
        act(cursor)
    cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert cursor.fetchall() == [("queued_tasks",)]


def test_the_tables_are_found_where_the_search_path_points(cursor: Any) -> None:
    cursor.execute("CREATE TABLE queued_tasks (id int)")
    cursor.execute("CREATE SCHEMA jobs")
    cursor.execute("SET LOCAL search_path = jobs")
    migrate.upgrade(cursor)
    migrate.require_usable(cursor)
    cursor.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'jobs' AND tablename LIKE 'queued%'")
    assert cursor.fetchone() == (len(metadata.tables),)


# ------------------------------------------------------------------------------------------------------------- the dump

FILL = """
INSERT INTO queued_task_workers (server_name, max_workers, active_workers, idle_workers) VALUES ('web1', 4, 1, 3);
INSERT INTO queued_tasks (id, name, function, state, date_done, parent_task, parents, pending_parents, claimed_by,
    attempt)
VALUES ('00000000-0000-0000-0000-00000000000{done}', 'done', 'a:b', 'done', now(), NULL, '{}', 0, 1, 1),
       ('00000000-0000-0000-0000-00000000000{doing}', 'doing', 'a:b', 'doing', NULL, NULL, '{}', 0, 1, 3),
       ('00000000-0000-0000-0000-00000000000{failed}', 'failed', 'a:b', 'failed', now(), NULL, '{}', 0, 1, 1),
       ('00000000-0000-0000-0000-00000000000{child}', 'child', 'a:b', 'waiting', NULL,
        '00000000-0000-0000-0000-00000000000{done}',
        ARRAY['00000000-0000-0000-0000-00000000000{done}', '00000000-0000-0000-0000-00000000000{doing}']::uuid[],
        7, NULL, 0),
       ('00000000-0000-0000-0000-00000000000{orphan}', 'orphan', 'a:b', 'waiting', NULL, NULL,
        ARRAY['00000000-0000-0000-0000-00000000000{gone}']::uuid[], 1, NULL, 0),
       ('00000000-0000-0000-0000-00000000000{usual}', 'usual', 'a:b', 'enqueued', NULL, NULL, '{}', 0, NULL, 0);
INSERT INTO queued_task_logs (queued_task_id, type, message)
SELECT id, 'info', 'äöü \\ ' || name FROM queued_tasks;
INSERT INTO queued_task_dependencies
SELECT id, parent FROM queued_tasks, unnest(parents) AS parent WHERE name = 'child';
"""
NAMES = {"done": 1, "doing": 2, "failed": 3, "child": 4, "orphan": 5, "usual": 6, "gone": 7}
for _name, _number in NAMES.items():
    FILL = FILL.replace(f"{{{_name}}}", str(_number))

TABLES = ("-t", "queued_tasks", "-t", "queued_task_logs", "-t", "queued_task_workers")


@pytest.fixture
def restored_url(database_url: str, empty_database_url: str, program: Callable[..., str]) -> str:
    """Give a database into which a dump of three tables of another one was restored."""
    execute(database_url, FILL)
    dump = program("pg_dump", *TABLES, for_libpq(database_url))
    program("psql", "-qX", "-v", "ON_ERROR_STOP=1", "-o", os.devnull, for_libpq(empty_database_url), given=dump)
    return empty_database_url


def test_a_dump_of_all_tables_needs_no_upgrade(
    database_url: str, empty_database_url: str, program: Callable[..., str]
) -> None:
    execute(database_url, FILL)
    dump = program("pg_dump", "-t", "queued_task*", for_libpq(database_url))  # as the documentation says
    program("psql", "-qX", "-v", "ON_ERROR_STOP=1", "-o", os.devnull, for_libpq(empty_database_url), given=dump)
    with contextlib.closing(upgraded(empty_database_url)) as connection:
        assert migrate.upgrade(connection.cursor()) == []
    edges = "SELECT task, parent FROM queued_task_dependencies ORDER BY 1, 2"
    assert execute(empty_database_url, edges) == execute(database_url, edges) != []


def upgraded(url: str) -> Any:
    connection = raw_connection(url, autocommit=False)
    migrate.upgrade(connection.cursor())
    connection.commit()
    return connection


def test_a_dump_of_three_tables_is_completed_by_an_upgrade(
    restored_url: str, database_url: str, program: Callable[..., str]
) -> None:
    with contextlib.closing(raw_connection(restored_url)) as connection:
        assert migrate.current_version(connection.cursor()) == 0
        with pytest.raises(SchemaOutdated, match="db upgrade"):
            migrate.require_usable(connection.cursor())
    with contextlib.closing(upgraded(restored_url)) as connection:
        migrate.require_usable(connection.cursor())
        assert migrate.upgrade(connection.cursor()) == []
    assert schema_of(program, restored_url) == schema_of(program, database_url)
    kept = "SELECT id, queued_task_id, type, message, date_created FROM queued_task_logs ORDER BY id"
    assert execute(restored_url, kept) == execute(database_url, kept)


@pytest.mark.parametrize("way", ["upgrade", "script"])
def test_what_ran_when_the_dump_was_made_goes_back_to_the_queue(
    restored_url: str, program: Callable[..., str], way: str
) -> None:
    if way == "script":
        run_script(program, restored_url)
    upgraded(restored_url).close()
    found = execute(restored_url, "SELECT name, state, claimed_by, attempt, failures FROM queued_tasks ORDER BY name")
    assert found == [
        ("child", "waiting", None, 0, 0),
        ("doing", "enqueued", None, 3, 0),
        ("done", "done", 1, 1, 0),
        ("failed", "failed", 1, 1, 0),
        ("orphan", "waiting", None, 0, 0),
        ("usual", "enqueued", None, 0, 0),
    ]
    owners = "SELECT server_name, is_running, active_workers, idle_workers FROM queued_task_workers"
    assert execute(restored_url, owners) == [("web1", False, 0, 0)]


def test_the_edges_are_rebuilt_from_the_parents_and_counted_anew(restored_url: str) -> None:
    upgraded(restored_url).close()
    edges = execute(
        restored_url,
        "SELECT t.name, p.name FROM queued_task_dependencies d JOIN queued_tasks t ON t.id = d.task"
        " JOIN queued_tasks p ON p.id = d.parent ORDER BY 1, 2",
    )
    assert edges == [("child", "doing"), ("child", "done")]
    counts = "SELECT name, pending_parents FROM queued_tasks WHERE pending_parents > 0 OR name = 'orphan' ORDER BY 1"
    assert execute(restored_url, counts) == [("child", 1), ("orphan", 0)]


def test_the_work_goes_on_with_ids_that_were_never_used(restored_url: str) -> None:
    with contextlib.closing(upgraded(restored_url)) as connection, connection.cursor() as cursor:
        worker = workers.register(
            cursor, server_name="web2", slots=4, pid=1, supervisor_pid=None, version="1", lease=30.0
        )
        assert worker == 2
        assert store.release_due(cursor, limit=9) == 1
        claimed = store.claim(cursor, worker=worker, limit=9)
        assert {(task.name, task.attempt) for task in claimed} == {("doing", 4), ("usual", 1), ("orphan", 1)}
        lines = [store.LogLine(claimed[0].id, 1, "info", "n", "goes on", 0.0)]
        store.add_logs(cursor, lines, worker=worker)
        cursor.execute("SELECT max(id) FROM queued_task_logs")
        assert cursor.fetchone() == (7,)


def test_a_dump_may_be_adopted_by_ten_upgrades_but_is_rescued_once(restored_url: str) -> None:
    with contextlib.closing(upgraded(restored_url)) as connection, connection.cursor() as cursor:
        (task, *_) = store.claim(cursor, worker=9, limit=9)
        connection.commit()
        migrate.upgrade(cursor)
        connection.commit()
        cursor.execute("SELECT state, claimed_by FROM queued_tasks WHERE id = %s", (task.id,))
        assert cursor.fetchone() == ("doing", 9)


def test_a_whole_dump_is_no_adoption(database_url: str, other_url: str, program: Callable[..., str]) -> None:
    execute(database_url, FILL)
    dump = program("pg_dump", for_libpq(database_url))
    program("psql", "-qX", "-v", "ON_ERROR_STOP=1", "-o", os.devnull, for_libpq(other_url), given=dump)
    upgraded(other_url).close()
    assert execute(other_url, "SELECT state FROM queued_tasks WHERE name = 'doing'") == [("doing",)]


def test_the_migrations_are_in_the_package() -> None:
    folder = Path(migrate.__file__).parent / "migrations"
    assert len(list(folder.glob("*.sql"))) == len(migrate.migrations()) >= 1


def test_a_failing_migration_leaves_nothing_behind(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = migrate.migrations()
    broken = Migration(LATEST + 1, "broken", "CREATE TABLE queued_task_half (a int); SELECT 1/0;\n")
    monkeypatch.setattr(migrate, "migrations", lambda: (*known, broken))
    connection = raw_connection(empty_database_url, autocommit=False)
    with contextlib.closing(connection), pytest.raises(psycopg2.Error, match="division by zero"):
        migrate.upgrade(connection.cursor())
    assert execute(empty_database_url, "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'queued%'") == [(0,)]
