"""The tables that the migrations make: those that the statements are built from, and good for people's own queries."""

import re
from collections.abc import Iterator
from typing import Any

import psycopg2.errors
import pytest
from sqlalchemy import Column, Engine, Inspector, Table, create_engine, inspect
from sqlalchemy.dialects import postgresql

from helpers import execute, fresh_database
from queuedtask.db.embedded import EmbeddedServer
from queuedtask.db.schema import metadata

TABLES = [pytest.param(table, id=name) for name, table in metadata.tables.items()]


@pytest.fixture(scope="module")
def inspector(server: EmbeddedServer, template: str) -> Iterator[Inspector]:
    with fresh_database(server, template) as url:
        engine: Engine = create_engine(url)
        yield inspect(engine)
        engine.dispose()


def type_of(column_type: Any) -> str:
    return str(column_type.compile(dialect=postgresql.dialect()))


def default_of(text: Any) -> str | None:
    """Return a default as it is written in the schema: PostgreSQL adds the type to a constant."""
    return None if text is None else re.sub(r"^('[^']*')::[\w\[\] ]+$", r"\1", str(text))


def declared_default(column: Column[Any]) -> str | None:
    if column.server_default is not None:
        return str(column.server_default.arg)  # type: ignore[attr-defined]
    is_serial = column is column.table.autoincrement_column  # type: ignore[attr-defined]
    return f"nextval('{column.table.name}_{column.name}_seq'::regclass)" if is_serial else None


def test_the_migrations_make_the_tables_of_the_schema_and_no_others(inspector: Inspector) -> None:
    assert set(inspector.get_table_names()) == set(metadata.tables)


@pytest.mark.parametrize("table", TABLES)
def test_the_columns_are_those_of_the_schema_in_their_order(inspector: Inspector, table: Table) -> None:
    found = [
        (c["name"], type_of(c["type"]), c["nullable"], default_of(c["default"]))
        for c in inspector.get_columns(table.name)
    ]
    assert found == [(c.name, type_of(c.type), c.nullable, declared_default(c)) for c in table.columns]


@pytest.mark.parametrize("table", TABLES)
def test_the_keys_are_those_of_the_schema(inspector: Inspector, table: Table) -> None:
    found = {
        (*key["constrained_columns"], key["referred_table"], *key["referred_columns"], key["options"].get("ondelete"))
        for key in inspector.get_foreign_keys(table.name)
    }
    declared = {(key.parent.name, key.column.table.name, key.column.name, key.ondelete) for key in table.foreign_keys}
    assert found == declared
    assert inspector.get_pk_constraint(table.name)["constrained_columns"] == [c.name for c in table.primary_key]


def test_every_foreign_key_that_deletes_has_an_index(inspector: Inspector) -> None:
    for table in metadata.tables.values():
        first = {each["column_names"][0] for each in inspector.get_indexes(table.name)}
        first.add(next(iter(table.primary_key)).name)
        for key in table.foreign_keys:
            assert key.parent.name in first, f"deleting a task would read all of {table.name}.{key.parent.name}"


def test_the_index_names_that_people_use_are_left_to_them(inspector: Inspector) -> None:
    ours = {each["name"] for table in metadata.tables for each in inspector.get_indexes(table)}
    assert not [name for name in ours if not str(name).startswith("queued_task")]


@pytest.mark.parametrize("state", ["done", "failed", "cancelled", "stopped"])
def test_a_final_state_has_an_end(database_url: str, state: str) -> None:
    with pytest.raises(psycopg2.errors.CheckViolation, match="queued_tasks_final_has_date_done"):
        execute(database_url, "INSERT INTO queued_tasks (function, state) VALUES ('a:b', %s)", (state,))
    execute(database_url, "INSERT INTO queued_tasks (state, date_done) VALUES (%s, now())", (state,))


@pytest.mark.parametrize("state", ["waiting", "enqueued", "doing"])
def test_no_other_state_has_an_end(database_url: str, state: str) -> None:
    with pytest.raises(psycopg2.errors.CheckViolation, match="queued_tasks_final_has_date_done"):
        execute(database_url, "INSERT INTO queued_tasks (state, date_done) VALUES (%s, now())", (state,))
    execute(database_url, "INSERT INTO queued_tasks (state) VALUES (%s)", (state,))


@pytest.mark.parametrize("state", ["", "Done", "running", "pending"])
def test_a_state_that_does_not_exist_is_refused(database_url: str, state: str) -> None:
    with pytest.raises(psycopg2.errors.CheckViolation, match="queued_tasks_state_known"):
        execute(database_url, "INSERT INTO queued_tasks (state) VALUES (%s)", (state,))


def test_a_row_of_defaults_is_an_enqueued_task_with_dates_of_now(database_url: str) -> None:
    ((state, is_now, attempt, args),) = execute(
        database_url,
        "INSERT INTO queued_tasks (function) VALUES ('a:b')"
        " RETURNING state, now() - date_enqueued < interval '1 s' AND date_created <= clock_timestamp(), attempt, args",
    )
    assert (state, is_now, attempt, args) == ("enqueued", True, 0, [])


