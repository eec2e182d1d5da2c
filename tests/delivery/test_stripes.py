"""Layout of images over several OSTs of Lustre, with a stand-in for `lfs`: local and remote."""

# ruff: noqa: ASYNC240 - a test may look at its own files while nothing else happens

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogEvent, capturedLogs, formatEvent

from shiftergw.delivery.local import LocalDirectory
from shiftergw.delivery.remote import RemoteDirectory
from shiftergw.delivery.stripes import MIN_STRIPED_BYTES, LocalStripes
from shiftergw.errors import DeliveryFailed
from shiftergw.model.records import Progress
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import DeltaSource, ImageDirectory, SharedRange
from shiftergw.ssh.openssh import OpensshAccount
from tests.delivery.contract import IMAGE, ignore, names
from tests.delivery.delta_contract import NEXT_IMAGE
from tests.delivery.far import UNUSED_ACCOUNT, account_on, far_directory, without_ssh
from tests.installed_reactor import reactor
from tests.sshd import Sshd

LARGE = os.urandom(1 << 20) * (MIN_STRIPED_BYTES >> 20)
SHA256 = hashlib.sha256(LARGE).hexdigest()

MAKES = 'set -C; : > "$4"; set +C'
FAILS = {
    "fails": f"{MAKES}; echo no Lustre >&2; exit 25",
    "does nothing": "exit 0",
    "lets others read": f'{MAKES}; chmod 644 "$4"',
    "writes": 'echo x > "$4"',
    "makes a link": 'ln -s /nowhere "$4"',
}

# The hard link keeps the inode number from being used again.
_LFS = """#!/bin/sh
printf '%s\\n' "$*" >> {log}
{script}
stat -c '%a' "$4" >> {log}
ln -f "$4" {created}
"""


class Place:
    """An image directory, and the `lfs` of its machine, if it has one."""

    def __init__(self, root: Path, directory: ImageDirectory, programs: Path) -> None:
        """Start without an `lfs`."""
        self.root = root
        self.directory = directory
        self.image = root / IMAGE
        self._programs = programs
        self._log = programs / "lfs.log"
        self._created = programs / "made"

    def lfs(self, script: str = MAKES) -> None:
        """Install an `lfs` that runs this script; the path is `$4`."""
        program = self._programs / "lfs"
        program.write_text(_LFS.format(log=self._log, script=script, created=self._created))
        program.chmod(0o755)

    @property
    def lfs_log(self) -> list[str]:
        """Return the arguments of `lfs` and the mode of the created file, a line each."""
        return self._log.read_text().splitlines() if self._log.exists() else []

    @property
    def is_laid_out(self) -> bool:
        """Return whether the image is the file that `lfs` created."""
        link = self._created
        return os.path.lexists(link) and link.lstat().st_ino == self.image.lstat().st_ino


Opens = Callable[[int], Place]


@pytest.fixture
def opens_far(root: Path, threads: Threads) -> Iterator[Callable[..., RemoteDirectory]]:
    """Give a function that opens remote image directories; they are closed after the test."""
    directories: list[RemoteDirectory] = []

    def open_directory(
        account: OpensshAccount, env: Mapping[str, str], ost_count: int
    ) -> RemoteDirectory:
        path = PurePosixPath(root)
        directories.append(far_directory(account, path, threads, env, ost_count=ost_count))
        return directories[-1]

    yield open_directory
    for directory in directories:
        pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))


