"""The commands that read: status, health, metrics, stats, servers, tasks, show, logs, config."""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from itertools import compress
from typing import Any, Final, NamedTuple

from queuedtask.cli import output
from queuedtask.cli.apps import open_queue
from queuedtask.db import channels, migrate, reads, store
from queuedtask.db.embedded import EmbeddedServer, default_directory
from queuedtask.db.reads import AttemptRow, LogRow, Oldest, RunningRow, TaskRow, WorkerRow
from queuedtask.db.statement import Cursor
from queuedtask.errors import DatabaseUnavailable, SchemaOutdated, TaskNotFound
from queuedtask.model import codec, limits, states
from queuedtask.model.measures import UNHEALTHY, Figures, Metrics
from queuedtask.model.progress import share_of
from queuedtask.taskqueue import Queue

FOLLOW_INTERVAL: Final = 0.5
WATCH_INTERVAL: Final = 1.0


@contextmanager
def reading(queue: Queue) -> Iterator[Cursor]:
    """Give a cursor in a transaction on a database whose schema we can read. Raises SchemaOutdated."""
    with queue.database.transaction() as cursor:
        migrate.require_usable(cursor)
        yield cursor


def open_usable(arguments: argparse.Namespace) -> Queue:
    """Return the Queue that a command is for; a database without the tables is called that. Raises SchemaOutdated."""
    queue = open_queue(arguments)
    with reading(queue):
        return queue


# --------------------------------------------------------------------------------------------------- status and stats


class _Status(NamedTuple):
    """What stands in the tables at one moment."""

    time: datetime
    counts: dict[str, int]
    live: list[WorkerRow]
    oldest: Oldest | None
    next_due: float | None
    running: list[RunningRow]

    @classmethod
    def read(cls, queue: Queue) -> "_Status":
        with reading(queue) as cursor:
            return cls(
                counts=reads.count_states(cursor),
                live=[worker for worker in reads.list_workers(cursor) if worker.is_live(queue.config.lease)],
                oldest=reads.oldest_enqueued(cursor),
                next_due=store.seconds_to_next_due(cursor),
                running=reads.running_tasks(cursor),
                time=reads.server_version(cursor)[1],
            )

    @property
    def slots(self) -> int:
        return sum(worker.max_workers for worker in self.live)

    @property
    def active(self) -> int:
        return sum(worker.active_workers for worker in self.live)

    def document(self) -> dict[str, Any]:
        return {
            "time": self.time,
            "tasks": self.counts,
            "workers": {"live": len(self.live), "max_workers": self.slots, "active_workers": self.active},
            "oldest_enqueued": None if self.oldest is None else self.oldest._asdict(),
            "seconds_to_next_due": self.next_due,
            "running": [_running(task) for task in self.running],
        }

    def print(self) -> None:
        oldest, next_due = self.oldest, self.next_due
        output.print_table(["state", "tasks"], [[*item] for item in self.counts.items()], right=["tasks"])
        output.print_line()
        waiting = None if oldest is None else f"{oldest.id} {oldest.name}, since {output.span(oldest.seconds)}"
        due = None if next_due is None else f"in {output.span(next_due)}" if next_due > 0 else "now"
        output.print_pairs(
            {
                "live workers": f"{len(self.live)} with {self.slots} slots, {self.active} of them busy",
                "oldest pending": waiting or "none",
                "next one due": due,
            }
        )

    def print_with_running(self) -> None:
        output.print_line(output.moment(self.time))
        self.print()
        output.print_line()
        if not self.running:
            output.print_line("no task has been running for half a second")
            return
        rows = [
            [task.id, task.name, task.claimed_by, task.attempt, output.span(task.seconds), output.Bar.of(task.progress)]
            for task in self.running
        ]
        headers = ["running task", "name", "worker", "attempt", "for", "progress"]
        numbers = ["worker", "attempt", "for"]
        _print_used_columns(headers, rows, right=numbers, dispensable=["attempt", "worker", "running task"])


def _running(task: RunningRow) -> dict[str, Any]:
    return task._asdict() | {"is_overdue": task.is_overdue}


def status(arguments: argparse.Namespace) -> None:
    """Show the tasks by state, the live workers and the oldest pending task; again and again when it is watched."""
    queue = open_queue(arguments)
    if arguments.watch:
        _watch(queue, as_json=arguments.json)
    elif arguments.json:
        output.print_json(_Status.read(queue).document())
    else:
        _Status.read(queue).print()


