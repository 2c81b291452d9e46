"""Django's connections to a test's database, for tests that bring one."""

import contextlib
from typing import Any

import pytest

from helpers import raw_connection


def django_connections(url: str) -> Any:
    """Return ``django.db.connections`` with its default database set to this one."""
    django = pytest.importorskip("django", reason="Django is not installed")
    from django.conf import settings
    from django.db import connections

    if not settings.configured:
        settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}}, USE_TZ=True)
        django.setup()
    with contextlib.closing(raw_connection(url)) as connection:
        parameters = connection.get_dsn_parameters()
    options = {"NAME": parameters["dbname"], "USER": parameters["user"], "HOST": parameters["host"]}
    connections["default"].close()
    del connections["default"]
    connections.settings["default"].update(options, PORT=parameters["port"])
    return connections
