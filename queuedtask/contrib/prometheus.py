"""Metrics for Prometheus: how long tasks wait and run, how attempts end, and what the queue looks like now.

Needs the extra ``prometheus``. Counters and histograms are counted where ends are written, by the worker itself, and so
know of attempts that were given up or lost as well. Several processes need prometheus-client's own way to add them up:
``PROMETHEUS_MULTIPROC_DIR`` names a directory, empty at the start, in which each process keeps a file. Ours are named
by places and not by processes: the successor of a process goes on in its file, so there are never more of them than
there were processes at a time.
"""

import fcntl
import logging
import os
import threading
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import prometheus_client
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from queuedtask.run.hooks import Settled
from queuedtask.taskqueue import Queue

logger = logging.getLogger("queuedtask.prometheus")

M = TypeVar("M", Counter, Histogram)

CONTENT_TYPE: Final = prometheus_client.CONTENT_TYPE_LATEST
"""What :func:`exposition` returns."""
OTHER: Final = "other"
"""Stands for the channels and names beyond the number that is kept apart."""
MAX_NAMES: Final = 500
WAIT_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 21600, 86400)
RUN_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600)


class PrometheusMetrics:
    """The counters and histograms of this process, for one or more queues.

    ``registry``: where they are registered. ``max_names``: so many channels, and so many names, get series of their
    own; later ones count as ``other``. The buckets are upper bounds in seconds.
    """

    def __init__(
        self,
        registry: CollectorRegistry = REGISTRY,
        *,
        max_names: int = MAX_NAMES,
        wait_buckets: Sequence[float] = WAIT_BUCKETS,
        run_buckets: Sequence[float] = RUN_BUCKETS,
    ) -> None:
        if max_names < 1:
            raise ValueError(f"max_names={max_names!r}: must be 1 or more")
        if _keeps_files():
            # Says now, and not at the first task, that the directory is not there.
            _directory()
        self.registry = registry
        self._names = _Limited(max_names)
        self._channels = _Limited(max_names)
        self._attempts = Counter(
            "queuedtask_attempts",
            "Attempts that ended: done, failed, cancelled, stopped, retried, interrupted or lost.",
            ("channel", "name", "outcome"),
            registry=registry,
        )
        self._wait = Histogram(
            "queuedtask_wait_seconds",
            "From the moment when a task could have been claimed to the start of its own code.",
            ("channel",),
            registry=registry,
            buckets=wait_buckets,
        )
        self._run = Histogram(
            "queuedtask_run_seconds",
            "How long a task's own code ran in an attempt.",
            ("channel", "name"),
            registry=registry,
            buckets=run_buckets,
        )
        # The children, which are expensive to look up.
        self._counters: dict[tuple[str, str, str], Counter] = {}
        self._waits: dict[str, Histogram] = {}
        self._runs: dict[tuple[str, str], Histogram] = {}

    def observe(self, settled: Iterable[Settled]) -> None:
        """Count attempts that have ended."""
        for each in settled:
            ending, seconds = each.decision.ending, each.seconds
            if seconds is None and ending == "interrupted":
                continue  # claimed ahead and given back: it was no attempt
            channel = self._channels.label(each.task.channel)
            name = self._names.label(each.task.name or each.task.function)
            counter = self._counters.get((channel, name, ending))
            if counter is None:
                counter = self._counters[channel, name, ending] = _child(self._attempts, channel, name, ending)
            counter.inc()
            if each.waited is not None:
                wait = self._waits.get(channel)
                if wait is None:
                    wait = self._waits[channel] = _child(self._wait, channel)
                wait.observe(each.waited)
            # Of a loss nobody knows when it came.
            if seconds is not None and not each.decision.outcome.is_loss:
                run = self._runs.get((channel, name))
                if run is None:
                    run = self._runs[channel, name] = _child(self._run, channel, name)
                run.observe(seconds)


_default: list[PrometheusMetrics] = []


def register(queue: Queue, metrics: PrometheusMetrics | None = None) -> PrometheusMetrics:
    """Count the attempts of the workers that have this Queue, and return what counts them.

    It has to be the Queue that the worker is given with ``-a`` or ``QUEUE_APP``. Without ``metrics`` they are those of
    this process in prometheus-client's default registry. Raises ValueError for a second call with one queue, and when
    ``PROMETHEUS_MULTIPROC_DIR`` is set and is no directory.
    """
    if queue.hooks.settler(PrometheusMetrics) is not None:
        raise ValueError("register(): this queue has its metrics for Prometheus already")
    if metrics is None:
        if not _default:
            _default.append(PrometheusMetrics())
        metrics = _default[0]
    queue.hooks.add("on_settle", metrics.observe)
    return metrics


