"""Pulls wait in the queue for a system that does not answer, and hold no worker.

All processes of a site share one breaker for each (image directory, machine), by the store: after a
failure it holds back whatever would use the directory. When its time has come, one pull tries the
directory, its probe; the breaker closes once that has been answered. While the store is
unavailable, nothing is held back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import random as system_random
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from shiftergw.errors import DeliveryFailed, PullError, RetryLater, Unavailable
from shiftergw.plumbing.backoff import Backoff
from shiftergw.plumbing.channel import Away, UnexplainedExit, no_answer
from shiftergw.plumbing.timing import within
from shiftergw.ports import (
    BreakerStore,
    ImageDirectory,
    InstalledFile,
    Report,
    Verification,
)

if TYPE_CHECKING:
    from pathlib import Path

    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")

PROBE_SECONDS = 90.0
"""Seconds after which another pull may probe: time to reach a host and to write a little."""

PROBE_CONTENT = bytes(1 << 16)
"""What a probe writes: more than one packet, because some networks lose only full ones."""


FIRST_SECONDS = 10.0
"""Seconds in which a system of one host answers a pull's first requests, unless it is slow.

A pull holds a slot meanwhile, and nobody may know yet that the system is away.
"""


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds that a breaker holds pulls back: after the first failure, and at most.

    `probe` is how long, on average, a pull waits for the end of another one's probe.
    """

    first: float = 15.0
    longest: float = 120.0
    probe: float = 10.0


WAITS = Waits()


class SystemBreaker:
    """The breaker of one image directory, as one process sees it."""

    _log = Logger()

    def __init__(
        self,
        system: str,
        directory_name: str,
        symptom: str,
        breakers: BreakerStore,
        machine: str,
        clock: IReactorTime,
        random: Callable[[], float] = system_random,
        waits: Waits = WAITS,
    ) -> None:
        """Use the breaker of a directory, called `directory_name`, for pulls to `system`.

        `machine` is the host name of this machine: others may reach the system. `symptom` says in a
        few words for the user what a failure looks like.
        """
        self._system = system
        self._key = f"unreachable system {directory_name} {machine}"
        self._symptom = symptom
        self._breakers = breakers
        self.clock = clock
        self._random = random
        self._waits = waits
        self._probe_end = 0.0
        self._trips = 0
        """How often in a row the breaker has tripped, when it was looked at last."""

    async def check(self) -> bool:
        """Return whether the caller is the probe; raise `RetryLater` while the breaker is open."""
        now = self.clock.seconds()
        try:
            breaker = await self._breakers.check_breaker(self._key, now, PROBE_SECONDS)
        except Unavailable:
            return False
        self._trips = 0 if breaker is None else breaker.trips
        if breaker is None:
            return False
        if breaker.until <= now:
            self._probe_end = now + PROBE_SECONDS
            return True
        at = breaker.until
        if breaker.is_probed:
            at = min(at, now + self._spread(self._waits.probe))
        raise self._later(at, self._failure())

    async def trip(self, away: Away) -> RetryLater:
        """Hold pulls back after a failure; return until when the one that failed waits."""
        now = self.clock.seconds()
        seconds = Backoff(self._waits.first, self._waits.longest).seconds(self._trips + 1)
        at = now + self._spread(seconds)
        self._log.warn(
            "the system {system} is away: {error} {detail}",
            system=self._system,
            error=away,
            detail=away.detail,
        )
        with suppress(Unavailable):
            await self._breakers.trip_breaker(self._key, at, self._symptom, now)
        failure = self._failure()
        if away.remedy:
            failure.remedy = away.remedy
        failure.detail = f"{away.what} {away.detail}".strip()
        return self._later(at, failure)

    async def close(self) -> None:
        """Let pulls through: the probe has been answered."""
        self._trips = 0
        self._log.info("the system {system} answers again", system=self._system)
        with suppress(Unavailable):
            await self._breakers.close_breaker(self._key, self.clock.seconds())

    async def end_probe(self) -> None:
        """Let the next probe follow at once: this one was given up before it had a result."""
        with suppress(Unavailable):
            now = self.clock.seconds()
            await self._breakers.end_probe(self._key, self._probe_end, now)

    def _failure(self) -> DeliveryFailed:
        return DeliveryFailed(
            f"The image could not be delivered to the system {self._system}: {self._symptom}.",
            remedy="Try again later; if it lasts, tell the site's support.",
        )

    def _later(self, at: float, failure: DeliveryFailed) -> RetryLater:
        why = f"the system {self._system} ({self._symptom})"
        return RetryLater(at, why, failure, is_fixed=True, system=self._system)

    def _spread(self, seconds: float) -> float:
        """Return a time that is different for each of many pulls, `seconds` on average."""
        return seconds * (0.5 + self._random())


