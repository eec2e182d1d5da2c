"""What the gateway tidies up by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger

from shiftergw.plumbing.rounds import Rounds
from shiftergw.ports import ImageStore

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

INTERVAL = 600.0
"""Seconds between two rounds."""

FAILURES_KEPT = 86400.0
"""Seconds for which a failure can be asked about."""


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
