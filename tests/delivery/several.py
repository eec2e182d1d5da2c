"""Systems of several hosts for tests: ways to real servers, by both transports."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from shiftergw.delivery.files import OpenFiles
from shiftergw.delivery.hosts import Connect, Hosts
from shiftergw.delivery.remote import RemoteDirectory, RemoteOptions
from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.plumbing.channel import Connection
from shiftergw.plumbing.threads import Threads
from shiftergw.ssh import connection as ssh
from shiftergw.ssh.openssh import OpenSsh
from tests.delivery import native
from tests.delivery.far import FIRST_PAUSE, IDLE_SECONDS, account_on, reactor
from tests.sshd import Sshd

CONNECT_SECONDS = 1.0


class System:
    """Makes ways to hosts, and adapters that use them."""

    def __init__(self, transport: str, threads: Threads) -> None:
        """Use our own SSH, or the machine's."""
        self.transport = transport
        self._threads = threads
        self.made: list[RemoteDirectory] = []
        self.connections: list[Connection] = []

    def way(self, sshd: Sshd, connect_seconds: float = CONNECT_SECONDS, **changes: Any) -> Connect:
        """Return the way to a server, with an account changed in these places."""

        async def by_our_own() -> Connection:
            self.connections.append(
                await ssh.connect(
                    replace(native.account(sshd), **changes),
                    reactor,
                    self._threads,
                    connect_seconds=connect_seconds,
                    idle_seconds=IDLE_SECONDS,
                    environment={},
                )
            )
            return self.connections[-1]

        async def by_openssh() -> Connection:
            account = account_on(sshd, **changes)
            self.connections.append(
                OpenSsh(account, os.environ, reactor, reactor, IDLE_SECONDS, connect_seconds)
            )
            return self.connections[-1]

        return by_our_own if self.transport == "conch" else by_openssh

    def alive(self) -> int:
        """Return how many connections there are."""
        return sum(
            bool(one._children) if isinstance(one, OpenSsh) else bool(getattr(one, "usable", 0))
            for one in self.connections
        )

    def directory(
        self,
        ways: Sequence[Connect],
        path: PurePosixPath | Path,
        first_pause: float = FIRST_PAUSE,
        idle_seconds: float = IDLE_SECONDS,
        open_files: OpenFiles = SftpFiles.begin,
    ) -> RemoteDirectory:
        """Return the adapter for a system with hosts called a, b and so on."""
        hosts = Hosts(dict(zip("abc", ways, strict=False)), reactor)
        self.made.append(
            RemoteDirectory(
                hosts,
                PurePosixPath(path),
                self._threads,
                reactor,
                RemoteOptions(
                    idle_seconds=idle_seconds, open_files=open_files, first_pause=first_pause
                ),
            )
        )
        return self.made[-1]
