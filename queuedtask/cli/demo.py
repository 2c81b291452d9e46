"""The command ``demo``: a real job on real files, from adding its tasks to a summary read back from their rows.

The worker is the very command that people run, in a process of its own; what is shown while it works is what the rows
say. So it makes no difference who runs the tasks: the workers of two demos at once help each other out.
"""

import argparse
import ast
import hashlib
import json
import os
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import uuid4

from queuedtask.model import codec, states

if TYPE_CHECKING:
    from queuedtask.db.reads import Run
    from queuedtask.taskqueue import Queue

SLOTS: Final = 4
LEFT_OUT: Final = frozenset({"__pycache__", "site-packages"})
CHUNK: Final = 1024 * 1024
LARGEST_SOURCE: Final = 8 * 1024 * 1024
"""Bytes of a Python file up to which it is parsed: a syntax tree takes a hundred times as much memory."""
DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
BODIES: Final = ("body", "orelse", "finalbody", "handlers", "cases")
"""Where a statement has statements of its own; handlers and cases have bodies in turn."""
LOOK_INTERVAL: Final = 0.2
SAY_INTERVAL: Final = 2.0
"""Seconds between two looks at the rows, and between two lines of progress where there is no terminal."""
PATIENCE: Final = 60.0
"""Seconds without any progress, and without a worker of our own, after which the demo gives up."""
STOP_TIMEOUT: Final = 5.0


# ------------------------------------------------------------------------------------------------------------- the task


def examine_file(path: str | bytes) -> dict[str, object]:
    """Read a file and return its size, SHA-256, number of lines and, for a Python file, its definitions.

    Raises OSError when it cannot be read. Python code that cannot be parsed has no definitions but a ``syntax_error``.
    """
    digest, size, newlines, last, source = hashlib.sha256(), 0, 0, b"\n", bytearray()
    is_python = os.fsdecode(path).endswith(".py")
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            newlines += chunk.count(b"\n")
            last = chunk[-1:]
            if is_python and size <= LARGEST_SOURCE:
                source += chunk
    found: dict[str, object] = {"size": size, "sha256": digest.hexdigest(), "lines": newlines + (last != b"\n")}
    if is_python:
        found |= _definitions(bytes(source)) if size <= LARGEST_SOURCE else _not_parsed("the file is too large")
    return found


def _definitions(source: bytes) -> dict[str, object]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return _not_parsed(f"{type(error).__name__}: {error}")
    count, bodies = 0, [tree.body]
    while bodies:
        for statement in bodies.pop():
            count += isinstance(statement, DEFINITIONS)
            # Only statements hold definitions: there is no need to walk through every expression.
            bodies += [inner for name in BODIES if (inner := getattr(statement, name, None))]
    return {"definitions": count, "names": [node.name for node in tree.body if isinstance(node, DEFINITIONS)]}


def _not_parsed(reason: str) -> dict[str, object]:
    return {"definitions": None, "names": None, "syntax_error": reason}


# ---------------------------------------------------------------------------------------------------------- the command


def demo(arguments: argparse.Namespace) -> int:
    """Add a task for each file, have them run, and sum up. Only tasks that were lost make it fail."""
    from queuedtask.cli import output
    from queuedtask.cli.parser import UsageError
    from queuedtask.cli.reading import open_usable

    # The worker may have another current directory.
    directory = Path(arguments.directory or sysconfig.get_path("stdlib")).absolute()
    if not directory.is_dir():
        raise UsageError(f"argument DIRECTORY: {directory} is no directory")
    queue = open_usable(arguments)
    began = time.monotonic()
    run, added = add_tasks(queue, regular_files(directory, output.print_warning))
    if not added:
        output.print_line(f"there are no regular files under {directory}")
        return 0
    output.print_line(
        f"added {added} tasks in {output.span(time.monotonic() - began)}: one for each file under {directory}"
    )
    watch = Watch(queue, run, added)
    try:
        with DemoWorker(queue.database.engine.url.render_as_string(hide_password=False)) as worker:
            is_over = _follow(watch, worker)
    except KeyboardInterrupt:
        left = added - watch.look().ended
        output.print_line(
            f"interrupted: {left} tasks are left for the next worker (python -m queuedtask worker --burst)"
        )
        raise
    if not is_over:
        output.print_error("no worker has made any progress for a minute")
    return _sum_up(queue, run, added)


