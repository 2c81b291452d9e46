"""The optional SQL function by which psql, other languages and triggers add tasks.

It is not one of the numbered migrations: who does not want it has not got it. Who has installed it gets the one of his
release with each ``db upgrade``. A comment on it holds what it was made from: a digest, and the settings of the
installation, which have to be those of its workers.
"""

import json
import re
from hashlib import sha256
from importlib import resources
from typing import Any, Final, NamedTuple

from queuedtask.db.statement import Cursor
from queuedtask.errors import SchemaOutdated
from queuedtask.model.options import RESERVED_META

NAME: Final = "queuedtask_add_task"
_COMMENT: Final = re.compile(r"queuedtask (\w+) (\{.*\})")


class Settings(NamedTuple):
    """What of a configuration goes into the function."""

    notify_channel: str | None
    """None where workers only poll."""
    max_payload: int


class Installed(NamedTuple):
    """The function as it is in a database."""

    settings: Settings
    is_current: bool
    """It is that of this release."""


def installed(cursor: Cursor) -> Installed | None:
    """Return what is installed beside the tables; None when nothing is."""
    if (schema := _schema(cursor)) is None:
        return None
    cursor.execute(
        "SELECT d.description FROM pg_proc p JOIN pg_description d ON d.objoid = p.oid AND d.classoid = "
        "'pg_proc'::regclass WHERE p.proname = %s AND p.pronamespace::regnamespace::text = %s",
        (NAME, schema),
    )
    for (comment,) in cursor.fetchall():
        if match := _COMMENT.fullmatch(comment):
            settings = Settings(**json.loads(match[2]))
            return Installed(settings, match[1] == _digest(_body(cursor, schema, settings)))
    return None


def script(cursor: Cursor, settings: Settings) -> str:
    """Return what :func:`install` executes. Raises SchemaOutdated where there are no tables."""
    schema = _schema(cursor)
    if schema is None:
        raise SchemaOutdated("the database has no queuedtask tables yet; type: python -m queuedtask db upgrade")
    body = _body(cursor, schema, settings)
    comment = f"queuedtask {_digest(body)} {json.dumps(settings._asdict())}"
    return f"{body}\nCOMMENT ON FUNCTION {schema}.{NAME} IS {_quoted(cursor, comment)};\n"


def install(cursor: Cursor, settings: Settings) -> None:
    """Make the function, or replace it, in the schema that the tables are in. Raises SchemaOutdated."""
    cursor.execute(script(cursor, settings))


def upgrade(cursor: Cursor) -> bool:
    """Replace the function by that of this release if it is installed and another; tell whether it was."""
    found = installed(cursor)
    if found is None or found.is_current:
        return False
    install(cursor, found.settings)
    return True


def remove(cursor: Cursor) -> bool:
    """Drop the function; tell whether it was there. Raises the driver's error when something depends on it."""
    if installed(cursor) is None:
        return False
    cursor.execute(f"DROP FUNCTION {_schema(cursor)}.{NAME}")
    return True


def _schema(cursor: Cursor) -> str | None:
    """Return the schema of the tables, quoted; None without tables."""
    cursor.execute("SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass('queued_tasks')")
    row = cursor.fetchone()
    return None if row is None else str(row[0])


def _body(cursor: Cursor, schema: str, settings: Settings) -> str:
    reserved = ", ".join(f"'{key}'" for key in RESERVED_META)
    channel = "NULL" if settings.notify_channel is None else _quoted(cursor, settings.notify_channel)
    filled = {
        "schema": schema,
        "reserved": f"ARRAY[{reserved}]",
        "notify_channel": f"{channel}::text",
        "max_payload": str(settings.max_payload),
    }
    text = resources.files("queuedtask.db").joinpath("add_task.sql").read_text(encoding="utf-8")
    return re.sub(r"@(\w+)@", lambda match: filled[match[1]], text)


def _quoted(cursor: Cursor, text: str) -> str:
    cursor.execute("SELECT quote_literal(%s)", (text,))
    row: Any = cursor.fetchone()
    return str(row[0])


def _digest(body: str) -> str:
    return sha256(body.encode()).hexdigest()[:16]
