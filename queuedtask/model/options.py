"""The options of a task: what each may be, checked where the caller gives it and before anything is sent.

Rarely used options have no column of their own: they stand in the row's ``meta``, under keys that are reserved.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from queuedtask.errors import Interrupted, InvalidTask, NotSerializable, TaskTimeout
from queuedtask.model import backoff, codec
from queuedtask.model.limits import EVERYTHING

RETURN: Final = "return"
RAISE: Final = "raise"
REPLACE: Final = "replace"
DEBOUNCE: Final = "debounce"
ON_CONFLICT: Final = (RETURN, RAISE, REPLACE, DEBOUNCE)
REPLACING: Final = (REPLACE, DEBOUNCE)
"""What replaces a pending task of the same key. Such a task gives its key up when it is claimed."""

THREAD: Final = "thread"
PROCESS: Final = "process"

# PostgreSQL has more years than Python, which could not read such a row again; and what means "never" is a mistake.
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END: Final = datetime(9000, 1, 1, tzinfo=UTC)

_IN_CODE: Final = ("retry_on", "give_up_on")
"""The options that stay with the function: classes cannot be stored."""

_IN_META: Final = ("isolation", "backoff", "concurrency", "fifo")
"""The options that stand in ``meta``."""
INHERITED: Final = "inherited"
"""The key in ``meta`` of the context that was captured when a task was added: what it hands down to its own tasks."""
RESERVED_META: Final = (INHERITED, "failed_ancestor", "on_conflict", *_IN_META)
"""Keys of ``meta`` that are ours."""


class TaskOptions(NamedTuple):
    """Options that a function declares with ``@queue.task``; None stands for "not given"."""

    name: str | None = None
    channel: str | None = None
    priority: int | None = None
    timeout: float | None = None
    max_retries: int | None = None
    on_parent_failure: str | None = None
    auto_remove: bool | None = None
    unique_key: str | None = None
    on_conflict: str | None = None
    isolation: str | None = None
    backoff: "backoff.Backoff | Callable[[int], object] | None" = None
    retry_on: tuple[type[BaseException], ...] | None = None
    give_up_on: tuple[type[BaseException], ...] | None = None
    concurrency_key: str | None = None
    concurrency: int | None = None
    fifo: bool | None = None

    def portable(self) -> dict[str, Any]:
        """Return what can be sent to another process: all but classes and functions."""
        sent = {name: value for name, value in self._asdict().items() if name not in _IN_CODE}
        return sent | {"backoff": None if callable(self.backoff) else self.backoff}

    def gives_up_on(self, error: BaseException) -> bool:
        """Tell whether an exception is one that this function is not to be tried again after."""
        if self.give_up_on is not None and isinstance(error, self.give_up_on):
            return True
        return self.retry_on is not None and not isinstance(error, self.retry_on)


def checked(options: Mapping[str, Any], *, max_payload: int) -> dict[str, Any]:
    """Return those options that are given, in the form in which a TaskSpec has them. Raises InvalidTask.

    Raises TypeError for an option that does not exist.
    """
    for name in options:
        if name not in _CHECKS:
            raise TypeError(f"there is no option {name!r}; there are {', '.join(_CHECKS)}")
    return {
        name: _CHECKS[name](name, value, max_payload) if name in _DOCUMENTS else _CHECKS[name](name, value)
        for name, value in options.items()
        if value is not None
    }


def check_together(options: Mapping[str, Any]) -> None:
    """Raise InvalidTask for checked options that exclude each other."""
    if options.get("delay") is not None and options.get("run_at") is not None:
        raise InvalidTask("delay and run_at: give one of them, not both")


def declared(options: Mapping[str, Any]) -> TaskOptions:
    """Return the options that a function declares, checked. Raises InvalidTask."""
    in_code = {name: options[name] for name in _IN_CODE if options.get(name) is not None}
    if callable(options.get("backoff")):
        in_code["backoff"] = options["backoff"]
    storable = {name: value for name, value in options.items() if name not in in_code and name not in _IN_CODE}
    in_code |= {name: _exceptions(name, in_code[name]) for name in _IN_CODE if name in in_code}
    return TaskOptions(**checked(storable, max_payload=0), **in_code)


def storable(declared: TaskOptions) -> dict[str, Any]:
    """Return those declared options that a task takes along; the others stay with its function."""
    return {
        name: value
        for name, value in declared._asdict().items()
        if value is not None and name not in _IN_CODE and not callable(value)
    }


def as_fields(given: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's options, of which some may be declared, as the fields of its TaskSpec.

    Raises InvalidTask for options that do not go together.
    """
    fields = dict(given)
    _check_concurrency(fields, declared)
    on_conflict, has_key = fields.get("on_conflict"), fields.get("unique_key") is not None
    if on_conflict is not None and not has_key:
        if on_conflict != declared.get("on_conflict"):
            raise InvalidTask(f"on_conflict={on_conflict!r}: needs a unique_key")
        del fields["on_conflict"]  # declared for those calls that have one
    if has_key and on_conflict == DEBOUNCE and fields.get("delay") is None:
        raise InvalidTask('on_conflict="debounce": needs a delay, which counts from the last call')
    if has_key and on_conflict in REPLACING and fields.get("parents"):
        raise InvalidTask(f"on_conflict={on_conflict!r}: not for a task with parents")
    in_meta: dict[str, Any] = {name: fields.pop(name) for name in _IN_META if name in fields}
    if has_key and on_conflict in REPLACING:
        in_meta |= {"on_conflict": on_conflict}  # for the claim, which takes the key away
    if in_meta:
        fields["meta"] = codec.merge(fields.get("meta") or "{}", json.dumps(in_meta))
    return fields


