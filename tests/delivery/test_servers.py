"""SFTP servers that lack requests, or whose configuration forbids them."""

from __future__ import annotations

import shlex
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest
import pytest_twisted

from shiftergw.delivery.remote import RemoteDirectory
from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.errors import DeliveryFailed
from shiftergw.model.records import Progress
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import ImageDirectory, Verification
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused
from tests.delivery.contract import CONTENT, IMAGE, META, SHA256, ImageDirectoryContract, ignore
from tests.delivery.contract import names as names_in
from tests.delivery.delta_contract import SharedRangesContract
from tests.delivery.far import (
    UNUSED_ACCOUNT,
    Opens,
    closing,
    connection,
    far_directory,
    without_ssh,
)
from tests.delivery.test_remote_refusals import LONG, LONG_SHA256, PART
from tests.installed_reactor import reactor


@pytest.fixture
def opens(
    threads: Threads, root: Path, tmp_path: Path, directories: list[RemoteDirectory]
) -> Opens:
    """Give a function that opens image directories on a server with options."""

    def open_directory(options: str = "", env: Mapping[str, str] | None = None) -> RemoteDirectory:
        env = env or without_ssh(tmp_path / "bin", options=options)
        directories.append(far_directory(UNUSED_ACCOUNT, PurePosixPath(root), threads, env))
        return directories[-1]

    return open_directory


# Requests that a server forbids: deliveries work without them, or the error names this request.
FORBIDDEN_REQUESTS = {
    "posix-rename": "",
    "fsync": "",
    "statvfs": "",
    "fstatvfs": "",
    "limits": "",
    "fstat": "",
    "setstat": "",
    "fsetstat": "",
    "fsetstat,setstat": "",
    "lsetstat": "",
    "hardlink": "",
    "stat": "",
    "realpath": "",
    "copy-data": "",
    "expand-path": "",
    "posix-rename,fsync,statvfs,limits,fstat,setstat,fsetstat": "",
    "posix-rename,rename": "RENAME",
    "lstat": "LSTAT",
    "open": "OPEN",
    "write": "WRITE",
    "read": "READ",
    "close": "CLOSE",
    "remove": "REMOVE",
}


@pytest.mark.parametrize("requests", FORBIDDEN_REQUESTS)
@pytest_twisted.ensureDeferred
async def test_forbidden_request(opens: Opens, root: Path, source: Path, requests: str) -> None:
    """A delivery works, or names the request it needs; no partial file has the final name."""
    needed_request = FORBIDDEN_REQUESTS[requests]
    (root / IMAGE).write_bytes(b"old")
    directory = opens(f"-P {requests}")
    if not needed_request:
        assert await directory.install(source, IMAGE, SHA256, ignore) == Verification("sha256")
        assert (root / IMAGE).stat().st_mode == stat.S_IFREG | 0o600
        assert (root / IMAGE).read_bytes() == CONTENT
        for content in (b"first", b"second"):
            await directory.write(content, META)
            assert (root / META).read_bytes() == content
        assert [file.name for file in await directory.list()] == sorted([IMAGE, META])
        assert await directory.sweep(0) == 0
        assert await directory.free_space() > 0
        assert await directory.digest(IMAGE) == SHA256
        await directory.remove(IMAGE)
        assert names_in(root) == [META]
        return
    with pytest.raises(DeliveryFailed) as caught:
        await _deliver(directory, source)
    assert f"must allow {needed_request}" in caught.value.remedy
    assert (root / IMAGE).read_bytes() == (CONTENT if requests == "read" else b"old")
    assert names_in(root) == [IMAGE]


async def _deliver(directory: RemoteDirectory, source: Path) -> None:
    """Deliver an image, then its metadata, which is read back."""
    await directory.install(source, IMAGE, SHA256, ignore)
    await directory.write(b"first", META)