@pytest.fixture(params=["local", "remote"])
def opens(
    root: Path,
    threads: Threads,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    opens_far: Callable[..., RemoteDirectory],
) -> Opens:
    """Give a function that opens an image directory with a layout over `ost_count` OSTs."""
    programs = tmp_path / "bin"
    env = without_ssh(programs)

    def place(ost_count: int) -> Place:
        if request.param == "remote":
            return Place(root, opens_far(UNUSED_ACCOUNT, env, ost_count), programs)
        stripes = LocalStripes(ost_count, threads, env, reactor)
        return Place(root, LocalDirectory(root, threads, stripes), programs)

    return place


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Give a converted file that is large enough for a layout."""
    path = tmp_path / "converted"
    path.write_bytes(LARGE)
    path.chmod(0o600)
    return path


def notes(events: Sequence[LogEvent]) -> list[str]:
    """Return the log lines about striping."""
    return [text for event in events if "not striped" in (text := formatEvent(event))]


@pytest.mark.parametrize("ost_count", [4, -1])
@pytest_twisted.ensureDeferred
async def test_a_large_image_is_laid_out(opens: Opens, large: Path, ost_count: int) -> None:
    """`lfs` creates the file, with mode 0600 from the start, and the image is written into it."""
    place = opens(ost_count)
    place.lfs()
    await place.directory.install(large, IMAGE, SHA256, ignore)
    arguments, mode = place.lfs_log
    temporary = re.escape(str(place.image)) + r"\.partial\.[0-9a-f]{16}"
    assert re.fullmatch(rf"setstripe -c {ost_count} {temporary}", arguments)
    assert (mode, place.is_laid_out) == ("600", True)
    assert place.image.read_bytes() == LARGE
    assert place.image.stat().st_mode & 0o7777 == 0o600
    assert names(place.root) == [IMAGE]


@pytest_twisted.ensureDeferred
async def test_files_without_a_layout(opens: Opens, large: Path) -> None:
    """Images below 16 MiB, metadata, and all images with 0 OSTs get the default layout."""
    for ost_count, size in ((4, MIN_STRIPED_BYTES - 1), (0, MIN_STRIPED_BYTES)):
        place = opens(ost_count)
        place.lfs()
        large.write_bytes(LARGE[:size])
        sha256 = hashlib.sha256(LARGE[:size]).hexdigest()
        await place.directory.install(large, IMAGE, sha256, ignore)
        await place.directory.write(b"FORMAT: squashfs\n", IMAGE.replace("squashfs", "meta"))
        assert place.image.stat().st_size == size
        assert place.lfs_log == []


@pytest.mark.parametrize("how", [*FAILS, "is missing"])
@pytest_twisted.ensureDeferred
async def test_lfs_that_cannot(opens: Opens, large: Path, how: str) -> None:
    """Without a working `lfs` the image is delivered into a plain file; the log says so once."""
    place = opens(4)
    if how in FAILS:
        place.lfs(FAILS[how])
    with capturedLogs() as events:
        for _ in range(2):
            await place.directory.install(large, IMAGE, SHA256, ignore)
            assert place.image.read_bytes() == LARGE
            assert place.image.stat().st_mode & 0o7777 == 0o600
            assert names(place.root) == [IMAGE]
    assert not place.is_laid_out
    (note,) = notes(events)
    assert str(place.root) in note
    assert how != "fails" or "no Lustre" in note


@pytest_twisted.ensureDeferred
async def test_account_without_commands(
    root: Path, tmp_path: Path, large: Path, opens_far: Callable[..., RemoteDirectory]
) -> None:
    """An account that has SFTP only gets images with the default layout."""
    directory = opens_far(UNUSED_ACCOUNT, without_ssh(tmp_path / "bin", commands=False), 4)
    with capturedLogs() as events:
        await directory.install(large, IMAGE, SHA256, ignore)
    assert (root / IMAGE).read_bytes() == LARGE
    assert len(notes(events)) == 1


@pytest_twisted.ensureDeferred
async def test_a_real_account(
    root: Path, tmp_path: Path, large: Path, opens_far: Callable[..., RemoteDirectory]
) -> None:
    """With OpenSSH's server, the `lfs` in the PATH of the account is used."""
    programs = tmp_path / "bin"
    programs.mkdir()
    # A nested bash reads no start-up file: that of a developer may take minutes.
    with Sshd(f"SetEnv SHLVL=1 PATH={programs}:/usr/bin:/bin") as sshd:
        place = Place(root, opens_far(account_on(sshd), os.environ, 4), programs)
        place.lfs()
        await place.directory.install(large, IMAGE, SHA256, ignore)
        assert (place.lfs_log[1:], place.is_laid_out) == (["600"], True)


@pytest_twisted.ensureDeferred
async def test_a_resumed_delivery(
    root: Path, tmp_path: Path, large: Path, opens_far: Callable[..., RemoteDirectory]
) -> None:
    """A partial file keeps its layout; an empty file is created again."""
    programs = tmp_path / "bin"
    env = without_ssh(programs)
    place = Place(root, opens_far(UNUSED_ACCOUNT, env, 4), programs)
    place.lfs()
    larger = LARGE + LARGE
    large.write_bytes(larger)
    sha256 = hashlib.sha256(larger).hexdigest()
    part = root / f"{IMAGE}.partial.{sha256[:16]}"
    part.write_bytes(larger[:-1])
    part.chmod(0o600)
    reports: list[Progress] = []
    await place.directory.install(large, IMAGE, sha256, reports.append)
    assert reports[0].done > 0
    assert place.lfs_log == []
    part.touch()
    await place.directory.install(large, IMAGE, sha256, ignore)
    assert (place.lfs_log[1:], place.is_laid_out) == (["600"], True)


@pytest_twisted.ensureDeferred
async def test_a_delivery_with_shared_ranges(opens: Opens, large: Path) -> None:
    """A file that is put together from another image gets the layout, too."""
    place = opens(4)
    place.lfs()
    (place.root / NEXT_IMAGE).write_bytes(LARGE)
    delta = DeltaSource(NEXT_IMAGE, len(LARGE), (SharedRange(0, 0, len(LARGE) - 1),))
    reports: list[Progress] = []
    await place.directory.install(large, IMAGE, SHA256, reports.append, delta)
    assert place.image.read_bytes() == LARGE
    assert (place.lfs_log[1:], place.is_laid_out) == (["600"], True)
    deliveries = [report for report in reports if report.stage == "deliver"]
    assert deliveries[-1].copied_bytes > len(LARGE) // 2


@pytest_twisted.ensureDeferred
async def test_a_failed_delivery_leaves_no_file(opens: Opens, large: Path) -> None:
    """The file that `lfs` created is removed if the delivery fails."""
    place = opens(4)
    place.lfs()
    with pytest.raises(DeliveryFailed):
        await place.directory.install(large, IMAGE, "0" * 64, ignore)
    assert len(place.lfs_log) == 2
    assert names(place.root) == []


@pytest_twisted.ensureDeferred
async def test_cancelled(opens: Opens, large: Path, tmp_path: Path) -> None:
    """A delivery that is cancelled while `lfs` hangs ends soon and leaves no file."""
    place = opens(4)
    hanging = tmp_path / "hanging"
    hanging.touch()
    place.lfs(f"{MAKES}; while [ -e {hanging} ]; do sleep 0.05; done")
    running = Deferred.fromCoroutine(place.directory.install(large, IMAGE, SHA256, ignore))
    while not names(place.root):
        await pause(0.01, reactor)
    running.cancel()
    try:
        with pytest.raises(CancelledError):
            await running
        assert names(place.root) == []
    finally:
        hanging.unlink()
