"""Queue and TaskRef: what is added, what is refused before anything is written, and what a ref tells."""

import asyncio
import functools
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any

import psycopg2.errors
import pytest
from sqlalchemy import create_engine

from helpers import execute, raw_connection, wait_until
from queuedtask import (
    Config,
    ConfigError,
    DatabaseUnavailable,
    InvalidTask,
    NotAllowed,
    NotSerializable,
    ParentNotFound,
    Queue,
    TaskNotFound,
    TaskRef,
    UnknownFunction,
)
from queuedtask import taskqueue as module
from queuedtask.db import connections, store, workers
from queuedtask.model import codec, outcome, states
from queuedtask.model.options import TaskOptions
from queuedtask.model.outcome import Decision, Outcome


def plain(*args: object, **kwargs: object) -> object:
    return args, kwargs


async def coroutine(number: int) -> int:
    await asyncio.sleep(0)
    return number


class Shop:
    @staticmethod
    def static(number: int) -> int:
        return number

    @classmethod
    def of_class(cls, number: int) -> int:
        return number

    def bound(self) -> None: ...

    class Inner:
        @staticmethod
        def nested() -> None: ...


def generator() -> Any:
    yield 1


def declared(number: int, *, factor: int = 1) -> int:
    return number * factor


HERE = __name__


def row_of(ref: TaskRef) -> Any:
    return ref.row()


def count(queue: Queue) -> int:
    return int(execute(url_of(queue), "SELECT count(*) FROM queued_tasks")[0][0])


def url_of(queue: Queue) -> str:
    assert queue.config.database_url is not None
    return queue.config.database_url


def end(queue: Queue, ref: TaskRef, edge: Any = states.FINISH, context: str | None = None, **more: Any) -> None:
    """Let the task run and end, as a worker writes it."""
    with queue.database.transaction() as cursor:
        claimed = store.claim(cursor, worker=1, limit=100)
        task = next(task for task in claimed if task.id == ref.id)
        kind = outcome.RETURNED if edge is states.FINISH else outcome.RAISED
        ending = store.Ending(task, Decision(edge, Outcome(kind, **more)), 0.0, context)
        assert store.settle(cursor, [ending], worker=1).accepted == {(ref.id, task.attempt)}
        store.disown(cursor, worker=1, known=[])


# --------------------------------------------------------------------------------------------------------- adding


@pytest.mark.parametrize(
    ("function", "qualname"),
    [
        (plain, "plain"),
        (coroutine, "coroutine"),
        (Shop.static, "Shop.static"),
        (Shop.of_class, "Shop.of_class"),
        (Shop.Inner.nested, "Shop.Inner.nested"),
        (vars(Shop)["static"], "Shop.static"),
    ],
)
def test_a_function_is_added_by_its_path(queue: Queue, function: Callable[..., Any], qualname: str) -> None:
    ref = queue.add_task(function, 7)
    row = row_of(ref)
    assert (row.function, row.name) == (f"{HERE}:{qualname}", f"{HERE}.{qualname}")
    assert (row.state, row.args, row.kwargs, row.channel, row.priority) == ("enqueued", "[7]", "{}", "default", 0)
    assert (row.timeout, row.max_retries, row.context, row.meta, row.date_scheduled) == (None,) * 5
    assert ref.created


def test_a_path_need_not_lead_anywhere_here(queue: Queue) -> None:
    row = row_of(queue.add_task("shop.tasks:Mail.send", 1, to="x"))
    assert (row.function, row.name, row.kwargs) == ("shop.tasks:Mail.send", "shop.tasks.Mail.send", '{"to": "x"}')


def test_a_partial_is_added_as_its_function_with_all_arguments(queue: Queue) -> None:
    inner = functools.partial(plain, 1, a=1, b=1)
    row = row_of(queue.add_task(functools.partial(inner, 2, b=2), 3, c=3))
    assert row.function == f"{HERE}:plain"
    assert codec.decode_arguments(row.args, row.kwargs) == ((1, 2, 3), {"a": 1, "b": 2, "c": 3})


