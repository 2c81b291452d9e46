"""Taking back what a dead worker had claimed, on the real tables: what counts as lost, and what is left alone."""

import contextlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from helpers import execute, raw_connection
from queuedtask.db import store, workers
from queuedtask.db.store import Ending
from queuedtask.model import outcome, states
from queuedtask.model.outcome import Outcome
from queuedtask.model.task import Task, new_id
from queuedtask.worker.obituary import LOST, TIMED_OUT, Obituary, Verdict
from queuedtask.worker.rescue import BATCH, Burial

MAX_LOST = 3


class Scene:
    """A worker that is dead, on a database of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        with self.transaction() as cursor:
            self.dead, self.living = (
                workers.register(
                    cursor, server_name="host", slots=4, pid=1, supervisor_pid=None, version="1", lease=30.0
                )
                for _ in range(2)
            )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        with (
            contextlib.closing(raw_connection(self.url, autocommit=False)) as connection,
            connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SET LOCAL lock_timeout = '3s'")
            yield cursor

    @property
    def heartbeat(self) -> datetime:
        return self.value("SELECT last_heartbeat FROM queued_task_workers WHERE id = %s", self.dead)  # type: ignore[no-any-return]

    @property
    def is_retired(self) -> bool:
        return not self.value("SELECT is_running FROM queued_task_workers WHERE id = %s", self.dead)

    def value(self, sql: str, *parameters: Any) -> Any:
        return execute(self.url, sql, parameters)[0][0]

    def put(self, *, has_begun: bool = False, **columns: Any) -> str:
        """Insert a task that the dead worker has claimed; return its id."""
        values = {"id": new_id(), "function": "a:b", "state": "doing", "claimed_by": self.dead, "attempt": 1} | columns
        if has_begun:
            values["date_started"] = datetime(2024, 1, 1, tzinfo=UTC)
        names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
        execute(self.url, f"INSERT INTO queued_tasks ({names}) VALUES ({marks})", [*values.values()])
        return str(values["id"])

    def row(self, task_id: str) -> Any:
        """Return state, failures, lost_count and error_type."""
        names = "state, failures, lost_count, error_type"
        return execute(self.url, f"SELECT {names} FROM queued_tasks WHERE id = %s", (task_id,))[0]

    def attempts(self, *names: str) -> list[Any]:
        return execute(self.url, f"SELECT {', '.join(names)} FROM queued_task_attempts ORDER BY queued_task_id, id")

    def bury(self, burial: Burial, *, max_retries: int = 3, max_lost: int = MAX_LOST) -> tuple[list[Ending], bool]:
        with self.transaction() as cursor:
            taken = burial.batch(cursor, max_retries=max_retries, max_lost=max_lost, jitter=lambda: 0.0)
        return taken.endings, taken.is_all

    def found_silent(self) -> Burial:
        return Burial(self.dead, last_heartbeat=self.heartbeat)

    def known_dead(self, **verdicts_and_more: Any) -> Burial:
        return Burial(self.dead, obituary=Obituary(self.dead, **{"exit_signal": "SIGKILL"} | verdicts_and_more))


@pytest.fixture
def scene(database_url: str) -> Scene:
    return Scene(database_url)


def ids(endings: list[Ending]) -> list[str]:
    return [ending.task.id for ending in endings]


def verdict(kind: str = LOST, *, attempt: int = 1, max_retries: int | None = None, seconds: float = 2.0) -> Verdict:
    return Verdict(attempt, kind, max_retries, time.monotonic() - seconds)


# -------------------------------------------------------------------------------------------------- one that was silent


def test_all_that_a_silent_worker_had_claimed_is_lost_and_runs_again(scene: Scene) -> None:
    begun, unknown = scene.put(has_begun=True, failures=2, attempt=4), scene.put()
    others = scene.put(claimed_by=scene.living)
    done = scene.put(state="done", date_done=datetime.now(UTC))

    endings, is_all = scene.bury(scene.found_silent())

    assert (ids(endings), is_all) == ([begun, unknown], True)
    assert [ending.decision.edge for ending in endings] == [states.RESCUE] * 2
    assert scene.row(begun) == ("enqueued", 2, 1, None)
    assert scene.row(unknown) == ("enqueued", 0, 1, None)
    assert [scene.row(each)[0] for each in (others, done)] == ["doing", "done"]
    said = f"worker {scene.dead} stopped reporting"
    columns = ("queued_task_id::text", "attempt", "outcome", "error_type", "error_message", "worker", "exit_signal")
    assert scene.attempts(*columns) == [
        (begun, 4, "lost", "WorkerLost", said, scene.dead, None),
        (unknown, 1, "lost", "WorkerLost", said, scene.dead, None),
    ]
    assert scene.is_retired


def test_a_worker_that_has_reported_meanwhile_is_left_alone(scene: Scene) -> None:
    task_id, burial = scene.put(has_begun=True), scene.found_silent()
    with scene.transaction() as cursor:
        workers.heartbeat(cursor, worker=scene.dead, slots=4, active=1)
    assert scene.bury(burial) == ([], True)
    assert scene.row(task_id) == ("doing", 0, 0, None)
    assert not scene.is_retired


def test_one_whose_row_another_rescuer_has_locked_is_left_to_him(scene: Scene) -> None:
    task_id, burial = scene.put(), scene.found_silent()
    with scene.transaction() as cursor:
        assert workers.lock_silent(cursor, worker=scene.dead, last_heartbeat=None)
        assert scene.bury(burial) == ([], True)
    assert scene.row(task_id) == ("doing", 0, 0, None)
    assert ids(scene.bury(burial)[0]) == [task_id]


def test_the_tasks_of_an_owner_without_a_row_are_taken_back(scene: Scene) -> None:
    execute(scene.url, "DELETE FROM queued_task_workers WHERE id = %s", (scene.dead,))
    task_id = scene.put(has_begun=True)
    endings, is_all = scene.bury(Burial(scene.dead, last_heartbeat=None))
    assert (ids(endings), is_all) == ([task_id], True)
    assert scene.row(task_id) == ("enqueued", 0, 1, None)


def test_what_was_lost_too_often_fails_and_keeps_its_start(scene: Scene) -> None:
    last, last_but_one = scene.put(has_begun=True, lost_count=2), scene.put(has_begun=True, lost_count=1)
    endings, _ = scene.bury(scene.found_silent(), max_retries=99)
    assert [ending.decision.edge for ending in endings] == [states.LOSE, states.RESCUE]
    assert scene.row(last) == ("failed", 0, 3, "WorkerLost")
    assert scene.row(last_but_one) == ("enqueued", 0, 2, None)
    kept = "SELECT date_started = '2024-01-01 00:00:00+00' AND date_done IS NOT NULL FROM queued_tasks WHERE id = %s"
    assert scene.value(kept, last) is True


def test_a_suspect_task_that_had_not_begun_goes_back_uncounted(scene: Scene) -> None:
    waiting = scene.put(lost_count=MAX_LOST - 1)
    begun = scene.put(lost_count=MAX_LOST - 1, has_begun=True)
    endings, _ = scene.bury(scene.found_silent())
    assert [ending.decision.edge for ending in endings] == [states.HAND_BACK, states.LOSE]
    assert scene.row(waiting) == ("enqueued", 0, MAX_LOST - 1, None)
    assert scene.row(begun)[0] == "failed"
    assert scene.attempts("queued_task_id::text") == [(begun,)]


# ----------------------------------------------------------------------------------------------- one that is known dead


def test_what_ran_in_a_dead_process_is_lost_and_what_had_not_begun_goes_back_uncounted(scene: Scene) -> None:
    ran, claimed, in_its_own_process, of_an_attempt_before = (
        scene.put(attempt=2, failures=1),
        scene.put(),
        scene.put(has_begun=True, lost_count=2),
        scene.put(attempt=3, has_begun=True),
    )
    verdicts = {ran: verdict(attempt=2), of_an_attempt_before: verdict(attempt=2), new_id(): verdict()}

    endings, is_all = scene.bury(scene.known_dead(exit_signal="SIGSEGV", verdicts=verdicts))

    assert (ids(endings), is_all) == ([ran, claimed, in_its_own_process, of_an_attempt_before], True)
    assert [ending.decision.edge for ending in endings] == [states.RESCUE, *[states.HAND_BACK] * 3]
    assert scene.row(ran) == ("enqueued", 1, 1, None)
    assert scene.row(claimed) == ("enqueued", 0, 0, None)
    assert scene.row(in_its_own_process) == ("enqueued", 0, 2, None)
    assert scene.row(of_an_attempt_before) == ("enqueued", 0, 0, None)
    columns = ("queued_task_id::text", "attempt", "outcome", "error_type", "error_message")
    assert scene.attempts(*columns) == [(ran, 2, "lost", "WorkerLost", "its process ended with SIGSEGV")]
    assert scene.is_retired


def test_an_attempt_s_row_tells_how_its_process_ended_its_memory_its_stack_and_when_it_began(scene: Scene) -> None:
    lost, too_often = scene.put(), scene.put(lost_count=MAX_LOST - 1)
    verdicts = {lost: verdict(seconds=7.0), too_often: verdict(seconds=7.0)}
    burial = scene.known_dead(exit_signal="exit code 3", memory_bytes=3 * 2**32, stack="in segfault", verdicts=verdicts)
    scene.bury(burial)
    ran_for = "round(extract(epoch FROM date_done - date_started))::int"
    known = ("exit code 3", 3 * 2**32, "in segfault", 7)
    assert scene.attempts("exit_signal", "memory_bytes", "error_traceback", ran_for) == [known] * 2
    assert scene.row(too_often) == ("failed", 0, MAX_LOST, "WorkerLost")
    stack = f"SELECT (error_traceback, {ran_for}) = ('in segfault', 7) FROM queued_tasks WHERE id = %s"
    assert scene.value(stack, too_often) is True


def test_a_death_that_is_certain_does_not_ask_for_the_heartbeat(scene: Scene) -> None:
    """The supervisor's thread may have written one a moment before it noticed."""
    task_id = scene.put()
    burial = scene.known_dead(verdicts={task_id: verdict()})
    with scene.transaction() as cursor:
        workers.heartbeat(cursor, worker=scene.dead, slots=4, active=1)
    assert ids(scene.bury(burial)[0]) == [task_id]


