"""TaskResults, made from rows and from attempts; and what a row says about its Task."""

import builtins
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from django.conf import settings
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from queuedtask import errors
from queuedtask.config import Config
from queuedtask.contrib.django import task_api
from queuedtask.contrib.django.task_api import Api
from queuedtask.db.reads import AttemptRow, TaskRow
from queuedtask.errors import UnknownFunction
from queuedtask.model import codec, functions, options, states
from queuedtask.model.task import time_of

TASK: Final = "__django_task__"
"""The attribute in which the function that a worker calls for a Task has that Task."""
META: Final = "django_task"
"""The key of ``meta`` under which a task of Django's has what no column has."""

_STATUS: Final = {  # all others are FAILED
    states.WAITING: "READY",
    states.ENQUEUED: "READY",
    states.DOING: "RUNNING",
    states.DONE: "SUCCESSFUL",
}
_FALLBACK: Final = {
    states.CANCELLED: errors.TaskCancelled,
    states.STOPPED: errors.TaskStopped,
}


class About(NamedTuple):
    """What a task's ``meta`` says about its Task."""

    backend: str
    """The alias of the back end."""
    priority: int = 0
    run_after: str | None = None


def meta_of(task: Any, alias: str) -> dict[str, Any]:
    """Return the ``meta`` of a Task that is enqueued."""
    said: dict[str, Any] = {"backend": alias}
    if task.priority:
        said["priority"] = int(task.priority)
    if task.run_after is not None:
        said["run_after"] = task.run_after.isoformat()
    return {META: said}


def about(meta: str | Mapping[str, Any] | None) -> About | None:
    """Return what a row's ``meta`` says about its Task, None when it is no task of Django's. Never raises."""
    said = meta.get(META) if isinstance(meta, Mapping) else options.reserved(meta, META)
    try:
        return About(**said) if isinstance(said, dict) else None
    except TypeError:
        return None  # written by hand


def task_at(path: str, channel: str, about: About, config: Config) -> Any:
    """Return the Task that a path leads to, as it was enqueued. Raises UnknownFunction where there is none."""
    path = config.function_aliases.get(path, path)
    task = getattr(functions.resolve(path), TASK, None)
    if task is None:
        raise UnknownFunction(f"{path}: is no Task of Django's")
    try:
        return task.using(
            backend=about.backend,
            queue_name=channel,
            priority=about.priority,
            run_after=None if about.run_after is None else parse_datetime(about.run_after),
        )
    except task_api.of_task(task).InvalidTask:
        return task  # the settings allowed this queue when it was enqueued


def may_have_failed(row: TaskRow) -> bool:
    """Tell whether there may be failed attempts of a task; nearly all have none, and that saves a query."""
    return row.attempt > 1 or (row.attempt == 1 and row.state not in (states.DOING, states.DONE))


def of_new(api: Api, task: Any, task_id: str, args: Any, kwargs: Any, alias: str) -> Any:
    """Return the TaskResult of a task that has just been added."""
    return _result(api, task, task_id, "READY", args, kwargs, alias)


def of_row(api: Api, task: Any, row: TaskRow, attempts: Sequence[AttemptRow], alias: str) -> Any:
    """Return the TaskResult of a task as its row and its failed attempts have it."""
    args, kwargs = codec.decode_arguments(row.args, row.kwargs)
    begun: list[TaskRow | AttemptRow] = [*attempts, row]
    started = [each.date_started for each in begun if each.date_started is not None]
    workers = [str(attempt.worker or "") for attempt in attempts]
    if row.claimed_by is not None and row.attempt not in {attempt.attempt for attempt in attempts}:
        workers.append(str(row.claimed_by))
    result = _result(
        api,
        task,
        row.id,
        _STATUS.get(row.state, "FAILED"),
        args,
        kwargs,
        alias,
        enqueued_at=row.date_created,
        started_at=min(started, default=None),
        last_attempted_at=max(started, default=None),
        finished_at=row.date_done,
        errors=_errors(api, row, attempts),
        worker_ids=workers,
    )
    if row.state == states.DONE:
        object.__setattr__(result, "_return_value", codec.decode(row.result))
    return result


