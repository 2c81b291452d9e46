"""The back end for Django's own tasks, ``queuedtask.contrib.django.QueuedTaskBackend`` in the setting ``TASKS``.

A task's row has the path of the function, as any other row. What the path leads to is a Task, which cannot be called;
:func:`_function_of` says what runs instead. What Django's API knows besides the row's columns stands in ``meta``.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import new_class
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast
from uuid import UUID

from django.apps import apps
from django.core import checks
from django.db import connections
from django.utils import timezone

from queuedtask.contrib.django import conf, task_api, task_results
from queuedtask.contrib.django.queues import the_queue
from queuedtask.contrib.django.task_api import Api
from queuedtask.contrib.django.task_signals import join, running_result
from queuedtask.db import reads
from queuedtask.db.callers import cursor_on
from queuedtask.errors import ConfigError, InvalidTask, NotSerializable
from queuedtask.model import functions, options
from queuedtask.run.resolver import declared
from queuedtask.taskqueue import Queue

if TYPE_CHECKING:
    from django.tasks.backends.base import BaseTaskBackend as _Base
else:
    _Base = task_api.usual().BaseTaskBackend

DATABASE: Final = "database"
"""The entry of ``OPTIONS`` that is not one of a task's options."""
OPTIONS: Final = (
    "auto_remove",
    "backoff",
    "concurrency",
    "concurrency_key",
    "isolation",
    "max_retries",
    "timeout",
)
"""Those options that ``OPTIONS`` can give to all tasks of a back end."""


class QueuedTaskBackend(_Base):
    """Django's tasks on a queuedtask queue: added in Django's own transaction, run by queuedtask's workers.

    ``OPTIONS`` may have ``database``, the alias of the connection on which tasks are added (by default the queue's),
    and options for all its tasks: ``auto_remove``, ``backoff``, ``concurrency``, ``concurrency_key``, ``isolation``,
    ``max_retries`` and ``timeout``. As with other back ends a task is tried once, unless ``max_retries`` says more.
    ``@queue.task(…)`` below ``@task(…)`` gives a function options of its own, which come first.

    It serves ``django.tasks`` and the backport ``django_tasks``; with both installed, whichever asks for it.
    """

    api: ClassVar[Api] = task_api.usual()
    task_class = api.Task
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __new__(cls, alias: str, params: Mapping[str, Any]) -> "QueuedTaskBackend":
        """Make one for the package whose handler asks."""
        api = task_api.of_the_caller() or cls.api
        return super().__new__(cls if api is cls.api else _on(api, cls))

    def __init__(self, alias: str, params: Mapping[str, Any]) -> None:
        """Raise the API's InvalidTaskBackend for OPTIONS that are not allowed."""
        self.api.BaseTaskBackend.__init__(self, alias, params)
        self._given = {name: value for name, value in self.options.items() if name != DATABASE}
        for name in self._given:
            if name not in OPTIONS:
                raise self._invalid(f"there is no option {name!r}; there are {', '.join((DATABASE, *OPTIONS))}")
        try:
            options.as_fields(options.checked(self._given, max_payload=0), {})
        except InvalidTask as error:
            raise self._invalid(str(error)) from None
        with contextlib.suppress(ConfigError):  # a check says it
            join(the_queue())

    def _invalid(self, problem: str) -> Exception:
        return cast(Exception, self.api.InvalidTaskBackend(f"TASKS[{self.alias!r}]['OPTIONS']: {problem}"))

    @property
    def queue(self) -> Queue:
        """The project's queue."""
        queue = the_queue()
        join(queue)
        return queue

    @property
    def database(self) -> str:
        """The alias of the connection on which tasks are added and results are read."""
        return str(self.options.get(DATABASE) or conf.given().alias)

    # ---------------------------------------------------------------------------------------------------------- adding

    def validate_task(self, task: Any) -> None:
        """Raise the API's InvalidTask for a task that cannot be run here."""
        self.api.BaseTaskBackend.validate_task(self, task)
        try:
            options.channel_name(task.queue_name)
        except InvalidTask as error:
            raise self.api.InvalidTask(f"queue_name: {error}") from None

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Add a task in the transaction that is open on Django's connection, and return its TaskResult.

        Raises TypeError for arguments that JSON has not got, and the API's InvalidTask for what cannot be added.
        """
        self.validate_task(task)
        api, queue = self.api, self.queue
        args, kwargs = api.normalize_json(args), api.normalize_json(kwargs)
        try:
            adder = queue.options(
                **self._options_of(task),
                meta=task_results.meta_of(task, self.alias),
                parent=(),  # the keyword is the function's own
                connection=self.database,
            )
            ref = adder.add_task(_path_of(task), *args, **kwargs)
        except NotSerializable:
            raise
        except InvalidTask as error:
            raise api.InvalidTask(str(error)) from error
        if not ref.created:
            return self.get_result(ref.id)  # another one has its unique key
        result = task_results.of_new(api, task, ref.id, args, kwargs, self.alias)
        api.signals.task_enqueued.send(type(self), task_result=result)
        return result

    def _options_of(self, task: Any) -> dict[str, Any]:
        return {
            "max_retries": 0,
            **self._given,
            **options.storable(declared(task.func)),
            # Django's Task always says these itself.
            "channel": task.queue_name,
            "priority": int(task.priority),
            "run_at": None if task.run_after is None else _aware(task.run_after),
        }

    # ---------------------------------------------------------------------------------------------------------- asking

    def get_result(self, result_id: str) -> Any:
        """Return the TaskResult of one of this back end's tasks, as seen from Django's connection.

        Raises TaskResultDoesNotExist, also for ids of other tasks and for what is no id; UnknownFunction, an
        ImportError, when its Task is not there any more.
        """
        missing = self.api.TaskResultDoesNotExist(f"the back end {self.alias!r} has no task {result_id!r}")
        try:
            task_id = str(UUID(result_id))
        except (ValueError, TypeError, AttributeError):
            raise missing from None
        cursor = cursor_on(self.database)
        row = reads.get_task(cursor, task_id)
        about = None if row is None else task_results.about(row.meta)
        if row is None or about is None or about.backend != self.alias:
            raise missing
        attempts = reads.task_attempts(cursor, row.id) if task_results.may_have_failed(row) else []
        task = task_results.task_at(row.function, row.channel, about, self.queue.config)
        return task_results.of_row(self.api, task, row, attempts, self.alias)

    # ---------------------------------------------------------------------------------------------------------- checks

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        """Return what is wrong with the project's settings for this back end."""
        found = list(self.api.BaseTaskBackend.check(self, **kwargs))
        if not apps.is_installed("queuedtask.contrib.django"):
            found.append(
                checks.Error(
                    f"TASKS[{self.alias!r}] is queuedtask's, whose app is not installed.",
                    hint="Add 'queuedtask.contrib.django' to INSTALLED_APPS.",
                    id="queuedtask.E101",
                )
            )
        try:
            database, of_the_queue = self.database, conf.given().alias
        except ConfigError:
            return found  # another check says it
        if database not in connections:
            found.append(
                checks.Error(
                    f"TASKS[{self.alias!r}]: there is no database {database!r}.",
                    hint=f"OPTIONS[{DATABASE!r}] is one of DATABASES: {', '.join(connections)}.",
                    id="queuedtask.E102",
                )
            )
        elif (vendor := connections[database].vendor) != "postgresql":
            found.append(
                checks.Error(
                    f"TASKS[{self.alias!r}]: the database {database!r} is {vendor}; queuedtask needs PostgreSQL.",
                    hint=f"Name another one of DATABASES in OPTIONS[{DATABASE!r}].",
                    id="queuedtask.E103",
                )
            )
        elif database != of_the_queue:
            found.append(
                checks.Warning(
                    f"TASKS[{self.alias!r}] adds to the database {database!r}, but this project's workers take tasks "
                    f"from {of_the_queue!r}.",
                    hint=f"Run workers with QUEUEDTASK = {{'DATABASE': {database!r}}} as well.",
                    id="queuedtask.W101",
                )
            )
        return found


