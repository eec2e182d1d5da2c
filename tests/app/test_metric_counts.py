"""Measurements add up, those of workers too, and their number is bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.task import Clock

from shiftergw.app.metric_counts import MOST_SERIES, MetricCounts, batches
from shiftergw.app.metric_reports import LINE_BYTES, REPORT_SECONDS, MetricReports
from shiftergw.model.metrics import (
    ATTEMPTS,
    JOBS,
    METRICS,
    OTHER_LABEL,
    REACTOR_LAG,
    SENT_BYTES,
    WORKER_MEMORY,
    Metric,
)
from shiftergw.work.worker_protocol import LINE_LIMIT


def number_of(counts: MetricCounts, metric: Metric, *labels: str) -> float:
    """Return the first number of a series."""
    numbers = {(name, *values): n for name, values, n in counts.entries()}
    return float(numbers[metric.name, *labels][0])


def test_sums_and_histograms() -> None:
    """A counter adds, a gauge keeps the last value, a histogram counts by bucket and adds."""
    counts = MetricCounts()
    counts.add(SENT_BYTES, 5, "alpha")
    counts.add(SENT_BYTES, 6, "alpha")
    counts.set(JOBS, 3)
    counts.set(JOBS, 2)
    for value in (0.0005, 0.001, 0.7, 99):
        counts.observe(REACTOR_LAG, value)
    entries = {entry[0]: entry[2] for entry in counts.entries()}
    assert entries[SENT_BYTES.name] == [11]
    assert entries[JOBS.name] == [2]
    assert entries[REACTOR_LAG.name] == [2, 0, 0, 0, 0, 0, 1, 0, 0, 1, pytest.approx(99.7015)]


def test_a_sum_never_goes_back() -> None:
    """Workers send sums again and again, end and are replaced; what they did stays counted."""
    gateway, worker = MetricCounts(), MetricCounts()
    for _ in range(3):
        worker.add(SENT_BYTES, 10, "alpha")
        worker.observe(REACTOR_LAG, 0.7)
        entries = json.loads(json.dumps(list(worker.entries())))
        gateway.merge("worker 1", entries)
        gateway.merge("worker 1", entries)
    assert number_of(gateway, SENT_BYTES, "alpha") == 30
    gateway.merge("worker 1", [[SENT_BYTES.name, ["alpha"], [7]]])  # less than it has sent before
    gateway.forget("worker 1")
    gateway.forget("worker 1")
    gateway.merge("worker 2", [[SENT_BYTES.name, ["alpha"], [7]]])
    assert number_of(gateway, SENT_BYTES, "alpha") == 37
    gateway.merge("worker 2", [[JOBS.name, [], [5]]])
    assert number_of(gateway, JOBS) == 5


@pytest.mark.parametrize(
    "entries",
    [
        None,
        7,
        {"a": 1},
        [None],
        [[]],
        [["shiftergw_nosuch_total", [], [1]]],
        [[SENT_BYTES.name, [], [1]]],
        [[SENT_BYTES.name, ["a", "b"], [1]]],
        [[SENT_BYTES.name, [7], [1]]],
        [[SENT_BYTES.name, ["a" * 101], [1]]],
        [[SENT_BYTES.name, ["a"], []]],
        [[SENT_BYTES.name, ["a"], [1, 2]]],
        [[SENT_BYTES.name, ["a"], ["1"]]],
        [[SENT_BYTES.name, ["a"], [True]]],
        [[SENT_BYTES.name, ["a"], [-1]]],
        [[SENT_BYTES.name, ["a"], [float("nan")]]],
        [[SENT_BYTES.name, ["a"], [float("inf")]]],
        [[["x"], ["a"], [1]]],
    ],
)
def test_invalid_measurements_are_left_out(entries: Any) -> None:
    """A worker of another version, or with a fault, changes no measurement."""
    counts = MetricCounts()
    counts.merge("worker", entries)
    assert list(counts.entries()) == []


def test_the_number_of_series_is_bounded() -> None:
    """Labels beyond the limit are counted together; earlier series go on."""
    counts = MetricCounts()
    for number in range(MOST_SERIES + 10):
        counts.add(ATTEMPTS, 1, "alpha", "pull", "FAILURE", f"cause {number}")
    counts.add(ATTEMPTS, 1, "alpha", "pull", "FAILURE", "cause 0")
    assert len(list(counts.entries())) == MOST_SERIES + 1
    assert number_of(counts, ATTEMPTS, *4 * [OTHER_LABEL]) == 10
    assert number_of(counts, ATTEMPTS, "alpha", "pull", "FAILURE", "cause 0") == 2


def test_names_follow_the_conventions() -> None:
    """Counters end in `_total`, and what has a unit names it."""
    for metric in METRICS.values():
        assert metric.name.startswith("shiftergw_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(metric.buckets)
        if metric.kind == "histogram":
            assert metric.name.endswith(("_seconds", "_bytes"))


def test_a_worker_reports_during_a_job_and_at_its_end() -> None:
    """A report has what has changed, as sums, in lines that the protocol can carry."""
    clock, counts = Clock(), MetricCounts()
    reports: list[dict[str, Any]] = []
    report = MetricReports(counts, reports.append, clock)
    with report:
        counts.add(SENT_BYTES, 1, "alpha")
        clock.advance(REPORT_SECONDS)
        assert reports == [{"metrics": [[SENT_BYTES.name, ["alpha"], [1]]]}]
        clock.advance(REPORT_SECONDS)
        assert len(reports) == 1
    assert clock.getDelayedCalls() == []
    names = [entry[0] for message in reports[1:] for entry in message["metrics"]]
    assert names == [WORKER_MEMORY.name]
    with report:
        for number in range(200):
            counts.add(ATTEMPTS, 1, "alpha", "pull", "FAILURE", f"cause {number}")
    assert all(len(json.dumps(message)) < LINE_LIMIT for message in reports)
    entries = [entry for message in reports[2:] for entry in message["metrics"]]
    assert len(entries) == 201


def test_batches() -> None:
    """An entry that is longer than a batch has one of its own."""
    long_entry = ["x" * LINE_BYTES, [], []]
    assert list(batches([], 10)) == []
    assert list(batches([long_entry, ["a"], ["b"]], LINE_BYTES)) == [[long_entry], [["a"], ["b"]]]