def of_attempt(
    api: Api,
    task: Any,
    task_id: str,
    arguments: tuple[str, str],
    earlier: Sequence[AttemptRow],
    worker: str,
    alias: str,
) -> Any:
    """Return the TaskResult of an attempt that is about to begin in this thread."""
    args, kwargs = codec.decode_arguments(*arguments)
    now = datetime.now(UTC)
    return _result(
        api,
        task,
        task_id,
        "RUNNING",
        args,
        kwargs,
        alias,
        started_at=min((each.date_started for each in earlier if each.date_started), default=now),
        last_attempted_at=now,
        errors=[_error(api, each) for each in earlier],
        worker_ids=[*(str(each.worker or "") for each in earlier), worker],
    )


def end(api: Api, result: Any, returned: object, error: BaseException | None, traceback: str) -> None:
    """Turn the TaskResult of an attempt into that of an ended task."""
    changes: dict[str, Any] = {"finished_at": timezone.now()}
    if error is None:
        changes |= {"status": api.TaskResultStatus.SUCCESSFUL, "_return_value": returned}
    else:
        kind = type(error)
        result.errors.append(
            api.TaskError(exception_class_path=f"{kind.__module__}.{kind.__qualname__}", traceback=traceback)
        )
        changes |= {"status": api.TaskResultStatus.FAILED}
    for name, value in changes.items():
        object.__setattr__(result, name, value)


def _result(
    api: Api,
    task: Any,
    task_id: str,
    status: str,
    args: Any,
    kwargs: Any,
    alias: str,
    *,
    enqueued_at: datetime | None = None,
    started_at: datetime | None = None,
    last_attempted_at: datetime | None = None,
    finished_at: datetime | None = None,
    errors: Sequence[Any] = (),
    worker_ids: Sequence[str] = (),
) -> Any:
    return api.TaskResult(
        task=task,
        id=task_id,
        status=api.TaskResultStatus[status],
        # The id has it by the clock of whoever added the task, and so it is the same wherever it is asked for.
        enqueued_at=_time(time_of(task_id) or enqueued_at),
        started_at=_time(started_at),
        last_attempted_at=_time(last_attempted_at),
        finished_at=_time(finished_at),
        args=args,
        kwargs=kwargs,
        backend=alias,
        errors=list(errors),
        worker_ids=list(worker_ids),
    )


def _time(moment: datetime | None) -> datetime | None:
    """Return a time as Django has times: in UTC, or naive where the project's are."""
    if moment is None or timezone.is_naive(moment):
        return moment
    return moment.astimezone(UTC) if settings.USE_TZ else timezone.make_naive(moment)


# -------------------------------------------------------------------------------------------------------------- errors


def _errors(api: Api, row: TaskRow, attempts: Sequence[AttemptRow]) -> list[Any]:
    found = [_error(api, attempt) for attempt in attempts]
    if row.state in _FALLBACK or (row.state == states.FAILED and not attempts):
        found.append(_error(api, row, _FALLBACK.get(row.state, errors.TaskFailed)))
    return found


def _error(api: Api, said: TaskRow | AttemptRow, fallback: type[Exception] = errors.TaskFailed) -> Any:
    kind, message, traceback = said.error_type or fallback.__name__, said.error_message or "", said.error_traceback
    path = _class_path(kind, message, traceback or "") or f"{fallback.__module__}.{fallback.__qualname__}"
    return api.TaskError(exception_class_path=path, traceback=traceback or f"{kind}: {message}\n")


def _class_path(kind: str, message: str, traceback: str) -> str | None:
    """Return where an exception's class is, which only the last line of its traceback tells; None for no class."""
    first_line = message.partition("\n")[0]
    end = re.escape(f": {first_line}") if first_line else ":?$"
    lines = re.findall(rf"(?m)^[ |+-]*((?:[\w.<>]+\.)?){re.escape(kind)}{end}", traceback)
    if lines and lines[-1]:
        return f"{lines[-1]}{kind}"
    for module in (builtins, errors):
        found = getattr(module, kind, None)
        if isinstance(found, type) and issubclass(found, BaseException):
            return f"{module.__name__}.{kind}"
    # Python leaves the name of this one module out, too.
    return f"__main__.{kind}" if lines else None
