"""Limits over several workers: how many at a time, how many starts, keys, pauses; by the tasks' own times."""

import contextlib
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest

from helpers import execute, raw_connection, wait_until
from queuedtask import Queue
from queuedtask.config import Config
from queuedtask.db import claims, store, workers
from queuedtask.worker.claims import Claims
from queuedtask.worker.link import Link

sys.path.insert(0, str(Path(__file__).parent))
import limit_jobs as jobs
from inside import ended, working
from limit_jobs import Span, most_at_once, seconds_below, spans
from trees import tree


@pytest.fixture
def url(database_url: str) -> str:
    execute(database_url, jobs.TABLE)
    return database_url


@contextmanager
def crew(url: str, number: int, **settings: object) -> Iterator[list[Queue]]:
    """Run several workers of four slots, each with a Queue of its own."""
    with ExitStack() as stack:
        queues = []
        for _ in range(number):
            queue = stack.enter_context(contextlib.closing(Queue(url)))
            queue.config.pool_size = 10
            stack.enter_context(working(queue, **settings))
            queues.append(queue)
        yield queues


def limit(url: str, channel: str, running: int | None, starts: int | None = None, seconds: float | None = None) -> None:
    execute(
        url,
        "INSERT INTO queued_task_channels (name, max_running, max_starts, per_seconds) VALUES (%s, %s, %s, %s) "
        "ON CONFLICT (name) DO UPDATE SET max_running = excluded.max_running",
        (channel, running, starts, seconds),
    )


def all_done(url: str, timeout: float = 20.0) -> None:
    def none_is_left() -> bool:
        return execute(url, "SELECT count(*) FROM queued_tasks WHERE state <> 'done'") == [(0,)]

    wait_until(none_is_left, timeout, message="all tasks are done")


def clock(url: str) -> float:
    return float(execute(url, "SELECT extract(epoch FROM clock_timestamp())::float")[0][0])


# ------------------------------------------------------------------------------------------------- how many at a time


def test_never_more_than_the_limit_over_all_workers_and_it_is_kept_full(queue: Queue, url: str) -> None:
    limit(url, "mail", 2)
    with queue.batch() as batch:
        for n in range(40):
            batch.options(channel="mail").add_task(jobs.span, str(n), 0.05)
    with crew(url, 3):
        all_done(url)
    found = spans(url)
    assert most_at_once(found) == 2
    assert found[-1].began - found[0].began < 4.0  # one second and little more if it is always full


def test_a_worker_s_transactions_see_what_was_committed_meanwhile_whatever_the_default_is(
    queue: Queue, url: str
) -> None:
    name = execute(url, "SELECT current_database()")[0][0]
    execute(url, f'ALTER DATABASE "{name}" SET default_transaction_isolation = "repeatable read"')
    link = Link(queue.database, queue.config, on_return=lambda cursor: None)
    link.open()
    try:
        with link.transaction() as cursor:
            cursor.execute("SHOW transaction_isolation")
            assert cursor.fetchone() == ("read committed",)
    finally:
        link.close()


def test_what_a_worker_that_ends_leaves_free_is_taken_by_another_one(queue: Queue, url: str) -> None:
    limit(url, "mail", 2)
    with contextlib.closing(Queue(url)) as other, ExitStack() as first:
        first.enter_context(working(queue))
        for n in range(6):
            queue.options(channel="mail").add_task(jobs.span, str(n), 0.6 if n < 2 else 0.0)
        wait_until(lambda: len(spans(url)) == 2)
        with working(other):
            time.sleep(0.3)  # it has found the channel at its limit
            first.close()
            all_done(url, timeout=5.0)
    assert most_at_once(spans(url)) == 2


def test_a_backlog_at_its_limit_does_not_hold_up_other_tasks(queue: Queue, url: str) -> None:
    limit(url, "mail", 1)
    with queue.batch() as batch:
        for n in range(300):
            batch.options(channel="mail", priority=5).add_task(jobs.span, f"mail {n}", 0.05)
        for n in range(30):
            batch.options(channel=f"other {n % 3}").add_task(jobs.span, "other", 0.0)
        for _ in range(10):
            batch.add_task(jobs.span, "default", 0.0)
    with crew(url, 2):
        wait_until(lambda: sum(s.label in ("other", "default") for s in spans(url)) == 40)
        assert most_at_once([s for s in spans(url) if s.label.startswith("mail")]) == 1
        queue.clear()


