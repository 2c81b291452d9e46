"""The tasks and workers in Django's admin: to look at; tasks can be retried and cancelled there.

It is made for tables with a million rows: nothing counts them all, sorts them or asks for distinct values.
"""

import json
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.options import ShowFacets
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import Q
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from queuedtask.cli.output import redacted
from queuedtask.contrib.django.models import Task, TaskAttempt, TaskLog, Worker
from queuedtask.contrib.django.queues import the_queue
from queuedtask.db import reads
from queuedtask.errors import NotAllowed, TaskNotFound
from queuedtask.model import states
from queuedtask.refs import TaskRef

if TYPE_CHECKING:
    _Paginator = Paginator[Any]
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _Paginator, _ModelAdmin = Paginator, admin.ModelAdmin

COUNTED: Final = 10_000
"""Rows that are counted, and can be paged through; of more, an estimate is shown."""
SEARCHED: Final = 100_000
"""Of how many tasks, the newest, those are looked for that no index leads to: by name, channel, or how they ended."""
SAMPLE: Final = 1000
"""Of how many tasks the names and channels are offered as filters."""
MOST_AT_ONCE: Final = 1000
"""Tasks that one action changes."""
LINES: Final = 200
"""Log lines that are shown of a task."""
_LARGE: Final = ("args", "kwargs", "context", "result", "meta", "error_message", "error_traceback", "parents")


class BoundedPaginator(_Paginator):
    """Counts up to a limit, and offers no page beyond it: the last page of a million rows is the slowest one."""

    @cached_property
    def count(self) -> int:
        """Return how many rows there are, at most COUNTED."""
        rows: Any = self.object_list
        return int(rows.order_by()[:COUNTED].count())


class TaskList(ChangeList):
    """The list, without the columns that it does not show."""

    def __init__(self, request: HttpRequest, *given: Any, **more: Any) -> None:
        """Make it, and say about how many tasks there are where they were not counted."""
        super().__init__(request, *given, **more)
        if self.result_count >= COUNTED:
            found = f"more than {COUNTED:,} tasks"
            if not self.query and not self.has_active_filters:
                with the_queue().database.autocommit() as cursor:
                    found = f"about {max(reads.estimated_tasks(cursor), COUNTED):,} tasks"
            self.title = f"{found}; these are the newest {COUNTED:,}"
        if self.is_bounded:
            self.title = f"{self.title} (of the newest {SEARCHED:,} only)"

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> Any:
        """Return the tasks that fit; of the newest ones, where no index helps to find them."""
        found = super().get_queryset(request, exclude_parameters).defer(*_LARGE)
        self.is_bounded = False
        is_indexed = request.GET.get("state") in _BY_INDEX or _as_id(self.query) is not None
        if not is_indexed and (self.query or {"state", "channel", "name"} & set(request.GET)):
            bound = Task.objects.order_by("-id").values_list("pk", flat=True)[SEARCHED : SEARCHED + 1]
            for oldest in bound:
                self.is_bounded = True
                found = found.filter(pk__gt=oldest)
        return found


