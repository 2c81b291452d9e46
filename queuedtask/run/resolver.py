"""From a task to its function: by the rules of this worker, imported by its path or loaded from its pickle."""

from collections.abc import Callable
from typing import Final, Protocol

from queuedtask.config import Config
from queuedtask.errors import FunctionNotAllowed
from queuedtask.model import functions, pickles
from queuedtask.model.options import PROCESS, TaskOptions
from queuedtask.model.rules import CurrentRules
from queuedtask.model.task import Task

Function = Callable[..., object]

OPTIONS: Final = "__queuedtask__"
"""The attribute in which a function carries the options of ``@queue.task``."""
_NONE: Final = TaskOptions()


def declared(function: Function) -> TaskOptions:
    """Return the options that a function declares."""
    return getattr(function, OPTIONS, None) or _NONE


class Resolve(Protocol):
    """Finds a task's function."""

    def __call__(self, task: Task) -> Function:
        """Return the function of a task."""


class LeftToOthers(Exception):
    """Say that this worker must not run a task, which it should not have claimed; others may."""


class Resolver:
    """Functions by their path, each looked up once; those of pickles anew for each task."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._rules = CurrentRules(config)
        # The functions that were found, and the rules that allowed them.
        self._known: tuple[object, dict[str, Function]] = (None, {})
        self.isolated: set[str] = set()
        """The paths, of those looked up, whose functions declare that they run in a process of their own."""

    def knows(self, task: Task) -> bool:
        """Tell whether a task's function has been looked up, so that looking it up again imports nothing."""
        return task.pickled_function is None and task.function in self._known[1]

    def __call__(self, task: Task) -> Function:
        """Return the function of a task.

        Raises LeftToOthers, before anything is imported, when the allow-list has not got it; FunctionNotAllowed when
        what is found is something else than the allow-list means; InvalidSignature; UnknownFunction.
        """
        rules = self._rules()
        allowed_by, known = self._known
        if rules is not allowed_by:
            known = {}
            self._known = (rules, known)
        name = task.function
        if task.pickled_function is None and (function := known.get(name)) is not None:
            return function
        path = rules.path(name)
        if not rules.allow(path):
            raise LeftToOthers(path)
        if task.pickled_function is not None:
            return pickles.unpack(task.pickled_function, self._config.secret_key, task_id=task.id, name=name)
        found = functions.resolve(path)
        if not rules.allow_found(path, found):
            where = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', type(found).__qualname__)}"
            raise FunctionNotAllowed(
                f"{path} leads to {where}, which QUEUE_ALLOWED_FUNCTIONS does not allow: what a pattern with .* lets "
                f"through must be defined below it; if {path} is meant, name it there in full"
            )
        if declared(found).isolation == PROCESS:
            self.isolated.add(name)
        known[name] = found
        return found
