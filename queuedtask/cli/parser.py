"""The command line's grammar: every command, option and word of help.

It imports neither SQLAlchemy nor rich: the man page is built from :func:`build_parser` where nothing is installed, and
``--help`` answers at once.
"""

import argparse
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from queuedtask import __version__
from queuedtask.config import Config
from queuedtask.model import states
from queuedtask.model.address import Address
from queuedtask.model.limits import EVERYTHING

EXIT_CODES = """\
exit codes:
  0    all is well
  1    something failed or is unhealthy; the reason is on stderr
  2    the command line is wrong: an unknown option, a value that cannot
       be, a confirmation that nobody can give
  130  interrupted with Ctrl-C
  141  whoever read the output has closed it
"""

LONGEST_DURATION = 100 * 366 * 86400
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class UsageError(Exception):
    """Refuse a command line that the parser alone could not refuse: exit code 2."""


def duration(text: str) -> float:
    """Return the seconds of 90, 90s, 15m, 1h or 2d."""
    number, unit = (text[:-1], text[-1]) if text[-1:].isalpha() else (text, "")
    if not number.isdecimal() or unit not in _UNITS or len(number) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration, such as 90, 90s, 15m, 1h or 2d")
    seconds = int(number) * _UNITS[unit]
    if seconds > LONGEST_DURATION:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 100 years")
    return seconds


