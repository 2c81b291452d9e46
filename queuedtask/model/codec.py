"""Python values as the JSON text of a ``jsonb`` column, and back.

Arguments are encoded strictly: what cannot come back equal is refused in the caller's stack, named by its
path. Results and context values are encoded leniently: an attempt has already run, so whatever cannot be
stored is replaced by a marker, and nothing here raises.

Types that JSON lacks are tagged: an object with one key that begins with ``$``.

======================= ====================================================================================
``{"$datetime": "…"}``  ISO 8601; a named zone follows: ``2026-10-25T02:30:00+02:00[Europe/Paris]``
``{"$date": "…"}``      ISO 8601
``{"$time": "…"}``      ISO 8601, a named zone as above
``{"$timedelta": "…"}`` seconds: ``-90.5``
``{"$decimal": "…"}``   as ``str`` writes it
``{"$uuid": "…"}``      as ``str`` writes it
``{"$bytes": "…"}``     base64
``{"$tuple": […]}``     arguments only: in results and context values a tuple becomes a list
``{"$float": "…"}``     a float from 1e16 on, which ``jsonb`` would hand back as an int, often an unequal one
``{"$dict": {…}}``      a dict that would itself look like a tag
======================= ====================================================================================

A dict that only resembles a tag (``{"$gt": 5}``, in a row inserted by hand) is left as it is. ``jsonb`` keeps
neither the order of a dict's keys nor the sign of ``-0.0``; both compare equal.
"""

import base64
import dataclasses
import enum
import inspect
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence, Set
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from queuedtask.errors import NotSerializable

MAX_DEPTH: Final = 100
"""Lists, tuples and dicts within one another. Deeper ones are a poison row for whoever reads them."""
MAX_DIGITS: Final = 4300
"""Of an int: Python refuses to read more of them."""
MAX_VALUES: Final = 1 << 20
"""In a context value. Structures that share their parts can stand for more values than there are atoms."""
MAX_REPR: Final = 1000
"""Characters of the repr in a marker."""

MARKER: Final = "$unserializable"
"""The first key of what stands in for a value that cannot be stored; ``type`` is the second one."""

_INT_LIMIT: Final = 10**MAX_DIGITS
_FLOAT_LIMIT: Final = 1e16
_TOO_DEEP: Final = f"nested more than {MAX_DEPTH} levels deep, or within itself"

_encode_json: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode
_decode_json: Final = json.JSONDecoder().decode


# -- Arguments -----------------------------------------------------------------------------------------------


def encode_arguments(args: tuple[object, ...], kwargs: Mapping[str, object], max_bytes: int) -> tuple[str, str]:
    """Return the JSON texts of the arguments of a call.

    Raises NotSerializable, with the path of the offender, for everything that would not come back equal.
    """
    if not args and not kwargs:
        return "[]", "{}"
    walk = _Strict(max_bytes)
    root = "args"
    try:
        args_text = _encode_json(walk.items(args, 0)) if args else "[]"
        root = "kwargs"
        kwargs_text = _encode_json(walk.members(dict(kwargs), 0)) if kwargs else "{}"
    except _Refused as refused:
        raise NotSerializable(refused.located(root)) from None
    except _TooMany:
        raise _too_large(f"more than {max_bytes:,}", max_bytes) from None
    size = _size(args_text) + _size(kwargs_text)
    if size > max_bytes:
        raise _too_large(f"{size:,}", max_bytes)
    return args_text, kwargs_text


