"""Compare a whole pull with the tools that it needs: `python -m tests.bench.pulls`.

The images of `tests.bench.convert` are in a real registry on the loopback. They are pulled directly
and over a link of 1 Gbit/s, which the connections of the layers share equally. The floor is a
download of all blobs at once by `curl`, and then `mksquashfs` alone on an unpacked tree. Our pull
is `shiftergw convert`, from the tag to the checked file, without the start of Python. Caches are
cold each time. Rounds are interleaved, and the table shows medians. Only the ratios are valid on
another machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shiftergw.model.build_options import SquashOptions
from shiftergw.model.images import Digest
from tests.bench.convert import LAYERS, floor, large_files, lay_out, real_files, small_files
from tests.distance import RATE, Distance
from tests.images import CONFIG, LAYER, MANIFEST, MadeImage, descriptor, json_bytes, write_layout
from tests.registries import DockerRegistry

ROUND_TRIP = 0.001
BARS = {"large": 1.6, "small": 1.35, "real": 1.6}
"""Limit 2 of the design, for zstd 3 on the loopback."""


def image_of(layers: Sequence[tuple[str, str]]) -> MadeImage:
    """Return an image of layers, given as compressed files with their `diff_id`s."""
    config = json_bytes(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
        }
    )
    contents = [Path(path).read_bytes() for path, _ in layers]
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(config, CONFIG),
        "layers": [descriptor(content, f"{LAYER}+gzip") for content in contents],
    }
    blobs = {Digest.of(content): content for content in [config, *contents]}
    return MadeImage(json_bytes(document), MANIFEST, blobs, "amd64")


@contextmanager
def registry_host(registry: DockerRegistry, rate: int | None) -> Iterator[str]:
    """Yield the registry's host, behind a link if there is a `rate` (bytes a second)."""
    if rate is None:
        yield registry.host
        return
    with Distance(int(registry.host.rpartition(":")[2]), ROUND_TRIP, rate / LAYERS) as way:
        yield f"127.0.0.1:{way.port}"


def download(host: str, image: MadeImage, where: Path) -> float:
    """Download all blobs with `curl`; return the seconds."""
    argv = ["curl", "--no-progress-meter", "--fail", "--parallel", "--parallel-immediate"]
    for number, digest in enumerate(image.blobs):
        argv += ["--output", str(where / f"blob{number}"), f"http://{host}/v2/image/blobs/{digest}"]
    start = time.monotonic()
    subprocess.run(argv, check=True)
    return time.monotonic() - start


def convert(host: str, options: SquashOptions, where: Path) -> dict[str, Any]:
    """Run `shiftergw convert`; return the object that it prints, with `seconds` by stage."""
    with tempfile.TemporaryDirectory(dir=where) as output:
        argv = [str(Path(sys.executable).with_name("shiftergw")), "convert", "--plain-http"]
        argv += ["--compressor", options.compressor, "--level", str(options.level)]
        argv += [f"{host}/image:1", f"{output}/image.squashfs"]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def measure(
    table: Table, name: str, text: str, where: Path, rounds: int, links: Sequence[int | None]
) -> None:
    """Measure one image with one compressor over all links, and add its rows."""
    compressor, _, level = text.partition(":")
    options = SquashOptions(compressor=compressor, level=int(level))
    files = {"large": lambda: large_files(1000), "small": lambda: small_files(150_000)}
    image = image_of(lay_out(files.get(name, lambda: real_files(600))(), where))
    layout = where / "layout"
    write_layout(layout, image.manifest, image.media_type, image.blobs.values(), "1")
    floor(where, options)  # warms the page cache
    with DockerRegistry(where / "registry") as registry:
        registry.push(layout, "image:1", "1")
        shutil.rmtree(layout)
        for rate in links:
            downloads, floors, own = [], [], []
            with registry_host(registry, rate) as host:
                for _ in range(rounds):
                    downloads.append(download(host, image, where))
                    floors.append(floor(where, options)["wall"])
                    own.append(convert(host, options, where)["seconds"])
            download_seconds, squash_seconds = (
                statistics.median(downloads),
                statistics.median(floors),
            )
            total = statistics.median(run["total"] for run in own)
            bar = f"≤ {BARS[name]} (2)" if text == "zstd:3" and rate is None else ""
            table.add_row(
                f"{name} {text}",
                "loopback" if rate is None else f"{rate * 8 / 1e9:g} Gbit/s",
                f"{download_seconds:.2f}",
                f"{squash_seconds:.2f}",
                f"{total:.2f}",
                f"{total / (download_seconds + squash_seconds):.2f}",
                bar,
            )
            table.add_row("", ", ".join(f"{stage} {took:.2f}" for stage, took in own[-1].items()))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", nargs="+", choices=list(BARS), default=list(BARS))
    parser.add_argument("--compressor", nargs="+", default=["zstd:3"], metavar="NAME:LEVEL")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--directory", type=Path, default=None)
    options = parser.parse_args()
    table = Table("image", "link", "download s", "mksquashfs s", "ours s", "ratio", "bar")
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        for name in options.images:
            for text in options.compressor:
                where = Path(scratch) / f"{name}-{text.replace(':', '-')}"
                where.mkdir()
                measure(table, name, text, where, options.rounds, [None, RATE])
                shutil.rmtree(where)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
