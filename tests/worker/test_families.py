"""Parents and children: no child starts before its parents are done, and none is left waiting."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from helpers import execute, fresh_database, raw_connection, somebody_waits_for_a_lock, wait_until
from queuedtask import NotAllowed, ParentNotFound, Queue, TaskRef
from queuedtask.db import families, store
from queuedtask.db.store import Ending
from queuedtask.model.outcome import RAISED, RETURNED, Outcome, decide
from queuedtask.model.states import FINAL

sys.path.insert(0, str(Path(__file__).parent))
import family_jobs as jobs
from inside import ended, working

ROUNDS = 300
FAMILIES = 200 if "QUEUEDTASK_TEST_ROUNDS" in os.environ else 60
"""How many random families there are; tox -e soak has all of them."""


def states_of(url: str) -> dict[str, int]:
    return dict(execute(url, "SELECT state, count(*)::int FROM queued_tasks GROUP BY state"))  # type: ignore[arg-type]


def all_ended(url: str, timeout: float = 20.0) -> dict[str, int]:
    """Wait until no task is left that has not ended."""
    wait_until(lambda: not set(states_of(url)) - set(FINAL), timeout, message="all end")
    return states_of(url)


class Rows:
    """Claims and settles by hand, on connections of its own, what a worker would."""

    def __init__(self, url: str) -> None:
        self.url = url

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        with contextlib.closing(raw_connection(self.url, autocommit=False)) as connection:
            yield connection.cursor()
            connection.commit()

    def claim(self, limit: int = 1, worker: int = 1) -> list[Any]:
        with self.transaction() as cursor:
            return store.claim(cursor, worker=worker, limit=limit)

    def settle(self, cursor: Any, task: Any, kind: str = RETURNED, worker: int = 1) -> store.Settled:
        outcome = Outcome(kind, error_type="ValueError" if kind == RAISED else None)
        decision = decide(task, outcome, max_retries=0, max_lost=1)
        return store.settle(cursor, [Ending(task, decision, 0.0, None)], worker=worker)

    def end(self, kind: str = RETURNED) -> store.Settled:
        (task,) = self.claim()
        with self.transaction() as cursor:
            return self.settle(cursor, task, kind)

    def release(self) -> int:
        with self.transaction() as cursor:
            return store.release_due(cursor, limit=1000)


@pytest.fixture
def rows(database_url: str) -> Rows:
    return Rows(database_url)


def pending(ref: TaskRef, url: str) -> tuple[Any, ...]:
    return execute(url, "SELECT state, pending_parents FROM queued_tasks WHERE id = %s", (ref.id,))[0]


# ---------------------------------------------------------------------------------------------------------- by workers


def test_a_child_waits_for_all_its_parents_and_sees_their_results(queue: Queue) -> None:
    first, second = queue.add_task(jobs.member, "one"), queue.add_task(jobs.member, "two")
    child = queue.add_task(jobs.results_of_parents, parent=[first, second.id])
    assert (child.state, child.row().parents) == ("waiting", [first.id, second.id])
    with working(queue):
        ended(child)
    assert child.result == ["one", "two"]


def test_a_task_may_add_its_own_children_and_tasks_that_wait_for_them(queue: Queue, database_url: str) -> None:
    parent = queue.add_task(jobs.with_children, database_url)
    with working(queue):
        ended(parent)
        child, last = [ended(queue.get(task_id)) for task_id in parent.result]
    assert last.result == ["ok", [child.id, last.id]]
    assert child.row().date_started >= parent.row().date_done  # type: ignore[operator]


def test_a_failed_parent_takes_its_descendants_down_and_brings_them_back(queue: Queue, database_url: str) -> None:
    parent = queue.options(max_retries=0, name="import").add_task(jobs.member, "fail", "ok")
    child = queue.add_task(jobs.member, "ok", parent=parent)
    grandchild = queue.add_task(jobs.member, "ok", parent=[child])
    clean_up = queue.options(on_parent_failure="run").add_task(jobs.member, "cleaned", parent=child)
    with working(queue):
        ended(parent, "failed")
        ended(grandchild, "cancelled")
        ended(clean_up)
        assert child.error == f"ParentFailed: import ({parent.id}) ended as failed"
        assert grandchild.error == child.error
        assert execute(
            database_url, "SELECT count(*)::int FROM queued_tasks WHERE meta->>'failed_ancestor' = %s", (parent.id,)
        ) == [(2,)]
        parent.retry()
        ended(grandchild)
    assert (parent.state, child.state, child.error) == ("done", "done", None)
    assert child.row().date_started >= parent.row().date_done  # type: ignore[operator]


@pytest.mark.parametrize("turn", ["fail", "cancel"])
def test_a_child_that_is_added_to_a_parent_that_ended_badly_is_cancelled(queue: Queue, turn: str) -> None:
    parent = queue.options(max_retries=0).add_task(jobs.member, turn)
    with working(queue):
        wait_until(lambda: parent.state in FINAL)
        child = queue.add_task(jobs.member, "ok", parent=parent)
        clean_up = queue.options(on_parent_failure="run").add_task(jobs.member, "ok", parent=parent)
        ended(child, "cancelled", timeout=5)
        ended(clean_up)
    assert f"({parent.id}) ended as {parent.state}" in (child.error or "")


def test_a_child_with_a_time_waits_for_both(queue: Queue) -> None:
    parent = queue.add_task(jobs.member, "ok")
    child = queue.options(delay=1.0).add_task(jobs.member, "ok", parent=parent)
    with working(queue):
        ended(child)
    row = child.row()
    assert row.date_started is not None
    assert row.date_scheduled is not None
    assert row.date_started >= row.date_scheduled


def test_a_thousand_generations(queue: Queue, database_url: str) -> None:
    with queue.batch() as batch:
        ref = batch.add_task(jobs.nothing)
        for _ in range(999):
            ref = batch.add_task(jobs.nothing, parent=ref)
    with working(queue):
        ended(ref, timeout=60)
    assert states_of(database_url) == {"done": 1000}


def test_a_thousand_generations_fall_together(queue: Queue, database_url: str) -> None:
    with queue.batch() as batch:
        ref = batch.options(max_retries=0).add_task(jobs.member, "fail")
        for _ in range(999):
            ref = batch.add_task(jobs.nothing, parent=ref)
    with working(queue):
        ended(ref, "cancelled", timeout=30)
    assert states_of(database_url) == {"failed": 1, "cancelled": 999}


def test_ten_thousand_parents_and_ten_thousand_children(queue: Queue, database_url: str) -> None:
    with queue.batch() as batch:
        first = batch.add_task(jobs.nothing)
        middle = [batch.add_task(jobs.nothing, parent=first) for _ in range(10_000)]
        last = batch.add_task(jobs.nothing, parent=middle)
    with working(queue):
        ended(last, timeout=60)
    assert states_of(database_url) == {"done": 10_002}
    (early,) = execute(
        database_url,
        "SELECT count(*)::int FROM queued_tasks t JOIN queued_tasks p ON p.id = ANY (t.parents)"
        " WHERE t.date_started < p.date_done",
    )
    assert early == (0,)


# --------------------------------------------------------------------------------------------------------------- adding


def test_parents_may_be_in_the_same_batch_and_the_same_transaction(queue: Queue, database_url: str) -> None:
    engine = create_engine(database_url)
    with Session(engine) as session:
        adder = queue.options(connection=session)
        parent = adder.add_task(jobs.nothing)
        child = adder.add_task(jobs.nothing, parent=parent)
        with queue.batch(connection=session) as batch:
            grandchild = batch.add_task(jobs.nothing, parent=[child, parent])
        session.commit()
    engine.dispose()
    assert [pending(ref, database_url) for ref in (parent, child, grandchild)] == [
        ("enqueued", 0),
        ("waiting", 1),
        ("waiting", 2),
    ]
    row = execute(database_url, "SELECT parent_task::text FROM queued_tasks WHERE id = %s", (grandchild.id,))
    assert row == [(child.id,)]


def add_two(queue: Queue, parent: TaskRef, **options: Any) -> None:
    with queue.batch(**options) as batch:
        batch.add_task(jobs.nothing)
        batch.add_task(jobs.nothing, parent=parent)


def test_a_parent_that_is_gone_is_refused_and_the_transaction_goes_on(queue: Queue, database_url: str) -> None:
    gone, there = queue.add_task(jobs.nothing), queue.add_task(jobs.nothing)
    execute(database_url, "DELETE FROM queued_tasks WHERE id = %s", (gone.id,))
    engine = create_engine(database_url)
    with Session(engine) as session:
        with pytest.raises(ParentNotFound, match=gone.id):
            queue.options(connection=session).add_task(jobs.nothing, parent=[there, gone])
        with pytest.raises(ParentNotFound, match=gone.id):
            add_two(queue, gone, connection=session)
        assert session.execute(text("SELECT count(*) FROM queued_tasks")).scalar_one() == 1
        queue.options(connection=session).add_task(jobs.nothing, parent=there)
        session.commit()
    engine.dispose()
    with pytest.raises(ParentNotFound):
        add_two(queue, gone)
    assert states_of(database_url) == {"enqueued": 1, "waiting": 1}


def test_a_parent_that_is_just_being_removed_is_waited_for_and_then_refused(queue: Queue, database_url: str) -> None:
    parent = queue.add_task(jobs.nothing)
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as connection:
        connection.cursor().execute("DELETE FROM queued_tasks WHERE id = %s", (parent.id,))
        raised: list[BaseException] = []

        def add() -> None:
            try:
                queue.add_task(jobs.nothing, parent=parent)
            except ParentNotFound as error:
                raised.append(error)

        thread = threading.Thread(target=add)
        thread.start()
        wait_until(lambda: somebody_waits_for_a_lock(database_url))
        connection.commit()
        thread.join(10)
    assert [type(error) for error in raised] == [ParentNotFound]


def test_the_keyword_is_the_function_s_own_when_the_option_is_given(queue: Queue) -> None:
    parent = queue.add_task(jobs.nothing)
    child = queue.options(parent=parent).add_task("shop:sort", parent="folder")
    orphan = queue.options(parent=[]).add_task("shop:sort", parent="folder")
    assert [(ref.row().parents, ref.row().kwargs) for ref in (child, orphan)] == [
        ([parent.id], '{"parent": "folder"}'),
        ([], '{"parent": "folder"}'),
    ]


def test_no_child_s_open_transaction_makes_a_worker_wait(queue: Queue, rows: Rows, database_url: str) -> None:
    parent = queue.add_task(jobs.nothing)
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as connection:
        child = queue.options(connection=connection).add_task(jobs.nothing, parent=parent)
        with rows.transaction() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '1s'")
            (task,) = store.claim(cursor, worker=1, limit=1)
            rows.settle(cursor, task)
        with pytest.raises(NotAllowed, match="adding a child to it"):
            parent.retry()
        connection.commit()
    assert pending(child, database_url) == ("waiting", 1)
    with rows.transaction() as cursor:
        (stray,) = families.strays(cursor, since=None)
        families.settle_strays(cursor, [stray])
    assert (stray, pending(child, database_url)) == (child.id, ("waiting", 0))


# --------------------------------------------------------------------------------------------------------------- races


def race(*contestants: Callable[[], object]) -> None:
    """Run them at the same instant; raise what one of them raises."""
    barrier = threading.Barrier(len(contestants))
    raised: list[BaseException] = []

    def run(contestant: Callable[[], object]) -> None:
        try:
            barrier.wait(10)
            contestant()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(each,)) for each in contestants]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    if raised:
        raise raised[0]


def test_two_parents_that_commit_at_the_same_instant_strand_no_child(
    queue: Queue, rows: Rows, database_url: str
) -> None:
    with (
        contextlib.closing(raw_connection(database_url, autocommit=False)) as one,
        contextlib.closing(raw_connection(database_url, autocommit=False)) as other,
    ):
        for _ in range(ROUNDS):
            parents = [queue.add_task(jobs.nothing) for _ in range(2)]
            child = queue.add_task(jobs.nothing, parent=parents)
            claimed = rows.claim(2)

            def settle(connection: Any, task: Any) -> None:
                rows.settle(connection.cursor(), task)
                connection.commit()

            race(lambda: settle(one, claimed[0]), lambda: settle(other, claimed[1]))  # noqa: B023 (run at once)
            assert pending(child, database_url) == ("waiting", 0)
            assert rows.release() == 1
            rows.end()


def test_a_child_that_is_added_while_its_parent_ends_is_not_stranded(queue: Queue, database_url: str) -> None:
    second = Queue(database_url)
    parents: list[TaskRef] = []
    children: list[TaskRef] = []
    with working(queue), working(second):
        for number in range(ROUNDS):
            turn = "fail" if number % 10 == 9 else "ok"
            parent = queue.options(max_retries=0).add_task(jobs.member, turn)
            parents.append(parent)
            # The worker picks it up within milliseconds: some children come before its end, some during it, some after.
            time.sleep(number % 7 / 1000)
            children.append(queue.add_task(jobs.nothing, parent=parent))
        wait_until(lambda: not set(states_of(database_url)) - set(FINAL), 10, message="all end")
    for parent, child in zip(parents, children, strict=True):
        assert (parent.state, child.state) in (("done", "done"), ("failed", "cancelled"))
    second.close()


def test_a_child_whose_transaction_spans_the_end_of_its_parent_is_not_stranded(queue: Queue, database_url: str) -> None:
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as connection, working(queue):
        parent = queue.add_task(jobs.member, "again", "again", "ok")
        child = queue.options(connection=connection).add_task(jobs.nothing, parent=parent)
        ended(parent)
        connection.commit()
        ended(child, timeout=5)


# --------------------------------------------------------------------------------------------------- going round again


def test_a_child_waits_again_for_a_parent_that_goes_round_again(queue: Queue, rows: Rows, database_url: str) -> None:
    first, second = queue.add_task(jobs.nothing), queue.add_task(jobs.nothing)
    child = queue.add_task(jobs.nothing, parent=[first, second])
    alone = queue.add_task(jobs.nothing, parent=first)
    rows.end()
    rows.release()
    assert (pending(child, database_url), pending(alone, database_url)) == (("waiting", 1), ("enqueued", 0))
    first.retry()
    assert (pending(child, database_url), pending(alone, database_url)) == (("waiting", 2), ("waiting", 1))
    rows.end()
    rows.end()
    assert (pending(child, database_url), pending(alone, database_url)) == (("waiting", 0), ("waiting", 0))


def test_one_that_runs_when_its_parent_goes_round_again_is_left_alone(
    queue: Queue, rows: Rows, database_url: str
) -> None:
    parent = queue.add_task(jobs.nothing)
    child = queue.add_task(jobs.nothing, parent=parent)
    rows.end()
    rows.release()
    (running,) = rows.claim()
    parent.retry()
    with rows.transaction() as cursor:
        assert rows.settle(cursor, running).accepted == {running.key}
    assert child.state == "done"


def test_only_those_that_this_ancestor_took_down_are_revived(queue: Queue, rows: Rows, database_url: str) -> None:
    first = queue.options(max_retries=0).add_task(jobs.nothing)
    second = queue.options(max_retries=0).add_task(jobs.nothing)
    both = queue.add_task(jobs.nothing, parent=[first, second])
    of_second = queue.add_task(jobs.nothing, parent=second)
    rows.end(RAISED)
    rows.end(RAISED)
    assert [ref.state for ref in (both, of_second)] == ["cancelled"] * 2
    # The other parent still has failed: it falls again, for that one's sake.
    first.retry()
    assert (both.state, of_second.state) == ("cancelled", "cancelled")
    assert second.id in (both.error or "")
    second.retry()
    assert (pending(both, database_url), pending(of_second, database_url)) == (("waiting", 2), ("waiting", 1))


def test_a_late_child_of_one_that_fell_falls_with_the_same_ancestor_and_comes_back_with_it(
    queue: Queue, rows: Rows, database_url: str
) -> None:
    ancestor = queue.options(max_retries=0).add_task(jobs.nothing)
    fallen = queue.add_task(jobs.nothing, parent=ancestor)
    rows.end(RAISED)
    late = queue.add_task(jobs.nothing, parent=fallen)
    with rows.transaction() as cursor:
        families.settle_strays(cursor, families.strays(cursor, since=None))
    assert (late.state, late.error) == ("cancelled", fallen.error)
    ancestor.retry()
    assert (pending(fallen, database_url), pending(late, database_url)) == (("waiting", 1), ("waiting", 1))


def test_a_stray_is_not_taken_down_for_a_parent_that_goes_round_again_at_that_moment(
    queue: Queue, rows: Rows, database_url: str
) -> None:
    for _ in range(50):
        parent = queue.options(max_retries=0).add_task(jobs.nothing)
        rows.end(RAISED)
        child = queue.add_task(jobs.nothing, parent=parent)

        def reconcile() -> None:
            with rows.transaction() as cursor:
                if found := families.strays(cursor, since=None):
                    families.settle_strays(cursor, found)

        race(parent.retry, reconcile)
        assert pending(child, database_url) == ("waiting", 1)
        rows.end()
        rows.release()
        rows.end()


def test_a_stray_that_falls_while_its_ancestor_goes_round_again_comes_back_with_it(
    queue: Queue, rows: Rows, database_url: str
) -> None:
    ancestor = queue.options(max_retries=0).add_task(jobs.nothing)
    fallen = queue.add_task(jobs.nothing, parent=ancestor)
    rows.end(RAISED)
    late = queue.add_task(jobs.nothing, parent=fallen)
    retrying = threading.Thread(target=ancestor.retry)
    with rows.transaction() as cursor:
        families.settle_strays(cursor, families.strays(cursor, since=None))
        retrying.start()
        wait_until(lambda: somebody_waits_for_a_lock(database_url))
    retrying.join(10)
    assert (pending(fallen, database_url), pending(late, database_url)) == (("waiting", 1), ("waiting", 1))


def test_a_person_may_send_a_child_round_although_its_parent_failed(
    queue: Queue, rows: Rows, database_url: str
) -> None:
    parent = queue.options(max_retries=0).add_task(jobs.nothing)
    child = queue.add_task(jobs.nothing, parent=parent)
    rows.end(RAISED)
    child.retry()
    assert pending(child, database_url) == ("enqueued", 0)
    with rows.transaction() as cursor:
        assert families.strays(cursor, since=None) == []


def test_parent_and_child_that_are_requeued_together_keep_their_order(
    queue: Queue, rows: Rows, database_url: str
) -> None:
    parent = queue.options(max_retries=0).add_task(jobs.nothing)
    child = queue.options(max_retries=0, on_parent_failure="run").add_task(jobs.nothing, parent=parent)
    rows.end(RAISED)
    rows.release()
    rows.end(RAISED)
    assert {ref.id for ref in queue.retry_failed()} == {parent.id, child.id}
    assert (pending(parent, database_url), pending(child, database_url)) == (("enqueued", 0), ("waiting", 1))


# ----------------------------------------------------------------------------------------------------- random families

TURNS = st.sampled_from([("ok",), ("ok",), ("ok",), ("fail",), ("cancel",), ("again", "ok"), ("fail", "ok")])
MEMBER = st.tuples(
    TURNS,
    st.sets(st.integers(0, 9), max_size=3),
    st.sampled_from(["cancel", "cancel", "run"]),
    st.booleans(),  # added late
    st.sampled_from([False, False, False, True]),  # called off by a person
)


@pytest.fixture(scope="module")
def house(server: Any, template: str) -> Iterator[Queue]:
    """Give a queue with two workers that go on through all families."""
    with fresh_database(server, template) as url:
        one, other = Queue(url), Queue(url)
        with working(one), working(other):
            yield one
        one.close()
        other.close()


@settings(max_examples=FAMILIES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(MEMBER, min_size=2, max_size=10), st.booleans())
def test_random_families(house: Queue, members: list[Any], retries: bool) -> None:
    refs: list[TaskRef] = []
    late = [member for member in members if member[3]]
    with house.batch() as batch:
        for turns, wanted, on_failure, *_ in [member for member in members if not member[3]]:
            parents = [refs[number] for number in wanted if number < len(refs)]
            adder = batch.options(max_retries=0 if "again" not in turns else 1, on_parent_failure=on_failure)
            refs.append(adder.add_task(jobs.member, *turns, parent=parents))
    for turns, wanted, on_failure, *_ in late:
        parents = [refs[number] for number in wanted if number < len(refs)]
        adder = house.options(max_retries=0 if "again" not in turns else 1, on_parent_failure=on_failure)
        refs.append(adder.add_task(jobs.member, *turns, parent=parents))

    for ref, member in zip(refs, [*filter(lambda m: not m[3], members), *late], strict=True):
        if member[4]:
            with contextlib.suppress(NotAllowed):  # it has ended already
                ref.cancel()

    def rows() -> dict[str, Any]:
        return {ref.id: ref.row() for ref in refs}

    wait_until(lambda: all(row.state in FINAL for row in rows().values()), 20, message="the family ends")
    if retries:
        for ref in refs:
            if ref.state == "failed":
                ref.retry()
        wait_until(lambda: all(row.state in FINAL for row in rows().values()), 20, message="it ends once more")
    found = rows()
    for ref in refs:
        row = found[ref.id]
        parents = [found[parent] for parent in row.parents]
        if row.error_type == "ParentFailed":
            assert any(parent.state != "done" for parent in parents), f"{ref} fell for nothing:\n{told(found)}"
            continue
        if row.attempt and not retries:
            runs_anyhow = execute_one(house, ref, "on_parent_failure") == "run"
            assert all(parent.state == "done" or runs_anyhow for parent in parents)
            if row.date_started is None:  # called off between its claim and its first line
                assert row.state == "cancelled"
            else:
                assert all(parent.date_done <= row.date_started for parent in parents)


def told(rows: dict[str, Any]) -> str:
    """Tell what became of a family, one line for each."""
    return "\n".join(
        f"{row.id[-6:]} {row.args} of {[parent[-6:] for parent in row.parents]}: {row.state} {row.attempt} attempts,"
        f" {row.requeues} requeues, {row.error_message} {row.date_done:%S.%f}"
        for row in rows.values()
    )


def execute_one(queue: Queue, ref: TaskRef, column: str) -> Any:
    assert queue.config.database_url
    return execute(queue.config.database_url, f"SELECT {column} FROM queued_tasks WHERE id = %s", (ref.id,))[0][0]
