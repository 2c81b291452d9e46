"""The schema's versions: which one a database has, and the way from it to ours.

The migrations are numbered SQL files, written so that each can run twice (``IF NOT EXISTS``). The version stands in
``queued_task_migrations`` and, for the sake of a ``pg_dump -t`` of single tables, in the comment on ``queued_tasks``.
Raw SQL is at home here and in the listener only.
"""

import re
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

from queuedtask.db import functions, store
from queuedtask.db.statement import Cursor
from queuedtask.errors import SchemaOutdated

COMMENT: Final = "queuedtask schema {version}"
LOCK: Final = 0x71756575_65647461
"""The advisory lock that lets one process at a time migrate: "queuedta" in ASCII."""


class Migration(NamedTuple):
    """One numbered file."""

    version: int
    name: str
    sql: str

    def script(self) -> str:
        """Return everything that applying this migration executes, for a person to run with psql."""
        return (
            f"{self.sql.rstrip()}\n\n"
            "INSERT INTO queued_task_migrations (version, name) "
            f"VALUES ({self.version}, '{self.name}') ON CONFLICT DO NOTHING;\n"
            f"COMMENT ON TABLE queued_tasks IS '{COMMENT.format(version=self.version)}';\n"
        )


@cache
def migrations() -> tuple[Migration, ...]:
    """Return all migrations of this release, in their order."""
    found = []
    for file in resources.files("queuedtask.db.migrations").iterdir():
        if match := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name):
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return tuple(sorted(found))


def latest_version() -> int:
    """Return the version of the schema that this release makes."""
    return migrations()[-1].version


class _Found(NamedTuple):
    version: int
    is_adopted: bool
    """The tables came from elsewhere (a dump of some of them): companions are missing, owners are gone."""


def _look(cursor: Cursor) -> _Found:
    cursor.execute(
        "SELECT to_regclass('queued_tasks'), to_regclass('queued_task_migrations'), "
        "obj_description(to_regclass('queued_tasks'), 'pg_class')"
    )
    tasks, applied, comment = cursor.fetchone()
    if applied is not None and tasks is not None:
        cursor.execute("SELECT coalesce(max(version), 0) FROM queued_task_migrations")
        return _Found(int(cursor.fetchone()[0]), is_adopted=False)
    if tasks is None:
        return _Found(0, is_adopted=False)
    if match := re.fullmatch(COMMENT.format(version=r"(\d+)"), comment or ""):
        return _Found(int(match[1]), is_adopted=True)
    raise SchemaOutdated(
        "this database has a table queued_tasks that is not ours (its comment does not name a schema version of "
        "queuedtask): use another database or another search_path"
    )


def current_version(cursor: Cursor) -> int:
    """Return the version of the database's schema: 0 without tables, and where companion tables are missing."""
    found = _look(cursor)
    return 0 if found.is_adopted else found.version


def pending(cursor: Cursor) -> list[Migration]:
    """Return the migrations that :func:`upgrade` would apply, in their order."""
    version = current_version(cursor)
    return [migration for migration in migrations() if migration.version > version]


def upgrade(cursor: Cursor, *, to: int | None = None) -> list[Migration]:
    """Bring the schema to this release's version, or to an earlier one that is given; return what was applied.

    Runs in the caller's transaction and holds an advisory lock until it ends, so that any number of processes may
    start at once. Tables restored from a dump of some of them are adopted: the missing ones are made, the edges
    between tasks rebuilt, and what was running when the dump was made goes back to the queue; always up to this
    release's version, for the rows may be of any. Where the SQL function is installed it becomes that of this release.
    """
    cursor.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
    found = _look(cursor)
    missing = pending(cursor)
    if to is not None and not found.is_adopted:
        missing = [migration for migration in missing if migration.version <= to]
    for migration in missing:
        cursor.execute(migration.script())
    if found.is_adopted:
        store.adopt(cursor)
    functions.upgrade(cursor)
    return missing


def script(cursor: Cursor) -> str:
    """Return what :func:`upgrade` would execute as a script for psql; an empty text when nothing is missing."""
    missing = pending(cursor)
    function = functions.installed(cursor)
    is_outdated = function is not None and not function.is_current
    if not missing and not is_outdated:
        return ""
    parts = ["BEGIN;\n", f"SELECT pg_advisory_xact_lock({LOCK});\n", *(migration.script() for migration in missing)]
    if _look(cursor).is_adopted:
        parts += [f"{statement.sql};\n" for statement in store.ADOPT]
    if function is not None and is_outdated:
        parts.append(functions.script(cursor, function.settings))
    return "\n".join([*parts, "COMMIT;\n"])


def require_usable(cursor: Cursor) -> None:
    """Raise SchemaOutdated unless this release can work with the database's schema.

    It can with its own version and with the next one, so that workers can be replaced one by one after an upgrade.
    """
    version, ours = current_version(cursor), latest_version()
    if version == 0:
        raise SchemaOutdated("the database has no queuedtask tables yet; type: python -m queuedtask db upgrade")
    if version < ours:
        raise SchemaOutdated(
            f"the database's schema has version {version}, this release needs {ours}; "
            "type: python -m queuedtask db upgrade"
        )
    if version > ours + 1:
        raise SchemaOutdated(
            f"the database's schema has version {version}, this release works with {ours} and {ours + 1} only: "
            "upgrade queuedtask here"
        )
