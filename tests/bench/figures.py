"""Figures of measurements: samples, medians, spreads, and ratios within one run.

Absolute times are valid on one machine only, so variants are compared by ratios. The ratio of a
round divides figures of that round alone, since rounds may differ by what the machine does beside
the measurement. A ratio is the median of those of all rounds; its spread is the lowest and the
highest of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench.profile import Part, median_profile


@dataclass(frozen=True)
class Sample:
    """The costs of one run of a variant.

    `figures` are its costs by name: `wall` and `cpu` in seconds, `size` and other amounts in bytes.
    `stages` are the seconds of its stages, `profile` tells where they went.
    """

    figures: Mapping[str, float]
    stages: Mapping[str, float] = field(default_factory=dict)
    profile: tuple[Part, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """Return the sample as an object of JSON."""
        parts = [part.to_document() for part in self.profile]
        return {"figures": dict(self.figures), "stages": dict(self.stages), "profile": parts}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Sample:
        """Return the sample of such an object; those of earlier versions have no profile."""
        parts = tuple(Part(**part) for part in document.get("profile", ()))
        return cls(document["figures"], document["stages"], parts)


@dataclass(frozen=True)
class Spread:
    """The median of some figures, with the lowest and the highest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Return the spread of at least one figure."""
        return cls(statistics.median(figures), min(figures), max(figures))


@dataclass(frozen=True)
class Measurement:
    """The samples of all rounds of one scenario.

    `samples` has the same number of them for each variant. `reasons` tell why other variants have
    none; those in `failures` were expected to work. `image` describes the image in a few words.
    """

    scenario: str
    title: str
    image: str
    samples: Mapping[str, Sequence[Sample]]
    reasons: Mapping[str, str] = field(default_factory=dict)
    failures: Sequence[str] = ()

    def figures(self, variant: str, name: str) -> list[float] | None:
        """Return one figure of each round; None if the variant or the figure has no samples."""
        samples = self.samples.get(variant, ())
        if not samples or any(name not in sample.figures for sample in samples):
            return None
        return [sample.figures[name] for sample in samples]

    def spread(self, variant: str, name: str) -> Spread | None:
        """Return the spread of one figure over the rounds."""
        figures = self.figures(variant, name)
        return None if figures is None else Spread.of(figures)

    def stages(self, variant: str) -> dict[str, float]:
        """Return the median seconds of each stage that all rounds have."""
        samples = self.samples.get(variant, ())
        names = [
            name for name in (samples[0].stages if samples else ())
            if all(name in sample.stages for sample in samples)
        ]  # fmt: skip
        return {
            name: statistics.median(sample.stages[name] for sample in samples) for name in names
        }

    def profile(self, variant: str) -> list[Part]:
        """Return the median profile of all rounds; it is empty for programs of others."""
        return median_profile([sample.profile for sample in self.samples.get(variant, ())])

    def to_document(self) -> dict[str, Any]:
        """Return the measurement as an object of JSON."""
        return {
            "scenario": self.scenario,
            "title": self.title,
            "image": self.image,
            "samples": {
                variant: [sample.to_document() for sample in samples]
                for variant, samples in self.samples.items()
            },
            "reasons": dict(self.reasons),
            "failures": list(self.failures),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Measurement:
        """Return the measurement of such an object."""
        samples = {
            variant: [Sample.from_document(sample) for sample in samples]
            for variant, samples in document["samples"].items()
        }
        return cls(**{**document, "samples": samples})


@dataclass(frozen=True)
class Term:
    """One side of a ratio: a figure of the variant for which `choose` selects it in each round.

    With `max` that is the slowest of several variants, with `min` the fastest.
    """

    variants: tuple[str, ...]
    figure: str = "wall"
    choose: Callable[[Sequence[float]], float] = max

    def bind(self, builder: str) -> Term:
        """Return the term for one builder, whose name replaces `{builder}` in the variants."""
        variants = tuple(name.format(builder=builder) for name in self.variants)
        return Term(variants, self.figure, self.choose)

    def figures(self, measurement: Measurement) -> list[float]:
        """Return the figure of each round; raise `NoFigures` if a variant has none.

        With `min`, variants that have no figures are left out: a tool that this machine lacks is no
        competitor.
        """
        columns = []
        for variant in self.variants:
            column = measurement.figures(variant, self.figure)
            if column is not None:
                columns.append(column)
            elif self.choose is max:
                raise NoFigures(reason(measurement, variant, self.figure))
        if not columns:
            raise NoFigures(reason(measurement, self.variants[0], self.figure))
        return [self.choose(row) for row in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Combination:
    """Figures of several terms, combined in each round: their sum, or the largest of them."""

    terms: tuple[Term | Combination, ...]
    combine: Callable[[Sequence[float]], float]

    @property
    def variants(self) -> tuple[str, ...]:
        """Return the variants of all terms."""
        return tuple(name for term in self.terms for name in term.variants)

    @property
    def figure(self) -> str:
        """Return the name of the first figure, for messages."""
        return self.terms[0].figure

    def bind(self, builder: str) -> Combination:
        """Return the combination for one builder."""
        return Combination(tuple(term.bind(builder) for term in self.terms), self.combine)

    def figures(self, measurement: Measurement) -> list[float]:
        """Return the figure of each round; raise `NoFigures` if a term has none."""
        columns = [term.figures(measurement) for term in self.terms]
        return [self.combine(row) for row in zip(*columns, strict=True)]


class NoFigures(Exception):
    """A ratio cannot be computed; the text says why."""


def reason(measurement: Measurement, variant: str, figure: str) -> str:
    """Return why a variant has no such figure."""
    if variant in measurement.samples:
        return f"{variant} has no figure {figure}"
    return f"{variant}: {measurement.reasons.get(variant, 'not part of this run')}"


def ratio(measurement: Measurement, numerator: Term, denominator: Term | Combination) -> Spread:
    """Return the ratio of two terms over all rounds; raise `NoFigures`."""
    pairs = zip(numerator.figures(measurement), denominator.figures(measurement), strict=True)
    ratios = [above / below for above, below in pairs if below > 0]
    if not ratios:
        raise NoFigures(f"{denominator.variants[0]}: its {denominator.figure} is 0")
    return Spread.of(ratios)
