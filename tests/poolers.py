"""PgBouncer before the tests' server: a real process, in transaction mode, with few connections of its own."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg2
import pytest

from helpers import wait_until

SERVER_CONNECTIONS = 3
PROGRAM = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


@contextmanager
def pgbouncer(
    url: str, pool_mode: str = "transaction", *, server_connections: int = SERVER_CONNECTIONS
) -> Iterator[str]:
    """Run a PgBouncer before the server of a URL, and give the URL by which the same database is reached through it."""
    if PROGRAM is None:
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    parts = urlsplit(url)
    sockets = Path(parts.hostname or parse_qs(parts.query)["host"][0])
    # As the owner of the server's socket: nobody else may connect, and PgBouncer refuses to be root.
    owner = sockets.stat()
    account = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    directory = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    os.chown(directory, owner.st_uid, owner.st_gid)
    port = _free_port()
    (directory / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={sockets} port={parts.port or 5432} user={parts.username}\n"
        "[pgbouncer]\nlisten_addr = 127.0.0.1\nauth_type = any\nunix_socket_dir =\n"
        f"listen_port = {port}\npool_mode = {pool_mode}\ndefault_pool_size = {server_connections}\n"
        "max_client_conn = 200\nadmin_users = test\n"
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [PROGRAM, directory / "pgbouncer.ini"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, **account
        )
    through = f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}"
    try:
        wait_until(lambda: process.poll() is not None or _answers(through), message="PgBouncer answers")
        assert process.poll() is None, (directory / "log").read_text()
        yield through
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(directory)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        psycopg2.connect(url, connect_timeout=5).close()
    except psycopg2.OperationalError:
        return False
    return True