# the row's own retries, the function's, the setting, failures before, what becomes of it
TIMED_OUT_TABLE = [
    (None, None, 3, 0, "waiting"),
    (None, None, 3, 1, "failed"),  # without a word of the task's own: once more, and no more
    (None, None, 0, 0, "failed"),
    (None, 2, 0, 1, "waiting"),
    (None, 2, 9, 2, "failed"),
    (None, 0, 9, 0, "failed"),
    (3, 0, 0, 2, "waiting"),
    (0, 9, 9, 0, "failed"),
]


@pytest.mark.parametrize(("own", "declared", "setting", "failures", "state"), TIMED_OUT_TABLE)
def test_what_outlived_its_timeout_with_its_process_is_tried_again_as_its_function_declares(
    scene: Scene, own: int | None, declared: int | None, setting: int, failures: int, state: str
) -> None:
    task_id = scene.put(max_retries=own, failures=failures, lost_count=7)
    burial = scene.known_dead(stack="in backtrack", verdicts={task_id: verdict(TIMED_OUT, max_retries=declared)})
    scene.bury(burial, max_retries=setting)
    assert scene.row(task_id) == (state, failures + 1, 8, "TaskTimeout")
    columns = ("outcome", "error_type", "exit_signal", "error_traceback")
    assert scene.attempts(*columns) == [("timed_out", "TaskTimeout", "SIGKILL", "in backtrack")]
    assert scene.value("SELECT max_retries FROM queued_tasks") == own


