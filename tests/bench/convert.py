"""How far the conversion is from its floor: `python -m tests.bench.convert`.

Two synthetic images, of a few large files and of many small ones, in three layers of gzip. For
each: the floor is `mksquashfs` alone, with the same options, on a ready tree in the page cache;
ours is `SquashBuilder` in a process of its own, from the compressed layers to the checked file.
Rounds are interleaved and the median counts; only the ratios hold on another machine.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isal import igzip
from rich.console import Console
from rich.table import Table

from shiftergw.image import ContentReport, SquashOptions
from shiftergw.oci.flatten import Plan
from shiftergw.oci.tree import Directory
from shiftergw.squash.mksquashfs import arguments

LAYERS = 3
MIB = 1 << 20
EPOCH = 1_700_000_000


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


def lay_out(files: Iterator[tuple[str, bytes]], where: Path) -> list[tuple[str, str]]:
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
    argv = arguments(options, Plan(Directory(), ContentReport(), 1, EPOCH), output)
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


def bars(image: str, compressor: str) -> tuple[str, str]:
    """Return the bars of the design: number and text for the wall time."""
    if compressor == "zstd":
        return ("2", "≤ 1.60") if image == "large" else ("2", "≤ 1.35")
    return ("1", "≤ 1.05") if image == "large" else ("1", "≤ 1.10")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small-files", type=int, default=150_000, metavar="N")
    parser.add_argument("--big", type=int, default=1000, metavar="MB")
    parser.add_argument(
        "--compressor", nargs="+", default=["zstd:3", "gzip:5"], metavar="NAME:LEVEL"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--directory", type=Path, default=None)
    asked = parser.parse_args()
    table = Table("image", "what", "wall s", "CPU s", "RSS MiB", "MB", "ratio", "bar")
    with tempfile.TemporaryDirectory(dir=asked.directory) as scratch:
        for image, files in (
            ("large", large_files(asked.big)),
            ("small", small_files(asked.small_files)),
        ):
            where = Path(scratch) / image
            where.mkdir()
            layers = lay_out(files, where)
            for text in asked.compressor:
                measure(table, image, text, asked.rounds, where, layers)
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
    number, bar = bars(image, compressor)
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
            f"wall {bar} ({number})",
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
