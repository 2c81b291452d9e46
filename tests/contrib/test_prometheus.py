"""Metrics for Prometheus, as its own parser reads them: of one process, of a tree, and of one that only adds."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from helpers import execute, wait_until
from queuedtask import Queue, TaskRef
from queuedtask.contrib import prometheus
from queuedtask.contrib.flask import QueuedTask
from queuedtask.contrib.prometheus import OTHER, PrometheusMetrics, exposition, register
from queuedtask.model import outcome, states
from queuedtask.model.outcome import Decision, Outcome
from queuedtask.model.task import Task
from queuedtask.run.hooks import Settled

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
import observed_jobs as jobs
from inside import ended, fresh_event, working
from trees import tree

__all__ = ["fresh_event"]  # a fixture

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
HOSTILE = [
    '"quoted"',
    "two\nlines",
    "back\\slash\\n",
    "ünï😀",
    '{a="b"} 5',
    "",
    "tab\tand\rreturn",
    "#HELP",
    "\x0b\x85",
]


def parsed(text: bytes) -> Series:
    """Read an exposition with Prometheus' own parser; nothing may stand in it twice."""
    series: Series = {}
    families = list(text_string_to_metric_families(text.decode()))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.documentation
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in series
            series[key] = sample.value
    return series


def attempts_of(series: Series) -> dict[tuple[str, str, str], float]:
    """Return the counts by channel, name and outcome."""
    return {
        tuple(dict(labels)[key] for key in ("channel", "name", "outcome")): value  # type: ignore[misc]
        for (name, labels), value in series.items()
        if name == "queuedtask_attempts_total"
    }


def value(series: Series, name: str, /, **labels: str) -> float | None:
    return series.get((name, tuple(sorted(labels.items()))))


@pytest.fixture
def metrics() -> PrometheusMetrics:
    return PrometheusMetrics(CollectorRegistry())


def test_one_process_tells_of_its_own_attempts_and_of_the_queue(queue: Queue, metrics: PrometheusMetrics) -> None:
    register(queue, metrics)
    with working(queue):
        for _ in range(3):
            ended(queue.options(name="shop.tell", channel="mail").add_task(jobs.tell))
        ended(queue.options(name="shop.fail", max_retries=0).add_task(jobs.fail), "failed")
        again = queue.options(name="shop.again", max_retries=1).add_task(jobs.fail)
        wait_until(lambda: again.state == "waiting")
        ended(queue.options(name="shop.cancel").add_task(jobs.cancel), "cancelled")
        wait_until(lambda: len(attempts_of(parsed(exposition(queue)))) == 4)
        series = parsed(exposition(queue))
    assert attempts_of(series) == {
        ("mail", "shop.tell", "done"): 3,
        ("default", "shop.fail", "failed"): 1,
        ("default", "shop.again", "retried"): 1,
        ("default", "shop.cancel", "cancelled"): 1,
    }
    assert value(series, "queuedtask_wait_seconds_count", channel="mail") == 3
    assert value(series, "queuedtask_wait_seconds_count", channel="default") == 3
    assert value(series, "queuedtask_run_seconds_count", channel="mail", name="shop.tell") == 3
    assert value(series, "queuedtask_database_up") == 1
    assert value(series, "queuedtask_active_workers") == 1
    assert value(series, "queuedtask_pending_tasks") == 1
    assert value(series, "queuedtask_failed_tasks_today") == 1
    assert value(series, "queuedtask_channel_pending_tasks", channel="default") == 1
    assert value(series, "queuedtask_name_pending_tasks", name="shop.again") == 1


