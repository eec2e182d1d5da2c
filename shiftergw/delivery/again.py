"""Repeat requests and deliveries whose connection broke, while that costs little time.

A delivery holds a slot of a worker. A host that is silent for `QUICK_SECONDS` is given up, and the
other hosts of its system are tried; a system without other hosts counts as away, and its pulls try
again later.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from twisted.logger import Logger

from shiftergw.delivery.link import Broken
from shiftergw.plumbing.backoff import Backoff
from shiftergw.plumbing.channel import Away

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.link import Link
    from shiftergw.model import Progress

TRIES = 3
"""How often a delivery begins again without getting further."""

FIRST_PAUSE = 1.0
"""Seconds before a delivery begins again; twice as many each time that it gets no further."""

QUICK_SECONDS = 10.0
"""Seconds without a sign of life after which a host is not tried again at once."""

T = TypeVar("T")
_log = Logger()


async def asked_again(link: Link, ask: Callable[[], Awaitable[T]], clock: IReactorTime) -> T:
    """Return what `ask` returns; if its connection breaks, of a second one over another.

    A connection that was kept may be dead without anybody knowing, and a host may be ill. A second
    request to a host that was silent for long would only take as long again.
    """
    began = clock.seconds()
    try:
        return await ask()
    except Broken as broken:
        link.shun(broken.host)
        if link.host_count < 2 and clock.seconds() - began >= QUICK_SECONDS:  # noqa: PLR2004
            raise
        _log.info("asked once more: {error} {detail}", error=broken, detail=broken.detail)
    return await ask()


class Tries:
    """The tries of one delivery: as many as get further than the ones before, and a few in vain.

    Further is what lies there, verified, when a try begins: what the last one sent may be lost.
    """

    def __init__(self, link: Link, clock: IReactorTime, first_pause: float = FIRST_PAUSE) -> None:
        """Begin with nothing there; wait `first_pause` seconds, then longer."""
        self._link = link
        self._clock = clock
        self._first_pause = first_pause
        self._furthest = 0
        self._in_vain = 0
        self._began = False
        self._last_sign = 0.0
        self._silent: set[str] = set()
        """The hosts that were silent for long since the delivery last got further."""

    def found(self, verified: int) -> None:
        """Note how many bytes of the file lay there, verified, when this try began."""
        self._began = True
        self._note_sign()
        if verified > self._furthest:
            self._furthest, self._in_vain = verified, 0
            self._silent.clear()

    def watched(self, report: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Return a `report` that also notes when the host has taken something."""

        def watch(progress: Progress) -> None:
            self._note_sign()
            report(progress)

        return watch

    def _note_sign(self) -> None:
        self._last_sign = self._clock.seconds()

    async def run(self, deliver: Callable[[], Awaitable[T]]) -> T:
        """Return what `deliver()` does once it ends well, or fails otherwise than by its link."""
        while True:
            self._began = False
            self._note_sign()
            try:
                return await deliver()
            except Away as away:
                await self._wait(away)

    async def _wait(self, away: Away) -> None:
        """Wait before the next try, or raise the error if there is none."""
        self._in_vain += 1
        silent = self._clock.seconds() - self._last_sign >= QUICK_SECONDS
        # The part may be on that host alone; but one that gets no further may be ill.
        if isinstance(away, Broken) and (silent or self._in_vain > 1 or not self._began):
            self._link.shun(away.host)
        if self._in_vain > TRIES or (silent and not self._has_other_host(away)):
            raise away
        seconds = Backoff(self._first_pause).seconds(self._in_vain)
        _log.warn(
            "a delivery broke, and goes on in {seconds:g} s: {error} {detail}",
            seconds=seconds,
            error=away,
            detail=away.detail,
        )
        await self._link.pause(seconds)

    def _has_other_host(self, away: Away) -> bool:
        """Return whether the system has hosts left after a long silence of the one that was used.

        An error that is not of one host is of all: no host let the gateway begin.
        """
        if not isinstance(away, Broken):
            return False
        self._silent.add(away.host)
        return len(self._silent) < self._link.host_count
