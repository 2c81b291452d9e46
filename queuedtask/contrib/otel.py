"""OpenTelemetry: a trace goes from the code that adds a task through its row into every attempt.

Needs the extra ``opentelemetry``, which is the API alone; without an SDK that your application sets up, nothing is
recorded. What goes into the row's ``meta`` is what the propagator writes, ``traceparent`` with the usual one.
"""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Final

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.propagate import extract, inject
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Link, ProxyTracerProvider, Span, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.util.types import AttributeValue

from queuedtask import __version__
from queuedtask.errors import Retry
from queuedtask.model import codec
from queuedtask.model.outcome import Outcome
from queuedtask.model.task import Task
from queuedtask.refs import TaskRef
from queuedtask.run.attempt import Attempt, current_attempt
from queuedtask.run.hooks import NewTask, Settled, TaskView
from queuedtask.taskqueue import Queue

SYSTEM: Final = "queuedtask"
BEFORE: Final = "opentelemetry"
"""The key in a task's context with the span of the attempt before, for the link of the next one."""
SCHEDULED: Final = "trace_root"
"""The key in ``meta`` that says that each attempt is to begin a trace of its own."""
FLUSH_LIMIT: Final = 2000
"""Milliseconds that a process which runs one task alone takes to hand its spans over; it may be killed at any time."""


def instrument(queue: Queue, tracer_provider: TracerProvider | None = None, *, new_traces: bool = False) -> None:
    """Make spans round adding a queue's tasks and round each attempt. Raises ValueError for a second call.

    It has to be called where tasks are added, and for the Queue that the worker is given with ``-a`` or ``QUEUE_APP``.
    Without a provider it is the global one, which may be set later.

    The span of an attempt is a child of the span that added the task; with ``new_traces`` it begins a trace of its own,
    linked to that span. So it does for the task of a schedule. An attempt after the first one is linked to the one
    before.
    """
    if queue.hooks.settler(_Spans) is not None:
        raise ValueError("instrument(): this queue has its spans already")
    tracer = trace.get_tracer("queuedtask", __version__, tracer_provider)
    spans = _Spans(tracer, tracer_provider, new_traces=new_traces)
    queue.hooks.add("around_create", spans.create)
    queue.hooks.add("around_run", spans.run)
    queue.hooks.add("on_settle", spans.settle)


