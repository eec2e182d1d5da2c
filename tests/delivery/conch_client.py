"""Connect with Conch in tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.channel import Channel, Connection
from shiftergw.plumbing.threads import Threads
from shiftergw.ssh.connection import SshAccount, SshConnection, connect
from tests.installed_reactor import reactor
from tests.sshd import Sshd


def account(sshd: Sshd) -> SshAccount:
    """Return this user's account on a server of the tests."""
    return SshAccount("127.0.0.1", sshd.port, sshd.user, key=sshd.key, known_hosts=sshd.known_hosts)


@asynccontextmanager
async def open_connection(
    sshd: Sshd,
    threads: Threads,
    *,
    idle_seconds: float = 20,
    environment: Mapping[str, str] | None = None,
    **changes: Any,
) -> AsyncIterator[SshConnection]:
    """Give the block a connection; `changes` replace fields of the account."""
    connection = await connect(
        replace(account(sshd), **changes),
        reactor,
        threads,
        connect_seconds=20,
        idle_seconds=idle_seconds,
        environment=environment or {},
    )
    try:
        yield connection
    finally:
        await connection.close()


async def refusal(sshd: Sshd, threads: Threads, **changes: Any) -> DeliveryFailed:
    """Return the error with which connecting fails."""
    with pytest.raises(DeliveryFailed) as caught:
        async with open_connection(sshd, threads, **changes):
            pass
    return caught.value


async def finish(channel: Channel, stdin: bytes = b"") -> tuple[int | None, bytes]:
    """Send a program its whole input; return its exit status and its output."""
    output: list[bytes] = []
    channel.receive(output.append)
    channel.write(stdin)
    channel.end_input()
    return await channel.closed, b"".join(output)


async def run(connection: Connection, *argv: str, stdin: bytes = b"") -> tuple[int | None, bytes]:
    """Run a program on the server; return its exit status and its output."""
    return await finish(await connection.open_command(argv), stdin)
