"""Django's migrations, made from our SQL files: one for each, and nothing of its own in it.

Both ways to the schema write down what they have applied in the same table, so ``manage.py migrate`` and ``queuedtask
db upgrade`` may be called in any order: what is there is left alone. Reversing does nothing, for the tables hold what
was promised to be done; drop them by hand.
"""

from typing import Any

from django.apps import apps
from django.db import connections, migrations
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ModelState
from django.db.transaction import atomic

from queuedtask.contrib.django import conf
from queuedtask.contrib.django.database import checked_wrapper
from queuedtask.db import migrate, purge
from queuedtask.errors import SchemaOutdated

LABEL = "queuedtask"


class ApplyFile(Operation):
    """Bring the schema to the version of one of our files."""

    reduces_to_sql = True
    reversible = True

    def __init__(self, version: int) -> None:
        self.version = version

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Add the models, as they are now: they belong to no migration, being views of our tables."""
        if self.version == migrate.migrations()[0].version:
            for model in apps.get_app_config(LABEL).get_models():
                state.add_model(ModelState.from_model(model, exclude_rels=True))

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Apply what is missing up to this file, in the alias that the queue uses and no other."""
        alias = conf.given().alias
        if schema_editor.connection.alias != alias:
            return
        checked_wrapper(alias)
        if schema_editor.collect_sql:
            (file,) = [file for file in migrate.migrations() if file.version == self.version]
            schema_editor.execute(file.script())
            return
        with schema_editor.connection.cursor() as cursor:
            migrate.upgrade(cursor, to=self.version)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Do nothing."""

    def describe(self) -> str:
        """Return a description for ``migrate``."""
        return f"Bring queuedtask's tables to version {self.version}"


def migration_of(module: str) -> type[migrations.Migration]:
    """Return the class Migration for a module that is called as one of our files is."""
    name = module.rpartition(".")[2]
    files = migrate.migrations()
    names = [f"{file.version:04}_{file.name}" for file in files]
    position = names.index(name)
    earlier = names[position - 1] if position else None

    class Migration(migrations.Migration):
        initial = earlier is None
        dependencies = [] if earlier is None else [(LABEL, earlier)]
        operations = [ApplyFile(files[position].version)]

    Migration.__module__ = module
    return Migration


def has_migrations(alias: str) -> bool:
    """Tell whether ``migrate`` applies the migrations above; False for an alias that has none of our tables, too."""
    return alias != conf.given().alias or MigrationLoader.migrations_module(LABEL)[0] is not None


def upgrade(alias: str) -> None:
    """Bring the tables to this release's version."""
    with atomic(using=alias), connections[alias].cursor() as cursor:
        migrate.upgrade(cursor)


def empty(alias: str) -> None:
    """Delete all tasks, logs and schedules, if the alias is the queue's and there are tables."""
    if alias == conf.given().alias:
        with atomic(using=alias), connections[alias].cursor() as cursor:
            if not migrate.pending(cursor):
                purge.empty(cursor)


def problem_of(alias: str) -> str | None:
    """Return what is wrong with the tables; None when this release can work with them."""
    with connections[alias].cursor() as cursor:
        try:
            migrate.require_usable(cursor)
        except SchemaOutdated as error:
            return str(error)
    return None
