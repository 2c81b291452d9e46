"""System checks: what would otherwise be found out when the first order comes in."""

from collections.abc import Iterable, Sequence
from typing import Any

from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as Alarm

from queuedtask.contrib.django import conf, schema
from queuedtask.contrib.django.database import checked_wrapper
from queuedtask.errors import ConfigError


def check_settings(app_configs: Iterable[Any] | None, **given: Any) -> list[CheckMessage]:
    """Check the settings, and that the alias is there and is a PostgreSQL."""
    try:
        alias = conf.given().alias
    except ConfigError as error:
        return [Error(str(error), hint="See queuedtask's page “Configuration”.", id="queuedtask.E001")]
    try:
        checked_wrapper(alias)
    except ConfigError as error:
        return [Error(str(error), id="queuedtask.E002")]
    return []


def check_schema(
    app_configs: Iterable[Any] | None, databases: Sequence[str] | None = None, **given: Any
) -> list[CheckMessage]:
    """Check that the tables are there; asks the database, and so only when that is checked.

    It is a warning: ``migrate``, which puts it right, would not begin with an error.
    """
    if check_settings(app_configs):
        return []
    alias = conf.given().alias
    if alias not in (databases or ()):
        return []
    problem = schema.problem_of(alias)
    if problem is None:
        return []
    return [Alarm(problem, hint="`manage.py migrate` brings them up to date as well.", id="queuedtask.W001")]
