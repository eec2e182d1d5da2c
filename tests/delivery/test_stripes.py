"""Images over several OSTs of Lustre, with a stand-in for its `lfs`: here and elsewhere."""

# ruff: noqa: ASYNC240 - a test may look at its own files while nothing else happens

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogEvent, capturedLogs, formatEvent

from shiftergw.delivery.local import LocalDirectory
from shiftergw.delivery.remote import RemoteDirectory
from shiftergw.delivery.stripes import WORTHWHILE, LocalStripes
from shiftergw.errors import DeliveryFailed
from shiftergw.model import Progress
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import ImageDirectory
from shiftergw.ssh.openssh import OpensshAccount
from tests.delivery.contract import IMAGE, ignore, names
from tests.delivery.far import NOBODY, account_on, far_directory, without_ssh
from tests.sshd import Sshd

reactor: Any = global_reactor

LARGE = os.urandom(1 << 20) * (WORTHWHILE >> 20)
SHA256 = hashlib.sha256(LARGE).hexdigest()

MAKES = 'set -C; : > "$4"; set +C'
FAILS = {
    "fails": f"{MAKES}; echo no Lustre >&2; exit 25",
    "does nothing": "exit 0",
    "lets others read": f'{MAKES}; chmod 644 "$4"',
    "writes": 'echo x > "$4"',
    "makes a link": 'ln -s /nowhere "$4"',
}

# A second name for the file keeps its number from being given to another one.
_LFS = """#!/bin/sh
printf '%s\\n' "$*" >> {log}
{then}
stat -c '%a' "$4" >> {log}
ln -f "$4" {made}
"""


class Place:
    """An image directory, and the `lfs` on its side, if there is one."""

    def __init__(self, root: Path, directory: ImageDirectory, programs: Path) -> None:
        """Have an empty directory."""
        self.root = root
        self.directory = directory
        self.image = root / IMAGE
        self._programs = programs
        self._log = programs / "lfs.log"
        self._made = programs / "made"

    def lfs(self, then: str = MAKES) -> None:
        """Have an `lfs` that does this with the path in `$4`."""
        program = self._programs / "lfs"
        program.write_text(_LFS.format(log=self._log, then=then, made=self._made))
        program.chmod(0o755)

    @property
    def said(self) -> list[str]:
        """Return what it was told, and the mode of what it made, a line each."""
        return self._log.read_text().splitlines() if self._log.exists() else []

    @property
    def is_laid_out(self) -> bool:
        """Say whether the image is the file that `lfs` made."""
        made = self._made
        return os.path.lexists(made) and made.lstat().st_ino == self.image.lstat().st_ino


Opens = Callable[[int], Place]


@pytest.fixture
def opens_far(root: Path, threads: Threads) -> Iterator[Callable[..., RemoteDirectory]]:
    """Give what makes adapters of another machine, which are closed afterwards."""
    made: list[RemoteDirectory] = []

    def far(account: OpensshAccount, env: Mapping[str, str], ost_count: int) -> RemoteDirectory:
        there = PurePosixPath(root)
        made.append(far_directory(account, there, threads, env, ost_count=ost_count))
        return made[-1]

    yield far
    for directory in made:
        pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))


@pytest.fixture(params=["here", "there"])
def opens(
    root: Path,
    threads: Threads,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    opens_far: Callable[..., RemoteDirectory],
) -> Opens:
    """Give what makes an image directory, for so many OSTs."""
    programs = tmp_path / "bin"
    env = without_ssh(programs)

    def place(ost_count: int) -> Place:
        if request.param == "there":
            return Place(root, opens_far(NOBODY, env, ost_count), programs)
        stripes = LocalStripes(ost_count, threads, env, reactor)
        return Place(root, LocalDirectory(root, threads, stripes), programs)

    return place


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Give a converted file that is worth it."""
    path = tmp_path / "converted"
    path.write_bytes(LARGE)
    path.chmod(0o600)
    return path


def notes(events: Sequence[LogEvent]) -> list[str]:
    """Return the lines of the log about striping."""
    return [text for event in events if "not striped" in (text := formatEvent(event))]


@pytest.mark.parametrize("ost_count", [4, -1])
@pytest_twisted.ensureDeferred
async def test_a_large_image_is_laid_out(opens: Opens, large: Path, ost_count: int) -> None:
    """`lfs` makes the file, for nobody else's eyes from the first, and the image goes into it."""
    place = opens(ost_count)
    place.lfs()
    await place.directory.install(large, IMAGE, SHA256, ignore)
    told, mode = place.said
    temporary = re.escape(str(place.image)) + r"\.partial\.[0-9a-f]{16}"
    assert re.fullmatch(rf"setstripe -c {ost_count} {temporary}", told)
    assert (mode, place.is_laid_out) == ("600", True)
    assert place.image.read_bytes() == LARGE
    assert place.image.stat().st_mode & 0o7777 == 0o600
    assert names(place.root) == [IMAGE]