def _watch(queue: Queue, *, as_json: bool) -> None:
    with nullcontext(None) if as_json else output.repeated() as show:
        while True:
            began = time.monotonic()
            found = _Status.read(queue)
            if show is None:
                output.print_json_line(found.document())
            else:
                show(found.print_with_running)
            # Counting the rows of a large table is work: not more than a fifth of the time.
            time.sleep(max(WATCH_INTERVAL, 4 * (time.monotonic() - began)))


def health(arguments: argparse.Namespace) -> int:
    """Say how the queue is."""
    found = open_queue(arguments).health()
    is_unhealthy = found["status"] == UNHEALTHY
    if arguments.json:
        output.print_json(found)
    else:
        output.print_pairs(found | {"error": None})
    if found["error"] is not None:
        (output.print_error if is_unhealthy else output.print_warning)(found["error"])
    return int(is_unhealthy)


def metrics(arguments: argparse.Namespace) -> None:
    """Show what is measured of the queue."""
    found = open_queue(arguments).metrics()
    if arguments.json:
        output.print_json(found.as_dict())
        return
    groups = [("all", "", found), *_groups("channel", found.by_channel), *_groups("name", found.by_name)]
    rows = [
        [
            kind,
            name,
            *(_estimate(found, field, getattr(figures, field)) for field in _NUMBERS),
            output.span(figures.average_task_duration),
            _estimate(found, "oldest_pending_seconds", output.span(figures.oldest_pending_seconds)),
        ]
        for kind, name, figures in groups
    ]
    headers = ["of", "which", "pending", "running", "failed today", "stuck", "average", "oldest"]
    output.print_table(headers, rows, right=headers[2:])
    output.print_line()
    output.print_pairs({"live workers": found.active_workers})
    if found.is_estimated:
        output.print_line("~ is an estimate: there are more than 100,000 of them")


_NUMBERS: Final = ("pending_tasks", "running_tasks", "failed_tasks_today", "stuck_tasks")


def _groups(kind: str, groups: Mapping[str, Figures]) -> list[tuple[str, str, Figures]]:
    return [(kind, name, figures) for name, figures in groups.items()]


def _estimate(found: Metrics, field: str, value: object) -> str:
    return f"~{value}" if field in found.estimated and value else str(value)


def stats(arguments: argparse.Namespace) -> None:
    """Show what a sample of the newest tasks says about each name."""
    queue = open_queue(arguments)
    with reading(queue) as cursor:
        names = reads.name_stats(cursor, sample=arguments.sample)
    seen = sum(sum(getattr(name, state) for state in states.STATES) for name in names)
    if arguments.json:
        sample = {"limit": arguments.sample, "tasks": seen, "is_everything": seen < arguments.sample}
        output.print_json({"sample": sample, "names": [name._asdict() for name in names]})
        return
    numbers = [*states.STATES, "failures", "average", "95 %", "last hour"]
    rows = [
        [
            name.name,
            *(getattr(name, state) for state in states.STATES),
            name.failures,
            output.span(name.seconds_average),
            output.span(name.seconds_p95),
            name.ended_last_hour,
        ]
        for name in names
    ]
    dispensable = ["stopped", "cancelled", "waiting", "failures", "last hour", "95 %"]
    output.print_table(["name", *numbers], rows, right=numbers, dispensable=dispensable)
    everything = "all there are" if seen < arguments.sample else "the newest ones; --sample looks at more"
    output.print_line(f"\nCounted over {seen} tasks, {everything}.")


# -------------------------------------------------------------------------------------------------------------- servers


def servers(arguments: argparse.Namespace) -> None:
    """Show the worker processes, those of one supervisor together, and what they run."""
    queue = open_queue(arguments)
    lease = queue.config.lease
    with reading(queue) as cursor:
        workers = sorted(reads.list_workers(cursor), key=lambda worker: (*_supervisor(worker), worker.id))
        running = reads.running_tasks(cursor)
    by_worker = {worker.id: [task for task in running if task.claimed_by == worker.id] for worker in workers}
    if arguments.json:
        output.print_json([_server(worker, lease, by_worker[worker.id]) for worker in workers])
        return
    if not workers:
        output.print_line("no worker is running")
        return
    _print_processes(workers, lease)
    slots = [row for worker in workers for row in _slot_rows(worker, by_worker[worker.id])]
    if slots:
        output.print_line()
        headers = ["worker", "running task", "name", "attempt", "for", "remark"]
        _print_used_columns(headers, slots, right=["worker", "attempt", "for"], dispensable=["attempt"])


