"""Every setting: its type, default, environment variable and help, in one table, the class Config.

The environment is read here, when `Config.resolve` is called, and nowhere else in the package.
"""

import difflib
import logging
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self, get_args

from queuedtask.errors import ConfigError

Source = Literal["default", "config", "environment", "argument", "flag", "assignment"]
_RANK: dict[Source, int] = {source: rank for rank, source in enumerate(get_args(Source))}  # the later wins

RETENTION_DAYS = 30.0

# One lock for all configs, not one in each: assignments are rare, and a Config stays copyable and picklable.
_changing = threading.Lock()


class Kind(NamedTuple):
    """Say what a setting's values look like: which are allowed, and how a text becomes one.

    `check` returns the value to keep or raises whatever comes; a ConfigError's message is shown as a detail.
    """

    name: str
    allowed: str  # completes "must be …"
    check: Callable[[Any], Any]
    parse: Callable[[str], Any] = str


class Setting(NamedTuple):
    """Describe one field of Config, for the docs, the man page and `queuedtask config`."""

    name: str
    environment: tuple[str, ...]  # the first variable that is set counts
    default: Any
    default_text: str
    help: str
    kind: Kind
    secret: bool  # never shown in clear: a URL without its password, anything else as ***


def _require(condition: bool, detail: str = "") -> None:
    if not condition:
        raise ConfigError(detail)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    _require(value != "" and value.isprintable())  # also keeps NUL and lone surrogates out
    return value


