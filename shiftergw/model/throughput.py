"""What workers have done in a time, for operators."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PERIOD_SECONDS = 600.0
"""Seconds of one entry of the store."""

KEEP_SECONDS = 2 * 86400.0
"""Seconds for which entries are kept: a day is shown, and clocks of machines differ."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Pulls that have ended since a time, by their outcome.

    `image_bytes` are those of images that became READY, `layer_bytes` those of downloaded layers.
    """

    since: float
    pulls: int = 0
    failures: int = 0
    image_bytes: int = 0
    layer_bytes: int = 0


def period_of(now: float) -> int:
    """Return the start of the period that a time is in."""
    return int(now // PERIOD_SECONDS * PERIOD_SECONDS)


def total(since: float, entries: Iterable[Throughput]) -> Throughput:
    """Return the sum of the entries that began at or after a time."""
    recent = [entry for entry in entries if entry.since >= since]
    return Throughput(
        since,
        sum(entry.pulls for entry in recent),
        sum(entry.failures for entry in recent),
        sum(entry.image_bytes for entry in recent),
        sum(entry.layer_bytes for entry in recent),
    )
