"""Tables and pictures have all variants and bars, whatever the texts in them are."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.bench import __main__ as command
from tests.bench.bars import BARS, Verdict
from tests.bench.drawing import draw, write_png
from tests.bench.figures import Spread
from tests.bench.machine import busy_share, describe_machine, quietness_warning
from tests.bench.results import Results
from tests.bench.run_doubles import PULL_WHOLE, measurement_of, results_of, wall_samples
from tests.bench.tables import (
    BEGIN,
    END,
    full_report,
    readme_section,
    reference_ratio,
    spread_text,
    write_readme,
)

SVG = "{http://www.w3.org/2000/svg}"


def test_the_report_has_every_variant_and_bar() -> None:
    """Each variant has a row with its ratio, or the reason why it has none; so has each bar."""
    text = full_report(results_of([15, 16, 14], warnings=["This machine is busy."]))
    assert "**This machine is busy.**" in text
    assert "| floor | 10.00 | 5.00 | 1.00 | 5.0 |" in text
    assert f"| {PULL_WHOLE} | 15.00 (14.00-16.00) | 7.50 (7.00-8.00) | 1.50 (1.40-1.60) |" in text
    assert "| podman | not measured: podman is / not installed |" in text
    assert "* shiftergw, whole: PULLING 1.0 s, CONVERSION 14.0 s" in text
    assert f"| {PULL_WHOLE} | wall s | CPU s | worker | mksquashfs |" in text
    assert "| compose | 1.00 | 1.25 | 0.75 | 0.50 |" in text
    assert "| pull, cold, zstd 3, by the floor | whole | 1.50 (1.40-1.60) | ≤ 1.6 | met |" in text
    for bar in BARS:
        assert (f"| {bar.number} | {bar.text} |" in text) == (bar.scenario == "zstd")
    assert "* processors: 2 x CPU <fast> & quiet" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {6, 7}


def test_amounts_have_units() -> None:
    """Bytes are shown in MB, numbers of files and seconds as they are."""
    samples = {
        PULL_WHOLE: wall_samples(
            3, **{"layer bytes": 2_500_000, "scratch files": 12, "remote check": 1.234}
        ),
        "floor": wall_samples(1),
    }
    results = replace(results_of([15]), measurements={"zstd": measurement_of(samples)})
    text = full_report(results)
    assert "| MB | downloaded MB | scratch files | remote check s |" in text
    assert f"| {PULL_WHOLE} | 3.00 | 1.50 | 3.00 |  | 2.5 | 12 | 1.23 |" in text


def test_the_reference_is_the_slowest_part() -> None:
    """Without a floor, wall times are divided by the slower of the parts."""
    times = {
        "download alone": wall_samples(1, 4),
        "mksquashfs alone": wall_samples(2, 2),
        PULL_WHOLE: wall_samples(4, 4),
    }
    assert reference_ratio(measurement_of(times), PULL_WHOLE) == Spread(1.5, 1.0, 2.0)
    del times["download alone"]
    assert reference_ratio(measurement_of(times), PULL_WHOLE) is None


def test_a_spread_of_one_figure_is_that_figure() -> None:
    """Lowest and highest are shown only if they differ from each other."""
    assert spread_text(Spread(1.234, 1.234, 1.234)) == "1.23"
    assert spread_text(Spread(1.2, 1.0, 1.5)) == "1.20 (1.00-1.50)"
    assert spread_text(None) == ""


@pytest.mark.parametrize(
    ("seconds", "size", "exit_code"),
    [
        ([15, 16, 14], "full", 0),
        ([17, 18, 15], "full", 0),
        ([17, 18, 19], "full", 1),
        ([17, 18, 19], "small", 0),
    ],
    ids=["met", "missed within the spread", "missed", "missed by small images"],
)
def test_a_bar_that_every_round_misses_ends_with_1(
    seconds: list[float],
    size: str,
    exit_code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The exit code of earlier results is that of their bars, and the tables are printed."""
    results_of(seconds, size=size).write(tmp_path / "results.json")
    assert command.main(["--from", str(tmp_path / "results.json")]) == exit_code
    assert (Verdict.MISS.value in capsys.readouterr().out) == bool(exit_code)


