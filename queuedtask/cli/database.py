"""The commands ``db …``: the schema, and the embedded server."""

import argparse

from sqlalchemy import make_url

from queuedtask.cli import output
from queuedtask.cli.apps import open_queue
from queuedtask.db import functions as sql_functions
from queuedtask.db import migrate, reads
from queuedtask.db.embedded import EmbeddedServer, default_directory
from queuedtask.errors import DatabaseUnavailable, SchemaOutdated
from queuedtask.taskqueue import Queue


class NothingToDo(DatabaseUnavailable):
    """Say that there is no embedded server to start or stop."""


def start(arguments: argparse.Namespace) -> None:
    """Start the embedded server, and upgrade its tables."""
    queue = open_queue(arguments)
    server = _embedded(queue, "start")
    with queue.database.transaction():
        pass
    status = server.status()
    output.print_line(f"the embedded PostgreSQL {status.version} runs in {status.directory} (process {status.pid})")


def stop(arguments: argparse.Namespace) -> None:
    """Stop the embedded server."""
    server = _embedded(open_queue(arguments), "stop")
    was_running = server.stop()
    output.print_line(
        f"the embedded PostgreSQL in {server.directory} {'has stopped' if was_running else 'was not running'}"
    )


def _embedded(queue: Queue, verb: str) -> EmbeddedServer:
    if queue.config.database_url is not None:
        shown = queue.config.as_dict()["database_url"]
        raise NothingToDo(
            f"there is nothing to {verb}: the database is {shown['value']} (from: {shown['source']}), "
            "the embedded PostgreSQL is not in use"
        )
    return EmbeddedServer(queue.config.embedded_dir or default_directory())


def status(arguments: argparse.Namespace) -> int:
    """Show where the database is and which schema it has; start nothing."""
    queue = open_queue(arguments)
    document: dict[str, object] = dict.fromkeys(
        (
            "is_embedded",
            "is_running",
            "url",
            "server_version",
            "schema_version",
            "schema_needed",
            "sql_functions",
            "directory",
            "pid",
        )
    )
    document["schema_needed"] = migrate.latest_version()
    problem = None
    # Only a server that runs is asked, and through a Queue of its own: the first use of the embedded one upgrades it.
    asked: Queue | None = queue
    if queue.config.database_url is None:
        found = _embedded(queue, "show").status()
        document |= {"directory": str(found.directory), "pid": found.pid, "server_version": found.version}
        asked = None if found.url is None else Queue(found.url)
        if asked is None:
            problem = f"the embedded PostgreSQL in {found.directory} is not running"
    document["is_embedded"] = queue.config.database_url is None
    document["is_running"] = False
    if asked is not None:
        document["url"] = asked.config.as_dict()["database_url"]["value"]
        try:
            with asked.database.transaction() as cursor:
                document["server_version"] = reads.server_version(cursor)[0]
                document["is_running"] = True
                document["schema_version"] = migrate.current_version(cursor)
                if (function := sql_functions.installed(cursor)) is not None:
                    document["sql_functions"] = "current" if function.is_current else "outdated"
        except (DatabaseUnavailable, SchemaOutdated) as error:
            problem = str(error)
        asked.close()
    if arguments.json:
        output.print_json(document)
    else:
        _print_status(document)
    if problem is not None:
        output.print_error(problem)
        return 1
    return 0


def _print_status(document: dict[str, object]) -> None:
    version, needed, functions_ = document["schema_version"], document["schema_needed"], document["sql_functions"]
    known = "" if version is None else "none yet" if version == 0 else f"version {version}"
    output.print_pairs(
        {
            "database": "the embedded PostgreSQL" if document["is_embedded"] else "as configured",
            "running": "yes" if document["is_running"] else "no",
            "url": document["url"],
            "server version": document["server_version"],
            "directory": document["directory"],
            "process": document["pid"],
            "SQL function": functions_ and (functions_ if functions_ == "current" else f"{functions_}: db upgrade"),
            "schema": known and (known if version == needed else f"{known}, this release makes version {needed}"),
        }
    )


def upgrade(arguments: argparse.Namespace) -> int:
    """Bring the tables to this release's version, or say what that would take."""
    queue = open_queue(arguments)
    with queue.database.transaction() as cursor:
        if arguments.sql:
            print(migrate.script(cursor) or f"-- nothing is missing: version {migrate.latest_version()}")
            return 0
        missing = migrate.pending(cursor) if arguments.check else []
        applied = [] if arguments.check else migrate.upgrade(cursor)
        version = migrate.current_version(cursor)
    if missing:
        names = ", ".join(f"{migration.version:04} {migration.name}" for migration in missing)
        raise SchemaOutdated(f"missing in the database's schema: {names}; type: python -m queuedtask db upgrade")
    for migration in applied:
        output.print_line(f"applied {migration.version:04} {migration.name}")
    output.print_line(f"the schema has version {version}")
    return 0


def functions(arguments: argparse.Namespace) -> None:
    """Install the SQL function, print it, or drop it."""
    queue = open_queue(arguments)
    settings = sql_functions.Settings(queue.config.wake_channel, queue.config.max_payload)
    with queue.database.transaction() as cursor:
        if arguments.sql:
            print(sql_functions.script(cursor, settings))
        elif arguments.remove:
            was_there = sql_functions.remove(cursor)
            output.print_line(f"{sql_functions.NAME} {'is removed' if was_there else 'was not installed'}")
        else:
            migrate.require_usable(cursor)
            sql_functions.install(cursor, settings)
            output.print_line(f"{sql_functions.NAME} is installed")


def url(arguments: argparse.Namespace) -> None:
    """Print the database's URL as libpq takes it, with its password."""
    engine_url = make_url(open_queue(arguments).database.engine.url)
    print(engine_url.set(drivername="postgresql").render_as_string(hide_password=False))
