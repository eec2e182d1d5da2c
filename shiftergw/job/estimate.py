"""The rate of a pull's stages, and the time that it will still take, while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shiftergw.job.stage_rate import StageRate
from shiftergw.model.records import Progress
from shiftergw.rules.time_left import time_left

LONG_WINDOW = 30.0
"""Seconds over which the rate for an estimate is measured; layers are read in bursts."""


class Estimate:
    """Measures one attempt: the stage that users see, and the reading of layers beside it."""

    def __init__(self) -> None:
        """Start without knowledge of earlier pulls."""
        self._rate = StageRate()
        self._long_rates: dict[str, StageRate] = {}
        self._reading = Progress()
        self._costs: Mapping[str, float] = {}
        self._layer_bytes = 0

    def learn(self, costs: Mapping[str, float], layer_bytes: int) -> None:
        """Use the costs of earlier pulls for an image with `layer_bytes` of compressed layers."""
        self._costs, self._layer_bytes = costs, layer_bytes

    def add(self, progress: Progress, now: float) -> None:
        """Take note of the progress of the stage."""
        self._rate.add(progress.stage, progress.done, now)
        self._add_long(progress, now)

    def add_reading(self, progress: Progress, now: float) -> None:
        """Take note of how far the layers are read while they arrive."""
        self._reading = progress.after(self._reading)
        self._add_long(self._reading, now)

    def _add_long(self, progress: Progress, now: float) -> None:
        rate = self._long_rates.setdefault(progress.stage, StageRate(LONG_WINDOW))
        rate.add(progress.stage, progress.done, now)

    def complete(self, progress: Progress, now: float) -> Progress:
        """Return the progress of the stage with its rate and the time left of the whole pull."""
        if not progress.stage:
            return progress
        self.add(progress, now)  # a stage that stands still slows down
        stage, reading = self._with_long_rate(progress), self._with_long_rate(self._reading)
        seconds = time_left(stage, reading, self._costs, self._layer_bytes)
        rounded_seconds = None if seconds is None else round(seconds, 1)
        return replace(progress, rate=self._rate.rate(), time_left=rounded_seconds)

    def _with_long_rate(self, progress: Progress) -> Progress:
        rate = self._long_rates.get(progress.stage)
        return progress if rate is None else replace(progress, rate=rate.rate())
