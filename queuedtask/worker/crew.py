"""Children of a supervisor: processes of one kind, each started clean, heard, kept within limits and replaced.

What all kinds have in common stands here: that they introduce themselves and say good-bye on a wire, write on a board
when their loop last went round, and hold a place in which another one takes over when they die.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from queuedtask.worker.board import KILL_MARGIN, Board, Entry
from queuedtask.worker.obituary import SAMPLE, Verdict, judge
from queuedtask.worker.spawn import DUMP_SIGNAL, Ending, Process
from queuedtask.worker.wire import Message, WireClosed

logger = logging.getLogger("queuedtask.supervisor")

START_LIMIT: Final = 300.0
"""Seconds that a process has to start: to import the application and to reach the database."""
SILENCE_LIMIT: Final = 60.0
"""Seconds, and a lease, for which a child's loop may not go round while no task's code runs."""
STOP_MARGIN: Final = 3.0
"""Seconds that a process has to end in order beyond its shutdown timeout."""
QUICK_DEATH: Final = 10.0
"""Seconds; a process that lives for less is started again after a growing delay."""
FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0
NEVER: Final = float("inf")


class Child:
    """One process, as its supervisor sees it."""

    def __init__(self, command: Sequence[str], *descriptors: int) -> None:
        descriptor = Board.create()
        try:
            self.board = Board(descriptor)
            self.process = Process(command, "--supervised", descriptor, *descriptors)
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
        """Its id among the workers; 0 while it starts, and if it is none."""
        return int(self.facts.get("worker", 0)) if self.facts else 0

    @property
    def is_ready(self) -> bool:
        """Tell whether it works and takes orders."""
        return self.facts is not None and not self.has_said_bye and self.verdicts is None

    def __str__(self) -> str:
        name = f"{self.facts['name']} " if self.facts else ""
        return f"{name}(process {self.process.pid})" if name else f"process {self.process.pid}"

    def order(self, **message: Any) -> None:
        """Send it an order."""
        self.process.wire.send(**message)

    def stop(self, elapsed: float = 0.0) -> None:
        """Tell it to end in order, so many seconds of its own shutdown timeout being over; infinite for at once."""
        self.is_leaving = True
        facts = self.facts or {"shutdown_timeout": 0.0, "timeout_grace": 1.0}
        seconds = max(0.0, facts["shutdown_timeout"] - elapsed)
        self.order(stop=seconds if elapsed else None)
        self.end_by = min(self.end_by, time.monotonic() + seconds + min(1.0, facts["timeout_grace"]) + STOP_MARGIN)

    def retire(self) -> None:
        """Tell it to finish what it runs, however long that takes, and end."""
        self.is_leaving = True
        self.order(retire=True)

    def own_entries(self) -> list[Entry]:
        """Return what its threads run; what runs in processes of its own is left out."""
        return [entry for _, entry in self.board.entries() if not entry.process]

    def silence(self, now: float) -> float:
        """Return for how long its loop has not gone round."""
        return now - max(self.board.turned_at, self.ready_at)

    @property
    def problem(self) -> str | None:
        """Tell what is wrong with it though it lives; what tasks hold up is their affair."""
        if self.facts is None or self.own_entries():
            return None
        # Without the database a worker's loop goes round whenever it tries again, which is seldom.
        tolerated = self.facts["lease"] + (0.0 if self.board.is_connected else SILENCE_LIMIT)
        silence = self.silence(time.monotonic())
        return f"{self} has not answered for {silence:.0f} s" if silence > tolerated else None

    @property
    def is_able(self) -> bool:
        """Tell whether it can take on something new: it goes round, and has what it needs for that."""
        if self.facts is None or not self.is_ready or self.is_leaving:
            return False
        return self.board.is_connected and self.silence(time.monotonic()) <= self.facts["lease"]

    def fault(self, now: float) -> str | None:
        """Return why it is to be killed, if it is."""
        if now >= self.end_by:
            return "it did not end in time"
        if self.facts is None:
            return f"it did not start within {START_LIMIT:g} s" if now - self.started_at > START_LIMIT else None
        if self.silence(now) > KILL_MARGIN and (overdue := [e for e in self.own_entries() if e.kill_at <= now]):
            # A manager that still goes round ends them by itself, however late it may be.
            return f"it has not ended the attempts of {len(overdue)} tasks that outlived their timeout"
        if self.silence(now) > SILENCE_LIMIT + self.facts["lease"] and not self.own_entries():
            return "it does not answer"
        return None

    def kill(self) -> None:
        """Kill it after asking for its stacks, and judge what becomes of the attempts that run in it."""
        before = self._cpu_seconds()
        self.process.ask_for_stacks()
        time.sleep(SAMPLE)
        after = self._cpu_seconds()
        now = time.monotonic()
        entries = self.own_entries()
        grace = self.facts["timeout_grace"] + KILL_MARGIN if self.facts else 0.0
        is_overdue = any(entry.kill_at <= now for entry in entries)
        self.verdicts = judge(entries, before, after, now=now, grace=grace) if is_overdue else {}
        self.process.send_signal(signal.SIGKILL)

    def _cpu_seconds(self) -> dict[int, float]:
        """Return the processor time of each of its threads; empty where the system does not tell."""
        used = {}
        for thread in Path(f"/proc/{self.process.pid}/task").glob("*"):
            try:
                fields = (thread / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            used[int(thread.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return used

    def memory_bytes(self) -> int:
        """Return how much memory it has now; 0 where that cannot be known."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")


