"""Compare the conversion with `mksquashfs` alone: `python -m tests.bench.convert`.

There are three images of three gzip layers each. `large` has a few large files and `small` many
small ones; both are synthetic and the same on every machine. `real` has the files and symlinks
below `/usr` of this machine, because gzip 9 takes ten times longer on real programs than on
synthetic data. For each image and compressor, the floor is `mksquashfs` alone, with the same
options, on a tree in the page cache. Our conversion is `SquashBuilder` in its own process, from the
compressed layers to the checked file. Rounds are interleaved, and the table shows medians. Only the
ratios are valid on another machine.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isal import igzip
from rich.console import Console
from rich.table import Table

from shiftergw.build.mksquashfs import arguments
from shiftergw.model.build_options import SquashOptions
from tests.bench.contents import EPOCH, real_files

LAYERS = 3
MIB = 1 << 20

Member = tuple[str, bytes | str]
"""A path, and the content of a file or the target of a symlink."""


class Source:
    """Content that compresses about as well as programs and their data, the same in each run."""

    def __init__(self) -> None:
        """Make a pool of random words, from which files are cut."""
        self._random = random.Random(1)
        words = [self._random.randbytes(self._random.randint(2, 12)) for _ in range(4000)]
        self._pool = b"".join(self._random.choices(words, k=2 * MIB))
        self._count = 0

    def file(self, size: int) -> bytes:
        """Return `size` bytes that no other file has."""
        self._count += 1
        start = b"%016d" % self._count
        parts, remaining = [start], size - len(start)
        while remaining > 0:
            at = self._random.randrange(len(self._pool) - MIB)
            parts.append(self._pool[at : at + min(remaining, MIB)])
            remaining -= MIB
        return b"".join(parts)[:size]

    def between(self, low: int, high: int) -> int:
        """Return a random size from `low` to `high`."""
        return self._random.randint(low, high)


def large_files(megabytes: int) -> Iterator[tuple[str, bytes]]:
    """Yield files of 1 to 20 MiB, `megabytes` MiB in total."""
    source, remaining, number = Source(), megabytes * MIB, 0
    while remaining > 0:
        size = min(remaining, source.between(MIB, 20 * MIB))
        yield f"opt/lib/lib{number}.so", source.file(size)
        remaining, number = remaining - size, number + 1


def small_files(count: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` files of 100 bytes to 8 kB, 100 in each directory."""
    source = Source()
    for number in range(count):
        size = source.between(100, 8000)
        yield f"srv/{number // 10_000}/{number // 100}/file{number}.py", source.file(size)


def real_members(megabytes: int) -> Iterator[Member]:
    """Yield regular files and symlinks of this machine, at most `megabytes` MiB in total."""
    remaining = megabytes * MIB
    for path in real_files(["usr"]):
        name = str(path.relative_to("/"))
        try:
            if path.is_symlink():
                yield name, str(path.readlink())
            elif (size := path.stat().st_size) <= remaining:
                remaining -= size
                yield name, path.read_bytes()
        except OSError:  # not readable, or just removed
            continue


def lay_out(files: Iterable[Member], where: Path) -> list[tuple[str, str]]:
    """Write files into a tree and into layers; return each layer's path and `diff_id`."""
    tree = where / "tree"
    tars = []
    for number in range(LAYERS):
        path = where / f"layer-{number}.tar"
        tars.append((path, tarfile.open(path, "w", format=tarfile.GNU_FORMAT)))  # noqa: SIM115
    directories: set[Path] = set()
    for number, (name, content) in enumerate(files):
        path = tree / name
        archive = tars[number % LAYERS][1]
        for parent in reversed(path.parents):
            if parent not in directories and parent.is_relative_to(tree):
                directories.add(parent)
                parent.mkdir(parents=True, exist_ok=True)
                if parent != tree:
                    archive.addfile(_info(parent.relative_to(tree), tarfile.DIRTYPE, 0o755))
        if isinstance(content, str):
            path.symlink_to(content)
            info = _info(path.relative_to(tree), tarfile.SYMTYPE, 0o777)
            info.linkname = content
            archive.addfile(info)
            continue
        path.write_bytes(content)
        path.chmod(0o644)
        info = _info(path.relative_to(tree), tarfile.REGTYPE, 0o644)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    layers = []
    for path, archive in tars:
        archive.close()
        sha256 = hashlib.sha256()
        blob = path.with_suffix(".tar.gz")
        with path.open("rb") as source, igzip.open(blob, "wb", compresslevel=2) as sink:
            while data := source.read(MIB):
                sha256.update(data)
                sink.write(data)
        path.unlink()
        layers.append((str(blob), f"sha256:{sha256.hexdigest()}"))
    return layers


