"""Compare downloads of many layers with `skopeo copy`: `python -m tests.bench.layers`.

An image of 20 gzip layers of 10 MB is in a real registry behind a link with a round trip of 50 ms.
`skopeo copy` writes it into an OCI layout, since it writes into `dir:` one layer at a time. Ours is
the part of `shiftergw convert` from the tag to the last layer in the cache, without the start of
Python; it examines the layers meanwhile. The column "whole" has the time to the checked squashfs
file. A connection gets a sixth of the link, since both programs download six layers at once. Rounds
are interleaved, and the ratio is that of medians. Only the ratio is valid on another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shiftergw.model.build_options import SquashOptions
from shiftergw.sources.registry.client import PARALLEL_BLOBS
from tests.bench.image_files import ImageOnDisk, make_layer, push
from tests.distance import RATE, ROUND_TRIP, Distance
from tests.parts import need
from tests.registries import DockerRegistry

BAR = 1.2
"""The limit on our time as a multiple of skopeo's."""


def fill(size: int, tree: Path) -> None:
    """Write a file of random bytes into a tree."""
    (tree / "data").write_bytes(os.urandom(size))


def convert(host: str, options: SquashOptions, where: Path) -> dict[str, Any]:
    """Run `shiftergw convert`; return the object that it prints, with `seconds` by stage."""
    with tempfile.TemporaryDirectory(dir=where) as output:
        argv = [str(Path(sys.executable).with_name("shiftergw")), "convert", "--plain-http"]
        argv += ["--compressor", options.compressor, "--level", str(options.level)]
        argv += [f"{host}/image:1", f"{output}/image.squashfs"]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def skopeo(host: str, where: Path) -> float:
    """Copy the image into an OCI layout; return the seconds."""
    argv = [need("skopeo"), "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
    with tempfile.TemporaryDirectory(dir=where) as output:
        start = time.monotonic()
        subprocess.run([*argv, f"docker://{host}/image:1", f"oci:{output}:1"], check=True)
        return time.monotonic() - start


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=20, metavar="N")
    parser.add_argument("--size", type=int, default=10_000_000, metavar="BYTES")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--directory", type=Path, default=None)
    options = parser.parse_args()
    table = Table("round", "skopeo s", "resolve + fetch s", "whole s", "load")
    copies: list[float] = []
    fetches: list[float] = []
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        where = Path(scratch)
        layers = [
            make_layer(where, f"layer{number}", partial(fill, options.size))
            for number in range(options.layers)
        ]
        with DockerRegistry(where / "registry") as registry:
            push(registry, where, ImageOnDisk("image:1", layers))
            port = int(registry.host.rpartition(":")[2])
            with Distance(port, ROUND_TRIP, RATE / PARALLEL_BLOBS) as link:
                host = f"127.0.0.1:{link.port}"
                for number in range(options.rounds):
                    copies.append(skopeo(host, where))
                    seconds = convert(host, SquashOptions("zstd", 1), where)["seconds"]
                    fetches.append(seconds["resolve"] + seconds["fetch"])
                    table.add_row(
                        str(number + 1),
                        f"{copies[-1]:.2f}",
                        f"{fetches[-1]:.2f}",
                        f"{seconds['total']:.2f}",
                        f"{os.getloadavg()[0]:.1f}",
                    )
    ratio = statistics.median(fetches) / statistics.median(copies)
    Console(width=100).print(table)
    Console().print(f"Ratio {ratio:.2f}, bar ≤ {BAR}")


if __name__ == "__main__":
    main()
