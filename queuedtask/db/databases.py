"""Databases as a whole, for tests: made by cloning one with our schema, and dropped whoever is still connected."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

from sqlalchemy import Engine, create_engine, exc, make_url
from sqlalchemy.pool import NullPool

from queuedtask.db import migrate
from queuedtask.db.connections import unavailable
from queuedtask.db.statement import Cursor

EMPTY: Final = "template0"
_LOCK: Final = 0x71747465_6D706C00
"""The advisory lock under which a template is made: "qttempl" in ASCII."""


class Databases:
    """Makes databases on a server. ``url`` is of any database there, as one who may create others."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        # Keeps no connection: nothing of ours shall be in the way of whoever clones or drops.
        self._engine = create_engine(self._url, poolclass=NullPool)

    def url_of(self, name: str) -> str:
        """Return the URL of another database of the server."""
        return self._url.set(database=name).render_as_string(hide_password=False)

    @contextmanager
    def fresh(self, template: str = EMPTY, *, prefix: str = "test") -> Iterator[str]:
        """Make a database and give its URL; it is dropped afterwards."""
        name = f"{prefix}_{uuid.uuid4().hex[:16]}"
        with self._cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield self.url_of(name)
        finally:
            self.drop(name)

    def drop(self, name: str) -> None:
        """Drop a database, if it is there."""
        with self._cursor() as cursor:
            cursor.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def ensure_template(self, name: str, fill: Callable[[Cursor], object] = migrate.upgrade) -> str:
        """Return the name of a database to clone; the first process that asks makes it, with our schema in it."""
        with self._cursor() as cursor:
            cursor.execute(f"SELECT pg_advisory_lock({_LOCK})")  # until the connection ends
            cursor.execute("SELECT count(*) FROM pg_database WHERE datname = %s", (name,))
            if not cursor.fetchone()[0]:
                unfinished = f"{name}_unfinished"
                cursor.execute(f'DROP DATABASE IF EXISTS "{unfinished}" WITH (FORCE)')
                cursor.execute(f'CREATE DATABASE "{unfinished}" TEMPLATE {EMPTY}')
                with _connection(create_engine(self.url_of(unfinished), poolclass=NullPool)) as connection:
                    fill(connection.cursor())
                    connection.commit()
                # Nobody may be connected to a database while it is cloned.
                cursor.execute(f'ALTER DATABASE "{unfinished}" ALLOW_CONNECTIONS false')
                cursor.execute(f'ALTER DATABASE "{unfinished}" RENAME TO "{name}"')
        return name

    @contextmanager
    def _cursor(self) -> Iterator[Cursor]:
        with _connection(self._engine) as connection:
            connection.driver_connection.autocommit = True
            yield cast(Cursor, connection.cursor())


@contextmanager
def _connection(engine: Engine) -> Iterator[Any]:
    try:
        connection = engine.raw_connection()
    except exc.OperationalError as error:
        raise unavailable(error) from error
    try:
        yield connection
    finally:
        connection.close()
