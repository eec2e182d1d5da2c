"""A bar is missed if every round misses it; each bar has its scenario and builders."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.bench.bars import BARS, EACH_BUILDER, Bar, Judgment, Verdict, judge
from tests.bench.figures import Spread, Term
from tests.bench.run_doubles import PULL_PACKS, PULL_WHOLE, measurement_of, wall_samples
from tests.bench.scenarios import SCENARIOS

AT_MOST = Bar("1", "zstd", "text", Term(("shiftergw, {builder}",)), Term(("floor",)), 1.5)
AT_LEAST = Bar(
    "2", "zstd", "text", Term(("floor",)), Term(("shiftergw, {builder}",)), 2, is_least=True
)
NEW = Bar(
    "3", "zstd", "text", Term(("shiftergw, {builder}",)), Term(("floor",)), 1.5, ("packs", "direct")
)


@pytest.mark.parametrize(
    ("bar", "spread", "verdict"),
    [
        (AT_MOST, Spread(1.5, 1.4, 1.9), Verdict.PASS),
        (AT_MOST, Spread(1.6, 1.5, 1.9), Verdict.CLOSE_MISS),
        (AT_MOST, Spread(1.6, 1.51, 1.9), Verdict.MISS),
        (AT_LEAST, Spread(2.0, 1.0, 2.5), Verdict.PASS),
        (AT_LEAST, Spread(1.9, 1.0, 2.0), Verdict.CLOSE_MISS),
        (AT_LEAST, Spread(1.9, 1.0, 1.99), Verdict.MISS),
    ],
)
def test_verdicts(bar: Bar, spread: Spread, verdict: Verdict) -> None:
    """The median decides, and a miss needs every round."""
    assert bar.verdict(spread) is verdict


def verdicts(
    samples: dict[str, list[float]], builders: Sequence[str], bar: Bar, *, is_full: bool = True
) -> list[Judgment]:
    """Return the verdicts on one bar for these wall times."""
    measurement = measurement_of({name: wall_samples(*times) for name, times in samples.items()})
    return [*judge({"zstd": measurement}, builders, is_full=is_full, bars=[bar])]


def test_each_builder_is_judged_for_itself() -> None:
    """A bar has a verdict for each builder, by the figures of that builder."""
    times = {"floor": [1.0], PULL_WHOLE: [2.0], PULL_PACKS: [1.2]}
    whole, packs = verdicts(times, ["whole", "packs"], AT_MOST)
    assert (whole.builder, whole.verdict, whole.is_failure) == ("whole", Verdict.MISS, True)
    assert (packs.builder, packs.verdict, packs.is_failure) == ("packs", Verdict.PASS, False)


def test_a_bar_of_another_builder_is_not_asked() -> None:
    """A bar that no builder of the run has to keep is shown once, without a ratio."""
    times = {"floor": [1.0], PULL_WHOLE: [2.0]}
    (judgment,) = verdicts(times, ["whole"], NEW)
    assert (judgment.builder, judgment.spread) == ("packs, direct", None)
    assert (judgment.verdict, judgment.is_failure) == (Verdict.NOT_ASKED, False)


def test_small_images_are_not_judged() -> None:
    """Ratios of small images are shown, but miss no bar."""
    (judgment,) = verdicts({"floor": [1.0], PULL_WHOLE: [9.0]}, ["whole"], AT_MOST, is_full=False)
    assert (judgment.verdict, judgment.is_failure) == (Verdict.NOT_JUDGED, False)
    assert judgment.spread == Spread(9.0, 9.0, 9.0)


def test_a_pull_that_fails_is_a_failure() -> None:
    """A failure of ours counts as a miss, at any size; a tool that is lacking does not."""
    measurement = measurement_of(
        {"floor": wall_samples(1)}, reasons={PULL_WHOLE: "no space"}, failures=[PULL_WHOLE]
    )
    (judgment,) = judge({"zstd": measurement}, ["whole"], is_full=False, bars=[AT_MOST])
    assert (judgment.verdict, judgment.is_failure) == (Verdict.FAILURE, True)
    assert judgment.reason == "no space"
    (judgment,) = verdicts({PULL_WHOLE: [1.0]}, ["whole"], AT_MOST)
    assert (judgment.verdict, judgment.is_failure) == (Verdict.NO_FIGURES, False)
    assert judgment.reason == "floor: not part of this run"


def test_bars_of_other_scenarios_are_left_out() -> None:
    """A run of some scenarios has no verdict on the bars of others."""
    assert {
        judgment.bar.scenario for judgment in judge({"zstd": measurement_of({})}, ["whole"])
    } == {"zstd"}


@pytest.mark.parametrize("bar", BARS, ids=lambda bar: f"{bar.number}: {bar.text}")
def test_each_bar_names_a_scenario_and_builders(bar: Bar) -> None:
    """Every bar is one of a scenario that exists, for builders that exist."""
    assert bar.scenario in SCENARIOS
    assert bar.builders
    assert set(bar.builders) <= set(EACH_BUILDER)
