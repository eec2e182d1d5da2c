"""Hold requests back after a 429, or while a host is unreachable: circuit breakers.

All processes of a site share the breakers, by the store. A 429 opens the breaker of (registry,
login or anonymous, machine), because registries count requests by login, or by the address of the
machine. Reads of manifests have one, and all other requests have another. A host that cannot be
reached has a breaker of (host, machine), and a registry that sends its documents or its layers too
slowly one of (registry, machine). When the time of a breaker has come, one request, its probe, is
sent: if the registry answers it, and fast enough, the breaker closes. A probe that ends without an
answer opens the breaker again, for longer each time; one that is cancelled makes way for the next.
While the store is unavailable, requests are sent unchecked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, DeferredLock

from shiftergw.errors import RegistryUnavailable, RetryLater, Unavailable
from shiftergw.model.postponement import Breaker
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.shared_result import SharedResult
from shiftergw.sources.registry.retry import Interruption, InterruptionKind, Patience
from shiftergw.sources.registry.shared_breakers import SharedBreakers

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


PROBE_SECONDS = 90.0
"""Seconds after which another request may probe: time to connect and to read a response head.

Only a process that dies leaves its probe to run so long.
"""

PROBE_POLL = 4.0
"""Seconds, on average, after which a pull that waits for another process's probe tries again."""

FIRST_FAILURES = 3
"""Failures in a row that a new breaker stands for: the quick tries before it."""

STORE_PAUSE = 30.0
"""Seconds without checks after one that the store did not answer.

A check may take 5 s until it fails, and all requests to a location would wait for it in turn.
"""


class RateLimited(RetryLater):
    """The registry limits the requests of this login, or anonymous ones."""