def _supervisor(worker: WorkerRow) -> tuple[str, int, int]:
    """Return what the workers of one supervisor have in common, and no other has."""
    alone = worker.id if worker.supervisor_pid is None else 0
    return worker.server_name, worker.supervisor_pid or 0, alone


def _print_processes(workers: Sequence[WorkerRow], lease: float) -> None:
    rows = []
    before = None
    for worker in workers:
        # What a process has in common with the one above it is said once.
        is_next = before is not None and _supervisor(worker) == _supervisor(before)
        before = worker
        heartbeat = f"{output.span(worker.silence)} ago"
        rows.append(
            [
                "" if is_next else worker.server_name,
                "" if is_next else worker.supervisor_pid or "none",
                worker.id,
                worker.pid,
                worker.max_workers,
                worker.active_workers,
                worker.idle_workers,
                output.Alarm(len(worker.stuck)) if worker.stuck else None,
                worker.refused or None,
                heartbeat if worker.is_live(lease) else output.Alarm(f"{heartbeat}, silent"),
                output.moment(worker.date_started),
                worker.version,
            ]
        )
    numbers = ["supervisor", "worker", "pid", "slots", "active", "idle", "stuck", "refused"]
    headers = ["server", *numbers, "heartbeat", "started", "version"]
    _print_used_columns(headers, rows, right=numbers, dispensable=["version", "started", "idle"])


def _slot_rows(worker: WorkerRow, running: Sequence[RunningRow]) -> Iterator[Sequence[object]]:
    for task in running:
        remark = f"over its timeout of {output.span(task.timeout)}" if task.is_overdue else None
        row = [worker.id, task.id, task.name, task.attempt, output.span(task.seconds), remark]
        yield _alarming(row) if task.is_overdue else row
    for slot in worker.stuck:
        shown = [slot["task"], slot["name"], slot["attempt"], output.span(slot["seconds"])]
        yield _alarming([worker.id, *shown, "stuck since it was given up"])


def _alarming(row: Sequence[object]) -> list[output.Alarm]:
    return [output.Alarm("" if cell is None else cell) for cell in row]


def _print_used_columns(
    headers: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str], dispensable: Sequence[str]
) -> None:
    """Print a table without the columns that say nothing about any row."""
    used = [any(row[index] not in (None, "") for row in rows) for index in range(len(headers))]
    kept = [list(compress(row, used)) for row in rows]
    output.print_table(list(compress(headers, used)), kept, right=right, dispensable=dispensable)


def _server(worker: WorkerRow, lease: float, running: Sequence[RunningRow]) -> dict[str, Any]:
    shown = [_running(task) for task in running]
    return worker._asdict() | {"is_live": worker.is_live(lease), "running": shown}


# ---------------------------------------------------------------------------------------------------------------- tasks


def tasks(arguments: argparse.Namespace) -> None:
    """List tasks."""
    queue = open_queue(arguments)
    with reading(queue) as cursor:
        wanted = None if arguments.state is None else [arguments.state]
        found = reads.find_tasks(
            cursor, states=wanted, name=arguments.name, channel=arguments.channel, limit=arguments.limit
        )
    if arguments.json:
        output.print_json([task_document(task, queue.config.redact) for task in found])
    else:
        print_tasks(found, queue.config.redact)


def print_tasks(found: Sequence[TaskRow], redact: Sequence[str]) -> None:
    """Print a table of tasks."""
    headers = ["id", "state", "name", "channel", "enqueued", "run time", "failures", "progress", "arguments or error"]
    rows = [
        [
            task.id,
            task.state,
            task.name or task.function,
            task.channel,
            output.moment(task.date_enqueued),
            output.span(_run_time(task)),
            task.failures,
            output.Bar.of(_progress(task)),
            _shortened(_error(task) or call(task, redact), 60),
        ]
        for task in found
    ]
    if not any(row[-2] for row in rows):
        headers.remove("progress")
        rows = [[*row[:-2], row[-1]] for row in rows]
    dispensable = ["failures", "channel", "enqueued", "run time", headers[-1]]
    output.print_table(headers, rows, right=["failures", "run time"], dispensable=dispensable)


