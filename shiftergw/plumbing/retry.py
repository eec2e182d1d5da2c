"""Retry calls to a store that is unavailable for a moment, so that hours of work are not lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from twisted.logger import Logger

from shiftergw.errors import Unavailable
from shiftergw.plumbing.timing import pause

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")

RETRY_SECONDS = 60.0
"""Seconds for which a call is retried."""

_log = Logger()


async def retry_while_unavailable(
    call: Callable[[float], Awaitable[T]], clock: IReactorTime, description: str
) -> T:
    """Return the result of `call`, retrying every second while it raises `Unavailable`.

    `call` gets the current time in seconds. `description` names the call in the log. Raises
    `Unavailable` after `RETRY_SECONDS`, and every other error at once.
    """
    deadline = clock.seconds() + RETRY_SECONDS
    while True:
        now = clock.seconds()
        try:
            return await call(now)
        except Unavailable as error:
            if now >= deadline:
                raise
            _log.warn("{description}: {error}", description=description, error=error)
        await pause(1, clock)