def test_the_most_urgent_of_all_channels_comes_first(queue: Queue, url: str) -> None:
    limit(url, "mail", 5)
    with queue.batch() as batch:
        for priority in (1, 4, 2, 6, 3, 5):
            channel = "mail" if priority % 2 else "default"
            batch.options(channel=channel, priority=priority).add_task(jobs.span, str(priority), 0.0)
        batch.options(priority=7, concurrency_key="k").add_task(jobs.span, "7", 0.0)
    with working(queue, max_workers=1):
        all_done(url)
    assert [s.label for s in spans(url)] == ["7", "6", "5", "4", "3", "2", "1"]


def test_a_limit_set_while_tasks_run_holds_from_then_on(queue: Queue, url: str) -> None:
    with queue.batch() as batch:
        for n in range(60):
            batch.options(channel="mail").add_task(jobs.span, str(n), 0.1)
    with crew(url, 2):
        wait_until(lambda: len(spans(url)) >= 8)
        limit(url, "mail", 1)
        set_at = clock(url)
        wait_until(lambda: len([s for s in spans(url) if s.began > set_at + 0.5]) >= 4)
        queue.clear()
    late = [s for s in spans(url) if s.began > set_at + 0.5]
    assert most_at_once(late) == 1


@pytest.mark.parametrize(("most", "keys"), [(5, 0), (5, 50), (None, 3)], ids=["channel", "channel and keys", "keys"])
def test_claims_that_race_never_exceed_a_limit(queue: Queue, url: str, most: int | None, keys: int) -> None:
    """Without slots: six threads that claim and settle as fast as they can, and count what they have claimed."""
    if most:
        limit(url, "mail", most)
    with queue.batch() as batch:
        for n in range(3000):
            key = {"concurrency_key": f"k{n % keys}"} if keys and (n % 2 or not most) else {}
            batch.options(channel="mail", **key).add_task("a:b")
    counted: list[int] = []
    errors: list[BaseException] = []
    in_all = "SELECT count(*) FROM queued_tasks WHERE state = 'doing'"
    of_a_key = (
        "SELECT max(number) FROM (SELECT count(*) AS number FROM queued_tasks WHERE state = 'doing' "
        "AND concurrency_key IS NOT NULL GROUP BY concurrency_key) AS keys"
    )

    def work(seed: int) -> None:
        chance, config = random.Random(seed), Config()
        try:
            with contextlib.closing(raw_connection(url)) as connection:
                cursor = connection.cursor()
                me = workers.register(
                    cursor, server_name="x", slots=4, pid=1, supervisor_pid=None, version="", lease=30.0
                )
                taking, mine = Claims(config), []
                give_up = time.monotonic() + 12
                while time.monotonic() < give_up and len(counted) < 400:
                    taking._full.clear()
                    taking._keys_taken_until = 0.0
                    taking.prepare(cursor)
                    connection.autocommit = False
                    chance.shuffle(mine)
                    gone, mine = mine[:2], mine[2:]
                    if gone:
                        cursor.execute(
                            "UPDATE queued_tasks SET state = 'done', date_done = now() WHERE id = ANY(%s::uuid[])",
                            ([task.id for task in gone],),
                        )
                    taken = taking.take(cursor, worker=me, wanted=chance.randint(1, 4), slots=8)
                    mine += taken.tasks
                    connection.commit()
                    connection.autocommit = True
                    cursor.execute(in_all if most else of_a_key)
                    counted.append(cursor.fetchone()[0] or 0)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors, errors
    assert len(counted) > 100
    assert 0 < max(counted) <= (most or 1)


def test_a_claim_without_the_lock_takes_nothing_of_a_limited_or_paused_channel(queue: Queue, url: str) -> None:
    for channel in ("default", "mail", "api", "other"):
        for key in ({}, {"concurrency_key": channel}):
            queue.options(channel=channel, **key).add_task("a:b")
    limit(url, "mail", 5)
    limit(url, "api", None, 5, 60.0)
    queue.pause("default")
    every = dict.fromkeys(("default", "mail", "api", "other"), 5)

    def claimed() -> tuple[list[str], list[str], list[str]]:
        with contextlib.closing(raw_connection(url, autocommit=False)) as connection:
            cursor = connection.cursor()
            plain = [t.channel for c in every for t in store.claim(cursor, worker=1, limit=5, channel=c)]
            connection.rollback()
            several = [t.channel for t in claims.claim_from(cursor, every, worker=1, locked=["mail"])]
            found, _ = claims.candidates(cursor, channels=None, shut=[], after="", limit=9)
            keyed = [t.channel for t in claims.claim_keyed(cursor, found, worker=1, locked=["mail"])]
            return plain, sorted(several), sorted(keyed)

    assert claimed() == (["other"], ["mail", "other"], ["mail", "other"])
    queue.pause()
    assert claimed() == ([], [], [])


