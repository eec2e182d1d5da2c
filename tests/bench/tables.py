"""Tables of the bench's results in Markdown, and their place in the README."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.bars import DOWNLOAD, FLOOR, PODMAN, PULL, RAW_FLOOR, SKOPEO, UPLOAD, Judgment
from tests.bench.figures import Measurement, NoFigures, Spread, Term, ratio
from tests.bench.profile import programs_of
from tests.bench.results import Results

BEGIN = "<!-- tests/bench/run --readme writes the lines from here -->"
END = "<!-- to here -->"

REFERENCES = ((FLOOR,), (DOWNLOAD, RAW_FLOOR), (DOWNLOAD, UPLOAD))
"""The variants by which others are divided, of which the slowest counts: the first that exist."""

_AMOUNTS = {
    "layer bytes": "downloaded MB",
    "sent bytes": "sent MB",
    "memory": "worker's memory MB",
    "scratch": "scratch disk MB",
    "scratch files": "scratch files",
    "remote check": "remote check s",
}
"""The column of each figure that some scenarios have; bytes are shown in MB."""


def full_report(results: Results) -> str:
    """Return everything that a run has measured, in Markdown."""
    return "\n".join(_full_report(results)) + "\n"


def _full_report(results: Results) -> Iterator[str]:
    yield f"# {_occasion(results)}"
    yield ""
    yield from (f"**{warning}**\n" for warning in results.warnings)
    for measurement in results.measurements.values():
        yield f"## {measurement.title}"
        yield ""
        yield f"{measurement.image}."
        yield ""
        yield from _variants_table(measurement)
        yield ""
        yield from _stages(measurement)
        yield from _profiles(measurement)
    yield "## Bars"
    yield ""
    yield from bars_table(results.judgments())
    yield ""
    yield "## Machine"
    yield ""
    yield from (f"* {name}: {text}" for name, text in results.machine.items())


def _occasion(results: Results) -> str:
    return (
        f"shiftergw {results.version}, {results.date}: medians of {results.rounds}"
        f" round{'s' * (results.rounds > 1)}, size {results.size}"
    )


def _variants_table(measurement: Measurement) -> Iterator[str]:
    amounts = [
        name for name in _AMOUNTS
        if any(measurement.figures(variant, name) for variant in measurement.samples)
    ]  # fmt: skip
    columns = ["variant", "wall s", "CPU s", "x reference", "MB"]
    yield from _head([*columns, *(_AMOUNTS[name] for name in amounts)])
    for variant in measurement.samples:
        cells = [
            spread_text(measurement.spread(variant, "wall")),
            spread_text(measurement.spread(variant, "cpu")),
            spread_text(reference_ratio(measurement, variant)),
            _amount(measurement.spread(variant, "size"), "MB"),
            *(_amount(measurement.spread(variant, name), _AMOUNTS[name]) for name in amounts),
        ]
        yield _row([variant, *cells])
    for variant, reason in measurement.reasons.items():
        yield _row([variant, f"not measured: {_cell(reason)}", *[""] * (3 + len(amounts))])


def _stages(measurement: Measurement) -> Iterator[str]:
    for variant in measurement.samples:
        stages = measurement.stages(variant)
        if stages:
            seconds = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stages.items())
            yield f"* {variant}: {seconds}"
    yield ""


def _profiles(measurement: Measurement) -> Iterator[str]:
    """Yield a table for each of our pulls: the seconds of its parts, and of programs in them."""
    for variant in measurement.samples:
        parts = measurement.profile(variant)
        programs = list(programs_of(parts))
        if parts:
            yield from _head([variant, "wall s", "CPU s", *programs])
            for part in parts:
                cpu = [part.cpu.get(program, 0.0) for program in programs]
                cells = [f"{seconds:.2f}" for seconds in (part.wall, sum(cpu), *cpu)]
                yield _row([part.name, *cells])
            yield ""


def bars_table(judgments: Sequence[Judgment]) -> Iterator[str]:
    """Yield the lines of a table of all bars with their verdicts."""
    yield from _head(["bar", "what", "builder", "ratio", "limit", "verdict"])
    for judgment in judgments:
        bar = judgment.bar
        reason = f" ({_cell(judgment.reason)})" if judgment.reason else ""
        ratio_text = spread_text(judgment.spread)
        verdict = f"{judgment.verdict.value}{reason}"
        yield _row([bar.number, bar.text, judgment.builder, ratio_text, bar.condition, verdict])


def reference(measurement: Measurement) -> Term | None:
    """Return what the wall times of a scenario are divided by, if it has been measured."""
    for names in REFERENCES:
        if set(names) <= measurement.samples.keys():
            return Term(names)
    return None


def reference_ratio(measurement: Measurement, variant: str) -> Spread | None:
    """Return the wall time of a variant by that of the scenario's reference, if both exist."""
    term = reference(measurement)
    try:
        return None if term is None else ratio(measurement, Term((variant,)), term)
    except NoFigures:
        return None


def readme_section(results: Results, picture: str) -> str:
    """Return the README's section about speed: a picture, and a table of ratios.

    `picture` is the path of the picture as the README links it.
    """
    pulls = [PULL.format(builder=builder) for builder in results.builders]
    caption = (
        "The floor is a download by `curl`, then `mksquashfs` alone on a tree in the page cache;"
        " over a line, the slowest of download, `mksquashfs` and upload."
        f" Medians of {results.rounds} rounds with the lowest and the highest ratio;"
        f" {results.machine.get('processors', 'this machine')}, {results.date}."
        " shiftergw converts images by packs, unless `Builder` or `Packer` say otherwise"
        " ([running.md](docs/running.md#whole-images-or-packs))."
        " `tests/bench/run` measures all of it on your machine."
    )
    lines = [
        "## Speed",
        "",
        f"![Wall times of conversions as multiples of the floor]({picture})",
        "",
        caption,
        "",
        *(f"**{warning}**\n" for warning in results.warnings),
        *_head(["", "floor", *pulls, SKOPEO, PODMAN]),
    ]
    for measurement in results.measurements.values():
        term = reference(measurement)
        if term is not None:
            seconds = Spread.of(term.figures(measurement)).median
            ratios = [reference_ratio(measurement, name) for name in (*pulls, SKOPEO, PODMAN)]
            cells = [f"{seconds:.1f} s", *(spread_text(spread) or "-" for spread in ratios)]
            lines.append(_row([measurement.title, *cells]))
    return "\n".join(lines)


def write_readme(path: Path, section: str) -> None:
    """Write a section between the marks of a document; raise `ValueError` without marks."""
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} lacks the lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{section}\n\n{END}{after}")


def spread_text(spread: Spread | None) -> str:
    """Return a median with its spread, or an empty text."""
    if spread is None:
        return ""
    median, low, high = (f"{figure:.2f}" for figure in (spread.median, spread.low, spread.high))
    return median if low == high else f"{median} ({low}-{high})"


def _amount(spread: Spread | None, title: str) -> str:
    """Return the median of a figure in the unit that its title ends with."""
    if spread is None:
        return ""
    divisor, digits = (1e6, 1) if title.endswith("MB") else (1, 2 if title.endswith(" s") else 0)
    return f"{spread.median / divisor:.{digits}f}"


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), _row(["---"] * len(cells))]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Return a text that cannot end its cell: messages of programs have any characters."""
    return " ".join(text.split()).replace("|", "/")