def task_document(task: TaskRow, redact: Sequence[str]) -> dict[str, Any]:
    """Return a task as a JSON document: the columns' names, JSON as it is stored."""
    document: dict[str, Any] = task._asdict()
    for name in ("args", "kwargs", "context", "result", "meta"):
        document[name] = output.decoded(document[name])
    document["kwargs"] = output.redacted(document["kwargs"], redact)
    document["progress"] = _progress(task)
    return document


def call(task: TaskRow, redact: Sequence[str]) -> str:
    """Return a task's arguments as they would be written in Python; as they are stored if they cannot be read."""
    try:
        args, kwargs = codec.decode_arguments(task.args, task.kwargs)
        shown = output.redacted(kwargs, redact)
        named = [f"{name}={'***' if shown[name] is not value else repr(value)}" for name, value in kwargs.items()]
        return f"({', '.join([*map(repr, args), *named])})"
    except Exception:  # a row that somebody wrote by hand may hold anything
        kwargs_text = json.dumps(output.redacted(output.decoded(task.kwargs), redact), ensure_ascii=False)
        return f"{task.args} {kwargs_text}"


def _error(task: TaskRow) -> str | None:
    if task.error_type is None and task.error_message is None:
        return None
    return ": ".join(filter(None, (task.error_type, task.error_message)))


def _run_time(task: TaskRow) -> float | None:
    if task.date_started is None or task.date_done is None:
        return None
    return (task.date_done - task.date_started).total_seconds()


def _progress(task: TaskRow) -> float | None:
    context = output.decoded(task.context)
    return share_of(context.get("progress")) if isinstance(context, dict) else None


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


# ----------------------------------------------------------------------------------------------------------------- show


def show(arguments: argparse.Namespace) -> None:
    """Show everything about one task."""
    queue = open_queue(arguments)
    with reading(queue) as cursor:
        task = _get(cursor, arguments.id)
        failed = reads.task_attempts(cursor, arguments.id)
        workers = reads.list_workers(cursor)
    # What was given up and has not ended yet: for how many seconds, by worker and attempt.
    stuck = {
        (worker.id, slot["attempt"]): float(slot["seconds"])
        for worker in workers
        for slot in worker.stuck
        if slot["task"] == task.id
    }
    if arguments.json:
        attempts = [row._asdict() | {"stuck_seconds": stuck.get((row.worker or 0, row.attempt))} for row in failed]
        output.print_json(task_document(task, queue.config.redact) | {"attempts": attempts})
        return
    output.print_pairs(
        {
            "id": task.id,
            "name": task.name,
            "state": task.state,
            "function": task.function,
            "arguments": call(task, queue.config.redact),
            "channel": task.channel,
            "priority": task.priority,
            "parents": ", ".join(task.parents),
            "created": output.moment(task.date_created),
            "enqueued": output.moment(task.date_enqueued),
            "not before": output.moment(task.date_scheduled),
            "started": output.moment(task.date_started),
            "ended": output.moment(task.date_done),
            "run time": output.span(_run_time(task)),
            "progress": output.Bar.of(_progress(task)),
            "worker": task.claimed_by,
            "told to end": output.moment(task.stop_requested or task.cancel_requested),
            "claimed": _times(task.attempt),
            "failures": task.failures,
            "retries allowed": "as configured" if task.max_retries is None else task.max_retries,
            "lost": _lost(task),
            "requeued": _times(task.requeues) if task.requeues else None,
            "timeout": None if task.timeout is None else output.span(task.timeout),
            "unique key": task.unique_key,
            "meta": _indented(task.meta),
            "context": _indented(task.context),
            "result": _indented(task.result),
            "error": _error(task),
        }
    )
    if task.error_traceback and not failed:
        output.print_line(f"\n{task.error_traceback.rstrip()}")
    for attempt in failed:
        _print_attempt(attempt, stuck.get((attempt.worker or 0, attempt.attempt)))


def _lost(task: TaskRow) -> str | None:
    if not task.lost_count:
        return None
    times = _times(task.lost_count)
    return times if task.state in states.FINAL else f"{times}; it runs alone in a process"


