"""The metrics of a gateway in the text format of Prometheus; the only file that knows its library.

The library is imported at the first scrape, in a thread, so that it does not delay the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.logger import Logger

from shiftergw.app.metric_counts import Entry, MetricCounts
from shiftergw.errors import Unavailable
from shiftergw.model.metrics import (
    JOBS,
    MACHINES,
    METRICS,
    REACTOR_LAG,
    REQUESTS_LEFT,
    SLOTS,
    TROUBLE,
    WORK,
    WORK_KNOWN,
    WORKER_ENDS,
)
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import within
from shiftergw.ports import ImageStore, JobEnd, JobQueue
from shiftergw.states import State
from shiftergw.web.render import Answer

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

STORE_TIMEOUT_SECONDS = 5.0
"""Seconds that the database may take at a scrape; Prometheus waits for ten by default."""

LAG_SECONDS = 1.0
"""Seconds between two measurements of the reactor's lag."""

STATES = (
    State.PENDING,
    State.PULLING,
    State.EXAMINATION,
    State.CONVERSION,
    State.TRANSFER,
    State.EXPIRING,
)
"""The states of work in flight."""


class MetricsPage:
    """Answers scrapes: looks at queue and workers, and renders all measurements."""

    _log = Logger()

    def __init__(
        self,
        counts: MetricCounts,
        store: ImageStore,
        queue: JobQueue,
        systems: Iterable[str],
        threads: Threads,
        clock: IReactorTime,
    ) -> None:
        """Render in `threads`; `systems` are the names of all systems."""
        self._counts = counts
        self._store = store
        self._queue = queue
        self._systems = tuple(systems)
        self._threads = threads
        self._clock = clock

    async def __call__(self) -> Answer:
        """Return the metrics; keep the last counts of work if the database does not answer."""
        self._measure_workers()
        try:
            counting = self._store.count_work()
            work = await within(STORE_TIMEOUT_SECONDS, self._clock, counting, _too_late)
        except Unavailable as error:
            self._counts.set(WORK_KNOWN, 0)
            self._log.debug("metrics without the work in flight: {error}", error=error)
        else:
            self._measure_work(work)
        return Answer(
            200, await self._threads.run(render, list(self._counts.entries())), CONTENT_TYPE
        )

    def _measure_work(self, work: Mapping[tuple[str, str], int]) -> None:
        self._counts.set(WORK_KNOWN, 1)
        for system in self._systems:
            for state in STATES:
                number = work.get((system, str(state)), 0)
                self._counts.set(WORK, number, system, str(state))

    def _measure_workers(self) -> None:
        machines = [machine for machine in self._queue.machines() if not machine.leaving]
        self._counts.set(MACHINES, len(machines))
        self._counts.set(SLOTS, sum(machine.slots for machine in machines))
        self._counts.set(JOBS, sum(len(machine.jobs) for machine in machines))
        for system in self._systems:
            trouble = self._queue.trouble(system)
            self._counts.set(TROUBLE, trouble is not None and trouble.grave, system)


def count_job_end(counts: MetricCounts, end: JobEnd) -> None:
    """Count a job whose worker ended without a result."""
    if end.loss:
        counts.add(WORKER_ENDS, 1, "yes" if end.died else "no")


def requests_left(counts: MetricCounts) -> dict[str, int]:
    """Return what registries still allow, by name, as they last told a worker."""
    return {
        labels[0]: int(numbers[0])
        for name, labels, numbers in counts.entries()
        if name == REQUESTS_LEFT.name
    }


def _too_late() -> Unavailable:
    return Unavailable("The database does not answer.")


class ReactorLag(Service):
    """Measures how late the reactor makes calls: that is how long it was busy."""

    def __init__(self, counts: MetricCounts, clock: IReactorTime) -> None:
        """Measure from the start to the stop of the service."""
        self._counts = counts
        self._clock = clock
        self._call: Any = None
        self._due = 0.0

    def startService(self) -> None:
        """Begin to measure."""
        super().startService()
        self._schedule()

    def stopService(self) -> None:
        """End the measurement."""
        super().stopService()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _schedule(self) -> None:
        self._due = self._clock.seconds() + LAG_SECONDS
        self._call = self._clock.callLater(LAG_SECONDS, self._measure)

    def _measure(self) -> None:
        lag = max(0.0, self._clock.seconds() - self._due)  # the clock may have been set back
        self._counts.observe(REACTOR_LAG, lag)
        self._schedule()


def render(entries: Iterable[Entry]) -> bytes:
    """Return series, and the memory and processor time of this process, as text. Blocks."""
    # Not needed before the first scrape, and not at all by workers.
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest  # noqa: PLC0415

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(entries))
    ProcessCollector(registry=registry)
    return bytes(generate_latest(registry))


class _Families:
    """The series of each metric, as a collector of the library."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = list(entries)

    def collect(self) -> Iterator[Any]:
        """Yield each metric with its series."""
        from prometheus_client.core import (  # noqa: PLC0415 - as in `render`
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        families: dict[str, Any] = {}
        kinds = {
            "counter": CounterMetricFamily,
            "gauge": GaugeMetricFamily,
            "histogram": HistogramMetricFamily,
        }
        for metric in METRICS.values():
            name, kind = metric.name.removesuffix("_total"), kinds[metric.kind]
            families[metric.name] = kind(name, metric.help, labels=metric.labels)
        for name, labels, numbers in self._entries:
            metric = METRICS[name]
            if metric.kind != "histogram":
                families[name].add_metric(labels, numbers[0])
                continue
            limits = [*map(str, metric.buckets), "+Inf"]
            buckets = list(zip(limits, accumulate(numbers[:-1]), strict=True))
            families[name].add_metric(labels, buckets, sum_value=numbers[-1])
        yield from families.values()