def _info(path: Path, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(str(path))
    info.type, info.mode, info.mtime = kind, mode, EPOCH
    return info


def floor(where: Path, options: SquashOptions) -> dict[str, Any]:
    """Run `mksquashfs` alone on the tree; return seconds, CPU seconds and size."""
    output = where / "floor.squashfs"
    argv = arguments(options, output)
    argv = ["mksquashfs", str(where / "tree"), *(word for word in argv[1:] if word != "-tar")]
    start = time.monotonic()
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    cpu = usage.ru_utime + usage.ru_stime
    # No peak memory: the kernel's figure includes this large process, which forked the child.
    return {"wall": wall, "cpu": cpu, "size": output.stat().st_size}


def run_conversion(
    where: Path, options: SquashOptions, layers: list[tuple[str, str]]
) -> dict[str, Any]:
    """Run our conversion of the layers in a process of its own; return its figures."""
    with tempfile.TemporaryDirectory(dir=where) as output:
        answer = subprocess.run(
            [sys.executable, "-m", "tests.bench.conversion", output],
            input=json.dumps({"layers": layers, "options": asdict(options)}).encode(),
            stdout=subprocess.PIPE,
            check=True,
        )
    figures: dict[str, Any] = json.loads(answer.stdout)
    return figures


def median(runs: list[dict[str, Any]], member: str) -> float:
    """Return the median of one figure."""
    return float(statistics.median(run[member] for run in runs))


def bar(image: str, compressor: str) -> str:
    """Return the design's limit for the ratio of the wall times, with its number, or an empty text.

    Limit 1 is for gzip 9, the default of `mksquashfs`, on real content.
    """
    if compressor == "gzip:9" and image == "real":
        return "wall ≤ 1.05 (1)"
    if compressor == "zstd:3":
        return "wall ≤ 1.35 (2)" if image == "small" else "wall ≤ 1.60 (2)"
    return ""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small-files", type=int, default=150_000, metavar="N")
    parser.add_argument("--big", type=int, default=1000, metavar="MB")
    parser.add_argument("--real", type=int, default=600, metavar="MB")
    parser.add_argument("--images", nargs="+", default=["large", "small", "real"], metavar="IMAGE")
    parser.add_argument(
        "--compressor",
        nargs="+",
        default=None,
        metavar="NAME:LEVEL",
        help="default: zstd:3, and gzip:9 on the real image",
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--directory", type=Path, default=None)
    options = parser.parse_args()
    table = Table("image", "what", "wall s", "CPU s", "RSS MiB", "MB", "ratio", "bar")
    images: dict[str, Iterable[Member]] = {
        "large": large_files(options.big),
        "small": small_files(options.small_files),
        "real": real_members(options.real),
    }
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        for image in options.images:
            where = Path(scratch) / image
            where.mkdir()
            layers = lay_out(images[image], where)
            for text in options.compressor or ["zstd:3", *["gzip:9"] * (image == "real")]:
                measure(table, image, text, options.rounds, where, layers)
            shutil.rmtree(where)
    Console(width=120).print(table)


def measure(
    table: Table, image: str, text: str, rounds: int, where: Path, layers: list[tuple[str, str]]
) -> None:
    """Measure one image with one compressor, and add its rows."""
    compressor, _, level = text.partition(":")
    options = SquashOptions(compressor=compressor, level=int(level) if level else None)
    floors, own = [], []
    floor(where, options)  # warms the page cache
    for _ in range(rounds):
        floors.append(floor(where, options))
        own.append(run_conversion(where, options, layers))
    entries = own[0]["entries"]
    own_limit, child_limit = 200 + 400 * entries / MIB, 512 + 800 * entries / MIB
    wall = median(floors, "wall")
    rows = [
        (f"{image} {text}", "floor", wall, floors, "cpu", "", "", ""),
        (
            f"{entries} entries",
            "our conversion",
            median(own, "wall"),
            own,
            "cpu",
            "",
            f"{median(own, 'wall') / wall:.2f}",
            bar(image, text),
        ),
        ("", "our process", None, own, "own_cpu", "own_rss", "", f"RSS ≤ {own_limit:.0f} (5)"),
        ("", "mksquashfs", None, own, "", "rss", "", f"RSS ≤ {child_limit:.0f} (5)"),
    ]
    for name, what, seconds, runs, cpu, rss, ratio, text_of_bar in rows:
        table.add_row(
            name,
            what,
            "" if seconds is None else f"{seconds:.2f}",
            f"{median(runs, cpu):.2f}" if cpu else "",
            f"{median(runs, rss):.0f}" if rss else "",
            f"{median(runs, 'size') / 1e6:.0f}" if seconds is not None else "",
            ratio,
            text_of_bar,
        )
    stages = [f"{stage} {seconds:.2f}" for stage, seconds in own[-1]["seconds"].items()]
    table.add_row("", ", ".join(stages), end_section=True)


if __name__ == "__main__":
    main()
