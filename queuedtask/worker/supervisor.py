"""The supervisor: a small process without user code that keeps worker processes running.

It starts them clean, orders them by wire, keeps their leases, reads on their boards what they run, and kills what
cannot be stopped otherwise. It imports neither the application nor SQLAlchemy: whatever tasks do to a worker process,
nothing of it reaches this one. What a dead process leaves behind is taken back by a living one, to which the
supervisor sends an obituary.
"""

import faulthandler
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

from queuedtask.worker.board import KILL_MARGIN, Board, Entry
from queuedtask.worker.heart import Heart
from queuedtask.worker.obituary import LOST, SAMPLE, Obituary, Verdict, judge
from queuedtask.worker.spawn import DUMP_SIGNAL, Ending, Process
from queuedtask.worker.waker import Waker
from queuedtask.worker.wire import Message, WireClosed

logger = logging.getLogger("queuedtask.supervisor")

TURN_INTERVAL: Final = 1.0
"""Seconds at most between two looks at the boards."""
START_LIMIT: Final = 300.0
"""Seconds that a process has to start: to import the application and to reach the database."""
SILENCE_LIMIT: Final = 60.0
"""Seconds, and a lease, for which a manager may not go round while no task's code runs."""
STOP_MARGIN: Final = 3.0
"""Seconds that a process has to end in order beyond its shutdown timeout."""
SETTLER_LIMIT: Final = 20.0
"""Seconds that a process has which is started at a shutdown to take back the tasks of one that had to be killed."""
QUICK_DEATH: Final = 10.0
"""Seconds; a process that lives for less is started again after a growing delay."""
FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0
NEVER: Final = float("inf")