@pytest_twisted.ensureDeferred
async def test_what_is_not_laid_out(opens: Opens, large: Path) -> None:
    """Images below 16 MiB are not worth it; metadata never is; and 0 is as the file system does."""
    for ost_count, size in ((4, WORTHWHILE - 1), (0, WORTHWHILE)):
        place = opens(ost_count)
        place.lfs()
        large.write_bytes(LARGE[:size])
        sha256 = hashlib.sha256(LARGE[:size]).hexdigest()
        await place.directory.install(large, IMAGE, sha256, ignore)
        await place.directory.write(b"FORMAT: squashfs\n", IMAGE.replace("squashfs", "meta"))
        assert place.image.stat().st_size == size
        assert place.said == []


@pytest.mark.parametrize("how", [*FAILS, "is not there"])
@pytest_twisted.ensureDeferred
async def test_lfs_that_cannot(opens: Opens, large: Path, how: str) -> None:
    """The image is delivered all the same, into a file of our own; the log tells it once."""
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
    """Where nothing but SFTP is allowed, images go there as ever."""
    directory = opens_far(NOBODY, without_ssh(tmp_path / "bin", commands=False), 4)
    with capturedLogs() as events:
        await directory.install(large, IMAGE, SHA256, ignore)
    assert (root / IMAGE).read_bytes() == LARGE
    assert len(notes(events)) == 1


@pytest_twisted.ensureDeferred
async def test_a_real_account(
    root: Path, tmp_path: Path, large: Path, opens_far: Callable[..., RemoteDirectory]
) -> None:
    """The same over OpenSSH's server, whose PATH is its own."""
    programs = tmp_path / "bin"
    programs.mkdir()
    # A bash that is not the first reads no start-up file: those of a developer may take minutes.
    with Sshd(f"SetEnv SHLVL=1 PATH={programs}:/usr/bin:/bin") as sshd:
        place = Place(root, opens_far(account_on(sshd), os.environ, 4), programs)
        place.lfs()
        await place.directory.install(large, IMAGE, SHA256, ignore)
        assert (place.said[1:], place.is_laid_out) == (["600"], True)


@pytest_twisted.ensureDeferred
async def test_a_delivery_that_goes_on(
    root: Path, tmp_path: Path, large: Path, opens_far: Callable[..., RemoteDirectory]
) -> None:
    """What lies there in part was laid out when it was made; an empty file is made anew."""
    programs = tmp_path / "bin"
    env = without_ssh(programs)
    place = Place(root, opens_far(NOBODY, env, 4), programs)
    place.lfs()
    larger = LARGE + LARGE
    large.write_bytes(larger)
    sha256 = hashlib.sha256(larger).hexdigest()
    part = root / f"{IMAGE}.partial.{sha256[:16]}"
    part.write_bytes(larger[:-1])
    part.chmod(0o600)
    heard: list[Progress] = []
    await place.directory.install(large, IMAGE, sha256, heard.append)
    assert heard[0].done > 0
    assert place.said == []
    part.touch()
    await place.directory.install(large, IMAGE, sha256, ignore)
    assert (place.said[1:], place.is_laid_out) == (["600"], True)


@pytest_twisted.ensureDeferred
async def test_what_fails_leaves_nothing(opens: Opens, large: Path) -> None:
    """A file that `lfs` made goes again when the image does not get into it."""
    place = opens(4)
    place.lfs()
    with pytest.raises(DeliveryFailed):
        await place.directory.install(large, IMAGE, "0" * 64, ignore)
    assert len(place.said) == 2
    assert names(place.root) == []


@pytest_twisted.ensureDeferred
async def test_cancelled(opens: Opens, large: Path, tmp_path: Path) -> None:
    """A delivery that is cancelled while `lfs` hangs ends soon, and leaves nothing."""
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