class Place:
    """A place for one child: who holds it, and who is to take over."""

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


class Crew:
    """Children that run the same command, in a number of places. Its supervisor calls :meth:`turn` again and again."""

    kind = "process"

    def __init__(self, command: Sequence[str], *, places: int = 1) -> None:
        self._command = list(command)
        self._places = [Place() for _ in range(places)]
        self._leaving: set[Child] = set()
        self._has_worked = False
        self.is_stopping = False
        self.failed_with: int | None = None
        """The exit code of a child that could not start, when none ever could."""
        self.look_again_at = NEVER
        """When there is something to do although nobody will wake us for it."""

    @property
    def children(self) -> list[Child]:
        """All that there are, those included that start or leave."""
        held = [child for place in self._places for child in (place.child, place.successor) if child is not None]
        return [*held, *self._leaving]

    @property
    def is_over(self) -> bool:
        """Tell whether it has nothing left to do, though nobody has told it to stop."""
        return False

    def next_start(self) -> float:
        """Return when the next child is to be started."""
        if self.is_stopping or any(place.successor is not None for place in self._places):
            return NEVER
        places = (p for p in self._places if not p.is_done and (p.child is None or p.is_to_change))
        return min((place.start_at for place in places), default=NEVER)

    @property
    def problems(self) -> list[str]:
        """What is wrong with its children though they live."""
        return [problem for child in self.children if (problem := child.problem) is not None]

    @property
    def shortcomings(self) -> list[str]:
        """Why it cannot take on anything new; empty when it can."""
        if any(child.is_able for child in self.children):
            return []
        return [f"no {self.kind} is ready"]

    # ------------------------------------------------------------------------------------------------ what it is told

    def tell(self, status: dict[str, Any], now: float) -> None:
        """Hear how the whole tree is, in every turn."""

    def turn(self, now: float, *, is_lenient: bool) -> None:
        """Hear all children, bury the dead, and start those that are missing; if not lenient kill those at fault."""
        self.look_again_at = NEVER
        for child in self.children:
            self._hear(child)
            self._relay_stacks(child)
        for child in self.children:
            if (ending := child.process.reap()) is not None:
                self._ended(child, ending)
        if not is_lenient:
            for child in self.children:
                if child.verdicts is None:
                    self._keep_within_limits(child, now)
        if not self.is_stopping:
            self._fill_places(now)

    def stop(self, elapsed: float) -> None:
        """Have all end in order, so many seconds of their time being over; infinite for at once. Starts no more."""
        self.is_stopping = True
        for child in self.children:
            child.stop(elapsed)

    def reload(self) -> None:
        """Have new children started; when they are ready, the old ones end in order."""
        for place in self._places:
            self._succeed(place, "it was asked for", is_reloading=True)

    def dump_stacks(self) -> None:
        """Ask all for the stacks of their threads."""
        for child in self.children:
            child.process.send_signal(DUMP_SIGNAL)
        self.look_again_at = time.monotonic() + 0.2

    def close(self) -> None:
        """Let go of what outlives the children."""

    # ------------------------------------------------------------------------------------------- what the children say

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
            child.facts, child.ready_at = message["hello"], time.monotonic()
            self._has_worked = True
            self._welcome(child)
        elif "bye" in message:
            child.has_said_bye = child.is_leaving = True
            # All is settled; what its interpreter does at its end may not keep it for ever.
            child.end_by = min(child.end_by, time.monotonic() + STOP_MARGIN)

    def _welcome(self, child: Child) -> None:
        """Let a child begin that is ready; the one that it succeeds goes."""
        for place in self._places:
            if place.successor is child:
                before, place.child, place.successor = place.child, child, None
                place.is_to_change = False
                if before is not None:
                    self._leaving.add(before)
                    if place.is_reloading:
                        before.stop()
                    else:
                        before.retire()

    def _relay_stacks(self, child: Child, *, is_final: bool = False) -> None:
        stacks = child.process.stacks
        if text := stacks.take(is_final=is_final):
            sys.stderr.write(f"--- stacks of {child}\n{text}")
            sys.stderr.flush()
        if stacks.is_pending:
            self.look_again_at = min(self.look_again_at, time.monotonic() + 0.1)

    # ------------------------------------------------------------------------------------------------------- beginnings

    def _start(self) -> Child:
        return Child(self._command)

    def _fill_places(self, now: float) -> None:
        for place in self._places:
            if place.is_done or place.successor is not None or now < place.start_at:
                continue
            if place.child is None:
                place.child = self._start()
            elif place.is_to_change:
                place.successor = self._start()

    def _place_of(self, child: Child) -> Place | None:
        return next((place for place in self._places if place.child is child), None)

    def _succeed(self, place: Place, reason: str, *, is_reloading: bool = False) -> None:
        """Have a new process started for a place; the one that holds it goes when the new one is ready."""
        if place.child is not None and not place.is_to_change and not place.is_done:
            logger.info("%s is to be replaced: %s", place.child, reason)
            place.is_to_change, place.is_reloading = True, is_reloading

    # ---------------------------------------------------------------------------------------------------------- endings

    def _keep_within_limits(self, child: Child, now: float) -> None:
        if (reason := child.fault(now)) is not None:
            logger.error("killing %s: %s", child, reason)
            child.kill()
            self.look_again_at = time.monotonic() + 0.05

    def _ended(self, child: Child, ending: Ending) -> None:
        self._hear(child)  # what it said last
        self._relay_stacks(child, is_final=True)
        after = time.monotonic() - child.started_at
        if child.facts is None:
            self._failed_to_start(child, ending, after)
        elif not child.has_said_bye:
            self._died(child, ending)
        for place in self._places:
            if place.successor is child:
                place.successor = None
                place.died(after)
            elif place.child is child:
                place.child, place.successor, place.is_to_change = place.successor, None, False
                if not self.is_stopping:
                    self._left(place, child, after)
        self._leaving.discard(child)
        child.process.close()

    def _left(self, place: Place, child: Child, after: float) -> None:
        """Take note that a child has left its place, which is nobody's wish."""
        place.died(after)

    def _died(self, child: Child, ending: Ending) -> None:
        """Take note that a child has ended without a word."""
        logger.error("%s ended with %s", child, ending.exit_signal)

    def _failed_to_start(self, child: Child, ending: Ending, after: float) -> None:
        if self.is_stopping:
            return
        if not self._has_worked and ending.code > 0:
            # Nothing has ever worked here: the reason is on stderr, and trying again would only repeat it.
            self.failed_with = ending.code
            self.is_stopping = True
            return
        logger.error("%s ended with %s while it started, after %.1f s", child, ending.exit_signal, after)
        for place in self._places:
            if place.successor is child and place.is_reloading:
                logger.error("%s goes on in its place", place.child)
                place.is_to_change = False
