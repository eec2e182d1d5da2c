"""Who may open the file of an image: on this machine, and on a system."""

# ruff: noqa: ASYNC240 - a test may look at its own files while nothing else happens

from __future__ import annotations

import errno
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from shiftergw.delivery import file_access
from shiftergw.delivery.file_access import SET_ACCESS_LIST, set_local_access, set_remote_access
from shiftergw.delivery.local import LocalDirectory
from shiftergw.delivery.remote_program import NoCommands
from shiftergw.errors import DeliveryFailed, TimedOut
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import FileAccess
from shiftergw.sftp import packets
from shiftergw.sftp.packets import Attributes, SftpRefused
from tests.delivery.contract import CONTENT, IMAGE, SHA256, ignore

OPEN = FileAccess(0o644)
LISTED = FileAccess(0o600, (2002, 2001, 2002), (2300,))
ENTRIES = b"u::rw-,u:2001:r--,u:2002:r--,g::---,g:2300:r--,m::r--,o::---"
ATTRIBUTE = "system.posix_acl_access"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file as it was delivered."""
    path = tmp_path / IMAGE
    path.write_bytes(b"hsqs")
    path.chmod(0o600)
    return path


def mode_of(path: Path) -> int:
    """Return the mode of a file."""
    return path.stat().st_mode & 0o7777


def entries_of(path: Path) -> list[tuple[int, int, int]]:
    """Return the access list of a file, as (tag, permissions, id)."""
    value = os.getxattr(path, ATTRIBUTE)
    assert value[:4] == bytes([2, 0, 0, 0])
    return list(struct.iter_unpack("<HHI", value[4:]))


# On this machine.


def test_a_public_file(file: Path) -> None:
    """The mode is set; another one closes the file again."""
    for mode in (0o644, 0o640, 0o600):
        assert set_local_access(file, FileAccess(mode))
        assert mode_of(file) == mode


def test_a_file_for_some_readers(file: Path) -> None:
    """Readers are in the access list, and nobody else is; the kernel reads it as it was meant."""
    assert set_local_access(file, LISTED)
    assert entries_of(file) == [
        (0x01, 6, 2**32 - 1),
        (0x02, 4, 2001),
        (0x02, 4, 2002),
        (0x04, 0, 2**32 - 1),
        (0x08, 4, 2300),
        (0x10, 4, 2**32 - 1),
        (0x20, 0, 2**32 - 1),
    ]
    assert mode_of(file) == 0o640  # the mask has the place of the group


def test_other_readers_and_then_everybody(file: Path) -> None:
    """A new list replaces the old one, and a public file has none."""
    set_local_access(file, LISTED)
    set_local_access(file, FileAccess(0o600, (7,)))
    assert [entry for entry in entries_of(file) if entry[0] in {0x02, 0x08}] == [(0x02, 4, 7)]
    set_local_access(file, OPEN)
    assert (mode_of(file), ATTRIBUTE in os.listxattr(file)) == (0o644, False)


def test_a_file_with_another_name(file: Path) -> None:
    """The other name may be another system's file: nothing is changed, unless all is as it was."""
    os.link(file, file.with_name("converted"))
    assert not set_local_access(file, OPEN)
    assert not set_local_access(file, LISTED)
    assert mode_of(file) == 0o600
    assert set_local_access(file, FileAccess(0o600))