def test_waiting_counts_from_when_a_task_could_be_claimed_and_running_is_its_own_code(
    queue: Queue, database_url: str, metrics: PrometheusMetrics
) -> None:
    register(queue, metrics)
    late, old = queue.options(delay=3600).add_task(jobs.tell), queue.options(channel="old").add_task(jobs.block, 0.3)
    execute(
        database_url,
        "UPDATE queued_tasks SET date_enqueued = now() - interval '100 s', date_scheduled = now() RETURNING 1",
    )
    with working(queue):
        ended(late)
        ended(old)
        wait_until(lambda: len(attempts_of(parsed(exposition(queue)))) == 2)
    series = parsed(exposition(queue))
    # It waited for its time, and was enqueued when that had come.
    assert (value(series, "queuedtask_wait_seconds_sum", channel="default") or 99) < 5
    assert 100 < (value(series, "queuedtask_wait_seconds_sum", channel="old") or 0) < 105
    assert 0.3 <= (value(series, "queuedtask_run_seconds_sum", channel="old", name="observed_jobs.block") or 0) < 2
    assert value(series, "queuedtask_wait_seconds_bucket", channel="old", le="60.0") == 0
    assert value(series, "queuedtask_wait_seconds_bucket", channel="old", le="300.0") == 1


def test_what_is_given_up_or_takes_its_process_along_is_counted(queue: Queue, metrics: PrometheusMetrics) -> None:
    register(queue, metrics)
    with working(queue, timeout_grace=0.2, max_lost=2):
        stuck = queue.options(name="stuck", max_retries=0, timeout=0.2).add_task(jobs.block, 1.5)
        dies = queue.options(name="dies", isolation="process").add_task(jobs.die)
        alone = queue.options(name="alone", isolation="process").add_task(jobs.tell)
        ended(stuck, "failed")
        ended(dies, "failed", timeout=30)
        ended(alone, timeout=30)
        wait_until(lambda: len(attempts_of(parsed(exposition(queue)))) == 4)
    assert attempts_of(parsed(exposition(queue))) == {
        ("default", "stuck", "failed"): 1,
        ("default", "dies", "lost"): 1,
        ("default", "dies", "failed"): 1,
        ("default", "alone", "done"): 1,
    }


def test_hostile_names_are_read_back_as_they_are(queue: Queue, database_url: str, metrics: PrometheusMetrics) -> None:
    register(queue, metrics)
    refs = [queue.options(delay=3600).add_task(jobs.tell, n) for n in range(2 * len(HOSTILE))]
    for n, (ref, name) in enumerate(zip(refs, HOSTILE * 2, strict=True)):
        execute(
            database_url,
            "UPDATE queued_tasks SET name = %s, channel = left(%s, 60), "
            "date_scheduled = CASE WHEN %s THEN now() ELSE date_scheduled END WHERE id = %s RETURNING 1",
            (name, f"c {name}", n < len(HOSTILE), ref.id),
        )
    with working(queue):
        for ref in refs[: len(HOSTILE)]:
            ended(ref)
        wait_until(lambda: len(attempts_of(parsed(exposition(queue)))) == len(HOSTILE))
    series = parsed(exposition(queue))
    shown = {name or "observed_jobs:tell" for name in HOSTILE}
    assert {name for _, name, _ in attempts_of(series)} == shown
    assert {channel for channel, _, _ in attempts_of(series)} == {f"c {name}" for name in HOSTILE}
    for name in HOSTILE:
        assert value(series, "queuedtask_name_pending_tasks", name=name) == 1
        assert value(series, "queuedtask_channel_pending_tasks", channel=f"c {name}") == 1


def settled(
    name: str, channel: str = "default", ending: states.Edge = states.FINISH, seconds: float | None = 0.1
) -> Settled:
    task = Task("id", name, "m:f", "[]", "{}", None, 1, 0, None, None, channel=channel)
    return Settled(task, Decision(ending, Outcome(outcome.RETURNED)), seconds, seconds, is_unattended=False)


