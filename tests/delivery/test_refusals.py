"""The errors of unusable image directories on a system, as users and admins see them."""

# ruff: noqa: ASYNC240 - a test may look at its own files while nothing else happens

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.delivery.remote import RemoteDirectory
from shiftergw.delivery.scp_files import ScpFiles
from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.errors import DeliveryFailed, NoSpace, PullError
from shiftergw.plumbing.threads import Threads
from tests.delivery.contract import CONTENT, IMAGE, META, SHA256, ignore, names
from tests.delivery.far import UNUSED_ACCOUNT, far_directory, without_ssh
from tests.parts import small_disk

WAYS = pytest.mark.parametrize("open_files", [SftpFiles.begin, ScpFiles.begin], ids=["sftp", "scp"])
Opens = Callable[..., RemoteDirectory]


@pytest.fixture
def opens(threads: Threads, tmp_path: Path) -> Iterator[Opens]:
    """Give a function that opens image directories; they are closed after the test."""
    directories: list[RemoteDirectory] = []

    def open_directory(
        root: Path, open_files: Any, options: str = "", before: str = ""
    ) -> RemoteDirectory:
        env = without_ssh(tmp_path / f"bin{len(directories)}", options=options, before=before)
        path = PurePosixPath(root)
        directories.append(far_directory(UNUSED_ACCOUNT, path, threads, env, open_files=open_files))
        return directories[-1]

    yield open_directory
    for directory in directories:
        pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))


async def reasons(directory: RemoteDirectory, source: Path) -> list[PullError]:
    """Return the errors of delivering an image, delivering metadata, and probing."""
    attempts: list[Callable[[], Any]] = [
        lambda: directory.install(source, IMAGE, SHA256, ignore),
        lambda: directory.write(b"x", META),
        lambda: directory.probe(b"test"),
    ]
    errors: list[PullError] = []
    for attempt in attempts:
        with pytest.raises((DeliveryFailed, NoSpace)) as caught:
            await attempt()
        errors.append(caught.value)
    return errors


@WAYS
@pytest_twisted.ensureDeferred
async def test_read_only(
    opens: Opens, root: Path, tmp_path: Path, source: Path, open_files: Any
) -> None:
    """A read-only file system is named; the detail has the reply of the system."""
    with small_disk(root, "ro,size=2m"):
        for error in await reasons(opens(root, open_files), source):
            assert "its file system is read-only" in error.what
            assert "mount it for writing" in error.remedy
            assert "status" in error.detail
            assert str(root) in error.detail
            assert str(root) not in str(error)


@WAYS
@pytest.mark.parametrize("obstacle", ["nothing", "file", "dangling"])
@pytest_twisted.ensureDeferred
async def test_no_directory(
    opens: Opens, root: Path, source: Path, open_files: Any, obstacle: str
) -> None:
    """The error names what is in place of the directory."""
    root.rmdir()
    reason = "it is not there"
    if obstacle == "file":
        root.write_bytes(b"")
        reason = "it is not a directory"
    elif obstacle == "dangling":
        root.symlink_to("nowhere")
        reason = "it is a symbolic link to nothing"
    for error in await reasons(opens(root, open_files), source):
        assert f"cannot be used: {reason}." in error.what
        assert "make `imageDir`" in error.remedy


@WAYS
@pytest_twisted.ensureDeferred
async def test_full(opens: Opens, root: Path, source: Path, open_files: Any) -> None:
    """A disk without free bytes or without free inodes raises `NoSpace`, also for metadata."""
    with small_disk(root, "size=1m"):
        (root / "other").write_bytes(bytes(1 << 20))
        for error in await reasons(opens(root, open_files), source):
            assert isinstance(error, NoSpace)
        assert names(root) == ["other"]
    with small_disk(root, "size=100m,nr_inodes=2"):
        (root / "other").touch()
        for error in await reasons(opens(root, open_files), source):
            assert isinstance(error, NoSpace)
        assert names(root) == ["other"]


@pytest_twisted.ensureDeferred
async def test_directory_that_takes_no_files(opens: Opens, root: Path, source: Path) -> None:
    """For an unknown reason the error names the request and its reply."""
    root.rmdir()
    root.symlink_to("/proc")
    for error in (await reasons(opens(root, SftpFiles.begin), source))[1:]:
        assert "OPEN" in error.detail
        assert "must own `imageDir`" in error.remedy


@pytest.mark.parametrize(
    ("options", "kind"), [("size=9m", NoSpace), ("ro,size=2m", DeliveryFailed)]
)
@pytest_twisted.ensureDeferred
async def test_message_of_a_program(
    opens: Opens, root: Path, source: Path, options: str, kind: type[PullError]
) -> None:
    """Without statvfs, the message of a writing program names the reason."""
    with small_disk(root, options):
        directory = opens(root, SftpFiles.begin, "-P statvfs")
        with pytest.raises(kind) as caught:
            await directory.install(source, IMAGE, SHA256, ignore)
        assert names(root) == []
    words = "No space left" if kind is NoSpace else "read-only"
    assert words in f"{caught.value.what} {caught.value.detail}"


@pytest_twisted.ensureDeferred
async def test_quota(opens: Opens, root: Path, tmp_path: Path, source: Path) -> None:
    """A full quota, for which SFTP has no status, is recognized by a writing program."""
    programs = tmp_path / "programs"
    programs.mkdir()
    says = "head: error writing 'standard output': Disk quota exceeded"
    (programs / "head").write_text(f'#!/bin/sh\necho "{says}" >&2; exit 1\n')
    (programs / "head").chmod(0o755)
    file_size_limit = f"trap '' XFSZ; ulimit -f {len(CONTENT) // 1024}; PATH={programs}:$PATH"
    directory = opens(root, SftpFiles.begin, before=file_size_limit)
    with pytest.raises(NoSpace) as caught:
        await directory.install(source, IMAGE, SHA256, ignore)
    assert "Disk quota exceeded" in caught.value.detail
    assert names(root) == []
