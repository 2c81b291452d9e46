"""The project's one Queue, made from its settings when it is first asked for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, reset_queries

from queuedtask.contrib.django import conf
from queuedtask.contrib.django.coroutines import beside_the_loop
from queuedtask.contrib.django.database import DjangoDatabase, lend_to, let_attempts_cancel, take_back, url_of_alias
from queuedtask.db.connections import Database
from queuedtask.errors import ConfigError
from queuedtask.run.attempt import current_attempt
from queuedtask.run.hooks import TaskView
from queuedtask.taskqueue import Queue

_making = threading.Lock()
_made: "DjangoQueue | None" = None


class DjangoQueue(Queue):
    """A Queue on one of Django's databases: tasks are added, asked for and controlled on Django's own connection.

    Inside ``atomic()`` a task commits or vanishes with what else is written there; outside of it, it is there at once.
    ``options(connection=…)`` still names another connection. Around each attempt connections that are too old or broken
    are closed, as Django does around each request.
    """

    def __init__(self) -> None:
        given = conf.given()
        self._alias = given.alias
        try:
            url = url_of_alias(given.alias)
        except (ConfigError, ImproperlyConfigured):
            # The system checks say it; whoever only collects static files needs no database.
            url = "postgresql://"
        super().__init__(url, config=given.config)
        self.around_run(_around_an_attempt)
        self.around_run(beside_the_loop)
        # Behind PgBouncer the number of a connection's backend is not the server's, where it would hit somebody else.
        if self.config.listen_url is None and self.config.use_postgresql_notify:
            let_attempts_cancel(given.alias)

    def _open(self, engine: Any) -> Database:
        return DjangoDatabase(self.config, self._alias)

    def _moved_to(self, database_url: str) -> NoReturn:
        raise ConfigError(
            "Django's queue is where Django's connection is, and the test runner puts that on a test database: leave "
            "queue_on() and queuedtask_queue out"
        )

    def _default_connection(self) -> object:
        return self._alias

    def __repr__(self) -> str:
        return f"<DjangoQueue {self._alias}>"


def the_queue() -> DjangoQueue:
    """Return the project's queue; set Django up for it where nobody has. Raises ConfigError."""
    global _made
    _set_up()
    with _making:
        if _made is None:
            _made = DjangoQueue()
        return _made


def _set_up() -> None:
    """Do what ``manage.py`` does for its commands: a worker imports the queue first, and needs the project's tasks."""
    try:
        settings.INSTALLED_APPS  # noqa: B018 (it loads the settings)
    except ImproperlyConfigured as error:
        if settings.configured:
            raise
        raise ConfigError(f"{conf.APPLICATION}: {error}") from None
    if apps.ready or apps.loading:
        return
    import django

    try:
        django.setup()
    except AttributeError as error:
        # Python would take it to mean that this module has no queue.
        raise RuntimeError(f"the Django project cannot be set up: {error}") from error


@contextmanager
def _around_an_attempt(task: TaskView) -> Iterator[None]:
    """Give the attempt connections that work, leave none behind that is broken, and have its SQL cancelled in time.

    In the midst of somebody's test his connections are left alone.
    """
    attempt = current_attempt()
    is_guest = attempt is not None and attempt.is_guest
    if not is_guest:
        reset_queries()
        _close_old_connections()
    if attempt is not None:
        lend_to(attempt)
    try:
        yield
    finally:
        if attempt is not None:
            take_back(attempt)
        # An exception that was thrown into the driver leaves a connection in the middle of a query, and a
        # cancellation may still be on its way.
        if attempt is not None and attempt.interrupted_at is not None:
            _close_connections()
        elif not is_guest:
            _close_old_connections()


def _close_old_connections() -> None:
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def _close_connections() -> None:
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()
