"""The progress of a stage of a build: its threads count, and the reactor's thread reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shiftergw.model.records import Progress
from shiftergw.plumbing.timing import ticking

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.ports import Report


@dataclass(slots=True)
class StageMeter:
    """Counts the bytes of one stage, in any thread, and reports them once a second.

    `total` is 0 while it is unknown. `signs` counts the calls of `note_work` (see `Progress`).
    """

    stage: str
    report: Report
    total: int = 0
    done: int = 0
    signs: int = 0

    def set(self, done: int, total: int) -> None:
        """Set how many bytes are done, and how many there are in all."""
        self.done, self.total = done, total

    def note_work(self) -> None:
        """Note that the stage has worked, whether or not bytes were done."""
        self.signs += 1

    @contextmanager
    def reporting(self, clock: IReactorTime) -> Iterator[None]:
        """Report at the beginning of the block, once a second, and at its end."""
        self._report()
        with ticking(1.0, clock, self._report):
            yield
        self._report()

    def _report(self) -> None:
        self.report(Progress(self.stage, self.done, self.total, signs=self.signs))
