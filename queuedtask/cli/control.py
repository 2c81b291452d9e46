"""The commands that change tasks or judge the whole: retry, clear, check."""

import argparse
import sys

from queuedtask.cli import output
from queuedtask.cli.apps import open_queue
from queuedtask.cli.parser import UsageError
from queuedtask.cli.reading import print_tasks, reading
from queuedtask.db import migrate, reads
from queuedtask.db.store import Requeue
from queuedtask.errors import DatabaseUnavailable, NotAllowed, SchemaOutdated, TaskNotFound
from queuedtask.model import states
from queuedtask.taskqueue import Queue

MAX_REQUEUES = 3


# ---------------------------------------------------------------------------------------------------------------- retry


def retry(arguments: argparse.Namespace) -> int:
    """Send ended tasks round again."""
    conditions = (arguments.since, arguments.name, arguments.limit, arguments.max_requeues)
    if arguments.ids and any(condition is not None for condition in conditions):
        raise UsageError("retry takes either IDs or --since, --name, --limit and --max-requeues")
    queue = open_queue(arguments)
    with reading(queue):
        pass  # a database without the tables is to be called that
    if arguments.ids:
        return _retry_named(queue, arguments)
    which = Requeue(
        name=arguments.name,
        since=arguments.since,
        max_requeues=MAX_REQUEUES if arguments.max_requeues is None else arguments.max_requeues,
        limit=arguments.limit,
    )
    if arguments.dry_run:
        _print_dry_run(queue, which)
        return 0
    requeued = queue.retry_failed(
        since=which.since, name=which.name, limit=which.limit, max_requeues=which.max_requeues
    )
    _say_how_many(len(requeued), arguments)
    return 0


def _retry_named(queue: Queue, arguments: argparse.Namespace) -> int:
    """Send the named tasks round again, each by itself, so that one that cannot does not hold back the others."""
    requeued, refused = [], 0
    for task_id in dict.fromkeys(arguments.ids):
        try:
            ref = queue.get(task_id)
            if not arguments.dry_run:
                ref.retry()
            elif ref.state not in states.FINAL:
                raise NotAllowed(f"task {task_id} is {ref.state}: only an ended one can be sent round again")
            requeued.append(task_id)
        except (TaskNotFound, NotAllowed) as error:
            output.print_error(str(error))
            refused += 1
    if arguments.dry_run and requeued:
        _print_dry_run(queue, Requeue(states=states.FINAL, ids=requeued))
    elif not arguments.dry_run:
        _say_how_many(len(requeued), arguments)
    return 1 if refused else 0


def _print_dry_run(queue: Queue, which: Requeue) -> None:
    with reading(queue) as cursor:
        found = reads.requeueable_tasks(cursor, which)
    if found:
        print_tasks(found, queue.config.redact)
        output.print_line()
    output.print_line(f"{_tasks(len(found))} would be sent round again")


def _say_how_many(count: int, arguments: argparse.Namespace) -> None:
    if arguments.verbose or output.is_terminal():
        output.print_line(f"{_tasks(count)} sent round again")


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


# ---------------------------------------------------------------------------------------------------------------- clear


def clear(arguments: argparse.Namespace) -> int:
    """Delete what is pending, after asking."""
    if not arguments.yes and not sys.stdin.isatty():
        raise UsageError("clear deletes every pending task: say --yes where nobody can be asked")
    queue = open_queue(arguments)
    with reading(queue) as cursor:
        counts = reads.count_states(cursor)
    pending = sum(counts[state] for state in states.PENDING)
    if not arguments.yes and pending and not _is_confirmed(pending):
        output.print_line("nothing was deleted")
        return 1
    output.print_line(f"{_tasks(queue.clear() if pending else 0)} deleted")
    return 0


def _is_confirmed(pending: int) -> bool:
    word = "task" if pending == 1 else "tasks"
    try:
        answer = input(f"delete {pending} pending {word}? [y/N] ")
    except EOFError:
        print()
        return False
    return answer.strip().lower() in ("y", "yes")


# ---------------------------------------------------------------------------------------------------------------- check


def check(arguments: argparse.Namespace) -> int:
    """Tell whether the database, its schema and a worker are there."""
    queue = open_queue(arguments)
    is_reachable, version, live, problem = False, None, 0, None
    try:
        with queue.database.transaction() as cursor:
            is_reachable = True
            version = migrate.current_version(cursor)
            migrate.require_usable(cursor)
            workers = reads.list_workers(cursor)
        live = sum(worker.is_live(queue.config.lease) for worker in workers)
        if not live:
            problem = _no_worker([worker.silence for worker in workers])
    except DatabaseUnavailable as error:
        is_reachable = False
        problem = f"the database cannot be reached: {error}"
    except SchemaOutdated as error:
        problem = str(error)
    if arguments.json:
        output.print_json(
            {
                "is_well": problem is None,
                "problem": problem,
                "is_reachable": is_reachable,
                "schema_version": version,
                "schema_needed": migrate.latest_version(),
                "live_workers": live,
            }
        )
    elif problem is None:
        output.print_line(f"all is well: schema version {version}, {live} live worker{'s' * (live != 1)}")
    if problem is not None:
        output.print_error(problem)
        return 1
    return 0


def _no_worker(silences: list[float]) -> str:
    if not silences:
        return "no worker is running"
    return f"no worker lives: the last heartbeat came {output.span(min(silences))} ago"
