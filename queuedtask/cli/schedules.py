"""The command schedules: list what runs by the clock, run one now, pause, edit, remove."""

import argparse
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from itertools import islice
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin
from uuid import UUID
from zoneinfo import ZoneInfo

from queuedtask.cli import output
from queuedtask.cli.apps import open_queue
from queuedtask.cli.parser import UsageError
from queuedtask.cli.reading import open_usable, reading
from queuedtask.db import schedules
from queuedtask.db.schedules import ScheduleRow
from queuedtask.errors import InvalidTask, ScheduleNotFound
from queuedtask.model import codec, functions
from queuedtask.model.cron import Cron
from queuedtask.taskqueue import Queue

NEXT_RUNS: Final = 3


# -------------------------------------------------------------------------------------------------------------- listing


def listing(arguments: argparse.Namespace) -> None:
    """Show all schedules."""
    queue = open_queue(arguments)
    rows = _all(queue)
    if arguments.json:
        output.print_json([_described(row, queue) for row in rows])
        return
    headers = ["name", "runs", "time zone", "next runs", "last tick", "paused"]
    output.print_table(headers, [_cells(row) for row in rows], dispensable=["last tick", "time zone"])


def _all(queue: Queue) -> list[ScheduleRow]:
    """Return the schedules of the database and those that the application declares and no worker has written yet."""
    with reading(queue) as cursor:
        rows = {row.name: row for row in schedules.list_schedules(cursor)}
        now = schedules.clock(cursor)
    for name in queue.declarations.keys() - rows.keys():
        declared = queue.declarations[name].schedule()
        rows[name] = ScheduleRow(*declared, False, None, None, None, None, now)
    return [rows[name] for name in sorted(rows)]


def _cron(row: ScheduleRow) -> Cron | None:
    # A row that was written by hand may have anything in it, and is shown all the same.
    try:
        return Cron(row.cron, row.timezone)
    except InvalidTask:
        return None


def _next_runs(row: ScheduleRow, cron: Cron | None) -> list[datetime]:
    if cron is None or row.is_paused:
        return []
    # What is overdue comes first: a worker makes it up.
    overdue = [row.date_next] if row.date_next is not None and row.date_next <= row.now else []
    return [*overdue, *islice(cron.after(row.now), NEXT_RUNS - len(overdue))]


def _described(row: ScheduleRow, queue: Queue) -> dict[str, Any]:
    cron = _cron(row)
    return {
        "name": row.name,
        "function": row.function,
        "args": output.decoded(row.args),
        "kwargs": output.redacted(output.decoded(row.kwargs), queue.config.redact),
        "cron": row.cron,
        "words": cron and cron.words,
        "timezone": row.timezone,
        "misfire": row.misfire,
        "overlap": row.overlap,
        "options": output.decoded(row.options),
        "is_paused": row.is_paused,
        "next_runs": _next_runs(row, cron),
        "date_last_tick": row.date_last_tick,
        "last_task": row.last_task,
    }


def _cells(row: ScheduleRow) -> list[object]:
    cron = _cron(row)
    if cron is None:
        runs: str = output.Alarm(f"cannot be: {row.cron}")
        coming = ""
    else:
        runs = cron.words
        coming = ", ".join(_moment(run, cron.zone, row.now) for run in _next_runs(row, cron))
    last = "" if row.date_last_tick is None else f"{output.span((row.now - row.date_last_tick).total_seconds())} ago"
    return [row.name, runs, row.timezone, coming, last, output.Alarm("paused") if row.is_paused else ""]


def _moment(run: datetime, zone: ZoneInfo, now: datetime) -> str:
    if run <= now:
        return "now"
    local, seconds = run.astimezone(zone), (run - now).total_seconds()
    if seconds < 86400:
        return f"in {output.span(seconds)}"
    year = f" {local.year}" if local.year != now.astimezone(zone).year else ""
    return f"{local:%a} {local.day} {local:%b}{year} at {local:%H:%M:%S}".removesuffix(":00")


# ------------------------------------------------------------------------------------------------------------- changing


def pause(arguments: argparse.Namespace) -> None:
    """Let its ticks pass."""
    open_usable(arguments).pause_schedule(arguments.name)


def resume(arguments: argparse.Namespace) -> None:
    """End its pause."""
    open_usable(arguments).resume_schedule(arguments.name)


