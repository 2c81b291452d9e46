"""Django's migrations beside ``queuedtask db upgrade``: the same files, the same schema, in any order."""

import json
import os
from pathlib import Path

import pytest

from contrib.django.projects import Project
from helpers import execute
from queuedtask.db.migrate import latest_version, migrations

pytest.importorskip("django", reason="Django is not installed")

VERSIONS = [f"{migration.version:04}_{migration.name}" for migration in migrations()]


def test_each_sql_file_has_its_migration() -> None:
    """``QUEUEDTASK_TEST_UPDATE_GOLDEN=1`` makes the missing ones; there is nothing in them to get wrong."""
    from queuedtask.contrib import django

    directory = Path(str(django.__file__)).parent / "migrations"
    text = "from queuedtask.contrib.django.schema import migration_of\n\nMigration = migration_of(__name__)\n"
    if os.environ.get("QUEUEDTASK_TEST_UPDATE_GOLDEN"):
        for version in VERSIONS:
            (directory / f"{version}.py").write_text(text)
    found = {path.stem: path.read_text() for path in directory.glob("[0-9]*.py")}
    assert found == dict.fromkeys(VERSIONS, text)


def schema_of(url: str) -> list[tuple[object, ...]]:
    """Return the definition of everything of ours: columns, indexes, constraints, the version."""
    return [
        *execute(
            url,
            "SELECT table_name, column_name, data_type, column_default, is_nullable FROM information_schema.columns "
            "WHERE table_name LIKE 'queued_task%' ORDER BY 1, 2",
        ),
        *execute(url, "SELECT indexdef FROM pg_indexes WHERE tablename LIKE 'queued_task%' ORDER BY 1"),
        *execute(
            url,
            "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE conrelid::regclass::text LIKE 'queued_task%' ORDER BY 1, 2",
        ),
        *execute(url, "SELECT version, name FROM queued_task_migrations ORDER BY 1"),
        *execute(url, "SELECT obj_description('queued_tasks'::regclass, 'pg_class')"),
    ]


@pytest.mark.slow
def test_django_makes_the_same_schema(empty_database_url: str, database_url: str) -> None:
    project = Project(empty_database_url, "psycopg")
    project.manage("migrate", "-v0")
    assert schema_of(empty_database_url) == schema_of(database_url)
    assert f"version {latest_version()}" in project.manage("queuedtask", "db", "upgrade").stdout
    assert "No changes" in project.manage("makemigrations", "queuedtask", "--check", "--dry-run").stdout


@pytest.mark.slow
def test_both_ways_to_the_schema_agree_in_any_order(empty_database_url: str, database_url: str) -> None:
    project = Project(empty_database_url)
    project.manage("migrate", "-v0", "queuedtask", VERSIONS[2])
    assert execute(empty_database_url, "SELECT max(version) FROM queued_task_migrations") == [(3,)]
    said = project.manage("queuedtask", "db", "upgrade").stdout
    assert said.splitlines()[0] == f"applied {VERSIONS[3].replace('_', ' ', 1)}"
    execute(empty_database_url, "INSERT INTO queued_tasks (function) VALUES ('a:b') RETURNING 1")
    before = execute(empty_database_url, "SELECT indexrelid FROM pg_stat_user_indexes ORDER BY 1")
    project.manage("migrate", "-v0", "queuedtask")
    # What was there was left alone: not even an index was made anew.
    assert execute(empty_database_url, "SELECT indexrelid FROM pg_stat_user_indexes ORDER BY 1") == before
    assert schema_of(empty_database_url) == schema_of(database_url)
    project.manage("migrate", "-v0", "queuedtask", "zero")
    assert execute(empty_database_url, "SELECT count(*) FROM queued_tasks") == [(1,)]
    project.manage("migrate", "-v0", "queuedtask")
    assert schema_of(empty_database_url) == schema_of(database_url)


@pytest.mark.slow
def test_the_sql_can_be_looked_at_first(empty_database_url: str) -> None:
    said = Project(empty_database_url).manage("sqlmigrate", "queuedtask", VERSIONS[0]).stdout
    assert "CREATE TABLE IF NOT EXISTS queued_tasks" in said
    assert "queuedtask schema 1" in said
    assert execute(empty_database_url, "SELECT to_regclass('queued_tasks')") == [(None,)]


@pytest.mark.slow
def test_a_restored_dump_is_adopted_by_migrate_as_well(empty_database_url: str, database_url: str) -> None:
    project = Project(database_url)
    execute(database_url, "DROP TABLE queued_task_migrations, queued_task_dependencies, queued_task_channels")
    project.manage("migrate", "-v0")
    other = Project(empty_database_url)
    other.manage("migrate", "-v0")
    assert schema_of(database_url) == schema_of(empty_database_url)


@pytest.mark.slow
def test_the_models_have_the_columns_of_the_tables(database_url: str) -> None:
    project = Project(database_url)
    said = project.run(
        "import json; from django.apps import apps\n"
        "models = apps.get_app_config('queuedtask').get_models()\n"
        "print(json.dumps({m._meta.db_table: sorted(f.column for f in m._meta.fields) for m in models}))"
    )
    found = json.loads(said)
    assert len(found) == 4
    for table, columns in found.items():
        there = execute(
            project.url, "SELECT column_name FROM information_schema.columns WHERE table_name = %s", (table,)
        )
        # What is large or of no use to people is left out.
        assert set(columns) == {name for (name,) in there} - {"pickled_function", "is_awaited"}
