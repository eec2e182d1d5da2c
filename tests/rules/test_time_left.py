"""The estimate of how long a pull will still take."""

from __future__ import annotations

from typing import Any

import pytest

from shiftergw.model.records import Progress
from shiftergw.rules.time_left import learn_costs, time_left

MB = 10**6
COSTS = {"plan": 0.01 / MB, "compose": 0.1 / MB, "check": 0.05 / MB, "deliver": 0.04 / MB}
NO_READING = Progress()


def report(size: int, **steps: float) -> dict[str, Any]:
    """Return the report of a pull that was delivered in two seconds."""
    return {"layer_bytes": size, "steps": steps, "seconds": {"TRANSFER": 2.0}}


def test_costs_are_those_of_earlier_pulls() -> None:
    """Newer pulls weigh more than older ones, and large ones more than small ones."""
    same = learn_costs([report(10 * MB, compose=1.0), report(30 * MB, compose=3.0)])
    assert same["compose"] == pytest.approx(0.1 / MB)
    newer_slow = learn_costs([report(MB, compose=2.0), report(MB, compose=1.0)])
    older_slow = learn_costs([report(MB, compose=1.0), report(MB, compose=2.0)])
    assert newer_slow["compose"] > older_slow["compose"]
    assert same["deliver"] == pytest.approx((2.0 + 0.8 * 2.0) / ((10 + 0.8 * 30) * MB))


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"layer_bytes": 0, "steps": {"compose": 1.0}, "seconds": {}},
        {"layer_bytes": "many", "steps": {"compose": 1.0}, "seconds": {}},
        {"layer_bytes": MB, "steps": [], "seconds": {}},
        {"layer_bytes": MB, "steps": {"compose": -1.0, "check": "x"}, "seconds": {}},
    ],
)
def test_other_programs_teach_nothing(odd: dict[str, Any]) -> None:
    """What another program, or an earlier version, has written is left out."""
    assert learn_costs([odd]) == {}


def test_download_and_reading_overlap() -> None:
    """Of the download and the reading of layers, the slower one counts, then what follows."""
    fetch = Progress("fetch", 50 * MB, 100 * MB, rate=10 * MB)
    slow = Progress("pack", 10 * MB, 100 * MB, rate=5 * MB)
    fast = Progress("pack", 50 * MB, 100 * MB, rate=20 * MB)
    assert time_left(fetch, slow, COSTS, 100 * MB) == pytest.approx(18 + 20)
    assert time_left(fetch, fast, COSTS, 100 * MB) == pytest.approx(5 + 20)


def test_each_stage_is_followed_by_the_later_ones() -> None:
    """The stage counts by its own rate, or by that of earlier pulls until it has one."""
    packing = Progress("pack", 50 * MB, 100 * MB, rate=10 * MB)
    assert time_left(packing, NO_READING, COSTS, 100 * MB) == pytest.approx(5 + 20)
    composing = Progress("compose", 5, 10, rate=1)
    assert time_left(composing, NO_READING, COSTS, 100 * MB) == pytest.approx(5 + 9)
    assert time_left(Progress("compose", 5, 10), NO_READING, COSTS, 100 * MB) == pytest.approx(
        5 + 9
    )
    assert time_left(Progress("deliver", 10, 10), NO_READING, {}, 100 * MB) == 0


def test_a_remote_system_compares_the_image_after_the_transfer() -> None:
    """The comparison, whose rate is not known while it runs, takes as long as for other images."""
    costs = {**COSTS, "remote-check": 0.03 / MB}
    transfer = Progress("deliver", 50 * MB, 100 * MB, rate=10 * MB)
    assert time_left(transfer, NO_READING, costs, 100 * MB) == pytest.approx(5 + 3)
    assert time_left(transfer, NO_READING, COSTS, 100 * MB) == pytest.approx(5)
    comparison = Progress("compare", 0, 100 * MB)
    assert time_left(comparison, NO_READING, costs, 100 * MB) == pytest.approx(3)
    assert time_left(comparison, NO_READING, COSTS, 100 * MB) is None


@pytest.mark.parametrize(
    ("progress", "costs"),
    [
        (Progress("pack", 1, 2, rate=1), {}),
        (Progress("pack", 1, 2, rate=0), COSTS),
        (Progress("pack", 1, 2), COSTS),
        (Progress("pack", 1, 0, rate=1), COSTS),
        (Progress("fetch", 1, 2, rate=1), COSTS),
        (Progress("repair", 1, 2, rate=1), COSTS),
        (Progress("PULLING", 1, 2, rate=1), COSTS),
        (Progress("index", 1, 2, rate=1), COSTS),
        (Progress("deliver", 0, 2**62, rate=1), {}),
    ],
)
def test_an_unknown_stage_gives_no_estimate(progress: Progress, costs: dict[str, float]) -> None:
    """No time is better than a wrong one."""
    assert time_left(progress, NO_READING, costs, MB) is None
