"""Patience with what is away for a moment, in work that may have cost hours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from twisted.logger import Logger

from shiftergw.errors import Unavailable
from shiftergw.plumbing.timing import pause

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")

AWAY_SECONDS = 60.0
"""How long it is waited for what is away."""

_log = Logger()


async def patiently(ask: Callable[[float], Awaitable[T]], clock: IReactorTime, what: str) -> T:
    """Return what is answered at a time, asked again each second while that is `Unavailable`.

    `what` is for the log. Raises `Unavailable` after `AWAY_SECONDS`.
    """
    until = clock.seconds() + AWAY_SECONDS
    while True:
        now = clock.seconds()
        try:
            return await ask(now)
        except Unavailable as error:
            if now >= until:
                raise
            _log.warn("{what}: {error}", what=what, error=error)
        await pause(1, clock)
