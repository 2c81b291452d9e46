"""The queue's database, which is one of Django's: on Django's own connection, and on others made like it.

What a thread adds, asks and changes goes over ``connections[alias]``, so it is part of the transaction that is open
there, sees what that has written, and follows Django into the database of a test. A worker, a wait, and
``current_task().connection()`` need connections that nobody else has a transaction on. Those are psycopg2's, whatever
driver Django uses, and are opened with the parameters of the alias; SQLAlchemy never touches a connection of Django's.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime, tzinfo
from typing import Any, Final, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, InterfaceError, OperationalError, connections
from django.db.backends.signals import connection_created
from django.db.transaction import atomic
from django.utils.connection import ConnectionDoesNotExist

from queuedtask.config import Config
from queuedtask.db.connections import MOST_ATTEMPTS, Database, FollowingDatabase, is_conflict, unavailable, url_of
from queuedtask.db.statement import Cursor
from queuedtask.errors import ConfigError
from queuedtask.run.attempt import Attempt, current_attempt

T = TypeVar("T")

# What get_connection_params() says to the driver and not to the server.
_OF_THE_DRIVER: Final = frozenset(
    {"autocommit", "client_encoding", "context", "cursor_factory", "prepare_threshold", "row_factory"}
)


def url_of_alias(alias: str) -> str:
    """Return the URL of what an alias is connected to now. Raises ConfigError where that is no PostgreSQL."""
    wrapper = checked_wrapper(alias)
    try:
        parameters: dict[str, Any] = wrapper.get_connection_params()
    except ImproperlyConfigured as error:
        raise ConfigError(str(error)) from None
    role = wrapper.settings_dict["OPTIONS"].get("assume_role")
    if role is not None:
        parameters["options"] = f"{parameters.get('options', '')} -c role={role}".strip()
    return url_of({name: value for name, value in parameters.items() if name not in _OF_THE_DRIVER})


def checked_wrapper(alias: str) -> Any:
    """Return Django's connection of this thread, connecting to nothing. Raises ConfigError for no PostgreSQL."""
    try:
        wrapper: Any = connections[alias]
    except ConnectionDoesNotExist:
        known = ", ".join(connections)
        raise ConfigError(f"QUEUEDTASK: DATABASES has no alias {alias!r}; there are: {known}") from None
    if wrapper.vendor != "postgresql":
        raise ConfigError(
            f"queuedtask needs PostgreSQL, and DATABASES[{alias!r}] is {wrapper.vendor}; "
            "QUEUEDTASK = {'DATABASE': …} names another alias"
        )
    return wrapper


class DjangoDatabase(FollowingDatabase):
    """The alias's database: on Django's connection in the calling thread; the rest of it on connections of ours."""

    def __init__(self, config: Config, alias: str) -> None:
        def url() -> str:
            return url_of_alias(alias)

        # The test's database is dropped at the end, which an idle connection would prevent.
        super().__init__(config, url, is_passing=_is_under_test)
        self.alias = alias
        self._apart = FollowingDatabase(config, url, is_passing=_is_under_test)
        _used.add(alias)

    @property
    def apart(self) -> Database:
        """The same, on connections of ours alone."""
        return self._apart

    def close(self) -> None:
        """Close our own idle connections; Django's are its own affair."""
        super().close()
        self._apart.close()

    def transaction(self) -> AbstractContextManager[Cursor]:
        """Give a cursor inside ``atomic()``: a transaction, or a savepoint of the one that is open."""
        return self._cursor(is_atomic=True)

    def autocommit(self) -> AbstractContextManager[Cursor]:
        """Give a cursor as Django has it: statements commit by themselves, or belong to the transaction."""
        return self._cursor(is_atomic=False)

    def in_transaction(self, work: Callable[[Cursor], T]) -> T:
        """Do some work in a transaction; once more after a conflict, where no transaction of the caller's is open."""
        for attempts_left in reversed(range(MOST_ATTEMPTS)):
            try:
                with self.transaction() as cursor:
                    return work(cursor)
            except DatabaseError as error:
                if not attempts_left or not is_conflict(error) or connections[self.alias].in_atomic_block:
                    raise
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def _cursor(self, *, is_atomic: bool) -> Iterator[Cursor]:
        wrapper, connected = checked_wrapper(self.alias), None
        try:
            with atomic(using=self.alias) if is_atomic else nullcontext(), wrapper.cursor() as cursor:
                connected = wrapper.connection
                yield _aware(wrapper, cursor)
        except (OperationalError, InterfaceError) as error:
            if connected is not None and not connected.closed:
                raise
            if not wrapper.in_atomic_block:
                wrapper.close()  # the next one connects anew
            raise unavailable(error) from error