class _OfSample(admin.SimpleListFilter):
    """A filter whose values are those of the newest tasks; others may be given in the URL."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        newest = Task.objects.order_by("-id").values_list(str(self.parameter_name), flat=True)[:SAMPLE]
        return [(value, value) for value in sorted({*newest, *filter(None, [self.value()])})]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        value = self.value()
        if value is None:
            return queryset
        # PostgreSQL takes no NUL, and so has none.
        return queryset.none() if "\0" in value else queryset.filter(**{str(self.parameter_name): value})


class ChannelFilter(_OfSample):
    """By channel."""

    title = "channel"
    parameter_name = "channel"


class NameFilter(_OfSample):
    """By name."""

    title = "name"
    parameter_name = "name"


class StateFilter(admin.SimpleListFilter):
    """By state; where the state has an index, by that."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        """Return the states, in the order of a life."""
        return [(state, state) for state in states.STATES]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        """Return the tasks in the state."""
        state = self.value()
        return queryset if state is None else queryset.filter(_BY_INDEX.get(state, Q()), state=state)


_has_key = Q(concurrency_key__isnull=False)
_is_default = Q(channel="default")
# Spelt out so that the server sees that its partial indexes have all of them.
_BY_INDEX: Final = {
    states.WAITING: Q(pending_parents__lte=0) | Q(pending_parents__gt=0),
    states.ENQUEUED: _has_key | (~_has_key & _is_default) | (~_has_key & ~_is_default),
    states.DOING: Q(),
    states.FAILED: Q(),
}


def _as_id(text: str) -> UUID | None:
    try:
        return UUID(text.strip())
    except ValueError:
        return None


class _ToLookAt(_ModelAdmin):
    ordering = ("-id",)
    sortable_by = ()
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    paginator = BoundedPaginator
    list_per_page = 50
    list_max_show_all = 500

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Task)
class TaskAdmin(_ToLookAt):
    """The tasks, the newest first."""

    list_display = ("id", "name", "state", "channel", "priority", "attempt", "date_enqueued", "date_done", "error_type")
    list_filter = (StateFilter, ChannelFilter, NameFilter)
    search_fields = ("id", "name")  # shows the field; get_search_results says what is searched
    search_help_text = "A task's id, or the beginning of its name"
    actions = ("retry", "cancel")
    fields = (
        ("state", "name", "function"),
        "arguments",
        ("channel", "priority", "unique_key", "concurrency_key"),
        ("date_created", "date_enqueued", "date_scheduled", "date_started", "date_done"),
        ("attempt", "failures", "max_retries", "lost_count", "requeues", "timeout"),
        ("claimed_by", "cancel_requested", "stop_requested"),
        "parents_shown",
        "context_shown",
        "result_shown",
        "meta_shown",
        ("error_type", "error_message"),
        "traceback_shown",
        "attempts_shown",
        "logs_shown",
    )

    def get_changelist(self, request: HttpRequest, **given: Any) -> type[ChangeList]:
        """Return the class of the list."""
        return TaskList

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """Search by id, or by the beginning of a name."""
        term = search_term.strip()
        if not term:
            return queryset, False
        task_id = _as_id(term)
        return queryset.filter(name__startswith=term) if task_id is None else queryset.filter(pk=task_id), False

    def has_control_permission(self, request: HttpRequest) -> bool:
        """Tell whether somebody may retry and cancel: with the permission to change tasks."""
        return bool(request.user.has_perm("queuedtask.change_task"))  # type: ignore[union-attr]

    @admin.action(description="Retry selected tasks", permissions=["control"])
    def retry(self, request: HttpRequest, queryset: Any) -> None:
        """Send ended tasks round again."""
        self._control(request, queryset, TaskRef.retry, "sent round again")

    @admin.action(description="Cancel selected tasks", permissions=["control"])
    def cancel(self, request: HttpRequest, queryset: Any) -> None:
        """Call tasks off."""
        self._control(request, queryset, TaskRef.cancel, "cancelled, or told to end")

    def _control(self, request: HttpRequest, queryset: Any, do: Callable[[TaskRef], None], done: str) -> None:
        ids = [str(pk) for pk in queryset.order_by("id").values_list("pk", flat=True)[: MOST_AT_ONCE + 1]]
        if len(ids) > MOST_AT_ONCE:
            command = "`manage.py queuedtask` retries and cancels any number"
            messages.error(request, f"At most {MOST_AT_ONCE:,} tasks at once; {command}. Nothing was changed.")
            return
        count, refused = 0, ""
        for task_id in ids:
            try:
                do(TaskRef(the_queue(), task_id, created=False))
            except (NotAllowed, TaskNotFound) as error:
                refused = str(error)
            else:
                count += 1
        if count:
            messages.success(request, f"{count} {'task was' if count == 1 else 'tasks were'} {done}.")
        if refused:
            messages.warning(request, f"{len(ids) - count} could not be, for example: {refused}")

    # ------------------------------------------------------------------------------------------------------ the details

    @admin.display(description="arguments")
    def arguments(self, task: Task) -> SafeString:
        """Show what the function gets, with what QUEUE_REDACT names masked."""
        return _json({"args": task.args, "kwargs": redacted(task.kwargs, the_queue().config.redact)})

    @admin.display(description="parents")
    def parents_shown(self, task: Task) -> SafeString:
        """Show the tasks that it waits or waited for."""
        return format_html_join(
            ", ",
            '<a href="{}">{}</a>',
            ((reverse("admin:queuedtask_task_change", args=[pk]), pk) for pk in task.parents),
        )

    @admin.display(description="context")
    def context_shown(self, task: Task) -> SafeString:
        """Show the context."""
        return _json(task.context)

    @admin.display(description="result")
    def result_shown(self, task: Task) -> SafeString:
        """Show the result."""
        return _json(task.result)

    @admin.display(description="meta")
    def meta_shown(self, task: Task) -> SafeString:
        """Show what else was given."""
        return _json(task.meta)

    @admin.display(description="traceback")
    def traceback_shown(self, task: Task) -> SafeString:
        """Show the last error's traceback."""
        return _text(task.error_traceback)

    @admin.display(description="unsuccessful attempts")
    def attempts_shown(self, task: Task) -> SafeString:
        """Show the attempts that failed or were lost."""
        rows = TaskAttempt.objects.filter(task=task).order_by("attempt")[:LINES]
        return _table(
            ("attempt", "outcome", "worker", "began", "ended", "error", "traceback"),
            (
                (
                    row.attempt,
                    row.outcome,
                    row.worker or "",
                    row.date_started or "",
                    row.date_done,
                    ": ".join(filter(None, (row.error_type, row.error_message))),
                    _text(row.error_traceback),
                )
                for row in rows
            ),
        )

    @admin.display(description=f"log (the last {LINES} lines)")
    def logs_shown(self, task: Task) -> SafeString:
        """Show what it has logged."""
        rows = reversed(TaskLog.objects.filter(task=task).order_by("-id")[:LINES])
        return _table(
            ("time", "attempt", "type", "logger", "message"),
            ((row.date_created, row.attempt or "", row.type, row.name or "", _text(row.message)) for row in rows),
        )


@admin.register(Worker)
class WorkerAdmin(_ToLookAt):
    """The workers' starts, the latest first."""

    list_display = (
        "id",
        "server_name",
        "pid",
        "is_running",
        "max_workers",
        "active_workers",
        "last_heartbeat",
        "date_started",
        "version",
    )
    list_filter = ("is_running",)
    fields = (*list_display, "supervisor_pid", "idle_workers", "lease", "refused", "stuck")


def _json(value: object) -> SafeString:
    return mark_safe("") if value is None else _text(json.dumps(value, indent=2, ensure_ascii=False))


def _text(text: str | None) -> SafeString:
    return format_html('<pre style="margin: 0; white-space: pre-wrap">{}</pre>', text) if text else mark_safe("")


def _table(heads: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> SafeString:
    body = format_html_join("", "<tr>{}</tr>", ((_cells("td", row),) for row in rows))
    return format_html("<table><tr>{}</tr>{}</table>", _cells("th", heads), body) if body else mark_safe("none")


def _cells(kind: str, values: Iterable[object]) -> SafeString:
    return format_html_join("", f"<{kind}>{{}}</{kind}>", ((value,) for value in values))
