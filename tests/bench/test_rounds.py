"""Variants take turns; one that cannot be measured leaves the others alone."""

from __future__ import annotations

from pathlib import Path

from tests.bench.commands import NoMeasurement
from tests.bench.figures import Sample
from tests.bench.gateway import PullFailed
from tests.bench.rounds import take_turns
from tests.bench.tools import Run


def recording(order: list[str], name: str) -> Run:
    """Return a variant that records its turn, and leaves a file in its empty directory."""

    def run(where: Path) -> Sample:
        assert list(where.iterdir()) == []
        (where / "file").touch()
        order.append(name)
        return Sample({"wall": float(len(order))})

    return run


def test_variants_take_turns(tmp_path: Path) -> None:
    """Each round has every variant, and begins with another one; nothing is left on the disk."""
    order: list[str] = []
    variants = {name: recording(order, name) for name in "abc"}
    samples, reasons, failures = take_turns(variants, 4, tmp_path, lambda _: None)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert [sample.figures["wall"] for sample in samples["a"]] == [1, 6, 8, 10]
    assert (reasons, failures) == ({}, [])
    assert list(tmp_path.iterdir()) == []


def test_a_variant_that_cannot_be_measured_is_left_out(tmp_path: Path) -> None:
    """A variant that fails in a later round has no samples; only a failed pull is a failure."""
    order: list[str] = []
    lines: list[str] = []

    def lacking(_: Path) -> Sample:
        raise NoMeasurement("podman is not installed")

    def failing(where: Path) -> Sample:
        if "pull" in order:
            raise PullFailed("no space")
        return recording(order, "pull")(where)

    variants = {"floor": recording(order, "floor"), "podman": lacking, "pull": failing}
    samples, reasons, failures = take_turns(variants, 3, tmp_path, lines.append)
    assert order == ["floor", "pull", "floor", "floor"]
    assert set(samples) == {"floor"}
    assert len(samples["floor"]) == 3
    assert reasons == {"podman": "podman is not installed", "pull": "no space"}
    assert failures == ["pull"]
    assert "podman: not measured: podman is not installed" in lines
    assert list(tmp_path.iterdir()) == []