def test_so_many_names_have_series_of_their_own(queue: Queue) -> None:
    metrics = PrometheusMetrics(CollectorRegistry(), max_names=3)
    register(queue, metrics)
    metrics.observe(settled(f"n{n}", f"c{n % 5}") for n in range(100))
    counted = attempts_of(parsed(exposition(queue)))
    assert {name for _, name, _ in counted} == {"n0", "n1", "n2", OTHER}
    assert {channel for channel, _, _ in counted} == {"c0", "c1", "c2", OTHER}
    assert sum(counted.values()) == 100
    with pytest.raises(ValueError, match="max_names=0"):
        PrometheusMetrics(CollectorRegistry(), max_names=0)


def test_what_was_claimed_and_given_back_before_it_began_is_no_attempt(
    queue: Queue, metrics: PrometheusMetrics
) -> None:
    register(queue, metrics)
    metrics.observe([settled("begun", ending=states.HAND_BACK), settled("not", ending=states.HAND_BACK, seconds=None)])
    assert attempts_of(parsed(exposition(queue))) == {("default", "begun", "interrupted"): 1}


def test_the_gauges_are_kept_small_too(queue: Queue, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "MAX_NAMES", 2)
    execute(
        database_url,
        "INSERT INTO queued_tasks (function, name) "
        "SELECT 'm:f', 'n' || least(n % 10, 5) FROM generate_series(1, 100) n RETURNING 1",
    )
    execute(database_url, "INSERT INTO queued_tasks (function, name) VALUES ('m:f', 'other') RETURNING 1")
    series = parsed(exposition(queue))
    by_name = {dict(labels)["name"]: v for (n, labels), v in series.items() if n == "queuedtask_name_pending_tasks"}
    assert by_name.pop("n5") == 50
    assert len(by_name) == 2
    assert by_name[OTHER] == 41


def test_a_process_that_only_adds_shows_the_gauges_alone(queue: Queue) -> None:
    queue.add_task(jobs.tell)
    series = parsed(exposition(queue))
    assert value(series, "queuedtask_pending_tasks") == 1
    assert attempts_of(series) == {}


def test_the_application_s_own_metrics_are_shown_with_ours(queue: Queue, metrics: PrometheusMetrics) -> None:
    Counter("orders", "Orders placed.", registry=metrics.registry).inc(7)
    register(queue, metrics)
    assert value(parsed(exposition(queue)), "orders_total") == 7


def test_without_its_database_the_counters_are_there_all_the_same(metrics: PrometheusMetrics) -> None:
    queue = Queue("postgresql://nobody@127.0.0.1:1/nowhere")
    register(queue, metrics)
    metrics.observe([settled("n")])
    series = parsed(exposition(queue))
    assert value(series, "queuedtask_database_up") == 0
    assert value(series, "queuedtask_pending_tasks") is None
    assert attempts_of(series) == {("default", "n", "done"): 1}


def test_a_queue_is_registered_once_and_two_may_share(queue: Queue, database_url: str) -> None:
    metrics = register(queue)
    with pytest.raises(ValueError, match="has its metrics"):
        register(queue)
    assert register(Queue(database_url)) is metrics


def test_the_metrics_of_flask_s_extension_are_those_of_its_applications(database_url: str) -> None:
    extension, app = QueuedTask(), Flask("shop")
    metrics = register(extension, PrometheusMetrics(CollectorRegistry()))
    app.config["QUEUE_DATABASE_URL"] = database_url
    extension.init_app(app)
    own = app.extensions["queuedtask"]
    metrics.observe([settled("n")])
    assert attempts_of(parsed(exposition(own))) == {("default", "n", "done"): 1}
    with pytest.raises(ValueError, match="has its metrics"):
        register(own)
    own.close()


def test_buckets_are_the_application_s_to_choose(queue: Queue) -> None:
    metrics = PrometheusMetrics(CollectorRegistry(), wait_buckets=(1,), run_buckets=(0.01, 60))
    register(queue, metrics)
    metrics.observe([settled("n")])
    bounds = [dict(labels)["le"] for (name, labels) in parsed(exposition(queue)) if name.endswith("_bucket")]
    assert sorted(bounds) == ["+Inf", "+Inf", "0.01", "1.0", "60.0"]


