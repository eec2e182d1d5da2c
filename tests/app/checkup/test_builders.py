"""`shiftergw check` says how the images for each system are built, and why."""

from __future__ import annotations

from typing import Any

import pytest

from shiftergw.app.checkup.builders import builders, link_races
from shiftergw.app.checkup.finding import Finding
from tests.configurations import load_config


def finding_of(**changes: Any) -> Finding:
    """Return the finding about the builder of the only system, with these changes."""
    (finding,) = builders(load_config(changes).config)
    assert finding.name == "builder of mycluster"
    return finding


def test_both_builders_are_named() -> None:
    """The builder that was configured is fine; the whole one has a known weakness."""
    whole = finding_of(Builder="whole")
    assert (whole.level, whole.text.partition(":")[0]) == ("ok", "whole")
    assert "40,000 files" in whole.text
    packs = finding_of()
    assert (packs.level, packs.text.partition(":")[0]) == ("ok", "packs")


@pytest.mark.parametrize(
    ("changes", "reason", "remedy"),
    [
        (
            {"Platforms/mycluster/squashfs": {"compressor": "lz4"}},
            "images of lz4 cannot be composed",
            "one of gzip, xz, zstd",
        ),
        (
            {"ConverterOptions": {"squashfs": ["-no-fragments"]}},
            "ConverterOptions has arguments",
            "Remove ConverterOptions",
        ),
    ],
)
def test_the_reason_for_the_whole_builder(
    changes: dict[str, Any], reason: str, remedy: str
) -> None:
    """A site that configured packs learns why it has none, and what to do."""
    finding = finding_of(**changes)
    assert finding.level == "warning"
    assert reason in finding.text
    assert remedy in finding.remedy
    assert finding_of(Builder="whole", **changes).level == "ok"


@pytest.mark.parametrize(
    ("builder", "numbers", "warns"),
    [
        ("whole", (4, 5), False),
        ("whole", (4, 5, 1), True),
        ("whole", (4, 7, 5), True),
        ("whole", (4, 7, 6), False),
        ("packs", (4, 5, 1), False),
    ],
)
def test_the_race_at_hard_links(builder: str, numbers: tuple[int, ...], warns: bool) -> None:
    """Versions that may crash at hard links are named where images are built as a whole."""
    findings = list(link_races(load_config({"Builder": builder}).config, numbers))
    assert [finding.level for finding in findings] == ["warning"] * warns
    for finding in findings:
        assert "mycluster" in finding.text
        assert '"Builder": "packs"' in finding.remedy
