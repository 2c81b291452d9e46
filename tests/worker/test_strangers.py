"""The allow-list in a worker: what is outside is left to others, said once, and ends after a day; and the aliases."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import execute, raw_connection, wait_until
from queuedtask import Config, Queue, TaskRef
from queuedtask.db import store
from queuedtask.model import outcome
from queuedtask.model.rules import Rules
from queuedtask.model.task import Task, new_id
from queuedtask.run.attempt import Attempt
from queuedtask.run.executor import execute as run_attempt
from queuedtask.run.resolver import Resolver
from queuedtask.worker import strangers

sys.path.insert(0, str(Path(__file__).parent))
import worker_jobs as jobs
from inside import attempts, ended, fresh_event, working

__all__ = ["fresh_event"]  # a fixture

DAY = 24 * 3600


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "ALLOWED" in r.getMessage()]


def watch_looks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Have strangers looked for all the time; return what is seen at each look."""
    looks: list[object] = []
    count = store.count_strangers

    def watched(*args: Any, **kwargs: Any) -> list[tuple[str, int]]:
        found = count(*args, **kwargs)
        looks.append(found)
        return found

    monkeypatch.setattr(store, "count_strangers", watched)
    monkeypatch.setattr(strangers, "LOOK_INTERVAL", 0.01)
    monkeypatch.setattr(strangers, "EFFORT", 1.0)
    return looks


def age(database_url: str, ref: TaskRef, seconds: float) -> None:
    execute(
        database_url,
        "UPDATE queued_tasks SET date_enqueued = clock_timestamp() - %s * interval '1 second' WHERE id = %s",
        (seconds, ref.id),
    )


