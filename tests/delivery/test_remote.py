"""The contract of image directories, over SFTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import pytest
import pytest_twisted

from shiftergw.delivery.remote import RemoteDirectory
from shiftergw.plumbing.channel import Connection
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import ImageDirectory
from tests.delivery.contract import ImageDirectoryContract
from tests.delivery.delta_contract import SharedRangesContract
from tests.delivery.far import (
    UNUSED_ACCOUNT,
    account_on,
    closing,
    connection,
    far_directory,
    without_ssh,
)
from tests.parts import need_root
from tests.sshd import Sshd


class TestServerAlone(ImageDirectoryContract, SharedRangesContract):
    """The contract, on OpenSSH's SFTP server as a child process."""

    @pytest.fixture
    def directory(self, root: Path, threads: Threads, tmp_path: Path) -> Iterator[RemoteDirectory]:
        """Give an image directory."""
        env = without_ssh(tmp_path / "bin")
        yield from closing(far_directory(UNUSED_ACCOUNT, PurePosixPath(root), threads, env))


class TestSamples(ImageDirectoryContract, SharedRangesContract):
    """The contract, for an account that cannot run commands."""

    @pytest.fixture
    def directory(self, root: Path, threads: Threads, tmp_path: Path) -> Iterator[RemoteDirectory]:
        """Give an image directory."""
        env = without_ssh(tmp_path / "bin", commands=False)
        yield from closing(far_directory(UNUSED_ACCOUNT, PurePosixPath(root), threads, env))


class TestPlainServer(ImageDirectoryContract, SharedRangesContract):
    """The contract, on a server without extensions of the protocol."""

    @pytest.fixture
    def directory(self, root: Path, threads: Threads, tmp_path: Path) -> Iterator[RemoteDirectory]:
        """Give an image directory."""
        options = "-P posix-rename,fsync,statvfs,limits"
        env = without_ssh(tmp_path / "bin", options=options)
        yield from closing(far_directory(UNUSED_ACCOUNT, PurePosixPath(root), threads, env))

    @pytest_twisted.ensureDeferred
    async def test_free_space(self, directory: ImageDirectory, root: Path) -> None:
        """Unknown free space counts as enough."""
        assert await directory.free_space() > 1 << 60


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """Run a server."""
    with Sshd() as running:
        yield running


class TestSshd(ImageDirectoryContract, SharedRangesContract):
    """The contract, with OpenSSH as client and server."""

    @pytest.fixture
    def directory(self, root: Path, threads: Threads, sshd: Sshd) -> Iterator[RemoteDirectory]:
        """Give an image directory."""
        yield from closing(far_directory(account_on(sshd), PurePosixPath(root), threads))


@pytest.fixture(scope="module")
def jail() -> Iterator[Path]:
    """Give a directory that only root can write to, as ChrootDirectory of sshd requires."""
    need_root()
    with TemporaryDirectory(dir="/run") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(scope="module")
def sftp_only_server(jail: Path) -> Iterator[Sshd]:
    """Run a server whose accounts have SFTP only, and see a part of the file system."""
    with Sshd("ForceCommand internal-sftp", f"ChrootDirectory {jail}") as running:
        yield running


class TestRestrictedAccount(ImageDirectoryContract, SharedRangesContract):
    """The contract, for an account that has SFTP only."""

    @pytest.fixture
    def root(self, jail: Path) -> Iterator[Path]:
        """Give an empty image directory in the jail."""
        path = jail / "site" / "images"
        path.mkdir(parents=True)
        yield path
        shutil.rmtree(path.parent)

    @pytest.fixture
    def directory(
        self, root: Path, threads: Threads, sftp_only_server: Sshd
    ) -> Iterator[RemoteDirectory]:
        """Give an image directory, with the path that the account sees."""
        path = PurePosixPath("/site/images")
        yield from closing(far_directory(account_on(sftp_only_server), path, threads))


def test_it_keeps_the_port(threads: Threads) -> None:
    """The type checker sees that this is an `ImageDirectory`, over a `Connection`."""
    directory = far_directory(UNUSED_ACCOUNT, PurePosixPath("/images"), threads)
    port: ImageDirectory = directory
    over: Connection = connection(UNUSED_ACCOUNT)
    assert port is directory
    assert over is not None
