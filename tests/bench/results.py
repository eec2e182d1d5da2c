"""The results of a run of the bench, as a document that can be drawn again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.bars import Judgment, judge
from tests.bench.contents import FULL
from tests.bench.figures import Measurement

_FORM = 1


@dataclass(frozen=True)
class Results:
    """What a run has measured, when, where and how.

    `warnings` tell what makes its figures less reliable.
    """

    date: str
    version: str
    machine: Mapping[str, str]
    size: str
    rounds: int
    builders: Sequence[str]
    warnings: Sequence[str]
    measurements: Mapping[str, Measurement]

    def judgments(self) -> list[Judgment]:
        """Return the verdicts on all bars of the measured scenarios."""
        return list(judge(self.measurements, self.builders, is_full=self.size == FULL))

    def write(self, path: Path) -> None:
        """Write the results as JSON."""
        document = {
            "form": _FORM,
            **self.__dict__,
            "measurements": [
                measurement.to_document() for measurement in self.measurements.values()
            ],
            "bars": [
                {
                    "number": judgment.bar.number,
                    "scenario": judgment.bar.scenario,
                    "text": judgment.bar.text,
                    "limit": judgment.bar.condition,
                    "builder": judgment.builder,
                    "verdict": judgment.verdict.value,
                    "ratio": None if judgment.spread is None else judgment.spread.__dict__,
                    "reason": judgment.reason,
                }
                for judgment in self.judgments()
            ],
        }
        path.write_text(json.dumps(document, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Return the results that a file contains; raise `ValueError` for another file.

        The verdicts are made anew, by the bars of this version.
        """
        document = json.loads(path.read_text())
        if not isinstance(document, dict) or document.pop("form", None) != _FORM:
            raise ValueError(f"{path} has no results of this bench")
        del document["bars"]
        measurements = [
            Measurement.from_document(measurement) for measurement in document["measurements"]
        ]
        by_name = {measurement.scenario: measurement for measurement in measurements}
        return cls(**{**document, "measurements": by_name})
