"""Traces: from the code that adds a task through its row into each attempt, in threads, coroutines and processes."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from helpers import execute, wait_until
from queuedtask import InvalidTask, Queue, TaskRef
from queuedtask.contrib import otel

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
import observed_jobs as jobs
from inside import FINAL, ended, fresh_event, working
from trees import tree

__all__ = ["fresh_event"]  # a fixture


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    provider.shutdown()


@pytest.fixture
def traced(queue: Queue, provider: TracerProvider) -> Queue:
    otel.instrument(queue, provider)
    jobs.queues[:] = [queue]
    return queue


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Callable[..., list[ReadableSpan]]:
    """Return what waits for so many spans of a kind of a task and gives them in their order."""

    def find(ref: TaskRef | None, operation: str, count: int = 1) -> list[ReadableSpan]:
        def found() -> list[ReadableSpan]:
            all_ = [
                span
                for span in exporter.get_finished_spans()
                if (span.attributes or {}).get("messaging.operation.type") == operation
                and (ref is None or (span.attributes or {}).get("messaging.message.id") == ref.id)
            ]
            return sorted(all_, key=lambda span: span.start_time or 0)

        wait_until(lambda: len(found()) >= count, message=f"{count} spans of {ref}")
        assert len(found()) == count
        return found()

    return find


def once_more(queue: Queue, ref: TaskRef) -> None:
    """Let a task that waits for its next attempt have it now."""
    wait_until(lambda: ref.state == "waiting")
    execute(
        str(queue.config.database_url),
        "UPDATE queued_tasks SET date_scheduled = now() WHERE id = %s RETURNING pg_notify('queue_new_task', '')",
        (ref.id,),
    )


Spans = Callable[..., list[ReadableSpan]]


def hex_of(span: ReadableSpan) -> str:
    return format(span.context.span_id, "016x")


def test_an_attempt_is_a_child_of_the_span_that_added_its_task(
    traced: Queue, provider: TracerProvider, spans: Spans
) -> None:
    with provider.get_tracer("test").start_as_current_span("request") as request:
        ref = traced.options(channel="mail", name="shop.tell").add_task(jobs.tell)
    with working(traced):
        ended(ref)
        (create,), (process,) = spans(ref, "create"), spans(ref, "process")
    assert (create.name, create.kind) == ("create shop.tell", SpanKind.PRODUCER)
    assert (process.name, process.kind) == ("process shop.tell", SpanKind.CONSUMER)
    assert create.parent is not None
    assert create.parent.span_id == request.get_span_context().span_id
    assert process.parent is not None
    assert process.parent.span_id == create.context.span_id
    assert process.context.trace_id == request.get_span_context().trace_id
    assert process.links == ()
    assert process.status.status_code is StatusCode.UNSET
    assert dict(process.attributes or {}) == {
        "messaging.system": "queuedtask",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "mail",
        "messaging.message.id": ref.id,
        "code.function.name": "observed_jobs.tell",
        "queuedtask.task.name": "shop.tell",
        "queuedtask.task.attempt": 1,
        "queuedtask.task.outcome": "done",
    }
    assert ref.result == hex_of(process)
    meta = json.loads(ref.row().meta or "")
    assert list(meta) == ["traceparent"]
    assert meta["traceparent"].startswith(f"00-{request.get_span_context().trace_id:032x}-{hex_of(create)}-0")


def test_the_span_is_there_in_coroutines_and_in_threads_that_join(traced: Queue, spans: Spans) -> None:
    with working(traced):
        in_coroutine, in_threads = traced.add_task(jobs.tell_async), traced.add_task(jobs.tell_from_threads)
        assert ended(in_coroutine).result == hex_of(spans(in_coroutine, "process")[0])
        span = hex_of(spans(in_threads, "process")[0])
        assert ended(in_threads).result == [span, span, "0" * 16]


def test_a_task_that_a_task_adds_belongs_to_its_trace(traced: Queue, spans: Spans) -> None:
    with working(traced):
        first = ended(traced.add_task(jobs.hand_on))
        second = ended(traced.get(first.result))
        (create,), (process,) = spans(second, "create"), spans(first, "process")
        assert create.parent is not None
        assert create.parent.span_id == process.context.span_id
        assert spans(second, "process")[0].context.trace_id == process.context.trace_id


def test_what_fails_is_an_error_and_the_next_attempt_is_linked_to_it(traced: Queue, spans: Spans) -> None:
    with working(traced):
        ref = traced.options(max_retries=1).add_task(jobs.fail_once)
        once_more(traced, ref)
        assert ended(ref).result == 2
        first, second = spans(ref, "process", 2)
    assert first.status.status_code is StatusCode.ERROR
    assert first.status.description == "ValueError: not the first time"
    assert [event.name for event in first.events] == ["exception"]
    assert "in fail_once" in str((first.events[0].attributes or {})["exception.stacktrace"])
    assert first.attributes is not None
    assert second.attributes is not None
    assert (first.attributes["queuedtask.task.outcome"], first.attributes["error.type"]) == ("retried", "ValueError")
    assert (second.attributes["queuedtask.task.attempt"], second.status.status_code) == (2, StatusCode.UNSET)
    assert [link.context.span_id for link in second.links] == [first.context.span_id]
    assert second.context.trace_id == first.context.trace_id
    assert second.parent == first.parent


def test_to_ask_for_a_retry_or_for_an_end_is_no_error(traced: Queue, spans: Spans) -> None:
    with working(traced):
        again, away = traced.add_task(jobs.ask_for_retry, 1), traced.add_task(jobs.cancel)
        ended(again)
        ended(away, "cancelled")
        found = [*spans(again, "process", 2), *spans(away, "process")]
    assert [(span.status.status_code, span.events) for span in found] == [(StatusCode.UNSET, ())] * 3
    assert [(span.attributes or {})["queuedtask.task.outcome"] for span in found] == ["retried", "done", "cancelled"]
    assert len(found[1].links) == 1


def test_a_retry_for_which_none_is_left_is_an_error(traced: Queue, spans: Spans) -> None:
    with working(traced):
        ref = traced.options(max_retries=0).add_task(jobs.ask_for_retry, 5)
        ended(ref, "failed")
        assert spans(ref, "process")[0].status.description == "Retry: not yet"


def test_what_times_out_is_an_error(traced: Queue, spans: Spans) -> None:
    with working(traced):
        ref = traced.options(max_retries=0, timeout=0.2).add_task(jobs.spin)
        ended(ref, "failed")
        (span,) = spans(ref, "process")
    assert (span.attributes or {})["error.type"] == "TaskTimeout"
    assert span.status.status_code is StatusCode.ERROR


def test_the_span_of_an_attempt_that_is_given_up_ends_there_and_not_when_its_thread_comes_back(
    traced: Queue, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    with working(traced, timeout_grace=0.2) as manager:
        ref = traced.options(max_retries=0, timeout=0.2).add_task(jobs.block, 3.0)
        ended(ref, "failed")
        wait_until(lambda: not manager._pool.stuck)
        (span,) = spans(ref, "process")
    assert span.end_time is not None
    assert span.start_time is not None
    assert (span.end_time - span.start_time) / 1e9 < 2.5
    assert (span.attributes or {})["error.type"] == "TaskTimeout"
    assert "in block" in str((span.events[0].attributes or {})["exception.stacktrace"])
    assert "ended span" not in caplog.text


def test_an_attempt_that_takes_its_process_along_has_a_span_all_the_same(traced: Queue, spans: Spans) -> None:
    with working(traced, max_lost=1):
        ref = traced.options(isolation="process").add_task(jobs.die)
        ended(ref, "failed", timeout=30)
        (span,), (create,) = spans(ref, "process"), spans(ref, "create")
    assert (span.attributes or {})["error.type"] == "WorkerLost"
    assert span.parent is not None
    assert span.parent.span_id == create.context.span_id
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time > span.start_time


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_function_that_is_not_there_is_an_error_with_a_span(traced: Queue, spans: Spans, isolation: str) -> None:
    with working(traced):
        ref = traced.options(max_retries=0, isolation=isolation).add_task("observed_jobs:nothing")
        ended(ref, "failed", timeout=30)
        (span,) = spans(ref, "process")
    assert span.status.status_code is StatusCode.ERROR


def test_attempts_begin_traces_of_their_own_if_that_is_wanted(
    queue: Queue, provider: TracerProvider, spans: Spans
) -> None:
    otel.instrument(queue, provider, new_traces=True)
    with working(queue):
        ref = ended(queue.add_task(jobs.tell))
        (create,), (process,) = spans(ref, "create"), spans(ref, "process")
    assert process.parent is None
    assert process.context.trace_id != create.context.trace_id
    assert [link.context.span_id for link in process.links] == [create.context.span_id]


def test_the_task_of_a_schedule_begins_a_trace_of_its_own_linked_to_its_tick(traced: Queue, spans: Spans) -> None:
    traced.cron("* * * * * *", name="every-second")(jobs.tell)
    with working(traced):
        first, *_ = wait_until(lambda: traced.find(name="every-second", state="done"))
        (create,), (process,) = spans(first, "create"), spans(first, "process")
    assert create.parent is None
    assert process.parent is None
    assert [link.context.span_id for link in process.links] == [create.context.span_id]


def test_a_schedule_that_somebody_runs_is_linked_to_his_span(
    traced: Queue, provider: TracerProvider, spans: Spans
) -> None:
    traced.cron("0 0 1 1 *", name="yearly")(jobs.tell)
    with provider.get_tracer("test").start_as_current_span("request") as request:
        ref = traced.run_schedule("yearly")
    with working(traced):
        ended(ref)
        (create,), (process,) = spans(ref, "create"), spans(ref, "process")
    assert create.context.trace_id == request.get_span_context().trace_id
    assert process.parent is None
    assert [link.context.span_id for link in process.links] == [create.context.span_id]


def test_each_task_of_a_batch_has_its_own_span(traced: Queue, spans: Spans) -> None:
    with traced.batch() as batch:
        refs = [batch.add_task(jobs.tell, n) for n in range(3)]
        keyed = batch.options(unique_key="k").add_task(jobs.tell)
    assert len({hex_of(spans(ref, "create")[0]) for ref in [*refs, keyed]}) == 4
    assert keyed.created
    with working(traced):
        for ref in [*refs, keyed]:
            ended(ref)
            (process,), (create,) = spans(ref, "process"), spans(ref, "create")
            assert process.parent is not None
            assert process.parent.span_id == create.context.span_id


def test_a_call_that_makes_no_task_says_so(traced: Queue, spans: Spans) -> None:
    first = traced.options(unique_key="k").add_task(jobs.tell)
    assert not traced.options(unique_key="k").add_task(jobs.tell).created
    made, found = spans(first, "create", 2)
    assert "queuedtask.task.created" not in (made.attributes or {})
    assert (found.attributes or {})["queuedtask.task.created"] is False


def test_a_call_that_is_refused_is_an_error_and_reaches_the_caller(traced: Queue, spans: Spans) -> None:
    with pytest.raises(InvalidTask, match="needs a delay"):
        traced.options(unique_key="k", on_conflict="debounce").add_task(jobs.tell)
    assert spans(None, "create")[0].status.status_code is StatusCode.ERROR
    assert traced.find() == []


def test_other_hooks_see_and_keep_what_they_are_to(traced: Queue, spans: Spans) -> None:
    @traced.on_pre_create
    def change(spec: Any) -> None:
        spec.name, spec.channel, spec.meta = "renamed", "mail", {"mine": 1}

    ref = traced.options(meta={"given": 1}).add_task(jobs.tell)
    (create,) = spans(ref, "create")
    assert (create.name, (create.attributes or {})["messaging.destination.name"]) == ("create renamed", "mail")
    assert sorted(json.loads(ref.row().meta or "")) == ["mine", "traceparent"]


@pytest.mark.parametrize(
    "meta", ['{"traceparent": 5}', '{"traceparent": "00-zz"}', '["traceparent"]', '"text"', '{"tracestate": [[]]}']
)
def test_a_row_with_rubbish_in_its_meta_runs_in_a_new_trace(traced: Queue, spans: Spans, meta: str) -> None:
    ref = traced.options(delay=3600).add_task(jobs.tell)
    execute(
        str(traced.config.database_url),
        "UPDATE queued_tasks SET meta = %s, context = '[1]', attempt = 1, date_scheduled = now() WHERE id = %s "
        "RETURNING 1",
        (meta, ref.id),
    )
    with working(traced):
        ended(ref)
        assert spans(ref, "process")[0].parent is None


def test_without_an_sdk_nothing_is_written_and_nothing_is_different(queue: Queue) -> None:
    otel.instrument(queue)
    with working(queue):
        ref = ended(queue.add_task(jobs.tell))
    assert (ref.result, ref.row().meta, ref.context) == ("0" * 16, None, {})


def test_without_an_sdk_the_trace_of_others_is_handed_on(queue: Queue) -> None:
    otel.instrument(queue)
    jobs.queues[:] = [queue]
    traceparent = f"00-{1:032x}-{2:016x}-01"
    with working(queue):
        ref = ended(queue.options(meta={"traceparent": traceparent}).add_task(jobs.hand_on))
        assert json.loads(queue.get(ref.result).row().meta or "") == {"traceparent": traceparent}


def test_a_queue_is_instrumented_once(traced: Queue) -> None:
    with pytest.raises(ValueError, match="has its spans already"):
        otel.instrument(traced)


def test_an_exporter_that_raises_stops_no_task(queue: Queue) -> None:
    class Broken(TracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
            class Tracer:
                def __getattr__(self, name: str) -> Any:
                    raise RuntimeError("no tracer")

            return Tracer()

    otel.instrument(queue, Broken())
    with working(queue):
        assert ended(queue.add_task(jobs.tell)).result == "0" * 16


# ------------------------------------------------------------------------------------------------- a view and a process


def test_a_trace_goes_from_a_flask_view_through_the_row_into_the_task(
    traced: Queue, provider: TracerProvider, spans: Spans
) -> None:
    client = flask_client(traced, provider)
    with working(traced):
        said = client.post("/orders/7").get_json()
        ref = ended(traced.get(said["task"]))
        (process,) = spans(ref, "process")
    assert said["trace"] in json.loads(ref.row().meta or "")["traceparent"]
    assert format(process.context.trace_id, "032x") == said["trace"]


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_the_same_with_a_worker_of_its_own(
    traced: Queue, provider: TracerProvider, spans: Spans, tmp_path: Path, isolation: str, monkeypatch: Any
) -> None:
    client = flask_client(traced, provider)
    file = tmp_path / "spans"
    monkeypatch.setenv("SPANS", str(file))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with tree(str(traced.config.database_url), "-a", "observed_app:queue", "-w", "2") as running:
        said = client.post(f"/orders/7?isolation={isolation}").get_json()
        ref = traced.get(said["task"])
        wait_until(lambda: ref.state in FINAL, 30)
        assert ref.state == "done"
        if isolation == "thread":
            # What a batch of spans waits for goes out at the end of the process.
            assert running.stop() == 0
        lines = [json.loads(line) for line in file.read_text().splitlines()]
    (process,) = [line for line in lines if line["attributes"]["messaging.message.id"] == ref.id]
    assert process["context"]["trace_id"] == f"0x{said['trace']}"
    assert process["parent_id"] == f"0x{hex_of(spans(ref, 'create')[0])}"
    assert process["context"]["span_id"] == f"0x{ref.result}"


def flask_client(queue: Queue, provider: TracerProvider) -> Any:
    """Return a client of an application whose view has a server span round it, as instrumentations make it."""
    from flask import Flask, request

    app = Flask(__name__)
    tracer = provider.get_tracer("flask")

    @app.post("/orders/<int:order>")
    def place(order: int) -> dict[str, str]:
        with tracer.start_as_current_span("POST /orders", kind=SpanKind.SERVER) as span:
            options = {"isolation": request.args["isolation"]} if "isolation" in request.args else {}
            ref = queue.options(**options).add_task(jobs.tell, order)  # type: ignore[arg-type]
            return {"task": ref.id, "trace": format(span.get_span_context().trace_id, "032x")}

    return app.test_client()
