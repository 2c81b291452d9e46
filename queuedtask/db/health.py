"""Asking how a queue is, within a time limit and whatever state its database is in."""

import os
import threading
import time
from typing import Any, Final

import psycopg2
from sqlalchemy import Text, func, select, true

from queuedtask.db import measures, migrate
from queuedtask.db.connections import Database, is_transient
from queuedtask.db.measures import Limits
from queuedtask.db.moves import literal
from queuedtask.db.statement import Cursor, Statement, parameter
from queuedtask.errors import DatabaseUnavailable, SchemaOutdated
from queuedtask.model import measures as model

GIVEN_UP_AFTER: Final = 60.0
"""Seconds after which a check that hangs is left to itself and another one begun, on another connection."""

# The server gives up as well, where a lock keeps a statement waiting; for this transaction only.
BOUND_STATEMENTS = Statement(
    "bound_statements",
    select(func.set_config(literal("statement_timeout"), parameter("milliseconds", Text), true())),
)


class HealthCheck:
    """Asks in a thread of its own, because neither the drivers nor a pool that is exhausted know a short deadline."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asking: _Asking | None = None

    def ask(self, timeout: float) -> dict[str, Any]:
        """Return how the queue is; at the latest after so many seconds, and whatever happens."""
        # Whoever asks while it is being asked waits for the same answer: a database that hangs costs one connection.
        # Two that begin at the same moment ask twice, which does no harm.
        asking = self._asking
        if asking is None or asking.is_over:
            asking = self._asking = _Asking(self._database, timeout)
        if asking.answered.wait(timeout):
            return dict(asking.answer)
        return model.health(model.DATABASE_UNREACHABLE, f"no answer within {timeout:g} s")


class _Asking:
    """One check."""

    def __init__(self, database: Database, timeout: float) -> None:
        self._database = database
        self._timeout = timeout
        self._began = time.monotonic()
        self._pid = os.getpid()
        self.answered = threading.Event()
        self.answer: dict[str, Any] = {}
        threading.Thread(target=self._ask, name="queuedtask-health", daemon=True).start()

    @property
    def is_over(self) -> bool:
        """Tell whether it is not to be waited for (any more)."""
        is_stale = time.monotonic() > self._began + GIVEN_UP_AFTER
        return self.answered.is_set() or is_stale or self._pid != os.getpid()

    def _ask(self) -> None:
        try:
            with self._database.transaction() as cursor:
                self.answer = self._answer(cursor)
        except BaseException as error:
            self.answer = model.health(_reason(error), " ".join(str(error).split()) or type(error).__name__)
        self.answered.set()

    def _answer(self, cursor: Cursor) -> dict[str, Any]:
        BOUND_STATEMENTS(cursor, milliseconds=str(max(1, int(self._timeout * 1000))))
        version = migrate.current_version(cursor)
        try:
            migrate.require_usable(cursor)
        except SchemaOutdated as error:
            return model.health(model.SCHEMA_OUTDATED if version else model.TABLES_MISSING, str(error))
        config = self._database.config
        return model.judge(measures.read_state(cursor, Limits.of(config)), max_stuck=config.health_max_stuck)


def _reason(error: BaseException) -> str:
    if isinstance(error, SchemaOutdated):
        return model.SCHEMA_OUTDATED
    if isinstance(error, psycopg2.errors.UndefinedTable):
        return model.TABLES_MISSING
    is_unreachable = isinstance(error, DatabaseUnavailable) or is_transient(error)
    return model.DATABASE_UNREACHABLE if is_unreachable else model.DATABASE_ERROR