def decode_arguments(args_text: str, kwargs_text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call from their JSON texts.

    Raises ValueError for what cannot be read: rows are also inserted by hand, and by other releases.
    """
    args: tuple[Any, ...] = ()
    if args_text != "[]":
        items = _parse("args", args_text)
        if type(items) is not list:
            shown = clean_text(args_text, 80)
            raise ValueError(f"args cannot be read: a JSON list is expected, like [7, true], not {shown}")
        args = tuple(_restored("args", args_text, items, _items_from_plain))
    kwargs: dict[str, Any] = {}
    if kwargs_text != "{}":
        members = _parse("kwargs", kwargs_text)
        if type(members) is not dict:
            shown = clean_text(kwargs_text, 80)
            raise ValueError(f'kwargs cannot be read: a JSON object is expected, like {{"order": 7}}, not {shown}')
        # Member by member: a call's own keyword may begin with a dollar sign, and the object is no tag.
        kwargs = _restored("kwargs", kwargs_text, members, _members_from_plain)
    return args, kwargs


# -- Results and context -------------------------------------------------------------------------------------


def encode_result(value: object, max_bytes: int) -> str | None:
    """Return the JSON text of a task's result, None for None; never raise, whatever the value is.

    What cannot be stored becomes a marker, ``{"$unserializable": "<its repr>", "type": "module.Class"}``; so
    does the whole result when its text is larger than ``max_bytes``. Tuples become lists, and so do sets
    (sorted when they can be); keys become strings, of two that become the same one the last holds.
    """
    if value is None:
        return None
    try:
        text = _encode_json(_Lenient(max_bytes).plain(value, 0))
        size = _size(text)
    except _TooMany:
        return _encode_json(_oversize(value, f"more than {max_bytes:,}", max_bytes))
    except Exception as error:  # values that change while they are read, and the like
        return _encode_json(_marker(value, f"the result could not be encoded: {_repr(error)}"))
    if size > max_bytes:
        return _encode_json(_oversize(value, f"{size:,}", max_bytes))
    return text


def decode(text: str | None) -> object:
    """Return the value of a result's or a context's JSON text; None for None.

    Raises ValueError for what cannot be read.
    """
    return None if text is None else _restored("the value", text, _parse("the value", text), from_plain)


def to_plain(value: object) -> object:
    """Return a snapshot of a value in JSON's own types, as lenient as :func:`encode_result`.

    It shares nothing mutable with the value.
    """
    try:
        return _Lenient(MAX_VALUES).plain(value, 0)
    except _TooMany:
        return _marker(value, f"more than {MAX_VALUES:,} values in one")
    except Exception as error:  # as above
        return _marker(value, f"the value could not be encoded: {_repr(error)}")


def from_plain(value: object) -> object:
    """Return the value that a plain structure stands for: tags undone, every list and dict a fresh one.

    Raises ValueError for a tag whose content cannot be read.
    """
    kind = type(value)
    if kind is dict:
        members: dict[str, object] = value  # type: ignore[assignment]
        if len(members) == 1:
            ((key, content),) = members.items()
            restore = _RESTORERS.get(key)
            if restore is not None:
                return restore(content)
        return _members_from_plain(members)
    if kind is list:
        return _items_from_plain(value)  # type: ignore[arg-type]
    return value


def _items_from_plain(items: list[object]) -> list[object]:
    return [from_plain(item) for item in items]


def _members_from_plain(members: dict[str, object]) -> dict[str, object]:
    return {key: from_plain(member) for key, member in members.items()}


def dumps(plain: object) -> str:
    """Return the compact JSON text of a plain structure."""
    return _encode_json(plain)


def merge(*objects: str) -> str:
    """Return the JSON text of one object with the members of several that :func:`dumps` and the like have made.

    Of equal keys the last one counts: so do ``jsonb`` and ``json.loads`` read it.
    """
    members = [text[1:-1] for text in objects]
    return "{" + ",".join(filter(None, members)) + "}"


def clean_text(text: str, limit: int | None = None) -> str:
    """Return the text as PostgreSQL can store it.

    NUL and lone surrogates become visible escapes. A text longer than ``limit`` characters loses its middle,
    and says how much is missing.
    """
    text = str.__str__(text)
    if "\0" in text:
        text = text.replace("\0", "\\x00")
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if limit is None or len(text) <= limit:
        return text
    # The number in the marker is at most as long as this one, so the text never exceeds its limit.
    kept = limit - len(_left_out(len(text)))
    if kept < 2:
        return text[:limit]
    head, tail = kept - kept // 2, kept // 2
    return text[:head] + _left_out(len(text) - kept) + text[-tail:]


def _left_out(characters: int) -> str:
    return f"… {characters} characters left out …"


# -- The two walks -------------------------------------------------------------------------------------------


class _Refused(Exception):
    """A value that cannot be stored; the steps to it are added from the inside out."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []

    def located(self, root: str) -> str:
        return clean_text(f"{root}{''.join(reversed(self.steps))}: {self.reason}")


class _TooMany(Exception):
    """More values than bytes are allowed, or than anybody meant."""


class _Strict:
    """Turn arguments into a plain structure, or refuse them."""

    __slots__ = ("left",)

    def __init__(self, max_values: int) -> None:
        # Each value takes a byte at least. Counting them ends the walk of a small structure that stands for a
        # huge one, [[x, x], [x, x]] a hundred levels deep, before it has used up the memory.
        self.left = max_values

    def plain(self, value: Any, depth: int) -> object:
        kind = type(value)
        if kind is str:
            return _checked(value)
        if kind is int:
            if -_INT_LIMIT < value < _INT_LIMIT:
                return value
            raise _Refused(f"an int of more than {MAX_DIGITS:,} digits cannot be read back: pass hex(...)")
        if value is None or kind is bool:
            return value
        if kind is float:
            if -_FLOAT_LIMIT < value < _FLOAT_LIMIT:
                return value
            if value - value == 0.0:
                return {"$float": repr(value)}
            raise _Refused(f"{value!r} does not exist in JSON: pass None, or leave it out")
        if kind is list:
            return self.items(value, depth)
        if kind is dict:
            return _escaped(self.members(value, depth))
        if kind is tuple:
            return {"$tuple": self.items(value, depth)}
        tag = _TAGGERS.get(kind)
        if tag is not None:
            return tag(value)
        return self.plain(_base(value), depth)

    def items(self, values: Sequence[object], depth: int) -> list[object]:
        self._enter(values, depth)
        plain: list[object] = []
        try:
            # One by one: the length tells how far it came.
            for value in values:
                plain.append(self.plain(value, depth + 1))
        except _Refused as refused:
            refused.steps.append(f"[{len(plain)}]")
            raise
        return plain

    def members(self, values: dict[Any, object], depth: int) -> dict[str, object]:
        self._enter(values, depth)
        plain: dict[str, object] = {}
        for key, value in values.items():
            name = _key(key)
            try:
                plain[name] = self.plain(value, depth + 1)
            except _Refused as refused:
                refused.steps.append(f".{name}" if name.isidentifier() else f"[{clean_text(name, 80)!r}]")
                raise
        return plain

    def _enter(self, values: Sequence[object] | dict[Any, object], depth: int) -> None:
        # The args and kwargs themselves are at depth 0 and do not count.
        if depth > MAX_DEPTH:
            raise _Refused(f"{_TOO_DEEP}: pass a flatter structure")
        self.left -= len(values)
        if self.left < 0:
            raise _TooMany


class _Lenient:
    """Turn any value into a plain structure, with markers for what cannot be stored."""

    __slots__ = ("left",)

    def __init__(self, max_values: int) -> None:
        self.left = max_values

    def plain(self, value: Any, depth: int) -> object:
        kind = type(value)
        if kind is str:
            return clean_text(value)
        if kind is int:
            return value if -_INT_LIMIT < value < _INT_LIMIT else _marker(value, hex(value))
        if value is None or kind is bool:
            return value
        if kind is float:
            if -_FLOAT_LIMIT < value < _FLOAT_LIMIT:
                return value
            return {"$float": repr(value)} if value - value == 0.0 else _marker(value)
        if kind is list or kind is tuple:
            return self._items(value, depth)
        if kind is dict:
            return self._members(value, depth)
        try:
            tag = _TAGGERS.get(kind)
            if tag is not None:
                return tag(value)
            if issubclass(kind, (set, frozenset)):
                base: object = _sorted(value)
            else:
                base = _base(value)
        except Exception:  # a subclass runs code of its own
            return _marker(value)
        return self.plain(base, depth)

    def _items(self, values: Sequence[object], depth: int) -> object:
        if depth >= MAX_DEPTH:
            return _too_deep(values)
        self._count(len(values))
        return [self.plain(value, depth + 1) for value in values]

    def _members(self, values: dict[Any, object], depth: int) -> object:
        if depth >= MAX_DEPTH:
            return _too_deep(values)
        self._count(len(values))
        # A list first: another thread may add to the dict meanwhile.
        return _escaped({_text(key): self.plain(value, depth + 1) for key, value in list(values.items())})

    def _count(self, values: int) -> None:
        self.left -= values
        if self.left < 0:
            raise _TooMany


def _checked(text: str) -> str:
    if "\0" in text:
        raise _Refused(f"{_quoted(text)} contains NUL, which PostgreSQL does not store: remove it or pass bytes")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _Refused(
                f"{_quoted(text)} contains a lone surrogate, which is not valid text: repair it, or pass "
                'text.encode(errors="surrogatepass")'
            ) from None
    return text


def _key(key: object) -> str:
    try:
        if type(key) is str:
            return _checked(key)
        if issubclass(type(key), str):
            return _checked(_base(key))
    except _Refused as refused:
        raise _Refused(f"the key {refused.reason}") from None
    raise _Refused(
        f"the key {_quoted(_repr(key))} is not a str, and JSON has no other keys: pass str(...) of it, or a "
        "list of pairs"
    )


def _text(key: object) -> str:
    try:
        return clean_text(key if issubclass(type(key), str) else str(key))  # type: ignore[arg-type]
    except Exception:  # str() runs code of the key
        return clean_text(_repr(key), MAX_REPR)


def _sorted(values: Set[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return list(values)


def _escaped(plain: dict[str, object]) -> dict[str, object]:
    if len(plain) == 1:
        (key,) = plain
        if key[:1] == "$":
            return {"$dict": plain}
    return plain


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


# -- Subclasses ----------------------------------------------------------------------------------------------


# From the narrow to the wide: a datetime is a date as well. The base's own methods are used where there are
# any, since a subclass may have overridden them: an Enum's str() is its name. The base is handed in, because
# libraries that freeze the time put a subclass into every module's ``datetime``.
_BASES: Final[tuple[tuple[Any, Callable[[Any, Any], object]], ...]] = (
    (str, lambda base, v: base.__str__(v)),
    (int, lambda base, v: base.__int__(v)),
    (float, lambda base, v: base.__float__(v)),
    (dict, lambda base, v: base(v.items())),
    (list, lambda base, v: base(v)),
    (tuple, lambda base, v: base(v)),
    (
        datetime,
        lambda base, v: base(v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond, v.tzinfo, fold=v.fold),
    ),
    (date, lambda base, v: base(v.year, v.month, v.day)),
    (time, lambda base, v: base(v.hour, v.minute, v.second, v.microsecond, v.tzinfo, fold=v.fold)),
    (timedelta, lambda base, v: base(v.days, v.seconds, v.microseconds)),
    (Decimal, lambda base, v: base(v)),
    (UUID, lambda base, v: base(int=v.int)),
    (bytes, lambda base, v: b"".join((v, b""))),
)


def _base(value: Any) -> Any:
    """Return the value of a subclass as its base, provided that the two are equal; refuse everything else.

    An IntEnum, an OrderedDict or a named tuple loses nothing that ``==`` sees. A MultiDict (which shows one
    value and holds many) or a timestamp of nanoseconds would.
    """
    kind = type(value)
    for base, convert in _BASES:
        # Not isinstance: a proxy (a lazy object, a mock) claims the class of what it stands for.
        if issubclass(kind, base):
            try:
                plain = convert(base, value)
                # NaN is unequal to itself; it is refused under its own name.
                if type(plain) is base and (plain == value or plain != plain):
                    return plain
            except Exception as error:  # a subclass runs code of its own
                reason = f" ({_type_name(error)})"
            else:
                reason = ""
            raise _Refused(
                f"a {_type_name(value)} cannot be passed as the {base.__name__} that it extends, the two "
                f"would differ{reason}: pass plain values made from it"
            )
    raise _Refused(_advice(value))


# -- Tags ----------------------------------------------------------------------------------------------------


def _zone_suffix(value: datetime | time) -> str:
    zone = value.tzinfo
    return f"[{zone.key}]" if isinstance(zone, ZoneInfo) and zone.key else ""


def _tag_timedelta(value: timedelta) -> object:
    microseconds = value // timedelta(microseconds=1)
    whole, rest = divmod(abs(microseconds), 1_000_000)
    fraction = f".{rest:06d}".rstrip("0") if rest else ""
    return {"$timedelta": f"{'-' if microseconds < 0 else ''}{whole}{fraction}"}


def _tag_decimal(value: Decimal) -> object:
    if not value.is_finite():
        raise _Refused(f"{value!r} is not a number that JSON knows: pass None, or leave it out")
    return {"$decimal": str(value)}


_TAGGERS: Final[dict[type, Callable[[Any], object]]] = {
    datetime: lambda value: {"$datetime": value.isoformat() + _zone_suffix(value)},
    date: lambda value: {"$date": value.isoformat()},
    time: lambda value: {"$time": value.isoformat() + _zone_suffix(value)},
    timedelta: _tag_timedelta,
    Decimal: _tag_decimal,
    UUID: lambda value: {"$uuid": str(value)},
    bytes: lambda value: {"$bytes": base64.b64encode(value).decode("ascii")},
}


def _read_datetime(text: str) -> datetime:
    text, zone = _split_zone(text)
    value = datetime.fromisoformat(text)
    if zone is None:
        return value
    if value.tzinfo is None:
        return value.replace(tzinfo=zone)
    offset = value.utcoffset()
    for fold in (0, 1):
        there = value.replace(tzinfo=zone, fold=fold)
        if there.utcoffset() == offset:
            return there
    # The zone's rules have changed in between, or differ between the two machines: the moment is what counts.
    return value.astimezone(zone)


def _read_time(text: str) -> time:
    text, zone = _split_zone(text)
    value = time.fromisoformat(text)
    return value if zone is None else value.replace(tzinfo=zone)


def _split_zone(text: str) -> tuple[str, ZoneInfo | None]:
    if not text.endswith("]"):
        return text, None
    text, _, name = text[:-1].partition("[")
    try:
        return text, ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        # Not known on this machine: the offset has to do.
        return text, None


def _read_timedelta(text: str) -> timedelta:
    # Not through float or Decimal: both would round.
    sign = -1 if text.startswith("-") else 1
    whole, _, fraction = text.removeprefix("-").partition(".")
    if len(fraction) > 6 or not (whole + fraction).isdecimal():
        raise ValueError("seconds with at most six decimals are expected")
    return sign * timedelta(seconds=int(whole), microseconds=int(fraction.ljust(6, "0")))


def _read_tuple(content: object) -> object:
    if type(content) is not list:
        raise ValueError(f'the content of {{"$tuple": …}} must be a list, not {_quoted(_repr(content))}')
    return tuple([from_plain(item) for item in content])


def _read_dict(content: object) -> object:
    if type(content) is not dict:
        raise ValueError(f'the content of {{"$dict": …}} must be an object, not {_quoted(_repr(content))}')
    return {key: from_plain(member) for key, member in content.items()}


def _reader(tag: str, read: Callable[[str], object]) -> Callable[[object], object]:
    def restore(content: object) -> object:
        try:
            if type(content) is not str:
                raise TypeError("a string is expected")
            return read(content)
        except (ValueError, TypeError, ArithmeticError) as error:
            shown, reason = _quoted(_repr(content)), f"{_type_name(error)}: {error}"
            raise ValueError(f'{{"{tag}": {shown}}} cannot be read: {reason}') from error

    return restore


_RESTORERS: Final[dict[str, Callable[[object], object]]] = {
    "$datetime": _reader("$datetime", _read_datetime),
    "$date": _reader("$date", date.fromisoformat),
    "$time": _reader("$time", _read_time),
    "$timedelta": _reader("$timedelta", _read_timedelta),
    "$decimal": _reader("$decimal", Decimal),
    "$uuid": _reader("$uuid", UUID),
    "$bytes": _reader("$bytes", lambda text: base64.b64decode(text, validate=True)),
    "$float": _reader("$float", float),
    "$tuple": _read_tuple,
    "$dict": _read_dict,
}


def _parse(what: str, text: str) -> object:
    try:
        return _decode_json(text)
    except RecursionError:
        raise ValueError(f"{what} cannot be read: nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{what} cannot be read: {error}") from error


def _restored(what: str, text: str, plain: Any, restore: Callable[[Any], Any]) -> Any:
    # Most texts hold no tag, and are the value already.
    if '"$' not in text:
        return plain
    try:
        return restore(plain)
    except RecursionError:
        raise ValueError(f"{what} cannot be read: nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{what} cannot be read: {error}") from error


# -- Words ---------------------------------------------------------------------------------------------------


_ADVICE_BY_KIND: Final[tuple[tuple[tuple[type, ...], str], ...]] = (
    ((set, frozenset), "pass sorted(...) or list(...) of it"),
    ((enum.Enum,), "pass its .value"),
    ((type,), "pass the name of the class and look it up in the task"),
    ((bytearray, memoryview), "pass bytes(...) of it"),
    ((PurePath, BaseException), "pass str(...) of it"),
    ((Awaitable,), "await it first, and pass what it returns"),
)
_ADVICE_BY_ATTRIBUTE: Final = (
    ("pk", "pass its primary key (.pk) and load it in the task"),
    ("id", "pass its primary key (.id) and load it in the task"),
    ("model_dump", "pass .model_dump() of it"),
    ("tolist", "pass .tolist() of it"),
)
_ADVICE_BY_PROTOCOL: Final[tuple[tuple[tuple[type, ...], str], ...]] = (
    ((Mapping,), "pass dict(...) of it"),
    ((Iterator, Sequence, Set), "pass list(...) of it"),
    (
        (FunctionType, BuiltinFunctionType, MethodType),
        'pass its path, "module:name", and look it up in the task',
    ),
)


def _advice(value: object) -> str:
    """Say what is wrong with a value that cannot be passed to a task, and what to pass in its place."""
    what = f"a value of type {_type_name(value)} cannot be passed to a task"
    kind = type(value)
    for kinds, advice in _ADVICE_BY_KIND:
        if issubclass(kind, kinds):
            return f"{what}: {advice}"
    if dataclasses.is_dataclass(kind):
        return f"{what}: pass dataclasses.asdict(...) of it"
    for attribute, advice in _ADVICE_BY_ATTRIBUTE:
        # Statically: a property might ask a database.
        if inspect.getattr_static(value, attribute, None) is not None:
            return f"{what}: {advice}"
    for kinds, advice in _ADVICE_BY_PROTOCOL:
        if issubclass(kind, kinds):
            return f"{what}: {advice}"
    return f"{what}: pass plain values made from it, or the key under which the task can load it"


def _too_large(size: str, max_bytes: int) -> NotSerializable:
    return NotSerializable(
        f"the arguments take {size} bytes as JSON, and QUEUE_MAX_PAYLOAD allows {max_bytes:,}: store the "
        "data and pass its key, or raise the setting"
    )


def _oversize(value: object, size: str, max_bytes: int) -> dict[str, object]:
    return _marker(value, f"{size} bytes as JSON, and QUEUE_MAX_PAYLOAD allows {max_bytes:,}")


def _too_deep(value: object) -> dict[str, object]:
    return _marker(value, _TOO_DEEP)


def _marker(value: object, text: str | None = None) -> dict[str, object]:
    return {MARKER: clean_text(_repr(value) if text is None else text, MAX_REPR), "type": _type_name(value)}


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # repr() runs code of the value
        return f"<{_type_name(value)} whose repr() raised {_type_name(error)}>"


def _quoted(text: str) -> str:
    return clean_text(repr(text) if "\0" in text or not text.isprintable() else text, 80)


def _type_name(value: object) -> str:
    kind = type(value)
    try:
        module, name = kind.__module__, kind.__qualname__
        return clean_text(name if module == "builtins" else f"{module}.{name}", 255)
    except Exception:  # a metaclass may compute both
        return "object"