def regular_files(directory: Path, complain: Callable[[str], None]) -> Iterator[str]:
    """Yield the paths of the regular files under a directory, in order; links are not followed."""
    for folder, folders, files in os.walk(directory, onerror=lambda error: complain(str(error))):
        folders[:] = sorted(set(folders) - LEFT_OUT)
        for name in sorted(files):
            path = os.path.join(folder, name)
            try:
                if stat.S_ISREG(os.lstat(path).st_mode):
                    yield path
            except OSError:
                continue  # gone since the directory was listed


def add_tasks(queue: "Queue", paths: Iterator[str]) -> tuple["Run", int]:
    """Add one task for each path, in one transaction; return where they are and how many."""
    from queuedtask.db import adding, moves
    from queuedtask.db.reads import Run
    from queuedtask.model.functions import default_name, path_of
    from queuedtask.model.task import TaskSpec, new_id

    mark = uuid4().hex
    function = path_of(examine_file)
    name, meta = default_name(function), json.dumps({"demo": mark})
    first = last = new_id()
    added = 0
    with queue.database.transaction() as cursor:
        for path in paths:
            args, kwargs = codec.encode_arguments((_storable(path),), {}, queue.config.max_payload)
            last = new_id()
            # What cannot be read now cannot be read in five seconds either.
            spec = TaskSpec(id=last, name=name, function=function, args=args, kwargs=kwargs, meta=meta, max_retries=0)
            adding.add(cursor, spec, notify_channel=None)
            added += 1
        if added:
            moves.notify(cursor, queue.config.wake_channel)
    return Run(first, last, mark), added


def _storable(path: str) -> str | bytes:
    """Return a path as JSON can carry it: as bytes when it is not in the file system's encoding."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def path_in(args: str) -> str:
    """Return the path in a task's arguments."""
    (path,), _ = codec.decode_arguments(args, "{}")
    return os.fsdecode(path).encode(errors="backslashreplace").decode()


# ----------------------------------------------------------------------------------------------------------- its worker


