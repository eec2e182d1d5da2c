"""What the gateway and its workers tidy up by themselves."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from twisted.logger import Logger

from shiftergw.plumbing.rounds import Rounds
from shiftergw.ports import ImageBuilder, ImageDirectory, ImageStore

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

INTERVAL = 600.0
"""Seconds between two rounds."""

FAILURES_KEPT = 86400.0
"""Seconds for which a failure can be asked about."""

SCRATCH_KEPT = 3600.0
"""Seconds for which a converted file, or a temporary of a dead attempt, stays unused."""


class Housekeeping(Rounds):
    """Forgets failures that are older than a day."""

    _log = Logger()

    def __init__(self, store: ImageStore, clock: IReactorTime, interval: float = INTERVAL) -> None:
        """Tidy up `store`."""
        super().__init__(self._tidy_up, clock, interval, "housekeeping")
        self._store = store

    async def _tidy_up(self) -> None:
        forgotten = await self._store.forget_failures(self._clock.seconds() - FAILURES_KEPT)
        if forgotten:
            self._log.info("{n} old failures forgotten", n=forgotten)


class Scratch(Rounds):
    """Removes what finished and dead attempts left behind; runs in the workers, which write it."""

    _log = Logger()

    def __init__(
        self,
        builder: ImageBuilder,
        directories: Collection[ImageDirectory],
        clock: IReactorTime,
        interval: float = INTERVAL,
    ) -> None:
        """Tidy up the builder's files and the temporaries of image directories."""
        super().__init__(self._tidy_up, clock, interval, "scratch")
        self._builder = builder
        self._directories = directories

    async def _tidy_up(self) -> None:
        before = self._clock.seconds() - SCRATCH_KEPT
        removed = await self._builder.sweep(before)
        for directory in self._directories:
            removed += await directory.sweep(before)
        if removed:
            self._log.info("{n} unused files removed", n=removed)
