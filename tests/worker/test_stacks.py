"""Processes of ours: how they end, which signals they mind, and the stacks that they leave."""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import wait_until
from queuedtask.model.task import Task, new_id
from queuedtask.worker.spawn import DUMP_SIGNAL, GROUP_SIGNALS, MOST_OF_A_STACK, Process, Stacks
from queuedtask.worker.wire import Message

HERE = Path(__file__).parent


class Runner:
    """A process that runs functions one at a time; it needs no database for that."""

    def __init__(self) -> None:
        self.process = Process(["worker"], "--isolated")
        self.process.wire.send(
            path=[str(HERE), *sys.path], application=None, database_url="", settings={"log_level": 20}
        )
        self._messages: list[Message] = []

    def start(self, function: str, *args: object, **kwargs: object) -> None:
        task = Task(new_id(), "n", function, json.dumps(args), json.dumps(kwargs), None, 1, 0, None, None)
        self.process.wire.send(attempt=task._asdict(), default_timeout=60.0)

    def wait_for(self, key: str) -> Any:
        def has_come() -> bool:
            self._messages += self.process.wire.receive()
            return any(key in message for message in self._messages)

        wait_until(has_come, 20, message=f"the process says {key}")
        (found,) = (message[key] for message in self._messages if key in message)
        self._messages.clear()
        return found

    def call(self, function: str, *args: object, **kwargs: object) -> Any:
        """Return what a function returns there."""
        self.start(function, *args, **kwargs)
        ended = self.wait_for("ended")
        assert ended["kind"] == "returned", ended
        return json.loads(ended["result"] or "null")


@pytest.fixture
def make_runner() -> Iterator[Callable[[], Runner]]:
    with contextlib.ExitStack() as stack:

        def make() -> Runner:
            runner = Runner()
            stack.callback(runner.process.close)
            stack.callback(runner.process.reap, wait=True)
            stack.callback(runner.process.send_signal, signal.SIGKILL)
            return runner

        yield make


@pytest.fixture
def runner(make_runner: Callable[[], Runner]) -> Runner:
    return make_runner()


# -------------------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize(
    ("function", "args", "exit_signal", "code"),
    [
        ("hostile_jobs:kill_itself", [], "SIGKILL", -9),
        ("hostile_jobs:segfault", [], "SIGSEGV", -11),
        ("os:abort", [], "SIGABRT", -6),
        ("signal:raise_signal", [40], "signal 40", -40),
        ("hostile_jobs:leave", [], "exit code 0", 0),
        ("os:_exit", [3], "exit code 3", 3),
    ],
)
def test_the_end_of_a_process_has_the_name_of_its_signal_or_its_exit_code(
    runner: Runner, function: str, args: list[object], exit_signal: str, code: int
) -> None:
    assert runner.process.reap() is None
    runner.start(function, *args)
    ending = runner.process.reap(wait=True)
    assert ending is not None
    assert (ending.exit_signal, ending.code) == (exit_signal, code)
    assert ending.memory_bytes is not None
    assert 5 * 2**20 < ending.memory_bytes < 2**40
    assert runner.process.reap() is runner.process.reap(wait=True) is ending


def test_the_most_memory_that_a_process_had_is_known_after_its_end(runner: Runner) -> None:
    assert runner.call("hostile_jobs:grow", 300) == runner.process.pid
    runner.process.send_signal(signal.SIGKILL)
    ending = runner.process.reap(wait=True)
    assert ending is not None
    assert ending.memory_bytes is not None
    assert ending.memory_bytes > 300 * 2**20


def test_a_process_ends_with_its_wire_whatever_it_is_doing(runner: Runner) -> None:
    runner.start("hostile_jobs:loop")
    runner.wait_for("begun")
    runner.process.wire.close()
    ending = runner.process.reap(wait=True)
    assert ending is not None
    assert ending.exit_signal == "exit code 0"


def test_a_signal_to_one_that_has_ended_goes_nowhere(runner: Runner) -> None:
    runner.process.send_signal(signal.SIGKILL)
    runner.process.reap(wait=True)
    runner.process.send_signal(signal.SIGKILL)
    assert runner.process.reap(wait=True) is not None


def test_several_threads_may_wait_for_the_same_end(runner: Runner) -> None:
    found: list[object] = []
    begin = threading.Barrier(9)

    def wait() -> None:
        begin.wait()
        try:
            found.append(runner.process.reap(wait=True))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    begin.wait()
    runner.process.send_signal(signal.SIGKILL)
    for thread in threads:
        thread.join(10)
    assert found == [runner.process.ending] * 8


# -------------------------------------------------------------------------------------------------------------- signals


def test_the_signals_of_a_terminal_end_no_process_from_its_first_moment_on(make_runner: Callable[[], Runner]) -> None:
    runners = [make_runner() for _ in range(3)]
    done: list[Runner] = []

    def send_and_look() -> bool:
        """Send all of them, again and again, while the processes start and while they work."""
        for runner in runners:
            for number in GROUP_SIGNALS:
                runner.process.send_signal(number)
            assert runner.process.reap() is None
        done.extend(r for r in runners if r not in done and any("ended" in m for m in r.process.wire.receive()))
        return len(done) == len(runners)

    for runner in runners:
        runner.start("hostile_jobs:sleep", 0.2)
    wait_until(send_and_look, 20)
    assert [runner.call("operator:add", 1, 2) for runner in runners] == [3] * 3


