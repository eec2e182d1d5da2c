"""Estimate how long a pull will still take, from its own rates and from earlier pulls.

The stage in work, and the reading of layers beside the download, are measured while they run. What
the stages after them will take is known from earlier pulls of the system: seconds for each byte of
compressed layers. If a stage has never been measured, there is no estimate: none is better than a
wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from shiftergw.model.names import is_count, is_time
from shiftergw.model.records import Progress

_AFTER_WRITING = ("check", "deliver")

_LATER_STEPS: Mapping[str, tuple[str, ...]] = {
    "pack": ("plan", "compose", *_AFTER_WRITING),
    "index": ("plan", "squash", *_AFTER_WRITING),
    "compose": _AFTER_WRITING,
    "squash": _AFTER_WRITING,
    "check": ("deliver",),
    "verify": ("deliver",),
    "deliver": (),
    "compare": (),
}
"""The steps that follow a stage, by the names of progress and of measured seconds."""

_COMPARISON = "remote-check"
"""The step in which a remote system compares a delivered file: a part of the step `deliver`."""

_WEIGHT_OF_OLDER = 0.8
"""The weight of a pull relative to that of the next one, which is newer."""

REPORTS = 20
"""Earlier pulls that count; the weight of older ones is below 2 %."""


def learn_costs(reports: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the seconds that each step takes for each byte of compressed layers.

    `reports` are those of earlier pulls of a system, newest first (`ImageRecord.report`). Pulls of
    earlier versions, and of other programs, lack what is needed, and do not count.
    """
    seconds: dict[str, float] = {}
    sizes: dict[str, float] = {}
    weight = 1.0
    for report in reports:
        size = report.get("layer_bytes")
        if not is_count(size) or not size:
            continue
        for step, duration in _steps_of(report).items():
            seconds[step] = seconds.get(step, 0.0) + weight * duration
            sizes[step] = sizes.get(step, 0.0) + weight * size
        weight *= _WEIGHT_OF_OLDER
    return {step: seconds[step] / sizes[step] for step in seconds}


def _steps_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of the steps of a pull that built its image, and of its delivery."""
    steps, stages = report.get("steps"), report.get("seconds")
    if not isinstance(steps, Mapping) or not isinstance(stages, Mapping):
        return {}
    durations = {**steps, "deliver": stages.get("TRANSFER")}
    return {step: float(value) for step, value in durations.items() if is_time(value)}


def time_left(
    progress: Progress,
    reading: Progress,
    costs: Mapping[str, float],
    layer_bytes: int,
) -> float | None:
    """Return the seconds until the end of a pull, or None if they are not known.

    `reading` is the progress of the stage that reads the layers while `progress` is that of their
    download. Both have their rates. `layer_bytes` are those of all compressed layers.
    """
    current = progress
    seconds: float | None = _remaining_seconds(progress)
    if progress.stage == "fetch":
        current, download_seconds = reading, seconds
        seconds = _remaining_seconds(reading)
        if download_seconds is None or seconds is None:
            return None
        seconds = max(download_seconds, seconds)
    elif seconds is None and current.total:
        step = _COMPARISON if current.stage == "compare" else current.stage
        if step in costs:
            seconds = costs[step] * layer_bytes * (1 - current.done / current.total)
    later_steps = _LATER_STEPS.get(current.stage)
    if seconds is None or later_steps is None or not all(step in costs for step in later_steps):
        return None
    later_costs = sum(costs[step] for step in later_steps)
    if current.stage == "deliver":
        later_costs += costs.get(_COMPARISON, 0.0)  # local systems have none
    return seconds + later_costs * layer_bytes


def _remaining_seconds(progress: Progress) -> float | None:
    """Return the seconds until the end of a stage by its rate, or None if that is not known."""
    remaining_bytes = progress.total - progress.done
    if not progress.total:
        return None
    if remaining_bytes <= 0:
        return 0.0
    seconds = remaining_bytes / progress.rate if progress.rate else math.inf
    return seconds if is_time(seconds) else None