# ------------------------------------------------------------------------------- what people do with the tables

FILL = """
INSERT INTO queued_task_workers (server_name, max_workers, active_workers, idle_workers) VALUES ('web1', 4, 1, 3);
INSERT INTO queued_task_workers (server_name, is_running) VALUES ('web0', false);
INSERT INTO queued_tasks (id, name, function, state, date_done, error_message, parent_task, parents, pending_parents)
VALUES ('00000000-0000-0000-0000-000000000001', 'root', 'a:b', 'done', now(), NULL, NULL, '{}', 0),
       ('00000000-0000-0000-0000-000000000002', 'child', 'a:b', 'failed', now(), 'broken',
        '00000000-0000-0000-0000-000000000001', '{00000000-0000-0000-0000-000000000001}', 0),
       ('00000000-0000-0000-0000-000000000003', 'leaf', 'a:b', 'waiting', NULL, NULL,
        '00000000-0000-0000-0000-000000000002', '{00000000-0000-0000-0000-000000000002}', 1),
       ('00000000-0000-0000-0000-000000000004', 'old', 'a:b', 'failed', now() - interval '3 hours', 'long ago',
        NULL, '{}', 0);
INSERT INTO queued_task_logs (queued_task_id, type, message)
VALUES ('00000000-0000-0000-0000-000000000002', 'error', 'it broke');
"""


@pytest.fixture
def filled_url(database_url: str) -> str:
    execute(database_url, FILL)
    return database_url


def test_recent_tasks_are_listed_with_their_dates(filled_url: str) -> None:
    found = execute(
        filled_url,
        "SELECT id, name, state, date_enqueued, date_started, date_done, parent_task FROM queued_tasks"
        " ORDER BY date_enqueued DESC LIMIT 10",
    )
    assert {row[1] for row in found} == {"root", "child", "leaf", "old"}


def test_logs_are_joined_to_their_tasks(filled_url: str) -> None:
    found = execute(
        filled_url,
        "SELECT t.name, l.type, l.message, l.date_created FROM queued_task_logs l"
        " JOIN queued_tasks t ON t.id = l.queued_task_id ORDER BY l.date_created",
    )
    assert [row[:3] for row in found] == [("child", "error", "it broke")]


def test_running_workers_are_listed_with_their_counts(filled_url: str) -> None:
    found = execute(
        filled_url,
        "SELECT id, server_name, max_workers, active_workers, idle_workers, last_heartbeat FROM queued_task_workers"
        " WHERE is_running = true",
    )
    assert [row[1:5] for row in found] == [("web1", 4, 1, 3)]


def test_the_hierarchy_is_walked_over_parent_task(filled_url: str) -> None:
    found = execute(
        filled_url,
        "WITH RECURSIVE task_tree AS ("
        " SELECT id, name, state, parent_task, 0 AS level FROM queued_tasks WHERE parent_task IS NULL"
        " UNION ALL SELECT t.id, t.name, t.state, t.parent_task, tree.level + 1 FROM queued_tasks t"
        " JOIN task_tree tree ON t.parent_task = tree.id"
        ") SELECT name, level FROM task_tree ORDER BY level, name",
    )
    assert found == [("old", 0), ("root", 0), ("child", 1), ("leaf", 2)]


def test_tasks_are_counted_by_state(filled_url: str) -> None:
    found = execute(filled_url, "SELECT state, COUNT(*) FROM queued_tasks GROUP BY state ORDER BY state")
    assert found == [("done", 1), ("failed", 2), ("waiting", 1)]


def test_failures_of_the_last_hour_are_found(filled_url: str) -> None:
    found = execute(
        filled_url,
        "SELECT name, error_message, date_done FROM queued_tasks"
        " WHERE state = 'failed' AND date_done > NOW() - INTERVAL '1 hour' ORDER BY date_done DESC",
    )
    assert [row[:2] for row in found] == [("child", "broken")]


def test_people_s_own_indexes_can_be_made(filled_url: str) -> None:
    execute(filled_url, "CREATE INDEX idx_queued_tasks_state ON queued_tasks(state)")
    execute(filled_url, "CREATE INDEX idx_queued_tasks_date_enqueued ON queued_tasks(date_enqueued)")
    execute(filled_url, "CREATE INDEX idx_queued_tasks_parent ON queued_tasks(parent_task)")


def test_a_deleted_parent_is_forgotten_by_its_children_and_takes_its_logs_along(filled_url: str) -> None:
    execute(filled_url, "DELETE FROM queued_tasks WHERE name = 'child'")
    assert execute(filled_url, "SELECT parent_task FROM queued_tasks WHERE name = 'leaf'") == [(None,)]
    assert execute(filled_url, "SELECT count(*) FROM queued_task_logs") == [(0,)]
