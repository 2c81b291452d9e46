"""What a worker's processes write on stderr: lines of text, or a JSON object for each.

The supervisor uses this as well, so nothing here imports an application or SQLAlchemy.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from queuedtask.config import Config
from queuedtask.errors import ConfigError
from queuedtask.run.attempt import TaskFields
from queuedtask.run.logs import described

if TYPE_CHECKING:
    from pythonjsonlogger.json import JsonFormatter

JSON: Final = "json"
_OF_TASK: Final = ("task_id", "task_name", "attempt", "channel", "request_id")
_MISSING: Final = "log_format=json needs the package python-json-logger; type: pip install 'queuedtask[json]'"

WorkerId = Callable[[], int | None]


def log_to_stderr(config: Config, *, worker: WorkerId = lambda: None) -> None:
    """Log to stderr as configured, unless the application has set up logging of its own.

    ``worker`` says which worker's process this is, once that is known. Raises ConfigError when what is configured
    cannot be had.
    """
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(TaskFields())
    handler.setFormatter(_json_formatter(worker) if config.log_format == JSON else _TextFormatter())
    root.addHandler(handler)
    root.setLevel(config.log_level)


def warn(config: Config, text: str) -> None:
    """Say on stderr what whoever starts the worker may want to know."""
    if config.log_format == JSON:
        logging.getLogger("queuedtask.worker").warning(text)
    else:
        print(f"queuedtask: warning: {text}", file=sys.stderr)


class _TextFormatter(logging.Formatter):
    """Say on each line which task has logged it, and for which request, if for any."""

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(process)d %(threadName)s%(of_task)s %(name)s: %(of_request)s%(message)s",
            "%Y-%m-%d %H:%M:%SZ",
        )
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        task, request = getattr(record, "task_id", None), getattr(record, "request_id", None)
        record.of_task = "" if task is None else f" {task}/{getattr(record, 'attempt', '')}"
        record.of_request = "" if request is None else f"[{request}] "
        return super().formatMessage(record)


def _json_formatter(worker: WorkerId) -> "JsonFormatter":
    try:
        from pythonjsonlogger.json import JsonFormatter
    except ImportError:
        raise ConfigError(_MISSING) from None

    class Formatter(JsonFormatter):
        """Our own fields first, then what the record has as ``extra``, which cannot replace them."""

        def format(self, record: logging.LogRecord) -> str:
            try:
                return super().format(record)
            except Exception as error:
                return super().format(_plain(record, error))

        def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
            extra: dict[str, Any] = {}
            super().add_fields(extra, record, message_dict)
            fields = {
                "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
                "level": record.levelname,
                "logger": record.name,
                "message": record.message or None,
                "process": record.process,
                "thread": record.threadName,
                "worker": worker(),
                **{name: getattr(record, name, None) for name in _OF_TASK},
                "exception": extra.pop("exc_info", None),
                "stack": extra.pop("stack_info", None),
            }
            if not extra.get("message"):
                extra.pop("message", None)  # a mapping was logged, without one
            known = {name: value for name, value in fields.items() if value is not None}
            log_data.update(known)
            log_data.update({name: value for name, value in extra.items() if name not in (*known, *_OF_TASK)})

    # NaN is no JSON.
    return Formatter(json_serializer=partial(json.dumps, allow_nan=False))


def _plain(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    """Return a record that can be written instead of one that cannot: its arguments do not fit, or its extra fields."""
    try:
        text = record.getMessage()
    except Exception:
        text = described(record.msg)
    text = f"{text} (could not be written in full: {type(error).__name__})"
    plain = logging.LogRecord(record.name, record.levelno, "", 0, text, None, record.exc_info)
    kept = ("created", "levelname", "process", "threadName", *_OF_TASK)
    plain.__dict__.update({name: record.__dict__.get(name) for name in kept})
    return plain
