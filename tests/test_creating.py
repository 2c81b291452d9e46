"""What happens to a task on its way into the database: the hooks at its creation, and the context that it inherits."""

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from helpers import execute, raw_connection
from queuedtask import (
    Config,
    InvalidTask,
    NotSerializable,
    Queue,
    TaskRef,
    clear_context,
    current_task,
    get_context,
    set_context,
)
from queuedtask.model.task import Task
from queuedtask.run.attempt import Attempt, enter
from queuedtask.run.hooks import NewTask


def job(*args: object, **kwargs: object) -> None: ...


def declared_job() -> None: ...


@pytest.fixture(autouse=True)
def no_context() -> Iterator[None]:
    clear_context()
    yield
    clear_context()


def url_of(queue: Queue) -> str:
    assert queue.config.database_url
    return queue.config.database_url


def stored(ref: TaskRef, column: str) -> Any:
    text = getattr(ref.row(), column)
    return None if text is None else json.loads(text)


def count(queue: Queue) -> int:
    return int(execute(url_of(queue), "SELECT count(*) FROM queued_tasks")[0][0])


@contextlib.contextmanager
def inside(**fields: Any) -> Iterator[Attempt]:
    """Be a task for a while."""
    attempt = Attempt(Task("id", "n", "m:f", "[]", "{}", None, 1, 0, None, None)._replace(**fields), lambda: None)
    before = enter(attempt)
    try:
        yield attempt
    finally:
        enter(before)


# ------------------------------------------------------------------------------------------------------- on_pre_create


def test_a_hook_before_sees_the_task_and_may_change_its_options(queue: Queue) -> None:
    seen: list[Any] = []

    @queue.on_pre_create
    def change(spec: NewTask) -> None:
        seen.append((spec.name, spec.function, spec.args, spec.kwargs, spec.priority, spec.channel, spec.timeout))
        spec.priority = 10
        spec.channel = "mail"
        spec.delay = timedelta(hours=1)
        spec.timeout = 5
        spec.max_retries = 1
        spec.meta = {"tag": "x"}

    when = datetime(2026, 1, 2, tzinfo=UTC)
    ref = queue.options(timeout=7).add_task(job, when, key=(1, 2))
    row = ref.row()
    assert seen == [(f"{__name__}.job", f"{__name__}:job", (when,), {"key": (1, 2)}, 0, "default", 7.0)]
    assert (row.priority, row.channel, row.state, row.timeout, row.max_retries) == (10, "mail", "waiting", 5.0, 1)
    assert stored(ref, "meta") == {"tag": "x"}