def test_arguments_come_back_equal(queue: Queue) -> None:
    args = ((1, "ü"), datetime(2024, 5, 1, tzinfo=UTC), Decimal("1.10"), uuid.uuid4(), b"\0", timedelta(days=1))
    kwargs = {"when": date(2024, 1, 1), "none": None, "deep": {"a": [1.5, True]}}
    row = row_of(queue.add_task(plain, *args, **kwargs))
    assert codec.decode_arguments(row.args, row.kwargs) == (args, kwargs)


def test_no_keyword_of_a_function_is_taken_for_an_option(queue: Queue) -> None:
    given = dict.fromkeys(["self", "function", "queue", "name", "priority", "delay", "context", "connection"], 1)
    row = row_of(queue.add_task(plain, **given))
    assert codec.decode_arguments(row.args, row.kwargs) == ((), given)
    assert (row.name, row.priority, row.context) == (f"{HERE}.plain", 0, None)


def test_ids_grow_with_each_task_and_are_known_at_once(queue: Queue) -> None:
    refs = [queue.add_task(plain) for _ in range(5)]
    assert [ref.id for ref in refs] == sorted({ref.id for ref in refs})
    assert all(uuid.UUID(ref.id).version == 7 for ref in refs)


def test_a_task_is_there_as_soon_as_add_task_returns(queue: Queue) -> None:
    ref = queue.add_task(plain)
    assert execute(url_of(queue), "SELECT id::text FROM queued_tasks") == [(ref.id,)]


def test_many_threads_add_with_one_queue(queue: Queue) -> None:
    begin = threading.Barrier(8)

    def add() -> None:
        begin.wait()
        for _ in range(20):
            queue.add_task(plain)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(queue) == 160


# -------------------------------------------------------------------------------------------------------- refusals


def make_local() -> Callable[[], None]:
    def local() -> None: ...

    return local


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


NOBODY = str(uuid.UUID(int=1))
REFUSED_CALLS: dict[str, tuple[type[Exception], str, Callable[[Queue], object]]] = {
    "a lambda": (UnknownFunction, "lambda.*write a def", lambda q: q.add_task(lambda: None)),
    "a local function": (UnknownFunction, "local function.*module level", lambda q: q.add_task(make_local())),
    "a bound method": (UnknownFunction, "bound to a Shop object", lambda q: q.add_task(Shop().bound)),
    "a generator function": (InvalidTask, "generator function", lambda q: q.add_task(generator)),
    "a class": (InvalidTask, "is a class", lambda q: q.add_task(Shop)),
    "no function": (InvalidTask, "not a function", lambda q: q.add_task(7)),  # type: ignore[arg-type]
    "None": (InvalidTask, "not a function", lambda q: q.add_task(None)),  # type: ignore[arg-type]
    "a path without a colon": (InvalidTask, 'write "shop:send"', lambda q: q.add_task("shop.send")),
    "an empty path": (InvalidTask, "not the path of a function", lambda q: q.add_task("")),
    "an object": (
        NotSerializable,
        r"kwargs\.order\.total",
        lambda q: q.add_task(plain, order={"total": object()}),
    ),
    "an object in a list": (NotSerializable, r"args\[1\]\[0\]", lambda q: q.add_task(plain, 1, [object()])),
    "a set": (NotSerializable, r"kwargs\.x", lambda q: q.add_task(plain, x={1, 2})),
    "a key that is no text": (NotSerializable, r"args\[0\]", lambda q: q.add_task(plain, {(1, 2): 3})),
    "NaN": (NotSerializable, r"args\[0\]", lambda q: q.add_task(plain, float("nan"))),
    "infinity": (NotSerializable, r"kwargs\.a", lambda q: q.add_task(plain, a=float("inf"))),
    "NUL": (NotSerializable, r"kwargs\.a", lambda q: q.add_task(plain, a="x\0y")),
    "a lone surrogate": (NotSerializable, r"args\[0\]", lambda q: q.add_task(plain, "\ud800")),
    "too deep": (NotSerializable, "100", lambda q: q.add_task(plain, nested(101))),
    "too large": (NotSerializable, "1,048,576", lambda q: q.add_task(plain, "x" * 1024 * 1024)),
    "parent": (InvalidTask, "parent: 'no' is not a task's id", lambda q: q.add_task(plain, parent="no")),
    "parents": (InvalidTask, "parent: 7 is not a task's id", lambda q: q.add_task(plain, parent=[NOBODY, 7])),
    "no such parent": (ParentNotFound, NOBODY, lambda q: q.add_task(plain, parent=NOBODY)),
    "an object in a partial": (
        NotSerializable,
        r"kwargs\.a",
        lambda q: q.add_task(functools.partial(plain, a=object())),
    ),
}


