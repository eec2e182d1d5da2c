"""Postpone pulls to a system that does not answer, so that they occupy no worker.

All processes of a site share one circuit breaker for each (image directory, machine), in the store.
A failure opens it, and pulls to the directory are postponed. When its time is over, one pull probes
the directory; an answer closes the breaker. If the store is unavailable, no pull is postponed.
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
from shiftergw.plumbing.channel import SystemUnavailable, UnexplainedExit, no_answer
from shiftergw.plumbing.timing import within
from shiftergw.ports import (
    BreakerStore,
    DeltaSource,
    FileAccess,
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
"""Seconds after which another pull may probe: enough to reach a host and write a small file."""

PROBE_CONTENT = bytes(1 << 16)
"""The content that a probe writes: several packets, because some networks lose only full ones."""


FIRST_SECONDS = 10.0
"""Seconds that a system with one host may take to answer the first requests of a pull.

The limit is short because the pull occupies a slot while it waits. It is dropped for a slow system.
"""


@dataclass(frozen=True, slots=True)
class BreakerWaits:
    """For how many seconds a breaker postpones pulls: after the first failure, and at most.

    `probe` is the average wait for the end of another pull's probe.
    """

    first: float = 15.0
    longest: float = 120.0
    probe: float = 10.0


WAITS = BreakerWaits()


@dataclass(frozen=True, slots=True)
class MonitoredSystem:
    """The image directory of a system, as one machine of the site reaches it.

    `directory_name` is its name in the store, `machine` the host name of this machine, because
    other machines may still reach the system. `symptom` describes an outage to the user.
    """

    system: str
    directory_name: str
    machine: str
    symptom: str

    @property
    def breaker_key(self) -> str:
        """Return the key of the breaker in the store."""
        return f"unreachable system {self.directory_name} {self.machine}"


class SystemBreaker:
    """The circuit breaker of one image directory, as used by one process."""

    _log = Logger()

    def __init__(
        self,
        system: MonitoredSystem,
        breakers: BreakerStore,
        clock: IReactorTime,
        random: Callable[[], float] = system_random,
        waits: BreakerWaits = WAITS,
    ) -> None:
        """Keep the breaker of a system in the store `breakers`."""
        self._system = system
        self._breakers = breakers
        self.clock = clock
        self._random = random
        self._waits = waits
        self._probe_end = 0.0
        self._trips = 0
        """How often in a row the breaker had tripped when it was last read."""

    async def check(self) -> bool:
        """Return whether the caller must probe; raise `RetryLater` while the breaker is open."""
        now = self.clock.seconds()
        try:
            breaker = await self._breakers.check_breaker(
                self._system.breaker_key, now, PROBE_SECONDS
            )
        except Unavailable:
            return False
        self._trips = 0 if breaker is None else breaker.trips
        if breaker is None:
            return False
        if breaker.until <= now:
            self._probe_end = now + PROBE_SECONDS
            return True
        time = breaker.until
        if breaker.is_probed:
            time = min(time, now + self._spread(self._waits.probe))
        raise self._postponement(time, self._failure())

    async def trip(self, error: SystemUnavailable) -> RetryLater:
        """Postpone pulls after a failure; return the postponement of the pull that failed."""
        now = self.clock.seconds()
        seconds = Backoff(self._waits.first, self._waits.longest).seconds(self._trips + 1)
        time = now + self._spread(seconds)
        self._log.warn(
            "the system {system} is away: {error} {detail}",
            system=self._system.system,
            error=error,
            detail=error.detail,
        )
        with suppress(Unavailable):
            await self._breakers.trip_breaker(
                self._system.breaker_key, time, self._system.symptom, now
            )
        failure = self._failure()
        if error.remedy:
            failure.remedy = error.remedy
        failure.detail = f"{error.what} {error.detail}".strip()
        return self._postponement(time, failure)

    async def close(self) -> None:
        """Stop postponing pulls: the probe was answered."""
        self._trips = 0
        self._log.info("the system {system} answers again", system=self._system.system)
        with suppress(Unavailable):
            await self._breakers.close_breaker(self._system.breaker_key, self.clock.seconds())

    async def end_probe(self) -> None:
        """Allow the next probe at once, because this probe was cancelled."""
        with suppress(Unavailable):
            now = self.clock.seconds()
            await self._breakers.end_probe(self._system.breaker_key, self._probe_end, now)

    def _failure(self) -> DeliveryFailed:
        return DeliveryFailed(
            f"The image could not be delivered to the system {self._system.system}:"
            f" {self._system.symptom}.",
            remedy="Try again later; if it lasts, tell the site's support.",
        )

    def _postponement(self, time: float, failure: DeliveryFailed) -> RetryLater:
        name = self._system.system
        reason = f"the system {name} ({self._system.symptom})"
        return RetryLater(time, reason, failure, is_fixed=True, system=name)

    def _spread(self, seconds: float) -> float:
        """Return a random time, `seconds` on average, so that pulls do not retry all at once."""
        return seconds * (0.5 + self._random())


class GuardedDirectory:
    """Implement the port `ImageDirectory` for a directory whose system may be unavailable."""

    def __init__(
        self,
        directory: ImageDirectory,
        breaker: SystemBreaker,
        first_seconds: float | None = None,
    ) -> None:
        """Trip `breaker` and raise `RetryLater` when `directory` raises `SystemUnavailable`.

        A system that does not answer the first requests of a pull within `first_seconds` counts as
        unavailable, too; None: no such limit. A probe may take longer; if it does, the system is
        slow, and the limit is dropped.
        """
        self._directory = directory
        self._breaker = breaker
        self._first_seconds = first_seconds
        self._has_delivered = False

    async def reach(self) -> None:
        """See the port. If the caller must probe, write a small file and remove it."""
        if not await self._breaker.check():
            return
        start = self._breaker.clock.seconds()
        try:
            await self._with_breaker(self._directory.probe(PROBE_CONTENT))
        except RetryLater:
            raise
        except CancelledError:
            await self._breaker.end_probe()
            raise
        except PullError:
            pass  # a refusal is an answer; a later request of the pull meets it again
        seconds = self._breaker.clock.seconds() - start
        if self._first_seconds is not None and seconds >= self._first_seconds:
            self._first_seconds = None
        await self._breaker.close()

    async def probe(self, content: bytes) -> None:
        """See the port."""
        await self._with_breaker(self._directory.probe(content))

    async def close(self) -> None:
        """See the port."""
        await self._directory.close()

    async def _with_limit(self, work: Coroutine[Deferred[Any], Any, T]) -> T:
        """Return the result of one of the first requests of a pull, in at most `first_seconds`."""
        has_delivered, self._has_delivered = self._has_delivered, False
        if self._first_seconds is None or has_delivered:
            # After a delivery, a slow answer must not lead to a second delivery.
            return await self._with_breaker(work)
        seconds = self._first_seconds
        return await self._with_breaker(within(seconds, self._breaker.clock, work, no_answer))

    async def _with_breaker(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except UnexplainedExit:
            raise  # the configuration may be wrong, and waiting does not fix that
        except SystemUnavailable as error:
            raise await self._breaker.trip(error) from error

    async def free_space(self) -> int:
        """See the port."""
        return await self._with_limit(self._directory.free_space())

    async def exists(self, name: str) -> InstalledFile | None:
        """See the port."""
        return await self._with_limit(self._directory.exists(name))

    async def install(
        self,
        source: Path,
        name: str,
        sha256: str,
        report: Report,
        delta: DeltaSource | None = None,
    ) -> Verification:
        """See the port."""
        verification = await self._with_breaker(
            self._directory.install(source, name, sha256, report, delta)
        )
        self._has_delivered = True
        return verification

    async def set_access(self, name: str, access: FileAccess) -> bool:
        """See the port."""
        return await self._with_breaker(self._directory.set_access(name, access))

    async def write(self, content: bytes, name: str) -> None:
        """See the port."""
        await self._with_breaker(self._directory.write(content, name))

    async def read(self, name: str, limit: int) -> bytes | None:
        """See the port."""
        return await self._with_breaker(self._directory.read(name, limit))

    async def head(self, name: str, size: int) -> bytes:
        """See the port."""
        return await self._with_breaker(self._directory.head(name, size))

    async def remove(self, name: str) -> None:
        """See the port."""
        await self._with_breaker(self._directory.remove(name))

    async def list(self) -> Sequence[InstalledFile]:
        """See the port."""
        return await self._with_breaker(self._directory.list())

    async def digest(self, name: str) -> str:
        """See the port."""
        return await self._with_breaker(self._directory.digest(name))

    async def sweep(self, before: float) -> int:
        """See the port."""
        return await self._with_breaker(self._directory.sweep(before))
