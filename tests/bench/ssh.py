"""Measure the speed and the CPU time of uploads over SSH: `python -m tests.bench.ssh`.

One file is uploaded to OpenSSH's sshd by OpenSSH's clients, by ours, and by other packages for
Python if they are installed (`pip install .[bench]`), with the same cipher in the same run. Uploads
go over the loopback, and through a proxy with a long round trip. Figures are medians of several
rounds, with connection and login; CPU time is that of the client. Files are in memory if the
machine has such a directory, since our client syncs them to the disk and other clients do not. Only
the ratios are valid on another machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from shiftergw.delivery.scp_files import ScpFiles
from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.plumbing.threads import Threads
from tests.bench.uploads import Cost, Uploads, UploadUnavailable
from tests.distance import RATE, ROUND_TRIP, Distance
from tests.sshd import Sshd

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

SPEED_BAR = 1.1
CPU_BAR = 1.3
SHARE_BAR = 0.8
COUNTERPARTS = {
    "ssh cat": "ssh cat",
    "ours, cat": "ssh cat",
    "scp -O": "scp -O",
    "ours, SCP": "scp -O",
}
"""The program to compare a client with, if that is not `sftp`."""

MEMORY = Path("/dev/shm")

Ways = Mapping[str, Callable[[], Awaitable[Cost]]]
one_session = partial(SftpFiles.begin, rate=1.0)


def loopback_ways(uploads: Uploads) -> Ways:
    """Return the clients to compare on the loopback."""
    return {
        "ssh cat": uploads.by_ssh,
        "ours, cat": uploads.by_our_stream,
        "sftp": uploads.by_sftp,
        "ours, SFTP": partial(uploads.by_our_files, SftpFiles.begin),
        "scp": uploads.by_scp,
        "scp -O": partial(uploads.by_scp, "-O"),
        "ours, SCP": partial(uploads.by_our_files, ScpFiles.begin),
        "asyncssh": partial(uploads.by_package, "asyncssh"),
        "paramiko": partial(uploads.by_package, "paramiko"),
    }


def long_link_ways(uploads: Uploads) -> Ways:
    """Return the clients to compare over the long link."""
    return {
        "sftp": uploads.by_sftp,
        "scp": uploads.by_scp,
        "ours, one session": partial(uploads.by_our_files, one_session),
        "ours, SFTP": partial(uploads.by_our_files, SftpFiles.begin),
        "ours, SCP": partial(uploads.by_our_files, ScpFiles.begin),
    }


async def measure(uploads: Uploads, ways: Ways, rounds: int) -> dict[str, Cost | str]:
    """Upload with all clients in turn; return the median cost of each, or why there is none."""
    results: dict[str, list[Cost]] = {name: [] for name in ways}
    missing: dict[str, str] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            uploads.target.unlink(missing_ok=True)
            try:
                results[name].append(await way())
            except UploadUnavailable as error:
                missing[name] = escape(str(error))
                continue
            assert uploads.target.stat().st_size == uploads.source.stat().st_size
    return {name: missing.get(name) or _median(costs) for name, costs in results.items()}


def _median(costs: list[Cost]) -> Cost:
    transfer = [cost.transfer for cost in costs if cost.transfer is not None]
    return Cost(
        statistics.median(cost.wall for cost in costs),
        statistics.median(cost.cpu for cost in costs),
        statistics.median(transfer) if transfer else None,
    )


@dataclass(frozen=True)
class Part:
    """One table: its clients, its columns and rows, and whether the link is long."""

    title: str
    columns: Sequence[str]
    ways: Callable[[Uploads], Ways]
    row: Callable[[str, Mapping[str, Cost | str], int], Sequence[str]]
    long: bool = False

    async def table(self, bench: Bench, size: int) -> Table:
        """Measure with each cipher, and return the table."""
        table = Table("cipher", "client", *self.columns, title=self.title)
        for cipher in bench.ciphers:
            with Sshd(f"Ciphers {cipher}") as sshd, ExitStack() as stack:
                port = sshd.port
                if self.long:
                    port = stack.enter_context(Distance(sshd.port)).port
                    sshd.trust_port(port)
                uploads = bench.uploads(sshd, port, cipher)
                costs = await measure(uploads, self.ways(uploads), bench.rounds)
            for way, cost in costs.items():
                cells = ["", cost] if isinstance(cost, str) else self.row(way, costs, size)
                table.add_row(cipher, way, *cells)
        return table


def comparison(way: str, costs: Mapping[str, Cost | str], size: int) -> Sequence[str]:
    """Return MB/s, CPU s/GB, their ratios to the comparable program, and the limits."""
    cost, reference = costs[way], costs[COUNTERPARTS.get(way, "sftp")]
    assert isinstance(cost, Cost)
    assert isinstance(reference, Cost)
    speed, cpu = reference.wall / cost.wall, cost.cpu / reference.cpu
    bars = ""
    if way == "ours, SFTP":
        bars = f"{_bar(SPEED_BAR, speed >= SPEED_BAR)} {_bar(CPU_BAR, cpu <= CPU_BAR)}"
    return [*_figures(cost, size), f"{speed:.2f}", f"{cpu:.2f}", bars]


def share(way: str, costs: Mapping[str, Cost | str], size: int) -> Sequence[str]:
    """Return MB/s, CPU s/GB, the share of the link with and without the login, and the limit.

    The limit applies to the upload alone, from the first request about the file to the sync.
    """
    cost = costs[way]
    assert isinstance(cost, Cost)
    whole = f"{size / cost.wall / RATE:.0%}"
    if cost.transfer is None:
        return [*_figures(cost, size), whole, "", ""]
    transfer = size / cost.transfer / RATE
    bar = _bar(SHARE_BAR, transfer >= SHARE_BAR) if way == "ours, SFTP" else ""
    return [*_figures(cost, size), whole, f"{transfer:.0%}", bar]


def _figures(cost: Cost, size: int) -> tuple[str, str]:
    return f"{size / cost.wall / 1e6:.0f}", f"{cost.cpu / size * 1e9:.2f}"


def _bar(bar: float, is_met: bool) -> str:
    return f"{bar}: {'met' if is_met else 'missed'}"


PARTS = {
    "near": Part(
        "on the loopback",
        ["MB/s", "CPU s/GB", "speed", "CPU", "bars"],
        loopback_ways,
        comparison,
    ),
    "far": Part(
        f"{ROUND_TRIP * 1000:.0f} ms away, by a link of {RATE * 8 / 1e9:g} Gbit/s",
        ["MB/s", "CPU s/GB", "of the link", "without login", "bar"],
        long_link_ways,
        share,
        long=True,
    ),
}


@dataclass(frozen=True)
class Bench:
    """The settings that all measurements share."""

    directory: Path
    ciphers: Sequence[str]
    rounds: int
    reactor: Reactor
    threads: Threads

    def uploads(self, sshd: Sshd, port: int, cipher: str) -> Uploads:
        """Return the uploads to a server."""
        source, target = self.source, self.directory / "target"
        return Uploads(sshd, port, cipher, source, target, self.reactor, self.threads)

    @property
    def source(self) -> Path:
        """Return the path of the file to upload."""
        return self.directory / "source"


async def compare(reactor: Reactor, options: argparse.Namespace) -> None:
    """Make a file, measure uploads of it, and print the tables."""
    threads = Threads(reactor, 4, "bench")
    threads.startService()
    try:
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            bench = Bench(Path(directory), options.ciphers, options.rounds, reactor, threads)
            with bench.source.open("wb") as file:
                for _ in range(options.megabytes):
                    file.write(os.urandom(1_000_000))
            for part in options.parts:
                Console(width=120).print(
                    await PARTS[part].table(bench, options.megabytes * 1_000_000)
                )
    finally:
        await threads.stopService()


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--directory",
        type=Path,
        default=MEMORY if MEMORY.is_dir() else None,
        help="for the files",
    )
    parser.add_argument(
        "--ciphers", nargs="+", default=["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"]
    )
    options = parser.parse_args()
    react(lambda reactor: Deferred.fromCoroutine(compare(reactor, options)))


if __name__ == "__main__":
    main()