def _is_under_test() -> bool:
    # setup_test_environment() makes it; Django documents it for tests.
    return hasattr(sys.modules.get("django.core.mail"), "outbox")


def _aware(wrapper: Any, cursor: Any) -> Cursor:
    return cursor if settings.USE_TZ else _AwareCursor(cursor, ZoneInfo(wrapper.timezone_name))


class _AwareCursor:
    """Gives the naive datetimes that Django makes without USE_TZ their time zone back."""

    def __init__(self, cursor: Any, zone: tzinfo) -> None:
        self._cursor = cursor
        self._zone = zone

    @property
    def rowcount(self) -> int:
        return int(self._cursor.rowcount)

    def execute(self, query: Any, params: Any = None, /) -> Any:
        return self._cursor.execute(query, params)

    def fetchone(self) -> Any:
        row = self._cursor.fetchone()
        return None if row is None else self._with_zone(row)

    def fetchall(self) -> Sequence[Any]:
        return [self._with_zone(row) for row in self._cursor.fetchall()]

    def _with_zone(self, row: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(
            value.replace(tzinfo=self._zone) if isinstance(value, datetime) and value.tzinfo is None else value
            for value in row
        )


# ------------------------------------------------------------------------------------------------------------- attempts


class _Lent(NamedTuple):
    """Django's connection of a slot's thread, as the ladder sees it: a backend whose statement can be cancelled."""

    wrapper: Any
    backend: int

    def discard(self) -> None:
        """Leave it: the slot closes it, or is given up with it."""


_lending: Final[set[str]] = set()
"""Aliases whose connections are lent to attempts."""


def let_attempts_cancel(alias: str) -> None:
    """Have a timeout cancel what an attempt has the server do on Django's connection of this alias.

    Of no other: the numbers of backends mean nothing on another server.
    """
    _lending.add(alias)


def lend_to(attempt: Attempt) -> None:
    """Let an attempt know of the connections that this thread has already; of new ones it hears by itself."""
    for wrapper in connections.all(initialized_only=True):
        if wrapper.connection is not None:
            _lend(attempt, wrapper)


def take_back(attempt: Attempt) -> None:
    """Forget what was lent to an attempt."""
    if attempt.open_connections:
        kept = tuple(opened for opened in attempt.open_connections if not isinstance(opened, _Lent))
        attempt.open_connections = kept


def _lend(attempt: Attempt, wrapper: Any) -> None:
    if wrapper.alias in _lending:
        with attempt.guard.hold():
            attempt.open_connections += (_Lent(wrapper, wrapper.connection.info.backend_pid),)


def _lend_new_one(sender: object, connection: Any, **given: object) -> None:
    attempt = current_attempt()
    if attempt is not None and not attempt.is_after:
        _lend(attempt, connection)


connection_created.connect(_lend_new_one)


# ----------------------------------------------------------------------------------------------------------------- fork

_used: Final[set[str]] = set()
"""Aliases of queues."""
_abandoned: Final[list[object]] = []
"""What a fork has copied; kept, because its end would say good-bye to the server in the parent's name."""


def _abandon_what_was_inherited() -> None:
    """Forget the connection, and the pool of psycopg's, that the parent goes on using.

    An application that adds a task while it is loaded (gunicorn --preload) has opened it before the fork.
    """
    for wrapper in connections.all(initialized_only=True):
        if wrapper.alias in _used:
            _abandoned.append(wrapper.connection)
            wrapper.connection = None
    for alias in _used & set(connections):
        pools = getattr(type(connections[alias]), "_connection_pools", {})
        _abandoned.append(pools.pop(alias, None))


os.register_at_fork(after_in_child=_abandon_what_was_inherited)
