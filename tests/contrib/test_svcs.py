"""Services inside tasks: one container per attempt, closed after it however it ends."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import svcs

from queuedtask import NotInTask, Queue, current_task
from queuedtask.contrib.svcs import NoRegistry, _containers, aget_service, current_container, get_service, register
from queuedtask.model import outcome
from queuedtask.model.task import Task
from queuedtask.run.attempt import Attempt
from queuedtask.run.executor import execute

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
import svcs_jobs
from inside import ended, fresh_event, working

__all__ = ["fresh_event"]  # a fixture


class Service:
    def __init__(self, name: str) -> None:
        self.name = name
        self.is_closed = False


class Other(Service): ...


class Asynchronous(Service): ...


@pytest.fixture
def made() -> list[Service]:
    return []


@pytest.fixture
def registry(made: list[Service]) -> Iterator[Any]:
    registry = svcs.Registry()

    def service() -> Iterator[Service]:
        service = Service(current_task().id)
        made.append(service)
        yield service
        service.is_closed = True

    async def asynchronous() -> AsyncIterator[Asynchronous]:
        service = Asynchronous(current_task().id)
        made.append(service)
        loop = asyncio.get_running_loop()
        yield service
        await asyncio.sleep(0)
        assert asyncio.get_running_loop() is loop
        service.is_closed = True

    registry.register_factory(Service, service)
    registry.register_factory(Asynchronous, asynchronous)
    yield registry
    registry.close()


def run(queue: Queue, function: Callable[[], object], number: int = 1) -> Any:
    attempt = Attempt(Task("id", "n", "m:f", "[]", "{}", None, number, 0, None, None), lambda: None)
    ended = execute(
        attempt, lambda path: function, default_timeout=30, on_begin=lambda attempt: None, hooks=queue.hooks
    )
    assert [line.message for line in attempt.log.take()] == []
    return ended


def test_an_attempt_has_one_instance_and_the_next_one_another(queue: Queue, registry: Any, made: list[Service]) -> None:
    register(queue, registry)

    def task() -> bool:
        assert not get_service(Service).is_closed
        return get_service(Service) is get_service(Service)

    assert [run(queue, task, number).result for number in (1, 2)] == ["true", "true"]
    assert [service.is_closed for service in made] == [True, True]
    assert made[0] is not made[1]
    assert not _containers


def test_it_is_closed_when_the_task_fails(queue: Queue, registry: Any, made: list[Service]) -> None:
    register(queue, registry)

    def task() -> None:
        get_service(Service)
        raise ValueError("boom")

    assert run(queue, task).error_message == "boom"
    assert [service.is_closed for service in made] == [True]


def test_an_asynchronous_task_gets_asynchronous_services_too(queue: Queue, registry: Any, made: list[Service]) -> None:
    register(queue, registry)

    async def task() -> bool:
        assert get_service(Service) is await aget_service(Service)
        assert not (await aget_service(Asynchronous)).is_closed
        return await aget_service(Asynchronous) is await aget_service(Asynchronous)

    assert run(queue, task).result == "true"
    assert [(type(service), service.is_closed) for service in made] == [(Service, True), (Asynchronous, True)]


def test_hooks_and_threads_that_have_joined_get_the_same(queue: Queue, registry: Any, made: list[Service]) -> None:
    register(queue, registry)
    queue.on_pre_run(lambda task: get_service(Service))
    queue.on_post_run(lambda task, result, error: get_service(Service))

    def task() -> bool:
        found: list[Service] = []
        context = current_task().copy_context()
        thread = threading.Thread(target=lambda: found.append(context.run(get_service, Service)))
        thread.start()
        thread.join()
        return found == [get_service(Service)]

    assert run(queue, task).result == "true"
    assert len(made) == 1


def test_the_rest_of_svcs_is_reached_by_the_container(queue: Queue, registry: Any) -> None:
    register(queue, registry)

    def task() -> object:
        current_container().register_local_value(Other, Other("local"))
        return get_service(Other).name

    assert run(queue, task).result == '"local"'


def test_outside_a_task_it_says_so() -> None:
    with pytest.raises(NotInTask, match=r"get_service\(\) was called in a thread that runs no task"):
        get_service(Service)
    with pytest.raises(NotInTask, match=r"aget_service\(\)"):
        asyncio.run(aget_service(Service))
    with pytest.raises(NotInTask, match=r"current_container\(\)"):
        current_container()


def test_without_a_registry_it_says_how_to_give_one(queue: Queue) -> None:
    ended = run(queue, lambda: get_service(Service))
    assert (ended.kind, ended.error_type) == (outcome.RAISED, "NoRegistry")
    assert "call queuedtask.contrib.svcs.register(queue, registry) for the Queue that the worker" in ended.error_message
    assert issubclass(NoRegistry, LookupError)


def test_what_is_not_registered_is_svcs_s_own_error(queue: Queue, registry: Any) -> None:
    register(queue, registry)
    assert run(queue, lambda: get_service(Other)).error_type == "ServiceNotFoundError"


def test_a_queue_takes_one_registry(queue: Queue, registry: Any) -> None:
    register(queue, registry)
    with pytest.raises(ValueError, match="has an svcs registry already"):
        register(queue, registry)


@pytest.mark.parametrize("function", [svcs_jobs.get_and_spin, svcs_jobs.get_and_sleep_async])
def test_it_is_closed_after_a_timeout_in_a_real_worker(
    queue: Queue, registry: Any, made: list[Service], function: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    register(queue, registry)
    monkeypatch.setattr(svcs_jobs, "Service", Service)
    monkeypatch.setattr(svcs_jobs, "Asynchronous", Asynchronous)
    with working(queue):
        ref = ended(queue.options(timeout=0.3, max_retries=0).add_task(function), "failed")
    assert ref.row().error_type == "TaskTimeout"
    assert [(service.name, service.is_closed) for service in made] == [(ref.id, True)]
    assert ref.logs() == []
    assert not _containers