# ------------------------------------------------------------------------------------------------------------ processes

SCRAPE = """
import sys
from queuedtask import Queue
from queuedtask.contrib.prometheus import exposition
sys.stdout.buffer.write(exposition(Queue(sys.argv[1])))
"""


@pytest.fixture
def scrape(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Series]]:
    """Return what asks for the metrics in a process of its own, which shares the directory with the workers."""
    directory = tmp_path / "metrics"
    directory.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(directory))
    monkeypatch.setenv("METRICS", "1")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def scraped() -> Series:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", SCRAPE, database_url]
        return parsed(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)

    return scraped


def test_a_tree_of_processes_is_added_up_and_never_counts_down(
    queue: Queue, database_url: str, scrape: Callable[[], Series], tmp_path: Path
) -> None:
    def add(count: int, **options: Any) -> list[TaskRef]:
        with queue.batch() as batch:
            return [batch.options(name="shop.tell", **options).add_task(jobs.block, 0.01) for _ in range(count)]

    def done() -> float:
        return attempts_of(scrape()).get(("default", "shop.tell", "done"), 0)

    with tree(database_url, "-a", "observed_app:queue", "-p", "2", "-w", "2") as running:
        wait_until(lambda: len(running.said("started with")) == 2, 30)
        refs = add(200)
        wait_until(lambda: all(ref.state == "done" for ref in refs), 60)
        assert len(list((tmp_path / "metrics").glob("counter_*.db"))) == 2
        assert done() == 200
        victim, _ = running.children()
        os.kill(victim, 9)
        wait_until(lambda: len(running.said("started with")) == 3, 30)
        refs = add(100)
        alone = add(3, isolation="process")
        wait_until(lambda: all(ref.state == "done" for ref in [*refs, *alone]), 60)
        wait_until(lambda: done() == 303)
        series = scrape()
        assert running.stop() == 0
    assert value(series, "queuedtask_run_seconds_count", channel="default", name="shop.tell") == 303
    assert value(series, "queuedtask_wait_seconds_count", channel="default") == 303
    assert value(series, "queuedtask_active_workers") == 2
    # The successor has gone on in the file of the victim, and for what runs alone in a process its worker counts.
    assert len(list((tmp_path / "metrics").glob("counter_*.db"))) == 2
    assert done() == 303


def test_a_directory_that_is_not_there_is_named_when_the_application_starts(
    database_url: str, scrape: Callable[[], Series], tmp_path: Path
) -> None:
    (tmp_path / "metrics").rmdir()
    with tree(database_url, "-a", "observed_app:queue", "-w", "1") as running:
        wait_until(lambda: running.said("PROMETHEUS_MULTIPROC_DIR"), 30)


PLACE = """
import os, sys
from pathlib import Path
from queuedtask.contrib.prometheus import _Place
place = _Place(Path(sys.argv[1]))
place(), print(place(), flush=True)
sys.stdin.readline()
if not os.fork():
    print(place(), flush=True)
    os._exit(0)
os.wait()
print(place(), flush=True)
"""


def test_processes_have_places_of_their_own_and_the_dead_leave_theirs(tmp_path: Path) -> None:
    def start(count: int) -> list["subprocess.Popen[str]"]:
        command = [sys.executable, "-c", PLACE, str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return [subprocess.Popen(command, env=environment, **pipes) for _ in range(count)]

    def said(process: "subprocess.Popen[str]") -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    processes = start(8)
    try:
        places = {process: said(process) for process in processes}
        assert sorted(places.values()) == [f"queuedtask-{n}" for n in range(8)]
        victim = processes[3]
        victim.kill()
        victim.wait()
        processes += start(1)
        assert said(processes[-1]) == places[victim]
        assert processes[0].stdin is not None
        processes[0].stdin.write("\n")
        processes[0].stdin.flush()
        assert [said(processes[0]), said(processes[0])] == ["queuedtask-8", places[processes[0]]]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.stdout.close()
