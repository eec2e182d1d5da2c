"""Measure whether our CPU time grows faster than the image: `python -m tests.bench.growth`.

Convert small files, and ten times as many, with the fastest zstd, and compare the CPU time of our
process without that of its start. Limit 13 of the design allows eleven times the CPU time for ten
times the files. The same is measured for the bytes of large files.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shiftergw.model.build_options import SquashOptions
from tests.bench.convert import Member, large_files, lay_out, median, run_conversion, small_files

OPTIONS = SquashOptions(compressor="zstd", level=1)


def own_cpu(files: Iterable[Member], rounds: int, directory: Path | None) -> float:
    """Return the median of our process's CPU seconds for an image of these files."""
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        where = Path(scratch)
        layers = lay_out(files, where)
        return median([run_conversion(where, OPTIONS, layers) for _ in range(rounds)], "own_cpu")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000, metavar="N", help="small files")
    parser.add_argument("--big", type=int, default=100, metavar="MB", help="of large files")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--directory", type=Path, default=None)
    options = parser.parse_args()
    start = own_cpu(small_files(1), options.rounds, options.directory)
    table = Table("image", "CPU s", "ten times: CPU s", "ratio", "bar")
    for name, make, size in (
        (f"{options.files} small files", small_files, options.files),
        (f"{options.big} MB of large files", large_files, options.big),
    ):
        small, large = (
            own_cpu(make(times * size), options.rounds, options.directory) - start
            for times in (1, 10)
        )
        table.add_row(name, f"{small:.2f}", f"{large:.2f}", f"{large / small:.1f}", "≤ 11 (13)")
    Console(width=100).print(table)
    Console().print(f"Times do not include the {start:.2f} s for the start of a process.")


if __name__ == "__main__":
    main()
