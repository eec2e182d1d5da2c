"""Measure the cost of a look-up: `python -m tests.bench.lookups`.

Clients look up an image over open connections at two gateways in turn. One gateway identifies its
users by munge, the other by mock credentials. The cost of a look-up is the CPU time of the
gateway's process and of `munged`; the rate is that of all clients together. Rounds are interleaved,
and the table shows medians. The ratio compares the two costs of the same round, since other work of
the machine affects both. Only ratios are valid on another machine.
"""

from __future__ import annotations

import argparse
import http.client
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shiftergw.auth.munge_client import encode
from tests.images import entry, oci_layout, tar_of
from tests.munged import MungeDaemon
from tests.registries import DockerRegistry
from tests.running_service import ALICE, SYSTEM, Service

IMAGE = "lib/app:1"
PATH = f"/api/lookup/{SYSTEM}/docker/lib%2Fapp%3A1/"
BAR = 1.5


@dataclass(frozen=True)
class Cost:
    """Seconds for one look-up: CPU time of the gateway, CPU time of munged, and wall time."""

    cpu: float
    daemon: float
    wall: float


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process so far (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(port: int, credentials: Sequence[str]) -> None:
    """Look up once with each credential, over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for credential in credentials:
        connection.request("GET", PATH, headers={"authentication": credential})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
    connection.close()


def measure(
    service: Service, munged: MungeDaemon, credentials: Sequence[str], clients: int
) -> Cost:
    """Look up once with each credential, in equal shares by the clients; return the mean cost."""
    shares = [credentials[number::clients] for number in range(clients)]

    def now() -> tuple[float, float, float]:
        return cpu_of(service.pid), cpu_of(munged.pid), time.monotonic()

    before = now()
    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(lambda share: ask(service.port, share), shares))
    differences = (after - start for after, start in zip(now(), before, strict=True))
    return Cost(*(seconds / len(credentials) for seconds in differences))


def compare(count: int, clients: int, rounds: int) -> list[tuple[Cost, Cost]]:
    """Return the costs of each round with munge and with mock credentials."""
    with tempfile.TemporaryDirectory() as name, MungeDaemon() as munged:
        root = Path(name)
        oci_layout(root / "image", [tar_of([entry("etc")])])
        with DockerRegistry(root / "registry") as registry:
            registry.push(root / "image", IMAGE)
            locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
            changes = {"Authentication": "munge"}
            with (
                Service(root / "mock", locations) as mock,
                Service(root / "munge", locations, changes, munged=munged.socket) as real,
            ):
                return _compare(mock, real, munged, count, clients, rounds)


def _compare(
    mock: Service, real: Service, munged: MungeDaemon, count: int, clients: int, rounds: int
) -> list[tuple[Cost, Cost]]:
    assert mock.pull(IMAGE)["status"] == "READY"
    while real.poll(IMAGE, encode(b"", munged.socket))["status"] != "READY":
        time.sleep(0.1)
    costs: list[tuple[Cost, Cost]] = []
    for _ in range(rounds + 1):
        credentials = [encode(b"", munged.socket) for _ in range(count)]
        with_munge = measure(real, munged, credentials, clients)
        costs.append((with_munge, measure(mock, munged, [ALICE] * count, clients)))
    return costs[1:]  # the first round warms up


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(*(statistics.median(column) for column in zip(*map(astuple, costs), strict=True)))


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lookups", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    options = parser.parse_args()
    table = Table("clients", "users by", "gateway µs", "munged µs", "look-ups/s", "ratio", "bar")
    for clients in options.clients:
        rounds = compare(options.lookups, clients, options.rounds)
        ratios = [munge.cpu / mock.cpu for munge, mock in rounds]
        low, ratio, high = statistics.quantiles(ratios)
        spread = f"{ratio:.2f} ({low:.2f} to {high:.2f})"
        bar = f"{BAR}: {'met' if ratio < BAR else 'missed'}"
        for name, costs, *verdict in (
            ("munge", [munge for munge, _ in rounds], spread, bar),
            ("mock", [mock for _, mock in rounds], "1", ""),
        ):
            cost = _median(costs)
            micros = [f"{seconds * 1e6:.0f}" for seconds in (cost.cpu, cost.daemon)]
            table.add_row(str(clients), name, *micros, f"{1 / cost.wall:.0f}", *verdict)
    Console().print(table)


if __name__ == "__main__":
    main()
