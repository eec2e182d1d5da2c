"""How fast a stage of a pull works: the bytes of the last seconds."""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 10.0
"""Seconds over which a rate is measured: readable, and soon true after a change."""

LEAST_SECONDS = 2.0
"""Seconds that a stage must have worked before it has a rate."""

SAMPLE_SECONDS = 0.4
"""Seconds between two samples at least: attempts write their progress every half second."""


class StageRate:
    """Measures the rate of one stage after the other, from samples of the bytes done."""

    def __init__(self, seconds: float = WINDOW_SECONDS) -> None:
        """Measure the rate of the last `seconds`; start without a stage."""
        self._seconds = seconds
        self._stage = ""
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, stage: str, done: int, now: float) -> None:
        """Add a sample; a new stage starts anew, with `done` as the bytes that cost no time."""
        if stage != self._stage or (self._samples and now < self._samples[-1][0]):
            self._stage = stage
            self._samples.clear()
        elif self._samples and now - self._samples[-1][0] < SAMPLE_SECONDS:
            return
        self._samples.append((now, done))
        # The oldest sample is the last one before the window, so that the window is covered.
        while len(self._samples) > 1 and self._samples[1][0] <= now - self._seconds:
            self._samples.popleft()

    def rate(self) -> int | None:
        """Return the bytes a second, or None if the stage has worked for too short a time."""
        if not self._samples:
            return None
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        if end - start < LEAST_SECONDS:
            return None
        return max(0, round((last - first) / (end - start)))
