"""Find files that the disk has damaged, before a pull needs them; runs in the workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from shiftergw.plumbing.rounds import Rounds
from shiftergw.ports import Scrubbable

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

INTERVAL = 600.0
"""Seconds between two rounds, each of which reads all files that are due."""


class Scrubbing(Rounds):
    """Has each file of a cache compared with its digest at intervals."""

    _log = Logger()

    def __init__(
        self, cache: Scrubbable, seconds: float, clock: IReactorTime, interval: float = INTERVAL
    ) -> None:
        """Compare a file `seconds` after it was last compared."""
        super().__init__(self._scrub, clock, interval, "scrub")
        self._cache = cache
        self._seconds = seconds
        self._scrubbing: Deferred[int] | None = None

    def stopService(self) -> Deferred[None]:
        """Stop; a round may last for hours and is canceled."""
        stopping = super().stopService()
        if self._scrubbing is not None:
            self._scrubbing.cancel()
        return stopping

    async def _scrub(self) -> None:
        before = self._clock.seconds() - self._seconds
        self._scrubbing = Deferred.fromCoroutine(self._cache.scrub(before))
        try:
            count = await self._scrubbing
        except CancelledError:
            if self.running:
                raise
            count = 0
        finally:
            self._scrubbing = None
        if count:
            self._log.warn("{n} damaged files were in the cache: a disk may be failing", n=count)
