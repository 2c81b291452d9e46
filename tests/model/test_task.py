"""Ids that sort by the time at which they were made, in one process, in many threads and after a fork."""

import itertools
import subprocess
import sys
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from queuedtask.model.task import Task, TaskSpec, _Source, new_id, time_of


def test_an_id_is_a_uuid_of_version_7() -> None:
    for _ in range(1000):
        made = uuid.UUID(new_id())
        assert made.version == 7
        assert made.variant == uuid.RFC_4122


def test_an_id_is_written_in_lower_case_with_dashes_as_postgresql_writes_it() -> None:
    made = new_id()
    assert made == str(uuid.UUID(made))


def test_an_id_begins_with_the_milliseconds_since_1970() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(new_id()).int >> 80
    assert before - 1 <= made <= time.time_ns() // 1_000_000 + 1


def test_ids_grow_strictly() -> None:
    made = [new_id() for _ in range(20_000)]
    assert all(earlier < later for earlier, later in itertools.pairwise(made))


def test_threads_never_make_the_same_id_and_each_sees_its_own_grow() -> None:
    made: list[list[str]] = []
    begin = threading.Barrier(8)

    def make() -> None:
        begin.wait()
        made.append([new_id() for _ in range(2000)])

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [each for ids in made for each in ids]
    assert len({uuid.UUID(each).int >> 64 for each in every}) == len(every) == 16_000
    assert all(ids == sorted(ids) for ids in made)


def test_ids_go_on_growing_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    before = [new_id() for _ in range(10)]
    monkeypatch.setattr(time, "time_ns", lambda: now - 3600 * 10**9)
    after = [new_id() for _ in range(10_000)]
    assert [*before, *after] == sorted({*before, *after})
    assert all(uuid.UUID(each).version == 7 and uuid.UUID(each).variant == uuid.RFC_4122 for each in after)


def test_ids_grow_within_a_clock_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_123_456_789)
    source = _Source()
    stamps = [source.next()[0] for _ in range(5000)]
    assert stamps == list(range(stamps[0], stamps[0] + 5000))
    assert stamps[0] >> 12 == 1_700_000_000_123
    assert (stamps[0] & 0xFFF) / 4096 == pytest.approx(0.456789, abs=1 / 4096)


FORK = """
import os, signal, sys, threading
from queuedtask.model import task

children = []
# As it is when another thread is just making an id: the lock is held, and in the child nobody gives it back.
holds = threading.Event(); done = threading.Event()
def hold():
    with task._source.lock:
        holds.set(); done.wait()
thread = threading.Thread(target=hold); thread.start(); holds.wait()
for _ in range(3):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        text = "\\n".join(task.new_id() for _ in range(500))
        os.write(write, text.encode()); os._exit(0)
    os.close(write)
    children.append((pid, read))
done.set(); thread.join()
made = [task.new_id() for _ in range(500)]
for pid, read in children:
    with open(read) as pipe: made += pipe.read().splitlines()
    assert os.waitpid(pid, 0)[1] == 0, "a child hung"
print(len(made), len(set(made)))
"""


def test_a_forked_child_makes_ids_of_its_own_though_the_lock_was_held() -> None:
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, check=False)
    assert (run.stdout.split(), run.stderr) == (["2000", "2000"], "")


def test_what_crosses_seams_cannot_be_changed() -> None:
    for frozen in (TaskSpec(new_id(), "n", "a:b"), Task("i", "n", "a:b", "[]", "{}", None, 1, 0, None, None)):
        with pytest.raises(AttributeError):
            frozen.name = "other"  # type: ignore[misc]


def test_a_task_is_suspect_from_its_first_loss_on() -> None:
    task = Task("i", "n", "a:b", "[]", "{}", None, attempt=4, failures=3, max_retries=None, timeout=None)
    assert [task._replace(lost_count=n).is_suspect for n in range(3)] == [False, True, True]


def test_an_id_says_when_it_was_made() -> None:
    for _ in range(100):
        before = time.time_ns() // 1000
        made = time_of(new_id())
        after = time.time_ns() // 1000
        assert made is not None
        # The part below the millisecond is rounded down, and an id is never made before the one before it.
        assert before - 2 <= (made - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) <= after + 1
    assert time_of(str(uuid.uuid4())) is None
