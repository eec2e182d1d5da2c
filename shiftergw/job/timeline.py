"""Measure an attempt for the log line at its end: seconds by stage, and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shiftergw.model.records import Progress
from shiftergw.rules.work_ends import WorkMeasures

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


class Timeline:
    """Measures the stages of one attempt, and counts the bytes of its layers."""

    def __init__(self, clock: IReactorTime, stage: str) -> None:
        """Start measuring in `stage`."""
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._stage = stage
        self.start = self._stage_start = clock.seconds()
        self.layer_bytes = 0
        """Bytes of layers, including those from the cache."""
        self.downloaded_bytes = self._last_downloaded_bytes = 0
        """Bytes of layers that have arrived from the registry."""
        self.sent_bytes = 0
        """Bytes of the image that were sent to the system."""
        self.steps: Mapping[str, float] = {}
        """The seconds of each step of the build, which overlap: layers are read as they arrive."""

    def enter(self, stage: str) -> None:
        """Start measuring a stage, or continue with it if it has been measured before."""
        self._count()
        self._stage = stage

    def report(self, progress: Progress) -> None:
        """Count the bytes that a progress report contains."""
        if progress.stage == "fetch":
            self.layer_bytes = max(self.layer_bytes, progress.done)
            # A download of all layers that begins again counts from 0.
            begins_again = progress.downloaded_bytes < self._last_downloaded_bytes
            earlier = 0 if begins_again else self._last_downloaded_bytes
            self.downloaded_bytes += progress.downloaded_bytes - earlier
            self._last_downloaded_bytes = progress.downloaded_bytes
        elif progress.stage == "deliver":
            self.sent_bytes = max(self.sent_bytes, progress.done - progress.copied_bytes)

    def seconds(self) -> dict[str, float]:
        """Return the seconds that each stage has taken, in the order in which they began."""
        self._count()
        return dict(self._seconds)

    def measures(self) -> WorkMeasures:
        """Return what the attempt has taken until now."""
        return WorkMeasures(
            self.start,
            self._clock.seconds(),
            self.seconds(),
            self.steps,
            self.layer_bytes,
            self.downloaded_bytes,
            self.sent_bytes,
        )

    def _count(self) -> None:
        now = self._clock.seconds()
        seconds = max(0.0, now - self._stage_start)  # the clock may have been set back
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + seconds
        self._stage_start = now