# ------------------------------------------------------------------------------------------------------- dead workers


def test_attempts_of_a_dead_worker_do_not_count_and_those_of_a_live_one_do(queue: Queue, url: str) -> None:
    limit(url, "mail", 3)
    with contextlib.closing(raw_connection(url)) as connection:
        cursor = connection.cursor()
        dead, live, me = (
            workers.register(cursor, server_name="x", slots=4, pid=1, supervisor_pid=None, version="", lease=30.0)
            for _ in range(3)
        )
        execute(url, "UPDATE queued_task_workers SET last_heartbeat = now() - interval '31 s' WHERE id = %s", (dead,))
        for owner, number in ((dead, 2), (live, 1)):
            execute(
                url,
                "INSERT INTO queued_tasks (function, channel, state, claimed_by)"
                " SELECT 'a:b', 'mail', 'doing', %s FROM generate_series(1, %s)",
                (owner, number),
            )
        execute(url, "INSERT INTO queued_tasks (function, channel) SELECT 'a:b', 'mail' FROM generate_series(1, 9)")

        def claim(taking: Claims) -> int:
            taking.prepare(cursor)
            assert taking.needs_transaction
            connection.autocommit = False
            taken = taking.take(cursor, worker=me, wanted=9, slots=9)
            connection.rollback()
            connection.autocommit = True
            return len(taken.tasks)

        long_connected, just_connected = Claims(Config()), Claims(Config())
        long_connected._connected_at = time.monotonic() - 31
        assert claim(long_connected) == 2
        # For a lease after an outage every worker looks dead.
        assert claim(just_connected) == 0


@pytest.mark.slow
def test_a_limit_holds_and_is_full_again_within_the_lease_when_one_of_four_workers_is_killed(
    queue: Queue, url: str
) -> None:
    lease, limit_ = 4.0, 2
    limit(url, "mail", limit_)
    settings = {"lease": lease, "heartbeat_interval": 1, "pool_size": 10}
    with ExitStack() as stack:
        trees = [stack.enter_context(tree(url, "-w", "4", **settings)) for _ in range(4)]
        wait_until(lambda: len(queue.workers()) == 4, 30)
        time.sleep(lease + 0.5)  # they trust their own eyes only when they have been connected for a lease
        with queue.batch() as batch:
            for n in range(400):
                batch.options(channel="mail", max_retries=0).add_task(jobs.span, str(n), 0.3)
        wait_until(lambda: len(spans(url)) >= 20, 30)

        def victim() -> int | None:
            owners = execute(
                url,
                "SELECT w.supervisor_pid FROM queued_tasks t JOIN queued_task_workers w ON w.id = t.claimed_by "
                "WHERE t.state = 'doing' AND t.date_started IS NOT NULL LIMIT 1",
            )
            return int(owners[0][0]) if owners else None

        pid = wait_until(victim, interval=0.001)
        (doomed,) = [t for t in trees if t.pid == pid]
        doomed.signal(signal.SIGKILL, all_of_them=True)
        killed_at = clock(url)
        wait_until(lambda: clock(url) > killed_at + lease + 3, 30)
        end = clock(url)
        found = spans(url)
        queue.clear()
    # What was running in the killed tree ended with it, without a line.
    cut = [s for s in found if s.ended is None and s.began < killed_at]
    assert cut
    known = [Span(s.label, s.began, killed_at) if s in cut else s for s in found]
    assert most_at_once(known) <= limit_
    # Between two tasks of a slot there are some milliseconds; for more than that it was below its limit only while the
    # dead one's attempts still counted.
    after = [s for s in known if s.began > killed_at]
    full_at = next(s.began for s in after if most_at_once([x for x in after if x.began <= s.began]) == limit_)
    assert full_at - killed_at <= lease + 0.5
    assert seconds_below(known, limit_, full_at, end) < 0.5 * (end - full_at)


# --------------------------------------------------------------------------------------------------------------- rates