def exposition(queue: Queue) -> bytes:
    """Return all metrics in Prometheus' text format, to be served as :data:`CONTENT_TYPE`.

    The gauges come from the database, whoever asks. With ``PROMETHEUS_MULTIPROC_DIR`` the counters and histograms are
    those of all processes that share the directory; without it those of this process, after :func:`register`.
    """
    gauges = CollectorRegistry()
    gauges.register(_Gauges(queue))
    if _keeps_files():
        MultiProcessCollector(gauges)  # type: ignore[no-untyped-call]
        return generate_latest(gauges)
    metrics = queue.hooks.settler(PrometheusMetrics)
    return generate_latest(gauges) + (b"" if metrics is None else generate_latest(metrics.registry))


def _keeps_files() -> bool:
    """Tell whether prometheus-client found ``PROMETHEUS_MULTIPROC_DIR`` when it was imported."""
    return bool(values.ValueClass._multiprocess)


def _directory() -> Path:
    """Return the directory. Raises ValueError when there is none."""
    collector: Any = MultiProcessCollector(None)  # type: ignore[no-untyped-call]
    return Path(collector._path)


def _child(metric: M, *labels: str) -> M:
    """Return a metric's child for labels, whose values stand in the file of our place if there are files."""
    if not _keeps_files():
        return metric.labels(*labels)
    with _swapping:
        # The class is looked up in the module whenever a child is made. A child of the application's that is made by
        # another thread just now may get ours, and is counted as well.
        usual, values.ValueClass = values.ValueClass, _values_by_place()
        try:
            return metric.labels(*labels)
        finally:
            values.ValueClass = usual


_swapping = threading.Lock()


@cache
def _values_by_place() -> Any:
    return values.MultiProcessValue(_Place(_directory()))  # type: ignore[no-untyped-call]


class _Place:
    """Names this process among those that share the directory: by the first number whose lock nobody has.

    The system releases the lock with the process, however that ends. Called before each count.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pid: int | None = None
        self._lock: IO[bytes] | None = None
        self._name = ""

    def __call__(self) -> str:
        if self._pid != os.getpid():  # also after a fork
            self._take()
            self._pid = os.getpid()
        return self._name

    def _take(self) -> None:
        for number in count():
            name = f"queuedtask-{number}"
            lock = (self._directory / f"{name}.lock").open("ab")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            self._lock, self._name = lock, name
            return


class _Limited:
    """Lets so many texts through as labels."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def label(self, text: str) -> str:
        if text not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(text)
        return text


class _Gauges(Collector):
    """What the database says of a queue, asked at each scrape."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # else they would be collected for it, as soon as they are registered

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            metrics = self._queue.metrics()
        except Exception as error:
            # Whatever it is: the counters are to be scraped all the same.
            logger.warning("the gauges for Prometheus could not be read: %s", error)
            yield GaugeMetricFamily("queuedtask_database_up", _UP, 0)
            return
        yield GaugeMetricFamily("queuedtask_database_up", _UP, 1)
        yield GaugeMetricFamily("queuedtask_active_workers", "Worker processes that report.", metrics.active_workers)
        yield GaugeMetricFamily(
            "queuedtask_metrics_estimated",
            "Whether any of the figures from the database is an estimate.",
            int(metrics.is_estimated),
        )
        for field, (unit, text) in _FIGURES.items():
            value = getattr(metrics, field)
            if value is None and field in _NONE_IS_ZERO:
                value = 0
            if value is not None:
                yield GaugeMetricFamily(f"queuedtask_{field}{unit}", text, value)
        for label, parts in (("channel", metrics.by_channel), ("name", metrics.by_name)):
            yield from self._by(label, parts)

    @staticmethod
    def _by(label: str, parts: Mapping[str, Any]) -> Iterator[GaugeMetricFamily]:
        """Give the figures of each channel or name, the busiest ones apart and the rest as one."""
        busy = Tally({key: part.pending_tasks + part.running_tasks for key, part in parts.items()})
        apart = {key for key, _ in busy.most_common(MAX_NAMES)}
        for field, (unit, text) in _FIGURES.items():
            family = GaugeMetricFamily(f"queuedtask_{label}_{field}{unit}", f"{text} By {label}.", labels=(label,))
            values: dict[str, float] = {}
            rest: list[float] = []
            for key, part in parts.items():
                value = getattr(part, field)
                if value is None:
                    continue
                if key in apart and key != OTHER:
                    values[key] = value
                else:
                    rest.append(value)
            if rest and field != "average_task_duration":
                values[OTHER] = max(rest) if field == "oldest_pending_seconds" else sum(rest)
            for key in sorted(values):
                family.add_metric((key,), values[key])
            yield family


_UP: Final = "Whether the database answered."
# With what a name is to end in, if its unit is not there already.
_FIGURES: Final = {
    "pending_tasks": ("", "Tasks that wait or can be claimed."),
    "running_tasks": ("", "Tasks that workers have claimed."),
    "failed_tasks_today": ("", "Tasks that failed for good since midnight UTC."),
    "average_task_duration": ("_seconds", "How long the tasks took that were done lately."),
    "stuck_tasks": ("", "Tasks beyond their timeout and grace, of dead workers or in stuck slots."),
    "oldest_pending_seconds": ("", "For how long the task waits that has been waiting longest for a slot."),
}
_NONE_IS_ZERO: Final = ("oldest_pending_seconds",)