def test_hooks_are_called_in_order_for_every_way_to_add_and_stay_plain_functions(queue: Queue) -> None:
    @queue.on_pre_create
    def first(spec: NewTask) -> None:
        spec.name = f"{spec.name} 1"

    @queue.on_pre_create
    async def second(spec: NewTask) -> None:
        await asyncio.sleep(0)
        spec.name = f"{spec.name} 2"

    declared = queue.task(name="declared")(declared_job)
    assert first.__name__ == "first"
    with queue.batch() as batch:
        refs = [
            queue.options(name="alone").add_task("a:b"),
            batch.options(name="batch").add_task("a:b"),
            batch.add_task("a:b"),
            declared.delay(),
        ]
    assert [ref.row().name for ref in refs] == ["alone 1 2", "batch 1 2", "a.b 1 2", "declared 1 2"]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("priority", "high", "priority='high'"),
        ("name", "", "name=''"),
        ("run_at", datetime(2026, 1, 1), "run_at="),  # noqa: DTZ001
        ("meta", {"inherited": {}}, "the key 'inherited' is reserved"),
        ("delay", 5, "give one of them"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_as_a_given_one_would_be(
    queue: Queue, name: str, value: object, error: str
) -> None:
    queue.on_pre_create(lambda spec: setattr(spec, name, value))
    given = queue.options(run_at=datetime(2036, 1, 1, tzinfo=UTC)) if name == "delay" else queue.options()
    with pytest.raises(InvalidTask, match=error):
        given.add_task(job)
    with pytest.raises(InvalidTask, match=error), queue.batch() as batch:
        batch.options(run_at=datetime(2036, 1, 1, tzinfo=UTC) if name == "delay" else None).add_task(job)
    assert count(queue) == 0


def test_none_takes_an_option_back(queue: Queue) -> None:
    @queue.on_pre_create
    def take_back(spec: NewTask) -> None:
        assert spec.run_at is not None
        spec.run_at = None
        spec.delay = 3600
        spec.name = spec.channel = spec.context = None
        assert (spec.run_at, spec.channel, dict(spec.context)) == (None, "default", {})

    given = queue.options(run_at=datetime(2036, 1, 1, tzinfo=UTC), name="x", channel="mail", context={"a": 1})
    row = given.add_task("a:b").row()
    assert (row.name, row.channel, row.context) == ("a.b", "default", None)


def test_what_is_no_option_cannot_be_set_and_mappings_only_replaced(queue: Queue) -> None:
    seen: list[BaseException] = []

    @queue.on_pre_create
    def change(spec: NewTask) -> None:
        for name in ("id", "function", "args", "prority"):
            with pytest.raises(AttributeError) as raised:
                setattr(spec, name, 7)
            seen.append(raised.value)
        with pytest.raises(AttributeError, match="no attribute 'prority'"):
            spec.prority  # noqa: B018
        with pytest.raises(TypeError):
            spec.context["a"] = 2
        spec.context = spec.context | {"b": 2}

    ref = queue.options(context={"a": 1}).add_task(job)
    assert "cannot set 'prority'; it can set " in str(seen[-1])
    assert stored(ref, "context") == {"a": 1, "b": 2}


def test_an_adder_is_not_changed_by_what_a_hook_changes(queue: Queue) -> None:
    queue.on_pre_create(lambda spec: setattr(spec, "priority", spec.priority + 1))
    adder = queue.options(priority=1)
    assert [adder.add_task(job).row().priority for _ in range(2)] == [2, 2]


def test_what_a_hook_before_raises_reaches_the_caller_and_nothing_is_written(queue: Queue, database_url: str) -> None:
    class Refused(Exception): ...

    @queue.on_pre_create
    def refuse(spec: NewTask) -> None:
        raise Refused(spec.id)

    never: list[object] = []
    queue.on_pre_create(never.append)
    queue.on_post_create(never.append)
    with pytest.raises(Refused):
        queue.add_task(job)
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE mine (x int)")
            with pytest.raises(Refused):
                queue.options(connection=connection).add_task(job)
            cursor.execute("SELECT count(*) FROM mine")  # the transaction is as it was
        connection.commit()
    assert (count(queue), never) == (0, [])


@pytest.mark.parametrize("is_in_task", [False, True])
def test_an_asynchronous_hook_works_where_a_loop_runs_already(queue: Queue, is_in_task: bool) -> None:
    @queue.on_pre_create
    async def before(spec: NewTask) -> None:
        await asyncio.sleep(0)
        spec.name = current_task().id if is_in_task else "changed"

    @queue.on_post_create
    async def after(ref: TaskRef) -> None:
        await asyncio.sleep(0)
        added.append(ref)

    added: list[TaskRef] = []

    async def add() -> TaskRef:
        return queue.add_task(job)

    with inside(id="its id") if is_in_task else contextlib.nullcontext():
        ref = asyncio.run(add())
    assert ref.row().name == ("its id" if is_in_task else "changed")
    assert added == [ref]


def test_an_asynchronous_hook_s_error_reaches_the_caller_too(queue: Queue) -> None:
    @queue.on_pre_create
    async def refuse(spec: NewTask) -> None:
        raise LookupError("refused")

    async def add() -> TaskRef:
        return queue.add_task(job)

    with pytest.raises(LookupError, match="refused"):
        queue.add_task(job)
    with pytest.raises(LookupError, match="refused"):
        asyncio.run(add())


# ------------------------------------------------------------------------------------------------------ on_post_create


def test_a_hook_after_gets_the_ref_of_a_task_that_is_there(queue: Queue) -> None:
    states: list[tuple[TaskRef, str, bool]] = []

    @queue.on_post_create
    def after(ref: TaskRef) -> None:
        states.append((ref, ref.state, ref.created))

    ref = queue.add_task(job)
    assert states == [(ref, "enqueued", True)]


def test_on_a_caller_s_connection_it_is_called_before_the_commit(queue: Queue, database_url: str) -> None:
    seen: list[int] = []
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as connection:

        @queue.on_post_create
        def after(ref: TaskRef) -> None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM queued_tasks WHERE id = %s", (ref.id,))
                seen.append(cursor.rowcount)
            seen.append(count(queue))

        queue.options(connection=connection).add_task(job)
        connection.rollback()
    assert seen == [1, 0]


def test_in_a_batch_it_is_called_when_the_chunk_is_written(queue: Queue) -> None:
    seen: list[TaskRef] = []
    queue.on_post_create(seen.append)
    with queue.batch() as batch:
        refs = [batch.add_task(job) for _ in range(999)]
        assert seen == []
        refs.append(batch.add_task(job))
        assert seen == refs
        refs.append(batch.add_task(job))
    assert seen == refs


def test_what_it_raises_is_logged_and_the_task_stays_added(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[TaskRef] = []

    @queue.on_post_create
    def fail(ref: TaskRef) -> None:
        raise ValueError("boom")

    queue.on_post_create(seen.append)
    ref = queue.add_task(job)
    with queue.batch() as batch:
        other = batch.add_task(job)
    assert (ref.state, other.state, seen) == ("enqueued", "enqueued", [ref, other])
    records = [r for r in caplog.records if r.name == "queuedtask.hooks"]
    assert [r.levelno for r in records] == [logging.ERROR] * 2
    assert f"fail failed for <TaskRef {ref.id}>" in records[0].getMessage()
    assert records[0].exc_info is not None


def test_an_interrupt_in_it_is_not_swallowed(queue: Queue) -> None:
    class Interrupt(BaseException): ...

    def interrupted(ref: TaskRef) -> None:
        raise Interrupt

    queue.on_post_create(interrupted)
    with pytest.raises(Interrupt):
        queue.add_task(job)
    assert count(queue) == 1


# ------------------------------------------------------------------------------------------------- the captured context


def test_what_is_set_outside_a_task_is_copied_into_the_tasks_that_are_added_then(queue: Queue) -> None:
    before = queue.add_task(job)
    set_context("request.id", "r-7")
    set_context("at", datetime(2026, 1, 2, tzinfo=UTC))
    with queue.batch() as batch:
        batched = batch.add_task(job)
    refs = [queue.add_task(job), queue.options(priority=1).add_task(job), batched]
    set_context("request.id", "r-8")
    later = queue.add_task(job)
    clear_context()
    after = queue.add_task(job)
    for ref in refs:
        assert ref.context == {"request": {"id": "r-7"}, "at": datetime(2026, 1, 2, tzinfo=UTC)}
        assert stored(ref, "meta") == {"inherited": stored(ref, "context")}
    assert later.context["request"] == {"id": "r-8"}
    for ref in (before, after):
        assert (ref.row().context, ref.row().meta) == (None, None)


def test_given_context_is_merged_over_it_key_by_key_and_not_handed_down(queue: Queue) -> None:
    set_context("a.x", 1)
    set_context("b", 1)
    ref = queue.options(context={"a": {"y": 2}, "c": 3}, meta={"tag": "x"}).add_task(job)
    assert ref.context == {"a": {"y": 2}, "b": 1, "c": 3}
    assert stored(ref, "meta") == {"tag": "x", "inherited": {"a": {"x": 1}, "b": 1}}
    assert queue.options(context={}, meta={}).add_task(job).context == {"a": {"x": 1}, "b": 1}


def test_it_belongs_to_the_thread(queue: Queue) -> None:
    set_context("request", 1)
    seen: list[object] = []

    def other() -> None:
        seen.append(get_context())
        seen.append(queue.add_task(job).row().context)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [{}, None]


def test_clearing_forgets_it_for_this_thread_and_leaves_a_task_s_own_alone() -> None:
    set_context("request", 1)
    with inside(context='{"a": 1}'):
        clear_context()
        assert get_context() == {"a": 1}
    assert get_context() == {"request": 1}
    clear_context()
    assert get_context() == {}
    clear_context()


def test_inside_a_task_the_tasks_that_it_adds_inherit_what_it_has_inherited(queue: Queue) -> None:
    set_context("outside", True)  # of the thread in which the task happens to run
    meta = '{"tag": "x", "inherited": {"tenant": 7, "at": {"$date": "2026-01-02"}}}'
    with inside(context='{"tenant": 8, "own": 1, "at": null}', meta=meta):
        set_context("later", 2)
        child = queue.add_task(job)
        again = queue.options(context={"given": 1}).add_task(job)
    inherited = {"tenant": 7, "at": {"$date": "2026-01-02"}}
    assert stored(child, "context") == inherited
    assert stored(child, "meta") == {"inherited": inherited}
    assert stored(again, "context") == inherited | {"given": 1}
    assert stored(again, "meta") == {"inherited": inherited}


@pytest.mark.parametrize(
    "meta", [None, "{}", '{"tag": "inherited"}', '{"inherited": 7}', '{"inherited": {}}', '["inherited"]']
)
def test_a_task_that_has_inherited_nothing_hands_nothing_down(queue: Queue, meta: str | None) -> None:
    with inside(context='{"own": 1}', meta=meta):
        set_context("later", 2)
        row = queue.add_task(job).row()
    assert (row.context, row.meta) == (None, None)


def test_a_hook_sees_the_inherited_context_and_cannot_break_what_is_handed_down(queue: Queue) -> None:
    @queue.on_pre_create
    def change(spec: NewTask) -> None:
        assert spec.context == {"tenant": 7, "given": 1}
        assert dict(spec.meta) == {}
        spec.context = {"changed": True}
        spec.meta = {"tag": "x"}

    set_context("tenant", 7)
    ref = queue.options(context={"given": 1}).add_task(job)
    assert stored(ref, "context") == {"changed": True}
    assert stored(ref, "meta") == {"tag": "x", "inherited": {"tenant": 7}}


def test_the_key_that_remembers_it_is_refused_in_a_caller_s_own_meta(queue: Queue) -> None:
    with pytest.raises(InvalidTask, match="the key 'inherited' is reserved"):
        queue.options(meta={"inherited": {"tenant": 8}})
    queue.options(meta={"tags": {"inherited": 1}})


def test_one_that_is_too_large_is_refused_with_its_name(database_url: str) -> None:
    with contextlib.closing(Queue(database_url, config=Config(max_payload=1000))) as queue:
        set_context("text", "x" * 2000)
        with pytest.raises(InvalidTask, match=r"set_context\(\) .* QUEUE_MAX_PAYLOAD = 1,000"):
            queue.add_task(job)
        with pytest.raises(NotSerializable):
            queue.options(context={"text": "x" * 2000})
        assert count(queue) == 0
        clear_context()
        queue.add_task(job)


def test_a_value_that_cannot_be_stored_is_replaced_as_inside_a_task(queue: Queue) -> None:
    set_context("odd", object())
    set_context("text", "a\0b\ud800")
    context = queue.add_task(job).context
    assert context["odd"]["type"] == "object"
    assert context["text"] == "a\\x00b\\ud800"