class Child:
    """One worker process, as its supervisor sees it."""

    def __init__(self, arguments: Sequence[str]) -> None:
        descriptor = Board.create()
        try:
            self.board = Board(descriptor)
            self.process = Process(arguments, "--supervised", descriptor)
        finally:
            os.close(descriptor)
        self.started_at = time.monotonic()
        self.facts: Message | None = None
        """What it has said of itself; None while it starts."""
        self.ready_at = NEVER
        self.is_leaving = False
        """It was told to end, or has nothing left to do."""
        self.has_said_bye = False
        self.end_by = NEVER
        """When it is killed if it is still there."""
        self.verdicts: dict[str, Verdict] | None = None
        """What becomes of the attempts that run, if it was killed by its supervisor."""

    @property
    def worker(self) -> int:
        """Its id among the workers; 0 while it starts."""
        return int(self.facts["worker"]) if self.facts else 0

    @property
    def is_ready(self) -> bool:
        """Tell whether it works and takes orders."""
        return self.facts is not None and not self.has_said_bye and self.verdicts is None

    def __str__(self) -> str:
        return f"worker {self.worker} (process {self.process.pid})" if self.worker else f"process {self.process.pid}"

    def order(self, **message: Any) -> None:
        """Send it an order."""
        self.process.wire.send(**message)

    def stop(self, seconds: float | None) -> None:
        """Tell it to end in order; None stands for its own shutdown timeout."""
        self.is_leaving = True
        self.order(stop=seconds)
        facts = self.facts or {"shutdown_timeout": 0.0, "timeout_grace": 1.0}
        seconds = facts["shutdown_timeout"] if seconds is None else seconds
        self.end_by = min(self.end_by, time.monotonic() + seconds + min(1.0, facts["timeout_grace"]) + STOP_MARGIN)

    def retire(self) -> None:
        """Tell it to finish what it runs, however long that takes, and end."""
        self.is_leaving = True
        self.order(retire=True)

    def own_entries(self) -> list[Entry]:
        """Return what its threads run; what runs in processes of its own is left out."""
        return [entry for _, entry in self.board.entries() if not entry.process]

    def silence(self, now: float) -> float:
        """Return for how long its manager has not gone round."""
        return now - max(self.board.turned_at, self.ready_at)

    def memory_bytes(self) -> int:
        """Return how much memory it has now; 0 where that cannot be known."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")


class Place:
    """One of the ``-p`` places for a worker process: who holds it, and who is to take over."""

    def __init__(self) -> None:
        self.child: Child | None = None
        self.successor: Child | None = None
        self.is_to_change = False
        """The one that holds it is to be replaced; until that succeeds a successor is started again and again."""
        self.is_reloading = False
        """It is replaced for new code: told to stop, not only to retire, and kept if the new code does not start."""
        self.quick_deaths = 0
        self.start_at = 0.0
        self.is_done = False
        """Its burst is over."""

    def died(self, after: float) -> None:
        """Plan the next start: at once, but with a growing delay for one that dies again and again."""
        self.quick_deaths = self.quick_deaths + 1 if after < QUICK_DEATH else 0
        delay = 0.0
        if self.quick_deaths > 1:
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(self.quick_deaths - 2, 10))
        self.start_at = time.monotonic() + delay


class Supervisor:
    """Construct and :meth:`run`; what it is told comes by signals."""

    def __init__(
        self, arguments: Sequence[str], *, processes: int = 1, burst: bool = False, max_rss: int | None = None
    ) -> None:
        self._arguments = list(arguments)
        self._places = [Place() for _ in range(processes)]
        self._leaving: set[Child] = set()
        self._obituaries: dict[int, tuple[Obituary, Child | None]] = {}
        self._burst = burst
        self._max_rss = max_rss
        self._waker = Waker()
        self._hearts: dict[str, Heart] = {}
        self._has_worked = False
        self._exit_code = 0
        self._is_stopping = False
        self._has_started_settler = False
        self._signals: list[int] = []
        self._turned_at = time.monotonic()
        self._lenient_until = 0.0
        self._look_again_at = NEVER

    def run(self) -> int:
        """Keep the processes running until told to stop, or until their bursts are over; return the exit code."""
        with self._taking_signals():
            while not self._is_finished():
                self._turn()
                self._wait()
        for heart in self._hearts.values():
            heart.stop()
        for worker in self._obituaries:
            logger.error("the tasks of worker %s could not be taken back; another worker will, after its lease", worker)
        logger.info("the supervisor has ended")
        return self._exit_code

    # -------------------------------------------------------------------------------------------------------- the loop

    def _turn(self) -> None:
        now = time.monotonic()
        if now - self._turned_at > TURN_INTERVAL + KILL_MARGIN:
            # We were stopped ourselves, and perhaps the processes with us: they get their time to notice.
            self._lenient_until = now + KILL_MARGIN
        self._turned_at = now
        self._look_again_at = NEVER
        self._obey_signals()
        for child in self._children():
            self._hear(child)
            self._relay_stacks(child)
        for child in self._children():
            if (ending := child.process.reap()) is not None:
                self._ended(child, ending)
        for child in self._children():
            self._keep_within_limits(child)
        self._fill_places()
        self._deliver_obituaries()

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._waker.fileno(), select.POLLIN)
        for child in self._children():
            if not child.process.wire.is_closed:
                poll.register(child.process.wire, select.POLLIN)
        now = time.monotonic()
        starts = [p.start_at for p in self._places if not p.is_done and (p.child is None or p.is_to_change)]
        if self._is_stopping or any(place.successor is not None for place in self._places):
            starts = []
        until = min([now + TURN_INTERVAL, self._look_again_at, *starts])
        poll.poll(max(0.0, until - now) * 1000)
        self._waker.clear()

    def _children(self) -> list[Child]:
        held = [child for place in self._places for child in (place.child, place.successor) if child is not None]
        return [*held, *self._leaving]

    def _is_finished(self) -> bool:
        if self._children():
            return False
        if self._is_stopping:
            return True
        return all(place.is_done for place in self._places) and not self._obituaries

    # --------------------------------------------------------------------------------------------------------- signals

    @contextmanager
    def _taking_signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)
        before = {number: signal.signal(number, note) for number in numbers}
        descriptor = signal.set_wakeup_fd(self._waker.writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _obey_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stop(0.0 if self._is_stopping else None)
            elif number == signal.SIGHUP and not self._is_stopping:
                logger.info("starting anew: new processes first")
                for place in self._places:
                    self._succeed(place, "it was asked for", is_reloading=True)
            elif number == signal.SIGUSR1:
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                for child in self._children():
                    child.process.send_signal(DUMP_SIGNAL)
                self._look_again_at = time.monotonic() + 0.2

    def _stop(self, seconds: float | None) -> None:
        logger.info("stopping%s", "" if seconds is None else " at once")
        self._is_stopping = True
        for child in self._children():
            child.stop(seconds)

    # -------------------------------------------------------------------------------------------- what processes say

    def _hear(self, child: Child) -> None:
        wire = child.process.wire
        if wire.is_closed:
            return
        wire.flush()
        try:
            for message in wire.receive():
                self._take(child, message)
        except WireClosed:
            wire.close()

    def _take(self, child: Child, message: Message) -> None:
        if "hello" in message:
            self._welcome(child, message["hello"])
        elif "replace" in message:
            place = self._place_of(child)
            if place is not None:
                # It claims nothing more: its successor must come, whatever else was planned.
                self._succeed(place, message["replace"])
                place.is_reloading = False
        elif "buried" in message:
            self._obituaries.pop(message["buried"], None)
        elif "bye" in message:
            child.has_said_bye = child.is_leaving = True
            # All is settled; what its interpreter does at its end may not keep it for ever.
            child.end_by = min(child.end_by, time.monotonic() + STOP_MARGIN)

    def _welcome(self, child: Child, facts: Message) -> None:
        child.facts, child.ready_at = facts, time.monotonic()
        self._has_worked = True
        dsn = facts["dsn"]
        if dsn not in self._hearts:
            # New code may name another database; ids of the one mean nothing in the other.
            self._hearts[dsn] = Heart(
                dsn, facts["keep_alive"], facts["heartbeat_interval"], living=partial(self._living, dsn)
            )
        self._hearts[dsn].beat()
        for place in self._places:
            if place.successor is child:
                before, place.child, place.successor = place.child, child, None
                place.is_to_change = False
                if before is not None:
                    self._leaving.add(before)
                    if place.is_reloading:
                        before.stop(None)
                    else:
                        before.retire()

    def _living(self, dsn: str) -> Mapping[int, Board]:
        ready = [child for child in self._children() if child.is_ready]
        return {child.worker: child.board for child in ready if child.facts and child.facts["dsn"] == dsn}

    def _place_of(self, child: Child) -> Place | None:
        return next((place for place in self._places if place.child is child), None)

    def _relay_stacks(self, child: Child, *, is_final: bool = False) -> None:
        stacks = child.process.stacks
        if text := stacks.take(is_final=is_final):
            sys.stderr.write(f"--- stacks of {child}\n{text}")
            sys.stderr.flush()
        if stacks.is_pending:
            self._look_again_at = min(self._look_again_at, time.monotonic() + 0.1)

    # ---------------------------------------------------------------------------------------------- starting processes

    def _fill_places(self) -> None:
        if self._is_stopping:
            return
        now = time.monotonic()
        for place in self._places:
            if place.is_done or place.successor is not None or now < place.start_at:
                continue
            if place.child is None:
                place.child = Child(self._arguments)
            elif place.is_to_change:
                place.successor = Child(self._arguments)

    def _succeed(self, place: Place, reason: str, *, is_reloading: bool = False) -> None:
        """Have a new process started for a place; the one that holds it goes when the new one is ready."""
        if place.child is not None and not place.is_to_change and not place.is_done:
            logger.info("%s is to be replaced: %s", place.child, reason)
            place.is_to_change, place.is_reloading = True, is_reloading

    # ------------------------------------------------------------------------------------------------ ending processes

    def _ended(self, child: Child, ending: Ending) -> None:
        self._hear(child)  # what it said last
        self._relay_stacks(child, is_final=True)
        after = time.monotonic() - child.started_at
        for _, entry in child.board.entries():
            if entry.process:
                _kill_runner(entry.process)
        if child.facts is None:
            self._failed_to_start(child, ending, after)
        elif not child.has_said_bye:
            self._write_obituary(child, ending)
        for place in self._places:
            if place.successor is child:
                place.successor = None
                place.died(after)
            elif place.child is child:
                place.child, place.successor, place.is_to_change = place.successor, None, False
                if child.has_said_bye and self._burst:
                    place.is_done = True
                elif not self._is_stopping:
                    place.died(after)
        self._leaving.discard(child)
        child.process.close()

    def _failed_to_start(self, child: Child, ending: Ending, after: float) -> None:
        if self._is_stopping:
            return
        if not self._has_worked and ending.code > 0:
            # Nothing has ever worked here: the reason is on stderr, and trying again would only repeat it.
            self._exit_code = ending.code
            self._stop(0.0)
            return
        logger.error("%s ended with %s while it started, after %.1f s", child, ending.exit_signal, after)
        for place in self._places:
            if place.successor is child and place.is_reloading:
                logger.error("%s goes on in its place", place.child)
                place.is_to_change = False

    def _write_obituary(self, child: Child, ending: Ending) -> None:
        verdicts = child.verdicts
        if verdicts is None:
            # It took along what ran in its threads; what runs in a process of its own has nothing to do with it.
            verdicts = {
                entry.task_id: Verdict.of(entry, LOST) for _, entry in child.board.entries() if not entry.process
            }
        logger.error("%s ended with %s; %s of its tasks had begun", child, ending.exit_signal, len(verdicts))
        obituary = Obituary(
            child.worker, ending.exit_signal, ending.memory_bytes, child.process.stacks.last(), verdicts
        )
        self._obituaries[child.worker] = (obituary, None)

    def _deliver_obituaries(self) -> None:
        """Give every obituary to a process that can take the tasks back; at a shutdown one is started for that."""
        undelivered = {
            worker: obituary
            for worker, (obituary, heir) in self._obituaries.items()
            if heir is None or heir.has_said_bye or heir not in self._children()
        }
        if not undelivered:
            return
        heir = next((child for child in self._children() if child.is_ready and child.process.reap() is None), None)
        is_settler = heir is None and self._is_stopping and not self._has_started_settler
        if is_settler:
            self._has_started_settler = True
            heir = Child(self._arguments)
            self._leaving.add(heir)
        if heir is None:
            return
        for worker, obituary in undelivered.items():
            heir.order(bury=obituary.as_message())
            self._obituaries[worker] = (obituary, heir)
        if is_settler:
            # What waits for it when it has started is obeyed before it claims anything.
            heir.stop(0.0)
            heir.end_by = time.monotonic() + SETTLER_LIMIT

    # ---------------------------------------------------------------------------------------------------------- limits

    def _keep_within_limits(self, child: Child) -> None:
        now = time.monotonic()
        if child.verdicts is not None or now < self._lenient_until:
            return
        if now >= child.end_by:
            self._kill(child, "it did not end in time")
        elif child.facts is None:
            if now - child.started_at > START_LIMIT:
                self._kill(child, f"it did not start within {START_LIMIT:g} s")
        elif child.silence(now) > KILL_MARGIN and (overdue := [e for e in child.own_entries() if e.kill_at <= now]):
            # A manager that still goes round ends them by itself, however late it may be.
            self._kill(child, f"it has not ended the attempts of {len(overdue)} tasks that outlived their timeout")
        elif child.silence(now) > SILENCE_LIMIT + child.facts["lease"] and not child.own_entries():
            self._kill(child, "it does not answer")
        elif self._max_rss is not None and not child.is_leaving:
            self._limit_memory(child, self._max_rss)

    def _limit_memory(self, child: Child, most: int) -> None:
        mebibytes, place = child.memory_bytes() // 2**20, self._place_of(child)
        if mebibytes > most and place is not None:
            self._succeed(place, f"it has {mebibytes} MiB of memory")

    def _kill(self, child: Child, reason: str) -> None:
        """Kill a process after asking for its stacks, and judge what becomes of the attempts that run in it."""
        logger.error("killing %s: %s", child, reason)
        before = _cpu_seconds(child)
        child.process.ask_for_stacks()
        time.sleep(SAMPLE)
        after = _cpu_seconds(child)
        now = time.monotonic()
        entries = child.own_entries()
        grace = child.facts["timeout_grace"] + KILL_MARGIN if child.facts else 0.0
        is_overdue = any(entry.kill_at <= now for entry in entries)
        child.verdicts = judge(entries, before, after, now=now, grace=grace) if is_overdue else {}
        child.process.send_signal(signal.SIGKILL)
        self._look_again_at = time.monotonic() + 0.05


def _cpu_seconds(child: Child) -> dict[int, float]:
    """Return the processor time of each thread of a process; empty where the system does not tell."""
    used = {}
    for thread in Path(f"/proc/{child.process.pid}/task").glob("*"):
        try:
            fields = (thread / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        used[int(thread.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def _kill_runner(pid: int) -> None:
    """Kill a process that a dead worker process has left; not another one that has got its number meanwhile."""
    try:
        if b"--isolated" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    except OSError:
        pass  # It has ended with its worker.
