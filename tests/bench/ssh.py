"""How fast files go to another machine, and what it costs: `python -m tests.bench.ssh`.

One file goes to OpenSSH's sshd on the loopback, by OpenSSH's clients and by ours, with the same
cipher in the same run. A figure is the median of some rounds, with connecting and logging in; CPU
is the client's own. Only the ratios hold on another machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import react
from zope.interface import implementer

from shiftergw.delivery import sftp_packets
from shiftergw.delivery.channel import Channel
from shiftergw.delivery.reading import SourceFile
from shiftergw.delivery.sftp import Sftp
from shiftergw.delivery.ssh import Account, SshConnection, connect
from shiftergw.plumbing.threads import Threads
from tests.parts import need
from tests.sshd import Sshd

IDLE_SECONDS = 60.0
SPEED_BAR = 1.1
CPU_BAR = 1.3
WRITE = sftp_packets.FOR_WRITING | sftp_packets.CREATE


@dataclass(frozen=True)
class Cost:
    """What one upload took: seconds, and CPU seconds of the client."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Bench:
    """A server, a file for it, and where it is to go."""

    sshd: Sshd
    source: Path
    target: Path
    reactor: Any
    threads: Threads

    def openssh(self, program: str, *arguments: str, given: Path) -> Cost:
        """Run one of OpenSSH's clients with its input from a file."""
        options = {
            "Port": str(self.sshd.port),
            "IdentityFile": str(self.sshd.key),
            "UserKnownHostsFile": str(self.sshd.known_hosts),
        }
        settings = [word for pair in options.items() for word in ("-o", "=".join(pair))]
        argv = [need(program), "-F", "none", *settings, *arguments]
        began = time.monotonic()
        with given.open("rb") as file:
            process = subprocess.Popen(argv, stdin=file, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        return Cost(time.monotonic() - began, usage.ru_utime + usage.ru_stime)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[SshConnection]:
        """Give a connection of ours."""
        sshd = self.sshd
        account = Account(
            "127.0.0.1", sshd.port, sshd.user, key=sshd.key, known_hosts=sshd.known_hosts
        )
        made = await connect(account, self.reactor, self.threads, idle_seconds=IDLE_SECONDS)
        try:
            yield made
        finally:
            await made.close()

    async def ours(self, upload: Callable[[SourceFile], Awaitable[None]]) -> Cost:
        """Run one of our own uploads."""
        began, cpu = time.monotonic(), time.process_time()
        descriptor = os.open(self.source, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            await upload(SourceFile(descriptor, size, self.threads))
        finally:
            os.close(descriptor)
        return Cost(time.monotonic() - began, time.process_time() - cpu)

    async def by_ssh(self) -> Cost:
        """Give a file to a command by OpenSSH's `ssh`."""
        command = f"cat > {self.target}"
        return self.openssh("ssh", f"{self.sshd.user}@127.0.0.1", command, given=self.source)

    async def by_sftp(self) -> Cost:
        """Put a file by OpenSSH's `sftp`."""
        batch = self.sshd.root / "batch"
        batch.write_text(f"put {self.source} {self.target}\n")
        return self.openssh("sftp", "-b", "-", f"{self.sshd.user}@127.0.0.1", given=batch)

    async def by_our_stream(self) -> Cost:
        """Give a file to a command by our connection."""

        async def upload(file: SourceFile) -> None:
            async with self.connection() as connection:
                channel = await connection.open_command(["sh", "-c", f"cat > {self.target}"])
                await _stream(channel, file)
                assert await channel.closed == 0

        return await self.ours(upload)

    async def by_our_sftp(self) -> Cost:
        """Put a file by our connection and our SFTP."""

        async def upload(file: SourceFile) -> None:
            async with self.connection() as connection:
                channel = await connection.open_subsystem("sftp")
                sftp = await Sftp.begin(channel, self.reactor, IDLE_SECONDS)
                handle = await sftp.open(os.fsencode(self.target), WRITE)
                with file.blocks(0) as blocks:
                    await sftp.write(handle, 0, blocks, lambda _: None)
                await sftp.close_handle(handle)
                sftp.close()

        return await self.ours(upload)


@implementer(IPushProducer)
class _Gate:
    """A producer that can be waited for."""

    def __init__(self) -> None:
        self.closed: Deferred[None] | None = None

    def pauseProducing(self) -> None:
        self.closed = Deferred()

    def resumeProducing(self) -> None:
        closed, self.closed = self.closed, None
        if closed is not None:
            closed.callback(None)

    def stopProducing(self) -> None:
        self.resumeProducing()


async def _stream(channel: Channel, file: SourceFile) -> None:
    gate = _Gate()
    channel.registerProducer(gate, streaming=True)
    with file.blocks(0) as blocks:
        async for block in blocks:
            channel.write(block)
            if gate.closed is not None:
                await gate.closed
    channel.unregisterProducer()
    channel.end_input()


async def measure(bench: Bench, rounds: int) -> dict[str, Cost]:
    """Return the medians of all ways, which take turns."""
    ways = {
        "ssh cat": bench.by_ssh,
        "ours, cat": bench.by_our_stream,
        "sftp": bench.by_sftp,
        "ours, SFTP": bench.by_our_sftp,
    }
    found: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            bench.target.unlink(missing_ok=True)
            found[name].append(await way())
            assert bench.target.stat().st_size == bench.source.stat().st_size
    return {
        name: Cost(
            statistics.median(cost.wall for cost in costs),
            statistics.median(cost.cpu for cost in costs),
        )
        for name, costs in found.items()
    }


async def compare(reactor: Any, given: argparse.Namespace) -> None:
    """Measure with each cipher, and print it."""
    size = given.megabytes * 1_000_000
    table = Table("cipher", "client", "MB/s", "CPU s/GB", "speed", "CPU", "bars")
    threads = Threads(reactor, 4, "bench")
    threads.startService()
    try:
        with tempfile.TemporaryDirectory(dir=given.directory) as name:
            source = Path(name) / "source"
            with source.open("wb") as file:
                for _ in range(given.megabytes):
                    file.write(os.urandom(1_000_000))
            for cipher in given.ciphers:
                with Sshd(f"Ciphers {cipher}") as sshd:
                    bench = Bench(sshd, source, Path(name) / "target", reactor, threads)
                    costs = await measure(bench, given.rounds)
                for way, cost in costs.items():
                    table.add_row(cipher, way, *_row(way, cost, costs, size))
    finally:
        await threads.stopService()
    Console(width=120).print(table)


def _row(way: str, cost: Cost, costs: dict[str, Cost], size: int) -> list[str]:
    other = costs["sftp" if "sftp" in way.lower() else "ssh cat"]
    speed, cpu = other.wall / cost.wall, cost.cpu / other.cpu
    bars = ""
    if way == "ours, SFTP":
        met = [speed >= SPEED_BAR, cpu <= CPU_BAR]
        bars = " ".join(
            f"{bar}: {'met' if ok else 'missed'}"
            for bar, ok in zip((SPEED_BAR, CPU_BAR), met, strict=True)
        )
    figures = f"{size / cost.wall / 1e6:.0f}", f"{cost.cpu / size * 1e9:.2f}"
    return [*figures, f"{speed:.2f}", f"{cpu:.2f}", bars]


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where the files lie")
    parser.add_argument(
        "--ciphers", nargs="+", default=["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"]
    )
    given = parser.parse_args()
    react(lambda reactor: Deferred.fromCoroutine(compare(reactor, given)))


if __name__ == "__main__":
    main()
