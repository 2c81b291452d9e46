"""A back end for Django's tasks: what holds for any, on Django's own as well, so that the cases themselves are checked.

Restated from what Django's tests and those of its backport say of back ends. They run with the package that this
Django has: ``django.tasks``, or the backport ``django_tasks``.
"""

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import django
import pytest
from asgiref.sync import async_to_sync
from django.db import connection, connections, transaction
from django.test import override_settings
from django.utils.module_loading import import_string

from djangos import django_connections
from helpers import execute
from queuedtask import Queue
from queuedtask.contrib.django import QueuedTaskBackend, queues, task_api
from queuedtask.errors import TaskCancelled, TaskStopped, TaskTimeout
from queuedtask.worker.manager import Manager

sys.path.insert(0, str(Path(__file__).parent))

PACKAGE = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"
OURS = "queuedtask.contrib.django.QueuedTaskBackend"
IMMEDIATE = f"{PACKAGE}.backends.immediate.ImmediateBackend"
API = task_api.usual()


class Bench:
    """A back end under test, as the alias ``default``, and the worker that it needs, if it does."""

    def __init__(self, path: str, queue: Queue, jobs: Any, url: str) -> None:
        self.path = path
        self.queue = queue
        self.jobs = jobs
        self.url = url

    @property
    def backend(self) -> Any:
        return API.backends["default"]

    @property
    def is_ours(self) -> bool:
        return self.path == OURS

    def run(self) -> None:
        """Run what is there to be run."""
        if self.is_ours:
            manager = Manager(self.queue, burst=True)
            manager.start()
            manager.run()

    def finished(self, result: Any) -> Any:
        """Return the result as it is once the task has run."""
        self.run()
        if self.backend.supports_get_result:
            result.refresh()
        assert result.is_finished, result
        return result

    def settings(self, **changes: Any) -> Any:
        return override_settings(TASKS={"default": {"BACKEND": self.path, "QUEUES": [], **changes}})