def test_os_system_is_not_run_but_left_where_it_is_with_one_warning(
    queue: Queue, proof: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = watch_looks(monkeypatch)
    refs = [queue.add_task("os:system", f"touch {proof}") for _ in range(3)]
    with working(queue, allowed_functions=("worker_jobs.*",)):
        for _ in range(3):
            ended(queue.add_task(jobs.add, 1, 1))  # the worker is alive, and gets past them
        wait_until(lambda: len(looks) >= 5)
        before = [ref.row() for ref in refs]
        assert [(row.state, row.attempt, row.failures) for row in before] == [("enqueued", 0, 0)] * 3
        ended(queue.add_task(jobs.add, 1, 1))
    (warning,) = warnings(caplog)
    assert warning.startswith(
        "'os:system' is outside QUEUE_ALLOWED_FUNCTIONS: 3 of its tasks are left to other workers"
    )
    assert [ref.row() for ref in refs] == before
    assert not proof.exists()
    with working(queue, allowed_functions=("os.system",)):  # another worker
        assert [ended(ref).result for ref in refs] == [0, 0, 0]
    assert proof.exists()


def test_each_name_is_warned_of_again_after_a_while_and_not_all_of_very_many(
    queue: Queue, database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch_looks(monkeypatch)
    monkeypatch.setattr(strangers, "WARN_INTERVAL", 0.1)
    execute(database_url, "INSERT INTO queued_tasks (function) SELECT 'os:f' || n FROM generate_series(1, 50) n")
    with working(queue, allowed_functions=("shop.*",)):
        wait_until(lambda: len(warnings(caplog)) >= 2 * strangers.MOST_WARNED_OF)
    assert len(set(warnings(caplog))) <= 50


@pytest.mark.parametrize("is_local", [False, True])
def test_nothing_of_a_stranger_is_imported_or_loaded(
    queue: Queue, tmp_path: Path, proof: Path, is_local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    queue.config.secret_key = ("key",)
    (tmp_path / "evil.py").write_text(f"open({str(proof)!r}, 'w').close()\ndef f(): ...")
    ref = queue.add_task(lambda: [proof.touch()]) if is_local else queue.add_task("evil:f")
    with working(queue, allowed_functions=("worker_jobs.*",)):
        ended(queue.add_task(jobs.add, 1, 1))
    assert (ref.state, ref.row().attempt) == ("enqueued", 0)
    assert not proof.exists()
    assert "evil" not in sys.modules


def test_a_local_function_runs_where_its_name_is_allowed(queue: Queue) -> None:
    queue.config.secret_key = ("key",)
    ref = queue.add_task(lambda: "ran")
    with working(queue, allowed_functions=(f"{__name__}.*",)):
        assert ended(ref).result == "ran"


@pytest.mark.parametrize(
    "path",
    ["worker_jobs:os.system", "worker_jobs:Path.touch", "worker_jobs:Path", "worker_jobs:add.__globals__.update"],
)
def test_a_path_that_leads_out_of_what_is_allowed_fails_at_once_and_is_not_run(
    queue: Queue, proof: Path, path: str
) -> None:
    with working(queue, allowed_functions=("worker_jobs.*",)):
        ref = ended(queue.add_task(path, f"touch {proof}"), "failed")
    row = ref.row()
    assert (row.error_type, row.failures) == ("FunctionNotAllowed", 1)
    assert f"{path} leads to" in (row.error_message or "")
    assert attempts(queue, ref) == [(1, "refused", "FunctionNotAllowed")]
    assert not proof.exists()


def test_what_nobody_takes_fails_after_a_day_and_is_not_run(
    queue: Queue, database_url: str, proof: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, older, young = (queue.add_task("os:system", f"touch {proof}") for _ in range(3))
    ours = queue.add_task(jobs.add, 1, 1)
    age(database_url, old, DAY + 60)
    age(database_url, older, 9 * DAY)
    age(database_url, young, DAY - 60)
    age(database_url, ours, 9 * DAY)
    with working(queue, allowed_functions=("worker_jobs.*",)):
        ended(old, "failed")
        ended(older, "failed")
        ended(ours)
        ended(queue.add_task(jobs.add, 1, 1))
    row = old.row()
    assert (row.error_type, row.attempt, row.failures, row.date_started) == ("FunctionNotAllowed", 1, 1, None)
    assert "os:system is outside QUEUE_ALLOWED_FUNCTIONS" in (row.error_message or "")
    assert attempts(queue, old) == [(1, "refused", "FunctionNotAllowed")]
    assert (young.state, young.row().attempt) == ("enqueued", 0)
    assert any("2 tasks failed: for a day" in r.getMessage() for r in caplog.records)
    assert not proof.exists()
    old.retry()  # by a person: another day
    with working(queue, allowed_functions=("worker_jobs.*",)):
        ended(queue.add_task(jobs.add, 1, 1))
    assert old.state == "enqueued"


def test_what_waits_for_one_that_nobody_takes_falls_with_it_or_runs(queue: Queue, database_url: str) -> None:
    parent = queue.add_task("os:system", "true")
    child = queue.add_task(jobs.add, 1, 1, parent=parent)
    always = queue.options(on_parent_failure="run").add_task(jobs.add, 1, 1, parent=parent)
    age(database_url, parent, DAY + 60)
    with working(queue, allowed_functions=("worker_jobs.*",)):
        ended(parent, "failed")
        assert ended(child, "cancelled").row().error_type == "ParentFailed"
        ended(always)


def test_very_many_of_them_fail_in_batches(queue: Queue, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "BATCH", 10)
    execute(
        database_url,
        "INSERT INTO queued_tasks (function, date_enqueued) SELECT 'os:system', now() - interval '2 days' "
        "FROM generate_series(1, 35)",
    )
    with working(queue, allowed_functions=("worker_jobs.*",)):
        wait_until(lambda: len(queue.find(state="failed")) == 35)


def test_two_workers_with_a_list_each_share_the_work_without_a_task_claimed_in_vain(database_url: str) -> None:
    adds, sleeps = Queue(database_url), Queue(database_url)
    refs = []
    with (
        working(adds, allowed_functions=("worker_jobs.add",)) as adder,
        working(sleeps, allowed_functions=("worker_jobs.sleep",)) as sleeper,
    ):
        for n in range(200):
            refs += [(adds.add_task(jobs.add, n, 0), adder), (adds.add_task(jobs.sleep, 0), sleeper)]
        for ref, worker in refs:
            row = ended(ref).row()
            assert (row.claimed_by, row.attempt) == (worker.id, 1)
    adds.close()
    sleeps.close()


def test_the_list_can_be_changed_while_the_worker_runs(queue: Queue) -> None:
    with working(queue):
        ended(queue.add_task(jobs.add, 1, 1))
        queue.config.allowed_functions = ("worker_jobs.sleep",)
        left = queue.add_task(jobs.add, 2, 2)
        ended(queue.add_task(jobs.sleep, 0))
        assert (left.state, left.row().attempt) == ("enqueued", 0)
        queue.config.allowed_functions = ()
        ended(queue.add_task(jobs.sleep, 0))
        assert ended(left).result == 4


PATHS = [
    "shop:f", "shop.tasks:f", "shop.tasks:C.m", "shop:C.m", "shopping:f", "shop", "shop:", "shop.:f", "Shop:f", "a_b:f",
    "axb:f", "a%b:f", "mail:send", "mail.send:f", "mail:send2", "mail:other", "os:system", "", ":", ".", "*", "shop:é",
    "shop\\:f", "__main__:f", "__main__:main.<locals>.<lambda>", "old:send", "shop:evil", "shop:a:b", "shop.f",
    "a\\_b:f", "é.b:c",
]  # fmt: skip


@pytest.mark.parametrize(
    "patterns",
    [("shop.*",), ("mail.send",), ("a_b.*",), ("mail:send", "shop.tasks.*"), ("__main__.*", "é.b.c"), ("*",), ()],
)
def test_the_database_and_the_worker_agree_on_what_is_allowed(database_url: str, patterns: tuple[str, ...]) -> None:
    rules = Rules(
        Config(allowed_functions=patterns).allowed_functions, {"old:send": "shop:send", "shop:evil": "os:system"}
    )
    connection = raw_connection(database_url)
    with connection.cursor() as cursor:
        for path in PATHS:
            cursor.execute("INSERT INTO queued_tasks (function) VALUES (%s)", (path,))
        outside = [path for path in PATHS if not rules.allow(rules.path(path))]
        if rules.claimable is not None:
            counted = store.count_strangers(cursor, only=rules.claimable, limit=1000)
            assert sorted(counted) == sorted((path, 1) for path in outside)
        claimed = store.claim(cursor, worker=1, limit=1000, only=rules.claimable)
    connection.close()
    assert sorted(task.function for task in claimed) == sorted(set(PATHS) - set(outside))


@pytest.mark.parametrize("pickled", [None, "AAAA"])
def test_the_slot_gives_back_unimported_what_should_not_have_been_claimed(pickled: str | None) -> None:
    task = Task(new_id(), "", "evil_module:f", "[]", "{}", None, 1, 0, None, None, pickled_function=pickled)
    resolve = Resolver(Config(allowed_functions=("shop.*",), secret_key=("key",)))
    ended = run_attempt(Attempt(task, lambda: None), resolve, default_timeout=1.0, on_begin=lambda attempt: None)
    assert ended == outcome.Outcome(outcome.INTERRUPTED)


def test_a_burst_ends_beside_strangers_and_says_so(queue: Queue, database_url: str, proof: Path) -> None:
    ref, ours = queue.add_task("os:system", f"touch {proof}"), queue.add_task(jobs.add, 1, 1)
    environment = {
        **os.environ,
        "QUEUE_DATABASE_URL": database_url,
        "QUEUE_ALLOWED_FUNCTIONS": "worker_jobs.*,mail.send",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-m", "queuedtask", "worker", "--burst"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (ref.state, ours.result, proof.exists()) == ("enqueued", 2, False)
    assert ran.stderr.count("'os:system' is outside QUEUE_ALLOWED_FUNCTIONS") == 1


# -- Functions that are not there ----------------------------------------------------------------------------


def test_a_function_that_cannot_be_imported_uses_its_retries_and_runs_when_it_is_there(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("queuedtask.model.backoff.LIMIT", 0.05)
    monkeypatch.syspath_prepend(str(tmp_path))
    never = queue.options(max_retries=2).add_task("deployed_later:never")
    later = queue.options(max_retries=1000).add_task("deployed_later:f")
    with working(queue):
        row = ended(never, "failed").row()
        wait_until(lambda: later.row().failures >= 2)
        (tmp_path / "deployed_later.py.new").write_text("def f(): return 'deployed'")
        (tmp_path / "deployed_later.py.new").rename(tmp_path / "deployed_later.py")
        wait_until(lambda: importable("deployed_later"))
        assert ended(later).result == "deployed"
    sys.modules.pop("deployed_later")
    assert (row.error_type, row.failures) == ("UnknownFunction", 3)
    assert attempts(queue, never) == [(n, "raised", "UnknownFunction") for n in (1, 2, 3)]
    assert "there is no module deployed_later" in (row.error_message or "")


def importable(module: str) -> bool:
    import importlib.util

    importlib.invalidate_caches()  # the file is newer than what the finder has seen of its directory
    return importlib.util.find_spec(module) is not None


@pytest.fixture
def renamed(queue: Queue) -> Callable[..., TaskRef]:
    queue.config.function_aliases = {"old_jobs:plus": "worker_jobs:add", "worker_jobs:evil": "os:system"}

    def add(*call: Any) -> TaskRef:
        return queue.add_task(*call)

    return add


def test_a_renamed_function_is_reached_by_its_old_path(queue: Queue, renamed: Callable[..., TaskRef]) -> None:
    with working(queue):
        ref = ended(renamed("old_jobs:plus", 1, 2))
    assert (ref.result, ref.row().function) == (3, "old_jobs:plus")


def test_the_allow_list_looks_at_the_new_path(queue: Queue, renamed: Callable[..., TaskRef], proof: Path) -> None:
    with working(queue, allowed_functions=("worker_jobs.*",)):
        evil = renamed("worker_jobs:evil", f"touch {proof}")
        assert ended(renamed("old_jobs:plus", 1, 2)).result == 3
    assert (evil.state, evil.row().attempt, proof.exists()) == ("enqueued", 0, False)


def test_aliases_and_the_list_hold_in_an_isolated_process(
    queue: Queue, database_url: str, renamed: Callable[..., TaskRef], proof: Path
) -> None:
    refs = [renamed("old_jobs:plus", 1, 2), renamed("worker_jobs:os.system", f"touch {proof}")]
    execute(database_url, "UPDATE queued_tasks SET lost_count = 1")
    with working(queue, allowed_functions=("worker_jobs.*",)):
        assert ended(refs[0], timeout=30).result == 3
        assert ended(refs[1], "failed", timeout=30).row().error_type == "FunctionNotAllowed"
    assert not proof.exists()
