"""Tell where the time of a pull goes: wall time and CPU time of each program, stage by stage."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tests.bench.meters import Look

DELIVERY = "TRANSFER"
"""The state of the record in which the image is delivered."""

BEFORE = "until all layers are read"
"""The part of a pull before those that have names: download, and indexing or packing."""

_IN_SEQUENCE = ("plan", "squash", "compose", "check")
"""Steps of a build that follow each other, and the reading of the layers."""


@dataclass(frozen=True)
class Part:
    """A part of a pull: its wall seconds, and the CPU seconds of each program in it."""

    name: str
    wall: float
    cpu: Mapping[str, float]

    def to_document(self) -> dict[str, Any]:
        """Return the part as an object of JSON."""
        return {"name": self.name, "wall": self.wall, "cpu": dict(self.cpu)}


def profile(
    looks: Sequence[Look], stages: Mapping[str, float], steps: Mapping[str, float]
) -> list[Part]:
    """Return the parts of a pull, which begins with the first look and ends with the last.

    `stages` and `steps` are the seconds that its record has. The parts are laid backward from the
    end, so the first one has what remains.
    """
    parts = [(name, steps[name]) for name in _IN_SEQUENCE if name in steps]
    parts.append((DELIVERY, stages.get(DELIVERY, 0.0)))
    begin, end = looks[0].time, looks[-1].time
    bounds = [(end, "")]
    for name, seconds in reversed(parts):
        bounds.append((max(begin, bounds[-1][0] - seconds), name))
    bounds.append((begin, BEFORE))
    return [
        Part(name, until - since, _cpu_between(looks, since, until))
        for (since, name), (until, _) in pairwise(reversed(bounds))
    ]


def _cpu_between(looks: Sequence[Look], since: float, until: float) -> dict[str, float]:
    """Return the CPU seconds of each program between two times."""
    before, after = _cpu_at(looks, since), _cpu_at(looks, until)
    return {name: max(0.0, seconds - before.get(name, 0.0)) for name, seconds in after.items()}


def _cpu_at(looks: Sequence[Look], time: float) -> Mapping[str, float]:
    """Return the CPU seconds at the look that is nearest to a time."""
    return min(looks, key=lambda look: abs(look.time - time)).cpu


def median_profile(profiles: Sequence[Sequence[Part]]) -> list[Part]:
    """Return the medians of the parts that all rounds have."""
    rounds = [{part.name: part for part in parts} for parts in profiles]
    return [
        _median_part([parts[name] for parts in rounds])
        for name in (rounds[0] if rounds else ())
        if all(name in parts for parts in rounds)
    ]


def _median_part(parts: Sequence[Part]) -> Part:
    programs = dict.fromkeys(name for part in parts for name in part.cpu)
    return Part(
        parts[0].name,
        statistics.median(part.wall for part in parts),
        {name: statistics.median(part.cpu.get(name, 0.0) for part in parts) for name in programs},
    )


def programs_of(parts: Sequence[Part]) -> Iterator[str]:
    """Yield the programs that have taken CPU time, in the order in which they appear."""
    names = dict.fromkeys(name for part in parts for name in part.cpu)
    return (name for name in names if any(part.cpu.get(name) for part in parts))
