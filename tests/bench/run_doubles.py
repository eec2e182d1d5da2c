"""Results with made-up figures, for tests of the bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.bench.bars import FLOOR, PODMAN, PULL, SKOPEO
from tests.bench.figures import Measurement, Sample
from tests.bench.profile import Part
from tests.bench.results import Results

PULL_WHOLE = PULL.format(builder="whole")
PULL_PACKS = PULL.format(builder="packs")


def wall_samples(*seconds: float, **figures: float) -> list[Sample]:
    """Return samples with these wall times, and half as much CPU time."""
    return [Sample({"wall": wall, "cpu": wall / 2, **figures}) for wall in seconds]


def measurement_of(
    samples: Mapping[str, Sequence[Sample]],
    scenario: str = "zstd",
    reasons: Mapping[str, str] | None = None,
    failures: Sequence[str] = (),
) -> Measurement:
    """Return the measurement of a scenario."""
    return Measurement(
        scenario, f"title of {scenario}", "3 layers", samples, reasons or {}, list(failures)
    )


def results_of(
    pull_seconds: Sequence[float], *, size: str = "full", warnings: Sequence[str] = ()
) -> Results:
    """Return results whose floor takes 10 seconds in each round, and our pull these."""
    count = len(pull_seconds)
    samples = {
        FLOOR: wall_samples(*[10] * count, size=5e6),
        PULL_WHOLE: [
            Sample(
                sample.figures,
                {"PULLING": 1.0, "CONVERSION": sample.figures["wall"] - 1},
                (Part("compose", 1.0, {"worker": 0.75, "mksquashfs": 0.5}),),
            )
            for sample in wall_samples(*pull_seconds, size=5e6)
        ],
        SKOPEO: wall_samples(*[60] * count, size=6e6),
    }
    reasons = {PODMAN: "podman is | not\ninstalled"}
    return Results(
        date="2030-01-02",
        version="1.2.3",
        machine={"processors": "2 x CPU <fast> & quiet"},
        size=size,
        rounds=count,
        builders=["whole"],
        warnings=list(warnings),
        measurements={"zstd": measurement_of(samples, reasons=reasons)},
    )
