"""The whole bench on small images, with a real registry, gateway and tools."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.bench import __main__ as command
from tests.bench.bars import DOWNLOAD, FLOOR, PULL, PULL_KNOWN_BASE, SKOPEO
from tests.bench.gateway import BUILDERS, is_supported
from tests.bench.results import Results
from tests.bench.scenarios import SCENARIOS
from tests.parts import need

LONG = os.environ.get("SHIFTERGW_LONG") == "1"
PULL_WHOLE = PULL.format(builder="whole")


@pytest.mark.slow
def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run measures each variant of each scenario, and writes all results; a trial ends with 0."""
    for program in ("docker-registry", "skopeo", "umoci", "mksquashfs", "curl", "sshd"):
        need(program)
    names = list(SCENARIOS) if LONG else ["base"]
    arguments = ["--size", "small", "--rounds", "1", "--scenarios", *names]
    directories = ["--directory", str(tmp_path), "--output", str(tmp_path / "output")]
    assert command.main([*arguments, *directories]) == 0
    results = Results.read(tmp_path / "output" / "results.json")
    assert list(results.measurements) == names
    for measurement in results.measurements.values():
        assert measurement.failures == []
        assert measurement.samples.keys() & {FLOOR, DOWNLOAD, SKOPEO}
        (sample,) = measurement.samples[PULL_WHOLE]
        assert sample.figures["wall"] > 0
        assert sample.figures["cpu"] > 0
        assert sample.figures["size"] > 0
        assert sample.stages.keys() >= {"CONVERSION", "TRANSFER"}
    (sample,) = results.measurements["base"].samples[PULL_WHOLE]
    assert sample.figures["layer bytes"] == sample.figures["new layer bytes"] > 0
    assert 0 < sample.figures["new bytes"] < sample.figures["size"]
    assert SKOPEO in results.measurements["base"].samples
    if LONG:
        variant = PULL_KNOWN_BASE.format(builder="whole")
        (sample,) = results.measurements["remote"].samples[variant]
        assert sample.figures["sent bytes"] > sample.figures["size"]
    assert (tmp_path / "output" / "results.md").read_text() == capsys.readouterr().out
    ET.parse(tmp_path / "output" / "results.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_the_whole_image_builder_is_always_there() -> None:
    """A builder is measured only by a version that has it."""
    assert is_supported("whole")
    assert {is_supported(builder) for builder in BUILDERS} <= {True, False}
