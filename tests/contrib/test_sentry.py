"""Sentry: what is captured, how often and with what, and transactions that continue the trace of who added the task."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from helpers import execute, wait_until
from queuedtask import Queue
from queuedtask.contrib import sentry

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
import observed_jobs as jobs
from inside import ended, fresh_event, working
from test_otel import once_more

__all__ = ["fresh_event"]  # a fixture


class Kept(Transport):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[tuple[str, Any]] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        for item in envelope.items:
            self.items.append((item.type or "", item.payload.json))

    @property
    def events(self) -> list[Any]:
        return [payload for type_, payload in self.items if type_ == "event"]

    def transactions(self, operation: str = "queue.task") -> list[Any]:
        payloads = [payload for type_, payload in self.items if type_ == "transaction"]
        return [payload for payload in payloads if payload["contexts"]["trace"]["op"] == operation]


@pytest.fixture
def sent() -> Iterator[Kept]:
    kept = Kept()
    sentry_sdk.init(dsn="http://key@localhost/1", transport=kept, traces_sample_rate=1.0)
    yield kept
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


@pytest.fixture
def reported(queue: Queue, sent: Kept) -> Queue:
    sentry.register(queue)
    jobs.queues[:] = [queue]
    return queue


def test_an_exception_is_captured_once_when_its_task_has_failed_for_good(reported: Queue, sent: Kept) -> None:
    with working(reported):
        ref = reported.options(max_retries=1, name="shop.fail", channel="mail").add_task(jobs.fail, "boom")
        wait_until(lambda: ref.state == "waiting")
        assert sent.events == []
        once_more(reported, ref)
        ended(ref, "failed")
        (event,) = wait_until(lambda: sent.events)
        assert wait_until(lambda: len(sent.transactions()) == 2)
    (exception,) = event["exception"]["values"]
    assert (exception["type"], exception["value"]) == ("ValueError", "boom")
    assert exception["mechanism"] == {"type": "queuedtask", "handled": False}
    assert exception["stacktrace"]["frames"][-1]["function"] == "fail"
    assert event["transaction"] == "shop.fail"
    assert (
        event["tags"]
        == {
            "queuedtask.id": ref.id,
            "queuedtask.name": "shop.fail",
            "queuedtask.channel": "mail",
            "queuedtask.attempt": "2",
        }
        or event["tags"]["queuedtask.attempt"] == 2
    )
    assert event["contexts"]["queuedtask"] == {
        "id": ref.id,
        "function": "observed_jobs:fail",
        "failures": 1,
        "lost": 0,
    }
    assert [each["contexts"]["trace"]["status"] for each in sent.transactions()] == ["internal_error"] * 2


def test_every_failure_is_captured_if_that_is_wanted_but_no_request_for_a_retry(queue: Queue, sent: Kept) -> None:
    sentry.register(queue, capture_retries=True)
    with working(queue):
        ref, other = queue.options(max_retries=1).add_task(jobs.fail_once), queue.add_task(jobs.ask_for_retry, 1)
        once_more(queue, ref)
        ended(ref)
        ended(other)
    assert [event["tags"]["queuedtask.id"] for event in sent.events] == [ref.id]


def test_to_ask_for_a_retry_or_for_an_end_is_no_error_but_the_last_retry_is(reported: Queue, sent: Kept) -> None:
    with working(reported):
        ended(reported.add_task(jobs.ask_for_retry, 1))
        ended(reported.add_task(jobs.cancel), "cancelled")
        assert sent.events == []
        ended(reported.options(max_retries=0).add_task(jobs.ask_for_retry, 5), "failed")
    assert [event["exception"]["values"][-1]["type"] for event in sent.events] == ["Retry"]
    statuses = [each["contexts"]["trace"]["status"] for each in sent.transactions()]
    assert sorted(statuses) == ["aborted", "internal_error", "internal_error", "ok"]


def test_a_timeout_is_captured_with_the_place_where_it_hit(reported: Queue, sent: Kept) -> None:
    with working(reported):
        ended(reported.options(max_retries=0, timeout=0.2).add_task(jobs.spin), "failed")
        (event,) = wait_until(lambda: sent.events)
        assert wait_until(sent.transactions)
    (exception,) = event["exception"]["values"]
    assert (exception["type"], exception["stacktrace"]["frames"][-1]["function"]) == ("TaskTimeout", "spin")
    assert sent.transactions()[0]["contexts"]["trace"]["status"] == "deadline_exceeded"


def test_an_attempt_that_is_given_up_is_captured_as_its_row_knows_it(reported: Queue, sent: Kept) -> None:
    with working(reported, timeout_grace=0.2) as manager:
        ref = reported.options(max_retries=0, timeout=0.2).add_task(jobs.block, 2.0)
        ended(ref, "failed")
        wait_until(lambda: not manager._pool.stuck)
    (event,) = [event for event in sent.events if "exception" in event]
    assert event["exception"]["values"][0]["type"] == "TaskTimeout"
    assert event["tags"]["queuedtask.id"] == ref.id
    assert "in block" in event["contexts"]["queuedtask"]["error_traceback"]


def test_a_lost_process_is_captured_when_it_was_the_last_one(reported: Queue, sent: Kept) -> None:
    with working(reported, max_lost=2):
        ref = reported.options(isolation="process").add_task(jobs.die)
        ended(ref, "failed", timeout=30)
        (event,) = wait_until(lambda: [event for event in sent.events if "exception" in event])
    assert event["exception"]["values"][0]["type"] == "WorkerLost"
    assert str(event["tags"]["queuedtask.attempt"]) == "2"


def test_a_function_that_is_not_there_is_captured(reported: Queue, sent: Kept) -> None:
    with working(reported):
        ended(reported.options(max_retries=0).add_task("observed_jobs:nothing"), "failed")
        (event,) = wait_until(lambda: sent.events)
    assert event["exception"]["values"][0]["type"] == "UnknownFunction"


def test_each_attempt_has_its_own_scope_and_breadcrumbs(queue: Queue, sent: Kept) -> None:
    @queue.around_run
    def leave_something_in_the_slot(task: Any) -> Iterator[None]:
        sentry_sdk.add_breadcrumb(category="shop", message="not of this task")
        yield

    sentry.register(queue)

    def crumble(word: str) -> None:
        logging.getLogger("shop").warning("crumb %s", word)
        sentry_sdk.set_tag("own", word)
        raise ValueError(word)

    jobs.crumble = crumble  # type: ignore[attr-defined]
    with working(queue, max_workers=1):
        for word in ("one", "two"):
            ended(queue.options(max_retries=0).add_task("observed_jobs:crumble", word), "failed")
    del jobs.crumble  # type: ignore[attr-defined]
    for event, word in zip(sent.events, ("one", "two"), strict=True):
        crumbs = [crumb["message"] for crumb in event["breadcrumbs"]["values"] if crumb["category"] == "shop"]
        assert (crumbs, event["tags"]["own"]) == ([f"crumb {word}"], word)
    assert "own" not in sentry_sdk.get_isolation_scope()._tags


def test_a_trace_goes_on_from_who_adds_the_task_into_it(reported: Queue, sent: Kept) -> None:
    with sentry_sdk.start_transaction(op="http.server", name="POST /orders") as request:
        ref = reported.options(name="shop.tell").add_task(jobs.tell)
    with working(reported):
        ended(ref)
        (transaction,) = wait_until(sent.transactions)
    (published,) = [span for span in sent.transactions("http.server")[0]["spans"] if span["op"] == "queue.publish"]
    trace = transaction["contexts"]["trace"]
    assert (trace["trace_id"], trace["parent_span_id"]) == (request.trace_id, published["span_id"])
    assert (transaction["transaction"], transaction["transaction_info"]) == ("shop.tell", {"source": "task"})
    assert trace["data"]["messaging.message.id"] == ref.id
    assert trace["origin"] == "auto.queue.queuedtask"


def test_ticks_of_a_schedule_have_traces_of_their_own(reported: Queue, sent: Kept) -> None:
    reported.cron("* * * * * *", name="every-second")(jobs.tell)
    with working(reported):
        wait_until(lambda: len(sent.transactions()) >= 2)
    first, second, *_ = (each["contexts"]["trace"] for each in sent.transactions())
    assert first["trace_id"] != second["trace_id"]


@pytest.mark.parametrize("meta", ['{"sentry": 5}', '{"sentry": {"sentry-trace": 5, "baggage": "%"}}', "[]"])
def test_a_row_with_rubbish_in_its_meta_runs(reported: Queue, sent: Kept, meta: str) -> None:
    ref = reported.options(delay=3600).add_task(jobs.tell)
    execute(
        str(reported.config.database_url),
        "UPDATE queued_tasks SET meta = %s, date_scheduled = now() WHERE id = %s RETURNING 1",
        (meta, ref.id),
    )
    with working(reported):
        ended(ref)
        assert wait_until(sent.transactions)


@pytest.mark.parametrize("is_wanted", [False, True])
def test_arguments_are_sent_only_when_the_application_says_so(queue: Queue, sent: Kept, is_wanted: bool) -> None:
    sentry.register(queue, send_arguments=is_wanted)
    with working(queue):
        ended(queue.options(max_retries=0).add_task(jobs.fail, "secret"), "failed")
        (event,) = wait_until(lambda: sent.events)
    assert event["contexts"]["queuedtask"].get("args") == ('["secret"]' if is_wanted else None)


@pytest.mark.parametrize("is_initialised", [False, True])
def test_without_an_address_nothing_is_different(
    queue: Queue, is_initialised: bool, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: sentry_sdk.get_global_scope().set_client(None))
    if is_initialised:
        sentry_sdk.init()
    sentry.register(queue)
    with working(queue):
        ref = ended(queue.options(max_retries=0).add_task(jobs.fail), "failed")
    assert ref.row().meta is None
    with pytest.raises(ValueError, match="reports to Sentry already"):
        sentry.register(queue)