# ------------------------------------------------------------------------------------------------- batches and others


def put_many(scene: Scene, number: int) -> list[str]:
    sql = (
        "INSERT INTO queued_tasks (function, state, claimed_by, attempt) "
        "SELECT 'a:b', 'doing', %s, 1 FROM generate_series(1, %s) RETURNING id::text"
    )
    return sorted(row[0] for row in execute(scene.url, sql, (scene.dead, number)))


@pytest.mark.parametrize("is_observed", [True, False])
def test_tasks_are_taken_back_in_the_order_of_their_ids_a_bounded_batch_at_a_time(
    scene: Scene, is_observed: bool
) -> None:
    made = put_many(scene, 2 * BATCH + 3)
    burial = scene.found_silent() if is_observed else scene.known_dead()
    found = []
    for size, is_all in ((BATCH, False), (BATCH, False), (3, True)):
        assert not scene.is_retired
        endings, was_all = scene.bury(burial)
        assert (len(endings), was_all) == (size, is_all)
        found += ids(endings)
    assert found == made
    assert scene.is_retired
    assert scene.value("SELECT count(*) FROM queued_tasks WHERE state = 'enqueued'") == len(made)


def test_after_a_full_last_batch_an_empty_one_says_that_this_was_all(scene: Scene) -> None:
    put_many(scene, BATCH)
    burial = scene.found_silent()
    assert [(len(endings), is_all) for endings, is_all in (scene.bury(burial), scene.bury(burial))] == [
        (BATCH, False),
        (0, True),
    ]
    assert scene.is_retired


