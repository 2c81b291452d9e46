"""Sentry: what makes a task fail, with the task it was, and a transaction for each attempt.

Needs the extra ``sentry`` and a ``sentry_sdk.init(…)`` of your application's, in the worker as well.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import sentry_sdk
from sentry_sdk.utils import event_from_exception

from queuedtask.errors import Retry
from queuedtask.model import outcome, states
from queuedtask.model.options import reserved
from queuedtask.model.outcome import Decision
from queuedtask.model.task import Task
from queuedtask.run.attempt import current_attempt
from queuedtask.run.hooks import NewTask, Settled, TaskView
from queuedtask.taskqueue import Queue

if TYPE_CHECKING:
    from sentry_sdk.scope import Scope

ORIGIN: Final = "auto.queue.queuedtask"
META: Final = "sentry"
"""The key in ``meta`` with the headers that continue a trace."""
FLUSH_LIMIT: Final = 2.0
"""Seconds that a process which runs one task alone takes to hand over what it has; it may be killed at any time."""
_MECHANISM: Final = {"type": "queuedtask", "handled": False}
_STATUS: Final = {"done": "ok", "retried": "internal_error", "failed": "internal_error"}


def register(queue: Queue, *, capture_retries: bool = False, send_arguments: bool = False) -> None:
    """Report a queue's tasks to Sentry. Raises ValueError for a second call.

    It has to be called where tasks are added, and for the Queue that the worker is given with ``-a`` or ``QUEUE_APP``.

    An exception is captured when its task has failed for good; with ``capture_retries`` also when it will be tried
    again. ``Retry`` and ``Cancel`` are not errors, except a ``Retry`` for which no retry is left. With
    ``send_arguments`` events show what the task was called with.
    """
    if queue.hooks.settler(_Reports) is not None:
        raise ValueError("register(): this queue reports to Sentry already")
    reports = _Reports(capture_retries, send_arguments)
    queue.hooks.add("around_create", reports.create)
    queue.hooks.add("around_run", reports.run)
    queue.hooks.add("on_settle", reports.settle)


class _Reports:
    """The hooks of one queue."""

    def __init__(self, capture_retries: bool, send_arguments: bool) -> None:
        self._capture_retries = capture_retries
        self._send_arguments = send_arguments

    def create(self, spec: NewTask) -> Generator[None, object, None]:
        has_span = sentry_sdk.get_current_span() is not None
        # Outside any span the ticks of a schedule would all belong to one trace, that of the worker.
        if not _is_on() or (spec.is_scheduled and not has_span):
            yield
            return
        with ExitStack() as stack:
            if has_span:
                span = stack.enter_context(sentry_sdk.start_span(op="queue.publish", name=spec.name, origin=ORIGIN))
                span.set_data("messaging.destination.name", spec.channel)
                span.set_data("messaging.message.id", spec.id)
            headers = {"sentry-trace": sentry_sdk.get_traceparent(), "baggage": sentry_sdk.get_baggage()}
            spec.add_meta({META: {name: value for name, value in headers.items() if value}})
            yield

    def run(self, task: TaskView) -> Iterator[None]:
        if not _is_on():
            yield
            return
        attempt, error = current_attempt(), None
        assert attempt is not None
        with ExitStack() as stack:
            try:
                with attempt.guard.hold():
                    scope = stack.enter_context(sentry_sdk.isolation_scope())
                    self._describe(scope, attempt.task)
                    transaction = sentry_sdk.continue_trace(
                        _headers(attempt.task), op="queue.task", name=task.name, source="task", origin=ORIGIN
                    )
                    sampling = {"queuedtask": {"name": task.name, "channel": task.channel, "attempt": task.attempt}}
                    span = stack.enter_context(
                        sentry_sdk.start_transaction(transaction, custom_sampling_context=sampling)
                    )
                    span.set_data("messaging.destination.name", task.channel)
                    span.set_data("messaging.message.id", task.id)
                    span.set_data("messaging.message.retry.count", task.failures)
            except BaseException:
                # Interrupted on its way in; nobody knows yet what becomes of it.
                attempt.is_unattended = True
                raise
            try:
                yield
            except BaseException as raised:
                error = raised
            decision = attempt.decision
            if decision is not None:
                is_timeout = decision.outcome.kind == outcome.TIMED_OUT
                span.set_status("deadline_exceeded" if is_timeout else _STATUS.get(decision.ending, "aborted"))
            # What was given up, and comes to an end after all, has been reported by then.
            if error is not None and not attempt.is_given_up and self._is_captured(decision, error):
                event, hint = event_from_exception(
                    error, client_options=sentry_sdk.get_client().options, mechanism=dict(_MECHANISM)
                )
                sentry_sdk.capture_event(event, hint=hint)
        if attempt.runs_alone:
            sentry_sdk.flush(FLUSH_LIMIT)

    def settle(self, settled: Sequence[Settled]) -> None:
        """Report attempts whose hooks cannot do so any more, as far as the row knows of their error."""
        for each in settled:
            if each.is_unattended and _is_on() and self._is_captured(each.decision):
                ended = each.decision.outcome
                with sentry_sdk.isolation_scope() as scope:
                    self._describe(scope, each.task, error_traceback=ended.error_traceback)
                    sentry_sdk.continue_trace(_headers(each.task))
                    value = {"type": ended.error_type, "value": ended.error_message, "mechanism": dict(_MECHANISM)}
                    sentry_sdk.capture_event({"level": "error", "exception": {"values": [value]}})

    def _describe(self, scope: "Scope", task: Task, **more: str | None) -> None:
        name = task.name or task.function
        scope.clear_breadcrumbs()
        scope.set_transaction_name(name, source="task")
        scope.set_tag("queuedtask.id", task.id)
        scope.set_tag("queuedtask.name", name)
        scope.set_tag("queuedtask.channel", task.channel)
        scope.set_tag("queuedtask.attempt", task.attempt)
        known = {"id": task.id, "function": task.function, "failures": task.failures, "lost": task.lost_count}
        if self._send_arguments:
            known |= {"args": task.args, "kwargs": task.kwargs}
        scope.set_context("queuedtask", known | {key: value for key, value in more.items() if value is not None})

    def _is_captured(self, decision: Decision | None, error: BaseException | None = None) -> bool:
        if decision is None or not decision.leaves_row:
            return False
        is_final = decision.edge in (states.FAIL, states.LOSE)
        return is_final or (self._capture_retries and not isinstance(error, Retry))


def _is_on() -> bool:
    """Tell whether the SDK was initialised, and sends anything."""
    return sentry_sdk.get_client().transport is not None


def _headers(task: Task) -> dict[str, Any]:
    """Return what continues the trace of whoever has added a task; the row may have been written by hand."""
    headers = reserved(task.meta, META)
    if not isinstance(headers, dict):
        return {}
    return {name: value for name, value in headers.items() if isinstance(value, str)}
