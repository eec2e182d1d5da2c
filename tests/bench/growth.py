"""Whether our own CPU grows no faster than the image: `python -m tests.bench.growth`.

Converts small files, and ten times as many, with the fastest zstd, and compares what our process
took for each beyond its start (bar 13 of the design: ten times the files, at most eleven times the
CPU). The same for the bytes of large files.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shiftergw.image import SquashOptions
from tests.bench.convert import Member, large_files, lay_out, median, ours, small_files

OPTIONS = SquashOptions(compressor="zstd", level=1)


def own_cpu(files: Iterable[Member], rounds: int, directory: Path | None) -> float:
    """Return the median of the CPU seconds that our process takes for an image of these files."""
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        where = Path(scratch)
        layers = lay_out(files, where)
        return median([ours(where, OPTIONS, layers) for _ in range(rounds)], "own_cpu")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000, metavar="N", help="small files")
    parser.add_argument("--big", type=int, default=100, metavar="MB", help="of large files")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--directory", type=Path, default=None)
    asked = parser.parse_args()
    start = own_cpu(small_files(1), asked.rounds, asked.directory)
    table = Table("image", "once: CPU s", "ten times: CPU s", "ratio", "bar")
    for name, make, size in (
        (f"{asked.files} small files", small_files, asked.files),
        (f"{asked.big} MB of large files", large_files, asked.big),
    ):
        once, ten = (
            own_cpu(make(times * size), asked.rounds, asked.directory) - start for times in (1, 10)
        )
        table.add_row(name, f"{once:.2f}", f"{ten:.2f}", f"{ten / once:.1f}", "≤ 11 (13)")
    Console(width=100).print(table)
    Console().print(f"Beyond the start of a process, {start:.2f} s, which is taken off.")


if __name__ == "__main__":
    main()
