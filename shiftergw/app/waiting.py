"""Wait for a source that asks for it, where there is no queue to wait in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from shiftergw.errors import RetryLater, duration
from shiftergw.model import WaitLimits
from shiftergw.plumbing.timing import pause
from shiftergw.ports import Say
from shiftergw.rules.waiting import decide_wait

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")


async def run_with_waits(
    work: Callable[[], Awaitable[T]], clock: IReactorTime, limits: WaitLimits, say: Say
) -> T:
    """Return what `work` returns; after `RetryLater`, wait here and run it again.

    For conversions outside the service, which occupy no slot of a worker. Raises as `decide_wait`.
    """
    waited = 0.0
    while True:
        try:
            return await work()
        except RetryLater as later:
            now = clock.seconds()
            wait = decide_wait(waited, later, now, limits)
        seconds = wait.not_before - now
        say(f"waiting {duration(seconds)} for {wait.why}")
        waited += seconds
        await pause(seconds, clock)