def test_so_many_starts_in_a_time_over_all_workers(queue: Queue, url: str) -> None:
    limit(url, "api", 4, 5, 1.0)
    with queue.batch() as batch:
        for n in range(16):
            batch.options(channel="api").add_task(jobs.span, str(n), 0.0)
    with crew(url, 2):
        all_done(url)
    began = [s.began for s in spans(url)]
    # A claim counts as the start; the task's own code begins some milliseconds later.
    assert all(later - earlier > 0.9 for earlier, later in zip(began, began[5:], strict=False))
    assert 2.9 < began[-1] - began[0] < 4.5


# ------------------------------------------------------------------------------------------------- pause and resume


@pytest.mark.parametrize("channel", ["mail", "default", None])
def test_what_is_paused_is_not_claimed_anywhere_until_it_is_resumed(
    queue: Queue, url: str, channel: str | None
) -> None:
    with crew(url, 2):
        running = queue.options(channel=channel or "mail").add_task(jobs.span, "running", 0.5)
        wait_until(lambda: spans(url))
        queue.pause(channel)
        queue.pause(channel)
        ended(running)
        paused = [queue.options(channel=channel or "mail").add_task(jobs.span, "paused", 0.0) for _ in range(3)]
        if channel:
            ended(queue.options(channel="other").add_task(jobs.span, "other", 0.0))
        else:
            keyed = queue.options(concurrency_key="k").add_task(jobs.span, "paused", 0.0)
            time.sleep(0.5)
            assert keyed.state == "enqueued"
        assert {ref.state for ref in paused} == {"enqueued"}
        resumed_at = time.monotonic()
        queue.resume(channel)
        for ref in paused:
            ended(ref)
        assert time.monotonic() - resumed_at < 2.0


def test_a_limit_of_zero_pauses_and_resume_lifts_it(queue: Queue, url: str) -> None:
    ref = queue.options(channel="mail").add_task(jobs.span, "mail", 0.0)
    with working(queue, channels="mail:0,api:4@10/min"):
        ended(queue.add_task(jobs.span, "default", 0.0))
        assert ref.state == "enqueued"
        queue.resume("mail")
        ended(ref)
    rows = execute(url, "SELECT name, max_running, max_starts, per_seconds, is_paused FROM queued_task_channels")
    assert sorted(rows) == [("api", 4, 10, 60.0, False), ("mail", None, None, None, False)]


def test_the_setting_makes_rows_that_are_missing_and_overwrites_none(queue: Queue, url: str) -> None:
    limit(url, "mail", 7)
    for setting in ("mail:2,api:4", "api:9"):
        with working(queue, channels=setting):
            pass
    rows = execute(url, "SELECT name, max_running FROM queued_task_channels ORDER BY name")
    assert rows == [("api", 4), ("mail", 7)]


def test_a_pause_does_not_keep_the_setting_s_limit_away(queue: Queue, url: str) -> None:
    for channel in ("mail", "api", None):
        queue.pause(channel)
    with working(queue, channels="mail:2"):
        pass
    for channel in ("mail", "api", None):
        queue.resume(channel)
    assert execute(url, "SELECT name, max_running, is_paused FROM queued_task_channels") == [("mail", 2, False)]


# ---------------------------------------------------------------------------------------------- workers for channels


def test_a_worker_takes_only_from_the_channels_that_it_is_given(queue: Queue, url: str) -> None:
    from queuedtask.worker.manager import Manager

    limit(url, "mail", 1)
    mine = [queue.options(channel=c).add_task(jobs.span, c, 0.0) for c in ("mail", "api", "mail")]
    mine.append(queue.options(channel="api", concurrency_key="k").add_task(jobs.span, "api", 0.0))
    other = queue.add_task(jobs.span, "default", 0.0)
    keyed = queue.options(concurrency_key="k2").add_task(jobs.span, "default", 0.0)
    manager = Manager(queue, burst=True, channels=["mail", "api"])
    manager.start()
    manager.run()
    assert {ref.state for ref in mine} == {"done"}
    assert (other.state, keyed.state) == ("enqueued", "enqueued")


# ---------------------------------------------------------------------------------------------------------------- keys


def test_tasks_of_a_key_run_one_at_a_time_and_those_of_other_keys_beside_them(queue: Queue, url: str) -> None:
    with queue.batch() as batch:
        for n in range(12):
            for key in ("a", "b", "c"):
                batch.options(concurrency_key=key).add_task(jobs.span, key, 0.02)
            batch.add_task(jobs.span, f"free {n}", 0.0)
    with crew(url, 3):
        all_done(url)
    found = spans(url)
    for key in ("a", "b", "c"):
        assert most_at_once([s for s in found if s.label == key]) == 1
    assert most_at_once(found) > 1