@pytest.mark.parametrize("what", REFUSED_CALLS)
def test_what_cannot_be_a_task_is_refused_and_nothing_is_written(queue: Queue, what: str) -> None:
    error, message, add = REFUSED_CALLS[what]
    with pytest.raises(error, match=message) as caught:
        add(queue)
    assert isinstance(caught.value, InvalidTask)
    assert count(queue) == 0


def test_the_limit_of_the_payload_is_the_setting(queue: Queue) -> None:
    queue.config.max_payload = 20
    queue.add_task(plain, "x" * 14)
    with pytest.raises(NotSerializable, match="20"):
        queue.add_task(plain, "x" * 15)
    with pytest.raises(NotSerializable, match="20"):
        queue.add_task(plain, a="ü" * 10)
    assert count(queue) == 1


class Urgency(int, Enum):
    HIGH = 7


def test_a_number_may_be_one_of_an_enum(queue: Queue) -> None:
    parent = queue.options(priority=Urgency.HIGH).add_task(plain)
    with queue.batch() as batch:
        ref = batch.options(priority=Urgency.HIGH, max_retries=Urgency.HIGH, parent=parent).add_task(plain)
    assert (parent.row().priority, ref.row().priority) == (7, 7)


NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001
BAD_OPTIONS = {
    "name": ["", "x" * 256, 7, b"x", "a\0b", "\ud800"],
    "channel": ["", "x" * 65, 7, "a\0b"],
    "priority": ["1", 1.5, True, 2**31, -(2**31) - 1],
    "delay": [-1, "1", True, float("nan"), float("inf"), timedelta(seconds=-1), 10**12],
    "run_at": [
        *(NAIVE, "2030-01-01", date(2030, 1, 1), 1893456000),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=5))),
        datetime(9000, 1, 1, tzinfo=UTC),
    ],
    "timeout": [0, 0.0, -1, "1", True, float("nan"), float("inf"), timedelta(0)],
    "max_retries": [-1, "1", 1.0, True, 2**31],
    "context": [[1], "x", {"a": object()}, {1: 2}, {"a": float("nan")}],
    "meta": [[1], {"a": {"b": object()}}, {"a": "x\0"}],
}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        pytest.param(option, value, id=f"{option}-{number}")
        for option, values in BAD_OPTIONS.items()
        for number, value in enumerate(values)
    ],
)
def test_a_bad_option_is_refused_by_name_and_nothing_is_written(queue: Queue, option: str, value: object) -> None:
    with pytest.raises(InvalidTask, match=option):
        queue.options(**{option: value})  # type: ignore[arg-type]
    with pytest.raises(InvalidTask, match=option):
        queue.options(priority=1).options(**{option: value})
    if option in ("name", "channel", "priority", "timeout", "max_retries"):
        with pytest.raises(InvalidTask, match=option):
            queue.task(**{option: value})  # type: ignore[arg-type]
    assert count(queue) == 0


def test_a_context_that_cannot_be_stored_is_named_by_its_path(queue: Queue) -> None:
    with pytest.raises(NotSerializable, match=r"context\.order\.total"):
        queue.options(context={"order": {"total": object()}})
    queue.config.max_payload = 20
    with pytest.raises(NotSerializable, match="20"):
        queue.options(meta={"a": "x" * 20})


def test_an_option_that_does_not_exist_is_a_type_error(queue: Queue) -> None:
    with pytest.raises(TypeError, match="prio"):
        queue.options(prio=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"prio.*priority"):
        queue.options(priority=1).options(prio=1)


# --------------------------------------------------------------------------------------------------------- options


