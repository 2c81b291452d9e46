"""Tasks for the tests of back ends for Django's tasks, declared with whichever package this Django has."""

import importlib
import time
from typing import Any

import django
from asgiref.sync import sync_to_async
from django.db import connection

from queuedtask import Queue, current_task

api: Any = importlib.import_module("django.tasks" if django.VERSION >= (6, 0) else "django_tasks")
task = api.task
declaring = Queue()  # for its decorator alone
seen: list[Any] = []


@task
def nothing(*args: Any, **kwargs: Any) -> None:
    """Decorated without parentheses."""


@task()
async def nothing_async(*args: Any, **kwargs: Any) -> None: ...


@task()
def answer() -> int:
    return 42


@task()
async def answer_async() -> int:
    return 42


@task()
def echo(*args: Any, **kwargs: Any) -> Any:
    return [args, kwargs]


@task()
def note(value: Any) -> None:
    seen.append(value)


@task()
def divide(a: int, b: int) -> float:
    return a / b


class Refused(Exception):
    """An error that is not one of Python's."""


@task()
def refuse() -> None:
    raise Refused("not today\nTypeError: says somebody")


@task()
async def refuse_async() -> None:
    raise Refused("not in a loop either")


@task()
def leave() -> None:
    raise SystemExit("gone")


@task()
def nest() -> None:
    raise ValueError(ValueError("an error as an argument"))


@task()
def return_object() -> object:
    return object()


@task()
def return_plain() -> Any:
    return {"tuple": (1, 2), "bytes": b"caf\xc3\xa9"}


@task(takes_context=True)
def own_id(context: Any) -> str:
    return str(context.task_result.id)


@task(takes_context=True)
async def own_id_async(context: Any) -> str:
    return str(context.task_result.id)


@task(takes_context=True)
def look_at(context: Any, *names: str) -> list[str]:
    assert isinstance(context, api.TaskContext)
    return [str(getattr(context.task_result, name)) for name in names]


@task(takes_context=True)
def count_attempts(context: Any, succeed_at: int) -> list[int]:
    if context.attempt < succeed_at:
        raise Refused(f"attempt {context.attempt}")
    result = context.task_result
    return [context.attempt, len(result.errors), len(set(result.worker_ids))]


@task()
@declaring.task(max_retries=2, backoff=[0], timeout=7, priority=99)
def declared() -> float:
    return current_task()._attempt.timeout


@task()
def hang() -> None:
    while True:
        time.sleep(0.01)


@task()
def query() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 6 * 7")
        return int(cursor.fetchone()[0])


@task()
async def query_async() -> int:
    return int(await sync_to_async(query.func)())


def hidden(value: int) -> int:
    return value


renamed = task(hidden)