def test_a_worker_that_reports_between_two_batches_keeps_the_rest(scene: Scene) -> None:
    put_many(scene, BATCH + 1)
    burial = scene.found_silent()
    assert scene.bury(burial)[1] is False
    with scene.transaction() as cursor:
        workers.heartbeat(cursor, worker=scene.dead, slots=4, active=1)
    assert scene.bury(burial) == ([], True)
    assert scene.value("SELECT count(*) FROM queued_tasks WHERE state = 'doing'") == 1
    assert not scene.is_retired


def test_a_task_that_somebody_has_locked_is_passed_over_and_its_loss_is_counted_once(scene: Scene) -> None:
    locked, free = scene.put(), scene.put()
    burial = scene.known_dead(verdicts={locked: verdict(), free: verdict()})
    with scene.transaction() as cursor:
        store.lock_claimed(cursor, worker=scene.dead, limit=1)
        first, _ = scene.bury(burial)
    rest = [ids(scene.bury(burial)[0]) for _ in range(2)]
    assert [ids(first), *rest] == [[free], [locked], []]
    assert [scene.row(each) for each in (locked, free)] == [("enqueued", 0, 1, None)] * 2
    assert len(scene.attempts("id")) == 2


def test_a_task_that_has_moved_on_is_not_touched(scene: Scene) -> None:
    moved, kept = scene.put(), scene.put()
    burial = scene.known_dead(verdicts={moved: verdict(), kept: verdict()})
    scene.bury(burial)
    with scene.transaction() as cursor:
        assert {task.id for task in store.claim(cursor, worker=scene.living, limit=1)} == {moved}
    # The obituary comes a second time: whoever was to carry it out died himself.
    assert scene.bury(burial) == ([], True)
    assert scene.row(moved) == ("doing", 0, 1, None)
    assert scene.row(kept) == ("enqueued", 0, 1, None)


def test_what_a_worker_that_was_taken_for_dead_writes_later_is_refused(scene: Scene) -> None:
    task_id = scene.put(has_begun=True)
    scene.bury(scene.found_silent())
    task = Task(task_id, "", "a:b", "[]", "{}", None, 1, 0, None, None)
    late = Ending(task, outcome.decide(task, Outcome(outcome.RETURNED), max_retries=3, max_lost=MAX_LOST), 1.0, None)
    with scene.transaction() as cursor:
        assert store.settle(cursor, [late], worker=scene.dead).accepted == set()
    assert scene.row(task_id) == ("enqueued", 0, 1, None)


def test_a_burial_belongs_to_the_transaction_of_its_caller(scene: Scene) -> None:
    task_id = scene.put()
    with contextlib.closing(raw_connection(scene.url, autocommit=False)) as connection:
        burial = scene.found_silent()
        taken = burial.batch(connection.cursor(), max_retries=3, max_lost=MAX_LOST, jitter=lambda: 0.0)
        connection.rollback()
    assert ids(taken.endings) == [task_id]
    assert scene.row(task_id) == ("doing", 0, 0, None)
    assert (scene.attempts("id"), scene.is_retired) == ([], False)


# ------------------------------------------------------------------------------------------------------- the obituary

OBITUARIES = [
    Obituary(7, "SIGKILL"),
    Obituary(
        7,
        "exit code 1",
        memory_bytes=2**40,
        stack='File "ü.py"\n\x00',
        verdicts={new_id(): Verdict(1, LOST, None, 12.5), new_id(): Verdict(3, TIMED_OUT, 0, 1e9 + 0.1)},
    ),
]


@pytest.mark.parametrize("obituary", OBITUARIES, ids=["bare", "full"])
def test_an_obituary_comes_out_of_a_message_as_it_went_in(obituary: Obituary) -> None:
    received = Obituary.of_message(json.loads(json.dumps(obituary.as_message())))
    assert received == obituary
    assert all(isinstance(each, Verdict) for each in received.verdicts.values())