class GuardedDirectory:
    """Keeps the port `ImageDirectory` over a directory whose system may be away."""

    def __init__(
        self,
        directory: ImageDirectory,
        breaker: SystemBreaker,
        first_seconds: float | None = None,
    ) -> None:
        """Raise `RetryLater` where `directory` raises `Away`, and trip `breaker`.

        A system that does not answer the first requests of a pull within `first_seconds` counts as
        away, too. A probe has more time; if it needs it, the system is slow, and has it from then
        on. None: there is no such limit.
        """
        self._directory = directory
        self._breaker = breaker
        self._first_seconds = first_seconds
        self._has_delivered = False

    async def reach(self) -> None:
        """See the port. A probe writes a small file and removes it."""
        if not await self._breaker.check():
            return
        began = self._breaker.clock.seconds()
        try:
            await self._guarded(self._directory.probe(PROBE_CONTENT))
        except RetryLater:
            raise
        except CancelledError:
            await self._breaker.end_probe()
            raise
        except PullError:
            pass  # a refusal is an answer, and the pull will meet it again
        seconds = self._breaker.clock.seconds() - began
        if self._first_seconds is not None and seconds >= self._first_seconds:
            self._first_seconds = None
        await self._breaker.close()

    async def probe(self, content: bytes) -> None:
        """See the port."""
        await self._guarded(self._directory.probe(content))

    async def close(self) -> None:
        """See the port."""
        await self._directory.close()

    async def _answered_soon(self, work: Coroutine[Deferred[Any], Any, T]) -> T:
        """Return what `work`, one of the first requests of a pull, returns."""
        has_delivered, self._has_delivered = self._has_delivered, False
        if self._first_seconds is None or has_delivered:
            # A delivery that has just ended would be made again for want of a few seconds.
            return await self._guarded(work)
        seconds = self._first_seconds
        return await self._guarded(within(seconds, self._breaker.clock, work, no_answer))

    async def _guarded(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except UnexplainedExit:
            raise  # it may be the configuration, which no wait mends
        except Away as away:
            raise await self._breaker.trip(away) from away

    async def free_space(self) -> int:
        """See the port."""
        return await self._answered_soon(self._directory.free_space())

    async def exists(self, name: str) -> InstalledFile | None:
        """See the port."""
        return await self._answered_soon(self._directory.exists(name))

    async def install(self, source: Path, name: str, sha256: str, report: Report) -> Verification:
        """See the port."""
        verification = await self._guarded(self._directory.install(source, name, sha256, report))
        self._has_delivered = True
        return verification

    async def write(self, content: bytes, name: str) -> None:
        """See the port."""
        await self._guarded(self._directory.write(content, name))

    async def read(self, name: str, limit: int) -> bytes | None:
        """See the port."""
        return await self._guarded(self._directory.read(name, limit))

    async def head(self, name: str, size: int) -> bytes:
        """See the port."""
        return await self._guarded(self._directory.head(name, size))

    async def remove(self, name: str) -> None:
        """See the port."""
        await self._guarded(self._directory.remove(name))

    async def list(self) -> Sequence[InstalledFile]:
        """See the port."""
        return await self._guarded(self._directory.list())

    async def digest(self, name: str) -> str:
        """See the port."""
        return await self._guarded(self._directory.digest(name))

    async def sweep(self, before: float) -> int:
        """See the port."""
        return await self._guarded(self._directory.sweep(before))
