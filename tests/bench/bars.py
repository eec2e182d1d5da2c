"""The limits that the program must keep, and the verdicts on a run of the bench.

The numbers are those of the design. A bar is missed if even the best round misses it: a median on
the wrong side alone may be the spread of the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from tests.bench.figures import Combination, Measurement, NoFigures, Spread, Term, ratio

FLOOR = "floor"
RAW_FLOOR = "mksquashfs alone"
DOWNLOAD = "download alone"
UPLOAD = "sftp upload alone"
SKOPEO = "skopeo + umoci"
PODMAN = "podman"
ORIGINAL = "skopeo + umoci, gzip 9"
PULL = "shiftergw, {builder}"
PULL_ZSTD = "shiftergw, {builder}, zstd 3"
PULL_TENTH = "shiftergw, {builder}, a tenth"
PULL_LOCAL = "shiftergw, {builder}, to a local system"
PULL_KNOWN_BASE = "shiftergw, {builder}, known base"
WHOLE = "whole"
PACKS = "packs"
DIRECT = "direct"
EACH_BUILDER = (WHOLE, PACKS, DIRECT)


class Verdict(StrEnum):
    """What a run says of a bar."""

    PASS = "met"
    CLOSE_MISS = "missed within the spread"
    MISS = "MISSED"
    FAILURE = "FAILED"  # a run of ours that was expected to work did not
    NO_FIGURES = "not measured"
    NOT_ASKED = "not measured: not asked of this builder"
    NOT_JUDGED = "not judged: the images are too small"


@dataclass(frozen=True)
class Bar:
    """A limit on a ratio in a scenario.

    The names of variants may contain `{builder}`. `builders` are those that must keep the limit.
    With `is_least` the ratio must be at least `limit`, otherwise at most.
    """

    number: str
    scenario: str
    text: str
    numerator: Term
    denominator: Term | Combination
    limit: float
    builders: tuple[str, ...] = EACH_BUILDER
    is_least: bool = False

    @property
    def condition(self) -> str:
        """Return the limit as text."""
        return f"{'≥' if self.is_least else '≤'} {self.limit:g}"

    def verdict(self, spread: Spread) -> Verdict:
        """Return whether a ratio keeps the limit."""
        if self.is_least:
            is_met, is_met_once = spread.median >= self.limit, spread.high >= self.limit
        else:
            is_met, is_met_once = spread.median <= self.limit, spread.low <= self.limit
        if is_met:
            return Verdict.PASS
        return Verdict.CLOSE_MISS if is_met_once else Verdict.MISS


@dataclass(frozen=True)
class Judgment:
    """The verdict on a bar for one builder, with the ratio or the reason why there is none."""

    bar: Bar
    builder: str
    verdict: Verdict
    spread: Spread | None = None
    reason: str = ""

    @property
    def is_failure(self) -> bool:
        """Return whether the program must exit with 1."""
        return self.verdict in {Verdict.MISS, Verdict.FAILURE}


def _pull(name: str = PULL, figure: str = "wall") -> Term:
    return Term((name,), figure)


_FLOOR = Term((FLOOR,))
_ALTERNATIVES = Term((SKOPEO, PODMAN), choose=min)
_TENTH = _pull(PULL_TENTH)
_NEW = (PACKS, DIRECT)
_SLOWEST = Combination((Term((DOWNLOAD, UPLOAD)), Term((PULL_LOCAL,), "packing")), max)
_REMOTE_PARTS = Combination((_SLOWEST, Term((PULL_LOCAL,), "composing")), sum)

BARS: Sequence[Bar] = (
    Bar("1", "gzip-9", "pull, cold, gzip 9, by the floor", _pull(), _FLOOR, 1.05),
    Bar("2", "zstd", "pull, cold, zstd 3, by the floor", _pull(), _FLOOR, 1.6),
    Bar("2", "files", "pull of many small files by the floor", _pull(), _FLOOR, 1.35),
    Bar("2", "zstd", "the fastest tool by our pull", _ALTERNATIVES, _pull(), 2.8, is_least=True),
    Bar(
        "2", "files", "the fastest tool by our pull, many small files",
        _ALTERNATIVES, _pull(), 5.5, is_least=True,
    ),
    Bar(
        "3", "gzip-9", "the original's way and default (gzip 9) by our default (zstd 3)",
        Term((ORIGINAL,)), _pull(PULL_ZSTD), 12, is_least=True,
    ),
    Bar(
        "3", "gzip-9", "size of our default (zstd 3) by that of gzip 9",
        _pull(PULL_ZSTD, "size"), Term((ORIGINAL,), "size"), 1.05,
    ),
    Bar(
        "4", "zstd", "scratch disk by downloaded layers, result, and packs",
        _pull(figure="scratch"), _pull(figure="scratch limit"), 1.01,
    ),
    Bar(
        "4", "zstd", "scratch files by 2 x layers + 10, with packs 4 x layers + 10",
        _pull(figure="scratch files"), _pull(figure="scratch files limit"), 1,
    ),
    *(
        Bar(
            "5", scenario, f"memory of the worker{pull} by 200 MB + 400 B an entry",
            _pull(figure="memory"), _pull(figure="memory limit"), 1,
        )
        for scenario, pull in (("files", ""), ("zstd", ", cold,"), ("base", ", known base,"))
    ),
    Bar(
        "8", "remote", "pull to a remote system by the slowest of download, conversion, upload",
        _pull(), Term((DOWNLOAD, PULL_LOCAL, UPLOAD)), 1.25, (WHOLE,),
    ),
    Bar(
        "8", "remote",
        "pull to a remote system by the slowest of download, packing, upload, plus composing",
        _pull(), _REMOTE_PARTS, 1.25, _NEW,
    ),
    Bar("14", "zstd", "pull, cold, zstd 3, by the floor", _pull(), _FLOOR, 1.35, _NEW),
    Bar(
        "14", "line", "pull over 1 Gbit/s by the slower of line and floor",
        _pull(), Term((DOWNLOAD, RAW_FLOOR)), 1.10, _NEW,
    ),
    Bar("15", "gzip-5", "pull, cold, gzip 5, by the floor", _pull(), _FLOOR, 1.15, _NEW),
    Bar("16", "base", "small layer on a known base by the floor", _pull(), _FLOOR, 0.20, _NEW),
    Bar(
        "16", "base", "bytes of layers downloaded by those of the new layer",
        _pull(figure="layer bytes"), _pull(figure="new layer bytes"), 1, _NEW,
    ),
    Bar(
        "17", "remote", "bytes sent by new data and metadata",
        _pull(PULL_KNOWN_BASE, "sent bytes"), _pull(PULL_KNOWN_BASE, "new bytes"), 1.01, _NEW,
    ),
    Bar(
        "17", "remote", "pull on a known base without the remote check by the full upload",
        _pull(PULL_KNOWN_BASE, "wall without remote check"), Term((UPLOAD,)), 0.35, _NEW,
    ),
    Bar("18", "directory", "one big directory by the floor", _pull(), _FLOOR, 2, _NEW),
    Bar("18", "directory", "one big directory by a tenth of it", _pull(), _TENTH, 11, _NEW),
    Bar("18", "links", "many hard links by a tenth of them", _pull(), _TENTH, 11, _NEW),
    Bar("18", "same-size", "many files of one size by a tenth of them", _pull(), _TENTH, 11, _NEW),
    Bar(
        "19", "zstd", "size by that of the whole-image builder",
        _pull(figure="size"), Term((PULL.format(builder=WHOLE),), "size"), 1.01, _NEW,
    ),
    Bar(
        "19", "changes", "the same with 30 % of the small files replaced",
        _pull(figure="size"), Term((PULL.format(builder=WHOLE),), "size"), 1.01, _NEW,
    ),
    Bar("20", "gzip-5", "own compressor, gzip, by the floor", _pull(), _FLOOR, 0.65, (DIRECT,)),
    Bar(
        "20", "gzip-5", "own compressor, gzip: size by that of mksquashfs",
        _pull(figure="size"), Term((FLOOR,), "size"), 1, (DIRECT,),
    ),
    Bar("20", "zstd", "own compressor, zstd 3, by the floor", _pull(), _FLOOR, 1.20, (DIRECT,)),
)  # fmt: skip
"""Bars 1 to 5, 8 and 14 to 20. Bars 6, 7 and 9 to 13 are those of the other benches."""


def judge(
    measurements: Mapping[str, Measurement],
    builders: Sequence[str],
    *,
    is_full: bool = True,
    bars: Sequence[Bar] = BARS,
) -> Iterator[Judgment]:
    """Yield the verdicts on all bars of the measured scenarios, for each builder.

    A bar that none of the builders has to keep is there once. Unless the images have their full
    size, ratios are not judged: they would be those of starts and round trips.
    """
    for bar in bars:
        if bar.scenario not in measurements:
            continue
        judges = [builder for builder in builders if builder in bar.builders]
        for builder in judges:
            judgment = _judgment(bar, builder, measurements[bar.scenario])
            if judgment.spread is not None and not is_full:
                judgment = replace(judgment, verdict=Verdict.NOT_JUDGED)
            yield judgment
        if not judges:
            yield Judgment(bar, ", ".join(bar.builders), Verdict.NOT_ASKED)


def _judgment(bar: Bar, builder: str, measurement: Measurement) -> Judgment:
    numerator, denominator = bar.numerator.bind(builder), bar.denominator.bind(builder)
    variants = {*numerator.variants, *denominator.variants}
    if variants & set(measurement.failures):
        reasons = [measurement.reasons[name] for name in measurement.failures if name in variants]
        return Judgment(bar, builder, Verdict.FAILURE, reason=reasons[0])
    try:
        spread = ratio(measurement, numerator, denominator)
    except NoFigures as error:
        return Judgment(bar, builder, Verdict.NO_FIGURES, reason=str(error))
    return Judgment(bar, builder, bar.verdict(spread), spread)
