"""The promises of every `ImageDirectory` about files that share ranges with an installed image."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.model.records import Progress
from shiftergw.ports import DeltaSource, ImageDirectory, SharedRange
from tests.delivery.contract import CONTENT, ID, IMAGE, ignore, names

NEXT_IMAGE = f"{ID[::-1]}.squashfs"
NEW_BYTES = os.urandom(300_001)
NEXT_CONTENT = (
    NEW_BYTES[:96] + CONTENT[96:4_000_000] + NEW_BYTES[96:] + CONTENT[1_000_000:3_000_003] + b"end"
)
DELTA = DeltaSource(
    IMAGE,
    len(CONTENT),
    (
        SharedRange(96, 96, 3_999_904),
        SharedRange(4_299_905, 1_000_000, 2_000_003),
    ),
)
"""What `NEXT_CONTENT` shares with `CONTENT`."""

SHORT_CONTENT = CONTENT[:100_000]


def write_converted(path: Path, content: bytes) -> tuple[Path, str]:
    """Write a file that is copied, not linked, into a local directory; return it and its digest."""
    path.write_bytes(content)
    path.chmod(0o644)
    return path, hashlib.sha256(content).hexdigest()


def check_progress(reports: Sequence[Progress], size: int) -> None:
    """Check the reports of a delivery that puts a file of `size` bytes together, then compares it.

    Each report of a stage is further than the one before, and both stages end with all bytes.
    """
    for stage in ("deliver", "compare"):
        done = [report.done for report in reports if report.stage == stage]
        assert done == sorted(set(done))
        assert done[-1] == size
        assert {report.total for report in reports} == {size}
    stages = [report.stage for report in reports]
    assert stages == sorted(stages, reverse=True)
    copied_counts = [report.copied_bytes for report in reports if report.stage == "deliver"]
    assert copied_counts == sorted(copied_counts)


class SharedRangesContract:
    """The tests of the promises about `delta` of `ImageDirectory.install`."""

    @pytest_twisted.ensureDeferred
    async def test_shared_ranges(
        self, directory: ImageDirectory, root: Path, tmp_path: Path
    ) -> None:
        """A file that shares ranges with an installed image is installed completely."""
        (root / IMAGE).write_bytes(CONTENT)
        path, sha256 = write_converted(tmp_path / "next", NEXT_CONTENT)
        reports: list[Progress] = []
        await directory.install(path, NEXT_IMAGE, sha256, reports.append, DELTA)
        assert (root / NEXT_IMAGE).read_bytes() == NEXT_CONTENT
        assert (root / NEXT_IMAGE).stat().st_mode & 0o7777 == 0o600
        assert names(root) == sorted([IMAGE, NEXT_IMAGE])
        assert (root / IMAGE).read_bytes() == CONTENT
        check_progress(reports, len(NEXT_CONTENT))

    @pytest_twisted.ensureDeferred
    async def test_ranges_that_are_wrong(
        self, directory: ImageDirectory, root: Path, tmp_path: Path
    ) -> None:
        """If an image lacks the ranges, or is missing, the right file is installed all the same."""
        path, sha256 = write_converted(tmp_path / "next", SHORT_CONTENT)
        length = len(SHORT_CONTENT)
        (root / IMAGE).write_bytes(SHORT_CONTENT[::-1])
        wrong_deltas = [
            DeltaSource(IMAGE, length, (SharedRange(0, 0, length),)),
            DeltaSource(NEXT_IMAGE, length, (SharedRange(9, 9, 9),)),
        ]
        for delta in wrong_deltas:
            await directory.install(path, NEXT_IMAGE, sha256, ignore, delta)
            assert (root / NEXT_IMAGE).read_bytes() == SHORT_CONTENT
            assert names(root) == sorted([IMAGE, NEXT_IMAGE])
            await directory.remove(NEXT_IMAGE)
        with pytest.raises(ValueError, match="cannot be the name"):
            await directory.install(path, NEXT_IMAGE, sha256, ignore, DeltaSource("../x", 1, ()))
