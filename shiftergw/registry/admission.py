"""Whether a request may be sent to a registry now: breakers, shared by all processes of a site.

One breaker is for what a registry answers 429 to: (registry, login or anonymous, this machine),
because limits are counted by login, or by the address of the machine. Another is for a host that
cannot be reached: (host, this machine). Where the store does not answer, requests are sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, DeferredLock

from shiftergw.errors import PullError, RegistryUnavailable, RetryLater, Unavailable
from shiftergw.model import Login
from shiftergw.plumbing.promise import Promise
from shiftergw.postponement import Breaker
from shiftergw.registry.retry import Interrupted, Patience

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.ports import BreakerStore

PROBE_SECONDS = 90.0
"""How long the others wait for one probe: to connect and to read an answer's head."""

PROBED_AGAIN = 4.0
"""Seconds after which a pull that is held back by another's probe looks again."""

FIRST_FAILURES = 3
"""Failures in a row that a new breaker stands for: the quick tries before it."""


class RateLimited(RetryLater):
    """The registry has asked to slow down the requests of this login, or anonymous ones."""


class NoBreakers:
    """A `BreakerStore` that holds nothing back: for conversions outside the service."""

    async def check_breaker(self, key: str, now: float, seconds: float) -> Breaker | None:
        """Hold nothing back."""

    async def trip_breaker(self, key: str, until: float, why: str, now: float) -> None:
        """Forget it."""

    async def close_breaker(self, key: str, now: float) -> None:
        """Have nothing to close."""


def _no_fingerprint(_: Login) -> str:
    return "login"


@dataclass(frozen=True, slots=True)
class Shared:
    """What the processes of a site have in common: where breakers lie, and the names in their keys.

    `machine` is the one that requests go out from. `fingerprint` returns a keyed digest of a login,
    from which nobody learns the login.
    """

    breakers: BreakerStore = field(default_factory=NoBreakers)
    machine: str = ""
    fingerprint: Callable[[Login], str] = _no_fingerprint


class Admission:
    """Lets requests to one location through, or says when to come again."""

    def __init__(
        self,
        location: str,
        shared: Shared,
        patience: Patience,
        clock: IReactorTime,
        random: Callable[[], float],
    ) -> None:
        """Keep the breakers of `location`; waits that nobody names grow as `patience` says."""
        self._location = location
        self._breakers = shared.breakers
        self._machine = shared.machine
        self._fingerprint = shared.fingerprint
        self._patience = patience
        self._clock = clock
        self._random = random
        self._trips: dict[str, int] = {}
        self._checking = DeferredLock()
        self._probes: dict[str, Promise[None]] = {}
        self._own_until: dict[str, float] = {}

    @asynccontextmanager
    async def request(self, login: Login | None) -> AsyncIterator[None]:
        """Send a request with a login within this context; raise `RetryLater` if not now.

        A 429 ends as `RetryLater`, too, if it asks for more than a moment or answers a probe.
        """
        who = "anonymous" if login is None else self._fingerprint(login)
        key = f"limit {self._location} {who} {self._machine}"
        async with self._entered(key, limits=True) as probes:
            try:
                yield
            except Interrupted as error:
                if error.limited:
                    error.breaker = key
                    if probes or (error.retry_after or 0) > self._patience.quick:
                        raise await self.later(error, 0) from error
                raise

    @asynccontextmanager
    async def host(self, host: str) -> AsyncIterator[None]:
        """Wait for the head of an answer of `host` (`host:port`) within this context.

        Raises `RetryLater` if it could not be reached a moment ago.
        """
        key = f"unreachable {host} {self._machine}"
        async with self._entered(key) as probes:
            try:
                yield
            except Interrupted as error:
                if error.unreachable:
                    error.breaker = key
                    if probes:
                        raise await self.later(error, 0) from error
                raise

    async def later(self, error: Interrupted, seconds: float) -> RetryLater:
        """Return what a request ends with that is not tried again for so many seconds.

        Other requests are held back as long: those of the same login where the registry limits it,
        and those to the same host where it cannot be reached. The wait grows with each probe that
        fails.
        """
        asked = error.retry_after or 0
        if error.breaker:
            failures = FIRST_FAILURES + self._trips.get(error.breaker, 0)
            seconds = max(self._patience.backoff(failures, self._random()), asked)
        now = self._clock.seconds()
        kind = RateLimited if error.limited else RetryLater
        later = kind(
            now + seconds,
            f"{self._location} ({error.why})",
            error,
            asker=self._location if asked and asked >= seconds else "",
            fixed=bool(error.breaker or asked),
        )
        if error.breaker:
            self._own_until.pop(error.breaker, None)
            with suppress(Unavailable):
                await self._breakers.trip_breaker(error.breaker, later.at, later.why, now)
        return later

    @asynccontextmanager
    async def _entered(self, key: str, *, limits: bool = False) -> AsyncIterator[bool]:
        """Say whether what is sent within this context is a probe; its success closes the breaker.

        Other requests of this process wait for the probe.
        """
        probe = await self._enter(key, limits=limits)
        if probe is None:
            yield False
            return
        try:
            try:
                yield True
            except (CancelledError, PullError):
                raise
            except Exception:
                await self._close(key)  # a refusal is an answer
                raise
            await self._close(key)
        finally:
            del self._probes[key]
            probe.keep(None)

    async def _enter(self, key: str, *, limits: bool) -> Promise[None] | None:
        """Return the end of the probe that a request is, if it is one, for others to wait for."""
        while True:
            async with self._checking:
                running = self._probes.get(key)
                if running is None:
                    if await self._check(key, limits=limits) is None:
                        return None
                    self._probes[key] = Promise()
                    return self._probes[key]
            await running.kept()

    async def _check(self, key: str, *, limits: bool) -> Breaker | None:
        """Return the breaker that a request probes, if any; raise `RetryLater` if it must wait."""
        now = self._clock.seconds()
        breaker = None
        with suppress(Unavailable):
            breaker = await self._breakers.check_breaker(key, now, PROBE_SECONDS)
        self._trips[key] = 0 if breaker is None else breaker.trips
        if breaker is None:
            return None
        if breaker.until <= now:
            self._own_until[key] = now + PROBE_SECONDS
            return breaker
        if not breaker.probed:
            asker, at = self._location if limits else "", breaker.until
        elif self._own_until.get(key, 0) > now:
            return breaker  # this process probes, and tries once more
        else:
            asker, at = "", min(breaker.until, now + PROBED_AGAIN * (0.5 + self._random()))
        failure = RegistryUnavailable(
            f"The registry {self._location!r} is not asked just now: {breaker.why}."
        )
        kind = RateLimited if limits else RetryLater
        raise kind(at, breaker.why, failure, asker=asker, fixed=True)

    async def _close(self, key: str) -> None:
        self._own_until.pop(key, None)
        with suppress(Unavailable):
            await self._breakers.close_breaker(key, self._clock.seconds())
