"""Port to the metrics: what counts events, and measures times and sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from shiftergw.model.metrics import Metric


class Metrics(Protocol):
    """Takes measurements; each method is cheap and never fails.

    `labels` are the values of the metric's labels, in their order. They come from bounded sets: no
    name of a user, an image or a file.
    """

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """Add to a counter."""
        ...

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        ...

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Count a value in a histogram."""
        ...


class NoMetrics:
    """Drops all measurements."""

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """Do nothing."""

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Do nothing."""

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Do nothing."""


NO_METRICS = NoMetrics()
"""For parts whose measurements nobody collects, such as those of commands."""