class _Spans:
    """The hooks of one queue."""

    def __init__(self, tracer: trace.Tracer, provider: TracerProvider | None, *, new_traces: bool) -> None:
        self._tracer = tracer
        self._provider = provider
        self._new_traces = new_traces
        # Those of attempts that run, by id and attempt. Whoever takes one out ends it: its hook, or the worker for one
        # that is given up.
        self._running: dict[tuple[str, int], Span] = {}

    def create(self, spec: NewTask) -> Generator[None, object, None]:
        attributes = _attributes(spec.id, spec.name, spec.function, spec.channel, "create")
        with self._tracer.start_as_current_span(
            f"create {spec.name}", kind=SpanKind.PRODUCER, attributes=attributes
        ) as span:
            carrier: dict[str, Any] = {}
            inject(carrier)
            if carrier:
                if spec.is_scheduled:
                    carrier[SCHEDULED] = True
                spec.add_meta(carrier)
            ref = yield
            # In a batch it turns out later, and asking for it would write the batch.
            if type(ref) is TaskRef and not ref.created:
                span.set_attributes({"queuedtask.task.created": False, "messaging.message.id": ref.id})

    def run(self, task: TaskView) -> Iterator[None]:
        if self._provider is None and not task.meta and isinstance(trace.get_tracer_provider(), ProxyTracerProvider):
            yield  # without an SDK, and without the trace of somebody who has one, there is nothing to do
            return
        attempt = current_attempt()
        assert attempt is not None
        span: Span = trace.INVALID_SPAN
        token = error = None
        try:
            with attempt.guard.hold():
                span, parent = self._start(attempt.task, task.meta)
                if span.get_span_context().is_valid:
                    self._running[attempt.task.key] = span
                    token = context.attach(trace.set_span_in_context(span, parent))
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            if token is not None:
                context.detach(token)
                if self._running.pop(attempt.task.key, None) is not None:
                    self._end(span, attempt, error)

    def settle(self, settled: Sequence[Settled]) -> None:
        """End the spans of attempts whose hooks cannot do so any more."""
        for each in settled:
            if not each.is_unattended:
                continue
            ended = each.decision.outcome
            span = self._running.pop(each.task.key, None)
            if span is None:
                if not each.decision.leaves_row:
                    continue
                # Its process has taken its span along, or its function could not be found.
                began = time.time_ns() - int((each.seconds or 0.0) * 1e9)
                span, _ = self._start(each.task, _document(each.task.meta), began)
            _fail(span, each.decision.ending, ended)
            span.end()

    def _start(self, task: Task, meta: Mapping[str, Any], start_time: int | None = None) -> tuple[Span, Context]:
        parent = extract(meta, Context(), _GETTER) if meta else Context()
        links = []
        if self._new_traces or SCHEDULED in meta:
            links += _links(parent)
            # What else has come along, such as baggage, stays.
            parent = trace.set_span_in_context(trace.INVALID_SPAN, parent)
        if task.attempt > 1:
            before = _document(task.context).get(BEFORE)
            if isinstance(before, dict):
                links += _links(extract(before, Context(), _GETTER))
        name = task.name or task.function
        attributes = _attributes(task.id, name, task.function, task.channel, "process")
        attributes["queuedtask.task.attempt"] = task.attempt
        span = self._tracer.start_span(
            f"process {name}",
            parent,
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=links,
            start_time=start_time,
        )
        return span, parent

    def _end(self, span: Span, attempt: Attempt, error: BaseException | None) -> None:
        decision = attempt.decision
        # Not known yet when it was interrupted on its way in.
        ending = "interrupted" if decision is None else decision.ending
        is_failure = decision is None or decision.leaves_row
        if error is not None and is_failure and not (isinstance(error, Retry) and ending == "retried"):
            span.record_exception(error)
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        span.set_attribute("queuedtask.task.outcome", ending)
        span.end()
        if ending not in ("done", "cancelled") and span.get_span_context().trace_flags.sampled:
            # For the link of the next attempt. It is written with the end of this one.
            carrier: dict[str, str] = {}
            inject(carrier, trace.set_span_in_context(span, Context()))
            attempt.context.set(BEFORE, carrier, auto_commit=False)
        if attempt.runs_alone:
            flush = getattr(self._provider or trace.get_tracer_provider(), "force_flush", None)
            if flush is not None:
                flush(FLUSH_LIMIT)


class _MetaGetter(Getter[Mapping[str, Any]]):
    """Reads what a propagator has written; a row that was written by hand may hold anything."""

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        value = carrier.get(key)
        return [value] if isinstance(value, str) else None

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        return list(carrier)


_GETTER: Final = _MetaGetter()


def _attributes(task_id: str, name: str, function: str, channel: str, operation: str) -> dict[str, AttributeValue]:
    """Return what the conventions for messaging want, and the task's name."""
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.type": operation,
        "messaging.operation.name": operation,
        "messaging.destination.name": channel,
        "messaging.message.id": task_id,
        "code.function.name": function.replace(":", "."),
        "queuedtask.task.name": name,
    }


def _links(found: Context) -> list[Link]:
    span_context = trace.get_current_span(found).get_span_context()
    return [Link(span_context)] if span_context.is_valid else []


def _fail(span: Span, ending: str, ended: Outcome) -> None:
    span.set_attribute("queuedtask.task.outcome", ending)
    if ended.error_type is not None:
        span.set_attribute("error.type", ended.error_type)
        attributes = {
            "exception.type": ended.error_type,
            "exception.message": ended.error_message or "",
            "exception.stacktrace": ended.error_traceback or "",
        }
        span.add_event("exception", attributes)
        span.set_status(Status(StatusCode.ERROR, f"{ended.error_type}: {ended.error_message}"))


def _document(text: str | None) -> Mapping[str, Any]:
    try:
        document = codec.decode(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
