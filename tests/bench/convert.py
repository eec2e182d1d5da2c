"""How far the conversion is from its floor: `python -m tests.bench.convert`.

Three images, in three layers of gzip each: `large`, of a few large files, and `small`, of many
small ones, are synthetic and the same on each machine; `real` is what lies below `/usr` of this
one, files and symlinks. Synthetic data is no measure for gzip 9, which takes ten times longer on
real programs. For each image and compressor: the floor is `mksquashfs` alone, with the same
options, on a ready tree in the page cache; ours is `SquashBuilder` in a process of its own, from
the compressed layers to the checked file. Rounds are interleaved and the median counts; only the
ratios hold on another machine.
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
from threading import Event
from typing import Any

from isal import igzip
from rich.console import Console
from rich.table import Table

from shiftergw.build.mksquashfs import arguments
from shiftergw.image import ContentReport, SquashOptions
from shiftergw.oci.flatten import Plan
from shiftergw.oci.tree import Directory

LAYERS = 3
MIB = 1 << 20
EPOCH = 1_700_000_000

Member = tuple[str, bytes | str]
"""A path, and the content of a file or the target of a symlink."""


class Source:
    """Content that compresses about as programs and their data do, the same in each run."""

    def __init__(self) -> None:
        """Make some MiB of words and numbers to cut files from."""
        self._random = random.Random(1)
        words = [self._random.randbytes(self._random.randint(2, 12)) for _ in range(4000)]
        self._pool = b"".join(self._random.choices(words, k=2 * MIB))
        self._made = 0

    def file(self, size: int) -> bytes:
        """Return a content of this size that no other file has."""
        self._made += 1
        start = b"%016d" % self._made
        parts, left = [start], size - len(start)
        while left > 0:
            at = self._random.randrange(len(self._pool) - MIB)
            parts.append(self._pool[at : at + min(left, MIB)])
            left -= MIB
        return b"".join(parts)[:size]

    def between(self, low: int, high: int) -> int:
        """Return a size."""
        return self._random.randint(low, high)


def large_files(megabytes: int) -> Iterator[tuple[str, bytes]]:
    """Yield files of 1 to 20 MiB, this much together."""
    source, left, number = Source(), megabytes * MIB, 0
    while left > 0:
        size = min(left, source.between(MIB, 20 * MIB))
        yield f"opt/lib/lib{number}.so", source.file(size)
        left, number = left - size, number + 1


def small_files(count: int) -> Iterator[tuple[str, bytes]]:
    """Yield this many files of 100 bytes to 8 kB, 100 in each directory."""
    source = Source()
    for number in range(count):
        size = source.between(100, 8000)
        yield f"srv/{number // 10_000}/{number // 100}/file{number}.py", source.file(size)


def real_files(megabytes: int, root: Path = Path("/usr")) -> Iterator[Member]:
    """Yield regular files and symlinks of this machine, at most this much together.

    Directory by directory, in the order of their names' hashes: a part of a machine is a mixture.
    """
    left = megabytes * MIB
    tops = {top: names + links for top, links, names in os.walk(root)}
    found = [
        Path(top, name)
        for top in sorted(tops, key=lambda top: hashlib.sha256(os.fsencode(top)).digest())
        for name in sorted(tops[top])
    ]
    for path in found:
        name = str(path.relative_to(root.parent))
        try:
            if path.is_symlink():
                yield name, str(path.readlink())
            elif path.is_file() and (size := path.stat().st_size) <= left:
                left -= size
                yield name, path.read_bytes()
        except OSError:  # not ours to read, or just removed
            continue


def lay_out(files: Iterable[Member], where: Path) -> list[tuple[str, str]]:
    """Write files into a tree and into layers; return each layer's path and `diff_id`."""
    tree = where / "tree"
    tars = []
    for number in range(LAYERS):
        path = where / f"layer-{number}.tar"
        tars.append((path, tarfile.open(path, "w", format=tarfile.GNU_FORMAT)))  # noqa: SIM115
    known: set[Path] = set()
    for number, (name, content) in enumerate(files):
        path = tree / name
        archive = tars[number % LAYERS][1]
        for parent in reversed(path.parents):
            if parent not in known and parent.is_relative_to(tree):
                known.add(parent)
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
        packed = path.with_suffix(".tar.gz")
        with path.open("rb") as source, igzip.open(packed, "wb", compresslevel=2) as sink:
            while data := source.read(MIB):
                sha256.update(data)
                sink.write(data)
        path.unlink()
        layers.append((str(packed), f"sha256:{sha256.hexdigest()}"))
    return layers


def _info(path: Path, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(str(path))
    info.type, info.mode, info.mtime = kind, mode, EPOCH
    return info


def floor(where: Path, options: SquashOptions) -> dict[str, Any]:
    """Run `mksquashfs` alone on the tree."""
    output = where / "floor.squashfs"
    argv = arguments(options, Plan(Directory(), ContentReport(), 1, EPOCH), output, Event())
    argv = ["mksquashfs", str(where / "tree"), *(word for word in argv[1:] if word != "-tar")]
    start = time.monotonic()
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    cpu = usage.ru_utime + usage.ru_stime
    # No peak memory: the kernel counts that of the process which forked it, and this one is large.
    return {"wall": wall, "cpu": cpu, "size": output.stat().st_size}


def ours(where: Path, options: SquashOptions, layers: list[tuple[str, str]]) -> dict[str, Any]:
    """Run our conversion of the layers."""
    with tempfile.TemporaryDirectory(dir=where) as output:
        answer = subprocess.run(
            [sys.executable, "-m", "tests.bench.ours", output],
            input=json.dumps({"layers": layers, "options": asdict(options)}).encode(),
            stdout=subprocess.PIPE,
            check=True,
        )
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def median(runs: list[dict[str, Any]], member: str) -> float:
    """Return the median of one figure."""
    return float(statistics.median(run[member] for run in runs))


def bar(image: str, compressor: str) -> str:
    """Return the bar of the design for the ratio of the wall times, with its number, if any.

    Bar 1 is meant for gzip 9, the default of `mksquashfs`, on real content.
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
        help="zstd:3 and, on the real image, gzip:9 unless said",
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--directory", type=Path, default=None)
    asked = parser.parse_args()
    table = Table("image", "what", "wall s", "CPU s", "RSS MiB", "MB", "ratio", "bar")
    images: dict[str, Iterable[Member]] = {
        "large": large_files(asked.big),
        "small": small_files(asked.small_files),
        "real": real_files(asked.real),
    }
    with tempfile.TemporaryDirectory(dir=asked.directory) as scratch:
        for image in asked.images:
            where = Path(scratch) / image
            where.mkdir()
            layers = lay_out(images[image], where)
            for text in asked.compressor or ["zstd:3", *["gzip:9"] * (image == "real")]:
                measure(table, image, text, asked.rounds, where, layers)
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
        own.append(ours(where, options, layers))
    entries = own[0]["entries"]
    kept, allowed = 200 + 400 * entries / MIB, 512 + 800 * entries / MIB
    wall = median(floors, "wall")
    rows = [
        (f"{image} {text}", "floor", wall, floors, "cpu", "", "", ""),
        (
            f"{entries} entries",
            "all of ours",
            median(own, "wall"),
            own,
            "cpu",
            "",
            f"{median(own, 'wall') / wall:.2f}",
            bar(image, text),
        ),
        ("", "our process", None, own, "own_cpu", "own_rss", "", f"RSS ≤ {kept:.0f} (5)"),
        ("", "mksquashfs", None, own, "", "rss", "", f"RSS ≤ {allowed:.0f} (5)"),
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
