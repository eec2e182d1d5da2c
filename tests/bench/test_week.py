"""The week of a site: its plan, the layers of it, and its table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import week
from tests.bench.week_plan import DAYS, SIZES, SYSTEMS, UPDATE_DAY, LayerPlan, Push, plan_week
from tests.bench.week_site import WeekFigures, make_older, used_bytes
from tests.matrices import LONG
from tests.parts import need

SMALL = SIZES["small"]


def test_a_seed_is_a_week() -> None:
    """The same seed gives the same days, another one gives others."""
    assert plan_week(SMALL, 1) == plan_week(SMALL, 1) != plan_week(SMALL, 2)


def test_what_happens_in_a_week() -> None:
    """All images are there before the first pull, each system pulls, and tags move each day."""
    days = plan_week(SIZES["full"], 1)
    assert len(days) == len(DAYS)
    names = {event.name for event in days[0].pushes}
    assert len(names) == SIZES["full"].images
    assert {pull.system for day in days for pull in day.pulls} == set(SYSTEMS)
    assert {pull.name for day in days for pull in day.pulls} <= names
    assert all(day.pushes for day in days)
    assert len(days[-1].pulls) < len(days[0].pulls)


def test_images_share_their_base() -> None:
    """An image has the layers of its distribution and of its tools, and one to three of its own."""
    first = plan_week(SMALL, 1)[0].pushes
    bases = {event.layers[:2] for event in first}
    assert len(bases) == SMALL.bases
    assert len({base[0] for base in bases}) == SMALL.distributions
    assert {len(event.layers) for event in first} <= {3, 4, 5}


def origins_of(plan: LayerPlan) -> Iterator[LayerPlan]:
    """Yield the layers that a layer was built from, one after the other."""
    while plan.origin is not None:
        plan = plan.origin
        yield plan


def test_an_update_of_a_distribution() -> None:
    """All images on it are built anew, and no layer of theirs stays."""
    days = plan_week(SMALL, 1)
    latest: dict[str, Push] = {}
    for day in days[:UPDATE_DAY]:
        latest |= {event.name: event for event in day.pushes}
    for event in days[UPDATE_DAY].pushes:
        layers, previous = set(event.layers), set(latest[event.name].layers)
        if event.layers[0].name == "distribution0-1":
            assert not layers & previous
        else:
            assert len(layers - previous) == 1
        assert all(set(origins_of(plan)) & previous for plan in layers - previous)
    updates = [event for event in days[UPDATE_DAY].pushes if event.layers[0].origin]
    assert len(updates) == SMALL.images // SMALL.distributions


def test_the_table() -> None:
    """Each figure has a row, in its unit, with the ratio to the first builder."""
    weeks = {
        "whole": WeekFigures(pulls=10, cpu=200.0, sent_bytes=0),
        "packs": WeekFigures(pulls=10, cpu=50.0, sent_bytes=3_000_000),
    }
    lines = week.table(weeks).splitlines()
    assert lines[:2] == ["|  | whole | packs | packs ÷ whole |", "| --- | --- | --- | --- |"]
    assert "| pulls | 10 | 10 | 1.00 |" in lines
    assert "| CPU s | 200 | 50 | 0.25 |" in lines
    assert "| sent to the remote system MB | 0.0 | 3.0 |  |" in lines
    assert len(lines) == 2 + len(week.ROWS)


def test_files_that_become_older(tmp_path: Path) -> None:
    """A night passes for all files of a directory."""
    file = tmp_path / "a" / "b"
    file.parent.mkdir()
    file.touch()
    os.utime(file, (5000.0, 7000.0))
    make_older(tmp_path, 1000.0)
    assert (file.stat().st_atime, file.stat().st_mtime) == (4000.0, 6000.0)


def test_the_size_of_directories(tmp_path: Path) -> None:
    """A hard link takes no bytes."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(bytes(range(256)) * 400)
    size = used_bytes([tmp_path])
    assert size >= 102_400
    (tmp_path / "link").hardlink_to(tmp_path / "a" / "file")
    assert used_bytes([tmp_path / "a", tmp_path]) == size


if LONG:

    def test_a_week(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Both builders live through the same week, and deliver images of about the same size."""
        for program in ("docker-registry", "skopeo", "mksquashfs", "sshd"):
            need(program)
        output = tmp_path / "table"
        week.main(["--size", "tiny", "--directory", str(tmp_path), "--output", str(output)])
        rows = [line.split(" | ") for line in output.read_text().splitlines()]
        figures = {row[0].removeprefix("| "): row[1:] for row in rows[2:]}
        assert figures["pulls"][0] == figures["pulls"][1] != "0"
        assert float(figures["images MB"][2].removesuffix(" |")) <= 1.02
        assert capsys.readouterr().out == output.read_text()
        assert list(tmp_path.iterdir()) == [output]
