"""What the project's settings say: the mapping ``QUEUEDTASK``, whose keys are our settings in upper case.

Two more keys are Django's affair: ``DATABASE`` is the alias of the database that holds the tasks, and ``AUTODISCOVER``
the name of the module that is imported from each application for the tasks and schedules in it, or None.
"""

from typing import Any, Final, NamedTuple

from django.conf import settings

from queuedtask.config import Config
from queuedtask.errors import ConfigError

APPLICATION: Final = "queuedtask.contrib.django:queue"
"""What a worker is told to import."""
SETTING: Final = "QUEUEDTASK"
_OF_THE_ALIAS: Final = ("DATABASE_URL", "EMBEDDED_DIR")
_OF_THE_COMMAND: Final = "APP"


class Given(NamedTuple):
    """The settings, checked."""

    alias: str
    autodiscover: str | None
    config: Config


def given() -> Given:
    """Return what the settings say. Raises ConfigError for what cannot be."""
    mapping: Any = getattr(settings, SETTING, {})
    if not isinstance(mapping, dict):
        raise ConfigError(f"{SETTING} in the settings: must be a dict, not {type(mapping).__name__}")
    fields = dict(mapping)
    alias, autodiscover = fields.pop("DATABASE", "default"), fields.pop("AUTODISCOVER", "tasks")
    if not isinstance(alias, str):
        raise ConfigError(f"{SETTING}['DATABASE']={alias!r}: must be an alias of DATABASES")
    if autodiscover is not None and not isinstance(autodiscover, str):
        raise ConfigError(f"{SETTING}['AUTODISCOVER']={autodiscover!r}: must be a module's name or None")
    for name in fields:
        if not isinstance(name, str) or name != name.upper():
            raise ConfigError(f"{SETTING}[{name!r}]: names are in upper case")
        if name in _OF_THE_ALIAS:
            raise ConfigError(f"{SETTING}[{name!r}]: the database is Django's; give its alias as DATABASE")
        if name == _OF_THE_COMMAND:
            raise ConfigError(f"{SETTING}[{name!r}]: the application is this project")
    try:
        return Given(alias, autodiscover, Config(**{name.lower(): value for name, value in fields.items()}))
    except ConfigError as error:
        raise ConfigError(f"{SETTING} in the settings: {error}") from None
