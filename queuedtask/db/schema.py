"""The tables as SQLAlchemy Core objects, from which ``store`` and ``reads`` build their statements.

The migrations make the tables; a test compares the two. Nothing here is mapped to classes.
"""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()


Timestamp = DateTime(timezone=True)
NOW = text("clock_timestamp()")

tasks = Table(
    "queued_tasks",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=text("gen_random_uuid()")),
    Column("name", String(255), nullable=False, server_default=text("''")),
    Column("state", String(50), nullable=False, server_default=text("'enqueued'")),
    Column("parent_task", Uuid, ForeignKey("queued_tasks.id", ondelete="SET NULL")),
    Column("parents", ARRAY(Uuid), nullable=False, server_default=text("'{}'")),
    Column("date_enqueued", Timestamp, nullable=False, server_default=NOW),
    Column("date_started", Timestamp),
    Column("date_done", Timestamp),
    Column("context", JSONB),
    Column("result", JSONB),
    Column("error_message", Text),
    Column("function", Text, nullable=False, server_default=text("''")),
    Column("args", JSONB, nullable=False, server_default=text("'[]'")),
    Column("kwargs", JSONB, nullable=False, server_default=text("'{}'")),
    Column("error_type", Text),
    Column("error_traceback", Text),
    Column("channel", String(64), nullable=False, server_default=text("'default'")),
    Column("priority", Integer, nullable=False, server_default=text("0")),
    Column("date_created", Timestamp, nullable=False, server_default=NOW),
    Column("date_scheduled", Timestamp),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("max_retries", Integer),
    Column("lost_count", Integer, nullable=False, server_default=text("0")),
    Column("requeues", Integer, nullable=False, server_default=text("0")),
    Column("timeout", Double),
    Column("claimed_by", Integer),
    Column("cancel_requested", Timestamp),
    Column("stop_requested", Timestamp),
    Column("pending_parents", Integer, nullable=False, server_default=text("0")),
    Column("on_parent_failure", Text, nullable=False, server_default=text("'cancel'")),
    Column("unique_key", Text),
    Column("concurrency_key", Text),
    Column("auto_remove", Boolean, nullable=False, server_default=text("false")),
    Column("pickled_function", LargeBinary),
    Column("meta", JSONB),
    Column("is_awaited", Boolean, nullable=False, server_default=text("false")),
)

logs = Table(
    "queued_task_logs",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("queued_task_id", Uuid, ForeignKey("queued_tasks.id", ondelete="CASCADE")),
    Column("type", String(50), nullable=False, server_default=text("'info'")),
    Column("message", Text, nullable=False, server_default=text("''")),
    Column("date_created", Timestamp, nullable=False, server_default=NOW),
    Column("name", Text),
    Column("attempt", Integer),
)

workers = Table(
    "queued_task_workers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("server_name", String(255), nullable=False, server_default=text("''")),
    Column("max_workers", Integer, nullable=False, server_default=text("0")),
    Column("active_workers", Integer, nullable=False, server_default=text("0")),
    Column("idle_workers", Integer, nullable=False, server_default=text("0")),
    Column("is_running", Boolean, nullable=False, server_default=text("true")),
    Column("last_heartbeat", Timestamp, nullable=False, server_default=NOW),
    Column("pid", Integer),
    Column("supervisor_pid", Integer),
    Column("date_started", Timestamp, nullable=False, server_default=NOW),
    Column("version", Text),
    Column("lease", Double),
    Column("stuck", JSONB, nullable=False, server_default=text("'[]'")),
    Column("refused", Integer, nullable=False, server_default=text("0")),
)

dependencies = Table(
    "queued_task_dependencies",
    metadata,
    Column("task", Uuid, ForeignKey("queued_tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("parent", Uuid, ForeignKey("queued_tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("added_in", BigInteger, nullable=False, server_default=text("((pg_current_xact_id())::text)::bigint")),
)

attempts = Table(
    "queued_task_attempts",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("queued_task_id", Uuid, ForeignKey("queued_tasks.id", ondelete="CASCADE"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("outcome", String(50), nullable=False),
    Column("error_type", Text),
    Column("error_message", Text),
    Column("error_traceback", Text),
    Column("worker", Integer),
    Column("date_started", Timestamp),
    Column("date_done", Timestamp, nullable=False, server_default=NOW),
    Column("exit_signal", Text),
    Column("memory_bytes", BigInteger),
)

schedules = Table(
    "queued_task_schedules",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("function", Text, nullable=False),
    Column("args", JSONB, nullable=False, server_default=text("'[]'")),
    Column("kwargs", JSONB, nullable=False, server_default=text("'{}'")),
    Column("cron", Text, nullable=False),
    Column("timezone", Text, nullable=False, server_default=text("'UTC'")),
    Column("misfire", Text, nullable=False, server_default=text("'last'")),
    Column("overlap", Text, nullable=False, server_default=text("'skip'")),
    Column("options", JSONB, nullable=False, server_default=text("'{}'")),
    Column("is_paused", Boolean, nullable=False, server_default=text("false")),
    Column("date_last_tick", Timestamp),
    Column("date_created", Timestamp, nullable=False, server_default=NOW),
    Column("date_updated", Timestamp, nullable=False, server_default=NOW),
    Column("definition", Text),
    Column("date_next", Timestamp),
    Column("last_task", Uuid),
)

ticks = Table(
    "queued_task_ticks",
    metadata,
    Column("schedule", String(255), primary_key=True),
    Column("tick", Timestamp, primary_key=True),
    Column("task", Uuid, nullable=False),
)

channels = Table(
    "queued_task_channels",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("max_running", Integer),
    Column("max_starts", Integer),
    Column("per_seconds", Double),
    Column("is_paused", Boolean, nullable=False, server_default=text("false")),
    Column("date_updated", Timestamp, nullable=False, server_default=NOW),
    Column("starts", JSONB, nullable=False, server_default=text("'[]'")),
)

migrations = Table(
    "queued_task_migrations",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("date_applied", Timestamp, nullable=False, server_default=NOW),
)