def _split(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _integer(least: int, most: int = 2**31 - 1) -> Kind:
    def check(value: Any) -> Any:
        _require(type(value) is int and least <= value <= most)  # a bool is no number
        return value

    return Kind("integer", f"a whole number from {least} to {most}", check, int)


def _number(unit: str, most: int, *, zero: bool = False) -> Kind:
    def check(value: Any) -> float:
        _require(type(value) in (int, float) and (0 < value <= most or (zero and value == 0)))  # nor is NaN
        return float(value)

    least = "0 or more" if zero else "more than 0"
    return Kind(unit, f"a number of {unit}, {least}, at most {most}", check, float)


def _boolean(value: Any) -> Any:
    _require(isinstance(value, bool))
    return value


def _channel_name(value: Any) -> str:
    size = len(_text(value).encode())
    _require(size <= 63, f"it has {size} bytes")  # NOTIFY refuses longer names, LISTEN cuts them
    return _text(value)


_PLACE: Final = re.compile(r"([^:/]*(:[^@]*)?@)?(\[[^/?\]]+\]|[^/:?\[\]]*)(:\d*)?([/?].*)?$", re.DOTALL)


def _postgresql_url(value: Any) -> str:
    scheme, separator, rest = _text(value).partition("://")
    dialect = scheme.partition("+")[0]
    _require(separator != "" and dialect.isalnum(), "it has no scheme")
    _require(dialect.lower() in ("postgresql", "postgres"), f"{dialect} is no PostgreSQL")
    _require(_PLACE.match(rest) is not None, "its host and port cannot be read")
    # Whatever driver it names for others: ours is always the same.
    return f"postgresql+psycopg2://{rest}"


def _directory(value: Any) -> Path:
    path = value if isinstance(value, Path) else Path(_text(value))
    return path.expanduser().absolute()  # absolute: a task may change the current directory


def _pattern(name: str, allowed: str, pattern: str) -> Kind:
    def check(value: Any) -> Any:
        _require(re.fullmatch(pattern, value) is not None)
        return value

    return Kind(name, allowed, check)


def _list(value: Any) -> tuple[str, ...]:
    items = _split(value) if isinstance(value, str) else value
    _require(isinstance(items, list | tuple) and all(_text(item) == item.strip() for item in items))
    return tuple(items)


def _allowed(value: Any) -> tuple[str, ...]:
    patterns = _list(value)
    for pattern in patterns:
        is_one = re.fullmatch(rf"\*|{_DOTTED}(:{_DOTTED}|\.\*)?", pattern) is not None
        _require(is_one, f"{pattern!r} is neither module.function nor package.* nor *")
    return patterns


def _aliases(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        pairs = [[side.strip() for side in item.partition("=")[::2]] for item in _split(value)]
    else:
        pairs = [list(pair) for pair in value.items()]
    for path in [path for pair in pairs for path in pair]:
        _require(re.fullmatch(f"{_DOTTED}:{_DOTTED}", path) is not None, f"{path!r} is not module:function")
    aliases: dict[str, str] = dict(pairs)
    _require(len(aliases) == len(pairs), "an old path stands there twice")
    return aliases


def _channels(value: Any) -> Any:
    items = [item.strip() for item in value.split(",")] if value != "" else []
    _require(all(re.fullmatch(_CHANNEL, item) for item in items))
    names = [re.split("[:@]", item)[0] for item in items]
    _require(len(set(names)) == len(names), "a channel stands there twice")
    return value


def _retention(value: Any) -> float | dict[str, float]:
    if not isinstance(value, Mapping):
        return float(_DAYS.check(value))
    _require(len(value) > 0 and set(value) <= set(_ENDED))
    return {state: float(_DAYS.check(days)) for state, days in value.items()}


def _retention_text(text: str) -> Any:
    if ":" not in text:
        return float(text)
    pairs = [item.partition(":")[::2] for item in _split(text)]
    _require(len({state.strip() for state, _ in pairs}) == len(pairs), "a state stands there twice")
    return {state.strip(): float(days) for state, days in pairs}


def _log_level(value: Any) -> int:
    if isinstance(value, str):
        value = int(value) if value.isdecimal() else logging.getLevelNamesMapping()[value.upper()]
    _require(type(value) is int and 0 <= value <= 1000)
    return int(value)


_ENDED = ("done", "failed", "cancelled", "stopped")
_DAYS = _number("days", 36500)
_RETENTION = Kind(
    "retention",
    "a number of days, more than 0, at most 36500, or one for each state, such as done:7,failed:90",
    lambda value: _retention(_retention_text(value) if isinstance(value, str) else value),
    _retention_text,
)
_SECONDS = _number("seconds", 365 * 24 * 3600)
_SECONDS_OR_ZERO = _number("seconds", 365 * 24 * 3600, zero=True)
_YES_NO = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)
_BOOLEAN = Kind("boolean", "true or false (in text also 1/0, yes/no, on/off)", _boolean, lambda s: _YES_NO[s.lower()])
_CHANNEL_NAME = Kind("name", "a name of 1 to 63 bytes, printable", _channel_name)
_URL = Kind("URL", "a PostgreSQL URL, such as postgresql://user:password@host:5432/name", _postgresql_url)
_DIRECTORY = Kind("directory", "the path of a directory", _directory)
_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_APPLICATION = _pattern("application", "module or module:queue, such as shop.tasks:queue", f"{_DOTTED}(:{_DOTTED})?")
_LIST = Kind("list", "texts, comma-separated or in a list", _list)
_ALLOWED = Kind("patterns", "module.function, package.* or *, comma-separated or in a list", _allowed)
_ALIASES = Kind("mapping", "old.module:function=new.module:function, comma-separated, or a mapping", _aliases)
_CHANNEL = r"[^\s,:@*]{1,64}(:(0|[1-9][0-9]{0,8}))?(@[1-9][0-9]{0,8}/(sec|min|hour|day))?"
_CHANNELS = Kind(
    "channels",
    "name[:limit][@count/unit], comma-separated, with the units sec, min, hour and day",
    _channels,
)
_LOG_LEVEL = Kind("log level", "the name of a logging level or a number from 0 to 1000", _log_level)
_LOG_FORMAT = _pattern("log format", "text or json", "text|json")


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _setting(kind: Kind, default: Any, help: str, *, also: tuple[str, ...] = (), **more: object) -> Any:
    """Declare one field of Config; a callable default is called for each Config."""
    name = "default_factory" if callable(default) else "default"
    return field(**{name: default}, metadata={"kind": kind, "help": help, "also": also, **more})


@dataclass(kw_only=True, repr=False)
class Config:
    """Hold every setting, checked when made and on each assignment, and where each value comes from.

    Reading is a plain attribute read. Assigning is allowed from any thread and is seen at once; it either
    happens or raises ConfigError and changes nothing. Mappings are replaced, not changed in place.
    """

    # fmt: off
    max_workers: int = _setting(
        _integer(1), _usable_cpus, "Number of slots, that is threads, of a worker process.",
        default_text="the number of CPUs that the process may use")
    worker_idle_timeout: float = _setting(
        _SECONDS_OR_ZERO, 60.0, "Time after which an idle slot's thread ends.")
    polling_interval: float = _setting(
        _SECONDS, 2.0, "Time between two looks for tasks while NOTIFY is not in use.")
    fallback_polling_interval: float = _setting(
        _SECONDS, 30.0, "Time between two looks for tasks while NOTIFY is in use.")
    task_timeout: float = _setting(
        _SECONDS, 300.0, "Time that an attempt may take, unless its task says otherwise.")
    max_retries: int = _setting(
        _integer(0), 3, "Number of retries after a failure, unless the task says otherwise.")
    use_postgresql_notify: bool = _setting(
        _BOOLEAN, True, "Whether NOTIFY wakes the workers when tasks are added.", default_text="true")
    notify_channel: str = _setting(
        _CHANNEL_NAME, "queue_new_task", "Name of the NOTIFY channel, the same for producers and workers.")
    database_url: str | None = _setting(
        _URL, None, "Database that holds the tasks.", default_text="the embedded PostgreSQL",
        also=("DATABASE_URL",), secret=True)
    listen_url: str | None = _setting(
        _URL, None, "Direct connection for LISTEN when the database is reached through PgBouncer.",
        default_text="the same as database_url", secret=True)
    pool_size: int = _setting(
        _integer(1), 5, "Number of database connections that a Queue's pool keeps.")
    embedded_dir: Path | None = _setting(  # noqa: RUF009 (it is a dataclass field)
        _DIRECTORY, None, "Directory of the embedded PostgreSQL.", default_text="one among the user's data")
    app: str | None = _setting(
        _APPLICATION, None, "Application that the command line imports, and its Queue.")
    heartbeat_interval: float = _setting(
        _SECONDS, 5.0, "Time between two heartbeats of a worker.")
    lease: float = _setting(
        _SECONDS, 30.0, "Silence of a worker after which its tasks are taken back; above heartbeat_interval.")
    max_lost: int = _setting(
        _integer(1), 3, "Number of times that a task may lose its process before it fails.")
    timeout_grace: float = _setting(
        _SECONDS_OR_ZERO, 5.0, "Time that an attempt past its timeout gets to end by itself.")
    max_stuck_slots: int | None = _setting(
        _integer(1), None, "Number of stuck slots at which a worker process is replaced.",
        default_text="the number of slots")
    shutdown_timeout: float = _setting(
        _SECONDS_OR_ZERO, 30.0, "Time that running tasks get to finish when a worker is told to stop.")
    max_payload: int = _setting(
        _integer(1, 2**28 - 1), 1024 * 1024, "Largest size of a task's serialised arguments, in bytes.")
    retention_days: float | Mapping[str, float] = _setting(
        _RETENTION, RETENTION_DAYS, "Time for which ended tasks are kept, in days; or for each state, the others 30.")
    channels: str = _setting(
        _CHANNELS, "", "Limits that channels get which have none yet, such as mail:2,api:4@10/min.")
    secret_key: tuple[str, ...] = _setting(
        _LIST, (), "Keys for pickled functions: the first one signs, any of them verifies.", secret=True)
    allowed_functions: tuple[str, ...] = _setting(
        _ALLOWED, (), "Functions that a worker may run: shop.* with all below it, mail.send exactly.",
        default_text="all")
    function_aliases: Mapping[str, str] = _setting(
        _ALIASES, dict, "New paths of functions that were moved while tasks still name the old ones.")
    redact: tuple[str, ...] = _setting(
        _LIST, (), "Names or patterns of keyword arguments whose values are shown as ***.")
    log_level: int = _setting(
        _LOG_LEVEL, logging.INFO, "Level from which log records of tasks are stored.", default_text="INFO")
    log_format: str = _setting(
        _LOG_FORMAT, "text", "How a worker writes its log on stderr: text, or a JSON object for each line.")
    health_max_stuck: int = _setting(
        _integer(0), 10, "Number of stuck tasks above which the queue's health is degraded.")
    # fmt: on

    sources: Mapping[str, Source] = field(init=False, compare=False)

    def __new__(cls, **values: object) -> Self:
        """Note which fields are given, which the generated `__init__` cannot tell from its defaults."""
        for name in values:
            _known(name)
        config = super().__new__(cls)
        vars(config)["sources"] = {name: "config" if name in values else "default" for name in _SETTINGS}
        return config

    def __post_init__(self) -> None:
        self._change(("config", self._given()))

    def __setattr__(self, name: str, value: object) -> None:
        if name in _SETTINGS and name not in vars(self):
            vars(self)[name] = value  # by the generated __init__; __post_init__ checks them all
        else:
            self._change(("assignment", {name: value}))

    def __delattr__(self, name: str) -> None:
        raise ConfigError(f"{name} cannot be deleted, only assigned")

    def __repr__(self) -> str:
        given = (f"{name}={_shown(_SETTINGS[name], value)!r}" for name, value in self._given().items())
        return f"Config({', '.join(given)})"

    @classmethod
    def resolve(
        cls,
        given: "Config | None" = None,
        *,
        arguments: Mapping[str, object] = {},
        environ: Mapping[str, str] | None = None,
        ignoring: Collection[str] = (),
    ) -> "Config":
        """Make a Queue's config: `arguments` over the environment over `given` over the defaults.

        `given` is left as it is. An argument of None is not given. A variable that an argument overrides is
        not even checked: a DATABASE_URL that is meant for something else does no harm. Nor is one of `ignoring`.
        """
        arguments = {name: value for name, value in arguments.items() if value is not None}
        present = os.environ if environ is None else environ
        environment = _read({name: text for name, text in present.items() if name not in ignoring}, without=arguments)
        config = cls()
        config._change(
            ("config", given._given() if given else {}), ("environment", environment), ("argument", arguments)
        )
        return config

    def set_flags(self, **values: object) -> None:
        """Take over the command line's options, typed or as text; None is an option that was not given."""
        flags = {name: value for name, value in values.items() if value is not None}
        for name, value in flags.items():
            flags[name] = _checked(_known(name), value, name, text=isinstance(value, str))
        self._change(("flag", flags))

    @property
    def retention(self) -> dict[str, float]:
        """For how many seconds tasks are kept after their end, by state."""
        days = self.retention_days
        given = dict(days) if isinstance(days, Mapping) else dict.fromkeys(_ENDED, days)
        return {state: given.get(state, RETENTION_DAYS) * 86400.0 for state in _ENDED}

    @property
    def wake_channel(self) -> str | None:
        """Return the NOTIFY channel by which workers are woken; None while NOTIFY is not in use."""
        return self.notify_channel if self.use_postgresql_notify else None

    def as_dict(self, mask: bool = True) -> dict[str, dict[str, Any]]:
        """Return each field's value, in JSON's types, and its source; `mask=False` shows the secrets."""
        sources, values = self.sources, vars(self)
        return {
            name: {"value": _shown(spec, values[name], mask), "source": sources[name]}
            for name, spec in _SETTINGS.items()
        }

    @staticmethod
    def settings() -> list[Setting]:
        """List every setting, in the order of the docs."""
        return list(_SETTINGS.values())

    @staticmethod
    def unknown_variables(environ: Mapping[str, str] | None = None) -> list[tuple[str, str | None]]:
        """List the variables QUEUE_… that are no setting, each with the one that may be meant."""
        known = {variable for spec in _SETTINGS.values() for variable in spec.environment}
        names = sorted(os.environ if environ is None else environ)
        unknown = [name for name in names if name.startswith("QUEUE_") and name not in known]
        nearest = [_closest(name.removeprefix("QUEUE_").lower()) for name in unknown]
        return [(name, near and f"QUEUE_{near.upper()}") for name, near in zip(unknown, nearest, strict=True)]

    def _given(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name, source in self.sources.items() if source != "default"}

    def _change(self, *layers: tuple[Source, Mapping[str, Any]]) -> None:
        """Lay the layers over the present values, each where it ranks as high; if one is refused, none."""
        with _changing:
            values: dict[str, Any] = {}
            sources = dict(self.sources)
            for source, layer in layers:
                for name, value in layer.items():
                    checked = _checked(_known(name), value, name)
                    if _RANK[source] >= _RANK[sources[name]]:
                        values[name], sources[name] = checked, source
            after = vars(self) | values
            if after["lease"] <= after["heartbeat_interval"]:
                limit = f"more than heartbeat_interval, which is {after['heartbeat_interval']:g}"
                raise ConfigError(f"lease={after['lease']:g}: must be {limit}")
            vars(self).update(values, sources=sources)  # a new dict: who reads the old one is not disturbed


def _describe() -> Iterable[Setting]:
    for item in fields(Config):
        meta = item.metadata
        if meta:
            default = item.default_factory() if callable(item.default_factory) else item.default
            empty = default in (None, "", (), {})
            text = "none" if empty else f"{default:g}" if isinstance(default, float) else str(default)
            yield Setting(
                name=item.name,
                environment=(f"QUEUE_{item.name.upper()}", *meta["also"]),
                default=default,
                default_text=meta.get("default_text", text),
                help=meta["help"],
                kind=meta["kind"],
                secret=meta.get("secret", False),
            )


_SETTINGS: dict[str, Setting] = {spec.name: spec for spec in _describe()}


def _closest(name: str) -> str | None:
    return next(iter(difflib.get_close_matches(name, _SETTINGS, n=1)), None)


def _known(name: str) -> Setting:
    if name not in _SETTINGS:
        near = _closest(name)
        raise ConfigError(f"there is no setting {name!r}" + (f", did you mean {near!r}?" if near else ""))
    return _SETTINGS[name]


def _checked(spec: Setting, value: Any, label: str, *, text: bool = False) -> Any:
    """Return the value to keep; the error calls it `label`, the name under which the user gave it."""
    if value is None and spec.default is None:
        return None
    try:
        return spec.kind.check(spec.kind.parse(value) if text else value)
    except ConfigError as error:
        detail = f" ({error})" if str(error) and not (spec.secret and spec.kind is not _URL) else ""
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):  # whatever the wrong type does
        detail = ""
    raise ConfigError(f"{label}={_masked(spec, value)!r}: must be {spec.kind.allowed}{detail}")


