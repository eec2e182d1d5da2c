"""Retry requests and deliveries whose connection broke, as long as that costs little time.

A delivery occupies a slot of a worker. A host that was silent for `QUICK_SECONDS` is therefore not
retried at once: the other hosts of its system are tried. A system without other hosts counts as
unavailable, and its pulls are retried later.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from twisted.logger import Logger

from shiftergw.delivery.shared_session import SessionBroken
from shiftergw.plumbing.backoff import Backoff
from shiftergw.plumbing.channel import SystemUnavailable

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.shared_session import SharedSession
    from shiftergw.model.records import Progress

TRIES = 3
"""How often a delivery is retried in a row without progress."""

FIRST_PAUSE = 1.0
"""Seconds before the first retry; the pause doubles with each attempt without progress."""

QUICK_SECONDS = 10.0
"""Seconds of silence after which a host is not retried at once."""

T = TypeVar("T")
_log = Logger()


async def retry_request(
    session: SharedSession, request: Callable[[], Awaitable[T]], clock: IReactorTime
) -> T:
    """Return the result of `request`; if its session breaks, repeat it once over a new session.

    An idle connection may have died unnoticed, or one host may be faulty. A request that was slow
    to fail is repeated on other hosts only: it would take as long again.
    """
    start = clock.seconds()
    try:
        return await request()
    except SessionBroken as error:
        session.shun(error.host)
        if session.host_count < 2 and clock.seconds() - start >= QUICK_SECONDS:  # noqa: PLR2004
            raise
        _log.info("a request is repeated: {error} {detail}", error=error, detail=error.detail)
    return await request()


class DeliveryRetries:
    """Retry a delivery while it makes progress; give up after `TRIES` retries without any.

    The measure of progress is how many bytes are verified on the system when an attempt begins,
    because what the attempt before sent may be lost.
    """

    def __init__(
        self,
        session: SharedSession,
        clock: IReactorTime,
        report: Callable[[Progress], None],
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        """Pass progress on to `report`; wait `first_pause` seconds before the first retry."""
        self._session = session
        self._clock = clock
        self._report = report
        self._backoff = Backoff(first_pause)
        self._most_verified = 0
        self._failures = 0
        """The attempts since the last progress."""
        self._has_begun = False
        self._last_sign = 0.0
        self._silent_hosts: set[str] = set()
        """The hosts that were silent for long since the last progress."""

    def note_verified(self, size: int) -> None:
        """Note how many bytes of the file are verified on the system as this attempt begins."""
        self._has_begun = True
        self._note_sign()
        if size > self._most_verified:
            self._most_verified, self._failures = size, 0
            self._silent_hosts.clear()

    def report(self, progress: Progress) -> None:
        """Pass progress on; it is a sign of life of the host."""
        self._note_sign()
        self._report(progress)

    def _note_sign(self) -> None:
        self._last_sign = self._clock.seconds()

    async def run(self, deliver: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `deliver`; retry it after `SystemUnavailable`, a few times."""
        while True:
            self._has_begun = False
            self._note_sign()
            try:
                return await deliver()
            except SystemUnavailable as error:
                await self._pause_after(error)

    async def _pause_after(self, error: SystemUnavailable) -> None:
        """Wait before the next attempt; raise `error` if there is to be none."""
        self._failures += 1
        was_silent = self._clock.seconds() - self._last_sign >= QUICK_SECONDS
        # Perhaps no other host sees the partial file. So the host is shunned only if it was silent,
        # made no progress, or failed before the delivery began.
        if isinstance(error, SessionBroken) and (
            was_silent or self._failures > 1 or not self._has_begun
        ):
            self._session.shun(error.host)
        if self._failures > TRIES or (was_silent and not self._note_silence(error)):
            raise error
        seconds = self._backoff.seconds(self._failures)
        _log.warn(
            "a delivery broke and is retried in {seconds:g} s: {error} {detail}",
            seconds=seconds,
            error=error,
            detail=error.detail,
        )
        await self._session.pause(seconds)

    def _note_silence(self, error: SystemUnavailable) -> bool:
        """Note which host was silent; return whether the system has a host that was not.

        An error that names no host concerns all of them: none opened a session.
        """
        if not isinstance(error, SessionBroken):
            return False
        self._silent_hosts.add(error.host)
        return len(self._silent_hosts) < self._session.host_count