def reserved(meta: str | None, key: str) -> Any:
    """Return the value of one of the reserved keys of a row's ``meta``, None without one. Never raises."""
    if meta is None or f'"{key}"' not in meta:
        return None
    try:
        document = json.loads(meta)
    except (ValueError, RecursionError):
        return None
    return document.get(key) if isinstance(document, dict) else None


def _check_concurrency(merged: dict[str, Any], declared: Mapping[str, Any]) -> None:
    if merged.get("concurrency_key") is None:
        for name in ("concurrency", "fifo"):
            # What a function declares waits for a task with a key.
            value = merged.pop(name, None)
            if value is not None and value != declared.get(name):
                raise InvalidTask(f"{name}={value!r}: needs a concurrency_key")
        return
    if merged.get("fifo"):
        if merged.get("concurrency", 1) != 1:
            raise InvalidTask(f"concurrency={merged['concurrency']}: with fifo=True it is 1: one after another")
        if merged.get("priority", 0) != 0:
            raise InvalidTask(f"priority={merged['priority']}: not with fifo=True, whose order is that of adding")
    else:
        merged.pop("fifo", None)


def seconds(option: str, value: object) -> float:
    """Return a duration in seconds. Raises InvalidTask for what is none."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if not isinstance(number, int | float) or isinstance(number, bool) or not 0 <= number <= 100 * 366 * 86400:
        raise InvalidTask(
            f"{option}={value!r}: must be a number of seconds or a timedelta, 0 or more, at most 100 years"
        )
    return float(number)


def channel_name(value: object) -> str:
    """Return a channel's name. Raises InvalidTask for what is none."""
    return _channel("channel", value)


def _text(longest: int) -> Callable[[str, object], str]:
    def check(option: str, value: object) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= longest or codec.clean_text(value) != value:
            raise InvalidTask(
                f"{option}={value!r}: must be a text of 1 to {longest} characters that PostgreSQL can store"
            )
        return value

    return check


def _integer(least: int) -> Callable[[str, object], int]:
    def check(option: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
            raise InvalidTask(f"{option}={value!r}: must be a whole number from {least} to {2**31 - 1}")
        return int(value)  # an Enum of numbers is written otherwise

    return check


def _one_of(*allowed: str) -> Callable[[str, object], str]:
    def check(option: str, value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise InvalidTask(f"{option}={value!r}: must be {' or '.join(map(repr, allowed))}")
        return value

    return check


def _timeout(option: str, value: object) -> float:
    timeout = seconds(option, value)
    if timeout == 0:
        raise InvalidTask("timeout=0: must be more than 0 seconds; None stands for the setting QUEUE_TASK_TIMEOUT")
    return timeout


def _aware_time(option: str, value: object) -> datetime:
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise InvalidTask(
            f"{option}={value!r}: must be an aware datetime, such as datetime.now(timezone.utc) + timedelta(hours=1)"
        )
    if not _EARLIEST <= value < _END:
        raise InvalidTask(f"{option}={value!r}: must lie in the years {_EARLIEST.year} to {_END.year - 1}")
    return value


def _channel(option: str, value: object) -> str:
    name = _text(64)(option, value)
    if name == EVERYTHING:
        raise InvalidTask(f"{option}={value!r}: stands for all channels together, no channel can be called so")
    return name


def _boolean(option: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidTask(f"{option}={value!r}: must be True or False")
    return value


def _document(option: str, value: object, max_bytes: int) -> str:
    if not isinstance(value, Mapping):
        raise InvalidTask(f"{option}={value!r}: must be a mapping")
    try:
        # The text of a list of one; what stands between its brackets is the document.
        return codec.encode_arguments((dict(value),), {}, max_bytes)[0][1:-1]
    except NotSerializable as error:
        raise NotSerializable(str(error).replace("args[0]", option, 1)) from None


def _meta(option: str, value: object, max_bytes: int) -> str:
    text = _document(option, value, max_bytes)
    assert isinstance(value, Mapping)
    for key in RESERVED_META:
        if key in value:
            raise InvalidTask(f"{option}: the key {key!r} is reserved; choose another one")
    return text


def _backoff(option: str, value: object) -> backoff.Backoff:
    if callable(value):
        raise InvalidTask("backoff: a function can be given to @queue.task only; a task's own is a name or a list")
    return backoff.checked(option, value)


def _exceptions(option: str, value: object) -> tuple[type[BaseException], ...]:
    classes = value if isinstance(value, tuple) else (value,)
    if not classes or not all(isinstance(each, type) and issubclass(each, BaseException) for each in classes):
        raise InvalidTask(f"{option}={value!r}: must be an exception class or a tuple of them")
    if any(issubclass(each, TaskTimeout | Interrupted) for each in classes):
        raise InvalidTask(f"{option}: not for TaskTimeout and Interrupted; max_retries alone says about timeouts")
    return classes


_CHECKS: dict[str, Callable[..., Any]] = {
    "name": _text(255),
    "channel": _channel,
    "priority": _integer(-(2**31)),
    "delay": seconds,
    "run_at": _aware_time,
    "timeout": _timeout,
    "max_retries": _integer(0),
    "on_parent_failure": _one_of("cancel", "run"),
    "unique_key": _text(255),
    "on_conflict": _one_of(*ON_CONFLICT),
    "isolation": _one_of(THREAD, PROCESS),
    "backoff": _backoff,
    "concurrency_key": _text(255),
    "concurrency": _integer(1),
    "fifo": _boolean,
    "context": _document,
    "meta": _meta,
    "auto_remove": _boolean,
}
NAMES: Final = frozenset(_CHECKS)
_DOCUMENTS = {"context", "meta"}
