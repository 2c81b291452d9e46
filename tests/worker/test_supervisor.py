"""Whole workers that are killed, stopped, signalled and replaced; what becomes of their processes and tasks."""

import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import apply_migrations, execute, has_begun, send_all, wait_until
from queuedtask import Queue, TaskRef
from queuedtask.db.embedded import EmbeddedServer

sys.path.insert(0, str(Path(__file__).parent))
import hostile_jobs as jobs
from trees import tree

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("QUEUEDTASK_TEST_ROUNDS", "2"))
"""How often the long trials are repeated; tox -e soak asks for more."""
FINAL = ("done", "failed", "cancelled", "stopped")


def counts(url: str) -> Counter[str]:
    return Counter(dict(execute(url, "SELECT state, count(*) FROM queued_tasks GROUP BY state")))


def all_done(url: str, number: int, timeout: float) -> None:
    wait_until(lambda: counts(url)["done"] == number, timeout, interval=0.05, message=f"{number} tasks are done")


def attempts(url: str, ref: TaskRef) -> list[tuple[object, ...]]:
    return execute(
        url,
        "SELECT attempt, outcome, error_type, exit_signal FROM queued_task_attempts WHERE queued_task_id = %s "
        "ORDER BY id",
        (ref.id,),
    )


def is_running(queue: Queue, number: int) -> bool:
    return len(queue.workers()) == number


# ---------------------------------------------------------------------------------------------------------------- death


def test_what_a_killed_process_was_running_runs_again_at_once_and_its_neighbours_go_on(
    queue: Queue, database_url: str, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    with tree(database_url, "-w", "4", "-p", "2") as worker:
        wait_until(lambda: is_running(queue, 2), 20)
        refs = [queue.add_task(jobs.note, str(runs), str(n), 5.0) for n in range(8)]
        wait_until(lambda: len(runs.read_text().split()) == 8 if runs.exists() else False, 10)
        victim = worker.children()[0]
        killed_at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(runs.read_text().split()) == 12, 20)
        # Not a measurement: the lease is 30 seconds, and this is well below.
        assert time.monotonic() - killed_at < 10
        all_done(database_url, 8, 30)
        assert worker.stop() == 0
    lost = [ref for ref in refs if ref.row().lost_count]
    assert len(lost) == 4
    for ref in lost:
        assert attempts(database_url, ref) == [(1, "lost", "WorkerLost", "SIGKILL")]
        assert ref.row().failures == 0
    assert sorted(runs.read_text().split()) == sorted([str(n) for n in range(8)] + [ref.result for ref in lost])


def test_the_tasks_of_a_whole_tree_that_is_killed_are_taken_over_within_the_lease(
    queue: Queue, database_url: str
) -> None:
    settings = {"lease": 2, "heartbeat_interval": 0.5}
    with tree(database_url, "-w", "4", **settings) as victim:
        wait_until(lambda: is_running(queue, 1), 20)
        refs = [queue.add_task(jobs.sleep, 5.0) for _ in range(4)]
        wait_until(lambda: all(has_begun(ref) for ref in refs), 10)
        with tree(database_url, "-w", "4", **settings) as heir:
            wait_until(lambda: is_running(queue, 2), 20)
            victim.signal(signal.SIGSTOP, all_of_them=True)  # so that none of them notices the death of another
            victim.signal(signal.SIGKILL, all_of_them=True)
            all_done(database_url, 4, 20)
            assert [ref.row().lost_count for ref in refs] == [1] * 4
            wait_until(lambda: is_running(queue, 1), 10)
            assert heir.stop() == 0


def test_a_task_that_always_kills_its_process_ends_as_lost_and_takes_nobody_along(
    queue: Queue, database_url: str
) -> None:
    with tree(database_url, "-w", "4") as worker:
        wait_until(lambda: is_running(queue, 1), 20)
        poison = {body.__name__: queue.add_task(body) for body in (jobs.kill_itself, jobs.segfault, jobs.leave)}
        others = [queue.add_task(jobs.sleep, 0.02) for _ in range(100)]
        all_done(database_url, 100, 60)
        wait_until(lambda: counts(database_url)["failed"] == 3, 60)
        assert worker.stop() == 0
    signals = {"kill_itself": "SIGKILL", "segfault": "SIGSEGV", "leave": "exit code 0"}
    for name, ref in poison.items():
        row = ref.row()
        assert (row.error_type, row.lost_count, row.failures) == ("WorkerLost", 3, 0), (name, row)
        found = attempts(database_url, ref)
        assert [kind for _, kind, _, _ in found] == ["lost"] * 3
        # Alone in its process from the second attempt on, so it is known how that ended.
        assert [how for *_, how in found][1:] == [signals[name]] * 2, (name, found)
    # The first loss may have had several of them in one process; what lost its process then ran alone, once more.
    assert max(ref.row().lost_count for ref in others) <= 3
    stack = execute(
        database_url,
        "SELECT error_traceback FROM queued_task_attempts WHERE queued_task_id = %s AND exit_signal = 'SIGSEGV'",
        (poison["segfault"].id,),
    )
    assert "in segfault" in stack[-1][0]


