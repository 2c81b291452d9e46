"""Worker slots inside a process that does something else: a web server's.

A manager in a thread, without a supervisor: it writes its heartbeats itself, and what cannot be interrupted keeps its
thread. What makes it safe is when it begins, and in which process:

- A process that forks its workers after it has loaded the application (gunicorn --preload) is not to run tasks itself:
  threads do not survive a fork, and code that runs in threads while a process forks may hold locks in the child for
  ever. So the manager begins a moment later, and not at all where the process has forked by then. Each child begins
  with a manager and connections of its own. Those that it has inherited, if the parent was running already, are kept
  and never closed: they are the parent's.
- A process that was forked by ``multiprocessing`` or for a program has work of its own, and gets no slots.
- A process that only watches files and restarts another one runs the code of before the change, and a command that
  loads the application, a worker above all, is there for something else: it does not begin in them.
"""

import atexit
import logging
import os
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final

import psycopg2

from queuedtask.errors import NotAllowed, QueuedTaskError
from queuedtask.run.logs import forget_captures
from queuedtask.taskqueue import Queue
from queuedtask.worker.manager import Manager

logger = logging.getLogger("queuedtask.worker")

START_DELAY: Final = 1.0
"""Seconds from the call to the beginning, in which a process may turn out to be one that forks or only watches."""
RETRY_INTERVAL: Final = 5.0
"""Seconds between two tries to begin, where there is no database or it has no tables yet."""
EXIT_TIMEOUT: Final = 5.0
"""Seconds that running tasks get at most when the process ends; servers kill one that takes long."""
STOP_MARGIN: Final = 5.0
OTHER_FORKS: Final = frozenset({"multiprocessing.popen_fork", "subprocess", "pty"})
"""Modules that fork for work of their own, and not to serve with more processes."""

_changing = threading.Lock()
_workers: "dict[Queue, WorkerBeside]" = {}
_abandoned: list[Manager] = []
"""Managers of a parent process. Kept: were they forgotten, their connections might be closed."""
COMMANDS: Final = ("flask.cli", "django.core.management")
SERVERS: Final = ("werkzeug.serving", "socketserver", "waitress", "gunicorn", "django.utils.autoreload")
"""Modules whose code the main thread runs in a framework's command, and those that make it a server all the same."""


def start(queue: Queue, slots: int) -> "WorkerBeside":
    """Return the worker of this process for a queue, started now unless there is one.

    Raises ValueError for a number of slots that cannot be, NotAllowed where there is one with other slots.
    """
    if type(slots) is not int or slots < 1:
        raise ValueError(f"start_worker(slots={slots!r}): must be a whole number from 1 up")
    with _changing:
        found = _workers.get(queue)
        if found is None:
            queue.config.max_workers = slots
            found = _workers[queue] = WorkerBeside(queue, slots)
        elif found.slots != slots:
            raise NotAllowed(f"start_worker(slots={slots}): one with {found.slots} slots runs already; stop it first")
        return found


class WorkerBeside:
    """Worker slots in this process; what :meth:`queuedtask.Queue.start_worker` returns."""

    def __init__(self, queue: Queue, slots: int) -> None:
        self.slots = slots
        self._queue = queue
        self._begin()

    def __repr__(self) -> str:
        return f"<WorkerBeside {self.id or 'not begun'}, {self.slots} slots>"

    @property
    def id(self) -> int:
        """The worker's row in ``queued_task_workers``; 0 while it has not begun."""
        return 0 if self._manager is None else self._manager.id

    @property
    def is_alive(self) -> bool:
        """Whether it runs tasks in this process, or is about to."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self, timeout: float | None = None) -> None:
        """End it in order, and wait for that: finish what runs within the timeout, hand the rest back.

        ``timeout``: seconds, by default ``QUEUE_SHUTDOWN_TIMEOUT``. What cannot be interrupted is handed back as well,
        and its thread left alone. At the end of the process it happens by itself, within at most 5 s. A second call
        does nothing, and ``start_worker`` starts another one.
        """
        with _changing:
            if _workers.get(self._queue) is self:
                del _workers[self._queue]
        timeout = self._queue.config.shutdown_timeout if timeout is None else timeout
        self._is_to_end.set()
        manager, thread = self._manager, self._thread
        if manager is not None:
            manager.stop(timeout)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout + self._queue.config.timeout_grace + STOP_MARGIN)

    def _begin(self) -> None:
        self._is_to_end = threading.Event()
        self._manager: Manager | None = None
        # A daemon: Python waits for all other threads before it does what is left to do at its end.
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name="worker-beside", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        if self._is_to_end.wait(START_DELAY):
            return
        if _is_no_place():
            logger.info("this process serves nobody: the worker in it does not begin")
            return
        manager = Manager(self._queue, application=self._queue.config.app)
        try:
            while not self._has_started(manager):
                if self._is_to_end.wait(RETRY_INTERVAL):
                    manager.close()
                    return
            self._manager = manager
            if self._is_to_end.is_set():
                manager.stop(0.0)
            manager.run()
        except Exception:
            logger.exception("the worker in this process has failed; its tasks are taken back by others")
        if not self._is_to_end.is_set():
            with _changing:
                _workers.pop(self._queue, None)
            logger.error("the worker in this process has ended by itself: it runs no more tasks until it is started")

    def _has_started(self, manager: Manager) -> bool:
        try:
            manager.start()
        except (QueuedTaskError, psycopg2.Error) as error:
            logger.error("the worker in this process cannot begin, trying again: %s", " ".join(str(error).split()))
            return False
        return True

    # ------------------------------------------------------------------------------------------------------------ forks

    def leave_to_children(self) -> None:
        """Take note that this process has forked: unless it has begun already, its children work in its place."""
        if self._manager is None:
            self._is_to_end.set()

    def begin_in_child(self) -> None:
        """Begin in a process that was forked: no thread has come along, and the connections are the parent's."""
        self.abandon()
        self._begin()

    def abandon(self) -> None:
        """Forget what belongs to the parent process."""
        if self._manager is not None:
            _abandoned.append(self._manager)
        self._manager = self._thread = None


def _is_no_place() -> bool:
    """Tell by what the main thread does whether this process is one for commands, or only restarts another one.

    Flask's and Django's reloaders do; commands of theirs and of ours load the application, too, and serve nobody.
    """
    frames = list(_frames(sys._current_frames().get(threading.main_thread().ident or 0)))
    modules = {str(frame.f_globals.get("__name__")) for frame in frames}
    is_command = any(name.startswith(COMMANDS) for name in modules)
    serves = any(name.startswith(SERVERS) for name in modules)
    is_ours = any(name.startswith("queuedtask.cli.") for name in modules)
    return is_ours or (is_command and not serves) or any(f.f_code.co_name == "restart_with_reloader" for f in frames)


def _is_other_fork() -> bool:
    return any(frame.f_globals.get("__name__") in OTHER_FORKS for frame in _frames(sys._getframe()))


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _after_fork_in_parent() -> None:
    if _workers and not _is_other_fork():
        for worker in list(_workers.values()):
            worker.leave_to_children()


def _after_fork_in_child() -> None:
    global _changing
    _changing = threading.Lock()  # another thread may have held it
    if _workers:
        forget_captures()  # of a manager that does not run here
    if _is_other_fork():
        while _workers:
            _workers.popitem()[1].abandon()
    for worker in list(_workers.values()):
        worker.begin_in_child()


def _stop_all() -> None:
    for worker in list(_workers.values()):
        worker.stop(min(EXIT_TIMEOUT, worker._queue.config.shutdown_timeout))


os.register_at_fork(after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_stop_all)