def test_a_file_system_without_access_lists(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is closed to everybody, and the error says what is missing; modes still work."""
    set_local_access(file, OPEN)

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr("os.setxattr", refuse)
    monkeypatch.setattr("os.removexattr", refuse)
    with pytest.raises(DeliveryFailed, match="private image") as caught:
        set_local_access(file, LISTED)
    assert (mode_of(file), caught.value.detail) == (0o600, os.strerror(errno.EOPNOTSUPP))
    assert set_local_access(file, OPEN)
    assert mode_of(file) == 0o644


def test_an_access_list_that_cannot_be_removed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is raised before the mode is changed."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.removexattr", fail)
    with pytest.raises(OSError, match="Input/output"):
        set_local_access(file, OPEN)
    assert mode_of(file) == 0o600


@pytest_twisted.ensureDeferred
async def test_copies_instead_of_links(root: Path, source: Path, threads: Threads) -> None:
    """A directory whose files are opened to users has copies: the converted file stays closed."""
    source.chmod(0o600)
    directory = LocalDirectory(root, threads, may_link=False)
    await directory.install(source, IMAGE, SHA256, ignore)
    assert await directory.set_access(IMAGE, OPEN)
    assert (mode_of(root / IMAGE), mode_of(source)) == (0o644, 0o600)
    assert (root / IMAGE).read_bytes() == CONTENT


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_gone(root: Path, threads: Threads) -> None:
    """A missing file, or a symlink in its place, is an error of the directory."""
    (root / "elsewhere").write_bytes(b"")
    directory = LocalDirectory(root, threads)
    for _ in range(2):
        with pytest.raises(DeliveryFailed, match="image directory cannot be used"):
            await directory.set_access(IMAGE, OPEN)
        (root / IMAGE).unlink(missing_ok=True)
        (root / IMAGE).symlink_to(root / "elsewhere")
    assert mode_of(root / "elsewhere") != 0o600


# On a system.


class FakeFiles:
    """The `RemoteFiles` of one file."""

    def __init__(self, *, obeys: bool = True) -> None:
        """Start with a file that everybody may read."""
        self.mode = 0o644
        self._obeys = obeys

    async def set_mode(self, path: bytes, mode: int) -> None:
        """Set the mode, unless this server only says so."""
        assert path == b"/images/x"
        if self._obeys:
            self.mode = mode

    async def lstat(self, path: bytes) -> Attributes:
        """Return the attributes of the file."""
        return Attributes(5, 0o100000 | self.mode, None)


async def set_access(files: FakeFiles, access: FileAccess) -> None:
    """Set the access of the file."""
    connection: Any = object()
    await set_remote_access(files, connection, b"/images/x", access, Clock())  # type: ignore[arg-type]


@pytest_twisted.ensureDeferred
async def test_a_public_file_on_a_system() -> None:
    """The mode is set without any program; a server that ignores it is noticed."""
    files = FakeFiles()
    await set_access(files, FileAccess(0o640))
    assert files.mode == 0o640
    with pytest.raises(SftpRefused, match="0600"):
        await set_access(FakeFiles(obeys=False), FileAccess(0o600))


@pytest_twisted.ensureDeferred
async def test_a_file_for_some_readers_on_a_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """`setfacl` gets the whole list as one argument."""
    calls: list[tuple[Any, ...]] = []

    async def run(_connection: Any, _clock: Any, *words: Any, seconds: float) -> bytes:
        calls.append(words)
        return b""

    monkeypatch.setattr(file_access, "run_once", run)
    await set_access(FakeFiles(), LISTED)
    assert calls == [(SET_ACCESS_LIST, b"/images/x", ENTRIES)]


@pytest.mark.parametrize(
    "error",
    [
        SftpRefused(packets.UNSUPPORTED, "no setfacl"),
        NoCommands("no shell"),
        TimedOut("A program hangs.", detail="it hangs"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_system_without_setfacl(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is closed to everybody, and the error says what is missing."""

    async def run(*_: Any, seconds: float) -> bytes:
        raise error

    monkeypatch.setattr(file_access, "run_once", run)
    files = FakeFiles()
    with pytest.raises(DeliveryFailed, match="private image") as caught:
        await set_access(files, LISTED)
    assert files.mode == 0o600
    assert caught.value.detail


@pytest.mark.parametrize(("body", "code"), [(None, 108), ("exit 1", 104), ('echo "$@"', 0)])
def test_the_program_for_a_system(body: str | None, code: int, tmp_path: Path) -> None:
    """The program passes path and list on, and its exit code says what went wrong."""
    if body is not None:
        (tmp_path / "setfacl").write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "setfacl").chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", SET_ACCESS_LIST, "sh", "-x; reboot", ENTRIES.decode()],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == code
    if code == 0:
        assert done.stdout.decode() == f"--set {ENTRIES.decode()} -- -x; reboot\n"
