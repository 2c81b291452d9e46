"""What is measured: right up to 100,000 tasks, a bounded number of rows beyond, whatever the planner believes."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from helpers import execute, raw_connection
from queuedtask import Queue, SchemaOutdated
from queuedtask.db import measures
from queuedtask.db.measures import Limits
from queuedtask.db.statement import Statement
from queuedtask.model.measures import EXACT_UP_TO, NEWEST, Metrics

LIMITS = Limits(lease=30.0, task_timeout=300.0, timeout_grace=5.0)

ADD = """
INSERT INTO queued_tasks (id, name, state, channel, priority, date_enqueued, date_started, date_done, claimed_by,
    pending_parents, date_scheduled, concurrency_key)
SELECT ('019a' || lpad(to_hex(%(first)s + n), 8, '0') || md5(n::text))::char(32)::uuid, 'shop.task_' || n %% 3,
    %(state)s, CASE WHEN n %% 4 = 0 THEN 'mail' ELSE 'default' END, n %% 2,
    clock_timestamp() - n * interval '1 millisecond' - %(age)s * interval '1 second',
    CASE WHEN %(state)s NOT IN ('waiting', 'enqueued') THEN clock_timestamp() - interval '2 s' END,
    CASE WHEN %(state)s IN ('done', 'failed') THEN clock_timestamp() END,
    CASE WHEN %(state)s = 'doing' THEN 1 END, %(parents)s, clock_timestamp() + interval '1 day', %(key)s