def _print_attempt(attempt: AttemptRow, stuck_for: float | None) -> None:
    heading = f"attempt {attempt.attempt} {attempt.outcome.replace('_', ' ')} {output.moment(attempt.date_done)}"
    if attempt.worker is not None:
        heading += f" on worker {attempt.worker}"
    if attempt.date_started is not None:
        heading += f" after {output.span((attempt.date_done - attempt.date_started).total_seconds())}"
    if stuck_for is not None:
        heading = output.Alarm(f"{heading}, and stuck for {output.span(stuck_for)} since")
    output.print_heading(heading)
    error = ": ".join(filter(None, (attempt.error_type, attempt.error_message)))
    stack = (attempt.error_traceback or "").rstrip()
    # The traceback of an exception ends with it; the stack of a thread or of a process says where, but not why.
    if error and error not in stack:
        output.print_line(error)
    if attempt.exit_signal is not None:
        memory = attempt.memory_bytes
        had = "" if memory is None else f", {memory / 2**20:.1f} MiB of memory at most"
        output.print_line(f"process: {attempt.exit_signal}{had}")
    if stack:
        output.print_line(stack)


def _get(cursor: Cursor, task_id: str) -> TaskRow:
    task = reads.get_task(cursor, task_id)
    if task is None:
        raise TaskNotFound(f"there is no task {task_id}")
    return task


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _indented(text: str | None) -> str | None:
    return None if text is None else json.dumps(json.loads(text), indent=2, ensure_ascii=False)


# ----------------------------------------------------------------------------------------------------------------- logs


def logs(arguments: argparse.Namespace) -> None:
    """Show what a task has logged; go on until it has ended when it is followed."""
    queue = open_queue(arguments)
    after = 0
    while True:
        with reading(queue) as cursor:
            # The state first: what has ended has written all its lines in the same transaction.
            state = _get(cursor, arguments.id).state
            lines = reads.task_logs(cursor, arguments.id, after=after)
        for line in lines:
            _print_log(line, arguments.json)
            after = line.id
        if not arguments.follow or state in states.FINAL:
            return
        time.sleep(FOLLOW_INTERVAL)


def _print_log(line: LogRow, as_json: bool) -> None:
    if as_json:
        output.print_json_line(line._asdict())
        return
    where = f" {line.name}" if line.name else ""
    print(output.clean(f"{output.moment(line.date_created)} {line.type.upper()}{where}: {line.message}"), flush=True)


# --------------------------------------------------------------------------------------------------------------- config


def config(arguments: argparse.Namespace) -> None:
    """Show every setting with its value and source, and where the database has other limits for channels."""
    queue = open_queue(arguments)
    values = queue.config.as_dict()
    differences = _channels_that_differ(queue)
    if arguments.json:
        values["channels"]["differences"] = differences
        output.print_json(values)
        return
    rows = [
        [
            setting.name,
            _setting(values[setting.name]["value"]),
            values[setting.name]["source"],
            " or ".join(setting.environment),
        ]
        for setting in queue.config.settings()
    ]
    output.print_table(["setting", "value", "source", "environment variable"], rows)
    if differences:
        output.print_line()
        output.print_line("the database's rows in queued_task_channels, which rule, differ from QUEUE_CHANNELS:")
        output.print_table(
            ["channel", "configured", "in the database"],
            [[name, each["configured"] or "-", each["database"] or "-"] for name, each in differences.items()],
        )


def _channels_that_differ(queue: Queue) -> dict[str, dict[str, str | None]] | None:
    """Compare the setting with the rows; None without a database that can be asked. Starts nothing."""
    url = queue.config.database_url
    if url is None:
        url = EmbeddedServer(queue.config.embedded_dir or default_directory()).status().url
    if url is None:
        return None
    asked = queue if queue.config.database_url is not None else Queue(url)
    try:
        with reading(asked) as cursor:
            found = channels.list_channels(cursor)
    except (DatabaseUnavailable, SchemaOutdated):
        return None
    finally:
        if asked is not queue:
            asked.close()
    given = {name: str(limit).lstrip(":") for name, limit in limits.parse(queue.config.channels).items()}
    rows = {row.name: f"{str(row.limit).lstrip(':')}{' paused' * row.is_paused}".strip() for row in found}
    return {
        name: {"configured": given.get(name), "database": rows.get(name)}
        for name in sorted(given.keys() | rows.keys())
        # A row that limits nothing is as good as none.
        if (given.get(name) or "") != (rows.get(name) or "")
    }


def _setting(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name}={target}" for name, target in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
