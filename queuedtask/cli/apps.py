"""Finding the Queue that a command works with: an application's own, or one from the environment."""

import argparse
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, cast

from sqlalchemy import make_url

import queuedtask
from queuedtask.cli.parser import UsageError
from queuedtask.config import Config
from queuedtask.errors import ConfigError, QueuedTaskError
from queuedtask.taskqueue import Queue

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

_PACKAGE = str(Path(queuedtask.__file__).parent)


class ApplicationError(QueuedTaskError):
    """Say that an application cannot be imported; its traceback has been printed."""


def open_queue(arguments: argparse.Namespace, flags: Mapping[str, str] | None = None) -> Queue:
    """Return the command's Queue, with its flags set; connects to nothing.

    ``flags`` are further settings that the command takes as options: the setting's name and the option's.
    """
    _put_current_directory_on_path()
    options = {"app": "--app", "database_url": "--database-url", **(flags or {})}
    _set_flags(Config(), arguments, options)  # what is wrong is refused before anything is imported
    url = arguments.database_url
    application = application_of(arguments)
    queue = load_application(application) if application else Queue(url)
    _set_flags(queue.config, arguments, options)
    if url is not None and queue.database.engine.url != make_url(queue.config.database_url or url):
        raise UsageError("argument --database-url: the application's Queue has an engine of its own, which stays")
    queue.database.announce = _announce
    return queue


def application_of(arguments: argparse.Namespace) -> str | None:
    """Return the application that a command is to import, as it is named; None without one."""
    named: str | None = arguments.app
    return named or Config.resolve(arguments={"database_url": arguments.database_url}).app


def _set_flags(config: Config, arguments: argparse.Namespace, flags: Mapping[str, str]) -> None:
    for setting, option in flags.items():
        try:
            config.set_flags(**{setting: getattr(arguments, option.removeprefix("--").replace("-", "_"))})
        except ConfigError as error:
            raise UsageError(f"argument {option}: {error}") from None


def load_application(path: str) -> Queue:
    """Return the Queue of ``module:queue``, or the only one of ``module``.

    Raises UsageError when it is not there or not the only one, and ApplicationError when the module cannot be imported.
    """
    name, _, attribute = path.partition(":")
    module = _import(name)
    if attribute:
        try:
            named = reduce(getattr, attribute.split("."), module)
        except AttributeError as error:
            raise UsageError(f"the application {path}: {error}") from None
        if not isinstance(named, Queue):
            raise UsageError(f"the application {path}: it is no Queue but {type(named).__qualname__}")
        return named
    # The same object under two names is one Queue.
    queues = {id(value): (key, value) for key, value in reversed(vars(module).items()) if isinstance(value, Queue)}
    if len(queues) == 1:
        return next(value for _, value in queues.values())
    if not queues:
        raise UsageError(f"the application {name} has no Queue at module level; name one as {name}:QUEUE")
    names = ", ".join(sorted(f"{name}:{key}" for key, _ in queues.values()))
    raise UsageError(f"the application {name} has several Queues; name one of them: {names}")


def load_wsgi(path: str) -> "WSGIApplication":
    """Return the WSGI application ``module:app``, or what the factory ``module:create_app()`` makes.

    Of a module alone it is ``app`` or ``application``. Raises UsageError when it is not there or cannot be called, and
    ApplicationError when it cannot be imported or made.
    """
    _put_current_directory_on_path()
    name, _, attribute = path.partition(":")
    is_factory = attribute.endswith("()")
    module = _import(name)
    attribute = attribute.removesuffix("()") or next((a for a in ("app", "application") if hasattr(module, a)), "app")
    try:
        found = reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise UsageError(f"the application {path}: {error}") from None
    if is_factory and callable(found):
        with _explaining(f"the application {path} cannot be made"):
            found = found()
    if not callable(found):
        raise UsageError(f"the application {path}: it is no WSGI application but {type(found).__qualname__}")
    return cast("WSGIApplication", found)


def _import(name: str) -> ModuleType:
    with _explaining(f"the application {name} cannot be imported"):
        return import_module(name)


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Print the traceback of what goes wrong in an application's code, and say what follows from it."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a script without a main guard
        traceback.print_exception(type(error), error, _of_the_application(error.__traceback__))
        raise ApplicationError(what) from None


def _of_the_application(found: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of ours and of the import machinery that come first."""
    while found is not None and found.tb_frame.f_code.co_filename.startswith((_PACKAGE, "<frozen ", _IMPORTLIB)):
        found = found.tb_next
    return found


_IMPORTLIB = str(Path(import_module("importlib").__file__ or "").parent)


def _put_current_directory_on_path() -> None:
    # ``python -m`` has put it there already, the installed script has its own directory there.
    here = os.getcwd()
    if sys.path[:1] not in ([""], [here]):
        sys.path.insert(0, here)


def _announce(line: str) -> None:
    print(line, file=sys.stderr)
