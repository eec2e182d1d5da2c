"""The image directory on another machine over our own SSH connection: the contract of them all."""

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
from tests.delivery.contract import ImageDirectoryContract
from tests.delivery.native import account, reactor
from tests.sshd import Sshd

IDLE_SECONDS = 20.0


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """Run a server."""
    with Sshd() as running:
        yield running


class TestNative(ImageDirectoryContract):
    """The contract, by Conch to OpenSSH's server."""

    @pytest.fixture
    def directory(self, root: Path, threads: Threads, sshd: Sshd) -> Iterator[RemoteDirectory]:
        """Give the adapter, and close it afterwards."""

        async def begin() -> SshConnection:
            return await connect(account(sshd), reactor, threads, idle_seconds=IDLE_SECONDS)

        hosts = Hosts({"far": begin}, reactor)
        made = RemoteDirectory(
            hosts, PurePosixPath(root), threads, reactor, RemoteOptions(idle_seconds=IDLE_SECONDS)
        )
        yield made
        pytest_twisted.blockon(Deferred.fromCoroutine(made.close()))
