"""The whole bench on small images, with a real registry, gateway and tools."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.bench import __main__ as command
from tests.bench.bars import DOWNLOAD, FLOOR, PULL, PULL_KNOWN_BASE, SKOPEO
from tests.bench.gateway import is_supported, new_bytes, step_figures
from tests.bench.profile import BEFORE, DELIVERY
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
        parts = {part.name: part for part in sample.profile}
        assert parts.keys() >= {BEFORE, DELIVERY, "plan", "check"}
        assert sum(part.wall for part in parts.values()) == pytest.approx(
            sample.figures["wall"], rel=0.5, abs=0.2
        )
        assert {"worker", "gateway"} <= {name for part in parts.values() for name in part.cpu}
    (sample,) = results.measurements["base"].samples[PULL_WHOLE]
    assert sample.figures["layer bytes"] == sample.figures["new layer bytes"] > 0
    assert 0 < sample.figures["new bytes"] < sample.figures["size"]
    assert SKOPEO in results.measurements["base"].samples
    if LONG:
        variant = PULL_KNOWN_BASE.format(builder="whole")
        (sample,) = results.measurements["remote"].samples[variant]
        assert sample.figures["sent bytes"] > sample.figures["size"]
        assert 0 < sample.figures["remote check"] < sample.figures["wall"]
    assert (tmp_path / "output" / "results.md").read_text() == capsys.readouterr().out
    ET.parse(tmp_path / "output" / "results.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, True),
        ({"architecture": "amd64"}, True),
        ({"AbsentKey": "value"}, False),
        ({"accesstype": "absent"}, False),
    ],
)
def test_a_builder_needs_keys_that_the_program_knows(
    keys: dict[str, str], *, expected: bool
) -> None:
    """A builder whose keys, or their values, this version lacks is not measured."""
    assert is_supported(keys) is expected


def test_new_bytes_are_data_behind_the_base_and_metadata(tmp_path: Path) -> None:
    """What an image adds is its end, less the data that its base has."""
    files = [tmp_path / "base", tmp_path / "image"]
    for file, (end, inode_table) in zip(files, [(5000, 4000), (9000, 7000)], strict=True):
        head = bytes(40) + end.to_bytes(8, "little") + bytes(16) + inode_table.to_bytes(8, "little")
        file.write_bytes(head + bytes(1000))
    assert new_bytes(*files) == 9000 - 4000


def test_steps_become_figures() -> None:
    """Packing, composing and the remote check are figures of pulls that have these steps."""
    assert step_figures({"fetch": 1.0, "index": 2.0, "squash": 3.0}, 9.0) == {}
    steps = {"pack": 4.0, "plan": 0.5, "compose": 1.0, "check": 0.25, "remote-check": 2.0}
    assert step_figures(steps, 9.0) == {
        "packing": 4.0,
        "composing": 1.75,
        "remote check": 2.0,
        "wall without remote check": 7.0,
    }


def test_a_program_that_is_lacking_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a registry nothing is measured, and the exit code is 2."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SHIFTERGW_REQUIRE_ALL", raising=False)
    assert command.main(["--size", "small", "--directory", str(tmp_path)]) == 2
    assert "docker-registry is not installed" in capsys.readouterr().err
