"""Keep the measurements of a process, and add those of workers to the gateway's.

A worker repeatedly sends its sums since its start. The gateway adds the increase since the last
report, so its own sums never decrease when a worker ends or is replaced.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from shiftergw.errors import printable
from shiftergw.model.metrics import METRICS, OTHER_LABEL, Metric

MOST_SERIES = 500
"""Combinations of labels of one metric; further ones are counted as `other`."""

MOST_LABEL = 100
"""Characters of a label's value."""

Series = tuple[str, tuple[str, ...]]
"""The name of a metric, and the values of its labels."""

Entry = list[Any]
"""A series as JSON: name, values of labels, numbers."""


class MetricCounts:
    """Keeps all measurements of a process; implements `Metrics`.

    A series has one number; that of a histogram has the count of each bucket, and then the sum.
    """

    def __init__(self) -> None:
        """Start with no measurements."""
        self._numbers: dict[Series, list[float]] = {}
        self._series_counts: Counter[str] = Counter()
        self._sources: dict[str, dict[Series, list[float]]] = {}

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """See `Metrics`."""
        self._series(metric, labels)[0] += amount

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """See `Metrics`."""
        self._series(metric, labels)[0] = value

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """See `Metrics`."""
        numbers = self._series(metric, labels)
        numbers[bisect_left(metric.buckets, value)] += 1
        numbers[-1] += value

    def entries(self) -> Iterator[Entry]:
        """Yield all series as JSON."""
        for (name, labels), numbers in self._numbers.items():
            yield [name, list(labels), list(numbers)]

    def merge(self, source: str, entries: object) -> None:
        """Add what a worker has sent; `source` is a name that no other process has ever had.

        Entries that are invalid, or of another version of the program, are left out.
        """
        earlier = self._sources.setdefault(source, {})
        for entry in entries if isinstance(entries, list) else ():
            series = _parse(entry)
            if series is None:
                continue
            metric, labels, numbers = series
            if metric.kind == "gauge":
                self.set(metric, numbers[0], *labels)
                continue
            last = earlier.get((metric.name, labels), [0.0] * len(numbers))
            increases = [new - old for new, old in zip(numbers, last, strict=True)]
            if min(increases) < 0:
                continue
            earlier[metric.name, labels] = numbers
            totals = self._series(metric, labels)
            for index, increase in enumerate(increases):
                totals[index] += increase

    def forget(self, source: str) -> None:
        """Forget what a worker that has ended has sent; the sums keep it."""
        self._sources.pop(source, None)

    def _series(self, metric: Metric, labels: tuple[str, ...]) -> list[float]:
        series = metric.name, labels
        numbers = self._numbers.get(series)
        if numbers is not None:
            return numbers
        if self._series_counts[metric.name] >= MOST_SERIES:
            series = metric.name, (OTHER_LABEL,) * len(labels)
        else:
            self._series_counts[metric.name] += 1
        return self._numbers.setdefault(series, [0.0] * _length(metric))


def _length(metric: Metric) -> int:
    return len(metric.buckets) + 2 if metric.kind == "histogram" else 1


def _parse(entry: object) -> tuple[Metric, tuple[str, ...], list[float]] | None:
    """Return the series of an entry, or None if it is invalid."""
    match entry:
        case [str() as name, list() as labels, list() as numbers]:
            metric = METRICS.get(name)
        case _:
            return None
    if metric is None or len(labels) != len(metric.labels) or len(numbers) != _length(metric):
        return None
    if not all(isinstance(label, str) and len(label) <= MOST_LABEL for label in labels):
        return None
    if not all(type(number) in {int, float} and _is_count(number) for number in numbers):
        return None
    return metric, tuple(map(printable, labels)), list(map(float, numbers))


def _is_count(number: float) -> bool:
    return math.isfinite(number) and number >= 0


def batches(entries: Sequence[Entry], size: int) -> Iterator[list[Entry]]:
    """Yield groups of entries whose text has at most about `size` characters each."""
    batch: list[Entry] = []
    length = 0
    for entry in entries:
        text_length = len(str(entry))
        if batch and length + text_length > size:
            yield batch
            batch, length = [], 0
        batch.append(entry)
        length += text_length
    if batch:
        yield batch