def bench_of(path: str, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    django_connections(url)
    assert API.signals  # its receivers are there once it is imported; one of them notes that TASKS changes
    monkeypatch.setenv("QUEUE_DATABASE_URL", url)
    monkeypatch.setattr(queues, "_made", None)
    queue = queues.the_queue()
    queue.config.max_workers = 1
    with override_settings(TASKS={"default": {"BACKEND": path, "QUEUES": []}}, USE_TZ=True):
        jobs = importlib.import_module("django_task_jobs")
        jobs.seen.clear()
        yield Bench(path, queue, jobs, url)
    queue.close()
    connection.close()


@pytest.fixture(params=[IMMEDIATE, OURS], ids=["immediate", "queuedtask"])
def bench(request: pytest.FixtureRequest, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    yield from bench_of(request.param, database_url, monkeypatch)


@pytest.fixture
def ours(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    yield from bench_of(OURS, database_url, monkeypatch)


def test_the_driver_is_the_one_that_this_run_is_for(ours: Bench) -> None:
    connection.ensure_connection()
    driver = type(connection.connection).__module__.partition(".")[0]
    assert driver == os.environ.get("QUEUEDTASK_TEST_DJANGO_DRIVER", "psycopg")
    assert ours.backend.api.package == ("django.tasks" if sys.version_info >= (3, 12) else "django_tasks")


# --------------------------------------------------------------------------------------------------- settings and Tasks


def test_the_alias_gives_the_back_end_and_its_options(bench: Bench) -> None:
    backend = API.backends["default"]
    assert isinstance(backend, API.BaseTaskBackend)
    assert isinstance(backend, import_string(bench.path))
    assert backend is importlib.import_module(PACKAGE).default_task_backend._connections[backend.alias]
    assert (backend.alias, backend.options, backend.queues) == ("default", {}, set())


def test_decorated_functions_are_tasks(bench: Bench) -> None:
    for task in (bench.jobs.nothing, bench.jobs.nothing_async, bench.jobs.answer, bench.jobs.own_id):
        assert isinstance(task, API.Task)
        assert task.get_backend() is bench.backend


def test_a_task_has_the_name_and_the_path_of_its_function(bench: Bench) -> None:
    task = bench.jobs.answer
    assert (task.name, task.module_path) == ("answer", "django_task_jobs.answer")
    assert import_string(task.module_path) is task


def test_a_task_can_be_called_without_a_back_end(bench: Bench) -> None:
    assert bench.jobs.answer.call() == bench.jobs.answer_async.call() == 42
    assert async_to_sync(bench.jobs.answer.acall)() == async_to_sync(bench.jobs.answer_async.acall)() == 42


def test_using_makes_another_task(bench: Bench) -> None:
    task = bench.jobs.answer
    changed = task.using(priority=7).using(queue_name="mail")
    assert (changed.priority, changed.queue_name, changed.func) == (7, "mail", task.func)
    assert (task.priority, task.queue_name, task.run_after) == (0, "default", None)
    assert task.using() == task
    assert task.using() is not task


def test_an_alias_that_is_not_there_is_refused(bench: Bench) -> None:
    with pytest.raises(API.InvalidTaskBackend, match="unknown"):
        bench.jobs.answer.using(backend="unknown")


def test_a_back_end_that_cannot_be_imported_is_refused(bench: Bench) -> None:
    tasks = {"default": {"BACKEND": bench.path}, "missing": {"BACKEND": "there.is.none"}}
    with (
        override_settings(TASKS=tasks),
        pytest.raises(API.InvalidTaskBackend, match=r"Could not find backend 'there\.is\.none'"),
    ):
        bench.jobs.answer.using(backend="missing")


def test_whole_priorities_from_minus_to_plus_100_are_allowed(bench: Bench) -> None:
    for priority in (-100, 0, 100):
        assert bench.finished(bench.jobs.answer.using(priority=priority).enqueue()).return_value == 42
    for priority in (-101, 101, 3.1):
        with pytest.raises(API.InvalidTask, match="whole number between -100 and 100"):
            bench.jobs.answer.using(priority=priority)


def test_a_queue_has_to_be_one_of_those_that_are_named(bench: Bench) -> None:
    assert bench.jobs.answer.using(queue_name="any").queue_name == "any"
    with bench.settings(QUEUES=["default", "mail"]):
        assert bench.finished(bench.jobs.answer.using(queue_name="mail").enqueue()).task.queue_name == "mail"
        with pytest.raises(API.InvalidTask, match="'other' is not valid"):
            bench.jobs.answer.using(queue_name="other")


def test_a_task_is_checked_again_when_it_is_enqueued(bench: Bench) -> None:
    task = bench.jobs.answer.using(queue_name="gone")
    with bench.settings(QUEUES=["default"]):
        with pytest.raises(API.InvalidTask, match="'gone' is not valid"):
            task.enqueue()
        with pytest.raises(API.InvalidTask, match="'gone' is not valid"):
            async_to_sync(task.aenqueue)()


def test_only_functions_of_modules_can_be_tasks(bench: Bench) -> None:
    def local() -> None: ...

    for function in (any, local, lambda: None, bench.run):
        with pytest.raises(API.InvalidTask, match="module level"):
            bench.jobs.task(function)


def test_a_task_that_takes_a_context_has_an_argument_for_it(bench: Bench) -> None:
    with pytest.raises(API.InvalidTask, match="does not have a first argument of 'context'"):
        bench.jobs.task(takes_context=True)(bench.jobs.answer.func)


def test_a_naive_run_after_is_refused(bench: Bench) -> None:
    with pytest.raises(API.InvalidTask, match="run_after"):
        bench.jobs.answer.using(run_after=datetime.now())  # noqa: DTZ005


def test_run_after_is_kept_where_it_is_supported(bench: Bench) -> None:
    moment = datetime.now(UTC) - timedelta(seconds=1)
    if bench.backend.supports_defer:
        task = bench.jobs.answer.using(run_after=moment)
        assert task.run_after == moment
        assert bench.finished(task.enqueue()).return_value == 42
    else:
        with pytest.raises(API.InvalidTask, match="does not support run_after"):
            bench.jobs.answer.using(run_after=moment)


def test_the_checks_of_a_good_configuration_find_nothing(bench: Bench) -> None:
    with override_settings(INSTALLED_APPS=["queuedtask.contrib.django"]):
        assert list(bench.backend.check()) == []


# ----------------------------------------------------------------------------------------------------------- enqueueing


@pytest.mark.parametrize("name", ["nothing", "nothing_async"])
def test_enqueue_returns_a_result_that_names_the_call(bench: Bench, name: str) -> None:
    task = getattr(bench.jobs, name)
    result = task.enqueue(1, two=3)
    assert isinstance(result, API.TaskResult)
    assert result.id
    assert isinstance(result.id, str)
    assert (result.task, result.args, result.kwargs, result.backend) == (task, [1], {"two": 3}, "default")
    assert bench.finished(result).return_value is None
    assert (result.task, result.args, result.kwargs) == (task, [1], {"two": 3})


@pytest.mark.parametrize("name", ["nothing", "nothing_async"])
def test_aenqueue_does_the_same(bench: Bench, name: str) -> None:
    task = getattr(bench.jobs, name)
    result = async_to_sync(task.aenqueue)(1, two=3)
    assert (result.task, result.args, result.kwargs, result.backend) == (task, [1], {"two": 3}, "default")
    assert bench.finished(result).return_value is None


def test_the_back_end_takes_the_arguments_as_lists_too(bench: Bench) -> None:
    assert bench.finished(bench.backend.enqueue(bench.jobs.divide, [6], {"b": 4})).return_value == 1.5
    assert bench.finished(async_to_sync(bench.backend.aenqueue)(bench.jobs.divide, [6], {"b": 4})).return_value == 1.5


def test_every_result_has_an_id_of_its_own(bench: Bench) -> None:
    assert len({bench.jobs.nothing.enqueue().id for _ in range(5)}) == 5


def test_arguments_are_made_json(bench: Bench) -> None:
    result = bench.jobs.echo.enqueue((1, 2.5), None, b"caf\xc3\xa9", deep={"a": ({"b": True},)})
    assert result.args == [[1, 2.5], None, "café"]
    assert result.kwargs == {"deep": {"a": [{"b": True}]}}
    assert bench.finished(result).return_value == [result.args, result.kwargs]


@pytest.mark.parametrize("value", [datetime(2026, 1, 1, tzinfo=UTC), Decimal(1), {1, 2}, object()])
def test_what_json_has_not_got_is_refused(bench: Bench, value: object) -> None:
    with pytest.raises(TypeError, match="Unsupported type"):
        bench.jobs.note.enqueue(value)
    with pytest.raises(TypeError, match="Unsupported type"):
        bench.jobs.note.enqueue(value=[{"deep": value}])
    with pytest.raises(TypeError, match="Unsupported type"):
        async_to_sync(bench.jobs.note.aenqueue)(value)
    bench.run()
    assert bench.jobs.seen == []


def test_bytes_that_are_no_text_are_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match="Unsupported value"):
        bench.jobs.note.enqueue(b"\xff")


def test_keyword_arguments_are_the_function_s_own(bench: Bench) -> None:
    given = dict.fromkeys(("parent", "function", "task", "context", "name", "priority", "delay", "args", "kwargs"), 1)
    assert bench.finished(bench.jobs.echo.enqueue(**given)).return_value == [[], given]


# -------------------------------------------------------------------------------------------------------------- running


@pytest.mark.parametrize("name", ["answer", "answer_async"])
def test_the_return_value_is_there_at_the_end(bench: Bench, name: str) -> None:
    result = bench.finished(getattr(bench.jobs, name).enqueue())
    assert result.status == API.TaskResultStatus.SUCCESSFUL
    assert (result.return_value, result.errors, result.attempts, len(result.worker_ids)) == (42, [], 1, 1)


def test_the_times_are_aware_and_follow_each_other(bench: Bench) -> None:
    before = datetime.now(UTC)
    result = bench.finished(bench.jobs.answer.enqueue())
    assert before <= result.enqueued_at <= result.started_at <= result.finished_at <= datetime.now(UTC)
    assert result.last_attempted_at == result.started_at
    assert result.enqueued_at.utcoffset() == timedelta(0)


def test_what_a_task_returns_is_made_json(bench: Bench) -> None:
    assert bench.finished(bench.jobs.return_plain.enqueue()).return_value == {"tuple": [1, 2], "bytes": "café"}


def test_a_task_that_returns_what_json_has_not_got_has_failed(bench: Bench) -> None:
    result = bench.finished(bench.jobs.return_object.enqueue())
    assert result.status == API.TaskResultStatus.FAILED
    assert result.errors[0].exception_class is TypeError
    assert "Unsupported type" in result.errors[0].traceback


def test_an_exception_fails_the_task(bench: Bench) -> None:
    result = bench.finished(bench.jobs.divide.enqueue(1, 0))
    assert result.status == API.TaskResultStatus.FAILED
    (error,) = result.errors
    assert (error.exception_class_path, error.exception_class) == ("builtins.ZeroDivisionError", ZeroDivisionError)
    assert error.traceback.startswith("Traceback (most recent call last):\n")
    assert error.traceback.endswith("ZeroDivisionError: division by zero\n")
    assert "in divide" in error.traceback
    with pytest.raises(ValueError, match="Task failed"):
        result.return_value  # noqa: B018
    assert result.enqueued_at <= result.started_at <= result.finished_at
    assert (result.attempts, result.args, result.kwargs) == (1, [1, 0], {})


@pytest.mark.parametrize("name", ["refuse", "refuse_async"])
def test_an_exception_of_the_project_is_found_again(bench: Bench, name: str) -> None:
    (error,) = bench.finished(getattr(bench.jobs, name).enqueue()).errors
    assert error.exception_class_path == "django_task_jobs.Refused"
    assert error.exception_class is bench.jobs.Refused


def test_an_exception_within_an_exception_fails_the_task(bench: Bench) -> None:
    (error,) = bench.finished(bench.jobs.nest.enqueue()).errors
    assert error.exception_class is ValueError
    assert "ValueError(ValueError(" in error.traceback


def test_leaving_the_process_fails_the_task_alone(bench: Bench) -> None:
    (error,) = bench.finished(bench.jobs.leave.enqueue()).errors
    assert error.exception_class is SystemExit
    assert error.traceback.endswith("SystemExit: gone\n")
    assert bench.finished(bench.jobs.answer.enqueue()).return_value == 42


def test_an_error_s_class_has_to_be_an_exception_s(bench: Bench) -> None:
    (error,) = bench.finished(bench.jobs.divide.enqueue(1, 0)).errors
    object.__setattr__(error, "exception_class_path", "subprocess.run")
    with pytest.raises(ValueError, match="does not reference a valid exception"):
        error.exception_class  # noqa: B018
    object.__setattr__(error, "exception_class_path", "there.is.none")
    with pytest.raises(ImportError):
        error.exception_class  # noqa: B018


@pytest.mark.parametrize("name", ["own_id", "own_id_async"])
def test_the_context_has_the_result(bench: Bench, name: str) -> None:
    result = bench.finished(getattr(bench.jobs, name).enqueue())
    assert result.return_value == result.id


def test_the_context_s_result_is_that_of_a_running_task(bench: Bench) -> None:
    names = ("status", "attempts", "args", "kwargs", "backend", "errors", "finished_at", "enqueued_at")
    result = bench.finished(bench.jobs.look_at.enqueue(*names))
    expected = ["RUNNING", "1", str(list(names)), "{}", "default", "[]", "None", str(result.enqueued_at)]
    assert result.return_value == expected


def test_the_context_counts_attempts(bench: Bench) -> None:
    assert bench.finished(bench.jobs.count_attempts.enqueue(1)).return_value == [1, 0, 1]


def test_a_task_can_use_django_s_database(bench: Bench) -> None:
    assert bench.finished(bench.jobs.query.enqueue()).return_value == 42
    assert bench.finished(bench.jobs.query_async.enqueue()).return_value == 42


# ----------------------------------------------------------------------------------------------------- signals and logs


@pytest.fixture
def sent(bench: Bench) -> Iterator[list[tuple[str, type, str, str]]]:
    """Collect the signals: their name, sender, and the result's id and status."""
    sent: list[tuple[str, type, str, str]] = []
    receivers = {}

    def receiver(name: str) -> Any:
        def receive(sender: type, task_result: Any, **_: Any) -> None:
            sent.append((name, sender, task_result.id, str(task_result.status)))

        return receive

    for name in ("task_enqueued", "task_started", "task_finished"):
        receivers[name] = receiver(name)
        getattr(API.signals, name).connect(receivers[name])
    yield sent
    for name, receive in receivers.items():
        getattr(API.signals, name).disconnect(receive)


def test_three_signals_tell_of_a_task(bench: Bench, sent: list[tuple[str, type, str, str]]) -> None:
    result = bench.finished(bench.jobs.answer.enqueue())
    kind = type(bench.backend)
    assert sent == [
        ("task_enqueued", kind, result.id, "READY"),
        ("task_started", kind, result.id, "RUNNING"),
        ("task_finished", kind, result.id, "SUCCESSFUL"),
    ]


def test_three_signals_tell_of_one_that_fails(bench: Bench, sent: list[tuple[str, type, str, str]]) -> None:
    bench.finished(bench.jobs.refuse.enqueue())
    bench.finished(bench.jobs.refuse_async.enqueue())
    assert [(name, status) for name, _, _, status in sent] == [
        ("task_enqueued", "READY"),
        ("task_started", "RUNNING"),
        ("task_finished", "FAILED"),
    ] * 2


def test_the_result_of_the_last_signal_has_all_of_it(bench: Bench) -> None:
    told: list[Any] = []

    def receive(task_result: Any, **_: Any) -> None:
        told.append((task_result, sys.exc_info()[1]))

    API.signals.task_finished.connect(receive)
    try:
        answered = bench.finished(bench.jobs.answer.enqueue())
        failed = bench.finished(bench.jobs.refuse.enqueue())
    finally:
        API.signals.task_finished.disconnect(receive)
    (first, no_error), (second, error) = told
    assert (first.id, first.return_value, first.attempts, no_error) == (answered.id, 42, 1, None)
    assert (second.id, second.errors) == (failed.id, failed.errors)
    assert isinstance(error, bench.jobs.Refused)
    for result in (first, second):
        assert result.enqueued_at <= result.started_at <= result.finished_at


def test_the_package_s_logger_tells_of_a_task(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    # The root logger too: a worker keeps its handlers from hearing more than they did before.
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, logger=PACKAGE):
        result = bench.finished(bench.jobs.answer.enqueue())
    lines = [record for record in caplog.records if record.name == PACKAGE]
    assert [record.levelname for record in lines] == ["DEBUG", "INFO", "INFO"]
    for record, word in zip(lines, ("enqueued", "state=RUNNING", "state=SUCCESSFUL"), strict=True):
        assert result.id in record.message
        assert word in record.message
    assert "NoneType" not in caplog.text


def test_the_package_s_logger_has_the_error_of_one_that_fails(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=PACKAGE):
        result = bench.finished(bench.jobs.refuse.enqueue())
    (line,) = [record for record in caplog.records if record.name == PACKAGE and record.levelname == "ERROR"]
    assert f"{result.id} path=django_task_jobs.refuse state=FAILED" in line.message
    assert line.exc_info
    assert "Refused: not today" in caplog.text


# ---------------------------------------------------------------------------------------------------- results, by flags


def test_results_can_be_asked_for_where_that_is_supported(bench: Bench) -> None:
    result = bench.jobs.answer.enqueue()
    if bench.backend.supports_get_result:
        for found in (
            bench.backend.get_result(result.id),
            async_to_sync(bench.backend.aget_result)(result.id),
            bench.jobs.answer.get_result(result.id),
            async_to_sync(bench.jobs.answer.aget_result)(result.id),
        ):
            assert found == result
    else:
        with pytest.raises(NotImplementedError, match="does not support retrieving or refreshing results"):
            bench.backend.get_result(result.id)
        with pytest.raises(NotImplementedError, match="does not support retrieving or refreshing results"):
            async_to_sync(bench.backend.aget_result)(result.id)


def test_results_can_be_refreshed_where_that_is_supported(bench: Bench) -> None:
    result = bench.jobs.answer.enqueue()
    other = bench.jobs.answer.enqueue()
    bench.run()
    if bench.backend.supports_get_result:
        result.refresh()
        async_to_sync(other.arefresh)()
        assert result.return_value == other.return_value == 42
    else:
        with pytest.raises(NotImplementedError, match="does not support retrieving or refreshing results"):
            result.refresh()
        with pytest.raises(NotImplementedError, match="does not support retrieving or refreshing results"):
            async_to_sync(other.arefresh)()


def test_a_task_is_there_in_the_transaction_that_adds_it(bench: Bench) -> None:
    with transaction.atomic():
        result = bench.jobs.answer.enqueue()
        assert result.enqueued_at is not None
        if bench.backend.supports_get_result:
            assert bench.backend.get_result(result.id) == result
    assert bench.finished(result).return_value == 42


# ----------------------------------------------------------------------------------------------------- ours: everything


def test_every_flag_is_true(ours: Bench) -> None:
    flags = [name for name in dir(API.BaseTaskBackend) if name.startswith("supports_")]
    assert {name for name in flags if not getattr(ours.backend, name)} <= {"supports_metadata"}
    assert len(flags) >= 4


def test_a_result_that_has_not_ended_has_no_value(ours: Bench) -> None:
    result = ours.jobs.answer.enqueue()
    assert (result.status, result.is_finished, result.attempts) == (API.TaskResultStatus.READY, False, 0)
    assert (result.started_at, result.last_attempted_at, result.finished_at) == (None, None, None)
    with pytest.raises(ValueError, match="has not finished yet"):
        result.return_value  # noqa: B018


def test_the_row_is_one_that_people_can_read(ours: Bench) -> None:
    task = ours.jobs.divide.using(queue_name="mail", priority=-7, run_after=datetime(2030, 1, 1, tzinfo=UTC))
    row = ours.queue.get(task.enqueue(6, b=3).id).row()
    assert (row.name, row.function) == ("django_task_jobs.divide", "django_task_jobs:divide")
    assert (row.args, row.kwargs, row.channel, row.priority, row.state) == ("[6]", '{"b": 3}', "mail", -7, "waiting")
    assert row.date_scheduled == datetime(2030, 1, 1, tzinfo=UTC)
    assert row.max_retries == 0


def test_a_found_result_has_the_task_as_it_was_enqueued(ours: Bench) -> None:
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    task = ours.jobs.answer.using(queue_name="mail", priority=-7, run_after=moment)
    found = ours.backend.get_result(task.enqueue().id)
    assert found.task == task
    assert (found.task.queue_name, found.task.priority, found.task.run_after) == ("mail", -7, moment)


def test_run_after_is_waited_for(ours: Bench) -> None:
    later = ours.jobs.note.using(run_after=datetime.now(UTC) + timedelta(hours=1)).enqueue("later")
    ours.finished(ours.jobs.note.enqueue("now"))
    later.refresh()
    assert (ours.jobs.seen, later.status) == (["now"], API.TaskResultStatus.READY)


def test_larger_priorities_come_first(ours: Bench) -> None:
    for priority in (0, -100, 100, 50):
        ours.jobs.note.using(priority=priority).enqueue(priority)
    ours.run()
    assert ours.jobs.seen == [100, 50, 0, -100]


def test_a_task_is_committed_or_vanishes_with_the_transaction(ours: Bench, database_url: str) -> None:
    with transaction.atomic():
        gone = ours.jobs.note.enqueue("gone")
        transaction.set_rollback(True)
    with transaction.atomic():
        kept = ours.jobs.note.enqueue("kept")
        assert execute(database_url, "SELECT count(*) FROM queued_tasks") == [(0,)]
    ours.finished(kept)
    assert ours.jobs.seen == ["kept"]
    with pytest.raises(API.TaskResultDoesNotExist):
        gone.refresh()


@pytest.mark.parametrize("result_id", ["123", "", None, 7, "01a210e7-fb66-786a-96ea-ef63f175b740", b"x"])
def test_what_is_no_id_of_a_task_is_not_found(ours: Bench, result_id: Any) -> None:
    with pytest.raises(API.TaskResultDoesNotExist):
        ours.backend.get_result(result_id)
    with pytest.raises(API.TaskResultDoesNotExist):
        async_to_sync(ours.jobs.answer.aget_result)(result_id)


def test_the_tasks_of_others_are_not_found(ours: Bench) -> None:
    tasks = {alias: {"BACKEND": OURS} for alias in ("default", "other")}
    with override_settings(TASKS=tasks):
        result = ours.jobs.answer.using(backend="other").enqueue()
        assert API.backends["other"].get_result(result.id).backend == "other"
        with pytest.raises(API.TaskResultDoesNotExist):
            ours.backend.get_result(result.id)
        with pytest.raises(API.TaskResultDoesNotExist):
            ours.backend.get_result(ours.queue.add_task("django_task_jobs:answer").id)


def test_a_result_of_another_task_does_not_match(ours: Bench) -> None:
    mismatch = importlib.import_module(f"{PACKAGE}.exceptions").TaskResultMismatch
    result = ours.jobs.nothing.enqueue()
    with pytest.raises(mismatch, match="does not match"):
        ours.jobs.answer.get_result(result.id)
    with pytest.raises(mismatch, match="does not match"):
        async_to_sync(ours.jobs.answer.aget_result)(result.id)


def test_a_task_that_is_called_otherwise_than_its_function_is_refused(ours: Bench) -> None:
    with pytest.raises(API.InvalidTask, match="hidden is not this Task"):
        ours.jobs.renamed.enqueue(1)


def test_what_postgresql_cannot_store_is_refused(ours: Bench) -> None:
    for value in ("a\0b", float("nan"), {1: 2}):
        with pytest.raises(TypeError, match=r"args\[0\]"):
            ours.jobs.note.enqueue(value)
    with pytest.raises(API.InvalidTask, match="queue_name"):
        ours.jobs.note.using(queue_name="x" * 65)


def test_each_end_of_a_task_has_its_status(ours: Bench) -> None:
    cancelled, stopped = ours.jobs.answer.enqueue(), ours.jobs.answer.enqueue()
    ours.queue.get(cancelled.id).cancel()
    ours.queue.get(stopped.id).stop()
    for result, kind in ((cancelled, TaskCancelled), (stopped, TaskStopped)):
        result.refresh()
        assert (result.status, result.attempts, result.started_at) == (API.TaskResultStatus.FAILED, 0, None)
        assert result.finished_at is not None
        assert [error.exception_class for error in result.errors] == [kind]


def test_options_give_retries(ours: Bench, sent_by_ours: list[tuple[str, str]]) -> None:
    with ours.settings(OPTIONS={"max_retries": 5, "backoff": [0]}):
        result = ours.jobs.count_attempts.enqueue(3)
        assert ours.finished(result).return_value == [3, 2, 1]
        assert (result.attempts, len(set(result.worker_ids))) == (3, 1)
        assert [error.exception_class for error in result.errors] == [ours.jobs.Refused] * 2
        assert [error.traceback.splitlines()[-1][-9:] for error in result.errors] == ["attempt 1", "attempt 2"]
        assert result.started_at < result.last_attempted_at < result.finished_at
    assert [name for name, _ in sent_by_ours] == ["task_started"] * 3 + ["task_finished"]
    assert sent_by_ours[-1][1] == "SUCCESSFUL"


def test_a_task_that_waits_for_its_next_attempt_is_ready(ours: Bench, sent_by_ours: list[tuple[str, str]]) -> None:
    with ours.settings(OPTIONS={"max_retries": 1}):
        result = ours.jobs.refuse.enqueue()
        ours.run()
        result.refresh()
        assert (result.status, result.attempts, len(result.errors)) == (API.TaskResultStatus.READY, 1, 1)
        assert result.started_at is not None
        assert result.finished_at is None
    assert [name for name, _ in sent_by_ours] == ["task_started"]


@pytest.fixture
def sent_by_ours(ours: Bench) -> Iterator[list[tuple[str, str]]]:
    """Collect what a worker sends: the signal's name and the result's status."""
    sent: list[tuple[str, str]] = []

    def started(task_result: Any, **_: Any) -> None:
        sent.append(("task_started", str(task_result.status)))

    def finished(task_result: Any, **_: Any) -> None:
        sent.append(("task_finished", str(task_result.status)))

    API.signals.task_started.connect(started)
    API.signals.task_finished.connect(finished)
    yield sent
    API.signals.task_started.disconnect(started)
    API.signals.task_finished.disconnect(finished)


def test_a_traceback_begins_with_the_project_s_code(ours: Bench) -> None:
    first = ours.finished(ours.jobs.refuse.enqueue()).errors[0].traceback.splitlines()[1]
    assert "django_task_jobs.py" in first
    assert "asgiref" not in ours.finished(ours.jobs.refuse_async.enqueue()).errors[0].traceback


def test_a_function_s_own_options_come_before_the_back_end_s(ours: Bench) -> None:
    with ours.settings(OPTIONS={"max_retries": 5, "timeout": 9, "isolation": "thread"}):
        result = ours.jobs.declared.enqueue()
        row = ours.queue.get(result.id).row()
        assert (row.max_retries, row.timeout, row.priority, row.channel) == (2, 7.0, 0, "default")
        assert row.meta is not None
        assert '"isolation"' in row.meta
        assert ours.finished(result).return_value == 7.0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"retries": 3}, "there is no option 'retries'; there are database, auto_remove"),
        ({"channel": "mail"}, "there is no option 'channel'"),
        ({"max_retries": -1}, "max_retries=-1: must be a whole number from 0"),
        ({"timeout": "soon"}, "timeout='soon'"),
        ({"concurrency": 2}, "concurrency=2: needs a concurrency_key"),
    ],
)
def test_options_are_checked(ours: Bench, options: dict[str, Any], problem: str) -> None:
    with ours.settings(OPTIONS=options), pytest.raises(API.InvalidTaskBackend) as refused:
        ours.backend  # noqa: B018
    assert str(refused.value).startswith(f"TASKS['default']['OPTIONS']: {problem}")


