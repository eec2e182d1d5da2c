"""Ratios pair the figures of one round; a spread is the lowest and the highest of them."""

from __future__ import annotations

import pytest

from tests.bench.figures import Combination, Measurement, NoFigures, Sample, Spread, Term, ratio
from tests.bench.profile import Part
from tests.bench.run_doubles import measurement_of, wall_samples


def test_a_spread_has_the_median_and_both_ends() -> None:
    """The order of the rounds does not matter; of two rounds the median is the mean."""
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)
    assert Spread.of([2.0, 1.0]) == Spread(1.5, 1.0, 2.0)
    assert Spread.of([4.0]) == Spread(4.0, 4.0, 4.0)


def test_a_ratio_divides_round_by_round() -> None:
    """A round in which everything is slow leaves the ratio as it is."""
    slow_round = measurement_of({"floor": wall_samples(1, 10, 1), "ours": wall_samples(2, 20, 3)})
    assert ratio(slow_round, Term(("ours",)), Term(("floor",))) == Spread(2.0, 2.0, 3.0)


def test_the_slowest_or_the_fastest_counts_in_each_round() -> None:
    """Of several variants another one may be the slowest in each round."""
    times = measurement_of({"a": wall_samples(1, 8), "b": wall_samples(4, 2)})
    assert Term(("a", "b")).figures(times) == [4, 8]
    assert Term(("a", "b"), choose=min).figures(times) == [1, 2]
    assert Term(("a", "b"), "cpu").figures(times) == [2, 4]


def test_a_variant_without_figures() -> None:
    """Without one of its slowest parts there is no ratio; a tool that is lacking is no rival."""
    times = measurement_of({"a": wall_samples(1)}, reasons={"b": "b is not installed"})
    with pytest.raises(NoFigures, match="b: b is not installed"):
        Term(("a", "b")).figures(times)
    assert Term(("a", "b"), choose=min).figures(times) == [1]
    with pytest.raises(NoFigures, match="a has no figure size"):
        Term(("a",), "size").figures(times)
    with pytest.raises(NoFigures, match="c: not part of this run"):
        Term(("c",), choose=min).figures(times)


def test_terms_are_combined_in_each_round() -> None:
    """The slowest of several parts, plus another part, is a term of its own."""
    times = measurement_of(
        {"a": wall_samples(1, 8), "b, x": wall_samples(4, 2, packing=3), "c": wall_samples(1, 1)}
    )
    slowest = Combination((Term(("a",)), Term(("b, {builder}",), "packing")), max)
    total = Combination((slowest, Term(("c",))), sum).bind("x")
    assert total.variants == ("a", "b, x", "c")
    assert total.figures(times) == [4, 9]
    assert ratio(times, Term(("a",)), total) == Spread((1 / 4 + 8 / 9) / 2, 1 / 4, 8 / 9)
    with pytest.raises(NoFigures, match="b, y: not part of this run"):
        slowest.bind("y").figures(times)
    empty = measurement_of({"a": wall_samples(0)})
    with pytest.raises(NoFigures, match="a: its wall is 0"):
        ratio(empty, Term(("a",)), Combination((Term(("a",)),), max))


def test_a_ratio_to_nothing_is_none() -> None:
    """A divisor of 0 is no ratio, and no error of arithmetic."""
    times = measurement_of({"a": wall_samples(1, sent=5), "b": wall_samples(1, sent=0)})
    with pytest.raises(NoFigures, match="its sent is 0"):
        ratio(times, Term(("a",), "sent"), Term(("b",), "sent"))


def test_stages_are_medians_of_those_in_all_rounds() -> None:
    """A stage that a round did not have is left out."""
    rounds = [Sample({}, {"x": 1.0, "y": 1.0}), Sample({}, {"x": 3.0}), Sample({}, {"x": 2.0})]
    assert measurement_of({"a": rounds}).stages("a") == {"x": 2.0}
    assert measurement_of({}).stages("a") == {}


def test_a_measurement_survives_json() -> None:
    """The document of a measurement gives the same measurement."""
    samples = {"a": [Sample({"wall": 1.5}, {"x": 1.0}, (Part("x", 1.0, {"worker": 0.5}),))]}
    measurement = measurement_of(samples, reasons={"b": "lacking"}, failures=["b"])
    assert Measurement.from_document(measurement.to_document()) == measurement
    assert Sample.from_document({"figures": {}, "stages": {}}) == Sample({}, {})
