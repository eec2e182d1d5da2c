"""Systems with several hosts for tests: connections to real servers, with both transports."""

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
from tests.delivery import conch_client
from tests.delivery.far import FIRST_PAUSE, IDLE_SECONDS, account_on
from tests.installed_reactor import reactor
from tests.sshd import Sshd

CONNECT_SECONDS = 1.0


class System:
    """Connects to hosts, and opens image directories on them."""

    def __init__(self, transport: str, threads: Threads) -> None:
        """Use Conch, or the `ssh` of this machine."""
        self.transport = transport
        self._threads = threads
        self.directories: list[RemoteDirectory] = []
        self.connections: list[Connection] = []

    def connector(
        self, sshd: Sshd, connect_seconds: float = CONNECT_SECONDS, **changes: Any
    ) -> Connect:
        """Return a function that connects to a server; `changes` replace fields of the account."""

        async def connect_by_conch() -> Connection:
            self.connections.append(
                await ssh.connect(
                    replace(conch_client.account(sshd), **changes),
                    reactor,
                    self._threads,
                    connect_seconds=connect_seconds,
                    idle_seconds=IDLE_SECONDS,
                    environment={},
                )
            )
            return self.connections[-1]

        async def connect_by_openssh() -> Connection:
            account = account_on(sshd, **changes)
            self.connections.append(
                OpenSsh(account, os.environ, reactor, reactor, IDLE_SECONDS, connect_seconds)
            )
            return self.connections[-1]

        return connect_by_conch if self.transport == "conch" else connect_by_openssh

    def alive(self) -> int:
        """Return how many connections are open."""
        return sum(
            bool(connection._children)
            if isinstance(connection, OpenSsh)
            else bool(getattr(connection, "usable", 0))
            for connection in self.connections
        )

    def directory(
        self,
        connectors: Sequence[Connect],
        path: PurePosixPath | Path,
        first_pause: float = FIRST_PAUSE,
        idle_seconds: float = IDLE_SECONDS,
        open_files: OpenFiles = SftpFiles.begin,
    ) -> RemoteDirectory:
        """Return an image directory on a system whose hosts are called a, b and so on."""
        hosts = Hosts(dict(zip("abc", connectors, strict=False)), reactor)
        self.directories.append(
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
        return self.directories[-1]