def test_a_timeout_is_a_failure_with_its_signal(ours: Bench, sent_by_ours: list[tuple[str, str]]) -> None:
    with ours.settings(OPTIONS={"timeout": 0.2}):
        result = ours.finished(ours.jobs.hang.enqueue())
    (error,) = result.errors
    assert error.exception_class is TaskTimeout
    assert sent_by_ours == [("task_started", "RUNNING"), ("task_finished", "FAILED")]


def test_the_allow_list_means_the_project_s_functions(ours: Bench) -> None:
    ours.queue.config.allowed_functions = ("elsewhere.*",)
    result = ours.jobs.answer.enqueue()
    ours.run()
    result.refresh()
    assert result.status == API.TaskResultStatus.READY
    ours.queue.config.allowed_functions = ("django_task_jobs.*",)
    assert ours.finished(result).return_value == 42
    ours.queue.config.allowed_functions = ("django_task_jobs.answer_async",)
    assert ours.finished(ours.jobs.answer_async.enqueue()).return_value == 42


def test_a_task_that_has_been_moved_is_found_by_its_alias(ours: Bench) -> None:
    result = ours.jobs.answer.enqueue()
    execute(ours.url, "UPDATE queued_tasks SET function = 'old_jobs:answer'")
    with pytest.raises(ImportError, match="old_jobs"):
        result.refresh()
    ours.queue.config.function_aliases = {"old_jobs:answer": "django_task_jobs:answer"}
    assert ours.finished(result).return_value == 42


