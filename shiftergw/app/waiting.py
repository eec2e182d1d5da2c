"""Wait in the process itself for a source that asks to retry later."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from shiftergw.errors import RetryLater, duration
from shiftergw.model.postponement import WaitLimits
from shiftergw.plumbing.timing import pause
from shiftergw.ports import Notify
from shiftergw.rules.waiting import decide_wait

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")


async def run_with_waits(
    work: Callable[[], Awaitable[T]], clock: IReactorTime, limits: WaitLimits, notify: Notify
) -> T:
    """Return the result of `work`; after `RetryLater`, wait here and call it again.

    For conversions outside the service, which occupy no slot of a worker. Raises the error of
    `decide_wait` if the waits get too long.
    """
    seconds_before = 0.0
    while True:
        try:
            return await work()
        except RetryLater as delay:
            now = clock.seconds()
            wait = decide_wait(seconds_before, delay, now, limits)
        seconds = wait.not_before - now
        notify(f"waiting {duration(seconds)} for {wait.why}")
        seconds_before += seconds
        await pause(seconds, clock)