def test_every_option_is_in_the_row(queue: Queue) -> None:
    adder = queue.options(
        name="n" * 255,
        channel="c" * 64,
        priority=-5,
        timeout=timedelta(minutes=1),
        max_retries=0,
        context={"a": {"b": 1}},
        meta={"tags": ["x"]},
    )
    row = row_of(adder.add_task(plain))
    assert (row.name, row.channel, row.priority, row.timeout, row.max_retries) == ("n" * 255, "c" * 64, -5, 60.0, 0)
    assert (codec.decode(row.context), codec.decode(row.meta)) == ({"a": {"b": 1}}, {"tags": ["x"]})


def test_options_are_laid_over_those_before_and_change_no_adder(queue: Queue) -> None:
    first = queue.options(priority=1, channel="mail")
    second = first.options(priority=2, name="n")
    found = [row_of(adder.add_task(plain)) for adder in (second, first)]
    assert [(row.priority, row.channel, row.name) for row in found] == [(2, "mail", "n"), (1, "mail", f"{HERE}.plain")]


def test_the_largest_and_smallest_priority_can_be_stored(queue: Queue) -> None:
    for priority in (2**31 - 1, -(2**31)):
        assert row_of(queue.options(priority=priority).add_task(plain)).priority == priority


@pytest.mark.parametrize("delay", [90, 90.0, timedelta(seconds=90)])
def test_a_delayed_task_waits_on_the_database_s_clock(queue: Queue, delay: Any) -> None:
    row = row_of(queue.options(delay=delay).add_task(plain))
    assert row.state == "waiting"
    assert (row.date_scheduled - row.date_created).total_seconds() == pytest.approx(90, abs=0.1)


def test_a_delay_of_zero_is_no_delay(queue: Queue) -> None:
    assert queue.options(delay=0).add_task(plain).state == "enqueued"


def test_a_time_to_come_is_waited_for_in_whatever_zone_it_is_written(queue: Queue) -> None:
    when = datetime.now(UTC) + timedelta(hours=1)
    zone = datetime(2024, 1, 1, tzinfo=UTC).astimezone().tzinfo
    row = row_of(queue.options(run_at=when.astimezone(zone)).add_task(plain))
    assert (row.state, row.date_scheduled) == ("waiting", when)


def test_a_time_that_has_passed_is_now(queue: Queue) -> None:
    past = datetime(2001, 1, 1, tzinfo=UTC)
    row = row_of(queue.options(run_at=past).add_task(plain))
    assert (row.state, row.date_scheduled) == ("enqueued", past)


def test_a_delay_and_a_time_together_are_refused(queue: Queue) -> None:
    when = datetime.now(UTC)
    with pytest.raises(InvalidTask, match="delay and run_at"):
        queue.options(delay=1, run_at=when)
    with pytest.raises(InvalidTask, match="delay and run_at"):
        queue.options(delay=1).options(run_at=when)


def test_a_name_too_long_for_its_column_is_shortened_when_nobody_chose_it(queue: Queue) -> None:
    row = row_of(queue.add_task(f"{'m' * 300}:f"))
    assert len(row.name) <= 255
    assert row.function == f"{'m' * 300}:f"