def test_a_process_that_a_task_forks_ends_with_its_copy_of_the_task(queue: Queue, database_url: str) -> None:
    codes = {"exit": 7, "raise": 1, "return": 0}
    once = queue.options(max_retries=0)
    refs = {
        (how, isolation): once.options(isolation=isolation).add_task(jobs.fork_and_raise, how)
        for how in codes
        for isolation in ("thread", "process")
    }
    others = [queue.add_task(jobs.process_number) for _ in range(100)]
    with tree(database_url, "-w", "2", "--burst") as worker:
        assert worker.process.wait(60) == 0
    for (how, _), ref in refs.items():
        assert ref.result == codes[how]
    assert {other.row().attempt for other in others} == {1}
    assert len({other.result for other in others}) == 1


def test_a_process_that_dies_at_once_again_and_again_is_started_after_growing_delays(
    queue: Queue, database_url: str
) -> None:
    with tree(database_url) as worker:
        wait_until(lambda: is_running(queue, 1), 20)
        deaths: list[float] = []
        for _ in range(4):
            (child,) = wait_until(worker.children, 20)
            wait_until(lambda: len(worker.said("started with")) == len(deaths) + 1, 20)
            os.kill(child, signal.SIGKILL)
            deaths.append(time.monotonic())
            wait_until(lambda pid=child: worker.children() != [pid] and worker.children(), 20)
            deaths[-1] = time.monotonic() - deaths[-1]
    # From the kill to the next start: at once at first, then after half a second, one and two.
    assert [deaths[1] >= 0.5, deaths[2] >= 1.0, deaths[3] >= 2.0] == [True] * 3, deaths


def test_a_task_that_writes_on_every_descriptor_does_not_take_the_supervisor_down(
    queue: Queue, database_url: str
) -> None:
    with tree(database_url, "-w", "2") as worker:
        wait_until(lambda: is_running(queue, 1), 20)
        (before,) = worker.children()
        queue.add_task(jobs.write_everywhere)
        wait_until(lambda: worker.children() not in ([], [before]), 30)
        ref = queue.add_task(jobs.sleep, 0.1)
        wait_until(lambda: ref.state == "done", 30)
        assert worker.stop() == 0


def test_a_child_that_lives_on_without_its_supervisor_ends_in_order(queue: Queue, database_url: str) -> None:
    with tree(database_url, "-w", "2") as worker:
        wait_until(lambda: is_running(queue, 1), 20)
        ref = queue.add_task(jobs.sleep, 2.0)
        wait_until(lambda: has_begun(ref), 10)
        children = worker.children()
        worker.signal(signal.SIGKILL)
        wait_until(lambda: ref.state == "done", 20)
        wait_until(lambda: is_running(queue, 0), 20)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 10)


# -------------------------------------------------------------------------------------------------- stopped for a while


def are_rescued(url: str, ids: list[str]) -> bool:
    rescued = "SELECT count(*) FROM queued_tasks WHERE id = ANY(%s::uuid[]) AND lost_count > 0"
    return bool(execute(url, rescued, (ids,))[0][0] == len(ids))


