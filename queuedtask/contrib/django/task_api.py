"""The two packages that have Django's tasks: ``django.tasks`` of Django 6, and its backport ``django_tasks``.

They have the same classes under the same names, but for two of the exceptions. Both read the setting ``TASKS``, and
both can be installed, so what a backend makes has to come from the package whose handler made the backend.
"""

import contextlib
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import FrameType
from typing import Any, Final, NamedTuple

import django
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

DJANGO: Final = "django.tasks"
BACKPORT: Final = "django_tasks"
_PACKAGES: Final = (DJANGO, BACKPORT)


class Api(NamedTuple):
    """What a back end needs of one of the packages."""

    package: str
    BaseTaskBackend: Any
    Task: Any
    TaskContext: Any
    TaskError: Any
    TaskResult: Any
    TaskResultStatus: Any
    InvalidTask: Any
    InvalidTaskBackend: Any
    TaskResultDoesNotExist: Any
    normalize_json: Callable[[Any], Any]

    @property
    def signals(self) -> Any:
        """The module with its signals; imported late, because it imports the whole package."""
        return import_module(f"{self.package}.signals")

    @property
    def backends(self) -> Any:
        """Its handler, which has the back ends by their aliases."""
        return import_module(self.package).task_backends


@cache
def api(package: str) -> Api:
    """Return one package's classes. Raises ImportError when it is not there."""
    base = import_module(f"{package}.base")
    exceptions = import_module(f"{package}.exceptions")
    end = "" if package == DJANGO else "Error"
    return Api(
        package,
        import_module(f"{package}.backends.base").BaseTaskBackend,
        base.Task,
        base.TaskContext,
        base.TaskError,
        base.TaskResult,
        base.TaskResultStatus,
        getattr(exceptions, f"InvalidTask{end}"),
        getattr(exceptions, f"InvalidTaskBackend{end}"),
        exceptions.TaskResultDoesNotExist,
        import_module("django.utils.json" if package == DJANGO else f"{package}.utils").normalize_json,
    )


def usual() -> Api:
    """Return the package of this version of Django. Raises ImproperlyConfigured when the backport is missing."""
    if django.VERSION >= (6, 0):
        return api(DJANGO)
    try:
        return api(BACKPORT)
    except ImportError as error:
        raise ImproperlyConfigured(
            f"Django {django.get_version()} has no tasks of its own: install django-tasks 0.12 or later, or Django 6 "
            f"({error})"
        ) from error


def load_backends() -> None:
    """Import the back ends that the project names: a worker may be the first to meet a Task of another one's.

    What cannot be imported is left to whoever asks for it, and to Django's checks.
    """
    given = settings.TASKS if settings.is_overridden("TASKS") else {}
    for params in given.values() if isinstance(given, dict) else ():
        with contextlib.suppress(ImportError, ImproperlyConfigured, KeyError, TypeError):
            import_string(params["BACKEND"])


def of_the_caller() -> Api | None:
    """Return the package whose code is nearest on the stack, None when neither is: a handler is making a back end.

    It tells nobody who it is, and hands the same arguments to the same class whichever it is.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__") or ""
        for package in _PACKAGES:
            if name == package or name.startswith(f"{package}."):
                return api(package)
        frame = frame.f_back
    return None


def of_task(task: object) -> Api:
    """Return the package that a Task belongs to."""
    return next(api(package) for package in _PACKAGES if package in sys.modules and isinstance(task, api(package).Task))
