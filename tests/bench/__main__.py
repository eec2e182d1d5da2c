"""Measure what a pull costs, from the registry to the squashfs file: `python -m tests.bench`.

Scenarios compare our pulls with the floor (a download by `curl`, then `mksquashfs` alone on a tree
in the page cache) and with the tools that Debian ships, in interleaved rounds on images of real
files of this machine. The results are a document (`results.json`), tables (`results.md`) and a
picture (`results.svg`, `results.png`). Only the ratios are valid on another machine.

The exit code is 1 if a bar is missed in every round, or a pull fails, and 2 for wrong arguments or
a program that is lacking.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shiftergw import __version__
from tests.bench.bars import WHOLE
from tests.bench.commands import Commands
from tests.bench.contents import FULL, SIZES
from tests.bench.drawing import draw, write_png
from tests.bench.gateway import BUILDERS, is_supported
from tests.bench.machine import busy_share, describe_machine, quietness_warning
from tests.bench.results import Results
from tests.bench.rounds import measure_scenario
from tests.bench.scenarios import SCENARIOS
from tests.bench.tables import full_report, readme_section, write_readme
from tests.bench.workshop import Workshop
from tests.registries import DockerRegistry

CHECKOUT = Path(__file__).parents[2]
README = CHECKOUT / "README.md"
PICTURE = "docs/speed.svg"
"""The picture of the README; a PNG of it is beside it."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line; exit with 2 if they are wrong."""
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    parser.add_argument(
        "--size", choices=SIZES, default=FULL,
        help="of the images; only those of full size are judged by the bars",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument(
        "--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="NAME",
        help=f"some of {', '.join(SCENARIOS)}",
    )  # fmt: skip
    parser.add_argument(
        "--builders", nargs="+", choices=BUILDERS, default=["whole"], metavar="NAME",
        help=f"some of {', '.join(BUILDERS)}",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=float, default=1800, metavar="SECONDS", help="for each run of a variant"
    )
    parser.add_argument(
        "--directory", type=Path, metavar="DIR",
        help="for images and temporary files: 15 GB with the size full",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=Path("bench-results"), metavar="DIR", help="for the results"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE",
        help="show the results of an earlier run (its results.json) and measure nothing",
    )  # fmt: skip
    parser.add_argument(
        "--readme", action="store_true", help=f"write the README's table, and {PICTURE}"
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.readme and options.source is None and options.size != FULL:
        parser.error(f"--readme needs images of the size {FULL}")
    for builder in options.builders:
        if builder != WHOLE and not is_supported(BUILDERS[builder]):
            parser.error(f"this version of shiftergw has no builder {builder}")
    return options


def measure(options: argparse.Namespace, announce: Callable[[str], None]) -> Results:
    """Measure all chosen scenarios; write what is measured so far after each of them."""
    results = Results(
        date=datetime.now(UTC).date().isoformat(),
        version=__version__,
        machine=describe_machine(),
        size=options.size,
        rounds=options.rounds,
        builders=options.builders,
        warnings=_warnings(announce),
        measurements={},
    )
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="shiftergw-bench-") as scratch:
        where = Path(scratch)
        with DockerRegistry(where / "registry") as registry:
            commands = Commands(options.limit)
            workshop = Workshop(where, SIZES[options.size], options.builders, commands, registry)
            for name in options.scenarios:
                measurement = measure_scenario(SCENARIOS[name], workshop, options.rounds, announce)
                measurements = {**results.measurements, name: measurement}
                results = replace(results, measurements=measurements)
                publish(results, options.output, lambda _: None)
    # Programs that were started during the run count, too.
    return replace(results, warnings=results.warnings or _warnings(announce))


def _warnings(announce: Callable[[str], None]) -> list[str]:
    warning = quietness_warning(busy_share(), os.getloadavg()[0])
    if not warning:
        return []
    announce(warning)
    return [warning]


def publish(results: Results, output: Path, announce: Callable[[str], None]) -> None:
    """Write the document, the tables and the picture into a directory."""
    output.mkdir(parents=True, exist_ok=True)
    results.write(output / "results.json")
    (output / "results.md").write_text(full_report(results))
    draw_files(results, output / "results.svg", announce)


def draw_files(results: Results, svg: Path, announce: Callable[[str], None]) -> None:
    """Write the picture as SVG, and as PNG beside it."""
    svg.write_text(draw(results))
    if not write_png(svg, svg.with_suffix(".png")):
        announce("no PNG: rsvg-convert is not installed (Debian package librsvg2-bin)")


def main(arguments: Sequence[str]) -> int:
    """Measure or read results, show and write them; return the exit code."""
    options = parse(arguments)

    def announce(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - progress of the command

    if options.source is None:
        try:
            results = measure(options, announce)
        except pytest.skip.Exception as error:  # of `tests.parts.need`
            announce(str(error))
            return 2
        publish(results, options.output, announce)
    else:
        results = Results.read(options.source)
    if options.readme and results.size != FULL:
        announce(
            f"The README gets figures of the size {FULL}; these are of the size {results.size}."
        )
        return 2
    if options.readme:
        draw_files(results, CHECKOUT / PICTURE, announce)
        write_readme(README, readme_section(results, PICTURE))
    print(full_report(results), end="")  # noqa: T201 - the output of the command
    return int(any(judgment.is_failure for judgment in results.judgments()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