def _read(environ: Mapping[str, str], *, without: Iterable[str]) -> dict[str, Any]:
    values = {}
    for name in [name for name in _SETTINGS if name not in without]:
        for variable in _SETTINGS[name].environment:
            text = environ.get(variable, "").strip()  # secrets kept in files tend to end in a newline
            if text:
                values[name] = _checked(_SETTINGS[name], text, variable, text=True)
                break
    return values


def _masked(spec: Setting, value: Any) -> Any:
    if not spec.secret or not value:
        return value
    return _without_password(value) if spec.kind is _URL and isinstance(value, str) else "***"


def _without_password(url: str) -> str:
    """Mask what may be a password, rather too much than too little: refused URLs are shown as well."""
    url = re.sub(r"(?i)(\w*password\w*\s*=\s*)[^&\s]*", r"\1***", url)
    return re.sub(r"(?s)^(\w[\w+.-]*://[^:]*:|(?!\w[\w+.-]*://)).*@", r"\1***@", url)


def _shown(spec: Setting, value: Any, mask: bool = True) -> Any:
    """Turn a value into JSON's types."""
    value = _masked(spec, value) if mask else value
    if spec.kind is _LOG_LEVEL:
        name = logging.getLevelName(value)
        return value if name.startswith("Level ") else name
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


@contextmanager
def handed_down(variable: str, value: str) -> Iterator[None]:
    """Set a variable for the processes that are started inside the block, unless whoever started us has set it."""
    if variable in os.environ:
        yield
        return
    os.environ[variable] = value
    try:
        yield
    finally:
        del os.environ[variable]
