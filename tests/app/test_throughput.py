"""The throughput of the last hour and the last day, from sums that only grow."""

from __future__ import annotations

from twisted.internet.task import Clock

from shiftergw.app.metric_counts import MetricCounts
from shiftergw.app.throughput import SAMPLE_SECONDS, ThroughputHistory
from shiftergw.model.metrics import ATTEMPTS, IMAGE_BYTES, LAYER_BYTES, REQUESTS_LEFT, SLOTS


def advance(clock: Clock, seconds: float) -> None:
    """Let samples be taken for a time."""
    clock.pump([SAMPLE_SECONDS] * int(seconds / SAMPLE_SECONDS))


def count(counts: MetricCounts) -> None:
    """Count a pull, a failure, and other things that are no pulls."""
    for kind, outcome in (("pull", "READY"), ("pull", "FAILURE"), ("acl", "READY")):
        counts.add(ATTEMPTS, 1, "mycluster", kind, outcome, "")
    counts.add(IMAGE_BYTES, 100, "mycluster")
    counts.add(LAYER_BYTES, 40, "registry")
    counts.add(LAYER_BYTES, 9, "cache")
    counts.set(SLOTS, 3)


def test_spans() -> None:
    """What was counted before a span is not part of it."""
    clock, counts = Clock(), MetricCounts()
    history = ThroughputHistory(counts, clock)
    history.startService()
    count(counts)
    advance(clock, 2 * 86400)
    count(counts)
    advance(clock, 7200)
    count(counts)
    counts.set(REQUESTS_LEFT, 87, "hub")
    measurements = history.measurements()
    hour, day = measurements.spans
    assert (hour.pulls, hour.failures, hour.image_bytes, hour.layer_bytes) == (1, 1, 100, 40)
    assert (day.pulls, day.failures, day.image_bytes, day.layer_bytes) == (2, 2, 200, 80)
    assert (clock.seconds() - hour.since, clock.seconds() - day.since) == (3600, 86400)
    assert measurements.requests_left == {"hub": 87}
    history.stopService()
    history.stopService()
    assert clock.getDelayedCalls() == []


def test_a_gateway_that_has_just_started() -> None:
    """There is one span, from the start, also if the clock was set meanwhile."""
    clock, counts = Clock(), MetricCounts()
    history = ThroughputHistory(counts, clock)
    count(counts)
    (span,) = history.measurements().spans
    assert (span.since, span.pulls) == (0.0, 1)
    clock.advance(10 * 86400)
    (span,) = history.measurements().spans
    assert span.pulls == 1
