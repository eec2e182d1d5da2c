"""Measure look-ups while a worker delivers an image: `python -m tests.bench.serving`.

A gateway has one remote system, whose sshd runs on this machine, too. One client looks up an image
at a steady pace, first while the gateway is idle, then while it uploads a large image over SSH.
"""

from __future__ import annotations

import argparse
import http.client
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.images import entry, oci_layout, tar_of
from tests.registries import DockerRegistry
from tests.running_service import ALICE, FINAL, SYSTEM, Service
from tests.sshd import Sshd

SMALL, LARGE = "lib/small:1", "lib/large:1"
PATH = f"/api/lookup/{SYSTEM}/docker/lib%2Fsmall%3A1/"
BAR_SECONDS = 0.020


def look_up(port: int, pace: float, is_running: Callable[[], bool]) -> list[float]:
    """Look up every `pace` seconds over one connection; return the seconds of each look-up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    durations = []
    while is_running():
        begin = time.perf_counter()
        connection.request("GET", PATH, headers={"authentication": ALICE})
        answer = connection.getresponse()
        body = answer.read()
        durations.append(time.perf_counter() - begin)
        assert answer.status == 200, body
        time.sleep(max(0.0, pace - durations[-1]))
    connection.close()
    return durations


def during_upload(service: Service, pace: float) -> tuple[list[float], float]:
    """Pull the large image; return the seconds of look-ups during its upload, and of the upload."""
    while (answer := service.poll(LARGE))["status"] != "TRANSFER":
        assert answer["status"] not in FINAL, answer
        time.sleep(0.005)
    final_states: list[str] = []
    begin = time.monotonic()
    with ThreadPoolExecutor(1) as threads:
        lookups = threads.submit(look_up, service.port, pace, lambda: not final_states)
        while (answer := service.poll(LARGE))["status"] == "TRANSFER":
            time.sleep(0.05)
        seconds = time.monotonic() - begin
        final_states.append(answer["status"])
    assert final_states == ["READY"], answer
    return lookups.result(), seconds


@contextmanager
def remote_service(root: Path, megabytes: int) -> Iterator[Service]:
    """Run a gateway with one remote system, and a registry with two images."""
    chance = random.Random(megabytes)
    content = b"".join(chance.randbytes(1 << 20) for _ in range(megabytes))
    oci_layout(root / "large", [tar_of([entry("data", content)])], compression="zstd")
    oci_layout(root / "small", [tar_of([entry("etc")])])
    with DockerRegistry(root / "registry") as registry, Sshd() as sshd:
        for name in (SMALL, LARGE):
            registry.push(root / name.split("/")[1].split(":")[0], name)
        system: dict[str, Any] = {
            "accesstype": "remote",
            "host": ["127.0.0.1"],
            "squashfs": {"compressor": "lz4"},
            "ssh": {
                "username": sshd.user,
                "imageDir": str(root / "service" / "images"),
                "key": str(sshd.key),
                "port": sshd.port,
                "knownHosts": str(sshd.known_hosts),
            },
        }
        locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
        with Service(root / "service", locations, {"Platforms": {SYSTEM: system}}) as service:
            assert service.pull(SMALL)["status"] == "READY"
            yield service


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1500, help="of the large image")
    parser.add_argument("--pace", type=float, default=0.005, help="seconds between two look-ups")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        remote_service(Path(name), options.megabytes) as service,
    ):
        idle_end = time.monotonic() + 10
        idle = look_up(service.port, options.pace, lambda: time.monotonic() < idle_end)
        busy, seconds = during_upload(service, options.pace)
    table = Table("gateway", "look-ups", "median ms", "p99 ms", "longest ms", "p99, x idle", "bar")
    ends = [statistics.quantiles(durations, n=100)[98] for durations in (idle, busy)]
    verdict = "met" if ends[1] <= BAR_SECONDS else "missed"
    bars = ("", f"p99 ≤ {BAR_SECONDS * 1000:g} ms: {verdict}")
    for what, durations, end, bar in zip(
        ("idle", "uploading"), (idle, busy), ends, bars, strict=True
    ):
        times = [
            f"{value * 1000:.1f}" for value in (statistics.median(durations), end, max(durations))
        ]
        table.add_row(what, str(len(durations)), *times, f"{end / ends[0]:.1f}", bar)
    console = Console()
    console.print(table)
    console.print(f"The upload and its check took {seconds:.1f} s for {options.megabytes} MiB.")


if __name__ == "__main__":
    main()
