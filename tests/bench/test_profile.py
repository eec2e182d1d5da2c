"""The time of a pull is divided into parts, and the CPU time of each part into programs."""

from __future__ import annotations

import pytest

from tests.bench.meters import Look
from tests.bench.profile import BEFORE, DELIVERY, Part, median_profile, profile, programs_of

LOOKS = [
    Look(10.0, {"worker": 0.0}),
    Look(14.0, {"worker": 1.0, "mksquashfs": 6.0}),
    Look(15.0, {"worker": 1.5, "mksquashfs": 6.0}),
    Look(16.0, {"worker": 2.5, "mksquashfs": 6.0, "unsquashfs": 0.5}),
    Look(18.0, {"worker": 3.0, "mksquashfs": 6.0, "unsquashfs": 0.5}),
]


def test_parts_are_laid_backward_from_the_end() -> None:
    """The delivery is last, the steps of the build are before it, and reading has the rest."""
    steps = {"fetch": 3.0, "pack": 4.0, "compose": 1.0, "check": 1.0}
    assert profile(LOOKS, {"CONVERSION": 5.0, DELIVERY: 2.0}, steps) == [
        Part(BEFORE, 4.0, {"worker": 1.0, "mksquashfs": 6.0}),
        Part("compose", 1.0, {"worker": 0.5, "mksquashfs": 0.0}),
        Part("check", 1.0, {"worker": 1.0, "mksquashfs": 0.0, "unsquashfs": 0.5}),
        Part(DELIVERY, 2.0, {"worker": 0.5, "mksquashfs": 0.0, "unsquashfs": 0.0}),
    ]


def test_parts_do_not_begin_before_the_pull() -> None:
    """Seconds of a record that are more than the pull took make no part negative."""
    parts = profile(LOOKS, {DELIVERY: 20.0}, {"check": 1.0})
    assert [(part.name, part.wall) for part in parts] == [
        (BEFORE, 0.0),
        ("check", 0.0),
        (DELIVERY, 8.0),
    ]


def test_the_profile_of_several_rounds() -> None:
    """Parts and programs have medians; a part that a round did not have is left out."""
    rounds = [
        [Part("plan", 1.0, {"worker": 1.0}), Part("check", 1.0, {"unsquashfs": 0.0})],
        [Part("plan", 3.0, {"worker": 2.0, "sh": 1.0})],
        [Part("plan", 2.0, {"worker": 6.0})],
    ]
    assert median_profile(rounds) == [Part("plan", 2.0, {"worker": 2.0, "sh": 0.0})]
    assert list(programs_of(rounds[1])) == ["worker", "sh"]
    assert list(programs_of(rounds[0])) == ["worker"]
    assert median_profile([]) == []
    assert median_profile([()]) == []


def test_a_pull_has_at_least_one_look() -> None:
    """Without a delivery the reading of the layers has all the time."""
    assert profile(LOOKS[:1], {}, {}) == [
        Part(BEFORE, 0.0, {"worker": 0.0}),
        Part(DELIVERY, 0.0, {"worker": 0.0}),
    ]
    assert pytest.approx(8.0) == profile(LOOKS, {}, {})[0].wall
