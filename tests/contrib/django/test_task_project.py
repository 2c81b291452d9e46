"""Django's own tasks in a project, run by the worker processes that its owner starts."""

import importlib.util
from pathlib import Path
from typing import Any

import django
import pytest

from contrib.django.projects import DRIVERS, Project
from helpers import execute

OURS = "queuedtask.contrib.django.QueuedTaskBackend"
IMMEDIATE = f"{'django.tasks' if django.VERSION >= (6, 0) else 'django_tasks'}.backends.immediate.ImmediateBackend"


class ProjectWithTasks(Project):
    @property
    def environment(self) -> dict[str, str]:
        given = super().environment
        return given | {"PYTHONPATH": f"{given['PYTHONPATH']}:{Path(__file__).parent}"}


def work_off(project: Project, *calls: str) -> list[tuple[Any, ...]]:
    """Enqueue tasks on the back end ``queue`` and have them run; return what their rows say, in that order."""
    lines = [
        f"jobs.{name}.using(backend='queue').enqueue({arguments}" for name, arguments in (c.split("(") for c in calls)
    ]
    project.run("import django_task_jobs as jobs\n" + "\n".join(lines))
    project.manage("queuedtask", "worker", "-w", "2", "--burst")
    return execute(project.url, "SELECT state, result, error_message, error_type FROM queued_tasks ORDER BY id")


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_worker_runs_them_though_only_another_back_end_is_asked_for_at_import(
    database_url: str, driver: str, isolation: str
) -> None:
    if importlib.util.find_spec(driver) is None:
        pytest.skip(f"{driver} is not installed")
    options = {"timeout": 30, "isolation": isolation}
    tasks = {"default": {"BACKEND": IMMEDIATE}, "queue": {"BACKEND": OURS, "OPTIONS": options}}
    project = ProjectWithTasks(database_url, driver, TASKS=tasks)
    rows = work_off(project, "answer()", "answer_async()", "query()", "query_async()", "own_id()", "refuse()")
    assert [row[0] for row in rows] == [*["done"] * 5, "failed"]
    assert [row[1] for row in rows[:4]] == [42] * 4
    (own,) = execute(database_url, "SELECT id::text = result #>> '{}' FROM queued_tasks WHERE name LIKE '%own_id'")
    assert own == (True,)
    said = project.run(
        "from importlib import import_module\n"
        "import django_task_jobs as jobs\n"
        "for row in __import__('queuedtask.contrib.django').contrib.django.queue.find(limit=None):\n"
        "    found = jobs.api.task_backends['queue'].get_result(row.id)\n"
        "    print(found.task.name, found.status, found.attempts, [e.exception_class_path for e in found.errors])\n"
    )
    assert "refuse FAILED 1 ['django_task_jobs.Refused']" in said.splitlines()
    assert "own_id SUCCESSFUL 1 []" in said.splitlines()
