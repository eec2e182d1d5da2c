"""Measure a site's week with each builder: `python -m tests.bench.week`.

Users of three systems, of which one is remote, pull images that share bases; tags move, and in the
middle of the week a distribution is updated. Layers are made of real files of this machine. The
same week is lived through with each builder, with a real registry, gateway and `sshd`. Each night
the gateway stops, and unused converted files become old, so that its workers remove them in the
morning. Bytes are those of layers, CPU time is that of the gateway, its workers and all programs
that they start. Only the ratios are valid on another machine.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.bench.gateway import BUILDERS, is_supported
from tests.bench.week_plan import DAYS, SIZES, Day, plan_week
from tests.bench.week_site import WeekFigures, WeekLayers, WeekSite
from tests.registries import DockerRegistry

ROWS: Mapping[str, str] = {
    "pulls": "pulls",
    "conversions": "new images of systems",
    "downloaded_bytes": "downloaded MB",
    "cpu": "CPU s",
    "waiting": "users waited s",
    "image_sizes": "images MB",
    "sent_bytes": "sent to the remote system MB",
    "gateway_bytes": "disk of the gateway MB",
    "image_bytes": "image directories MB",
}
"""The title of each figure; bytes are shown in MB."""


def table(figures: Mapping[str, WeekFigures]) -> str:
    """Return the figures of each builder as a Markdown table, and ratios to the first builder."""
    reference, *names = figures
    rows = [["", *figures, *(f"{name} ÷ {reference}" for name in names)]]
    weeks = [asdict(week) for week in figures.values()]
    for key, title in ROWS.items():
        values = [week[key] for week in weeks]
        row = [title, *(_text(value, title) for value in values)]
        row += [f"{value / values[0]:.2f}" if values[0] else "" for value in values[1:]]
        rows.append(row)
    rows.insert(1, ["---"] * len(rows[0]))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _text(value: float, title: str) -> str:
    return f"{value / 1e6:,.1f}" if title.endswith("MB") else f"{value:,.0f}"


def live(
    days: Sequence[Day], builders: Sequence[str], where: Path, limit: float
) -> dict[str, WeekFigures]:
    """Live through the week with each builder; return what each week has cost."""
    figures = {}
    with DockerRegistry(where / "registry") as registry:
        layers = WeekLayers(where, registry)
        for builder in builders:
            with WeekSite(where / builder, builder, registry, layers, limit) as site:
                for name, day in zip(DAYS, days, strict=True):
                    site.spend_day(day)
                    words = f"{builder}, {name}: {len(day.pushes)} pushes, {len(day.pulls)} pulls"
                    print(words, file=sys.stderr, flush=True)  # noqa: T201 - progress
            figures[builder] = site.figures
            shutil.rmtree(where / builder)
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.week", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--builders", nargs="+", choices=BUILDERS, default=["whole", "packs"], metavar="NAME",
        help=f"some of {', '.join(BUILDERS)}",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=float, default=1800, metavar="SECONDS", help="for each pull"
    )
    parser.add_argument(
        "--directory", type=Path, metavar="DIR",
        help="for images and temporary files: 30 GB with the size full",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="for the table, too")
    options = parser.parse_args(arguments)
    for builder in options.builders:
        if not is_supported(BUILDERS[builder]):
            parser.error(f"this version of shiftergw has no builder {builder}")
    days = plan_week(SIZES[options.size], options.seed)
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="shiftergw-week-") as scratch:
        text = table(live(days, options.builders, Path(scratch), options.limit))
    if options.output is not None:
        options.output.write_text(text)
    print(text, end="")  # noqa: T201 - the output of the command


if __name__ == "__main__":
    main()