def task_id(text: str) -> str:
    """Return the canonical form of a task's id."""
    try:
        return str(UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a task's id: a UUID is") from None


def channel_name(text: str) -> str:
    """Return a channel's name."""
    if not 1 <= len(text) <= 64 or text == EVERYTHING or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is no channel's name")
    return text


def channel_names(text: str) -> list[str]:
    """Return the names of channels, separated by commas."""
    return [channel_name(name.strip()) for name in text.split(",")]


def number(least: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from some limit up."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text[:20]) < 2**31:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {2**31 - 1}")
        return int(text)

    return parse


def address(text: str) -> Address:
    """Return an address to listen on."""
    try:
        return Address.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class _Parser(argparse.ArgumentParser):
    """Options are never abbreviated: what works today must not become ambiguous when an option is added."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **given})


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="queuedtask",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Add tasks to PostgreSQL in your own transactions, run them in threads, see what happened.\n"
        "Without a configured database every command uses one embedded PostgreSQL, started on demand.\n"
        "queuedtask and python -m queuedtask are the same. Each command explains itself:\n"
        "queuedtask COMMAND --help.",
        epilog=f"{EXIT_CODES}\n{_environment()}",
    )
    parser.add_argument("--version", action="version", version=f"queuedtask {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    database, json = _database_options(), _json_option()
    reading = (_status, _health, _metrics, _stats, _servers, _tasks, _show, _logs)
    control = (_retry, _cancel, _stop, _clear, _purge, _pause, _resume)
    for add in (_worker, _serve, *reading, *control, _check, _config, _schedules):
        add(commands, database, json)
    _db(commands, database, json)
    _demo(commands, database)
    return parser


def _environment() -> str:
    lines = ["environment variables (a flag wins over the variable, the variable over the default):"]
    for setting in Config.settings():
        lines += _described(", ".join(setting.environment), f"{setting.help} Default: {setting.default_text}.")
    return "\n".join([*lines, *_described("NO_COLOR", "If set, no colours on a terminal.")])


def _described(name: str, text: str) -> list[str]:
    # Narrow enough for a man page, which indents it once more and breaks what is longer.
    return [f"  {name}", *textwrap.wrap(text, 70, initial_indent=" " * 6, subsequent_indent=" " * 6)]


def _database_options(**given: Any) -> argparse.ArgumentParser:
    common = _Parser(add_help=False, **given)
    common.add_argument(
        "-a",
        "--app",
        metavar="MODULE[:QUEUE]",
        help="import this application, the current directory on the path, and use its Queue: the only one in the "
        "module, or the one that is named (default: QUEUE_APP; without it a Queue from the environment)",
    )
    common.add_argument(
        "--database-url", metavar="URL", help="the database that holds the tasks (default: QUEUE_DATABASE_URL)"
    )
    return common


def _json_option() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON: stable keys, times in ISO 8601 and UTC")
    return common


_Commands = Any  # argparse's own class of sub-parsers is private
_Options = argparse.ArgumentParser


def _worker(commands: _Commands, database: _Options, json: _Options) -> None:
    worker = commands.add_parser(
        "worker",
        aliases=["start"],
        parents=[database],
        help="run tasks",
        description="Run tasks in threads until told to stop. This process supervises the worker processes (-p),\n"
        "restarts one that dies and replaces one that cannot be used any more.\n"
        "SIGTERM or Ctrl-C: claim nothing more, finish what runs within the shutdown timeout, give the rest back\n"
        "(no retry is used), exit with 0. A second signal gives everything back at once.\n"
        "SIGHUP: the same with new processes started first, so that new code is loaded without a gap.\n"
        "SIGUSR1: the stacks of all threads on stderr.\n"
        "The exit code says how the worker ended, not how its tasks did: 0 when it ended in order, 1 when it could\n"
        "not start or go on (the application cannot be imported, the tables are missing).",
    )
    worker.set_defaults(run="work:worker")
    worker.add_argument(
        "-w", "--workers", metavar="N", help="number of slots, that is threads (default: QUEUE_MAX_WORKERS)"
    )
    worker.add_argument(
        "-p",
        "--processes",
        metavar="N",
        type=number(1),
        default=1,
        help="number of worker processes, each with its slots (default: 1)",
    )
    worker.add_argument("--burst", action="store_true", help="end when no task is left that could run now")
    worker.add_argument(
        "--http",
        metavar="ADDRESS",
        dest="probes",
        type=address,
        help="serve probes over HTTP, in a process of their own: /live, /ready, /healthz and /metrics "
        "(pip install 'queuedtask[http,prometheus]')",
    )
    _tree_options(worker)

    # For the processes that ours start: the numbers of the descriptors that they inherit.
    worker.add_argument("--supervised", help=argparse.SUPPRESS)
    worker.add_argument("--isolated", help=argparse.SUPPRESS)


def _tree_options(command: argparse.ArgumentParser) -> None:
    """Add what is said of worker processes, and of the supervisor, wherever there are some."""
    command.add_argument(
        "-q",
        "--queues",
        metavar="CHANNEL[,CHANNEL…]",
        type=channel_names,
        help="run tasks of these channels only (default: of all)",
    )
    command.add_argument(
        "--shutdown-timeout",
        metavar="SECONDS",
        help="time that running tasks get when the worker is told to stop (default: QUEUE_SHUTDOWN_TIMEOUT)",
    )
    command.add_argument(
        "--max-tasks",
        metavar="N",
        type=number(1),
        help="replace a process that has had so many tasks, the new one starting first (default: never)",
    )
    command.add_argument(
        "--max-rss",
        metavar="MB",
        type=number(1),
        help="replace a process that has more memory than this, in MiB, the new one starting first (default: never)",
    )
    command.add_argument(
        "--log-level",
        metavar="LEVEL",
        help="level from which records are stored and shown on stderr; DEBUG shows every step "
        "(default: QUEUE_LOG_LEVEL)",
    )
    command.add_argument(
        "--log-format",
        metavar="FORMAT",
        help="text, or json: an object for each line on stderr (default: QUEUE_LOG_FORMAT)",
    )
    command.add_argument(
        "--liveness-file",
        metavar="PATH",
        type=Path,
        help="set this file's time at least every second while the supervisor goes round and no process is silent; "
        "delete it at the end",
    )


def _serve(commands: _Commands, database: _Options, json: _Options) -> None:
    serve = commands.add_parser(
        "serve",
        parents=[database],
        help="serve HTTP, with workers beside it",
        description="Serve a WSGI application with waitress (pip install 'queuedtask[http]') and run tasks beside it,\n"
        "under one supervisor. --workers is 0 by default: serve APP is HTTP only, serve APP --workers=3 is both,\n"
        "serve --workers=3 --no-http runs tasks only. Without APP it serves /healthz, /metrics, /live and /ready.\n"
        "The line on stdout says where it serves. The workers use the Queue of --app; APP is imported by the process\n"
        "that serves, and by no other.\n"
        "SIGTERM or Ctrl-C: accept nothing more, answer what was asked, then finish what tasks run and give the rest\n"
        "back, all of it within the shutdown timeout; exit with 0. A second signal ends all at once.\n"
        "SIGHUP: start new processes with new code, then end the old ones; no connection is lost.\n"
        "SIGUSR1: the stacks of all threads on stderr.",
    )
    serve.set_defaults(run="serve:serve")
    serve.add_argument(
        "application",
        metavar="APP",
        nargs="?",
        help="the WSGI application: MODULE:NAME, MODULE:FACTORY(), or MODULE alone for its app or application",
    )
    serve.add_argument(
        "--bind",
        metavar="ADDRESS",
        type=address,
        default="127.0.0.1:8000",
        help="where to listen: HOST:PORT, [IPV6]:PORT or unix:/PATH; port 0 takes a free one (default: 127.0.0.1:8000)",
    )
    serve.add_argument("--threads", metavar="N", type=number(1), default=8, help="requests at a time (default: 8)")
    serve.add_argument(
        "-w",
        "--workers",
        metavar="N",
        type=number(0),
        default=0,
        help="number of slots, that is threads for tasks, of each worker process (default: 0, no workers)",
    )
    serve.add_argument(
        "-p",
        "--processes",
        metavar="N",
        type=number(1),
        help="number of worker processes, with slots each (default: 1)",
    )
    serve.add_argument("--no-http", action="store_true", help="run tasks only; needs --workers")
    serve.add_argument(
        "--probes",
        metavar="ADDRESS",
        type=address,
        help="serve /healthz, /metrics, /live and /ready at an address of their own, whatever APP serves",
    )
    _tree_options(serve)

    # For the process that serves: the numbers of the descriptors that it inherits.
    serve.add_argument("--supervised", help=argparse.SUPPRESS)


def _status(commands: _Commands, database: _Options, json: _Options) -> None:
    status = commands.add_parser(
        "status",
        parents=[database, json],
        help="how many tasks are in which state, and who works",
        description="Show the tasks by state, the live workers and the task that has been waiting longest for a slot.\n"
        "With --watch also what runs and how far it is, again every second until Ctrl-C; with --json one object per\n"
        "line then.",
    )
    status.set_defaults(run="reading:status")
    status.add_argument("--watch", action="store_true", help="show it again every second, with the running tasks")


def _stats(commands: _Commands, database: _Options, json: _Options) -> None:
    stats = commands.add_parser(
        "stats",
        parents=[database, json],
        help="states, failures and run times by task name",
        description="Show, for each task name, the states, failed attempts, average and 95th percentile of the run\n"
        "time, and what ended within the last hour. All of it counts the newest tasks only (--sample), so that it is\n"
        "answered quickly on a large table.",
    )
    stats.set_defaults(run="reading:stats")
    stats.add_argument(
        "--sample", metavar="N", type=number(1), default=100_000, help="how many tasks to look at (default: 100000)"
    )


def _servers(commands: _Commands, database: _Options, json: _Options) -> None:
    servers = commands.add_parser(
        "servers",
        parents=[database, json],
        help="the worker processes and what they run now",
        description="Show every worker process, those of one supervisor together: its slots, stuck slots, refused\n"
        "writes, how long ago it last reported, and what its slots have been running for more than half a second.\n"
        "What is amiss is red.",
    )
    servers.set_defaults(run="reading:servers")


def _tasks(commands: _Commands, database: _Options, json: _Options) -> None:
    tasks = commands.add_parser(
        "tasks", parents=[database, json], help="list tasks", description="List tasks, the newest first."
    )
    tasks.set_defaults(run="reading:tasks")
    tasks.add_argument(
        "--state",
        choices=["waiting", "enqueued", "doing", "done", "failed", "cancelled", "stopped"],
        metavar="STATE",
        help="only those that are waiting, enqueued, doing, done, failed, cancelled or stopped",
    )
    tasks.add_argument("--name", help="only those of this name")
    tasks.add_argument("--channel", help="only those of this channel")
    tasks.add_argument("--limit", metavar="N", type=number(1), default=50, help="at most so many (default: 50)")


def _show(commands: _Commands, database: _Options, json: _Options) -> None:
    show = commands.add_parser(
        "show",
        parents=[database, json],
        help="everything about one task",
        description="Show a task: its arguments, dates, context, result, and how every attempt ended that did not\n"
        "succeed, with its stack.",
    )
    show.set_defaults(run="reading:show")
    show.add_argument("id", metavar="ID", type=task_id, help="the task's id")


def _logs(commands: _Commands, database: _Options, json: _Options) -> None:
    logs = commands.add_parser(
        "logs",
        parents=[database, json],
        help="what a task has logged",
        description="Show the lines that were logged inside a task. With --json there is one object per line.",
    )
    logs.set_defaults(run="reading:logs")
    logs.add_argument("id", metavar="ID", type=task_id, help="the task's id")
    logs.add_argument("--follow", action="store_true", help="go on until the task has ended")


def _retry(commands: _Commands, database: _Options, json: _Options) -> None:
    retry = commands.add_parser(
        "retry",
        parents=[database],
        help="send ended tasks round again",
        description="Send tasks round again: those that are named, whatever way they ended, or else every failed one\n"
        "that fits (--state: those that ended otherwise). Made for cron: prints nothing on success unless it stands\n"
        "on a terminal, does no harm when it is called twice, shares the work with another one that runs at the same\n"
        "time, and leaves a task alone that was sent round --max-requeues times before, or whose unique key another\n"
        "one has by now.",
    )
    retry.set_defaults(run="control:retry")
    retry.add_argument("ids", metavar="ID", nargs="*", type=task_id, help="the tasks; without any, all failed ones")
    retry.add_argument(
        "--since", metavar="TIME", type=duration, help="only those that failed within this time: 90s, 15m, 1h, 2d"
    )
    retry.add_argument("--name", help="only those of this name")
    retry.add_argument("--channel", help="only those in this channel")
    retry.add_argument(
        "--state",
        choices=states.FINAL,
        metavar="STATE",
        help="those that are done, failed, cancelled or stopped (default: failed)",
    )
    retry.add_argument("--limit", metavar="N", type=number(1), help="at most so many, the longest failed ones first")
    retry.add_argument(
        "--max-requeues",
        metavar="N",
        type=number(0),
        help="leave a task alone that was sent round so often (default: 3)",
    )
    retry.add_argument("--dry-run", action="store_true", help="list what would go round again and change nothing")
    retry.add_argument("-v", "--verbose", action="store_true", help="say how many, also without a terminal")


def _cancel(commands: _Commands, database: _Options, json: _Options) -> None:
    cancel = commands.add_parser(
        "cancel",
        parents=[database],
        help="call tasks off",
        description="Cancel tasks: those that are named, or else every one that fits and has not ended. A pending one\n"
        "ends at once. A running one is asked to end (should_abort() turns true, a coroutine is cancelled), and after\n"
        "QUEUE_TIMEOUT_GRACE it is made to, as if it had outlived its timeout. If it returns before, it is done.\n"
        "Either way it does not run again. Prints nothing on success unless it stands on a terminal.",
    )
    cancel.set_defaults(run="control:cancel")
    _which_to_end(cancel, "cancelled")


def _stop(commands: _Commands, database: _Options, json: _Options) -> None:
    stop = commands.add_parser(
        "stop",
        parents=[database],
        help="end tasks, also those that run",
        description="Stop tasks: those that are named, or else every one that fits and has not ended. A pending one\n"
        "ends at once, a running one is made to end without delay, as if it had outlived its timeout. It does not run\n"
        "again. This stops tasks, not workers: those stop at SIGTERM. Prints nothing on success unless it stands on a\n"
        "terminal.",
    )
    stop.set_defaults(run="control:stop")
    _which_to_end(stop, "stopped")


def _which_to_end(command: argparse.ArgumentParser, participle: str) -> None:
    command.add_argument("ids", metavar="ID", nargs="*", type=task_id, help="the tasks")
    command.add_argument("--all", action="store_true", help="every task that has not ended")
    command.add_argument(
        "--state",
        choices=(*states.PENDING, states.DOING),
        metavar="STATE",
        help="only those that are waiting, enqueued or doing",
    )
    command.add_argument("--name", help="only those of this name")
    command.add_argument("--channel", help="only those in this channel")
    command.add_argument(
        "--since", metavar="TIME", type=duration, help="only those added within this time: 90s, 15m, 1h, 2d"
    )
    command.add_argument("--limit", metavar="N", type=number(1), help="at most so many, the oldest ones first")
    command.add_argument("--dry-run", action="store_true", help=f"list what would be {participle} and change nothing")
    command.add_argument("-v", "--verbose", action="store_true", help="say how many, also without a terminal")


def _clear(commands: _Commands, database: _Options, json: _Options) -> None:
    clear = commands.add_parser(
        "clear",
        parents=[database],
        help="delete the pending tasks",
        description="Delete every task that is waiting or enqueued. What runs goes on. Asks before, and needs --yes\n"
        "where there is no terminal to ask on.",
    )
    clear.set_defaults(run="control:clear")
    clear.add_argument("--yes", action="store_true", help="do not ask")


def _pause(commands: _Commands, database: _Options, json: _Options) -> None:
    pause = commands.add_parser(
        "pause",
        parents=[database],
        help="have no more tasks run, of one channel or at all",
        description="Have no more tasks of a channel claimed, on any server; without a CHANNEL, none at all.\n"
        "What runs goes on, and tasks can still be added. See resume.",
    )
    pause.set_defaults(run="control:pause")
    pause.add_argument("channel", metavar="CHANNEL", nargs="?", type=channel_name, help="the channel (default: all)")


def _resume(commands: _Commands, database: _Options, json: _Options) -> None:
    resume = commands.add_parser(
        "resume",
        parents=[database],
        help="undo pause",
        description="Undo pause. A channel's limit of 0, which is a pause too, becomes none.\n"
        "Without a CHANNEL, channels that were paused by name stay so.",
    )
    resume.set_defaults(run="control:resume")
    resume.add_argument(
        "channel", metavar="CHANNEL", nargs="?", type=channel_name, help="the channel (default: what pause did to all)"
    )


def _purge(commands: _Commands, database: _Options, json: _Options) -> None:
    purge = commands.add_parser(
        "purge",
        parents=[database],
        help="delete tasks that have ended",
        description="Delete tasks that have ended and were kept for long enough, with their logs. Workers do that by\n"
        "themselves. Works in short transactions beside the workers, passes over what somebody else has locked, and\n"
        "leaves a task that has a child which has not ended. Does not ask, and prints nothing on success unless it\n"
        "stands on a terminal.",
    )
    purge.set_defaults(run="control:purge")
    purge.add_argument(
        "--state",
        action="append",
        choices=["done", "failed", "cancelled", "stopped"],
        metavar="STATE",
        help="only those that are done, failed, cancelled or stopped; may be given several times",
    )
    purge.add_argument(
        "--older-than",
        metavar="TIME",
        type=duration,
        help="those that ended at least so long ago: 90s, 15m, 1h, 30d (default: QUEUE_RETENTION_DAYS)",
    )
    purge.add_argument("--dry-run", action="store_true", help="say how many would be deleted and change nothing")
    purge.add_argument("-v", "--verbose", action="store_true", help="say how many, also without a terminal")


def _check(commands: _Commands, database: _Options, json: _Options) -> None:
    check = commands.add_parser(
        "check",
        parents=[database, json],
        help="tell whether all is well, for monitoring",
        description="Check that the database can be reached, that its schema is the one this release works with, and\n"
        "that a worker lives (it has reported within QUEUE_LEASE, or its own lease if that is longer, by the clock of\n"
        "the database). Exit code 0, else 1 and the reason on stderr.",
    )
    check.set_defaults(run="control:check")


def _health(commands: _Commands, database: _Options, json: _Options) -> None:
    health = commands.add_parser(
        "health",
        parents=[database, json],
        help="healthy, degraded or unhealthy, and why",
        description="Say how the queue is, as Queue.health() does: healthy; degraded, as when more tasks are stuck\n"
        "than QUEUE_HEALTH_MAX_STUCK; or unhealthy, as when no worker lives. Exit code 1 when it is unhealthy; what\n"
        "is amiss is on stderr.",
    )
    health.set_defaults(run="reading:health")


def _metrics(commands: _Commands, database: _Options, json: _Options) -> None:
    metrics = commands.add_parser(
        "metrics",
        parents=[database, json],
        help="what is pending, runs, has failed and takes how long",
        description="Show the figures of Queue.metrics(), of all tasks and by channel and name. Above 100,000 tasks\n"
        "of a kind they are estimates, so that it is answered quickly on a large table.",
    )
    metrics.set_defaults(run="reading:metrics")


def _config(commands: _Commands, database: _Options, json: _Options) -> None:
    config = commands.add_parser(
        "config",
        parents=[database, json],
        help="every setting, its value and where it comes from",
        description="Show every setting with its value, its source (default, config, environment, argument, flag) and\n"
        "its environment variable. Passwords and keys are masked. Needs no database; where one can be reached,\n"
        "channels are shown whose limits there, which rule, are not those of QUEUE_CHANNELS.",
    )
    config.set_defaults(run="reading:config")


def _schedules(commands: _Commands, database: _Options, json: _Options) -> None:
    schedules = commands.add_parser(
        "schedules",
        parents=[database, json],
        help="what runs by the clock: list, run now, pause, edit, remove",
        description="Show the schedules: when they run, in words, their next runs in their own time zones, and\n"
        "whether they are paused. Workers write them when they start.",
    )
    schedules.set_defaults(run="schedules:listing", action=None)
    # An option that stands before ACTION must not be overwritten by the default of the one behind it.
    behind = _database_options(argument_default=argparse.SUPPRESS)
    actions = schedules.add_subparsers(dest="action", metavar="ACTION", title="actions")

    def action(name: str, help: str, description: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = actions.add_parser(name, parents=[behind], help=help, description=description)
        added.set_defaults(run=f"schedules:{name}")
        added.add_argument("name", metavar="NAME", help="the schedule's name")
        return added

    run = action(
        "run",
        "run one now",
        "Add a task of a schedule now, beside its ticks, and print its id. What follows NAME are keyword arguments\n"
        "of its function, as options: --limit 5 for a parameter limit. They are read by their annotations, or else by\n"
        "the types of their defaults; those that are not given are the schedule's own. NAME --help lists them.",
    )
    run.add_argument(
        "given", metavar="...", nargs=argparse.REMAINDER, help="options with the function's keyword arguments"
    )
    action("pause", "let its ticks pass", "Let a schedule's ticks pass until it is resumed, whatever is deployed.")
    action(
        "resume",
        "end its pause",
        "Let a paused schedule go on with its next tick from now; what passed is not made up.",
    )
    edit = action(
        "edit",
        "change when it runs",
        "Give a schedule another line or time zone. It stays until the code says something else than it does now.",
    )
    edit.add_argument("--cron", metavar="LINE", help="five fields of cron, six with the seconds first, or @daily etc.")
    edit.add_argument("--timezone", metavar="ZONE", help="a time zone's name, such as Europe/Paris")
    action(
        "remove",
        "delete it",
        "Delete a schedule; its tasks stay. One that the code still declares comes back when a worker starts.",
    )


def _db(commands: _Commands, database: _Options, json: _Options) -> None:
    db = commands.add_parser(
        "db",
        help="the database: its tables, and the embedded server",
        description="Make or upgrade the tables; start, stop and find the embedded PostgreSQL that is used when no\n"
        "database is configured.",
    )
    actions = db.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    start = actions.add_parser(
        "start",
        parents=[database],
        help="start the embedded server",
        description="Start the embedded PostgreSQL, unless it runs, and upgrade its tables.",
    )
    start.set_defaults(run="database:start")
    stop = actions.add_parser(
        "stop",
        parents=[database],
        help="stop the embedded server",
        description="Stop the embedded PostgreSQL. Its data stays; the next command that needs it starts it again.",
    )
    stop.set_defaults(run="database:stop")
    status = actions.add_parser(
        "status",
        parents=[database, json],
        help="where the database is and which schema it has",
        description="Show where the database is, whether it can be reached (exit code 1 if not) and which version of\n"
        "the schema it has. Starts nothing.",
    )
    status.set_defaults(run="database:status")
    upgrade = actions.add_parser(
        "upgrade",
        parents=[database],
        help="make or upgrade the tables",
        description="Bring the tables to the version of this release. Any number may run at the same time.",
    )
    upgrade.set_defaults(run="database:upgrade")
    how = upgrade.add_mutually_exclusive_group()
    how.add_argument("--sql", action="store_true", help="print what is missing as a script for psql; change nothing")
    how.add_argument("--check", action="store_true", help="exit code 1 when something is missing; change nothing")
    functions = actions.add_parser(
        "functions",
        parents=[database],
        help="install the SQL function queuedtask_add_task",
        description="Install the SQL function queuedtask_add_task, with which psql, other languages and triggers add\n"
        "tasks, beside the tables, or replace it. It gets the settings QUEUE_NOTIFY_CHANNEL and\n"
        "QUEUE_MAX_PAYLOAD as they are now; db upgrade keeps it up to date from then on.",
    )
    functions.set_defaults(run="database:functions")
    how = functions.add_mutually_exclusive_group()
    how.add_argument("--sql", action="store_true", help="print it as a script for psql; change nothing")
    how.add_argument("--remove", action="store_true", help="drop it")
    url = actions.add_parser(
        "url",
        parents=[database],
        help="print the database's URL, for psql and others",
        description='Print the database\'s URL with its password, as psql takes it: psql "$(queuedtask db url)".\n'
        "Starts the embedded server if need be.",
    )
    url.set_defaults(run="database:url")


def _demo(commands: _Commands, database: _Options) -> None:
    demo = commands.add_parser(
        "demo",
        parents=[database],
        help="see it work: one task for each file of a directory",
        description="Add one task for each regular file under DIRECTORY (__pycache__ and site-packages left out), run\n"
        "them with a worker of four slots, show the progress and sum up from the rows. Each task reads its file and\n"
        "returns size, SHA-256, number of lines and, for a Python file, its definitions. A file that cannot be read\n"
        "fails, with the reason.",
    )
    demo.set_defaults(run="demo:demo")
    demo.add_argument(
        "directory", metavar="DIRECTORY", nargs="?", help="where the files are (default: Python's standard library)"
    )