def test_a_process_that_has_only_just_been_started_can_be_asked_for_its_stacks(
    make_runner: Callable[[], Runner],
) -> None:
    for _ in range(3):
        runner = make_runner()
        runner.process.send_signal(DUMP_SIGNAL)
        assert runner.call("operator:add", 1, 2) == 3


def test_whoever_starts_one_goes_on_minding_the_signals_himself(make_runner: Callable[[], Runner]) -> None:
    make_runner()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(GROUP_SIGNALS)


def test_a_program_that_a_task_starts_can_be_terminated(runner: Runner) -> None:
    assert runner.call("hostile_jobs:terminate_a_program") == -signal.SIGTERM


def test_a_program_that_a_task_starts_has_no_signal_ignored_or_blocked(runner: Runner) -> None:
    status = runner.call("subprocess:check_output", ["grep", "^Sig", "/proc/self/status"], text=True)
    masks = {name: int(mask, 16) for name, mask in (line.split(":") for line in status.splitlines() if "Q" not in line)}
    for number in (*GROUP_SIGNALS, DUMP_SIGNAL):
        assert not masks["SigBlk"] >> (number - 1) & 1, number
        assert not masks["SigIgn"] >> (number - 1) & 1, number


def test_a_program_that_a_task_starts_inherits_none_of_our_descriptors(runner: Runner) -> None:
    runner.call("hostile_jobs:noop")
    command = Path(f"/proc/{runner.process.pid}/cmdline").read_bytes().split(b"\0")
    handed = command[command.index(b"--isolated") + 1].decode().split(",")
    assert len(handed) == 2
    for number in handed:
        assert (Path(f"/proc/{runner.process.pid}/fd") / number).exists()
        look = [sys.executable, "-c", f"import os; os.fstat({number})"]
        assert runner.call("subprocess:call", look, close_fds=False, stderr=-3) != 0


# --------------------------------------------------------------------------------------------------------------- stacks


def test_the_stacks_come_though_a_call_holds_the_interpreter_s_lock(runner: Runner) -> None:
    runner.start("hostile_jobs:backtrack")
    runner.wait_for("begun")
    stacks = runner.process.stacks
    assert (stacks.take(), stacks.last()) == ("", None)
    taken = ""

    def is_in_the_call() -> bool:
        # Until the task's thread has gone on from "begun" into the call itself.
        nonlocal taken
        runner.process.ask_for_stacks()
        taken = wait_until(stacks.take, 10)
        return "in backtrack" in taken

    wait_until(is_in_the_call)
    assert runner.process.reap() is None
    runner.process.send_signal(signal.SIGKILL)
    runner.process.reap(wait=True)
    assert "in backtrack" in (stacks.last() or "")


def test_a_crash_leaves_its_stack_and_what_was_asked_for_before_is_left_out(runner: Runner) -> None:
    stacks = runner.process.stacks
    runner.start("hostile_jobs:noop")
    runner.wait_for("ended")
    runner.process.send_signal(DUMP_SIGNAL)
    assert "Fatal" not in wait_until(stacks.take, 10)
    runner.start("hostile_jobs:segfault")
    runner.process.reap(wait=True)
    text = stacks.last() or ""
    assert text.startswith("Fatal Python error: Segmentation fault")
    assert "in segfault" in text
    assert stacks.take(is_final=True) == text


def test_a_process_that_is_killed_without_a_word_leaves_no_stack(runner: Runner) -> None:
    runner.call("hostile_jobs:noop")
    runner.process.send_signal(DUMP_SIGNAL)  # asked for by somebody, long before the end
    wait_until(runner.process.stacks.take, 10)
    runner.start("hostile_jobs:kill_itself")
    runner.process.reap(wait=True)
    assert runner.process.stacks.last() is None


@pytest.fixture
def stacks() -> Iterator[Stacks]:
    stacks = Stacks()
    yield stacks
    stacks.close()


def test_what_was_taken_is_not_taken_again(stacks: Stacks) -> None:
    assert stacks.take(is_final=True) == ""
    os.write(stacks.fileno(), b"one\n")
    assert stacks.take(is_final=True) == "one\n"
    os.write(stacks.fileno(), "two ü\n".encode() + b"\xff")
    assert stacks.take(is_final=True) == "two ü\n\N{REPLACEMENT CHARACTER}"
    assert stacks.take(is_final=True) == ""


def test_what_is_still_being_written_is_not_taken_in_two_parts(stacks: Stacks) -> None:
    os.write(stacks.fileno(), b"one ")
    assert (stacks.take(), stacks.is_pending) == ("", True)
    os.write(stacks.fileno(), b"two\n")
    assert (stacks.take(), stacks.is_pending) == ("", True)
    assert (stacks.take(), stacks.is_pending) == ("one two\n", False)
    assert stacks.take() == ""


def test_the_last_stack_begins_at_the_mark_or_with_the_crash_after_it_and_has_a_bound(stacks: Stacks) -> None:
    assert stacks.last() is None
    os.write(stacks.fileno(), b"early\n")
    assert stacks.last() is None
    stacks.mark()
    assert stacks.last() is None
    os.write(stacks.fileno(), b"asked for\n")
    assert stacks.last() == "asked for\n"
    os.write(stacks.fileno(), b"Fatal Python error: Aborted\n" + b"frame\n" * MOST_OF_A_STACK)
    text = stacks.last() or ""
    assert text.startswith("Fatal Python error: Aborted\nframe\n")
    assert len(text) == MOST_OF_A_STACK
