"""Compare the throughput of one and two worker machines: `python -m tests.bench.machines`.

A gateway, MongoDB, RabbitMQ and worker machines with one slot each run on this machine. A
conversion sleeps for most of its time, so that the number of processors does not matter.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.end_to_end.faulty import FaultyRegistry
from tests.end_to_end.test_celery import Cluster
from tests.images import entry, make_image, tar_of
from tests.rabbitmq import RabbitMQ
from tests.running_service import FINAL, until

BAR = 1.8


def pull_all(cluster: Cluster, names: Iterable[str]) -> float:
    """Pull images at once; return the seconds until all are READY."""
    begin = time.monotonic()
    waiting = set(names)
    while waiting:
        for name in sorted(waiting):
            answer = cluster.service.poll(name)
            if answer["status"] in FINAL:
                assert answer["status"] == "READY", answer
                waiting.remove(name)
        time.sleep(0.1)
    return time.monotonic() - begin


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=12, metavar="N", help="for each machine")
    parser.add_argument(
        "--sleep", type=float, default=4.0, metavar="S", help="seconds of sleep in a conversion"
    )
    parser.add_argument("--directory", type=Path, default=None)
    options = parser.parse_args()
    speeds: list[float] = []
    table = Table("machines", "images", "seconds", "images per minute")
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as scratch,
        FaultyRegistry() as registry,
        RabbitMQ() as broker,
    ):
        for count in (1, 2):
            names = [f"lib/app{count}-{n}" for n in range(options.images * count)]
            for name in names:
                layers = [tar_of([entry("etc"), entry("etc/motd", os.urandom(50_000))])]
                registry.add(name, make_image(layers))
            place = Path(scratch) / str(count)
            place.mkdir()
            with Cluster(place, registry, broker, {"UserLimits": {"waiting": 1000}}) as cluster:
                cluster.sleep(options.sleep)
                for number in range(count):
                    cluster.start(number)
                until(lambda: len(cluster.list_machines()) == count, 60, "the machines")  # noqa: B023
                seconds = pull_all(cluster, [f"{name}:1" for name in names])
            speeds.append(len(names) / seconds)
            speed = f"{60 * speeds[-1]:.1f}"
            table.add_row(str(count), str(len(names)), f"{seconds:.1f}", speed)
    Console(width=100).print(table)
    Console().print(f"Ratio {speeds[1] / speeds[0]:.2f}, bar ≥ {BAR}")


if __name__ == "__main__":
    main()