@functools.cache
def _on(api: Api, cls: type[QueuedTaskBackend]) -> type[QueuedTaskBackend]:
    """Return a class like this one, but on the other package's base."""
    functions.as_function.register(api.Task, _function_of)
    body = {"api": api, "task_class": api.Task, "__module__": cls.__module__, "__doc__": cls.__doc__}
    made: type[QueuedTaskBackend] = new_class(
        cls.__name__, (cls, api.BaseTaskBackend), exec_body=lambda namespace: namespace.update(body)
    )
    return made


def _aware(moment: Any) -> Any:
    return moment if timezone.is_aware(moment) else timezone.make_aware(moment)


def _path_of(task: Any) -> str:
    """Return the path under which a worker finds a Task. Raises InvalidTask when it would find something else."""
    path = functions.path_of(task.func)
    if not hasattr(functions.resolve(path), task_results.TASK):
        raise InvalidTask(
            f"{path} is not this Task, and the worker would run what it is: decorate the function with @task, or give "
            "the Task the function's own name"
        )
    return path


# ------------------------------------------------------------------------------------------------------- in the worker


@functools.cache
def _function_of(task: Any) -> Callable[..., Any]:
    """Return the function that a worker calls for a Task: with its context, and what it returns made JSON."""
    api, function = task_api.of_task(task), task.func
    run: Any

    def given(args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (api.TaskContext(task_result=running_result(the_queue(), task)), *args) if task.takes_context else args

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def run(*args: Any, **kwargs: Any) -> Any:
            return api.normalize_json(await function(*given(args), **kwargs))

    else:

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            return api.normalize_json(function(*given(args), **kwargs))

    setattr(run, task_results.TASK, task)
    return cast(Callable[..., Any], run)


functions.as_function.register(QueuedTaskBackend.api.Task, _function_of)
