"""`shiftergw check` says whether the packer that was configured is used, and whether it works."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from shiftergw.app.checkup.finding import Finding
from shiftergw.app.checkup.packers import packers
from tests.configurations import load_config


def findings_of(compressor: str, **changes: Any) -> list[Finding]:
    """Return the findings about the packer of the only system, with these changes."""
    squashfs = {"Platforms/mycluster/squashfs": {"compressor": compressor}}
    return list(packers(load_config({**squashfs, **changes}).config))


def test_a_site_without_the_key_gets_no_finding() -> None:
    """Where `mksquashfs` makes the packs, nothing is said about packers."""
    assert findings_of("zstd", Builder="packs") == []


def test_the_packer_that_is_used() -> None:
    """The library that compresses is named."""
    (finding,) = findings_of("zstd", Builder="packs", Packer="direct")
    assert (finding.level, finding.name) == ("ok", "packer of mycluster")
    assert finding.text.startswith("direct: the gateway compresses the layers with zstd 1.")


@pytest.mark.parametrize(
    ("builder", "reason", "remedy"),
    [
        ("packs", "only it compresses with xz", "gzip or zstd"),
        ("whole", "built as a whole", '"Builder": "packs"'),
    ],
)
def test_a_packer_that_is_not_used(builder: str, reason: str, remedy: str) -> None:
    """The site learns why, and what to do."""
    (finding,) = findings_of("xz", Builder=builder, Packer="direct")
    assert finding.level == "warning"
    assert reason in finding.text
    assert remedy in finding.remedy


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra no image can be built, so the check fails."""
    monkeypatch.setitem(sys.modules, "deflate", None)
    (finding,) = findings_of("gzip", Builder="packs", Packer="direct")
    assert finding.level == "failure"
    assert "shiftergw[direct]" in finding.remedy
