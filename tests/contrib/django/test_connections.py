"""Django's connections under a worker, and across a fork: kept, pooled, broken, interrupted, inherited."""

import importlib.util
from urllib.parse import urlsplit

import pytest

from contrib.django.projects import DRIVERS, Project
from helpers import execute
from poolers import pgbouncer
from queuedtask.db.reads import TaskRow

pytest.importorskip("django", reason="Django is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(params=DRIVERS)
def project(database_url: str, request: pytest.FixtureRequest) -> Project:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return Project(database_url, request.param).with_orders()


def added(project: Project, calls: str) -> None:
    project.run(f"from orders import tasks; from queuedtask.contrib.django import queue\n{calls}")


def worked_off(project: Project) -> list[TaskRow]:
    """Run a worker with one slot until nothing is left; return the tasks in the order in which they were added."""
    project.manage("queuedtask", "worker", "-w", "1", "--burst")
    return project.tasks()


def test_attempts_keep_a_connection_as_long_as_the_project_says(project: Project) -> None:
    added(project, "[queue.add_task(tasks.backend) for _ in range(3)]")
    assert len({task.result for task in worked_off(project)}) == 3
    project.database["CONN_MAX_AGE"] = None
    added(project, "[queue.add_task(tasks.backend) for _ in range(3)]")
    assert len({task.result for task in worked_off(project)[3:]}) == 1


def test_a_broken_connection_is_not_handed_on(project: Project) -> None:
    project.database["CONN_MAX_AGE"] = None
    added(
        project,
        "once = queue.options(max_retries=0)\n"
        "for f in (tasks.backend, tasks.break_off, tasks.backend): once.add_task(f)",
    )
    before, broken, after = worked_off(project)
    assert (before.state, broken.state, after.state) == ("done", "failed", "done")
    assert before.result != after.result


def test_the_orm_s_calls_of_each_coroutine_have_a_connection_of_their_own(project: Project) -> None:
    project.database["CONN_MAX_AGE"] = None
    added(
        project,
        "once = queue.options(max_retries=0)\n"
        "for f in (tasks.backend_of_a_coroutine, tasks.break_off_in_a_coroutine, tasks.backend_of_a_coroutine):\n"
        "    once.add_task(f)",
    )
    before, broken, after = worked_off(project)
    assert (before.state, broken.state, after.state) == ("done", "failed", "done")
    assert before.result != after.result


def test_a_call_that_holds_one_coroutine_up_holds_up_no_other(project: Project) -> None:
    added(
        project,
        "once = queue.options(max_retries=0)\n"
        "once.options(timeout=1).add_task(tasks.block, 20)\n"
        "once.options(timeout=5).add_task(tasks.backend_of_a_coroutine)",
    )
    project.manage("queuedtask", "worker", "-w", "2", "--burst")
    held_up, other = project.tasks()
    assert (held_up.error_type, other.state) == ("TaskTimeout", "done")


def test_a_timeout_reaches_a_query_on_djangos_connection(project: Project) -> None:
    project.database["CONN_MAX_AGE"] = None
    added(
        project,
        "once = queue.options(max_retries=0, timeout=1)\n"
        "for f in (tasks.backend, tasks.sleep_in_the_database, tasks.backend): once.add_task(f)",
    )
    before, late, after = worked_off(project)
    assert (late.state, late.error_type) == ("failed", "TaskTimeout")
    outcome = execute(project.url, "SELECT outcome, date_done - date_started < '5 s' FROM queued_task_attempts")
    assert outcome == [("timed_out", True)]  # it ended by itself: its slot was not given up
    # A cancellation may still be on its way to that backend.
    assert (before.state, after.state, before.result != after.result) == ("done", "done", True)


def test_the_pool_of_psycopg(database_url: str) -> None:
    pytest.importorskip("psycopg_pool", reason="psycopg_pool is not installed")
    project = Project(database_url, "psycopg")
    project.database["OPTIONS"] = {"pool": {"min_size": 1, "max_size": 1}}
    project.with_orders()
    added(project, "[queue.add_task(tasks.backend) for _ in range(3)]")
    # One connection for two slots: it goes back after each attempt.
    project.manage("queuedtask", "worker", "-w", "2", "--burst")
    found = project.tasks()
    assert [task.state for task in found] == ["done"] * 3
    assert len({task.result for task in found}) == 1
    assert project.run(FORKING) == "ok\n"


def test_behind_pgbouncer(project: Project) -> None:
    with pgbouncer(project.url) as through:
        project.database |= {"HOST": "127.0.0.1", "PORT": urlsplit(through).port, "DISABLE_SERVER_SIDE_CURSORS": True}
        project.settings["QUEUEDTASK"] = {"LISTEN_URL": project.url}
        added(
            project,
            "from django.db import transaction\n"
            "from orders.models import Order\n"
            "for number in range(20):\n"
            "    with transaction.atomic():\n"
            "        tasks.charge.delay(Order.objects.create(customer=number).pk, number)\n"
            "        transaction.set_rollback(number % 2 == 1)\n"
            "with queue.batch() as batch:\n"
            "    for number in range(20, 200): batch.add_task(tasks.charge, 0, number)\n",
        )
        worker = project.manage("queuedtask", "worker", "-w", "4", "--burst")
    assert "cannot listen" not in worker.stderr
    found = execute(project.url, "SELECT state, result::text::int FROM queued_tasks ORDER BY 2")
    assert found == [("done", number) for number in (*range(0, 20, 2), *range(20, 200))]
    assert execute(project.url, "SELECT count(*)::int, bool_and(is_charged) FROM orders_order") == [(10, True)]


def test_options_of_djangos_are_not_taken_for_the_servers(project: Project) -> None:
    role = f"owner_of_{project.database['NAME']}"  # roles belong to the server, which other tests use as well
    execute(project.url, f"CREATE ROLE {role}")
    try:
        execute(project.url, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        execute(project.url, f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
        project.database["OPTIONS"] = {"isolation_level": 2, "assume_role": role, "connect_timeout": 7}
        if project.settings["driver"] == "psycopg":
            project.database["OPTIONS"] |= {"server_side_binding": True, "prepare_threshold": 5}
        said = project.run(
            "from queuedtask.contrib.django import queue\n"
            "from orders import tasks\n"
            "with queue.database.apart.transaction() as cursor:\n"
            "    cursor.execute('SELECT current_user')\n"
            "    print(cursor.fetchone()[0])\n"
            "ref = tasks.charge.delay(1)\n"
            "child = queue.options(unique_key='a').add_task(tasks.charge, 2, parent=ref)\n"
            "child.cancel()\n"
            "with queue.batch() as batch: batch.add_task(tasks.charge, 3)\n"
            "print(ref.state, child.state, len(queue.find()))\n"
        )
        assert said == f"{role}\nenqueued cancelled 3\n"
    finally:
        execute(project.url, f"DROP OWNED BY {role}")
        execute(project.url, f"DROP ROLE {role}")


# As gunicorn --preload does it: the application adds a task while it is loaded, and its forks go on adding.
FORKING = """
import os, sys, time
from orders import tasks
from queuedtask.contrib.django import queue

first = tasks.charge.delay(0)
mine = tasks.backend()
children = []
for child in range(4):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            own = tasks.backend()
            refs = [tasks.charge.delay(n) for n in range(50)]
            states = {ref.state for ref in refs}
            code = 0 if own != mine and states == {"enqueued"} else 2
        finally:
            os._exit(code)
    children.append(pid)
for n in range(50):
    assert tasks.backend() == mine  # nobody has closed it
    tasks.charge.delay(n)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
assert codes == [0] * 4, codes
assert len(queue.find(limit=None)) >= 251
assert tasks.backend() == mine
print("ok")
"""


def test_forks_do_not_share_a_connection(project: Project) -> None:
    project.database["CONN_MAX_AGE"] = None
    assert project.run(FORKING) == "ok\n"
    assert execute(project.url, "SELECT count(*) FROM queued_tasks") == [(251,)]