@pytest.mark.parametrize("requests", ["fsetstat", "fsetstat,setstat"])
@pytest_twisted.ensureDeferred
async def test_part_that_others_may_read(
    opens: Opens, root: Path, tmp_path: Path, requests: str
) -> None:
    """The mode of a file is set by its name if that is allowed; otherwise the error says why."""
    source = tmp_path / "long"
    source.write_bytes(LONG)
    part = root / PART
    part.write_bytes(LONG[:-1])
    part.chmod(0o644)
    directory = opens(f"-P {requests}")
    if requests == "fsetstat":
        await directory.install(source, IMAGE, LONG_SHA256, ignore)
        assert (root / IMAGE).stat().st_mode == stat.S_IFREG | 0o600
        return
    with pytest.raises(DeliveryFailed, match="close a delivered file to other users") as caught:
        await directory.install(source, IMAGE, LONG_SHA256, ignore)
    assert "mode is 0644" in caught.value.detail
    assert "FSETSTAT" in caught.value.remedy
    assert names_in(root) == []


@pytest_twisted.ensureDeferred
async def test_plain_rename_of_a_missing_file(tmp_path: Path, root: Path) -> None:
    """A rename that fails because the new file is missing leaves the old file in place."""
    env = without_ssh(tmp_path / "bin", options="-P posix-rename")
    link = connection(UNUSED_ACCOUNT, env)
    files = await SftpFiles.begin(link, reactor, 30.0)
    (root / IMAGE).write_bytes(b"old")
    with pytest.raises(SftpRefused) as caught:
        await files.rename(bytes(root / PART), bytes(root / IMAGE))
    assert caught.value.status == packets.NO_SUCH_FILE
    assert (root / IMAGE).read_bytes() == b"old"
    files.close()
    await link.close()


def conch_server(directory: Path, *arguments: str, umask: str) -> Mapping[str, str]:
    """Return an environment whose `ssh` runs Conch's SFTP server."""
    program = [sys.executable, "-m", "tests.delivery.conch_sftp_server", *arguments]
    before = f'umask {umask}; [ -n "$server" ] && exec {shlex.join(program)}'
    return without_ssh(directory, before=before)


@pytest.mark.parametrize("umask", ["077", "022"])
@pytest_twisted.ensureDeferred
async def test_server_that_creates_no_file_with_a_mode(
    opens: Opens, root: Path, tmp_path: Path, source: Path, umask: str
) -> None:
    """A new file has the mode of the server; nothing is written if other users may read it."""
    directory = opens(env=conch_server(tmp_path / "bin", "no-chmod", umask=umask))
    reports: list[Progress] = []
    if umask == "077":
        verification = await directory.install(source, IMAGE, SHA256, reports.append)
        assert verification == Verification("sha256")
        assert 0 < verification.seconds < 300
        await directory.write(b"x", META)
        for name in (IMAGE, META):
            assert (root / name).stat().st_mode == stat.S_IFREG | 0o600
        assert (root / IMAGE).read_bytes() == CONTENT
        return
    with pytest.raises(DeliveryFailed, match="close a delivered file to other users") as caught:
        await directory.install(source, IMAGE, SHA256, reports.append)
    assert "mode is 0644" in caught.value.detail
    assert reports == []
    assert names_in(root) == []


class TestConch(ImageDirectoryContract, SharedRangesContract):
    """The contract, on Conch's SFTP server, which cannot set the mode of an open file."""

    @pytest.fixture
    def directory(self, root: Path, threads: Threads, tmp_path: Path) -> Iterator[RemoteDirectory]:
        """Give an image directory."""
        env = conch_server(tmp_path / "bin", umask="022")
        yield from closing(far_directory(UNUSED_ACCOUNT, PurePosixPath(root), threads, env))

    @pytest_twisted.ensureDeferred
    async def test_free_space(self, directory: ImageDirectory, root: Path) -> None:
        """Unknown free space counts as enough."""
        assert await directory.free_space() > 1 << 60