class DemoWorker:
    """A worker with four slots in a process of its own, which ends by itself when nothing is left to run."""

    def __init__(self, url: str) -> None:
        # In the environment, since everybody may read a command line. QUEUE_APP is not for this worker.
        self._environment = {**os.environ, "QUEUE_DATABASE_URL": url, "PYTHONWARNINGS": "ignore"}
        self._environment.pop("QUEUE_APP", None)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "DemoWorker":
        self.start()
        return self

    def start(self) -> None:
        """Start it, or start it again."""
        command = [sys.executable, "-m", "queuedtask", "worker", "-w", str(SLOTS), "--burst"]
        options = ["--shutdown-timeout", str(STOP_TIMEOUT), "--log-level", "WARNING"]
        # A process group of its own: Ctrl-C reaches us alone, and we tell the worker to end in order.
        self._process = subprocess.Popen(
            [*command, *options], env=self._environment, stdin=subprocess.DEVNULL, process_group=0
        )

    @property
    def exit_code(self) -> int | None:
        """Return how it ended; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def __exit__(self, *exception: object) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(timeout=STOP_TIMEOUT + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Progress(NamedTuple):
    """What the rows of a run say at one moment."""

    counts: dict[str, int]
    current: list[tuple[str, float | None]]
    seconds: float

    @property
    def ended(self) -> int:
        """Return how many tasks have ended, whatever way."""
        return sum(self.counts.get(state, 0) for state in states.FINAL)

    @property
    def failed(self) -> int:
        """Return how many could not read their file."""
        return self.counts.get(states.FAILED, 0)

    @property
    def rate(self) -> float:
        """Return how many ended per second since the worker was started."""
        return self.ended / self.seconds if self.seconds > 0 else 0.0


class Watch:
    """Looks at the rows of one run."""

    def __init__(self, queue: "Queue", run: "Run", added: int) -> None:
        self._queue = queue
        self._run = run
        self._began = time.monotonic()
        self.added = added

    def look(self) -> Progress:
        """Ask the database."""
        from queuedtask.db import reads

        with self._queue.database.transaction() as cursor:
            counts = reads.run_states(cursor, self._run)
            current = reads.run_current(cursor, self._run, limit=SLOTS)
        return Progress(counts, current, time.monotonic() - self._began)


def _follow(watch: Watch, worker: DemoWorker) -> bool:
    """Show the progress until all tasks have ended; False when nobody runs them any more.

    Our worker ends when nothing is left that it could run: the rest may be running on others. Should they give tasks
    back, it is started again.
    """
    progress = watch.look()
    changed_at = time.monotonic()
    with _display(watch.added) as show:
        while progress.ended < watch.added:
            show(progress)
            time.sleep(LOOK_INTERVAL)
            before, progress = progress, watch.look()
            if progress.counts != before.counts:
                changed_at = time.monotonic()
            if worker.exit_code is None:
                continue
            if worker.exit_code != 0 or time.monotonic() - changed_at > PATIENCE:
                return progress.ended >= watch.added
            if progress.counts.get(states.ENQUEUED):
                worker.start()
        show(progress)
    return True


@contextmanager
def _display(added: int) -> Iterator[Callable[[Progress], None]]:
    from queuedtask.cli import output

    if output.is_terminal():
        with _live_display(added) as show:
            yield show
        return
    said_at = 0.0

    def say(progress: Progress) -> None:
        nonlocal said_at
        if progress.ended == added or time.monotonic() - said_at >= SAY_INTERVAL:
            said_at = time.monotonic()
            failed = f", {progress.failed} failed" if progress.failed else ""
            output.print_line(f"{progress.ended} of {added} tasks have ended, {progress.rate:.0f} per second{failed}")
            sys.stdout.flush()

    yield say


@contextmanager
def _live_display(added: int) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    from queuedtask.cli import output

    console = output.console()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeElapsedColumn())
    bar = Bar(*columns, console=console)
    task = bar.add_task("", total=added, rate="")

    with Live(console=console, refresh_per_second=8) as live:

        def show(progress: Progress) -> None:
            failed = f", {progress.failed} failed" if progress.failed else ""
            bar.update(task, completed=progress.ended, rate=f"{progress.rate:.0f}/s{failed}")
            lines = [
                Text(
                    output.clean(f"  {path_in(args)}  {output.span(age)}".rstrip()),
                    "dim",
                    no_wrap=True,
                    overflow="ellipsis",
                )
                for args, age in progress.current
            ]
            live.update(Group(bar, *lines))

        yield show


# ---------------------------------------------------------------------------------------------------------- its summary


def _sum_up(queue: "Queue", run: "Run", added: int) -> int:
    """Print what the rows say, and only that; return 1 when tasks are missing or have not ended."""
    from queuedtask.cli import output
    from queuedtask.db import reads

    with queue.database.transaction() as cursor:
        counts = reads.run_states(cursor, run)
        totals = reads.run_totals(cursor, run)
        slowest = reads.run_slowest(cursor, run, limit=3)
        failed = reads.run_failed(cursor, run, limit=10)
    summary: dict[str, Any] = {"tasks added": added}
    summary |= {state: counts[state] for state in states.STATES if state in counts}
    seconds = totals.seconds or 0.0
    ended = sum(counts.get(state, 0) for state in states.FINAL)
    summary |= {
        "run in": f"{output.span(seconds)} by {totals.workers} worker{'s' * (totals.workers != 1)}",
        "tasks per second": f"{ended / seconds:.0f}" if seconds else None,
        "read": f"{output.size(totals.bytes)}, {totals.lines:,} lines",
        "definitions": f"{totals.definitions:,}",
        "not parsable": totals.unparsed or None,
    }
    output.print_heading("from the rows:")
    output.print_pairs(summary)
    if slowest:
        output.print_heading("slowest:")
        for args, taken in slowest:
            output.print_line(f"{output.span(taken)}  {path_in(args)}")
    if failed:
        output.print_heading(f"failed, {len(failed)} of {counts[states.FAILED]}:")
        for args, kind, message in failed:
            output.print_line(f"{path_in(args)}: {kind}: {message}")
    lost = added - counts.get(states.DONE, 0) - counts.get(states.FAILED, 0)
    if lost:
        output.print_error(f"{lost} of {added} tasks are neither done nor failed")
        return 1
    output.print_line(f"\nnone lost; look at them with: python -m queuedtask tasks --name {_name()}")
    return 0


def _name() -> str:
    return f"{examine_file.__module__}.{examine_file.__qualname__}"
