"""Views of our tables for the ORM and the admin: to be read, not written.

Tasks are added with ``queue.add_task`` and changed with a ref's methods; what is saved past these would break the
promises that hang on a row (the life cycle, the families, the wake-up of the workers).
"""

# The types of the fields come from a plugin of django-stubs that needs a project.
# mypy: disable-error-code="var-annotated"

import json
from typing import TYPE_CHECKING, Any, NoReturn

from django.db import models

from queuedtask.contrib.django import conf
from queuedtask.errors import NotAllowed
from queuedtask.model import states

if TYPE_CHECKING:
    _Field = models.Field[Any, Any]
else:
    _Field = models.Field


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise NotAllowed(
        "queuedtask's models are for reading: use queue.add_task(), and cancel(), stop() and retry() of queue.get(id)"
    )


class ReadOnlyQuerySet(models.QuerySet[Any]):
    """Refuses what writes."""

    create = acreate = bulk_create = abulk_create = bulk_update = abulk_update = _refuse
    get_or_create = aget_or_create = update_or_create = aupdate_or_create = _refuse
    update = aupdate = delete = adelete = _raw_delete = _refuse


class ReadOnlyManager(models.Manager[Any]):
    """Asks the database that the queue is in."""

    def get_queryset(self) -> ReadOnlyQuerySet:
        """Return all rows."""
        return ReadOnlyQuerySet(self.model, using=self._db or conf.given().alias)


class StoredJSON(models.JSONField):
    """JSON as we store it; what Python cannot read, as a row that was written by hand may hold, stays a text."""

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        """Return the decoded value."""
        try:
            return json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            return value


class Ids(_Field):
    """A list of ids. Django's own field for it needs ``django.contrib.postgres`` to be installed."""

    def db_type(self, connection: Any) -> str:
        """Return the column's type; both drivers make a list of UUIDs of it."""
        return "uuid[]"


class _ReadOnly(models.Model):
    objects = ReadOnlyManager()

    class Meta:
        abstract = True
        managed = False

    save = asave = delete = adelete = _refuse


class Task(_ReadOnly):
    """A row of ``queued_tasks``."""

    id = models.UUIDField(primary_key=True)
    name = models.CharField(max_length=255)
    state = models.CharField(max_length=50, choices=[(state, state) for state in states.STATES])
    parent_task = models.ForeignKey(
        "self",
        models.DO_NOTHING,
        db_column="parent_task",
        db_constraint=False,
        null=True,
        related_name="children",
    )
    parents = Ids()
    function = models.TextField()
    args = StoredJSON()
    kwargs = StoredJSON()
    channel = models.CharField(max_length=64)
    priority = models.IntegerField()
    date_created = models.DateTimeField()
    date_enqueued = models.DateTimeField()
    date_scheduled = models.DateTimeField(null=True)
    date_started = models.DateTimeField(null=True)
    date_done = models.DateTimeField(null=True)
    context = StoredJSON(null=True)
    result = StoredJSON(null=True)
    error_type = models.TextField(null=True)
    error_message = models.TextField(null=True)
    error_traceback = models.TextField(null=True)
    attempt = models.IntegerField()
    failures = models.IntegerField()
    max_retries = models.IntegerField(null=True)
    lost_count = models.IntegerField()
    requeues = models.IntegerField()
    timeout = models.FloatField(null=True)
    claimed_by = models.IntegerField(null=True)
    cancel_requested = models.DateTimeField(null=True)
    stop_requested = models.DateTimeField(null=True)
    pending_parents = models.IntegerField()
    on_parent_failure = models.TextField()
    unique_key = models.TextField(null=True)
    concurrency_key = models.TextField(null=True)
    auto_remove = models.BooleanField()
    meta = StoredJSON(null=True)

    class Meta(_ReadOnly.Meta):
        abstract = False
        db_table = "queued_tasks"
        # "change" is for retrying and cancelling in the admin.
        default_permissions = ("view", "change")

    def __str__(self) -> str:
        return f"{self.name} {self.id}"


class TaskLog(_ReadOnly):
    """A row of ``queued_task_logs``: a line that was logged inside a task."""

    id = models.BigAutoField(primary_key=True)
    task = models.ForeignKey(
        Task, models.DO_NOTHING, db_column="queued_task_id", db_constraint=False, null=True, related_name="logs"
    )
    type = models.CharField(max_length=50)
    message = models.TextField()
    date_created = models.DateTimeField()
    name = models.TextField(null=True)
    attempt = models.IntegerField(null=True)

    class Meta(_ReadOnly.Meta):
        abstract = False
        db_table = "queued_task_logs"
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


class TaskAttempt(_ReadOnly):
    """A row of ``queued_task_attempts``: an attempt that failed, timed out or was lost."""

    id = models.BigAutoField(primary_key=True)
    task = models.ForeignKey(
        Task, models.DO_NOTHING, db_column="queued_task_id", db_constraint=False, related_name="attempts"
    )
    attempt = models.IntegerField()
    outcome = models.CharField(max_length=50)
    error_type = models.TextField(null=True)
    error_message = models.TextField(null=True)
    error_traceback = models.TextField(null=True)
    worker = models.IntegerField(null=True)
    date_started = models.DateTimeField(null=True)
    date_done = models.DateTimeField()
    exit_signal = models.TextField(null=True)
    memory_bytes = models.BigIntegerField(null=True)

    class Meta(_ReadOnly.Meta):
        abstract = False
        db_table = "queued_task_attempts"
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"attempt {self.attempt} {self.outcome}"


class Worker(_ReadOnly):
    """A row of ``queued_task_workers``: a start of a worker process."""

    id = models.AutoField(primary_key=True)
    server_name = models.CharField(max_length=255)
    pid = models.IntegerField(null=True)
    supervisor_pid = models.IntegerField(null=True)
    max_workers = models.IntegerField("slots")
    active_workers = models.IntegerField("busy slots")
    idle_workers = models.IntegerField("idle slots")
    is_running = models.BooleanField()
    date_started = models.DateTimeField()
    last_heartbeat = models.DateTimeField()
    version = models.TextField(null=True)
    lease = models.FloatField(null=True)
    stuck = StoredJSON()
    refused = models.IntegerField()

    class Meta(_ReadOnly.Meta):
        abstract = False
        db_table = "queued_task_workers"
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"worker {self.id} on {self.server_name}"
