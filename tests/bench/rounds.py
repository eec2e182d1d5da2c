"""Measure scenarios: rounds in which all variants take turns."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp

from tests.bench.commands import NoMeasurement
from tests.bench.figures import Measurement, Sample
from tests.bench.gateway import PullFailed
from tests.bench.scenarios import Scenario, Variants
from tests.bench.workshop import Workshop

Announce = Callable[[str], None]
"""Receives a line about what is measured now."""


def measure_scenario(
    scenario: Scenario, workshop: Workshop, rounds: int, announce: Announce
) -> Measurement:
    """Prepare a scenario and measure its variants."""
    announce(f"{scenario.name}: preparing")
    with ExitStack() as stack:
        image, variants = scenario.prepare(workshop, stack)
        description = image.describe()
        announce(f"{scenario.name}: {description}")
        samples, reasons, failures = take_turns(
            variants, rounds, workshop.where, lambda line: announce(f"{scenario.name}: {line}")
        )
    return Measurement(scenario.name, scenario.title, description, samples, reasons, failures)


def take_turns(
    variants: Variants, rounds: int, where: Path, announce: Announce
) -> tuple[dict[str, list[Sample]], dict[str, str], Sequence[str]]:
    """Run each variant once in each round, in its own empty directory below `where`.

    Each round begins with another variant. Returns the samples by variant, the reasons why others
    have none, and those of them that should have worked. A variant that cannot be measured in one
    round has no samples at all.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    reasons: dict[str, str] = {}
    failures: list[str] = []
    names = list(variants)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            if name in reasons:
                continue
            try:
                sample = _run(variants, name, where)
            except NoMeasurement as error:
                reasons[name] = str(error)
            except PullFailed as error:
                reasons[name] = str(error)
                failures.append(name)
            else:
                samples[name].append(sample)
                seconds = f"{sample.figures['wall']:.2f} s"
                announce(f"round {number + 1} of {rounds}, {name}: {seconds}")
                continue
            announce(f"{name}: not measured: {reasons[name]}")
    return {name: samples[name] for name in names if name not in reasons}, reasons, failures


def _run(variants: Variants, name: str, where: Path) -> Sample:
    directory = Path(mkdtemp(prefix="run-", dir=where))
    try:
        return variants[name](directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