def test_a_tree_that_was_stopped_beyond_its_lease_does_not_finish_what_others_have_taken(
    queue: Queue, database_url: str, tmp_path: Path
) -> None:
    settings = {"lease": 2, "heartbeat_interval": 0.5, "max_lost": 100}
    number = 60 * ROUNDS
    with tree(database_url, "-w", "4", **settings) as one, tree(database_url, "-w", "4", **settings) as two:
        wait_until(lambda: is_running(queue, 2), 20)
        refs = [queue.add_task(jobs.note, str(tmp_path / "runs"), str(n), 0.3) for n in range(number)]
        for _ in range(ROUNDS):
            victim = one
            wait_until(lambda: len(queue.find(state="doing", limit=None)) >= 8, 30)
            held = {
                row[0]
                for row in execute(
                    database_url,
                    "SELECT id::text FROM queued_tasks WHERE state = 'doing' AND claimed_by IN "
                    "(SELECT id FROM queued_task_workers WHERE supervisor_pid = %s)",
                    (victim.pid,),
                )
            }
            victim.signal(signal.SIGSTOP, all_of_them=True)
            wait_until(lambda ids=list(held): are_rescued(database_url, ids), 30)
            victim.signal(signal.SIGCONT, all_of_them=True)
        all_done(database_url, number, 120)
        refused = sum(worker.refused for worker in queue.workers())
        late = [line for tree_ in (one, two) for line in tree_.said("no longer this worker's")]
        assert one.stop() == 0
        assert two.stop() == 0
    rows = [ref.row() for ref in refs]
    assert {row.state for row in rows} == {"done"}
    # Every late write was counted and logged once.
    assert refused == len(late) > 0
    assert len(set(late)) == len(late)


# ------------------------------------------------------------------------------------------------------------- shutdown