def test_a_key_may_have_more_at_a_time(queue: Queue, url: str) -> None:
    with queue.batch() as batch:
        for n in range(24):
            batch.options(concurrency_key="a", concurrency=3).add_task(jobs.span, str(n), 0.1)
    with crew(url, 2):
        all_done(url)
    assert most_at_once(spans(url)) == 3


def test_tasks_in_order_wait_for_the_retry_and_the_time_of_the_one_before_them(queue: Queue, url: str) -> None:
    adder = queue.options(concurrency_key="a", fifo=True)
    with queue.batch() as batch:
        in_order = batch.options(concurrency_key="a", fifo=True)
        in_order.add_task(jobs.span, "1", 0.02)
        in_order.options(max_retries=1).add_task(jobs.fail_first, "2")
        in_order.options(delay=0.6).add_task(jobs.span, "3", 0.0)
        for n in range(4, 10):
            in_order.add_task(jobs.span, str(n), 0.0)
    adder.add_task(jobs.span, "10", 0.0)
    with crew(url, 2):

        def is_retrying() -> bool:
            return execute(url, "SELECT count(*) FROM queued_tasks WHERE failures = 1 AND state = 'waiting'") == [(1,)]

        wait_until(is_retrying)
        time.sleep(0.7)
        assert [s.label for s in spans(url)] == ["1", "2"]
        # The back-off is 5 s and more: make it due now.
        execute(url, "UPDATE queued_tasks SET date_scheduled = now() WHERE failures = 1")
        execute(url, "NOTIFY queue_new_task")
        all_done(url)
    assert [s.label for s in spans(url)] == ["1", "2", "2", *map(str, range(3, 11))]
    assert most_at_once(spans(url)) == 1


def test_only_the_first_of_a_key_in_order_is_claimed(queue: Queue, url: str) -> None:
    adder = queue.options(concurrency_key="k", fifo=True)
    refs = [adder.add_task("a:b"), adder.options(delay=60).add_task("a:b"), adder.add_task("a:b")]
    last = [claims.Candidate(refs[2].id, "k", "default", 0, datetime.now(UTC))]
    with contextlib.closing(raw_connection(url)) as connection:
        cursor = connection.cursor()

        def candidates() -> list[str]:
            return [c.id for c in claims.candidates(cursor, channels=None, shut=[], after="", limit=9)[0]]

        assert candidates() == [refs[0].id]
        assert claims.claim_keyed(cursor, last, worker=1, locked=[]) == []
        execute(url, "UPDATE queued_tasks SET state = 'done', date_done = now() WHERE id = %s", (refs[0].id,))
        assert candidates() == []
        assert claims.claim_keyed(cursor, last, worker=1, locked=[]) == []
        execute(url, "UPDATE queued_tasks SET state = 'done', date_done = now() WHERE id = %s", (refs[1].id,))
        assert candidates() == [refs[2].id]
        assert len(claims.claim_keyed(cursor, last, worker=1, locked=[])) == 1


def test_a_key_that_somebody_is_claiming_from_is_left_to_him(queue: Queue, url: str) -> None:
    refs = [queue.options(concurrency_key="k").add_task("a:b") for _ in range(2)]
    one, two = ([claims.Candidate(ref.id, "k", "default", 0, datetime.now(UTC))] for ref in refs)
    with ExitStack() as stack:
        mine, theirs = (
            stack.enter_context(contextlib.closing(raw_connection(url, autocommit=False))) for _ in range(2)
        )
        assert len(claims.claim_keyed(theirs.cursor(), one, worker=1, locked=[])) == 1
        assert claims.claim_keyed(mine.cursor(), two, worker=2, locked=[]) == []
        theirs.commit()
        assert claims.claim_keyed(mine.cursor(), two, worker=2, locked=[]) == []


def test_a_key_is_taken_until_its_task_is_taken_back_from_a_dead_worker(queue: Queue, url: str) -> None:
    with contextlib.closing(raw_connection(url)) as connection:
        cursor = connection.cursor()
        execute(
            url,
            "INSERT INTO queued_tasks (function, concurrency_key, state, claimed_by)"
            " VALUES ('a:b', 'k', 'doing', 77), ('a:b', 'k', 'enqueued', NULL)",
        )
        found, _ = claims.candidates(cursor, channels=None, shut=[], after="", limit=5)
        assert found == []
        execute(url, "UPDATE queued_tasks SET state = 'enqueued', claimed_by = NULL WHERE state = 'doing'")
        found, _ = claims.candidates(cursor, channels=None, shut=[], after="", limit=5)
        assert len(found) == 1