def edit(arguments: argparse.Namespace) -> None:
    """Change when it runs."""
    if arguments.cron is None and arguments.timezone is None:
        raise UsageError("schedules edit needs --cron or --timezone")
    with _usage_errors():
        Cron(arguments.cron or "@daily", arguments.timezone or "UTC")
    open_usable(arguments).edit_schedule(arguments.name, cron=arguments.cron, timezone=arguments.timezone)


def remove(arguments: argparse.Namespace) -> None:
    """Delete it."""
    open_usable(arguments).remove_schedule(arguments.name)


# -------------------------------------------------------------------------------------------------------------- running


def run(arguments: argparse.Namespace) -> None:
    """Add a task of it now, and print its id."""
    given = _without_our_options(arguments)
    queue = open_queue(arguments)
    row = next((row for row in _all(queue) if row.name == arguments.name), None)
    if row is None:
        raise ScheduleNotFound(f"there is no schedule {arguments.name!r}; queuedtask schedules lists them")
    kwargs = _keyword_arguments(row, given, queue) if given else {}
    with _usage_errors():
        ref = queue.run_schedule(row.name, **kwargs)
    output.print_line(ref.id)


def _without_our_options(arguments: argparse.Namespace) -> list[str]:
    """Take --app and --database-url from behind NAME, too; what stands after -- is the function's in any case."""
    # argparse drops the -- itself, in some versions; what follows it ends the command line in any case.
    argv: list[str] = arguments.argv
    given: list[str] = arguments.given
    split = len(given) - (len(argv) - argv.index("--") - 1 if "--" in argv else 0)
    before, after = given[: max(0, split)], given[max(0, split) :]
    ours = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    ours.add_argument("-a", "--app")
    ours.add_argument("--database-url")
    _, rest = ours.parse_known_args([each for each in before if each != "--"], arguments)
    return rest + after


def _keyword_arguments(row: ScheduleRow, given: list[str], queue: Queue) -> dict[str, Any]:
    path = queue.config.function_aliases.get(row.function, row.function)
    function = functions.resolve(path)
    parser = argparse.ArgumentParser(
        prog=f"queuedtask schedules run {row.name}",
        description=inspect.getdoc(function),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    own = codec.decode_arguments(row.args, row.kwargs)
    for parameter in _parameters(function, len(own[0])):
        option = f"--{parameter.name.replace('_', '-')}"
        spellings = dict.fromkeys([option, f"--{parameter.name}"])
        default = own[1].get(parameter.name, parameter.default)
        shown = "" if default is parameter.empty else f"default: {default!r}".replace("%", "%%")
        read = _reader(parameter)
        as_flag: dict[str, Any] = {"nargs": "?", "const": True} if read is _boolean else {}
        parser.add_argument(*spellings, dest=parameter.name, type=read, help=shown, metavar="VALUE", **as_flag)
    return vars(parser.parse_args(given))


def _parameters(function: Callable[..., object], filled: int) -> list[inspect.Parameter]:
    """Return what can be given by keyword, without what the schedule's own positional arguments fill."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except (ValueError, TypeError, NameError, AttributeError, SyntaxError):
        signature = inspect.signature(function)
    allowed = [inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY]
    positional = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY][:filled]
    return [p for p in signature.parameters.values() if p.kind in allowed and p not in positional]


def _reader(parameter: inspect.Parameter) -> Callable[[str], Any]:
    """Return what reads an option's text: by the annotation, or else by the type of the default."""
    wanted = parameter.annotation
    if get_origin(wanted) in (Union, UnionType):
        wanted = next((each for each in get_args(wanted) if each is not NoneType), str)
    if wanted in (parameter.empty, Any):
        is_without = parameter.default is parameter.empty or parameter.default is None
        wanted = str if is_without else type(parameter.default)
    return _READERS.get(wanted, _json)


def _reads(name: str, read: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return read(text)
        except (ValueError, ArithmeticError):
            raise argparse.ArgumentTypeError(f"{text!r} is no {name}") from None

    return parse


def _truth(text: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise ValueError(text)
    return _TRUTHS[text.lower()]


_TRUTHS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_boolean = _reads("true or false", _truth)
_json = _reads("JSON", json.loads)
_READERS: Final[dict[Any, Callable[[str], Any]]] = {
    str: str,
    int: _reads("whole number", int),
    float: _reads("number", float),
    bool: _boolean,
    Decimal: _reads("number", Decimal),
    UUID: _reads("UUID", UUID),
    datetime: _reads("time, such as 2026-05-01T08:00+02:00", datetime.fromisoformat),
    date: _reads("date, such as 2026-05-01", date.fromisoformat),
}


@contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except InvalidTask as error:
        raise UsageError(str(error)) from None