def test_a_task_added_by_its_path_runs_with_a_context_too(ours: Bench) -> None:
    ref = ours.queue.add_task("django_task_jobs:own_id")
    ours.run()
    assert ref.result == ref.id


def test_what_the_package_logs_of_tasks_is_not_their_log(ours: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        result = ours.finished(ours.jobs.refuse.enqueue())
    assert "state=FAILED" in caplog.text
    assert ours.queue.get(result.id).logs() == []


def test_naive_times_are_the_project_s(ours: Bench) -> None:
    connection.close()
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
        connection.close()
        moment = datetime(2020, 1, 1, 12)  # noqa: DTZ001
        result = ours.finished(ours.jobs.answer.using(run_after=moment).enqueue())
        row = ours.queue.get(result.id).row()
        assert row.date_scheduled == datetime(2020, 1, 1, 3, tzinfo=UTC)
        assert result.task.run_after == moment
        for time in (result.enqueued_at, result.started_at, result.finished_at):
            assert abs(time - datetime.now(ZoneInfo("Asia/Tokyo")).replace(tzinfo=None)) < timedelta(minutes=1)
        connection.close()


def test_the_checks_name_what_is_missing(ours: Bench) -> None:
    with override_settings(INSTALLED_APPS=[]):
        assert [error.id for error in ours.backend.check()] == ["queuedtask.E101"]
    with override_settings(INSTALLED_APPS=["queuedtask.contrib.django"]):
        with ours.settings(OPTIONS={"database": "nowhere"}):
            (error,) = ours.backend.check()
            assert (error.id, "default" in error.hint) == ("queuedtask.E102", True)
        connections.settings["more"] = connections.settings["default"]
        with ours.settings(OPTIONS={"database": "more"}):
            (warning,) = ours.backend.check()
            assert (warning.id, "from 'default'" in warning.msg) == ("queuedtask.W101", True)
        del connections.settings["more"]
        connections.settings["lite"] = connections.configure_settings(
            {"default": {}, "lite": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
        )["lite"]
        try:
            with ours.settings(OPTIONS={"database": "lite"}):
                (error,) = ours.backend.check()
                assert (error.id, "is sqlite" in error.msg) == ("queuedtask.E103", True)
        finally:
            del connections["lite"], connections.settings["lite"]


@pytest.mark.skipif(
    django.VERSION < (6, 0) or importlib.util.find_spec("django_tasks") is None,
    reason="only Django 6 with the backport beside it has both packages",
)
def test_each_package_s_handler_gets_what_fits_it(ours: Bench) -> None:
    both = [task_api.api(package) for package in (task_api.DJANGO, task_api.BACKPORT)]
    for api in both:
        assert api.signals
    with ours.settings():
        backends = [api.backends["default"] for api in both]
        for api, backend in zip(both, backends, strict=True):
            assert isinstance(backend, api.BaseTaskBackend)
            assert isinstance(backend, QueuedTaskBackend)
            assert (backend.api, backend.task_class) == (api, api.Task)
            task = api.Task(func=ours.jobs.answer.func)
            result = task.enqueue()
            assert isinstance(result, api.TaskResult)
            with pytest.raises(api.TaskResultDoesNotExist):
                backend.get_result("123")
        assert type(backends[1]) is not type(backends[0])
