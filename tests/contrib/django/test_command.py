"""``manage.py queuedtask …`` as real processes: our commands, their exit codes, a clean worker."""

import json
import os
from pathlib import Path

import pytest

from contrib.django.projects import PROJECT, Project
from helpers import execute, wait_until
from queuedtask import Queue

pytest.importorskip("django", reason="Django is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture
def project(database_url: str) -> Project:
    """Return the project on a database with the tables that it needs here."""
    return Project(database_url).with_orders()


def test_our_help_output_and_exit_codes_pass_through(project: Project) -> None:
    assert "usage: queuedtask" in project.manage("queuedtask", "--help").stdout
    assert "usage: queuedtask" in project.manage("help", "queuedtask").stdout
    assert "usage: queuedtask worker" in project.manage("queuedtask", "worker", "--help").stdout
    assert "--nonsense" in project.manage("queuedtask", "tasks", "--nonsense", code=2).stderr
    assert "--nonsense" in project.manage("queuedtask", "worker", "--nonsense", code=2).stderr
    no_such = "0197a000-0000-7000-8000-000000000000"
    assert "there is no task" in project.manage("queuedtask", "show", no_such, code=1).stderr
    assert json.loads(project.manage("queuedtask", "tasks", "--json").stdout) == []


def test_settings_come_from_the_project_and_the_environment_wins(project: Project) -> None:
    project.settings["QUEUEDTASK"] = {"MAX_RETRIES": 7, "TASK_TIMEOUT": 70}
    shown = project.manage("queuedtask", "config", "--json", QUEUE_TASK_TIMEOUT="80", QUEUE_DATABASE_URL="sqlite://")
    config = json.loads(shown.stdout)
    assert config["max_retries"] == {"value": 7, "source": "config"}
    assert config["task_timeout"] == {"value": 80, "source": "environment"}
    assert project.database["NAME"] in config["database_url"]["value"]


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_worker_runs_the_projects_tasks(project: Project, driver: str) -> None:
    project.settings["driver"] = driver
    added = project.run(
        "from orders import tasks; from orders.models import Order; from queuedtask.contrib.django import queue\n"
        "print(tasks.charge.delay(Order.objects.create(customer='ann').pk).id)\n"
        "print(queue.options(isolation='process').add_task(tasks.charge, 0, times=2).id)"
    )
    # A DATABASE_URL may be Django's business, in a form that is none of ours.
    done = project.manage("queuedtask", "worker", "-w", "2", "--burst", DATABASE_URL="psql://somewhere/x")
    assert "Traceback" not in done.stderr
    assert {task.id: task.result for task in project.tasks()} == dict(zip(added.split(), "12", strict=True))
    assert execute(project.url, "SELECT is_charged FROM orders_order") == [(True,)]
    # The schedules of modules that nothing imports by itself are known, too.
    assert execute(project.url, "SELECT name FROM queued_task_schedules") == [("orders.tasks.morning_report",)]


def test_the_supervisor_is_a_clean_process_in_the_same_place(project: Project, tmp_path: Path) -> None:
    with project.running("queuedtask", "worker", "-w", "1", "--settings", "project.settings") as supervisor:
        with Queue(project.url).database.transaction():
            pass
        wait_until(lambda: execute(project.url, "SELECT 1 FROM queued_task_workers WHERE is_running"), 30)
        process = Path(f"/proc/{supervisor.pid}")
        line = (process / "cmdline").read_text().split("\0")
        assert line[1:7] == ["-m", "queuedtask", "worker", "--app", "queuedtask.contrib.django:queue", "-w"]
        assert (process / "cwd").resolve() == PROJECT
        environment = dict(pair.partition("=")[::2] for pair in (process / "environ").read_text().split("\0"))
        assert environment["DJANGO_SETTINGS_MODULE"] == "project.settings"
        paths = environment["PYTHONPATH"].split(os.pathsep)
        assert str(PROJECT) in paths
        assert [path for path in paths if "site-packages" in path] == []
        # Nothing of the project's has been loaded into it: no driver, no SQLAlchemy, no Django.
        mapped = (process / "maps").read_text()
        assert "psycopg" in mapped  # the heart's
        assert "/sqlalchemy/" not in mapped
    assert supervisor.returncode == 0


def test_without_settings_it_says_what_is_missing(project: Project) -> None:
    from subprocess import run

    environment = {**project.environment, "QUEUE_APP": "queuedtask.contrib.django:queue"}
    ended = run(
        [project.python, "-m", "queuedtask", "status"], env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("queuedtask: error: queuedtask.contrib.django:queue: Requested setting")
    assert "DJANGO_SETTINGS_MODULE" in ended.stderr
    environment |= {"DJANGO_SETTINGS_MODULE": "project.settings"}
    ended = run(
        [project.python, "-m", "queuedtask", "tasks"],
        env=environment,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_a_setting_that_is_none_is_said_by_a_check(project: Project) -> None:
    project.settings["QUEUEDTASK"] = {"MAX_RETRY": 3}
    said = project.run(
        "from django.core import checks; import queuedtask.contrib.django.admin\n"
        "print([found.id for found in checks.run_checks() if 'max_retry' in found.msg])"
    )
    assert said == "['queuedtask.E001']\n"


def test_an_alias_that_is_no_postgresql_is_said_at_the_first_use(project: Project) -> None:
    project.database = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    assert "queuedtask.E002" in project.manage("check", code=1).stderr
    said = project.manage("queuedtask", "tasks", code=1).stderr
    assert "queuedtask needs PostgreSQL, and DATABASES['default'] is sqlite" in said
    # What needs no database needs none.
    assert project.run("from queuedtask.contrib.django import queue; print(queue)") == "<DjangoQueue default>\n"


def test_the_package_can_be_imported_before_django() -> None:
    from subprocess import run
    from sys import executable

    script = "import queuedtask.contrib.django as q, sys; print('django' in sys.modules, 'queue' in dir(q))"
    assert run([executable, "-c", script], capture_output=True, text=True, check=False).stdout == "False True\n"


def test_the_tasks_may_be_in_another_database(project: Project, empty_database_url: str) -> None:
    tasks = Project(empty_database_url).database
    project.settings |= {
        "DATABASES": {"default": project.database, "tasks": tasks},
        "QUEUEDTASK": {"DATABASE": "tasks"},
    }
    execute(project.url, "DROP TABLE orders_order, queued_tasks CASCADE")
    project.manage("migrate", "-v0", "--database", "tasks")
    project.manage("migrate", "-v0")
    project.manage("check", "--database", "tasks", "--database", "default", "--fail-level", "WARNING")
    project.run(
        "from orders import tasks; from queuedtask.contrib.django.models import Task\n"
        "assert tasks.charge.delay(1).id == str(Task.objects.get().pk)"
    )
    assert execute(project.url, "SELECT to_regclass('queued_tasks')") == [(None,)]
    project.manage("queuedtask", "worker", "-w", "1", "--burst")
    assert execute(empty_database_url, "SELECT state FROM queued_tasks") == [("done",)]