def test_results_survive_json(tmp_path: Path) -> None:
    """Results that are read are those that were written; other files are refused."""
    results = results_of([15, 16])
    results.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results
    (tmp_path / "results.json").write_text('{"form": 0}')
    with pytest.raises(ValueError, match="has no results of this bench"):
        Results.read(tmp_path / "results.json")


def test_the_picture_is_well_formed() -> None:
    """The SVG has a bar and a name for each variant, inside its borders, and escapes texts."""
    svg = ET.fromstring(draw(results_of([15, 16, 14])))
    texts = [element.text for element in svg.iter(f"{SVG}text")]
    assert texts[1:-1] == [
        "title of zstd",
        *["floor", "1.00"],
        *[PULL_WHOLE, "1.50 (1.40-1.60)"],
        *["skopeo + umoci", "6.00"],
    ]
    assert "2 x CPU <fast> & quiet" in str(texts[-1])
    _, *bars = [element.attrib for element in svg.iter(f"{SVG}rect")]
    widths = [float(bar["width"]) for bar in bars]
    assert widths[1] / widths[0] == pytest.approx(1.5, rel=0.01)
    assert widths[2] / widths[0] == pytest.approx(6.0, rel=0.01)
    assert max(float(bar["x"]) + float(bar["width"]) for bar in bars) < float(svg.attrib["width"])
    assert max(float(bar["y"]) for bar in bars) < float(svg.attrib["height"])


def test_a_png_is_made_if_its_program_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rsvg-convert` gets both files; without it the picture is an SVG only."""
    svg, png = tmp_path / "x.svg", tmp_path / "x.png"
    svg.write_text("content")
    assert not write_png(svg, png, "absent-program")
    program = tmp_path / "rsvg-convert"
    program.write_text('#!/bin/sh\ncp "$5" "$4"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert write_png(svg, png)
    assert png.read_text() == "content"


def test_the_readme_keeps_the_text_around_the_marks(tmp_path: Path) -> None:
    """The section replaces what is between the marks, as often as it is written."""
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    for seconds in (18, 15):
        section = readme_section(results_of([seconds]), "docs/speed.svg")
        write_readme(readme, section)
    assert readme.read_text() == f"before\n{BEGIN}\n\n{section}\n\n{END}\nafter\n"
    assert "| title of zstd | 10.0 s | 1.50 | 6.00 | - |" in section
    assert "(docs/speed.svg)" in section
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the lines"):
        write_readme(readme, section)
    assert readme.read_text() == "no marks"


def test_the_readme_gets_figures_of_full_size_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures of small images do not get into the README."""
    before = command.README.read_text()
    results_of([15], size="medium").write(tmp_path / "results.json")
    arguments = ["--from", str(tmp_path / "results.json"), "--readme"]
    assert command.main(arguments) == 2
    assert "size medium" in capsys.readouterr().err
    assert command.README.read_text() == before


def test_the_readme_has_the_marks() -> None:
    """The command has a place in the README of this checkout."""
    text = command.README.read_text()
    assert text.index(BEGIN) < text.index(END)


def test_a_busy_machine_is_noticed() -> None:
    """A busy machine is warned of, with its load; a quiet one is not."""
    assert quietness_warning(0.05, 0.1) == ""
    assert "busy (50% of its processors, load 2.2)" in quietness_warning(0.5, 2.25)
    assert 0 <= busy_share(0.05) <= 1
    assert {"processors", "memory", "mksquashfs"} <= describe_machine().keys()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--size", "huge"],
        ["--rounds", "0"],
        ["--scenarios", "absent"],
        ["--builders", "absent"],
        ["--readme", "--size", "small"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_exit_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong arguments are named before anything is measured."""
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err
