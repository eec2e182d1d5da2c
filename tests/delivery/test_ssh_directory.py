"""The contract of image directories, over a connection with Conch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.delivery.hosts import Hosts
from shiftergw.delivery.remote import RemoteDirectory, RemoteOptions
from shiftergw.plumbing.threads import Threads
from shiftergw.ssh.connection import SshConnection, connect
from tests.delivery.conch_client import account
from tests.delivery.contract import ImageDirectoryContract
from tests.delivery.delta_contract import SharedRangesContract
from tests.installed_reactor import reactor
from tests.sshd import Sshd

IDLE_SECONDS = 20.0


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """Run a server."""
    with Sshd() as running:
        yield running


class TestConchClient(ImageDirectoryContract, SharedRangesContract):
    """The contract, with Conch and OpenSSH's server."""

    @pytest.fixture
    def directory(self, root: Path, threads: Threads, sshd: Sshd) -> Iterator[RemoteDirectory]:
        """Give an image directory, and close it after the test."""

        async def begin() -> SshConnection:
            return await connect(account(sshd), reactor, threads, idle_seconds=IDLE_SECONDS)

        hosts = Hosts({"far": begin}, reactor)
        opened_directory = RemoteDirectory(
            hosts, PurePosixPath(root), threads, reactor, RemoteOptions(idle_seconds=IDLE_SECONDS)
        )
        yield opened_directory
        pytest_twisted.blockon(Deferred.fromCoroutine(opened_directory.close()))