# ------------------------------------------------------------------------------------------------------- @queue.task


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Give a function that decorates ``declared`` in this module, for this test."""

    def decorate(decorator: Callable[..., Any]) -> Any:
        def declared(number: int, *, factor: int = 1) -> int:
            return number * factor

        declared.__module__, declared.__qualname__ = HERE, "declared"
        made = decorator(declared)
        monkeypatch.setitem(globals(), "declared", made)
        return made

    return decorate


def test_a_declared_function_stays_what_it_was_and_has_its_options(queue: Queue, own: Callable[..., Any]) -> None:
    function = own(queue.task(name="n", channel="mail", priority=3, timeout=2, max_retries=0))
    assert function(7, factor=2) == 14
    row = row_of(queue.add_task(function, 7))
    assert (row.function, row.name, row.channel, row.priority) == (f"{HERE}:declared", "n", "mail", 3)
    assert (row.timeout, row.max_retries) == (2.0, 0)


def test_delay_adds_a_call_with_its_arguments(queue: Queue, own: Callable[..., Any]) -> None:
    function = own(queue.task(priority=3))
    row = row_of(function.delay(7, factor=2))
    assert (row.priority, row.args, row.kwargs) == (3, "[7]", '{"factor": 2}')


def test_options_beat_what_the_function_declares(queue: Queue, own: Callable[..., Any]) -> None:
    function = own(queue.task(priority=3, channel="mail", max_retries=5))
    row = row_of(queue.options(priority=0, max_retries=0).add_task(function, 1))
    assert (row.priority, row.channel, row.max_retries) == (0, "mail", 0)


def test_a_partial_of_a_declared_function_has_its_options(queue: Queue, own: Callable[..., Any]) -> None:
    function = own(queue.task(priority=3))
    assert row_of(queue.add_task(functools.partial(function, 1))).priority == 3


@pytest.mark.parametrize("outermost", ["staticmethod", "queue.task"])
def test_a_static_method_is_declared_in_either_order(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, outermost: str
) -> None:
    def static(number: int) -> int:
        return number

    static.__module__, static.__qualname__ = HERE, "Shop.declared_static"
    task = queue.task(priority=3)
    made = staticmethod(task(static)) if outermost == "staticmethod" else task(staticmethod(static))
    monkeypatch.setattr(Shop, "declared_static", made, raising=False)
    function = Shop.declared_static  # type: ignore[attr-defined]
    assert function(7) == 7
    for ref in (queue.add_task(function, 1), function.delay(1)):
        assert (row_of(ref).function, row_of(ref).priority) == (f"{HERE}:Shop.declared_static", 3)


def test_what_takes_no_attributes_cannot_be_declared(queue: Queue) -> None:
    with pytest.raises(InvalidTask, match="wrap it in a def"):
        queue.task(priority=1)(len)


# ---------------------------------------------------------------------------------------------------------- asking


def test_a_ref_tells_what_became_of_its_task(queue: Queue) -> None:
    ref = queue.add_task(plain)
    assert (ref.state, ref.result, ref.error, ref.context, ref.logs()) == ("enqueued", None, None, {}, [])
    end(queue, ref, result='{"rows": [1, 2]}', context='{"progress": {"rows": 2}}')
    assert (ref.state, ref.result, ref.context) == ("done", {"rows": [1, 2]}, {"progress": {"rows": 2}})


def test_a_ref_tells_the_error(queue: Queue) -> None:
    ref = queue.add_task(plain)
    end(queue, ref, states.FAIL, error_type="ValueError", error_message="no such order", error_traceback="…")
    assert (ref.state, ref.error, ref.result) == ("failed", "ValueError: no such order", None)


def test_an_error_without_a_message_is_its_type(queue: Queue) -> None:
    ref = queue.add_task(plain)
    end(queue, ref, states.FAIL, error_type="KeyError")
    assert ref.error == "KeyError: "


def test_a_ref_has_the_log_in_its_order(queue: Queue) -> None:
    ref, other = queue.add_task(plain), queue.add_task(plain)
    with queue.database.transaction() as cursor:
        assert len(store.claim(cursor, worker=7, limit=2)) == 2
        lines = [store.LogLine(ref.id, 1, "info", "shop", f"line {n}", 10.0 - n) for n in range(9)]
        store.add_logs(cursor, [*lines, store.LogLine(other.id, 1, "info", "shop", "other", 0.0)], worker=7)
    assert [line.message for line in ref.logs()] == [f"line {n}" for n in range(9)]
    assert (ref.logs()[0].type, ref.logs()[0].name, ref.logs()[0].attempt) == ("info", "shop", 1)


def test_a_ref_whose_task_is_gone_says_so(queue: Queue) -> None:
    ref = queue.add_task(plain)
    execute(url_of(queue), "DELETE FROM queued_tasks")
    for read in (lambda: ref.state, lambda: ref.result, lambda: ref.error, lambda: ref.context, ref.row, ref.retry):
        with pytest.raises(TaskNotFound, match=ref.id):
            read()
    assert ref.logs() == []


def test_refs_of_one_task_are_equal(queue: Queue) -> None:
    ref = queue.add_task(plain)
    found = queue.get(ref.id)
    assert found == ref
    assert len({found, ref}) == 1
    assert (found.created, ref.created) == (False, True)
    assert ref != queue.add_task(plain)
    assert ref != ref.id
    assert repr(ref) == f"<TaskRef {ref.id}>"


def test_a_task_is_found_by_its_id_however_it_is_written(queue: Queue) -> None:
    ref = queue.add_task(plain)
    spellings = [ref, ref.id, uuid.UUID(ref.id), ref.id.upper(), ref.id.replace("-", ""), f"{{{ref.id}}}"]
    assert [queue.get(each).id for each in spellings] == [ref.id] * 6


def test_an_id_that_no_task_has_is_not_found(queue: Queue) -> None:
    unknown = str(uuid.uuid4())
    with pytest.raises(TaskNotFound, match=unknown) as caught:
        queue.get(unknown)
    assert isinstance(caught.value, LookupError)


@pytest.mark.parametrize("value", ["", "7", "not-a-uuid", 7, None, b"x", ["x"]])
def test_what_is_no_id_is_a_value_error(queue: Queue, value: Any) -> None:
    with pytest.raises(ValueError, match="is not a task's id"):
        queue.get(value)


def test_tasks_are_found_by_state_name_and_channel_the_newest_first(queue: Queue) -> None:
    mail = queue.options(channel="mail", name="a").add_task(plain)
    later = queue.options(channel="mail", name="b", delay=60).add_task(plain)
    usual = queue.options(name="a").add_task(plain)
    assert queue.find() == [usual, later, mail]
    assert queue.find(state="enqueued") == [usual, mail]
    assert queue.find(state="waiting") == [later]
    assert queue.find(channel="mail") == [later, mail]
    assert queue.find(name="a") == [usual, mail]
    assert queue.find(name="a", channel="mail", state="enqueued") == [mail]
    assert queue.find(state="failed") == []
    assert queue.find(limit=1) == [usual]
    assert queue.find(limit=0) == []
    assert not any(ref.created for ref in queue.find())


def test_fifty_tasks_are_found_unless_more_are_asked_for(queue: Queue) -> None:
    execute(url_of(queue), "INSERT INTO queued_tasks (function) SELECT 'a:b' FROM generate_series(1, 60)")
    assert (len(queue.find()), len(queue.find(limit=None)), len(queue.find(limit=55))) == (50, 60, 55)


def test_a_state_that_does_not_exist_is_refused_with_those_that_do(queue: Queue) -> None:
    with pytest.raises(ValueError, match=r"running.*waiting, enqueued, doing, done, failed"):
        queue.find(state="running")


def test_running_workers_are_listed(queue: Queue) -> None:
    assert queue.workers() == []
    with queue.database.transaction() as cursor:
        first, second = (
            workers.register(cursor, server_name="web1", slots=4, pid=9, supervisor_pid=None, version="1", lease=30.0)
            for _ in range(2)
        )
        workers.retire(cursor, worker=first)
    (worker,) = queue.workers()
    assert (worker.id, worker.server_name, worker.max_workers, worker.is_running) == (second, "web1", 4, True)
    assert (worker.lease, worker.stuck, worker.refused) == (30.0, [], 0)


# ----------------------------------------------------------------------------------------------------- controlling


def put(queue: Queue, state: str, **columns: Any) -> TaskRef:
    values = {"function": "a:b", "state": state, "date_done": datetime.now(UTC) if state in states.FINAL else None}
    values |= columns
    names = ", ".join(values)
    marks = ", ".join(["%s"] * len(values))
    ((task_id,),) = execute(
        url_of(queue), f"INSERT INTO queued_tasks ({names}) VALUES ({marks}) RETURNING id::text", [*values.values()]
    )
    return queue.get(task_id)


@pytest.mark.parametrize("state", states.FINAL)
def test_an_ended_task_can_be_sent_round_again(queue: Queue, state: str) -> None:
    ref = put(queue, state)
    ref.retry()
    assert ref.state == "enqueued"
    assert row_of(ref).requeues == 1


@pytest.mark.parametrize("state", ["waiting", "enqueued", "doing"])
def test_a_task_that_has_not_ended_cannot_and_the_error_names_the_states(queue: Queue, state: str) -> None:
    ref = put(queue, state)
    with pytest.raises(NotAllowed, match=rf"{ref.id} is {state}.*done, failed, cancelled, stopped"):
        ref.retry()
    assert ref.state == state


def test_failed_tasks_are_sent_round_again_and_no_others(queue: Queue) -> None:
    failed = [put(queue, "failed"), put(queue, "failed")]
    others = [put(queue, state) for state in states.STATES if state != "failed"]
    before = [ref.state for ref in others]
    assert sorted(ref.id for ref in queue.retry_failed()) == sorted(ref.id for ref in failed)
    assert [ref.state for ref in failed] == ["enqueued", "enqueued"]
    assert [ref.state for ref in others] == before
    assert queue.retry_failed() == []


def test_failed_tasks_are_chosen_by_time_name_number_and_history(queue: Queue) -> None:
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    old = put(queue, "failed", date_done=hour_ago, name="mail")
    often = put(queue, "failed", requeues=3, name="mail")
    new = put(queue, "failed", name="print")
    assert queue.retry_failed(name="nothing") == []
    assert queue.retry_failed(limit=0) == []
    assert queue.retry_failed(since=60) == [new]
    assert queue.retry_failed(since=timedelta(minutes=59)) == []
    assert queue.retry_failed(name="mail") == [old]
    assert queue.retry_failed() == []
    assert queue.retry_failed(max_requeues=None) == [often]


def test_a_task_that_always_fails_is_not_sent_round_for_ever(queue: Queue) -> None:
    ref = put(queue, "failed")
    rounds = 0
    while queue.retry_failed():
        rounds += 1
        end(queue, ref, states.FAIL, error_type="E")
        assert rounds < 10
    assert rounds == 3


@pytest.mark.parametrize("since", [-1, "1h", True])
def test_a_time_that_is_none_is_refused(queue: Queue, since: Any) -> None:
    with pytest.raises(ValueError, match="since"):
        queue.retry_failed(since=since)


def test_clear_deletes_what_is_pending_in_batches(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLEAR_BATCH", 2)
    kept = [put(queue, state) for state in ("doing", *states.FINAL)]
    for _ in range(5):
        put(queue, "enqueued")
    put(queue, "waiting")
    assert queue.clear() == 6
    assert {ref.id for ref in queue.find()} == {ref.id for ref in kept}
    assert queue.clear() == 0


# ---------------------------------------------------------------------------------------------------- notifications


@pytest.fixture
def heard(queue: Queue) -> Any:
    """Give a function that tells how many notifications have come since its last call."""
    connection = raw_connection(url_of(queue))
    cursor = connection.cursor()
    cursor.execute('LISTEN "queue_new_task"; LISTEN "sentinel"')

    def heard() -> int:
        mark = str(uuid.uuid4())
        cursor.execute("SELECT pg_notify('sentinel', %s)", (mark,))

        def has_come() -> bool:
            connection.poll()
            return any(each.payload == mark for each in connection.notifies)

        wait_until(has_come)
        number = sum(each.channel == "queue_new_task" for each in connection.notifies)
        connection.notifies.clear()
        return number

    yield heard
    connection.close()


def test_workers_hear_of_a_task_that_is_added_or_sent_round_again(queue: Queue, heard: Callable[[], int]) -> None:
    queue.add_task(plain)
    assert heard() == 1
    put(queue, "failed")
    put(queue, "failed")
    assert heard() == 0
    queue.retry_failed()
    assert heard() == 1
    queue.retry_failed()
    assert heard() == 0


def test_nobody_is_notified_when_the_setting_says_so(queue: Queue, heard: Callable[[], int]) -> None:
    queue.config.use_postgresql_notify = False
    queue.add_task(plain)
    put(queue, "failed")
    queue.retry_failed()
    assert heard() == 0


def test_the_channel_is_the_setting(queue: Queue, heard: Callable[[], int]) -> None:
    queue.config.notify_channel = "another"
    queue.add_task(plain)
    assert heard() == 0


# ------------------------------------------------------------------------------------------------------- the queue


def test_an_engine_of_the_caller_s_is_used_and_left_open(database_url: str) -> None:
    engine = create_engine(database_url)
    queue = Queue(engine=engine)
    ref = queue.add_task(plain)
    with engine.connect() as connection:
        before = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
    queue.close()
    with engine.connect() as connection:
        assert connection.connection.dbapi_connection.info.backend_pid == before  # type: ignore[union-attr]
    assert ref.state == "enqueued"
    engine.dispose()


def test_a_url_and_an_engine_together_are_refused(database_url: str) -> None:
    with pytest.raises(TypeError, match="not both"):
        Queue(database_url, engine=create_engine(database_url))


def test_what_is_no_engine_of_ours_and_no_config_is_refused() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with pytest.raises(ConfigError, match="its driver is psycopg, and must be psycopg2"):
        Queue(engine=create_engine("postgresql+psycopg://h/d"))
    with pytest.raises(TypeError, match="must be a SQLAlchemy Engine"):
        Queue(engine="postgresql://h/d")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a Config"):
        Queue(config={"max_workers": 3})  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [-1, 2**31, "x", 1.5, True])
def test_a_limit_is_a_whole_number(queue: Queue, limit: Any) -> None:
    for call in (
        queue.find,
        queue.retry_failed,
        functools.partial(queue.cancel, name="a"),
        functools.partial(queue.stop, name="a"),
    ):
        with pytest.raises(ValueError, match=r"limit=.*must be a whole number from 0"):
            call(limit=limit)
    with pytest.raises(ValueError, match=r"max_requeues=.*must be a whole number from 0"):
        queue.retry_failed(max_requeues=limit)


def test_a_closed_queue_can_be_used_again(queue: Queue) -> None:
    ref = queue.add_task(plain)
    queue.close()
    queue.close()
    assert ref.state == "enqueued"


def test_a_config_that_was_given_is_taken_and_left_as_it_is(database_url: str) -> None:
    given = Config(max_payload=20)
    queue = Queue(database_url, config=given)
    assert queue.config.max_payload == 20
    queue.config.max_payload = 30
    assert given.max_payload == 20
    assert given.database_url is None


def test_a_queue_shows_its_database_without_the_password() -> None:
    shown = repr(Queue("postgresql://me:secret@host/shop"))
    assert "host/shop" in shown
    assert "secret" not in shown


def test_a_queue_on_a_server_that_is_not_there_is_made_and_fails_when_it_is_used() -> None:
    queue = Queue("postgresql://nobody@127.0.0.1:1/nothing")
    for use in (lambda: queue.add_task(plain), queue.find, queue.clear, queue.retry_failed, queue.workers):
        with pytest.raises(DatabaseUnavailable) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_adding_goes_on_after_the_server_came_back(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_IDLE_BEFORE_PING", 0.0)
    queue.add_task(plain)
    execute(
        url_of(queue),
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    queue.add_task(plain)
    assert count(queue) == 2


def test_an_error_of_the_database_leaves_the_queue_usable(queue: Queue) -> None:
    execute(url_of(queue), "ALTER TABLE queued_tasks ADD CONSTRAINT no_mail CHECK (channel <> 'mail')")
    with pytest.raises(psycopg2.errors.CheckViolation):
        queue.options(channel="mail").add_task(plain)
    assert queue.add_task(plain).state == "enqueued"


# ------------------------------------------------------------------------------------------------- what is remembered


def test_what_is_known_of_a_function_holds_only_as_long_as_it_is_true(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [queue.add_task(plain).row().priority for _ in range(2)] == [0, 0]
    monkeypatch.setattr(plain, module.OPTIONS, TaskOptions(priority=7), raising=False)
    assert [queue.add_task(plain).row().priority for _ in range(2)] == [7, 7]
    known = plain
    monkeypatch.setitem(plain.__globals__, "plain", lambda *args: None)
    with pytest.raises(UnknownFunction):
        queue.add_task(known)
