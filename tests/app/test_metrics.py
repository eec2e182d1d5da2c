"""A scrape shows all metrics in the format of Prometheus, whatever the database does."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.app.measured_store import with_measurements
from shiftergw.app.metric_counts import MetricCounts
from shiftergw.app.metrics import (
    LAG_SECONDS,
    STORE_TIMEOUT_SECONDS,
    MetricsPage,
    ReactorLag,
    count_job_end,
    render,
    requests_left,
)
from shiftergw.errors import NotFound, Unavailable
from shiftergw.model.metrics import (
    METRICS,
    REACTOR_LAG,
    REQUEST_SECONDS,
    REQUESTS_LEFT,
    SENT_BYTES,
    SLOTS,
)
from shiftergw.model.records import WorkerMachine
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import ImageStore, JobEnd, JobQueue, QueueTrouble
from tests.app.test_metric_counts import number_of

ROOT = Path(__file__).parent.parent.parent


class FakeStore:
    """Counts work, or is not available; `waiting` never answers."""

    error: Exception | None = None
    ready_states = ("READY",)

    async def count_work(self) -> Mapping[tuple[str, str], int]:
        """Return the work, or fail."""
        if self.error is not None:
            raise self.error
        return {("alpha", "PENDING"): 4, ("gone", "PENDING"): 9}

    async def waiting(self) -> None:
        """Wait for ever."""
        await Deferred[None]()


class FakeQueue:
    """Has one machine that works, one that leaves, and a system without workers."""

    def machines(self) -> Sequence[WorkerMachine]:
        """Return the machines."""
        return [
            WorkerMachine("a", "1", ("alpha",), 4, ("k",), False, 0),
            WorkerMachine("b", "1", ("alpha",), 9, ("k",), True, 0),
        ]

    def trouble(self, system: str) -> QueueTrouble | None:
        """Return trouble for one of the systems."""
        return QueueTrouble("No worker.", "", 0, grave=system == "beta")


def page_of(counts: MetricCounts, store: Any, threads: Threads, clock: Any = None) -> MetricsPage:
    """Return the page of a gateway with two systems."""
    queue = cast("JobQueue", FakeQueue())
    systems = ("alpha", "beta")
    return MetricsPage(counts, cast("ImageStore", store), queue, systems, threads, clock or Clock())


def samples_of(body: bytes) -> dict[str, float]:
    """Return the value of each series."""
    lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
    return {name: float(number) for name, _, number in (line.rpartition(" ") for line in lines)}


@pytest_twisted.ensureDeferred
async def test_a_scrape(threads: Threads) -> None:
    """All kinds of metrics are shown, and the work of each system in each state."""
    counts = MetricCounts()
    counts.add(SENT_BYTES, 12, "alpha")
    counts.observe(REQUEST_SECONDS, 0.007, "lookup", "2xx")
    answer = await page_of(counts, FakeStore(), threads)()
    assert answer.content_type == b"text/plain; version=0.0.4; charset=utf-8"
    samples = samples_of(answer.body)
    expected_samples = {
        'shiftergw_sent_bytes_total{system="alpha"}': 12,
        'shiftergw_request_seconds_bucket{le="0.005",route="lookup",status="2xx"}': 0,
        'shiftergw_request_seconds_bucket{le="0.01",route="lookup",status="2xx"}': 1,
        'shiftergw_request_seconds_bucket{le="+Inf",route="lookup",status="2xx"}': 1,
        'shiftergw_request_seconds_sum{route="lookup",status="2xx"}': 0.007,
        'shiftergw_work{state="PENDING",system="alpha"}': 4,
        'shiftergw_work{state="TRANSFER",system="beta"}': 0,
        "shiftergw_work_known": 1,
        "shiftergw_worker_machines": 1,
        "shiftergw_worker_slots": 4,
        "shiftergw_worker_jobs": 1,
        'shiftergw_worker_trouble{system="alpha"}': 0,
        'shiftergw_worker_trouble{system="beta"}': 1,
    }
    assert {name: samples[name] for name in expected_samples} == expected_samples
    assert samples["process_resident_memory_bytes"] > 1e6
    assert "gone" not in answer.body.decode()


@pytest_twisted.ensureDeferred
async def test_a_scrape_while_the_database_is_away(threads: Threads) -> None:
    """A database that fails or hangs delays a scrape for a few seconds, and does not prevent it."""
    counts, clock = MetricCounts(), Clock()
    store = FakeStore()
    store.error = Unavailable("The database is away.")
    samples = samples_of((await page_of(counts, store, threads)()).body)
    assert samples["shiftergw_work_known"] == 0
    store.count_work = store.waiting  # type: ignore[assignment,method-assign]
    scrape = Deferred.fromCoroutine(page_of(counts, store, threads, clock)())
    clock.advance(STORE_TIMEOUT_SECONDS)
    assert samples_of((await scrape).body)["shiftergw_work_known"] == 0


def test_the_lag_of_the_reactor() -> None:
    """A reactor that was busy makes its calls late; the measurement ends with the service."""
    counts, clock = MetricCounts(), Clock()
    lag = ReactorLag(counts, clock)
    lag.startService()
    clock.advance(LAG_SECONDS)
    clock.advance(LAG_SECONDS + 0.7)
    lag.stopService()
    assert clock.getDelayedCalls() == []
    numbers = {entry[0]: entry[2] for entry in counts.entries()}[REACTOR_LAG.name]
    assert (numbers[0], numbers[-1]) == (1, pytest.approx(0.7))
    ReactorLag(counts, clock).stopService()


def test_lost_jobs() -> None:
    """Jobs that were done do not count as lost."""
    counts = MetricCounts()
    for end in (JobEnd("k"), JobEnd("k", "", "was killed", died=True), JobEnd("k", "", "left")):
        count_job_end(counts, end)
    losses = METRICS["shiftergw_worker_losses_total"]
    assert (number_of(counts, losses, "yes"), number_of(counts, losses, "no")) == (1, 1)


@pytest_twisted.ensureDeferred
async def test_calls_of_the_store() -> None:
    """Each call is measured by its name, also if it fails; everything else is passed through."""
    counts, clock, inner = MetricCounts(), Clock(), FakeStore()
    store: Any = with_measurements(cast("ImageStore", inner), counts, clock)
    seconds = METRICS["shiftergw_store_seconds"]
    errors = METRICS["shiftergw_store_unavailable_total"]
    assert (await store.count_work())["alpha", "PENDING"] == 4
    assert number_of(counts, seconds, "count_work") == 1
    inner.error = NotFound("gone")
    with pytest.raises(NotFound):
        await store.count_work()
    inner.error = Unavailable("away")
    with pytest.raises(Unavailable):
        await store.count_work()
    assert number_of(counts, seconds, "count_work") == 3
    assert number_of(counts, errors, "count_work") == 1
    assert store.ready_states == ("READY",)


def names_in(text: str) -> set[str]:
    """Return the names of metrics in a text, such as a query."""
    return set(re.findall(r"\b(?:shiftergw|process)_[a-z_]+\b", text))


def shown_names() -> set[str]:
    """Return the names of all series that a gateway can show."""
    names = {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"}
    assert names <= names_in(render([]).decode())
    for metric in METRICS.values():
        endings = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        names |= {metric.name + ending for ending in endings}
    return names


def test_samples_name_metrics_that_exist() -> None:
    """Each query of the dashboard and of the alert rules names metrics that are there."""
    directory = ROOT / "conf" / "monitoring"
    dashboard = json.loads((directory / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = re.findall(r"expr: (.*)", (directory / "prometheus-alerts.yml").read_text())
    assert len(rules) > 5
    for query in (*queries, *rules):
        assert names_in(query) <= shown_names() | {"shiftergw_admin"}, query
        assert names_in(query) or "up{" in query, query


def test_each_metric_is_documented() -> None:
    """The table of the manual has every metric with its labels, and no other."""
    rows = re.findall(
        r"^\| `(shiftergw_\w+)` \| (\w+) \| ([^|]*)\|",
        (ROOT / "docs" / "operating.md").read_text(),
        re.MULTILINE,
    )
    documented_metrics = {name: (kind, re.findall(r"`(\w+)`", text)) for name, kind, text in rows}
    assert documented_metrics == {
        metric.name: (metric.kind, list(metric.labels)) for metric in METRICS.values()
    }


def test_requests_left() -> None:
    """Only registries that count requests have told a worker what they still allow."""
    counts = MetricCounts()
    counts.set(REQUESTS_LEFT, 87, "hub")
    counts.set(SLOTS, 3)
    assert requests_left(counts) == {"hub": 87}
