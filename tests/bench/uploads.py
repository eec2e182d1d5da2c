"""Uploads of a file over SSH by several clients, with their costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from shiftergw.delivery.files import OpenFiles
from shiftergw.delivery.source_file import SourceFile
from shiftergw.plumbing.channel import Channel
from shiftergw.plumbing.threads import Threads
from shiftergw.ssh.connection import SshAccount, SshConnection, connect
from tests.parts import need
from tests.sshd import Sshd

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

IDLE_SECONDS = 60.0
_PYTHON_CLIENTS = Path(__file__).with_name("python_clients.py")


@dataclass(frozen=True)
class Cost:
    """Cost of one upload: seconds, CPU seconds of the client, and seconds without the login.

    The last is None if the client does not tell it.
    """

    wall: float
    cpu: float
    transfer: float | None = None


class UploadUnavailable(Exception):
    """This client cannot be measured; the text says why."""


@dataclass(frozen=True)
class Uploads:
    """Uploads of the file `source` to a server, by a port, as `target`."""

    sshd: Sshd
    port: int
    cipher: str
    source: Path
    target: Path
    reactor: Reactor
    threads: Threads

    # OpenSSH's clients

    async def by_ssh(self) -> Cost:
        """Send a file to a command by OpenSSH's `ssh`."""
        command = f"cat > {self.target}"
        words = ("-p", str(self.port), f"{self.sshd.user}@127.0.0.1", command)
        return self._openssh("ssh", *words, stdin_file=self.source)

    async def by_sftp(self) -> Cost:
        """Upload a file by OpenSSH's `sftp`."""
        batch = self.sshd.root / "batch"
        batch.write_text(f"put {self.source} {self.target}\n")
        words = ("-P", str(self.port), "-b", "-", f"{self.sshd.user}@127.0.0.1")
        return self._openssh("sftp", *words, stdin_file=batch)

    async def by_scp(self, *options: str) -> Cost:
        """Upload a file by OpenSSH's `scp`."""
        remote_target = f"{self.sshd.user}@127.0.0.1:{self.target}"
        words = ("-P", str(self.port), *options, str(self.source), remote_target)
        return self._openssh("scp", *words, stdin_file=Path(os.devnull))

    def _openssh(self, program: str, *arguments: str, stdin_file: Path) -> Cost:
        """Run one of OpenSSH's clients with its input from a file."""
        options = {
            "IdentityFile": str(self.sshd.key),
            "UserKnownHostsFile": str(self.sshd.known_hosts),
        }
        settings = [word for pair in options.items() for word in ("-o", "=".join(pair))]
        argv = [need(program), "-F", "none", *settings, *arguments]
        begin = time.monotonic()
        with stdin_file.open("rb") as file:
            process = subprocess.Popen(argv, stdin=file, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        return Cost(time.monotonic() - begin, usage.ru_utime + usage.ru_stime)

    # Other clients for Python

    async def by_package(self, package: str) -> Cost:
        """Upload a file by another SSH client for Python, if it is installed."""
        if find_spec(package) is None:
            raise UploadUnavailable(
                f"{package} is not installed; `pip install .[bench]` installs it"
            )
        return self._package(package)

    def _package(self, package: str) -> Cost:
        sshd = self.sshd
        words = [self.port, sshd.user, sshd.key, sshd.known_hosts, self.cipher]
        argv = [sys.executable, _PYTHON_CLIENTS, package, *words, self.source, self.target]
        done = subprocess.run([str(word) for word in argv], stdout=subprocess.PIPE, check=False)
        if done.returncode:
            raise UploadUnavailable(f"{package} failed with {self.cipher}")
        return Cost(**json.loads(done.stdout))

    # Our client

    async def by_our_stream(self) -> Cost:
        """Send a file to a command by our connection."""

        async def upload(connection: SshConnection, file: SourceFile) -> None:
            channel = await connection.open_command(["sh", "-c", f"cat > {self.target}"])
            await _stream(channel, file)
            assert await channel.closed == 0

        return await self._our_client(upload)

    async def by_our_files(self, open_files: OpenFiles) -> Cost:
        """Upload a file as the gateway does, by one of its file protocols."""

        async def upload(connection: SshConnection, file: SourceFile) -> None:
            files = await open_files(connection, self.reactor, IDLE_SECONDS)
            await files.upload(os.fsencode(self.target), file, None, lambda _: None)

        return await self._our_client(upload)

    async def _our_client(
        self, upload: Callable[[SshConnection, SourceFile], Awaitable[None]]
    ) -> Cost:
        begin, cpu = time.monotonic(), time.process_time()
        with self.source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            async with self._connection() as connection:
                login_end = time.monotonic()
                await upload(connection, SourceFile(file.fileno(), size, self.threads))
                transfer = time.monotonic() - login_end
        return Cost(time.monotonic() - begin, time.process_time() - cpu, transfer)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[SshConnection]:
        sshd = self.sshd
        account = SshAccount(
            "127.0.0.1", self.port, sshd.user, key=sshd.key, known_hosts=sshd.known_hosts
        )
        connection = await connect(account, self.reactor, self.threads, idle_seconds=IDLE_SECONDS)
        try:
            yield connection
        finally:
            await connection.close()


@implementer(IPushProducer)
class _Gate:
    """A producer that `_stream` can wait for."""

    def __init__(self) -> None:
        self.resumption: Deferred[None] | None = None

    def pauseProducing(self) -> None:
        self.resumption = Deferred()

    def resumeProducing(self) -> None:
        resumption, self.resumption = self.resumption, None
        if resumption is not None:
            resumption.callback(None)

    def stopProducing(self) -> None:
        self.resumeProducing()


async def _stream(channel: Channel, file: SourceFile) -> None:
    gate = _Gate()
    channel.registerProducer(gate, streaming=True)
    with file.blocks(0) as blocks:
        async for block in blocks:
            channel.write(block)
            if gate.resumption is not None:
                await gate.resumption
    channel.unregisterProducer()
    channel.end_input()