FROM generate_series(1, %(count)s) AS n RETURNING 1
"""


def add(url: str, state: str, count: int, **given: object) -> None:
    values = {"first": 0, "age": 0, "parents": 0, "key": None, **given}
    with contextlib.closing(raw_connection(url)) as connection, connection.cursor() as cursor:
        cursor.execute(ADD, {"state": state, "count": count, **values})


@pytest.fixture
def cursor(database_url: str) -> Iterator[Any]:
    """Give a cursor in a transaction."""
    with contextlib.closing(raw_connection(database_url, autocommit=False)) as connection:
        yield connection.cursor()


def rows_read(cursor: Any) -> int:
    """Return how many rows of the table this transaction has read so far."""
    cursor.execute("SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'queued_tasks'")
    return int(cursor.fetchone()[0])


# -------------------------------------------------------------------------------------------------------------- figures


def test_an_empty_queue(queue: Queue) -> None:
    found = queue.metrics()
    assert found == Metrics(date=found.date)
    assert json.loads(json.dumps(found.as_dict())) == {
        "pending_tasks": 0,
        "running_tasks": 0,
        "failed_tasks_today": 0,
        "average_task_duration": None,
        "stuck_tasks": 0,
        "oldest_pending_seconds": None,
        "active_workers": 0,
        "by_channel": {},
        "by_name": {},
        "estimated": [],
        "is_estimated": False,
        "date": found.as_dict()["date"],
    }
    assert found.as_dict()["date"].endswith("Z")


def test_every_figure_of_all_of_channels_and_of_names(queue: Queue, database_url: str) -> None:
    execute(database_url, "INSERT INTO queued_task_workers (id) VALUES (1) RETURNING 1")
    add(database_url, "enqueued", 12, age=100)
    add(database_url, "enqueued", 4, age=50, key="k", first=1000)
    add(database_url, "waiting", 8, age=900, first=2000)
    add(database_url, "waiting", 4, age=900, parents=1, first=3000)
    add(database_url, "doing", 8, first=4000)
    add(database_url, "done", 16, first=5000)
    add(database_url, "failed", 4, first=6000)
    found = queue.metrics()
    assert (found.pending_tasks, found.running_tasks, found.failed_tasks_today) == (28, 8, 4)
    assert (found.stuck_tasks, found.active_workers, found.estimated) == (0, 1, frozenset())
    assert found.average_task_duration == pytest.approx(2, abs=0.01)
    assert found.oldest_pending_seconds == pytest.approx(100, abs=5)
    mail, default = found.by_channel["mail"], found.by_channel["default"]
    assert (mail.pending_tasks, mail.running_tasks, mail.failed_tasks_today) == (7, 2, 1)
    assert (default.pending_tasks, default.running_tasks, default.failed_tasks_today) == (21, 6, 3)
    assert mail.average_task_duration == pytest.approx(2, abs=0.01)
    assert mail.oldest_pending_seconds == pytest.approx(100, abs=5)
    assert set(found.by_channel) == {"mail", "default"}
    assert set(found.by_name) == {"shop.task_0", "shop.task_1", "shop.task_2"}
    for figure in ("pending_tasks", "running_tasks", "failed_tasks_today"):
        for groups in (found.by_channel, found.by_name):
            assert sum(getattr(each, figure) for each in groups.values()) == getattr(found, figure)


def test_a_day_begins_at_midnight_in_utc_whatever_the_session_thinks(queue: Queue, database_url: str) -> None:
    add(database_url, "failed", 2)
    midnight = "date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
    execute(
        database_url,
        f"UPDATE queued_tasks SET date_done = {midnight} - (row.number - 1) * interval '1 microsecond' "
        "FROM (SELECT id, row_number() OVER () AS number FROM queued_tasks) AS row WHERE row.id = queued_tasks.id "
        "RETURNING 1",
    )
    for zone in ("UTC", "Pacific/Kiritimati", "Etc/GMT+12"):
        with queue.database.transaction() as cursor:
            cursor.execute("SELECT set_config('TimeZone', %s, true)", (zone,))
            assert measures.read_metrics(cursor, LIMITS).failed_tasks_today == 1


def test_only_what_waits_for_a_slot_is_old(queue: Queue, database_url: str) -> None:
    add(database_url, "waiting", 4, age=1000)
    assert (queue.metrics().pending_tasks, queue.metrics().oldest_pending_seconds) == (4, None)
    assert queue.metrics().by_channel["mail"].oldest_pending_seconds is None


def test_durations_are_those_of_the_newest_that_are_done(queue: Queue, database_url: str) -> None:
    add(database_url, "done", NEWEST + 500)
    execute(
        database_url,
        "UPDATE queued_tasks SET date_started = date_done - interval '1 hour' "
        f"WHERE id IN (SELECT id FROM queued_tasks ORDER BY id DESC OFFSET {NEWEST}) RETURNING 1",
    )
    assert queue.metrics().average_task_duration == pytest.approx(2, abs=0.01)
    # Behind a backlog they are looked for where the workers are.
    add(database_url, "enqueued", NEWEST, first=100_000)
    assert queue.metrics().average_task_duration == pytest.approx(2, abs=0.01)
    add(database_url, "doing", 3, first=90_000)
    assert queue.metrics().average_task_duration == pytest.approx(2, abs=0.01)


def test_tasks_of_very_many_names_are_counted_in_full_and_the_most_frequent_named(
    queue: Queue, database_url: str
) -> None:
    add(database_url, "enqueued", 3000)
    execute(
        database_url,
        "UPDATE queued_tasks SET name = 'task ' || id FROM (SELECT id AS one FROM queued_tasks OFFSET 10) AS o "
        "WHERE id = one RETURNING 1",
    )
    found = queue.metrics()
    assert found.pending_tasks == 3000
    assert sum(each.pending_tasks for each in found.by_channel.values()) == 3000
    assert len(found.by_name) == 1998
    assert {"shop.task_0", "shop.task_1", "shop.task_2"} <= set(found.by_name)


def test_without_usable_tables_it_raises(empty_database_url: str) -> None:
    with contextlib.closing(Queue(empty_database_url)) as queue, pytest.raises(SchemaOutdated, match="db upgrade"):
        queue.metrics()


def test_nothing_of_the_restricted_plans_stays_with_the_connection(queue: Queue) -> None:
    queue.metrics()
    queue.health()
    with queue.database.transaction() as cursor:
        cursor.execute("SHOW enable_seqscan")
        assert cursor.fetchone() == ("on",)


# ------------------------------------------------------------------------------------------------------------ estimates

MANY = 250_000


@pytest.mark.parametrize(
    ("state", "figure"),
    [("enqueued", "pending_tasks"), ("waiting", "pending_tasks"), ("failed", "failed_tasks_today")],
)
def test_very_many_are_estimated_from_a_sample(database_url: str, cursor: Any, state: str, figure: str) -> None:
    add(database_url, state, MANY, age=300)
    if state == "enqueued":
        # Old, and behind all others in the order of the claims: no sample finds it.
        add(database_url, "enqueued", 1, age=90_000, first=MANY)
        execute(database_url, "UPDATE queued_tasks SET priority = -5 WHERE date_enqueued < now() - interval '1 day'")
    found = measures.read_metrics(cursor, LIMITS)
    estimated = {figure, "oldest_pending_seconds"} if figure == "pending_tasks" else {figure}
    assert found.is_estimated
    assert found.estimated == estimated
    assert getattr(found, figure) == pytest.approx(MANY, rel=0.2)
    assert getattr(found.by_channel["mail"], figure) == pytest.approx(MANY / 4, rel=0.3)
    assert getattr(found.by_name["shop.task_1"], figure) == pytest.approx(MANY / 3, rel=0.3)
    if state == "enqueued":
        assert found.oldest_pending_seconds == pytest.approx(90_000, abs=60)
        assert found.by_channel["default"].oldest_pending_seconds == found.oldest_pending_seconds
        assert found.by_channel["mail"].oldest_pending_seconds == pytest.approx(300 + MANY / 1000, abs=60)
    assert rows_read(cursor) < 60_000
    # The same blocks each time.
    again = measures.read_metrics(cursor, LIMITS)
    assert getattr(again, figure) == getattr(found, figure)


@pytest.mark.parametrize(("count", "is_exact"), [(EXACT_UP_TO, True), (EXACT_UP_TO + 1, False)])
def test_exact_up_to_a_hundred_thousand_and_then_marked(
    database_url: str, cursor: Any, count: int, is_exact: bool
) -> None:
    add(database_url, "enqueued", count)
    found = measures.read_metrics(cursor, LIMITS)
    assert found.is_estimated is not is_exact
    if is_exact:
        assert found.pending_tasks == count
        assert found.by_channel["mail"].pending_tasks == count / 4
    else:
        assert found.pending_tasks > EXACT_UP_TO
        assert found.pending_tasks == pytest.approx(count, rel=0.2)
    assert rows_read(cursor) < EXACT_UP_TO + 60_000


def test_running_tasks_are_estimated_too(database_url: str, cursor: Any) -> None:
    add(database_url, "doing", 110_000)
    found = measures.read_metrics(cursor, LIMITS)
    assert found.estimated == {"running_tasks", "stuck_tasks"}
    assert found.running_tasks == pytest.approx(110_000, rel=0.2)
    assert found.stuck_tasks >= EXACT_UP_TO  # no such worker lives


# -------------------------------------------------------------------------------------------------------------- bounded

MEASURES = [
    value for name, value in vars(measures).items() if isinstance(value, Statement) and name != "PLAN_ALONG_INDEXES"
]


def plans(cursor: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every node of the plan of each statement."""
    measures.PLAN_ALONG_INDEXES(cursor)
    for statement in MEASURES:
        given = {**statement._compiled[1], **LIMITS.overdue, "percent": 1.0, "up_to": measures._LAST_ID}
        cursor.execute(f"EXPLAIN (FORMAT JSON) {statement.sql}", given)
        left = [cursor.fetchone()[0][0]["Plan"]]
        while left:
            node = left.pop()
            left += node.get("Plans", [])
            yield statement.name, node


