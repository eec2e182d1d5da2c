"""Keep what the gateway has counted in the last day, for the page of operators.

The counts of `MetricCounts` are sums since the start of the process. Samples of these sums, one
every few minutes, tell what has been added since then.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.application.service import Service

from shiftergw.app.metric_counts import MetricCounts
from shiftergw.model.metrics import ATTEMPTS, IMAGE_BYTES, LAYER_BYTES, REQUESTS_LEFT
from shiftergw.service.site_report import Measurements, Throughput

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

SAMPLE_SECONDS = 300.0
"""Seconds between two samples."""

SPANS = (3600.0, 86400.0)
"""The spans that are shown, in seconds; the longest one is how long samples are kept."""


class Sums(NamedTuple):
    """What was counted from the start of the process until a time."""

    time: float
    pulls: int = 0
    failures: int = 0
    image_bytes: int = 0
    layer_bytes: int = 0


class ThroughputHistory(Service):
    """Takes samples from its start to its stop."""

    def __init__(self, counts: MetricCounts, clock: IReactorTime) -> None:
        """Take samples of `counts`."""
        self._counts = counts
        self._clock = clock
        self._samples: deque[Sums] = deque(
            [Sums(clock.seconds())], maxlen=int(max(SPANS) / SAMPLE_SECONDS) + 1
        )
        self._call: Any = None

    def startService(self) -> None:
        """Begin to take samples."""
        super().startService()
        self._call = self._clock.callLater(SAMPLE_SECONDS, self._sample)

    def stopService(self) -> None:
        """Take no more samples."""
        super().stopService()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _sample(self) -> None:
        self._samples.append(self._sums())
        self._call = self._clock.callLater(SAMPLE_SECONDS, self._sample)

    def measurements(self) -> Measurements:
        """Return the throughput of each span, and what registries still allow."""
        sums = self._sums()
        starts = dict.fromkeys(self._start_of(seconds, sums.time) for seconds in SPANS)
        spans = [
            Throughput(
                start.time,
                sums.pulls - start.pulls,
                sums.failures - start.failures,
                sums.image_bytes - start.image_bytes,
                sums.layer_bytes - start.layer_bytes,
            )
            for start in starts
        ]
        requests_left = {
            labels[0]: int(numbers[0])
            for name, labels, numbers in self._counts.entries()
            if name == REQUESTS_LEFT.name
        }
        return Measurements(spans, requests_left)

    def _start_of(self, seconds: float, now: float) -> Sums:
        """Return the first sample within a span; the last one if the clock was set."""
        samples = (sample for sample in self._samples if sample.time >= now - seconds)
        return next(samples, self._samples[-1])

    def _sums(self) -> Sums:
        pulls = failures = image_bytes = layer_bytes = 0.0
        for name, labels, numbers in self._counts.entries():
            if name == ATTEMPTS.name and labels[1:3] == ["pull", "READY"]:
                pulls += numbers[0]
            elif name == ATTEMPTS.name and labels[1:3] == ["pull", "FAILURE"]:
                failures += numbers[0]
            elif name == IMAGE_BYTES.name:
                image_bytes += numbers[0]
            elif name == LAYER_BYTES.name and labels == ["registry"]:
                layer_bytes += numbers[0]
        now = self._clock.seconds()
        return Sums(now, int(pulls), int(failures), int(image_bytes), int(layer_bytes))
