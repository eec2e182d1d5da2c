"""The image directory on a file system of this machine."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.delivery import local_files
from shiftergw.delivery.local import LocalDirectory
from shiftergw.delivery.placement import directory_errors, place
from shiftergw.errors import DeliveryFailed, NoSpace
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import ImageDirectory, InstalledFile
from tests.delivery.contract import (
    CONTENT,
    IMAGE,
    META,
    SHA256,
    ImageDirectoryContract,
    ignore,
    names,
)
from tests.delivery.delta_contract import SharedRangesContract
from tests.parts import lacking


@pytest.fixture
def directory(root: Path, threads: Threads) -> LocalDirectory:
    """Give a local image directory."""
    return LocalDirectory(root, threads)


class TestLocalDirectory(ImageDirectoryContract, SharedRangesContract):
    """The contract, on a local directory."""


def test_it_keeps_the_port(directory: LocalDirectory) -> None:
    """The type checker sees that this is an `ImageDirectory`."""
    port: ImageDirectory = directory
    assert port is directory


def write_converted(path: Path) -> Path:
    """Write a converted file as the builder leaves it."""
    path.write_bytes(CONTENT)
    path.chmod(0o600)
    return path


@pytest_twisted.ensureDeferred
async def test_same_file_system_copies_nothing(
    directory: LocalDirectory, root: Path, tmp_path: Path
) -> None:
    """On the same file system the installed image is a hard link of the converted file."""
    source = write_converted(tmp_path / "converted")
    await directory.install(source, IMAGE, SHA256, ignore)
    assert (root / IMAGE).samefile(source)


@pytest_twisted.ensureDeferred
async def test_new_link_of_an_old_file_is_not_swept(
    directory: LocalDirectory, root: Path, tmp_path: Path
) -> None:
    """A temporary that is a new hard link is young, however old its file is."""
    now = time.time()
    source = write_converted(tmp_path / "converted")
    os.utime(source, (now - 7200, now - 7200))
    temporary = root / f"{IMAGE}.partial.{'0' * 16}"
    os.link(source, temporary)
    assert await directory.sweep(now - 3600) == 0
    assert await directory.sweep(time.time() + 3600) == 1
    assert names(root) == []
    assert source.exists()


@pytest_twisted.ensureDeferred
async def test_symlinked_source_is_copied(
    directory: LocalDirectory, root: Path, tmp_path: Path
) -> None:
    """A source that is a symlink is copied: no symlink gets into an image directory."""
    source = tmp_path / "link"
    source.symlink_to(write_converted(tmp_path / "converted"))
    await directory.install(source, IMAGE, SHA256, ignore)
    assert not (root / IMAGE).is_symlink()
    assert (root / IMAGE).read_bytes() == CONTENT


@pytest.fixture
def other_file_system(tmp_path: Path) -> Iterator[Path]:
    """Give a converted file on another file system."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        lacking("this machine has no second file system to write to")
    with TemporaryDirectory(dir=memory) as directory:
        yield write_converted(Path(directory) / "converted")


@pytest_twisted.ensureDeferred
async def test_another_file_system(
    directory: LocalDirectory, other_file_system: Path, root: Path
) -> None:
    """Between file systems the file is copied."""
    await directory.install(other_file_system, IMAGE, SHA256, ignore)
    assert (root / IMAGE).read_bytes() == CONTENT
    assert (root / IMAGE).stat().st_nlink == 1


@pytest_twisted.ensureDeferred
async def test_place_anywhere(threads: Threads, tmp_path: Path) -> None:
    """A converted file can be placed at any path, with the same promises."""
    source = write_converted(tmp_path / "converted")
    await place(source, tmp_path / "my image.squashfs", SHA256, threads, ignore, link=False)
    assert (tmp_path / "my image.squashfs").read_bytes() == CONTENT
    assert names(tmp_path) == ["converted", "my image.squashfs"]


@pytest_twisted.ensureDeferred
async def test_cancelled_digest(directory: LocalDirectory, root: Path) -> None:
    """A cancelled digest of a large file ends soon."""
    (root / IMAGE).touch()
    os.truncate(root / IMAGE, 1 << 40)
    hashing = Deferred.fromCoroutine(directory.digest(IMAGE))
    hashing.cancel()
    with pytest.raises(CancelledError):
        await hashing


@pytest_twisted.ensureDeferred
async def test_file_removed_while_it_is_read(
    directory: LocalDirectory, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is removed after its size was read is an error, not an empty file."""

    def remove(path: Path) -> InstalledFile | None:
        file = installed_file(path)
        path.unlink(missing_ok=True)
        return file

    installed_file = local_files.installed_file
    monkeypatch.setattr(local_files, "installed_file", remove)
    (root / META).write_bytes(b"ENV:")
    with pytest.raises(DeliveryFailed, match="No such file"):
        await directory.read(META, 100)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_directory(number: int) -> None:
    """A full disk or quota raises `NoSpace`; the path is in the detail only."""
    with pytest.raises(NoSpace) as caught, directory_errors():
        raise OSError(number, "full", "/secret/path")
    assert "/secret" not in str(caught.value)
    assert "/secret" in caught.value.detail


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO])
def test_directory_that_cannot_be_written(number: int) -> None:
    """Other errors of the file system have a reason and a remedy."""
    with pytest.raises(DeliveryFailed) as caught, directory_errors():
        raise OSError(number, os.strerror(number), "/secret/path")
    assert os.strerror(number) in caught.value.what
    assert "/secret" not in str(caught.value)
    assert caught.value.remedy