def check_plans(cursor: Any) -> None:
    found = list(plans(cursor))
    assert {name for name, _ in found} == {statement.name for statement in MEASURES}
    for name, node in found:
        assert node["Node Type"] not in ("Bitmap Heap Scan", "Gather", "Incremental Sort"), (name, node)
        if node.get("Relation Name") == "queued_tasks":
            assert node["Node Type"] in ("Index Scan", "Index Only Scan", "Sample Scan"), (name, node)
        # Groups are sorted, and the few of a look for the first one; rows are not.
        if node["Node Type"] == "Sort":
            below = node["Plans"][0]["Node Type"]
            assert below in ("Aggregate", "Subquery Scan", "Limit"), (name, below)


@pytest.mark.parametrize("shape", ["never analysed", "analysed", "stale", "all failed"])
def test_plans_go_along_indexes_and_few_rows_are_read(database_url: str, cursor: Any, shape: str) -> None:
    if shape == "stale":
        # Analysed when all were waiting for a slot, which is no longer so: a plan that trusts it finds the first rows
        # of a scan of the table soon.
        add(database_url, "enqueued", 60_000)
        execute(database_url, "ANALYZE queued_tasks")
        execute(database_url, "UPDATE queued_tasks SET state = 'done', date_done = now(), date_started = now()")
        execute(database_url, "VACUUM (ANALYZE false) queued_tasks")
    else:
        add(database_url, "failed" if shape == "all failed" else "done", 60_000)
        if shape != "never analysed":
            execute(database_url, "ANALYZE queued_tasks")
    check_plans(cursor)
    cursor.connection.rollback()
    measures.read_state(cursor, LIMITS)
    assert rows_read(cursor) <= 10  # the planner looks at the ends of an index now and then
    found = measures.read_metrics(cursor, LIMITS)
    assert found.failed_tasks_today == (60_000 if shape == "all failed" else 0)
    assert rows_read(cursor) <= NEWEST + 100 + found.failed_tasks_today + (NEWEST if shape == "all failed" else 0)


def test_no_sample_is_read_where_few_tasks_can_be_pending(database_url: str, cursor: Any) -> None:
    add(database_url, "done", 200_000)  # a table large enough to be sampled
    add(database_url, "enqueued", 30, first=200_000)
    add(database_url, "failed", 20, first=300_000)
    found = measures.read_metrics(cursor, LIMITS)
    assert (found.pending_tasks, found.failed_tasks_today, found.estimated) == (30, 20, frozenset())
    assert rows_read(cursor) <= NEWEST + 100
