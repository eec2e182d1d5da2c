"""Copies into a local image directory that share ranges with an installed image."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
import pytest_twisted
from twisted.logger import capturedLogs, formatEvent

from shiftergw.delivery.local import LocalDirectory
from shiftergw.model.records import Progress
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import DeltaSource, SharedRange
from tests.delivery.contract import CONTENT, IMAGE, names
from tests.delivery.delta_contract import NEXT_IMAGE, write_converted

BLOCK = 4096
MOVED_FROM = 10 * BLOCK + 100
NEXT_CONTENT = CONTENT[:MOVED_FROM] + b"new" + CONTENT[MOVED_FROM - BLOCK + 3 :] + b"end"
SHA256 = hashlib.sha256(NEXT_CONTENT).hexdigest()
DELTA = DeltaSource(
    IMAGE,
    len(CONTENT),
    (
        SharedRange(1, 1, MOVED_FROM - 1),
        SharedRange(MOVED_FROM + 3, MOVED_FROM - BLOCK + 3, len(CONTENT) - MOVED_FROM + BLOCK - 3),
    ),
)


class LocalSystem:
    """A local image directory with one image."""

    def __init__(self, root: Path, tmp_path: Path, threads: Threads) -> None:
        """Install the image."""
        self.root = root
        (root / IMAGE).write_bytes(CONTENT)
        self._directory = LocalDirectory(root, threads)
        self._source, _ = write_converted(tmp_path / "next", NEXT_CONTENT)
        self.log: list[str] = []

    async def deliver(self, delta: DeltaSource = DELTA) -> Progress:
        """Deliver a file that shares ranges, check it, and return its last report of that."""
        reports: list[Progress] = []
        with capturedLogs() as events:
            await self._directory.install(self._source, NEXT_IMAGE, SHA256, reports.append, delta)
        self.log = [formatEvent(event) for event in events]
        assert (self.root / NEXT_IMAGE).read_bytes() == NEXT_CONTENT
        assert (self.root / NEXT_IMAGE).stat().st_mode & 0o7777 == 0o600
        assert names(self.root) == sorted([IMAGE, NEXT_IMAGE])
        assert reports[-1].done == reports[-1].total == len(NEXT_CONTENT)
        return [report for report in reports if report.stage == "deliver"][-1]


@pytest.fixture
def system(root: Path, tmp_path: Path, threads: Threads) -> LocalSystem:
    """Give an image directory."""
    return LocalSystem(root, tmp_path, threads)


@pytest_twisted.ensureDeferred
async def test_ranges_are_cloned(system: LocalSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel copies whole blocks at the offsets at which a file system can clone them."""
    copies: list[tuple[int, int, int]] = []
    copy_file_range = os.copy_file_range

    def copy(image: int, target: int, count: int, source_offset: int, offset: int) -> int:
        copies.append((source_offset, offset, count))
        return copy_file_range(image, target, count, source_offset, offset)

    monkeypatch.setattr(os, "copy_file_range", copy)
    last_report = await system.deliver()
    assert (copies[0][:2], copies[0][2]) == ((BLOCK, BLOCK), 9 * BLOCK)
    assert all(number % BLOCK == 0 for numbers in copies for number in numbers)
    assert sum(count for *_, count in copies) == last_report.copied_bytes > len(CONTENT) - 5 * BLOCK
    assert system.log == []


@pytest.mark.parametrize("number", [0, errno.EXDEV, errno.EIO, errno.ENOSYS])
@pytest_twisted.ensureDeferred
async def test_kernel_that_copies_nothing(
    system: LocalSystem, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """What the kernel does not copy is read from the converted file."""

    def copy(*_: int) -> int:
        if number:
            raise OSError(number, os.strerror(number))
        return 0

    monkeypatch.setattr(os, "copy_file_range", copy)
    assert (await system.deliver()).copied_bytes == 0


WRONG = {
    "another size": DeltaSource(IMAGE, len(CONTENT) - 1, (SharedRange(0, 0, 1),)),
    "cannot be opened": DeltaSource(f"{'a' * 64}.squashfs", 9, (SharedRange(0, 0, 9),)),
    "overlap": DeltaSource(IMAGE, len(CONTENT), (SharedRange(5, 5, 9), SharedRange(6, 6, 9))),
    "another digest": DeltaSource(IMAGE, len(CONTENT), (SharedRange(0, BLOCK, 9 * BLOCK),)),
}


@pytest.mark.parametrize("reason", WRONG)
@pytest_twisted.ensureDeferred
async def test_wrong_ranges(system: LocalSystem, reason: str) -> None:
    """If the ranges cannot be used, the whole file is copied, and the log says why."""
    assert (await system.deliver(WRONG[reason])).copied_bytes == 0
    (line,) = system.log
    assert line.startswith(f"{NEXT_IMAGE} is copied as a whole: ")
    assert reason in line


@pytest_twisted.ensureDeferred
async def test_image_that_is_a_link(system: LocalSystem, tmp_path: Path) -> None:
    """A symlink in the place of the other image is not followed."""
    (system.root / IMAGE).rename(tmp_path / "elsewhere")
    (system.root / IMAGE).symlink_to(tmp_path / "elsewhere")
    assert (await system.deliver()).copied_bytes == 0
