"""What the tests of the command line use: a terminal to look at, and rows as workers would have left them."""

import os
import pty
import subprocess
import sys

from psycopg2 import sql

from helpers import execute

RED = "\x1b[31m"


def on_a_terminal(*arguments: str, columns: int = 200, **environment: str) -> str:
    """Return what a command writes to a terminal, escape sequences included."""
    ours, theirs = pty.openpty()
    kept = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "queuedtask", *arguments], stdout=theirs, env={**kept, **environment}
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:
        pass  # So Linux says that nobody holds the other end any more.
    os.close(ours)
    assert process.wait(30) == 0
    return written.decode().replace("\r\n", "\n")


def insert(url: str, table: str, *, ago: dict[str, float], **columns: object) -> int:
    """Insert a row and return its id; ``ago`` are columns with a time so many seconds ago."""
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING id").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, [*columns, *ago])),
        sql.SQL(", ").join(
            [sql.Placeholder()] * len(columns) + [sql.SQL("clock_timestamp() - %s * interval '1 second'")] * len(ago)
        ),
    )
    return int(execute(url, statement, (*columns.values(), *ago.values()))[0][0])


def insert_worker(url: str, pid: int, *, silence: float = 0.0, **columns: object) -> int:
    """Insert the row of a worker that last reported so many seconds ago; return its id."""
    row = {"server_name": "web1", "max_workers": 4, "idle_workers": 4, "version": "0.1.0", "pid": pid, **columns}
    return insert(url, "queued_task_workers", ago={"last_heartbeat": silence}, **row)


def insert_attempt(url: str, task_id: str, number: int, outcome: str, *, seconds: float, **columns: object) -> None:
    """Insert the row of an attempt that has just ended, so many seconds after its start."""
    row = {"queued_task_id": task_id, "attempt": number, "outcome": outcome, **columns}
    insert(url, "queued_task_attempts", ago={"date_started": seconds, "date_done": 0.0}, **row)