def test_keys_behind_many_tasks_of_a_taken_one_are_found(queue: Queue, url: str) -> None:
    execute(
        url,
        "INSERT INTO queued_tasks (function, concurrency_key, state, claimed_by, priority)"
        " SELECT 'a:b', 'taken', CASE n WHEN 1 THEN 'doing' ELSE 'enqueued' END, CASE n WHEN 1 THEN 77 END, 9"
        " FROM generate_series(1, 2000) n",
    )
    execute(
        url,
        "INSERT INTO queued_tasks (function, concurrency_key) SELECT 'a:b', 'k' || n FROM generate_series(1, 150) n",
    )
    with contextlib.closing(raw_connection(url)) as connection:
        cursor, after, keys = connection.cursor(), "", set()
        for _ in range(2):
            found, after = claims.candidates(cursor, channels=None, shut=[], after=after, limit=100)
            keys |= {candidate.key for candidate in found}
    assert keys == {f"k{n}" for n in range(1, 151)}


@pytest.mark.parametrize("meta", ['{"concurrency": "x"}', '{"concurrency": 1e400}', "[1]", "7", '{"fifo": 3}', "null"])
def test_a_row_written_by_hand_cannot_break_the_claim(queue: Queue, url: str, meta: str) -> None:
    execute(
        url,
        "INSERT INTO queued_tasks (function, concurrency_key, meta, args) VALUES ('limit_jobs:span', 'k', %s, %s)",
        (meta, '["x", 0]'),
    )
    with working(queue):
        all_done(url)


def test_an_allow_list_holds_for_limited_channels_several_channels_and_keys(queue: Queue, url: str) -> None:
    limit(url, "mail", 2)
    mine, others = [], []
    for given in ({"channel": "mail"}, {"channel": "api"}, {}, {"concurrency_key": "k"}):
        others += [queue.options(**given).add_task("worker_jobs:add", 1, 2) for _ in range(3)]
    for given in ({"channel": "mail"}, {"channel": "api"}, {}, {"concurrency_key": "k2"}):
        mine.append(queue.options(**given).add_task(jobs.span, "mine", 0.0))
    with working(queue, allowed_functions=("limit_jobs.*",)):
        for ref in mine:
            ended(ref)
        assert {ref.state for ref in others} == {"enqueued"}


# ---------------------------------------------------------------------------------------------------- what was there


def test_a_delay_is_exact_on_an_idle_worker_and_nobody_polls_for_it(
    queue: Queue, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for module, name in ((store, "release_due"), (store, "claim"), (claims, "look")):
        count_calls(monkeypatch, module, name, asked)
    with working(queue):
        wait_until(lambda: asked)
        time.sleep(0.3)
        asked.clear()
        late = queue.options(delay=1.2).add_task(jobs.span, "late", 0.0)
        soon = queue.options(delay=0.4).add_task(jobs.span, "soon", 0.0)
        ended(late)
        ended(soon)
        assert asked.count("release_due") <= 5, asked
        assert len(asked) <= 20, asked
    due = dict(execute(url, "SELECT args->>0, extract(epoch FROM date_scheduled)::float FROM queued_tasks"))
    for s in spans(url):
        assert 0 <= s.began - due[s.label] < 0.1


def count_calls(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, calls: list[str]) -> None:
    real = getattr(module, name)

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(name)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)


def test_the_larger_priority_is_sooner_and_the_earlier_of_equals(queue: Queue, url: str) -> None:
    with queue.batch() as batch:
        for label, priority in (("c", 0), ("d", 0), ("a", 10), ("e", -1), ("b", 10)):
            batch.options(priority=priority).add_task(jobs.span, label, 0.0)
    with working(queue, max_workers=1):
        all_done(url)
    assert [s.label for s in spans(url)] == ["a", "b", "c", "d", "e"]


def test_no_limit_costs_no_statement(queue: Queue, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing but the default channel, every claim that brings what it wanted is the plain one alone."""
    called: list[str] = []
    for module, name in ((claims, "look"), (claims, "heads"), (claims, "claim_from"), (store, "claim")):
        count_calls(monkeypatch, module, name, called)
    with queue.batch() as batch:
        for _ in range(3000):
            batch.add_task("worker_jobs:add", 1, 2)
    with working(queue):
        all_done(url)
    assert set(called) == {"look", "claim"}
    assert called.count("look") <= 3 + called.count("claim") // 2