def test_a_shutdown_in_the_middle_of_many_short_tasks_loses_and_doubles_none(
    queue: Queue, database_url: str, tmp_path: Path
) -> None:
    number = 20_000
    runs = tmp_path / "runs"
    execute(
        database_url,
        "INSERT INTO queued_tasks (function, args) SELECT 'hostile_jobs:note', jsonb_build_array(%s::text, n::text) "
        "FROM generate_series(1, %s) AS n RETURNING 1",
        (str(runs), number),
    )
    runs.touch()
    for _ in range(max(3, ROUNDS // 2)):
        before = runs.stat().st_size
        with tree(database_url, "-w", "4") as worker:
            wait_until(lambda size=before: runs.stat().st_size > size, 20, interval=0.001)
            assert worker.stop() == 0
        states = counts(database_url)
        assert set(states) <= {"done", "enqueued"}, states
    with tree(database_url, "-w", "4", "--burst") as worker:
        assert worker.process.wait(120) == 0
    assert counts(database_url) == {"done": number}
    assert sorted(map(int, runs.read_text().split())) == list(range(1, number + 1))
    assert execute(database_url, "SELECT count(*) FROM queued_tasks WHERE failures + lost_count > 0") == [(0,)]


def test_one_ctrl_c_for_the_whole_group_counts_once(queue: Queue, database_url: str) -> None:
    with tree(database_url, "-w", "2", "-p", "2") as worker:
        wait_until(lambda: is_running(queue, 2), 20)
        ref = queue.add_task(jobs.sleep, 2.5)
        wait_until(lambda: has_begun(ref), 10)
        os.killpg(worker.pid, signal.SIGINT)
        assert worker.process.wait(20) == 0
    assert ref.state == "done"
    assert len(worker.said("stopping")) == 1


def test_what_is_handed_back_at_a_shutdown_is_said(queue: Queue, database_url: str) -> None:
    with tree(database_url, "-w", "2", "--shutdown-timeout", "0.5") as worker:
        wait_until(lambda: is_running(queue, 1), 20)
        ref = queue.add_task(jobs.sleep, 60)
        wait_until(lambda: has_begun(ref), 10)
        assert worker.stop() == 0
    (line,) = worker.said("handed back 1 unfinished task")
    assert ref.id in line
    assert ref.state == "enqueued"


def test_a_task_that_holds_the_interpreter_s_lock_is_handed_back_at_a_shutdown(queue: Queue, database_url: str) -> None:
    with tree(database_url, "-w", "2", "--shutdown-timeout", "0.5") as worker:
        wait_until(lambda: is_running(queue, 1), 20)
        ref = queue.add_task(jobs.backtrack)
        wait_until(lambda: ref.state == "doing", 10)
        assert worker.stop() == 0
    row = ref.row()
    assert (row.state, row.failures, row.lost_count, row.claimed_by) == ("enqueued", 0, 0, None)


def test_a_heartbeat_goes_on_while_a_task_holds_the_interpreter_s_lock(queue: Queue, database_url: str) -> None:
    with tree(database_url, "-w", "2", lease=2, heartbeat_interval=0.5):
        wait_until(lambda: is_running(queue, 1), 20)
        ref = queue.add_task(jobs.backtrack)
        wait_until(lambda: ref.state == "doing", 10)
        seen = {queue.workers()[0].last_heartbeat}
        wait_until(lambda: seen.add(queue.workers()[0].last_heartbeat) or len(seen) >= 8, 20)
        assert ref.row().lost_count == 0


# ---------------------------------------------------------------------------------------------------------- replacement


def test_sighup_starts_new_processes_before_the_old_ones_end(queue: Queue, database_url: str) -> None:
    with tree(database_url, "-w", "2") as worker:
        wait_until(lambda: is_running(queue, 1), 20)
        ref = queue.add_task(jobs.sleep, 6.0)
        wait_until(lambda: has_begun(ref), 10)
        (before,) = queue.workers()
        worker.signal(signal.SIGHUP)
        wait_until(lambda: is_running(queue, 2), 20)
        assert ref.state == "doing"
        wait_until(lambda: is_running(queue, 1), 20)
        assert ref.state == "done"
        (after,) = queue.workers()
        assert after.id > before.id
        again = queue.add_task(jobs.sleep, 0.1)
        wait_until(lambda: again.state == "done", 10)
        assert worker.stop() == 0


def test_a_reload_of_code_that_does_not_start_leaves_the_old_process_at_work(
    queue: Queue, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = tmp_path / "shop_that_breaks.py"
    module.write_text("from queuedtask import Queue\nqueue = Queue()\n")
    with tree(database_url, "-w", "2", "-a", "shop_that_breaks") as worker:
        wait_until(lambda: is_running(queue, 1), 20)
        module.write_text("raise ValueError('broken in the new version')\n")
        worker.signal(signal.SIGHUP)
        wait_until(lambda: worker.said("goes on in its place"), 20)
        ref = queue.add_task(jobs.sleep, 0.1)
        wait_until(lambda: ref.state == "done", 10)
        assert worker.stop() == 0


def test_a_process_is_replaced_after_its_number_of_tasks(queue: Queue, database_url: str) -> None:
    refs = [queue.add_task(jobs.process_number) for _ in range(50)]
    with tree(database_url, "-w", "2", "--max-tasks", "10") as worker:
        all_done(database_url, 50, 60)
        assert worker.stop() == 0
    ran = Counter(ref.result for ref in refs)
    assert len(ran) == 5
    assert set(ran.values()) == {10}
    assert {ref.row().attempt for ref in refs} == {1}


def test_a_process_with_too_much_memory_is_replaced_between_tasks(queue: Queue, database_url: str) -> None:
    with tree(database_url, "-w", "2", "--max-rss", "200") as worker:
        wait_until(lambda: is_running(queue, 1), 20)
        fat = queue.add_task(jobs.grow, 300)
        wait_until(lambda: fat.state == "done", 20)
        wait_until(lambda: worker.said("MiB of memory"), 20)
        wait_until(lambda: [w.pid for w in queue.workers()] not in ([], [fat.result]) and is_running(queue, 1), 20)
        thin = queue.add_task(jobs.process_number)
        wait_until(lambda: thin.state == "done", 20)
        assert thin.result != fat.result
        assert worker.stop() == 0


def test_at_the_limit_of_stuck_slots_a_new_process_takes_over_and_the_old_one_finishes_what_runs(
    queue: Queue, database_url: str
) -> None:
    with tree(database_url, "-w", "3", timeout_grace=0.5, max_stuck_slots=2, max_retries=0) as worker:
        wait_until(lambda: is_running(queue, 1), 20)
        beside = queue.add_task(jobs.sleep, 4.0)
        wait_until(lambda: has_begun(beside), 10)
        stuck = [queue.options(timeout=0.5).add_task(jobs.sleep, 60) for _ in range(2)]
        wait_until(lambda: is_running(queue, 2), 20)
        after = queue.add_task(jobs.process_number)
        wait_until(lambda: after.state == "done", 20)
        assert beside.state == "doing"
        wait_until(lambda: beside.state == "done", 20)
        wait_until(lambda: is_running(queue, 1), 20)
        assert queue.workers()[0].pid == after.result
        assert worker.stop() == 0
    assert [ref.row().error_type for ref in stuck] == ["TaskTimeout"] * 2
    assert (beside.row().attempt, beside.row().failures) == (1, 0)


# ------------------------------------------------------------------------------------------------- signals and programs


def test_sigusr1_shows_the_stacks_of_all_threads(queue: Queue, database_url: str) -> None:
    with tree(database_url, "-w", "2", "-p", "2") as worker:
        wait_until(lambda: is_running(queue, 2), 20)
        ref = queue.add_task(jobs.sleep, 60)
        wait_until(lambda: has_begun(ref), 10)
        worker.signal(signal.SIGUSR1)
        wait_until(lambda: len(worker.said("--- stacks of worker")) == 2, 10)
        wait_until(lambda: worker.said("in sleep"), 10)
        assert worker.said("supervisor.py")


def test_a_program_that_a_task_starts_can_be_terminated(queue: Queue, database_url: str) -> None:
    with tree(database_url, "-w", "2") as worker:
        ref = queue.add_task(jobs.terminate_a_program)
        wait_until(lambda: ref.state in FINAL, 40)
        assert worker.stop() == 0
    assert ref.result == -signal.SIGTERM


# ----------------------------------------------------------------------------------------------------------- the server


@pytest.fixture
def own_server(bin_dir: Path | None, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """Give a server of the test's own, to be stopped and hurt; the shared one would take other tests along."""
    tmp_path.chmod(0o755)
    server = EmbeddedServer(tmp_path / "server", bin_dir=bin_dir)
    server.ensure_running()
    apply_migrations(server.url)
    yield server
    server.stop()


@pytest.fixture
def own_queue(own_server: EmbeddedServer) -> Iterator[Queue]:
    with contextlib.closing(Queue(own_server.url)) as queue:
        yield queue


def backends(url: str, where: str = "") -> list[int]:
    return [
        pid
        for (pid,) in execute(
            url,
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            f"AND backend_type = 'client backend' {where}",
        )
    ]


def stop_when_idle(url: str, number: int) -> list[int]:
    """Stop so many backends while they hold nothing that others wait for; none when they are busy."""
    found = backends(url, "AND state = 'idle'")
    send_all(found, signal.SIGSTOP)
    if len(found) == number and sorted(backends(url, "AND state = 'idle'")) == sorted(found):
        return found
    send_all(found, signal.SIGCONT)
    return []


def test_a_server_that_stops_answering_is_hung_up_on(own_queue: Queue, own_server: EmbeddedServer) -> None:
    with tree(own_server.url, "-w", "2", lease=6, heartbeat_interval=1) as worker:
        wait_until(lambda: is_running(own_queue, 1), 20)
        own_queue.close()  # the test's own connection is to go on
        stopped = wait_until(lambda: stop_when_idle(own_server.url, 3), 20)
        try:
            ref = own_queue.add_task(jobs.sleep, 0.1)
            wait_until(lambda: ref.state == "done", 40)
            assert worker.said("hanging up")
        finally:
            send_all(stopped, signal.SIGCONT)
        assert worker.stop() == 0


def test_a_restart_of_the_server_under_load_is_one_line_each_and_the_work_goes_on(
    own_queue: Queue, own_server: EmbeddedServer, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    with tree(own_server.url, "-w", "4", "-p", "1") as worker:
        refs = [own_queue.add_task(jobs.note, str(runs), str(n), 0.02) for n in range(300)]
        wait_until(lambda: counts(own_server.url)["done"] > 20, 20)
        own_queue.close()
        own_server.stop()
        own_server.ensure_running()
        all_done(own_server.url, len(refs), 60)
        assert worker.stop() == 0
    assert len(worker.said("cannot be reached")) == 1
    assert len(worker.said("the database is back")) == 1
    assert execute(own_server.url, "SELECT count(*) FROM queued_tasks WHERE failures + lost_count > 0") == [(0,)]


def test_no_connection_and_no_transaction_is_held_while_a_task_runs(
    own_queue: Queue, own_server: EmbeddedServer
) -> None:
    with tree(own_server.url, "-w", "4"):
        refs = [own_queue.add_task(jobs.sleep, 60) for _ in range(4)]
        wait_until(lambda: all(has_begun(ref) for ref in refs), 20)
        own_queue.close()
        # Two of the process and one of its supervisor, however many tasks run.
        wait_until(lambda: len(backends(own_server.url)) == 3, 10)
        assert not backends(own_server.url, "AND state LIKE 'idle in transaction%'")
