"""The commands that change tasks or judge the whole: retry, cancel, stop, clear, purge, pause, resume, check."""

import argparse
import sys
from collections.abc import Sequence

from queuedtask.cli import output
from queuedtask.cli.apps import open_queue
from queuedtask.cli.parser import UsageError
from queuedtask.cli.reading import open_usable, print_tasks, reading
from queuedtask.db import channels, migrate, reads
from queuedtask.db.control import Orderable, Requeue
from queuedtask.db.purge import count_due
from queuedtask.db.reads import TaskRow
from queuedtask.errors import DatabaseUnavailable, NotAllowed, SchemaOutdated, TaskNotFound
from queuedtask.model import limits, orders, states
from queuedtask.model.orders import Order
from queuedtask.taskqueue import Queue, keep_for

MAX_REQUEUES = 3


# ---------------------------------------------------------------------------------------------------------------- retry


def retry(arguments: argparse.Namespace) -> int:
    """Send ended tasks round again."""
    _refuse_both(arguments, "since", "name", "channel", "state", "limit", "max_requeues")
    queue = open_usable(arguments)
    if arguments.ids:
        return _retry_named(queue, arguments)
    which = Requeue(
        states=(arguments.state or states.FAILED,),
        name=arguments.name,
        channel=arguments.channel,
        since=arguments.since,
        max_requeues=MAX_REQUEUES if arguments.max_requeues is None else arguments.max_requeues,
        limit=arguments.limit,
    )
    if arguments.dry_run:
        _print_dry_run(queue, which)
        return 0
    requeued = queue.retry_failed(
        since=which.since,
        name=which.name,
        channel=which.channel,
        state=which.states[0],
        limit=which.limit,
        max_requeues=which.max_requeues,
    )
    _say_how_many(len(requeued), "sent round again", arguments, requeued.skipped)
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
        _say_how_many(len(requeued), "sent round again", arguments)
    return 1 if refused else 0


def _print_dry_run(queue: Queue, which: Requeue) -> None:
    with reading(queue) as cursor:
        found = reads.requeueable_tasks(cursor, which)
    _print_what_would(queue, found, "sent round again")


def _print_what_would(queue: Queue, found: Sequence[TaskRow], be: str) -> None:
    if found:
        print_tasks(found, queue.config.redact)
        output.print_line()
    output.print_line(f"{_tasks(len(found))} would be {be}")


def _say_how_many(count: int, what: str, arguments: argparse.Namespace, skipped: int = 0) -> None:
    if arguments.verbose or output.is_terminal():
        output.print_line(f"{_tasks(count)} {what}")
        if skipped:
            output.print_line(f"{_tasks(skipped)} left alone: others have the same unique keys")


def _refuse_both(arguments: argparse.Namespace, *conditions: str) -> None:
    """Raise UsageError when tasks are named and conditions given as well."""
    given = [name for name in conditions if getattr(arguments, name) not in (None, False)]
    if arguments.ids and given:
        shown = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{arguments.command} takes either IDs or conditions, not both: {shown}")


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


# ------------------------------------------------------------------------------------------------------ cancel and stop


def cancel(arguments: argparse.Namespace) -> int:
    """Call tasks off."""
    return _give(orders.CANCEL, arguments)


def stop(arguments: argparse.Namespace) -> int:
    """End tasks, also those that run."""
    return _give(orders.STOP, arguments)


def _give(order: Order, arguments: argparse.Namespace) -> int:
    conditions = ("state", "name", "channel", "since")
    _refuse_both(arguments, "all", "limit", *conditions)
    is_chosen = arguments.all or any(getattr(arguments, name) is not None for name in conditions)
    if not arguments.ids and not is_chosen:
        raise UsageError(f"{order.name} wants IDs, or --state, --name, --channel or --since, or --all for everything")
    queue = open_usable(arguments)
    which = Orderable(
        states=Orderable().states if arguments.state is None else (arguments.state,),
        name=arguments.name,
        channel=arguments.channel,
        since=arguments.since,
        limit=arguments.limit,
    )
    given, refused = list[str](), 0
    if arguments.ids:
        given, refused = _give_to_named(queue, order, arguments)
        which = Orderable(ids=given)
    elif not arguments.dry_run:
        do = queue.cancel if order is orders.CANCEL else queue.stop
        ended = do(state=which.states, name=which.name, channel=which.channel, since=which.since, limit=which.limit)
        given = [ref.id for ref in ended]
    if arguments.dry_run:
        with reading(queue) as cursor:
            found = reads.orderable_tasks(cursor, which)
        _print_what_would(queue, found, order.participle)
    else:
        _say_how_many(len(given), f"{order.participle}, or told to end", arguments)
    return 1 if refused else 0


def _give_to_named(queue: Queue, order: Order, arguments: argparse.Namespace) -> tuple[list[str], int]:
    """Give the order to each named task by itself, so that one that refuses it does not hold back the others."""
    given, refused = [], 0
    for task_id in dict.fromkeys(arguments.ids):
        try:
            ref = queue.get(task_id)
            if not arguments.dry_run:
                ref.cancel() if order is orders.CANCEL else ref.stop()
            elif ref.state in states.FINAL:
                raise NotAllowed(f"task {task_id} is {ref.state}: it cannot be {order.participle} any more")
            given.append(task_id)
        except (TaskNotFound, NotAllowed) as error:
            output.print_error(str(error))
            refused += 1
    return given, refused


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


# ---------------------------------------------------------------------------------------------------------------- purge


def purge(arguments: argparse.Namespace) -> int:
    """Delete what has ended and was kept for long enough."""
    queue = open_queue(arguments)
    with reading(queue) as cursor:
        if arguments.dry_run:
            counts = count_due(cursor, keep_for(queue.config, arguments.older_than, arguments.state))
            by_state = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
            output.print_line(f"{_tasks(sum(counts.values()))} would be deleted{by_state and f': {by_state}'}")
            return 0
    deleted = queue.purge(older_than=arguments.older_than, states=arguments.state)
    _say_how_many(deleted, "deleted", arguments)
    return 0


# ----------------------------------------------------------------------------------------------------- pause and resume


def pause(arguments: argparse.Namespace) -> None:
    """Have no more tasks claimed, of one channel or at all."""
    queue = open_usable(arguments)
    queue.pause(arguments.channel)
    output.print_line(f"{_channel(arguments.channel)} paused; what runs goes on")


def resume(arguments: argparse.Namespace) -> None:
    """Undo a pause, and say what still is."""
    queue = open_usable(arguments)
    queue.resume(arguments.channel)
    output.print_line(f"{_channel(arguments.channel)} resumed")
    with reading(queue) as cursor:
        still = [row.name for row in channels.list_channels(cursor) if row.is_paused]
    if limits.EVERYTHING in still:
        output.print_warning("everything is still paused: type queuedtask resume")
    elif still and arguments.channel is None:
        output.print_warning(f"still paused by name: {', '.join(still)}")


def _channel(name: str | None) -> str:
    return "everything is" if name is None else f"the channel {name} is"


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