class Admission:
    """Admits requests to one location, or raises `RetryLater` with the time to try again."""

    def __init__(
        self,
        location: str,
        shared_breakers: SharedBreakers,
        patience: Patience,
        clock: IReactorTime,
        random: Callable[[], float],
    ) -> None:
        """Use the breakers of `location`.

        `patience` sets the waits where the registry does not name a time.
        """
        self._location = location
        self._breakers = shared_breakers.breakers
        self._machine = shared_breakers.machine
        self._fingerprint = shared_breakers.fingerprint
        self._patience = patience
        self._clock = clock
        self._random = random
        self._trips: dict[str, int] = {}
        """By key, how often in a row a breaker has tripped; without those that are closed."""
        self._checking = DeferredLock()
        self._probes: dict[str, SharedResult[None]] = {}
        self._own_until: dict[str, float] = {}
        """By key, the end of the time in which this process is the one to probe."""
        self._next_check = 0.0

    @asynccontextmanager
    async def request(
        self, login: RegistryLogin | None, *, reads_manifest: bool = True
    ) -> AsyncIterator[None]:
        """Admit a request with this login, which is sent within this context.

        `reads_manifest` is false for HEAD and for blobs, which have a breaker of their own:
        registries such as Docker Hub answer them while no manifest may be read.

        Raises `RetryLater` if the breaker is open; also after a 429 that names more than a moment,
        and after a probe without an answer that closes the breaker.
        """
        key = self._limit_key(login, reads_manifest=reads_manifest)
        async with self._probe_or_pass(key, limits=True) as probes:
            try:
                yield
            except Interruption as error:
                is_limit = error.kind is InterruptionKind.RATE_LIMIT
                if is_limit or (probes and error.kind is not InterruptionKind.LASTING):
                    error.breaker = (is_limit and error.breaker) or key
                    if probes or (error.retry_after or 0) > self._patience.quick:
                        raise await self.postpone(error, 0) from error
                raise

    def _limit_key(self, login: RegistryLogin | None, *, reads_manifest: bool) -> str:
        account = "anonymous" if login is None else self._fingerprint(login)
        suffix = "" if reads_manifest else " other"
        return f"limit {self._location} {account} {self._machine}{suffix}"

    @asynccontextmanager
    async def challenge_request(self) -> AsyncIterator[None]:
        """Attribute a 429 within this context to anonymous requests, also on behalf of a login.

        Nothing is held back: the registry answers this request even where it limits the others, and
        without its answer no login could be used.
        """
        try:
            yield
        except Interruption as error:
            if error.kind is InterruptionKind.RATE_LIMIT:
                error.breaker = self._limit_key(None, reads_manifest=False)
            raise

    @asynccontextmanager
    async def host(self, host: str) -> AsyncIterator[None]:
        """Admit a request to `host` (`host:port`), whose response head arrives within this context.

        Raises `RetryLater` if the host could not be reached a moment ago.
        """
        key = f"unreachable {host} {self._machine}"
        async with self._held_back(key, InterruptionKind.UNREACHABLE):
            yield

    @asynccontextmanager
    async def pace(self, kind: str) -> AsyncIterator[bool]:
        """Admit the reading of a body, whose pace is proven within this context.

        `kind` is "documents" or "layers". Yields whether the body is a probe of their pace. Raises
        `RetryLater` if they were too slow a moment ago.
        """
        key = f"slow {kind} {self._location} {self._machine}"
        async with self._held_back(key, InterruptionKind.SLOW) as probes:
            yield probes

    @asynccontextmanager
    async def _held_back(self, key: str, kind: InterruptionKind) -> AsyncIterator[bool]:
        """Admit what happens within this context; interruptions of `kind` trip the breaker.

        Yields whether it is a probe. A probe trips it at once; otherwise `postpone` does, when the
        quick tries are spent.
        """
        async with self._probe_or_pass(key) as probes:
            try:
                yield probes
            except Interruption as error:
                is_own = error.kind is kind
                if is_own or (probes and error.kind is not InterruptionKind.LASTING):
                    error.breaker = key
                    if probes:
                        raise await self.postpone(error, 0) from error
                raise

    async def postpone(self, error: Interruption, seconds: float) -> RetryLater:
        """Return the `RetryLater` of a failed request that must wait for `seconds`.

        Trips the breaker of `error`, if any, which holds other requests back for the same time. Its
        wait grows with each probe that fails.
        """
        retry_after = error.retry_after or 0
        if error.breaker:
            failures = FIRST_FAILURES + self._trips.get(error.breaker, 0)
            seconds = max(self._patience.backoff(failures, self._random()), retry_after)
        now = self._clock.seconds()
        kind = RateLimited if error.kind is InterruptionKind.RATE_LIMIT else RetryLater
        delay = kind(
            now + seconds,
            f"{self._location} ({error.why})",
            error,
            registry=self._location if retry_after and retry_after >= seconds else "",
            is_fixed=bool(error.breaker or retry_after),
        )
        if error.breaker:
            self._own_until.pop(error.breaker, None)
            with suppress(Unavailable):
                await self._breakers.trip_breaker(error.breaker, delay.at, delay.why, now)
        return delay

    @asynccontextmanager
    async def _probe_or_pass(self, key: str, *, limits: bool = False) -> AsyncIterator[bool]:
        """Give whether the request within this context is a probe; its success closes the breaker.

        So does an error that waiting would not mend. A probe that is cancelled, or held back by
        another breaker, is followed by the next one. Other requests of this process wait for the
        probe.
        """
        probe = await self._admit(key, limits=limits)
        if probe is None:
            yield False
            return
        try:
            try:
                yield True
            except CancelledError:
                await self._end_probe(key, self._clock.seconds())
                raise
            except RetryLater as error:
                await self._end_probe(key, error.at)
                raise
            except Exception:
                await self._close(key)  # a refusal is an answer
                raise
            await self._close(key)
        finally:
            del self._probes[key]
            probe.set_result(None)

    async def _admit(self, key: str, *, limits: bool) -> SharedResult[None] | None:
        """Return the result that a probe sets at its end; None if the request is not a probe.

        Waits for the end of a probe that this process has sent. Raises as `_check`.
        """
        while True:
            async with self._checking:
                running = self._probes.get(key)
                if running is None:
                    if await self._check(key, limits=limits) is None:
                        return None
                    self._probes[key] = SharedResult()
                    return self._probes[key]
            await running.wait()

    async def _check(self, key: str, *, limits: bool) -> Breaker | None:
        """Return the breaker that a request probes, if any; raise `RetryLater` if it must wait."""
        now = self._clock.seconds()
        breaker = await self._stored_breaker(key, now)
        if breaker is None:
            self._trips.pop(key, None)
            return None
        self._trips[key] = breaker.trips
        if breaker.until <= now:
            self._own_until[key] = now + PROBE_SECONDS
            return breaker
        if not breaker.is_probed:
            registry, at = self._location if limits else "", breaker.until
        elif self._own_until.get(key, 0) > now:
            return breaker  # the probe of this process may be repeated
        else:
            registry, at = "", min(breaker.until, now + PROBE_POLL * (0.5 + self._random()))
        failure = RegistryUnavailable(
            f"Requests to the registry {self._location!r} are held back: {breaker.why}."
        )
        kind = RateLimited if limits else RetryLater
        raise kind(at, breaker.why, failure, registry=registry, is_fixed=True)

    async def _stored_breaker(self, key: str, now: float) -> Breaker | None:
        """Return the breaker of a key; None if it is closed or the store is unavailable."""
        if now < self._next_check:
            return None
        try:
            return await self._breakers.check_breaker(key, now, PROBE_SECONDS)
        except Unavailable:
            self._next_check = self._clock.seconds() + STORE_PAUSE
            return None

    async def _end_probe(self, key: str, at: float) -> None:
        """Let the next probe follow at a time, unless the breaker has tripped again."""
        end = self._own_until.pop(key, None)
        if end is not None:
            with suppress(Unavailable):
                await self._breakers.end_probe(key, end, at)

    async def _close(self, key: str) -> None:
        self._own_until.pop(key, None)
        with suppress(Unavailable):
            await self._breakers.close_breaker(key, self._clock.seconds())
