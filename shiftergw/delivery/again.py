"""What is done again when a connection breaks: a question, and a delivery that gets further."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from twisted.logger import Logger

from shiftergw.delivery.channel import Away
from shiftergw.delivery.link import Broken

if TYPE_CHECKING:
    from shiftergw.delivery.link import Link

TRIES = 3
"""How often a delivery begins again without getting further."""

FIRST_PAUSE = 1.0
"""Seconds before a delivery begins again; twice as many each time that it gets no further."""

T = TypeVar("T")
_log = Logger()


async def asked_again(link: Link, ask: Callable[[], Awaitable[T]]) -> T:
    """Return what `ask` returns; if its connection breaks, of a second one over another.

    A connection that was kept may be dead without anybody knowing, and a host may be ill.
    """
    try:
        return await ask()
    except Broken as broken:
        link.shun(broken.host)
        _log.info("asked once more: {error} {detail}", error=broken, detail=broken.detail)
    return await ask()


class Tries:
    """The tries of one delivery: as many as get further than the ones before, and a few in vain.

    Further is what lies there, verified, when a try begins: what the last one sent may be lost.
    """

    def __init__(self, link: Link, first_pause: float = FIRST_PAUSE) -> None:
        """Begin with nothing there; wait `first_pause` seconds, then longer."""
        self._link = link
        self._first_pause = first_pause
        self._furthest = 0
        self._in_vain = 0
        self._began = False

    def found(self, verified: int) -> None:
        """Note how many bytes of the file lay there, verified, when this try began."""
        self._began = True
        if verified > self._furthest:
            self._furthest, self._in_vain = verified, 0

    async def run(self, deliver: Callable[[], Awaitable[T]]) -> T:
        """Return what `deliver()` does once it ends well, or fails otherwise than by its link."""
        while True:
            self._began = False
            try:
                return await deliver()
            except Away as away:
                await self._wait(away)

    async def _wait(self, away: Away) -> None:
        """Wait before the next try, or raise the error if there is none."""
        self._in_vain += 1
        # The part may be on that host alone; but one that gets no further may be ill.
        if isinstance(away, Broken) and (self._in_vain > 1 or not self._began):
            self._link.shun(away.host)
        if self._in_vain > TRIES:
            raise away
        seconds = self._first_pause * 2 ** (self._in_vain - 1)
        _log.warn(
            "a delivery broke, and goes on in {seconds:g} s: {error} {detail}",
            seconds=seconds,
            error=away,
            detail=away.detail,
        )
        await self._link.pause(seconds)
